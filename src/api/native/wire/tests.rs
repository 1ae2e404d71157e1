//! Tests of the wire format against the contract.

use std::sync::Arc;

use proptest::prelude::*;

use serde_json::Value;
use uuid::Uuid;

use super::*;
use crate::session::model::ContextReport;
use crate::session::{Tag, Usage};

const SESSION: SessionId = SessionId(Uuid::from_u128(1));
const GENERATION: GenerationId = GenerationId(Uuid::from_u128(2));
const AFTER: Cursor = Cursor { events: 3, tag: Tag(0xab), generation: Some(GENERATION), offset: 5 };

fn event(control: Control) -> Arc<Event> {
    let generation = match control {
        Control::Cleared {} => None,
        _ => Some(GENERATION),
    };
    Arc::new(Event { number: 3, tag: AFTER.tag, answer_position: None, generation, control })
}

/// Joins events to lines, with short names for identifiers and cursors.
fn lines<T: ToString>(events: &[T]) -> String {
    let lines: Vec<String> = events.iter().map(ToString::to_string).collect();
    lines
        .join("\n")
        .replace(&AFTER.to_string(), "CURSOR")
        .replace(&GENERATION.to_string(), "GENERATION")
        .replace(&SESSION.to_string(), "SESSION")
}

fn delta(change: Change) -> Delta {
    let generation = match &change {
        Change::Event { event, .. } => event.generation,
        _ => Some(GENERATION),
    };
    Delta::new(SESSION, generation, AFTER, change)
}

fn sent(change: Change) -> String {
    delta(change).encoded::<Native>().to_string()
}

fn text(offset: u64, text: &str) -> Change {
    Change::Text { offset, text: text.to_owned() }
}

fn event_change(control: Control, answer: &str) -> Change {
    Change::Event { event: event(control), answer: answer.to_owned(), reasoning: None }
}

fn event_of(control: Control, answer: &str) -> String {
    sent(event_change(control, answer))
}

fn ended() -> Control {
    Control::Ended {
        timestamp: "2025-08-30T02:00:00.000000Z".to_owned(),
        model: "m".to_owned(),
        finish_reason: FinishReason::Stop,
        usage: Usage { prompt_tokens: 7, completion_tokens: 2 },
        context: ContextReport { messages_sent: 1, ..ContextReport::default() },
        continued: Vec::new(),
        tool_calls: Vec::new(),
    }
}

fn stored(status: Status, error: Option<Failure>) -> Message {
    let timestamp = "2025-08-30T02:00:00Z".parse().expect("a time");
    let message = crate::session::store::message(crate::session::Role::Assistant, timestamp);
    Message {
        id: Uuid::from_u128(3),
        content: "Hello".to_owned(),
        generation_id: Some(GENERATION),
        model: Some("m".to_owned()),
        status: Some(status),
        error,
        ..message
    }
}

fn failure() -> Failure {
    Failure {
        code: "upstream_interrupted".to_owned(),
        message: "the answer broke off".to_owned(),
        retryable: true,
        retry_after: Some(2),
    }
}

