//! Ten thousand random strings, and as many damaged valid ones, for each parser.
#![allow(missing_docs, reason = "tests")]

#[path = "support/parsers.rs"]
mod parsers;

use std::time::{Duration, Instant};

use jarvis::api::native::input::ChatRequest;
use jarvis::api::ollama::Shape;
use jarvis::api::ollama::fields::RawJsonObject;
use jarvis::api::ollama::request::{AskedModel, Task};
use jarvis::api::openai::request::ChatCompletion;
use jarvis::http::extract::object::Object;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

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
const CHAT_BODIES: &[&str] = &[
    r#"{"message":"hi","session_id":"00000000-0000-4000-8000-000000000001","stream":"on","max_tokens":"-1","stop":"x","think":"high","on_disconnect":"cancel","temperature":"2e0"}"#,
    "\u{feff}{\"message\":\"hi\",\"note\":\"\\ud800\",\"system\":null}",
];
const COMPLETION_BODIES: &[&str] = &[
    r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"}]}],"stream":true,"stream_options":{"include_usage":true},"temperature":0.5,"max_tokens":5,"stop":["x"],"n":1}"#,
    r#"{"model":"m","messages":[{"role":"user","content":"q"},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},{"role":"tool","tool_call_id":"c","content":"r"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"auto"}"#,
    r#"{"model":"m","messages":[{"role":"user","content":"q"}],"response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"b":1,"a":2}}}}"#,
];
const EMBEDDING_BODIES: &[&str] = &[
    r#"{"model":"m","input":["a","b"],"dimensions":4,"encoding_format":"base64","user":"u"}"#,
    r#"{"model":"m","input":"\u00e9","encoding_format":null}"#,
];
const RESPONSE_BODIES: &[&str] = &[
    r#"{"model":"m","input":"hi","instructions":"s","temperature":0.5,"max_output_tokens":5,"store":true,"background":true,"metadata":{"a":"b"}}"#,
    r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"a"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"r"}],"tools":[{"type":"function","name":"f","parameters":{"type":"object"}}],"stream":true}"#,
    r#"{"model":"m","input":"q","text":{"format":{"type":"json_schema","name":"n","strict":true,"schema":{"b":1,"a":2}}},"reasoning":{"effort":"low"},"previous_response_id":"resp_00000000000040008000000000000001"}"#,
];
const CONVERSATION_BODIES: &[&str] = &[
    r#"{"metadata":{"topic":"lists","b":""},"items":[{"role":"user","content":"q"},{"type":"message","role":"assistant","content":[{"type":"output_text","text":"a"}]}]}"#,
    r#"{"items":[{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"r"},{"role":"user","content":[{"type":"input_text","text":"é"}]}]}"#,
    r#"{"metadata":null}"#,
];
const KEY_SETS: &[&str] = &[
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"a","use":"sig","alg":"EdDSA"}]}"#,
    r#"{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","kid":"b"},{"kty":"oct","k":"AAAA","kid":"c"}]}"#,
    r#"{"keys":[{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","kid":"d"}]}"#,
];
/// A ping, and a request with its body.
const FRAMES: &[&str] = &[
    "\0\0\u{8}\u{6}\0\0\0\0\0abcdefgh",
    "\0\0\u{2}\u{1}\u{5}\0\0\0\u{1}ab\0\0\u{2}\0\u{1}\0\0\0\u{1}{}",
];
const OLLAMA_BODIES: &[&str] = &[
    r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]},{"role":"tool","tool_name":"f","content":"r"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"stream":false,"options":{"temperature":0.5,"num_predict":-1,"stop":["x"],"seed":7,"num_ctx":9}}"#,
    r#"{"model":"m","prompt":"q","system":"s","format":{"b":1,"a":2},"think":"high","keep_alive":"0s","raw":false}"#,
    r#"{"name":"m","keep_alive":0}"#,
];
const FORWARDED: &[&str] = &[
    "198.51.100.1:4711, [2001:db8::1]:80, 10.0.0.1",
    "[::1], ::ffff:10.0.0.1\nfd00::1\n",
    "unknown, _hidden, 1.2.3.4",
];
const TOKENS: &[&str] = &[
    "{\"alg\":\"HS256\",\"typ\":\"JWT\"}\n{\"sub\":\"alice\",\"exp\":4102444800,\"type\":\"access\",\"aud\":[\"the audience\"],\"nbf\":1}",
    "{\"alg\":\"none\"}\n{\"sub\":\"alice\",\"exp\":4102444800,\"type\":\"access\"}",
    "{\"alg\":\"HS256\",\"crit\":[\"b64\"],\"kid\":\"k\"}\n{\"sub\":\"alice\",\"exp\":1e300,\"type\":\"refresh\"}",
];
const IMPORT_LINES: &[&str] = &[
    r#"{"type":"export","version":1}"#,
    r#"{"type":"session","title":"t","model":"m","created_at":"2026-01-01T00:00:00Z"}"#,
    r#"{"type":"message","role":"assistant","content":"a","thinking":"b","timestamp":"2026-01-01T00:00:00Z","model":"m","status":"complete","finish_reason":"stop","usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
    r#"{"type":"session_end","messages":2}"#,
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
    fn any_bytes_are_the_body_of_a_chat_request_or_an_error(bytes in random()) {
        in_time(|| parsers::chat_body(&bytes));
    }

    #[test]
    fn a_damaged_body_of_a_chat_request_is_one_or_an_error(bytes in damaged(CHAT_BODIES)) {
        in_time(|| parsers::chat_body(&bytes));
    }

    #[test]
    fn any_bytes_are_a_request_for_a_completion_or_an_error(bytes in random()) {
        in_time(|| parsers::completion_body(&bytes));
    }

    #[test]
    fn a_damaged_request_for_a_completion_is_one_or_an_error(bytes in damaged(COMPLETION_BODIES)) {
        in_time(|| parsers::completion_body(&bytes));
    }

    #[test]
    fn any_bytes_are_a_request_for_a_response_or_an_error(bytes in random()) {
        in_time(|| parsers::response_body(&bytes));
    }

    #[test]
    fn a_damaged_request_for_a_response_is_one_or_an_error(bytes in damaged(RESPONSE_BODIES)) {
        in_time(|| parsers::response_body(&bytes));
    }

    #[test]
    fn any_bytes_are_a_request_about_a_conversation_or_an_error(bytes in random()) {
        in_time(|| parsers::conversation_body(&bytes));
    }

    #[test]
    fn a_damaged_request_about_a_conversation_is_one_or_an_error(bytes in damaged(CONVERSATION_BODIES)) {
        in_time(|| parsers::conversation_body(&bytes));
    }

    #[test]
    fn any_bytes_are_the_keys_of_an_issuer_or_an_error(bytes in random()) {
        in_time(|| parsers::key_set(&bytes));
    }

    #[test]
    fn a_damaged_key_set_has_keys_or_is_an_error(bytes in damaged(KEY_SETS)) {
        in_time(|| parsers::key_set(&bytes));
    }

    #[test]
    fn any_frames_of_http_2_are_counted_however_they_are_split(
        bytes in random(),
        times in 1..2000usize,
        chunk in 1..64usize,
    ) {
        in_time(|| parsers::http_2_frames(&bytes.repeat(times.min(1 + (64 << 10) / (1 + bytes.len()))), chunk));
    }

    #[test]
    fn damaged_frames_of_http_2_are_counted_however_they_are_split(
        bytes in damaged(FRAMES),
        times in 1..2000usize,
        chunk in 1..64usize,
    ) {
        in_time(|| parsers::http_2_frames(&bytes.repeat(times), chunk));
    }

    #[test]
    fn any_bytes_are_a_request_for_embeddings_or_an_error(bytes in random()) {
        in_time(|| parsers::embedding_body(&bytes));
    }

    #[test]
    fn a_damaged_request_for_embeddings_is_one_or_an_error(bytes in damaged(EMBEDDING_BODIES)) {
        in_time(|| parsers::embedding_body(&bytes));
    }

    #[test]
    fn any_bytes_are_a_request_of_ollamas_api_or_an_error(bytes in random()) {
        in_time(|| parsers::ollama_body(&bytes));
    }

    #[test]
    fn a_damaged_request_of_ollamas_api_is_one_or_an_error(bytes in damaged(OLLAMA_BODIES)) {
        in_time(|| parsers::ollama_body(&bytes));
    }

    #[test]
    fn whatever_bytes_a_client_forwards_its_address_is_the_one_that_a_trusted_proxy_saw(bytes in random()) {
        in_time(|| parsers::forwarded_for(&bytes));
    }

    #[test]
    fn whatever_a_damaged_header_forwards_the_address_is_the_one_that_a_trusted_proxy_saw(bytes in damaged(FORWARDED)) {
        in_time(|| parsers::forwarded_for(&bytes));
    }

    #[test]
    fn no_bytes_are_a_token_without_the_secret(bytes in random()) {
        in_time(|| parsers::token(&bytes));
    }

    #[test]
    fn a_damaged_token_is_refused_or_names_a_user_that_may_be_signed_in(bytes in damaged(TOKENS)) {
        in_time(|| parsers::token(&bytes));
    }

    #[test]
    fn any_bytes_are_a_line_of_an_import_or_an_error(bytes in random()) {
        in_time(|| parsers::import_line(&bytes));
    }

    #[test]
    fn a_damaged_line_of_an_import_is_one_or_an_error(bytes in damaged(IMPORT_LINES)) {
        in_time(|| parsers::import_line(&bytes));
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

/// Returns a conversation of 1,000 messages with calls and their results, of almost a MiB of text, and
/// 128 tools of almost 128 KiB.
fn largest(of_ollama: bool) -> Value {
    // Each message counts 512 bytes in addition to it.
    let text = "x".repeat(400);
    let arguments = json!({"city": "Paris", "days": [1, 2, 3], "unit": {"name": "celsius"}});
    let arguments = if of_ollama { arguments } else { Value::from(arguments.to_string()) };
    let call = |id: String| {
        let function = json!({"name": "weather", "arguments": arguments});
        json!({"id": id, "type": "function", "function": function})
    };
    let messages = (0..200).flat_map(|turn| {
        let id = |number: usize| format!("call_{turn}_{number}");
        let calls: Vec<_> = (0..3).map(|number| call(id(number))).collect();
        let result = |number| json!({"role": "tool", "tool_call_id": id(number), "content": text});
        let question = json!({"role": "user", "content": text});
        let answer = json!({"role": "assistant", "content": text, "tool_calls": calls});
        [question, answer, result(0), result(1), result(2)]
    });
    let property = json!({"type": "string", "enum": ["a", "b"], "description": "one or the other"});
    let parameters = json!({"type": "object", "required": ["a"], "properties": {
        "a": property, "b": property, "c": property, "d": property, "e": property, "f": property,
        "g": property, "h": property, "i": property, "j": property, "k": property,
    }});
    let tools = (0..128).map(|number| {
        let name = format!("tool_{number}");
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    });
    json!({
        "model": "m", "messages": messages.collect::<Vec<_>>(), "tools": tools.collect::<Vec<_>>(),
    })
}

#[test]
fn the_largest_requests_are_read_by_each_front() {
    let text = largest(false).to_string().into_bytes();
    assert!(text.len() > 512 << 10, "{}", text.len());
    let object = Object::parse(&text).expect("an object");
    let request = ChatCompletion::read(&object, &text).expect("valid");
    assert_eq!(request.messages.before.len(), 999);
    let body = RawJsonObject::parse(largest(true).to_string().into_bytes()).expect("an object");
    let asked = AskedModel::read(Shape::Chat, &body).map_err(|problem| problem.detail);
    assert!(matches!(asked.expect("valid").task, Task::Answer(_)));
    let input = vec!["word ".repeat(200); 2048];
    let text = json!({"model": "m", "input": input}).to_string();
    let object = Object::parse(text.as_bytes()).expect("an object");
    assert_eq!(object.get("input"), Ok(Some(&json!(input))));
    let tools = largest(false)["tools"].take();
    let message = "\u{1}".repeat(32_768);
    let text = json!({"message": message, "tools": tools}).to_string();
    let object = Object::parse(text.as_bytes()).expect("an object");
    assert!(ChatRequest::from_body(&object, text.as_bytes()).is_ok());
}

#[test]
fn the_largest_and_the_deepest_take_no_longer() {
    for unit in [
        "[",
        "{\"a\":",
        "\"",
        "\\u0000",
        "1",
        " ",
        "-",
        "{\"response\":\"",
        "\u{1f600}",
        "1.2.3.4,",
    ] {
        let bytes = unit.repeat((512 << 10) / unit.len());
        in_time(|| parsers::client_message(bytes.as_bytes()));
        in_time(|| parsers::cursor(bytes.as_bytes()));
        in_time(|| parsers::chat_body(bytes.as_bytes()));
        in_time(|| parsers::completion_body(bytes.as_bytes()));
        in_time(|| parsers::embedding_body(bytes.as_bytes()));
        in_time(|| parsers::ollama_body(bytes.as_bytes()));
        in_time(|| parsers::forwarded_for(bytes.as_bytes()));
        in_time(|| parsers::token(bytes.as_bytes()));
        in_time(|| parsers::import_line(bytes.as_bytes()));
        in_time(|| parsers::ndjson(bytes.as_bytes(), 4096));
    }
}
