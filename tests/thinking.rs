//! Models that reason: the reasoning comes first, is kept apart, and survives every fault.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::client::{Socket, chat, get, http, kinds, post, send, server_sent};
use support::fleet::ready_replicas;
use support::process::{Process, ollama_sim};
use support::redis::RedisServer;
use uuid::Uuid;

const MODEL: &str = "thinker:latest";

struct Fleet {
    _redis: RedisServer,
    ollama: Process,
    replicas: Vec<Process>,
    session: String,
}

impl Fleet {
    async fn of(replicas: usize, rate: &str) -> Self {
        let redis = RedisServer::start();
        let ollama = ollama_sim(&["--models", "thinker,tinyllama", "--rate", rate]);
        let settings = [("JARVIS_DEFAULT_MODEL", MODEL), ("JARVIS_LEASE_MS", "1000")];
        let replicas = ready_replicas(replicas, &redis.url(), &ollama.url, &settings).await;
        Self { _redis: redis, ollama, replicas, session: Uuid::new_v4().to_string() }
    }

    async fn socket(&self, replica: usize, cursor: Option<&Value>) -> (Socket, Value) {
        let mut path = format!("/ws?session_id={}", self.session);
        if let Some(cursor) = cursor {
            path = format!("{path}&cursor={}", cursor.as_str().expect("a cursor"));
        }
        Socket::open(&self.replicas[replica], &path).await
    }

    async fn history(&self, replica: usize) -> Vec<Value> {
        let path = format!("/api/v1/chat/sessions/{}", self.session);
        let session = get(&self.replicas[replica], &path).await.body;
        session["messages"].as_array().expect("messages").clone()
    }

    /// Returns the reasoning and the answer of the script.
    async fn expected(&self, message: &str) -> (String, String) {
        let request = json!({"model": MODEL, "think": true, "stream": false,
            "options": {"num_predict": 1000},
            "messages": [{"role": "user", "content": message}]});
        let reply = post(&self.ollama, "/api/chat", &request).await.body;
        let part = |name: &str| reply["message"][name].as_str().expect("a text").to_owned();
        let (reasoning, answer) = (part("thinking"), part("content"));
        assert!(!reasoning.is_empty() && !answer.is_empty());
        (reasoning, answer)
    }
}

fn reasoning_turn(message: &str) -> Value {
    json!({"type": "chat", "message": message, "think": true})
}

/// The text of a client: it appends at the offset of each piece, and takes back.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    reasoning: String,
    answer: String,
}

impl Seen {
    fn take_in(&mut self, events: &[Value]) {
        for event in events {
            let part = match event["type"].as_str() {
                Some("stream_restart") => {
                    let from = event["from"].as_u64().expect("a length") as usize;
                    self.answer.truncate(from);
                    if from == 0 {
                        self.reasoning.clear();
                    }
                    continue;
                }
                Some("stream_thinking") => {
                    assert_eq!(self.answer, "", "a thought after the answer: {event}");
                    &mut self.reasoning
                }
                Some("stream_chunk") if event["done"] == false => &mut self.answer,
                _ => continue,
            };
            assert_eq!(event["offset"], part.len(), "a hole or a double: {event}");
            part.push_str(event["content"].as_str().expect("content"));
        }
    }
}

fn seen(events: &[Value]) -> Seen {
    let mut seen = Seen::default();
    seen.take_in(events);
    seen
}

