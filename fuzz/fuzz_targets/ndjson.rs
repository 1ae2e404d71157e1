//! Any bytes, split anywhere, give what they give in one piece, and no panic.
#![no_main]

use bytes::Bytes;
use jarvis::ollama::{Decoder, Event};
use libfuzzer_sys::fuzz_target;

fn decode<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<Event>, bool) {
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    for chunk in chunks {
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next_event() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(_) => return (events, false),
            }
        }
    }
    events.extend(decoder.finish());
    (events, true)
}

fuzz_target!(|data: &[u8]| {
    // The first byte is the size of the chunks, so that the corpus stays readable.
    let Some((size, data)) = data.split_first() else {
        return;
    };
    let split = decode(data.chunks(usize::from(*size).max(1)));
    assert_eq!(split, decode(std::iter::once(data)));
});
