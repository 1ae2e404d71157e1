//! The frames of a client of HTTP/2. The first byte is the size of the chunks, and the rest is repeated,
//! so that there are enough control frames.
#![no_main]

#[path = "../../tests/support/parsers.rs"]
mod parsers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some((size, data)) = data.split_first() {
        parsers::http_2_frames(&data.repeat(200), usize::from(*size));
    }
});