#[tokio::test]
async fn reasoning_comes_before_the_answer_and_is_kept_apart_from_it() {
    let fleet = Fleet::of(2, "300").await;
    let message = "[[tokens=30 think=40]] why?";
    let (reasoning, answer) = fleet.expected(message).await;
    let ((mut socket, _), (mut whole, _)) =
        (fleet.socket(0, None).await, fleet.socket(1, None).await);
    socket.say(&reasoning_turn(message)).await;
    let (events, elsewhere) = (socket.until("stream_end").await, whole.until("stream_end").await);
    let order =
        ["message_received", "stream_start", "stream_thinking", "stream_chunk", "stream_end"];
    assert_eq!(kinds(&events), order);
    assert_eq!(kinds(&elsewhere), order);
    assert_eq!(seen(&elsewhere), seen(&events), "the same on every replica");
    assert!(events.iter().filter(|event| event["type"] == "stream_thinking").count() > 10);
    assert!(events.iter().all(|event| event["cursor"].is_string()));
    assert_eq!(seen(&events), Seen { reasoning: reasoning.clone(), answer: answer.clone() });
    let end = events.last().expect("an end");
    assert_eq!(end["full_response"], answer.as_str());
    // The stored answer has the same.
    for replica in [0, 1] {
        let history = fleet.history(replica).await;
        assert_eq!(history[1]["content"], answer.as_str());
        assert_eq!(history[1]["thinking"], reasoning.as_str());
        assert!(history[0]["thinking"].is_null());
    }
    // The answer in one piece has the same: over a socket, and over REST.
    let in_one_piece = json!({"type": "chat", "message": message, "think": true, "stream": false});
    socket.say(&in_one_piece).await;
    let events = socket.until("response").await;
    assert_eq!(kinds(&events), ["message_received", "response"]);
    assert_eq!(events[1]["content"], answer.as_str());
    let body = json!({"message": message, "session_id": fleet.session, "think": true});
    let reply = post(&fleet.replicas[1], "/api/v1/chat/", &body).await;
    assert_eq!(reply.body["response"], answer.as_str());
    assert_eq!(reply.body["thinking"], reasoning.as_str());
}

#[tokio::test]
async fn a_repeated_request_gets_the_reasoning_of_the_stored_answer() {
    let fleet = Fleet::of(2, "0").await;
    let message = "[[tokens=20 think=20]] why?";
    let (reasoning, answer) = fleet.expected(message).await;
    let key = Uuid::new_v4().to_string();
    let body = json!({"message": message, "session_id": fleet.session, "think": true});
    for replica in &fleet.replicas {
        let url = format!("{}/api/v1/chat/", replica.url);
        let reply = send(http().post(url).header("idempotency-key", &key).json(&body)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert_eq!(reply.body["response"], answer.as_str());
        assert_eq!(reply.body["thinking"], reasoning.as_str());
    }
    assert_eq!(fleet.history(0).await.len(), 2, "one turn");
}

#[tokio::test]
async fn reasoning_that_was_not_requested_is_not_shown() {
    let fleet = Fleet::of(1, "0").await;
    let (reasoning, answer) = fleet.expected("[[unasked tokens=20 think=40]] why?").await;
    let message = "[[unasked tokens=20 think=40]] why?";
    // The host does send reasoning.
    let request = json!({"model": MODEL, "think": false, "stream": false,
        "messages": [{"role": "user", "content": message}]});
    let reply = post(&fleet.ollama, "/api/chat", &request).await.body;
    assert_eq!(reply["message"]["thinking"], reasoning.as_str());
    let replica = &fleet.replicas[0];
    let (mut socket, _) = fleet.socket(0, None).await;
    socket.say(&json!({"type": "chat", "message": message})).await;
    let events = socket.until("stream_end").await;
    assert_eq!(kinds(&events), ["message_received", "stream_start", "stream_chunk", "stream_end"]);
    assert_eq!(seen(&events), Seen { reasoning: String::new(), answer: answer.clone() });
    assert_eq!(events.last().expect("an end")["full_response"], answer.as_str());
    let reply = chat(replica, &fleet.session, message).await;
    assert_eq!(reply.body["response"], answer.as_str());
    assert!(reply.body.get("thinking").is_none(), "{}", reply.body);
    let body = json!({"message": message, "session_id": fleet.session, "stream": true});
    let request = http().post(format!("{}/api/v1/chat/", replica.url)).json(&body);
    let text = request.send().await.expect("a response").text().await.expect("a body");
    let (events, _) = server_sent(&text);
    assert_eq!(seen(&events), Seen { reasoning: String::new(), answer: answer.clone() });
    assert!(!events.iter().any(|event| event["type"] == "stream_thinking"), "{text}");
    let history = fleet.history(0).await;
    assert_eq!(history.len(), 6);
    for message in history {
        assert!(message.get("thinking").is_none(), "{message}");
    }
}

#[tokio::test]
async fn reasoning_is_never_sent_back_to_the_model() {
    let fleet = Fleet::of(1, "0").await;
    let message = "[[tokens=20 think=20]] first";
    let (_, answer) = fleet.expected(message).await;
    let body = json!({"message": message, "session_id": fleet.session, "think": true});
    let first = post(&fleet.replicas[0], "/api/v1/chat/", &body).await;
    assert_eq!(first.body["response"], answer.as_str());
    chat(&fleet.replicas[0], &fleet.session, "second").await;
    let requests = get(&fleet.ollama, "/sim/requests").await.body;
    let requests = requests["requests"].as_array().expect("requests");
    let last = requests.iter().rfind(|request| request["messages"].is_array()).expect("a request");
    let expected = json!([
        {"role": "user", "content": message},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "second"},
    ]);
    assert_eq!(last["messages"], expected);
    assert_eq!(
        last["request"]["think"], false,
        "reasoning is requested only where the turn wants it"
    );
    let history = fleet.history(0).await;
    assert!(history[3]["thinking"].is_null());
}

