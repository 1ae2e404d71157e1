//! The properties of the three parsers that hold for any bytes. The fuzz targets assert the same.
#![allow(dead_code, missing_docs, reason = "each target uses a part of it")]

use bytes::Bytes;
use jarvis::api::native::wire::{self, ClientMessage, parse_client_message};
use jarvis::ollama::{Decoder, StreamEvent};
use jarvis::session::Cursor;

fn decode<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<StreamEvent>, bool) {
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
    match decoder.finish() {
        Ok(event) => events.extend(event),
        Err(_) => return (events, false),
    }
    (events, true)
}

/// Any bytes, split anywhere, decode as they do in one piece.
pub fn ndjson(bytes: &[u8], chunk: usize) {
    assert_eq!(decode(bytes.chunks(chunk.max(1))), decode(std::iter::once(bytes)));
}

/// Any bytes are a message within its bounds, or an error that can be sent to the client.
pub fn client_message(bytes: &[u8]) {
    match parse_client_message(bytes) {
        Ok(ClientMessage::Chat(request)) => {
            let length = request.message.chars().count();
            assert!((1..=32_768).contains(&length) && !request.message.trim().is_empty());
            assert!((0.0..=2.0).contains(&request.temperature));
            assert!(request.max_tokens >= 1 && request.stop.len() <= 4);
            assert_eq!(request.digest("m").len(), 64);
        }
        Ok(ClientMessage::History { limit, .. }) => assert!((1..=500).contains(&limit)),
        Ok(_) => {}
        Err(bad) => {
            assert!(!bad.problem.code.is_empty() && !bad.problem.detail.is_empty());
            let told = wire::error(&bad.problem, bad.message_id.as_deref());
            let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
            assert_eq!(told["code"], *bad.problem.code);
        }
    }
}

/// Any text is a cursor that is written in one way, or an error.
pub fn cursor(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(cursor) = text.parse::<Cursor>() {
        let written = cursor.to_string();
        assert!(written.len() <= 128);
        assert_eq!(written.parse(), Ok(cursor));
    }
}
