//! Ten thousand random strings, and as many damaged valid ones, for each parser.
#![allow(missing_docs, reason = "tests")]

#[path = "support/parsers.rs"]
mod parsers;

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::{Index, select};

const CASES: u32 = 10_000;
/// The time limit of one string, in a debug build on a busy machine.
const TIME_LIMIT: Duration = Duration::from_secs(1);

const MESSAGES: &[&str] = &[
    r#"{"type":"ping"}"#,
    r#"{"type":"chat","message":"hello \ud83d\ude00","model":"m","temperature":0.7,"stream":true,"max_tokens":10,"system":"s","message_id":"a","seed":1,"stop":["x","y"],"think":false}"#,
    r#"{"message":"no type"}"#,
    r#"{"message":"hi","stop":"x","think":"high","stream":"on","max_tokens":"-1","note":"\ud800"}"#,
    r#"{"type":"get_history","limit":900,"before":"00000000-0000-4000-8000-000000000000"}"#,
    r#"{"type":"cancel","generation_id":"00000000-0000-4000-8000-000000000000"}"#,
];
const CURSORS: &[&str] = &[
    "1-0-0-0-0",
    "1-17-9f3a-0-0",
    "1-9007199254740991-ffffffffffffffff-0123456789abcdef0123456789abcdef-9007199254740991",
];
const LINES: &[&str] = &[
    "{\"message\":{\"role\":\"assistant\",\"content\":\"hé\"},\"done\":false}\n{\"done\":true,\"done_reason\":\"stop\",\"eval_count\":2}\n",
    "{\"error\":\"an error was encountered while running the model: unexpected EOF\"}\n",
    "{\"response\":\"a\",\"thinking\":\"b\"}\r\n\n{\"response\":\"\\u00e9\"}",
    "\u{feff}{\"response\":\"\\ud83d\"}\n{\"response\":\"\\ude00\",\"eval_count\":\"5.0\",\"done\":null}\n{\"done_reason\":\"stop\",\"eval_count\":null}",
];

fn random() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..400)
}

/// Returns a valid string with bytes changed, left out, doubled, and inserted.
fn damaged(valid: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let damage = prop::collection::vec((any::<Index>(), any::<u8>(), 0..4u8), 0..5);
    (select(valid), damage).prop_map(|(text, damage)| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, byte, how) in damage {
            let at = at.index(bytes.len() + 1);
            match how {
                0 if at < bytes.len() => bytes[at] = byte,
                1 => bytes.truncate(at),
                2 => bytes.extend_from_within(at..),
                _ => bytes.insert(at, byte),
            }
        }
        bytes
    })
}

fn in_time(check: impl FnOnce()) {
    let started = Instant::now();
    check();
    assert!(started.elapsed() < TIME_LIMIT, "{:?}", started.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    #[test]
    fn any_bytes_from_a_client_are_a_message_or_an_error(bytes in random()) {
        in_time(|| parsers::client_message(&bytes));
    }

    #[test]
    fn a_damaged_message_from_a_client_is_a_message_or_an_error(bytes in damaged(MESSAGES)) {
        in_time(|| parsers::client_message(&bytes));
    }

    #[test]
    fn any_bytes_are_a_cursor_or_an_error(bytes in random()) {
        in_time(|| parsers::cursor(&bytes));
    }

    #[test]
    fn a_damaged_cursor_is_a_cursor_or_an_error(bytes in damaged(CURSORS)) {
        in_time(|| parsers::cursor(&bytes));
    }

    #[test]
    fn any_bytes_from_a_model_host_are_events_or_an_error(bytes in random(), chunk in 1..64usize) {
        in_time(|| parsers::ndjson(&bytes, chunk));
    }

    #[test]
    fn damaged_lines_from_a_model_host_are_events_or_an_error(
        bytes in damaged(LINES),
        chunk in 1..64usize,
    ) {
        in_time(|| parsers::ndjson(&bytes, chunk));
    }
}

#[test]
fn the_largest_and_the_deepest_take_no_longer() {
    for unit in ["[", "{\"a\":", "\"", "\\u0000", "1", " ", "-", "{\"response\":\"", "\u{1f600}"] {
        let bytes = unit.repeat((512 << 10) / unit.len());
        in_time(|| parsers::client_message(bytes.as_bytes()));
        in_time(|| parsers::cursor(bytes.as_bytes()));
        in_time(|| parsers::ndjson(bytes.as_bytes(), 4096));
    }
}