#[tokio::test]
async fn a_model_that_does_not_reason_just_answers() {
    let fleet = Fleet::of(1, "0").await;
    let (mut socket, _) = fleet.socket(0, None).await;
    let message = json!({"type": "chat", "message": "[[tokens=20 think=20 fault=cut@3]] hi",
        "think": true, "model": "tinyllama"});
    socket.say(&message).await;
    let events = socket.until("stream_end").await;
    // The session takes the next turn.
    let order = ["message_received", "stream_start", "stream_chunk", "stream_end"];
    assert_eq!(kinds(&events), order);
    assert_eq!(events.last().expect("an end")["full_response"], seen(&events).answer.as_str());
}

#[tokio::test]
async fn a_reader_resumes_in_the_middle_of_the_reasoning_from_another_replica() {
    let fleet = Fleet::of(2, "100").await;
    let message = "[[tokens=40 think=80]] why?";
    let (reasoning, answer) = fleet.expected(message).await;
    let (mut asking, _) = fleet.socket(0, None).await;
    let (mut first, _) = fleet.socket(0, None).await;
    asking.say(&reasoning_turn(message)).await;
    let mut events = first.until("stream_thinking").await;
    for _ in 0..5 {
        events.push(first.event().await);
    }
    let mut held = seen(&events);
    assert!(!held.reasoning.is_empty() && held.reasoning.len() < reasoning.len());
    drop(first);
    // The events come live, and again after the end: over WebSocket and as server-sent events.
    let cursor = events.last().expect("an event")["cursor"].clone();
    let (mut second, connection) = fleet.socket(1, Some(&cursor)).await;
    assert_eq!(connection["recovered"], true);
    held.take_in(&second.until("stream_end").await);
    let expected = Seen { reasoning, answer };
    assert_eq!(held, expected);
    let (mut third, _) = fleet.socket(1, Some(&cursor)).await;
    let mut held = seen(&events);
    held.take_in(&third.until("stream_end").await);
    assert_eq!(held, expected);
    let generation = events.last().expect("an event")["generation_id"].as_str().expect("one");
    let path = format!("/api/v1/chat/sessions/{}/events", fleet.session);
    let url = format!("{}{path}?generation_id={generation}", fleet.replicas[0].url);
    let request = http().get(url).header("last-event-id", cursor.as_str().expect("text"));
    let text = request.send().await.expect("a response").text().await.expect("a body");
    let mut held = seen(&events);
    held.take_in(&server_sent(&text).0);
    assert_eq!(held, expected);
}

#[tokio::test]
async fn a_history_has_the_reasoning_of_a_running_answer() {
    let fleet = Fleet::of(1, "100").await;
    let message = "[[tokens=30 think=60]] why?";
    let (reasoning, answer) = fleet.expected(message).await;
    let (mut asking, _) = fleet.socket(0, None).await;
    asking.say(&reasoning_turn(message)).await;
    let mut events = asking.until("stream_thinking").await;
    // A text that is no cursor gets a snapshot.
    let (mut late, connection) = fleet.socket(0, Some(&json!("1-9-9-0-0"))).await;
    assert_eq!(connection["recovered"], false);
    let history = late.event().await;
    let so_far = &history["answer"];
    let held = so_far["thinking"].as_str().expect("reasoning so far");
    assert!(reasoning.starts_with(held) && !held.is_empty(), "{history}");
    assert_eq!((&so_far["content"], &so_far["offset"]), (&json!(""), &json!(0)));
    let mut rest = Seen { reasoning: held.to_owned(), answer: String::new() };
    rest.take_in(&late.until("stream_end").await);
    let expected = Seen { reasoning, answer };
    assert_eq!(rest, expected);
    events.extend(asking.until("stream_end").await);
    assert_eq!(seen(&events), expected);
}

