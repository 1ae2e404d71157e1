//! Calls that Redis carried out, and whose reply never came.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use support::client::{Socket, get, until_ok};
use support::lossy::ReplyLoser;
use support::metrics::until_metric;
use support::owned::id;
use support::process::{jarvis, ollama_sim};
use support::redis::RedisServer;

#[tokio::test]
async fn a_takeover_whose_reply_is_lost_is_made_again_at_once_and_has_one_writer() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "50"]);
    let lossy = ReplyLoser::start(&redis.url(), "jarvis_claim_1", 1).await;
    let answering = jarvis(&redis.url(), &ollama.url, &[]);
    let taking_over = jarvis(&lossy.url, &ollama.url, &[]);
    for replica in [&answering, &taking_over] {
        until_ok(replica, "/health/ready").await;
    }
    let session = id();
    let path = format!("/ws?session_id={session}");
    let (mut asking, _) = Socket::open(&answering, &path).await;
    let message = "[[tokens=250]] survive";
    asking.say(&json!({"type": "chat", "message": message})).await;
    let (mut watching, _) = Socket::open(&taking_over, &path).await;
    // New replicas are watched within a second, in which 50 pieces come.
    for _ in 0..60 {
        watching.until("stream_chunk").await;
    }
    answering.kill();
    let killed = Instant::now();
    until_metric(&taking_over, "a takeover", |line| {
        line.starts_with("jarvis_takeovers_total{") && line.ends_with(" 1")
    })
    .await;
    // A turn in its own name that a replica does not run is found only after ten seconds.
    let waited = killed.elapsed();
    assert!(waited < Duration::from_secs(9), "{waited:?}");
    assert!(lossy.has_lost());
    let end = watching.until("stream_end").await.pop().expect("an end");
    let expected = ollama_sim::script_answer("tinyllama:latest", message, None, 64);
    assert_eq!(end["full_response"], expected.as_str());
    let history = get(&taking_over, &format!("/api/v1/chat/sessions/{session}")).await.body;
    assert_eq!(history["messages"][1]["writers"], 2, "{history}");
}
