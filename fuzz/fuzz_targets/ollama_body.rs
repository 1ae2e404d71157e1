//! The body of a chat or a prompt of Ollama's API.
#![no_main]

#[path = "../../tests/support/parsers.rs"]
mod parsers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| parsers::ollama_body(data));