#[test]
fn a_turn_is_encoded_as_the_contract_requires() {
    let accepted = Control::Accepted {
        anchor: None,
        message: "hi \"you\"".to_owned(),
        timestamp: "2025-08-30T02:00:00.000000Z".to_owned(),
        message_id: Some("a".to_owned()),
    };
    let turn = [
        event_of(accepted, ""),
        event_of(Control::Started { model: "m".to_owned() }, ""),
        sent(text(0, "Hello")),
        sent(Change::Restart { from: 5 }),
        event_of(Control::Done {}, ""),
        event_of(ended(), "Hello"),
    ];
    insta::assert_snapshot!(lines(&turn), @r#"
    {"type":"message_received","message":"hi \"you\"","timestamp":"2025-08-30T02:00:00.000000Z","message_id":"a","generation_id":"GENERATION","cursor":"CURSOR"}
    {"type":"stream_start","model":"m","generation_id":"GENERATION","cursor":"CURSOR"}
    {"type":"stream_chunk","content":"Hello","done":false,"offset":0,"generation_id":"GENERATION","cursor":"CURSOR"}
    {"type":"stream_restart","from":5,"generation_id":"GENERATION","cursor":"CURSOR"}
    {"type":"stream_chunk","content":"","done":true,"generation_id":"GENERATION","cursor":"CURSOR"}
    {"type":"stream_end","full_response":"Hello","timestamp":"2025-08-30T02:00:00.000000Z","finish_reason":"stop","usage":{"prompt_tokens":7,"completion_tokens":2},"context":{"messages_sent":1,"messages_dropped":0,"prompt_tokens":0,"num_ctx":0},"generation_id":"GENERATION","cursor":"CURSOR"}
    "#);
}

#[test]
fn other_ends_and_a_cleared_history_are_encoded_as_the_contract_requires() {
    let cancelled = delta(event_change(Control::Cancelled {}, "Hel"));
    let events = [
        encode_at(&cancelled, AFTER, Some(true)).to_string(),
        cancelled.encoded::<Native>().to_string(),
        event_of(Control::Failed(failure()), "Hel"),
        event_of(Control::Cleared {}, ""),
        response(&event(ended()), "Hello", None, AFTER).expect("an end").to_string(),
        connection(SESSION, Some(AFTER), true, false, None).to_string(),
    ];
    insta::assert_snapshot!(lines(&events), @r#"
    {"type":"cancelled","full_response":"Hel","generation_id":"GENERATION","cursor":"CURSOR","upstream_closed":true}
    {"type":"cancelled","full_response":"Hel","generation_id":"GENERATION","cursor":"CURSOR"}
    {"type":"error","message":"the answer broke off","code":"upstream_interrupted","retryable":true,"retry_after":2,"generation_id":"GENERATION","cursor":"CURSOR"}
    {"type":"history_cleared","session_id":"SESSION","cursor":"CURSOR"}
    {"type":"response","content":"Hello","model":"m","timestamp":"2025-08-30T02:00:00.000000Z","finish_reason":"stop","usage":{"prompt_tokens":7,"completion_tokens":2},"context":{"messages_sent":1,"messages_dropped":0,"prompt_tokens":0,"num_ctx":0},"generation_id":"GENERATION","cursor":"CURSOR"}
    {"type":"connection","status":"connected","session_id":"SESSION","message":"WebSocket chat connected successfully","resumed":true,"recovered":false,"cursor":"CURSOR"}
    "#);
}

#[test]
fn a_stored_answer_is_replayed_and_only_its_end_carries_a_cursor() {
    let stream = replay(&stored(Status::Complete, None), false, AFTER);
    insta::assert_snapshot!(lines(&stream), @r#"
    {"type":"stream_start","model":"m","generation_id":"GENERATION"}
    {"type":"stream_chunk","content":"Hello","done":false,"offset":0,"generation_id":"GENERATION"}
    {"type":"stream_chunk","content":"","done":true,"generation_id":"GENERATION"}
    {"type":"stream_end","full_response":"Hello","timestamp":"2025-08-30T02:00:00.000000Z","finish_reason":"stop","usage":{"prompt_tokens":0,"completion_tokens":0},"context":{"messages_sent":0,"messages_dropped":0,"prompt_tokens":0,"num_ctx":0},"generation_id":"GENERATION","cursor":"CURSOR"}
    "#);
    let failed = replay(&stored(Status::Failed, Some(failure())), true, AFTER);
    assert_eq!(failed.len(), 1);
    assert!(failed[0].contains("upstream_interrupted"));
}

#[test]
fn reasoning_is_encoded_beside_the_answer() {
    let reasoning = Change::Reasoning { offset: 4, text: "hm".to_owned() };
    let message = Message { thinking: Some("hm".to_owned()), ..stored(Status::Complete, None) };
    let mut events = vec![sent(reasoning)];
    events.extend(replay(&message, false, AFTER)[..3].iter().map(ToString::to_string));
    let running = |text| history(&[], false, Some((GENERATION, text)), None).0.to_string();
    events.extend([running("\u{2}hm"), running("\u{2}hm\u{3}He")]);
    insta::assert_snapshot!(lines(&events), @r#"
    {"type":"stream_thinking","content":"hm","offset":4,"generation_id":"GENERATION","cursor":"CURSOR"}
    {"type":"stream_start","model":"m","generation_id":"GENERATION"}
    {"type":"stream_thinking","content":"hm","offset":0,"generation_id":"GENERATION"}
    {"type":"stream_chunk","content":"Hello","done":false,"offset":0,"generation_id":"GENERATION"}
    {"type":"history","messages":[],"count":0,"has_more":false,"answer":{"generation_id":"GENERATION","thinking":"hm","content":"","offset":0}}
    {"type":"history","messages":[],"count":0,"has_more":false,"answer":{"generation_id":"GENERATION","thinking":"hm","content":"He","offset":2}}
    "#);
    assert_eq!(replay(&message, true, AFTER).len(), 1, "only the answer, at once");
}

#[test]
fn a_history_is_never_larger_than_an_event_may_be() {
    let long = Message { content: "\u{1}\"三".repeat(20_000), ..stored(Status::Complete, None) };
    let messages = vec![long; 8];
    let answer = "\n三".repeat(100_000);
    let (json, shown) = history(&messages, false, Some((GENERATION, &answer)), None);
    assert!(json.len() <= EVENT_BYTES, "{} bytes", json.len());
    let history: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(history["has_more"], true);
    assert_eq!(history["count"], history["messages"].as_array().expect("a list").len());
    assert_eq!(history["answer"]["content"].as_str().expect("a text"), &answer[..shown]);
    assert_eq!(history["answer"]["offset"], shown);
    assert!(shown > 0);
}

#[test]
fn messages_are_parsed_as_the_contract_requires() {
    let kind = |text: &str| parse_client_message(text.as_bytes()).map(|message| message.kind());
    assert_eq!(kind(r#"{"message":"hi"}"#), Ok("chat"));
    assert_eq!(kind(r#"{"type":null,"message":"hi"}"#), Ok("chat"));
    assert_eq!(kind(r#"{"type":"ping"}"#), Ok("ping"));
    assert_eq!(kind(r#"{"type":"history"}"#), Ok("get_history"));
    assert_eq!(kind(r#"{"type":"get_history","limit":5,"before":null}"#), Ok("get_history"));
    assert_eq!(kind(r#"{"type":"clear_history"}"#), Ok("clear_history"));
    assert_eq!(kind(r#"{"type":"cancel"}"#), Ok("cancel"));
    let id = |text: &str| {
        parse_client_message(text.as_bytes()).map(|message| message.message_id().map(str::to_owned))
    };
    assert_eq!(id(r#"{"type":"get_history","message_id":"x"}"#), Ok(Some("x".to_owned())));
    let branch = r#"{"type":"branch","message_id":"11111111-2222-4333-8444-555555555555"}"#;
    assert_eq!(id(branch), Ok(None));
    let named = branch.replace('}', r#","idempotency_key":"x"}"#);
    assert_eq!(id(&named), Ok(Some("x".to_owned())));
}

#[test]
fn the_error_of_a_bad_message_names_its_reason_and_the_message() {
    let bad = |text: &str| {
        let bad = parse_client_message(text.as_bytes()).expect_err("bad");
        format!("{} {:?} {}", bad.problem.code, bad.message_id, bad.problem.detail)
    };
    let errors = [
        bad("{"),
        bad("[]"),
        bad("null"),
        bad(r#"{"type":7}"#),
        bad(r#"{"type":"dance"}"#),
        bad(r#"{"type":"chat","message_id":"x"}"#),
        bad(r#"{"message":"  ","message_id":"x"}"#),
        bad(r#"{"type":"cancel","generation_id":"one"}"#),
    ];
    insta::assert_snapshot!(lines(&errors), @r#"
    json_invalid None not valid JSON, at line 1 column 1
    not_an_object None the message is not a JSON object
    not_an_object None the message is not a JSON object
    unknown_type None type must be a string
    unknown_type None there is no such type of message
    validation_failed Some("x") message: is required
    validation_failed Some("x") message: must not be blank
    validation_failed None generation_id: must be a UUID
    "#);
}

proptest! {
    #[test]
    fn any_piece_reads_back_as_it_was(piece in "\\PC{0,40}|[\\x00-\\x7f]{0,40}") {
        let json: Value = serde_json::from_str(&sent(text(9, &piece)))?;
        prop_assert_eq!(json["content"].as_str(), Some(piece.as_str()));
        prop_assert_eq!(json["cursor"].as_str(), Some(&*AFTER.to_string()));
    }
}

#[test]
fn the_events_of_the_protocol_page_are_those_of_the_code() {
    let source = include_str!("event.rs");
    let source = source.split("pub enum ServerEvent").nth(1).expect("the enum");
    let source = source.split("\n}\n").next().expect("its end");
    let variants = source.lines().filter_map(|line| line.strip_prefix("    ")?.strip_suffix(" {"));
    let mut events: Vec<String> = variants
        .filter(|name| name.starts_with(char::is_uppercase))
        .map(|name| {
            let snake = name.chars().flat_map(|c| {
                let underscore = c.is_uppercase().then_some('_');
                underscore.into_iter().chain(c.to_lowercase())
            });
            snake.skip(1).collect()
        })
        .collect();
    events.sort();
    let page = include_str!("../../../../docs/PROTOCOL.md");
    let table = page.split("## Server events").nth(1).expect("the chapter");
    let table = table.split("\n\n").find(|part| part.starts_with("| `type`")).expect("its table");
    let rows = table.lines().skip(2).filter_map(|row| row.split('`').nth(1));
    let mut described: Vec<&str> = rows.collect();
    described.sort_unstable();
    assert_eq!(described, events);
    // serde derives the names; one event shows that it does so as above.
    let pong = ServerEvent::Pong { timestamp: String::new() }.json();
    assert!(pong.starts_with(r#"{"type":"pong""#) && events.iter().any(|name| name == "pong"));
}
