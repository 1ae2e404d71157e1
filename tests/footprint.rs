//! What sessions and requests leave in Redis, in bytes.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::iter;
use jarvis::session::store::{
    Acceptance, Begin, CancelReply, Cancellation, Proposal, SessionLimits, Turn,
};
use jarvis::session::{Owner, SessionId, Store};
use reqwest::Body;
use serde_json::{Value, json};
use support::client::{http, send, until_ok};
use support::eventually;
use support::process::{LIMIT, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::setup::setup;
use support::store::{connect, new_turn};
use uuid::Uuid;

/// Returns the bytes of all keys whose names hold this text.
fn bytes_of(redis: &RedisServer, text: &str) -> u64 {
    let sum = "local sum = 0 for _, key in ipairs(redis.call('KEYS', ARGV[1])) do \
               sum = sum + redis.call('MEMORY', 'USAGE', key, 'SAMPLES', '0') end return sum";
    let pattern = format!("*{text}*");
    redis.cli(&["EVAL", sum, "0", &pattern]).trim().parse().expect("a number")
}

#[tokio::test]
async fn a_session_of_one_turn_of_20_tokens_takes_at_most_2500_bytes_of_redis() {
    let world = setup("1000", &[]).await;
    let session = Uuid::new_v4().to_string();
    let message = "[[tokens=20]] Tell me something about the sea.";
    let body = json!({"message": message, "session_id": session});
    let reply = send(http().post(format!("{}/api/v1/chat/", world.replica.url)).json(&body)).await;
    assert_eq!((reply.status, &reply.body["usage"]["completion_tokens"]), (200, &json!(20)));
    let bytes = bytes_of(&world.redis, &format!("s:{session}"));
    assert!((500..=2500).contains(&bytes), "{bytes} bytes");
    let history = format!("{}/api/v1/chat/sessions/{session}", world.replica.url);
    let history = send(http().get(history)).await;
    assert_eq!(history.body["messages"][0]["content"], message);
    assert_eq!(history.body["messages"][1]["content"], reply.body["response"]);
}

async fn accept(store: &Store, session: SessionId, text: &str) -> (Arc<Turn>, bool) {
    let new = new_turn("m", text);
    match store.accept(&Proposal::new(&Owner::Anonymous, session, &new)).await.expect("Redis") {
        Acceptance::New { turn, began, .. } => (turn, began),
        other @ Acceptance::Same { .. } => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_question_is_stored_once_while_its_turn_waits_and_when_it_runs() {
    const LONG: u64 = 300_000;
    let redis = RedisServer::start();
    let store = Store::new(connect(&redis.url()).await, "r".to_owned(), SessionLimits::default());
    let session = SessionId::random();
    let stored = || bytes_of(&redis, &session.to_string());
    let measured = async || store.measure(session).await.expect("Redis").expect("a session").bytes;
    let (first, began) = accept(&store, session, &"a".repeat(LONG as usize)).await;
    assert!(began);
    let near = |bytes: u64, times: u64| (times * LONG..times * LONG + LONG / 3).contains(&bytes);
    assert!(near(stored(), 1), "{}", stored());
    let (waiting, began) = accept(&store, session, &"b".repeat(LONG as usize)).await;
    assert!(!began);
    assert!(near(stored(), 2), "{}", stored());
    assert!(near(measured().await, 2), "a waiting question counts for the budget");
    let cancelled = Cancellation::new(&Owner::Anonymous, session, Some(first.generation));
    let cancelled = store.cancel(&cancelled).await.expect("Redis");
    assert_eq!(cancelled, CancelReply::Running(first.generation));
    assert_eq!(store.begin(&waiting).await.expect("Redis"), Begin::Began);
    assert!(near(stored(), 2), "{}", stored());
    assert!(near(measured().await, 2));
    // A turn that is cancelled while it waits takes its question with it.
    let (third, _) = accept(&store, session, &"c".repeat(LONG as usize)).await;
    assert!(near(stored(), 3), "{}", stored());
    let cancelled = Cancellation::new(&Owner::Anonymous, session, Some(third.generation));
    let cancelled = store.cancel(&cancelled).await.expect("Redis");
    assert_eq!(cancelled, CancelReply::Waiting(third.generation));
    assert!(near(stored(), 2), "{}", stored());
    assert!(near(measured().await, 2));
}

#[tokio::test]
async fn a_conversation_of_a_mebibyte_takes_redis_its_size_once_and_an_hour_at_most() {
    const SIZE: usize = 1 << 20;
    const MESSAGES: usize = 16;
    const AFTER: i64 = 3600;
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "1000", "--model-ctx", "1048576"]);
    let settings = [("JARVIS_NUM_CTX", "1048576")];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let question = "[[tokens=60 rate=20]] what follows?";
    let each = (SIZE - question.len() - (9 << 10)) / MESSAGES;
    let text = "a word ".repeat(each / 7);
    let roles = ["user", "assistant"].into_iter().cycle().take(MESSAGES);
    let mut messages: Vec<_> = roles.map(|role| json!({"role": role, "content": text})).collect();
    messages.push(json!({"role": "user", "content": question}));
    let request = json!({"model": "tinyllama", "messages": messages, "stream": true});
    let url = format!("{}/v1/chat/completions", replica.url);
    let mut stream = http().post(url).json(&request).send().await.expect("a response");
    assert_eq!(stream.status(), 200);
    let mut raw = String::new();
    while !raw.contains("\"content\":\"") || raw.len() < 2000 {
        let chunk = stream.chunk().await.expect("a chunk").expect("more");
        raw.push_str(&String::from_utf8_lossy(&chunk));
    }
    let near = |bytes: u64| (SIZE as u64 - (9 << 10)..=SIZE as u64 * 13 / 10).contains(&bytes);
    let running = bytes_of(&redis, "jarvis:");
    assert!(near(running), "{running} bytes while it runs");
    while let Some(chunk) = stream.chunk().await.expect("a chunk") {
        raw.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(raw.trim_end().ends_with("[DONE]"), "{raw}");
    let after = bytes_of(&redis, ":s:");
    assert!(near(after), "{after} bytes after it");
    let keys = redis.cli(&["KEYS", "jarvis:*:s:*"]);
    let keys: Vec<_> = keys.lines().map(str::trim).filter(|key| !key.is_empty()).collect();
    assert!(!keys.is_empty());
    for key in keys {
        let seconds: i64 = redis.cli(&["TTL", key]).trim().parse().expect("seconds");
        assert!((1..=AFTER).contains(&seconds), "{key}: {seconds} s");
    }
}

/// Keys of Redis, and the bytes that it uses. Keys of limits are left out of the first: each address
/// has a few, which expire.
fn kept(redis: &RedisServer) -> (usize, i64) {
    let keys = redis.cli(&["KEYS", "*"]);
    let keys = keys.lines().filter(|key| !key.contains("{limits:")).count();
    let used = redis.cli(&["INFO", "memory"]);
    let used = used.lines().find_map(|line| line.strip_prefix("used_memory:"));
    (keys, used.and_then(|bytes| bytes.trim().parse().ok()).expect("a number"))
}

#[tokio::test]
async fn a_thousand_refused_requests_leave_nothing_in_redis() {
    const REFUSED: usize = 1000;
    const MOST_GROWN: i64 = 100_000;
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "1000", "--model-ctx", "4096"]);
    let settings = [
        ("JARVIS_TRUSTED_PROXIES", "127.0.0.1"),
        ("JARVIS_OLLAMA_SLOTS", "1"),
        ("JARVIS_QUEUE_SHARE", "2"),
        ("JARVIS_ADDRESS_TURNS_PER_MINUTE", "100000"),
        ("JARVIS_ADDRESS_REQUESTS_PER_MINUTE", "100000"),
        ("JARVIS_ADDRESS_SESSIONS_PER_DAY", "300"),
    ];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let url = format!("{}/api/v1/chat/", replica.url);
    let ask_with = async |address: &str, body: Body| {
        let request = http().post(&url).header("x-forwarded-for", address);
        let reply = send(request.header("content-type", "application/json").body(body)).await;
        (reply.status, reply.body["code"].as_str().unwrap_or_default().to_owned())
    };
    let ask = async |address: &str, body: Value| ask_with(address, body.to_string().into()).await;
    // With the first turn the replica learns what the model allows.
    assert_eq!(ask("192.0.2.9", json!({"message": "[[tokens=1]] hello"})).await.0, 200);
    // One turn holds the only slot, two of another address wait, and a third address has begun as many
    // sessions as it may.
    let hold = async |address: &str, message: &str| {
        let body = json!({"message": message, "stream": true});
        let request = http().post(&url).header("x-forwarded-for", address).json(&body);
        let response = request.send().await.expect("a response");
        assert_eq!(response.status(), 200);
        response
    };
    let _running = hold("192.0.2.1", "[[tokens=3000 rate=1]] on and on").await;
    let _waiting = [
        hold("192.0.2.2", "[[tokens=1]] hello").await,
        hold("192.0.2.2", "[[tokens=1]] hello").await,
    ];
    let too_long = "字".repeat(32_000);
    // Without a declared length it is a body without images.
    let too_large = Bytes::from(vec![b' '; 600 << 10]);
    let too_large = || Body::wrap_stream(iter([Ok::<_, std::io::Error>(too_large.clone())]));
    let refuse = async |number: usize| match number % 4 {
        0 => ask_with("192.0.2.3", too_large()).await,
        1 => ask("192.0.2.3", json!({"message": too_long})).await,
        2 => ask("192.0.2.2", json!({"message": "[[tokens=1]] too many of one address"})).await,
        _ => ask("192.0.2.3", json!({"message": "no", "model": "nobody-has-it"})).await,
    };
    let expected = [
        (413, "body_too_large"),
        (413, "context_too_long"),
        (503, "queue_full"),
        (404, "model_not_found"),
    ];
    let crowded = async || refuse(2).await == (503, "queue_full".to_owned());
    assert!(eventually(LIMIT, crowded).await, "the share of an address has no end");
    for (number, (status, code)) in expected.iter().enumerate() {
        assert_eq!(refuse(number).await, (*status, (*code).to_owned()));
    }
    let before = kept(&redis);
    let refused = iter(0..REFUSED).map(async |number| (number, refuse(number).await));
    let refused: Vec<_> = refused.buffer_unordered(16).collect().await;
    for (number, (status, code)) in refused {
        let expected = expected[number % 4];
        assert_eq!((status, code.as_str()), expected);
    }
    let after = kept(&redis);
    assert_eq!(after.0, before.0, "{}", redis.cli(&["KEYS", "*"]));
    let grown = after.1 - before.1;
    assert!(grown < MOST_GROWN, "{grown} bytes more");
}