#[tokio::test]
async fn server_sent_events_and_their_repeat_have_reasoning_and_answer() {
    let fleet = Fleet::of(1, "0").await;
    let message = "[[tokens=30 think=20]] why?";
    let (reasoning, answer) = fleet.expected(message).await;
    let expected = Seen { reasoning, answer };
    let body = json!({"message": message, "session_id": fleet.session, "think": true,
        "stream": true});
    let key = Uuid::new_v4().to_string();
    for repeat in [false, true] {
        let request = http().post(format!("{}/api/v1/chat/", fleet.replicas[0].url)).json(&body);
        let response = request.header("idempotency-key", &key).send().await.expect("a response");
        let (events, _) = server_sent(&response.text().await.expect("a body"));
        assert_eq!(seen(&events), expected, "repeat: {repeat}");
        let order = kinds(&events);
        assert!(order.ends_with(&["stream_thinking", "stream_chunk", "stream_end"]), "{order:?}");
        // Long after the end the events come from the history.
        for _ in 0..if repeat { 0 } else { 40 } {
            chat(&fleet.replicas[0], &fleet.session, "[[tokens=1]] on").await;
        }
    }
}

#[tokio::test]
async fn a_turn_that_is_cancelled_in_its_reasoning_keeps_it_and_has_no_answer() {
    let fleet = Fleet::of(2, "50").await;
    let (mut socket, _) = fleet.socket(0, None).await;
    socket.say(&reasoning_turn("[[tokens=30 think=500]] why?")).await;
    let mut events = socket.until("stream_thinking").await;
    let (mut other, _) = fleet.socket(1, None).await;
    other.say(&json!({"type": "cancel"})).await;
    events.extend(socket.until("cancelled").await);
    assert_eq!(events.last().expect("an end")["full_response"], "");
    let history = fleet.history(1).await;
    assert_eq!((&history[1]["status"], &history[1]["content"]), (&json!("cancelled"), &json!("")));
    assert_eq!(history[1]["thinking"], seen(&events).reasoning.as_str());
}

async fn taken_over(message: &str, kill_at: &str) {
    let fleet = Fleet::of(2, "60").await;
    let (reasoning, answer) = fleet.expected(message).await;
    let (mut asking, _) = fleet.socket(0, None).await;
    let (mut watching, _) = fleet.socket(1, None).await;
    asking.say(&reasoning_turn(message)).await;
    let mut events = watching.until(kill_at).await;
    for _ in 0..5 {
        events.push(watching.event().await);
    }
    fleet.replicas[0].kill();
    events.extend(watching.until("stream_end").await);
    let restarts: Vec<_> =
        events.iter().filter(|event| event["type"] == "stream_restart").collect();
    assert_eq!(restarts.len(), 1, "it starts again, once: {restarts:?}");
    assert_eq!(restarts[0]["from"], 0);
    let expected = Seen { reasoning: reasoning.clone(), answer: answer.clone() };
    assert_eq!(seen(&events), expected);
    assert_eq!(events.last().expect("an end")["full_response"], answer.as_str());
    let history = fleet.history(1).await;
    assert_eq!(history.len(), 2);
    assert_eq!(history[1]["content"], answer.as_str());
    assert_eq!(history[1]["thinking"], reasoning.as_str());
    assert_eq!(history[1]["writers"], 2);
}

#[tokio::test]
async fn a_writer_that_is_killed_in_the_middle_of_the_reasoning_is_replaced() {
    taken_over("[[tokens=30 think=80]] why?", "stream_thinking").await;
}

#[tokio::test]
async fn a_writer_that_is_killed_after_the_reasoning_is_replaced() {
    taken_over("[[tokens=80 think=30]] why?", "stream_chunk").await;
}
