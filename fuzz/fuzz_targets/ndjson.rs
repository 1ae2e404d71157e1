//! What a model host streams. The first byte is the size of the chunks, so that the corpus stays
//! readable.
#![no_main]

#[path = "../../tests/support/parsers.rs"]
mod parsers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some((size, data)) = data.split_first() {
        parsers::ndjson(data, usize::from(*size));
    }
});
