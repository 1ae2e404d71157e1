//! What the tests of OpenAI's responses share: requests, the events of streams, and what replies have.

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use super::client::{Reply, get, http, send, with};
use super::eventually;
use super::process::{LIMIT, Process};

pub const RESPONSES: &str = "/v1/responses";
pub const MODEL: &str = "tinyllama:latest";

pub fn asked(question: &str) -> Value {
    json!({"model": MODEL, "input": question, "temperature": 0})
}

/// Returns the events of a stream, and checks its form.
pub fn events_of(raw: &str) -> Vec<Value> {
    let mut events: Vec<Value> = Vec::new();
    let mut name = None;
    for line in raw.lines() {
        if let Some(data) = line.strip_prefix("data: ") {
            let event: Value = serde_json::from_str(data).expect("JSON");
            assert_eq!(event["type"].as_str(), name.take(), "{raw}");
            events.push(event);
        } else if let Some(kind) = line.strip_prefix("event: ") {
            name = Some(kind);
        } else {
            assert!(line.is_empty() || line == ":", "{line:?} in {raw}");
        }
    }
    assert!(!raw.contains(":\n\n"), "a comment that some SDKs fail at: {raw}");
    events
}

pub async fn streamed(request: RequestBuilder) -> Vec<Value> {
    let response = request.send().await.expect("a response");
    let status = response.status();
    let raw = response.text().await.expect("a body");
    assert_eq!(status, 200, "{raw}");
    events_of(&raw)
}

pub async fn created(replica: &Process, request: &Value) -> Vec<Value> {
    let request = with(request.clone(), "stream", json!(true));
    streamed(http().post(format!("{}{RESPONSES}", replica.url)).json(&request)).await
}

pub async fn resumed(replica: &Process, id: &str, after: Option<u64>) -> Vec<Value> {
    let after = after.map_or_else(String::new, |after| format!("&starting_after={after}"));
    let url = format!("{}{RESPONSES}/{id}?stream=true{after}", replica.url);
    streamed(http().get(url)).await
}

pub async fn retrieved(replica: &Process, id: &str) -> Reply {
    get(replica, &format!("{RESPONSES}/{id}")).await
}

pub fn id_of(response: &Value) -> String {
    response["id"].as_str().expect("an id").to_owned()
}

pub fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<_> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    kinds.dedup();
    kinds
}

pub fn joined(events: &[Value]) -> String {
    let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    deltas.filter_map(|event| event["delta"].as_str()).collect()
}

pub fn output_text(response: &Value) -> String {
    let parts = response["output"].as_array().expect("items").iter();
    let parts = parts.filter(|item| item["type"] == "message");
    parts.filter_map(|item| item["content"][0]["text"].as_str()).collect()
}

/// Checks that numbers have no hole, and returns the last response that an event has.
pub fn whole(events: &[Value]) -> Value {
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], at, "{event}");
    }
    events.last().expect("an end")["response"].clone()
}

/// Streams a response again from this replica, after every one of its events.
pub async fn is_resumed_after_every_event(replica: &Process, id: &str, events: &[Value]) {
    assert_eq!(resumed(replica, id, None).await, events);
    for after in 0..events.len() {
        let rest = resumed(replica, id, Some(after as u64)).await;
        assert_eq!(rest, events[after + 1..], "after {after}");
    }
}

/// Reads a stream until it has so many pieces of the text, and leaves it. Returns the identifier of the
/// response.
pub async fn until_pieces(request: RequestBuilder, pieces: usize) -> String {
    let mut stream = request.send().await.expect("a response");
    let mut raw = String::new();
    while raw.matches("event: response.output_text.delta").count() < pieces {
        let chunk = stream.chunk().await.expect("a chunk").expect("more");
        raw.push_str(&String::from_utf8_lossy(&chunk));
    }
    let first = raw.lines().find_map(|line| line.strip_prefix("data: ")).expect("an event");
    let first: Value = serde_json::from_str(first).expect("JSON");
    id_of(&first["response"])
}

/// Waits until a response has ended, and returns it.
pub async fn ended(replica: &Process, id: &str) -> Value {
    let mut last = Value::Null;
    let done = eventually(LIMIT, async || {
        last = retrieved(replica, id).await.body;
        !["queued", "in_progress"].contains(&last["status"].as_str().unwrap_or("in_progress"))
    });
    assert!(done.await, "{last}");
    last
}

pub fn expected(question: &str) -> String {
    ollama_sim::script_answer(MODEL, question, None, 64)
}

pub fn refused(reply: &Reply) -> (u16, Option<&str>, &str) {
    let error = &reply.body["error"];
    assert!(error["message"].is_string(), "{}", reply.body);
    (reply.status, error["param"].as_str(), error["code"].as_str().expect("a code"))
}
