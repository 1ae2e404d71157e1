//! Tests of the wire format against the contract.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
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
    let rows = table("Server events");
    let mut described: Vec<&str> = rows.iter().filter_map(|row| quoted(row[0]).next()).collect();
    described.sort_unstable();
    assert_eq!(described, events);
    // serde derives the names; one event shows that it does so as above.
    let pong = ServerEvent::Pong { timestamp: String::new() }.json();
    assert!(pong.starts_with(r#"{"type":"pong""#) && events.iter().any(|name| name == "pong"));
}

const PAGE: &str = include_str!("../../../../docs/PROTOCOL.md");

/// Returns the rows of the first table of a chapter of the page, cell by cell.
fn table(chapter: &str) -> Vec<Vec<&'static str>> {
    let text = PAGE.split(&format!("\n## {chapter}\n")).nth(1).expect("the chapter");
    let table = text.split("\n\n").find(|part| part.starts_with("| ")).expect("its table");
    let cells = |row: &'static str| row.split('|').skip(1).map(str::trim).collect();
    table.lines().skip(2).map(cells).collect()
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns the fields of each type of client message, as the page has them.
fn described_fields() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    // The forms that a field may have, and no field.
    let values = ["chat", "true", "false", "low", "medium", "high"];
    let names = |text: &'static str| quoted(text).filter(|name| !values.contains(name));
    let mut all: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for row in table("Client messages") {
        let (own, rest) = row[1].split_once("else as `chat` without ").unwrap_or((row[1], ""));
        let without = rest.split(';').next().expect("a text");
        let mut fields = BTreeSet::new();
        if !rest.is_empty() {
            fields.extend(&all["chat"]);
            names(without).for_each(|name| assert!(fields.remove(name), "{name}"));
        }
        fields.extend(names(own));
        for kind in quoted(row[0]) {
            all.insert(kind, fields.clone());
        }
    }
    all
}

#[test]
fn the_client_messages_of_the_protocol_page_and_their_fields_are_those_of_the_code() {
    let described = described_fields();
    let source = include_str!("client.rs").split("match kind {").nth(1).expect("the types");
    let source = source.split("\n        _ =>").next().expect("their end");
    let arms = source.lines().filter_map(|line| line.split_once(" =>"));
    let types: BTreeSet<_> = arms.flat_map(|(arm, _)| arm.split('"').skip(1).step_by(2)).collect();
    assert_eq!(described.keys().copied().collect::<BTreeSet<_>>(), types);
    // Fields of other requests and of events, which a message has not.
    let mut fields =
        BTreeSet::from(["session_id", "on_disconnect", "user_id", "cursor", "content"]);
    fields.extend(described.values().flatten());
    let valid = json!({"message": "hi", "message_id": Uuid::nil().to_string(), "token": "a"});
    for (kind, described) in described {
        let parse = |field: &str, value: &Value| {
            let mut message = valid.clone();
            message["type"] = json!(kind);
            message[field] = value.clone();
            parse_client_message(message.to_string().as_bytes())
        };
        parse("message", &json!("hi")).expect("a message");
        let is_read = |field: &&str| match parse(field, &json!([[1]])) {
            Ok(_) => false,
            Err(bad) => bad.problem.errors.iter().any(|error| error.loc[1] == **field),
        };
        let read: BTreeSet<_> = fields.iter().copied().filter(is_read).collect();
        assert_eq!(read, described, "{kind}");
    }
}

#[test]
fn the_close_codes_of_the_protocol_page_are_those_of_the_code() {
    let sources =
        [include_str!("../websocket/socket.rs"), include_str!("../websocket/connection.rs")];
    let sent = sources.iter().flat_map(|source| source.split("CloseCode::").skip(1));
    let sent: BTreeSet<u16> = sent
        .filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next())
        .filter(|name| name.starts_with(char::is_uppercase))
        .filter_map(|name| match name {
            "Protocol" => Some(CloseCode::Protocol),
            "Invalid" => Some(CloseCode::Invalid),
            "Policy" => Some(CloseCode::Policy),
            "Size" => Some(CloseCode::Size),
            "Error" => Some(CloseCode::Error),
            "Restart" => Some(CloseCode::Restart),
            "Again" => Some(CloseCode::Again),
            // The row of the client's own code.
            "Normal" => None,
            name => panic!("a close code {name}: describe it on the page"),
        })
        .map(u16::from)
        .collect();
    let rows = table("Close codes");
    assert!(rows.iter().any(|row| row[0] == "its own" && row[1].contains("1000")));
    let described: BTreeSet<u16> = rows
        .iter()
        .flat_map(|row| row[0].split(", "))
        .filter_map(|code| code.parse().ok())
        .collect();
    // Nobody sends these: a client sees them where there was no close frame.
    let unsent = BTreeSet::from([1001, 1006]);
    assert_eq!(&described - &unsent, sent);
    assert!(unsent.is_subset(&described));
}
