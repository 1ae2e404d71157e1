//! What the fronts of OpenAI's and Ollama's APIs promise alike.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Response;
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Reply, http, send, with};
use super::eventually;
use super::host::{requests, stat};
use super::process::{LIMIT, Process};
use super::setup::{Pair, Setup, pair, setup, setup_on};
use super::tokens::{SECRET, token};

/// The time that a model may run on after its client is gone.
const STOPPED: Duration = Duration::from_secs(5);

/// Has a user with so many turns a minute embed texts: one request at a time, and the last one leaves
/// once its host works. Returns what the next one gets: the refusal that the user has none left.
pub async fn embeddings_take_a_slot_and_count(path: &str, turns: usize) -> Reply {
    let settings = [
        ("JARVIS_OLLAMA_SLOTS", "1"),
        ("JARVIS_JWT_SECRET", SECRET),
        ("JARVIS_USER_TURNS_PER_MINUTE", &*turns.to_string()),
    ];
    let host = ["--first-token-ms", "700", "--slots", "8"];
    let Setup { replica, ollama, redis: _redis } = setup_on(&host, &settings).await;
    let request = json!({"model": "tinyllama:latest", "input": "one"});
    let url = format!("{}{path}", replica.url);
    let embed = || http().post(&url).bearer_auth(token("alice")).json(&request);
    let replies = join_all((1..turns).map(|_| send(embed()))).await;
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert_eq!(stat(&ollama, "peak_running").await, 1, "one slot, so one at a time");
    let leaving = tokio::spawn(embed().send());
    assert!(eventually(LIMIT, async || stat(&ollama, "running").await == 1).await);
    leaving.abort();
    assert!(eventually(LIMIT, async || stat(&ollama, "client_gone").await == 1).await);
    // A host has worked for it, so it counts.
    let refused = send(embed()).await;
    assert!(refused.headers.contains_key("retry-after"));
    refused
}

/// Has clients leave in the middle of this answer, streamed or not, with no key or with one that a
/// proxy made, which the client does not know. The model of each stops.
pub async fn a_client_that_leaves_stops_its_model(path: &str, request: &Value) {
    let Setup { replica, ollama, redis: _redis } = setup("20", &[]).await;
    for (stream, has_key) in [(true, false), (false, false), (true, true), (false, true)] {
        let mut asking = http().post(format!("{}{path}", replica.url)).json(&with(
            request.clone(),
            "stream",
            json!(stream),
        ));
        if has_key {
            let key = Uuid::new_v4().to_string();
            asking = asking.header("idempotency-key", key).header("x-jarvis-proxy-key", "1");
        }
        let asking = tokio::spawn(async move {
            let response = asking.send().await.expect("a response");
            let _ = response.text().await;
        });
        let running = async |wanted: u64| stat(&ollama, "running").await == wanted;
        assert!(eventually(LIMIT, async || running(1).await).await, "it does not begin");
        asking.abort();
        // A turn with a proxy's key waits 5 s for the proxy to ask again.
        let limit = if has_key { LIMIT } else { STOPPED };
        let stopped = eventually(limit, async || running(0).await).await;
        assert!(stopped, "stream: {stream}, key: {has_key}");
    }
}

/// A stream that waits behind another one for the only slot.
pub struct Waiting {
    pub asked_at: Instant,
    /// The answer that runs.
    pub running: Response,
    pub stream: Response,
    _setup: Setup,
}

impl Waiting {
    /// Begins both streams, by requests that these questions make.
    pub async fn begin(path: &str, asked: impl Fn(&str) -> Value) -> Self {
        let settings = [("JARVIS_HEARTBEAT", "1"), ("JARVIS_OLLAMA_SLOTS", "1")];
        let setup = setup("20", &settings).await;
        let url = format!("{}{path}", setup.replica.url);
        let stream = async |question: &str| {
            let request = with(asked(question), "stream", json!(true));
            http().post(&url).json(&request).send().await.expect("a response")
        };
        let mut running = stream("[[tokens=100]] one").await;
        running.chunk().await.expect("a chunk");
        let asked_at = Instant::now();
        let stream = stream("[[tokens=3]] two").await;
        Self { asked_at, running, stream, _setup: setup }
    }
}

/// Asks one question of two replicas, and then another one, all with one idempotency key. No host works
/// twice. Returns the replies.
pub async fn asked_with_one_key(path: &str, asked: impl Fn(&str) -> Value) -> [Reply; 3] {
    let Pair { replicas: [one, two], ollama, redis: _redis } = pair(&["--rate", "2000"], &[]).await;
    let key = Uuid::new_v4().to_string();
    let ask = async |replica: &Process, question: &str| {
        let request = http().post(format!("{}{path}", replica.url));
        send(request.header("idempotency-key", &key).json(&asked(question))).await
    };
    let first = ask(&one, "one").await;
    let replies = [first, ask(&two, "one").await, ask(&two, "two").await];
    assert_eq!((replies[0].status, replies[1].status), (200, 200), "{}", replies[1].body);
    assert_eq!(stat(&ollama, "started").await, 1);
    replies
}

/// Checks that the last chat of the host has a conversation with Ada that ends with this question, and
/// that the usage of its reply adds up to an answer of 20 tokens. Returns what the host was asked.
pub async fn ada_was_asked(
    host: &Process,
    question: &str,
    usage: &Value,
    [prompt, answer]: [&str; 2],
) -> Value {
    let (before, made) = (usage[prompt].as_u64(), usage[answer].as_u64());
    assert_eq!(made, Some(20));
    assert_eq!(usage["total_tokens"].as_u64(), before.zip(made).map(|(a, b)| a + b));
    let sent = requests(host, "/api/chat").await.pop().expect("a request");
    assert_eq!(
        sent["messages"],
        json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "my name is Ada"},
            {"role": "assistant", "content": "hello Ada"},
            {"role": "user", "content": question},
        ])
    );
    sent
}
