//! The clients of a replica that is being replaced.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::client::{Socket, get, http, joined, post, rest_of, send, server_sent, until_ok};
use support::eventually;
use support::host::stat;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use uuid::Uuid;

/// The seconds that turns have after SIGTERM.
const DRAIN: u64 = 3;
/// The seconds that may come on top: 25 s in all, of which turns have 20.
const HANDOVER: Duration = Duration::from_secs(5);
/// At this pace short turns end within the drain, and long ones do not.
const RATE: &str = "40";
const SHORT: &str = "[[tokens=60]] short";
const LONG: &str = "[[tokens=300]] long";

fn expected(message: &str) -> String {
    ollama_sim::script_answer("tinyllama:latest", message, None, 64)
}

async fn pair(redis: &RedisServer, ollama: &Process) -> [Process; 2] {
    let drain = DRAIN.to_string();
    let limits = [("JARVIS_DRAIN_TIMEOUT", drain.as_str())];
    let replicas =
        [jarvis(&redis.url(), &ollama.url, &limits), jarvis(&redis.url(), &ollama.url, &limits)];
    for replica in &replicas {
        until_ok(replica, "/health/ready").await;
    }
    replicas
}

async fn until_not_ready(replica: &Process) {
    let not_ready = async || get(replica, "/health/ready").await.status != 200;
    assert!(eventually(LIMIT, not_ready).await, "the replica stays ready");
}

#[tokio::test]
async fn a_draining_replica_refuses_new_turns_and_names_a_retry_time() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", RATE]));
    let [old, _new] = pair(&redis, &ollama).await;
    let (mut socket, _) = Socket::open(&old, "/ws").await;
    socket.say(&json!({"message": LONG})).await;
    socket.until("stream_chunk").await;
    let (mut other, _) = Socket::open(&old, "/ws").await;
    old.terminate();
    let terminated = Instant::now();
    until_not_ready(&old).await;
    for socket in [&mut socket, &mut other] {
        let (_, close) = socket.end().await;
        let (code, reason) = close.expect("a close");
        assert_eq!(code, 1012);
        let reason: Value = serde_json::from_str(&reason).expect("JSON");
        assert!((0.0..=5.0).contains(&reason["retry_after"].as_f64().expect("seconds")));
    }
    assert!(
        terminated.elapsed() < Duration::from_secs(DRAIN),
        "not at once: {:?}",
        terminated.elapsed()
    );
    let handshake = http()
        .get(format!("{}/ws", old.url))
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let turn = http().post(format!("{}/api/v1/chat", old.url)).json(&json!({"message": "hi"}));
    let stream = http()
        .post(format!("{}/api/v1/chat", old.url))
        .json(&json!({"message": "hi", "stream": true}));
    for request in [handshake, turn, stream] {
        let reply = send(request).await;
        assert_eq!((reply.status, &reply.body["code"]), (503, &json!("draining")));
        assert!(reply.headers.contains_key("retry-after"));
        assert_eq!(reply.headers["connection"], "close");
    }
    assert_eq!(get(&old, "/health/live").await.status, 200);
    assert_eq!(old.wait(), Some(0));
    assert!(
        terminated.elapsed() < Duration::from_secs(DRAIN) + HANDOVER,
        "{:?}",
        terminated.elapsed()
    );
}

#[tokio::test]
async fn an_answer_that_ends_in_time_is_delivered_and_another_is_found_on_the_next_replica() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", RATE]));
    let [old, new] = pair(&redis, &ollama).await;
    let key = Uuid::new_v4().to_string();
    let ask = |replica: &Process, message: &str| {
        http()
            .post(format!("{}/api/v1/chat", replica.url))
            .header("Idempotency-Key", &key)
            .json(&json!({"message": message}))
    };
    let session = Uuid::new_v4();
    let (mut watching, _) = Socket::open(&new, &format!("/ws?session_id={session}")).await;
    let short = json!({"message": SHORT, "session_id": session});
    let term = async {
        watching.until("stream_chunk").await;
        // The long request was sent with the short one; it is accepted, too, once the host runs it.
        let both_run = async || stat(&ollama, "running").await == 2;
        assert!(eventually(LIMIT, both_run).await, "the host does not run both");
        old.terminate();
    };
    let (short, long, ()) =
        tokio::join!(post(&old, "/api/v1/chat", &short), send(ask(&old, LONG)), term);
    assert_eq!(short.status, 200, "{}", short.body);
    assert_eq!(short.body["response"], expected(SHORT));
    assert_eq!((long.status, &long.body["code"]), (503, &json!("draining")), "{}", long.body);
    assert!(long.headers.contains_key("retry-after"));
    let again = send(ask(&new, LONG)).await;
    assert_eq!(again.status, 200, "{}", again.body);
    assert_eq!(again.body["response"], expected(LONG));
    assert_eq!(old.wait(), Some(0));
}

#[tokio::test]
async fn an_event_stream_ends_with_the_drain_and_resumes_on_another_replica() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", RATE]));
    let [old, new] = pair(&redis, &ollama).await;
    let session = Uuid::new_v4().to_string();
    let turn = json!({"message": LONG, "stream": true, "session_id": session});
    let turn = http().post(format!("{}/api/v1/chat", old.url)).json(&turn);
    let mut turn = turn.send().await.expect("a stream");
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("stream_chunk") {
        text.extend(turn.chunk().await.expect("a piece").expect("no end yet"));
    }
    let endless = format!("{}/api/v1/chat/sessions/{session}/events", old.url);
    let endless = http().get(endless).send().await.expect("a stream");
    old.terminate();
    let terminated = Instant::now();
    endless.text().await.expect("a clean end");
    assert!(
        terminated.elapsed() < Duration::from_secs(DRAIN),
        "not at once: {:?}",
        terminated.elapsed()
    );
    while let Some(bytes) = turn.chunk().await.expect("a clean end") {
        text.extend(bytes);
    }
    let (mut all, last) = server_sent(&String::from_utf8_lossy(&text));
    assert_ne!(all.last().expect("an event")["type"], "stream_end");
    let rest = rest_of(&new, &session, &all, last).await;
    all.extend(rest);
    assert_eq!(joined(&all), expected(LONG));
    assert_eq!(all.last().expect("an end")["full_response"], expected(LONG));
    assert_eq!(old.wait(), Some(0));
}
