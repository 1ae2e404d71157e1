//! A turn whose client could not come back for the answer ends when the client is gone, and no other
//! turn does.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use reqwest::RequestBuilder;
use serde_json::json;
use support::client::http;
use support::fleet::Fleet;
use support::host::stat;
use support::metrics::{metrics, until_takeovers};
use support::owned::id;
use support::process::LIMIT;
use testkit::eventually;
use tokio::time::sleep;

/// The answer takes 20 seconds: longer than a turn goes on without a listener.
const TOKENS: u64 = 400;
const RATE: &str = "20";

async fn fleet() -> Fleet {
    Fleet::start(2, &["--rate", RATE], &[("JARVIS_LEASE_MS", "1000")]).await
}

impl Fleet {
    fn request(&self, replica: usize) -> RequestBuilder {
        let url = format!("{}/v1/chat/completions", self.replicas[replica].url);
        let question = format!("[[tokens={TOKENS}]] go on");
        http().post(url).json(&json!({
            "model": "tinyllama", "stream": true,
            "messages": [{"role": "user", "content": question}],
        }))
    }

    async fn is_running(&self) -> bool {
        stat(&self.ollama, "running").await == 1
    }

    /// Returns whether turns have ended like this at a replica, so many.
    async fn ended(&self, replica: usize, outcome: &str, turns: u64) -> bool {
        let line = format!("jarvis_turns_total{{outcome=\"{outcome}\"}} {turns}");
        metrics(&self.replicas[replica]).await.contains(&line)
    }
}

/// Sends a request, and leaves as soon as its answer has begun.
async fn leave(request: RequestBuilder) {
    let mut response = request.send().await.expect("a response");
    while let Some(chunk) = response.chunk().await.expect("a chunk") {
        if String::from_utf8_lossy(&chunk).contains("content\":") {
            return;
        }
    }
    panic!("no answer");
}

#[tokio::test]
async fn a_turn_whose_replica_died_with_its_clients_connection_stops_after_its_takeover() {
    let fleet = fleet().await;
    let mut response = fleet.request(0).send().await.expect("a response");
    assert!(response.chunk().await.expect("a chunk").is_some());
    assert!(eventually(LIMIT, async || fleet.is_running().await).await, "it does not begin");
    fleet.replicas[0].kill();
    until_takeovers(&fleet.replicas[1], 1).await;
    assert!(eventually(LIMIT, async || fleet.ended(1, "cancelled", 1).await).await, "it goes on");
    assert!(eventually(LIMIT, async || !fleet.is_running().await).await, "its model runs");
    assert!(!fleet.ended(1, "complete", 1).await);
}

#[tokio::test]
async fn a_turn_with_a_proxys_key_outlives_its_connection_only_while_it_is_asked_again() {
    let fleet = fleet().await;
    let with_key = |replica, key: &str| {
        fleet.request(replica).header("Idempotency-Key", key).header("X-Jarvis-Proxy-Key", "1")
    };
    let (once, twice) = (id(), id());
    tokio::join!(leave(with_key(0, &once)), leave(with_key(0, &twice)));
    let again = with_key(1, &twice).send().await.expect("a response").text();
    let again = again.await.expect("an answer");
    assert!(again.ends_with("data: [DONE]\n\n"), "{again}");
    assert!(fleet.ended(0, "complete", 1).await, "the other one is not complete");
    assert!(eventually(LIMIT, async || fleet.ended(0, "cancelled", 1).await).await, "it goes on");
}

#[tokio::test]
async fn a_turn_with_its_clients_own_key_goes_on_without_a_client() {
    let fleet = fleet().await;
    leave(fleet.request(0).header("Idempotency-Key", id())).await;
    let complete = async || fleet.ended(0, "complete", 1).await;
    assert!(eventually(Duration::from_mins(1), complete).await, "it does not end");
    assert!(!fleet.ended(0, "cancelled", 1).await);
}

#[tokio::test]
async fn a_turn_with_a_listener_goes_on_while_no_subscription_holds() {
    let fleet = fleet().await;
    let key = id();
    let with_key = |replica| {
        fleet.request(replica).header("Idempotency-Key", &key).header("X-Jarvis-Proxy-Key", "1")
    };
    let mut first = with_key(0).send().await.expect("a response");
    assert!(first.chunk().await.expect("a chunk").is_some());
    let again = with_key(1).send().await.expect("a response");
    drop(first);
    // As after a failover: the server that is the primary now has no subscriptions for a while.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(9) {
        fleet.redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        sleep(Duration::from_millis(10)).await;
    }
    let again = again.text().await.expect("an answer");
    assert!(again.ends_with("data: [DONE]\n\n"), "{again}");
    assert!(!fleet.ended(0, "cancelled", 1).await);
}
