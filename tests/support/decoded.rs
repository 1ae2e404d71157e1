//! What a decoder makes of the chunks of a stream, for the tests of both sides of the crate.

use bytes::Bytes;
use jarvis::ollama::{Decoder, StreamEvent};

/// Returns all events of these chunks, and whether they ended without an error.
pub fn decode<'a>(
    decoder: &mut Decoder,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<StreamEvent>, bool) {
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
    match decoder.finish() {
        Ok(event) => events.extend(event),
        Err(_) => return (events, false),
    }
    (events, true)
}
