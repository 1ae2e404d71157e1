//! Large requests for embeddings, through both fronts, on real replicas.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::client::{Reply, http, post, send, until_ok};
use support::host::{requests, stat};
use support::owned::used;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::setup::{Setup, setup_on};
use support::tokens::{SECRET, token};
use testkit::eventually;
use tokio::time::Instant;

const OPENAI: &str = "/v1/embeddings";
const OLLAMA: &str = "/api/embed";
const MODEL: &str = "tinyllama:latest";
/// The texts of one request, at most.
const TEXTS: usize = 2048;

/// Returns a request with so many texts, of one to five words.
fn request(texts: usize) -> Value {
    let text = |number: usize| format!("text {number}{}", " word".repeat(number % 4));
    json!({"model": MODEL, "input": (0..texts).map(text).collect::<Vec<_>>()})
}

/// Returns how many texts each request that the host got had.
async fn slices(host: &Process) -> Vec<usize> {
    let embedded = requests(host, OLLAMA).await.into_iter();
    embedded.map(|asked| asked["request"]["input"].as_array().map_or(0, Vec::len)).collect()
}

async fn chat_works(replica: &Process) {
    let chat = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "[[tokens=5]] go on"}],
    });
    let reply = post(replica, "/v1/chat/completions", &chat).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

fn code(reply: &Reply) -> (u16, &str) {
    (reply.status, reply.body["error"]["code"].as_str().unwrap_or_default())
}

/// Limits that come back so slowly that what was used can be read.
const SLOW_LIMITS: [(&str, &str); 3] = [
    ("JARVIS_JWT_SECRET", SECRET),
    ("JARVIS_USER_TURNS_PER_MINUTE", "1"),
    ("JARVIS_USER_TOKENS_PER_DAY", "8640"),
];

#[tokio::test]
async fn the_most_texts_of_a_request_come_back_in_their_order_through_both_fronts_with_their_tokens()
 {
    let Setup { replica, ollama: host, redis: _redis } = setup_on(&[], &[]).await;
    let whole = request(TEXTS);
    let wanted = post(&host, OLLAMA, &whole).await.body;
    let vectors = wanted["embeddings"].as_array().expect("vectors");
    assert_eq!(vectors.len(), TEXTS);
    let reply = post(&replica, OLLAMA, &whole).await;
    assert_eq!(reply.status, 200);
    assert!(reply.body["embeddings"] == wanted["embeddings"], "another order");
    assert_eq!(reply.body["prompt_eval_count"], wanted["prompt_eval_count"]);
    let reply = post(&replica, OPENAI, &whole).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.body["usage"]["total_tokens"], wanted["prompt_eval_count"]);
    let mut coded = whole.clone();
    coded["encoding_format"] = json!("base64");
    let coded = post(&replica, OPENAI, &coded).await.body;
    for (at, vector) in vectors.iter().enumerate() {
        let item = &reply.body["data"][at];
        assert_eq!((&item["index"], &item["embedding"]), (&json!(at), vector));
        let numbers: Vec<f32> = serde_json::from_value(vector.clone()).expect("numbers");
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        assert_eq!(coded["data"][at]["embedding"], STANDARD.encode(bytes));
    }
    let asked = slices(&host).await;
    assert_eq!(asked.iter().skip(1).sum::<usize>(), 3 * TEXTS, "each text once a request");
    assert!(asked.iter().skip(1).all(|texts| *texts <= 64), "{asked:?}");
    let more = post(&replica, OPENAI, &request(TEXTS + 1)).await;
    assert_eq!(code(&more), (400, "invalid_value"));
    assert_eq!(post(&replica, OLLAMA, &request(TEXTS + 1)).await.status, 400);
    assert_eq!(slices(&host).await.len(), asked.len(), "no host worked for what is refused");
}

#[tokio::test]
async fn vectors_that_are_more_than_one_reply_of_a_host_are_returned_and_count_against_no_model() {
    let Setup { replica, ollama: host, redis: _redis } =
        setup_on(&["--dimensions", "3072"], &[]).await;
    for front in [OPENAI, OLLAMA] {
        let reply = post(&replica, front, &request(256)).await;
        assert_eq!(reply.status, 200, "{front}");
    }
    assert_eq!(slices(&host).await, [64; 8], "no slice twice");
    chat_works(&replica).await;
    // Each vector has more than its share of a reply; fewer at a time fit.
    let Setup { replica, ollama: host, redis: _redis } =
        setup_on(&["--dimensions", "16384"], &[]).await;
    assert_eq!(post(&replica, OLLAMA, &request(70)).await.status, 200);
    assert_eq!(slices(&host).await, [vec![64], vec![8; 8], vec![6]].concat());
    chat_works(&replica).await;
}

#[tokio::test]
async fn a_batch_that_is_slower_than_the_first_token_may_be_is_divided_and_no_fault_of_its_model() {
    let host = ["--embed-text-ms", "40"];
    let settings = [("JARVIS_FIRST_TOKEN_TIMEOUT", "1")];
    let Setup { replica, ollama: host, redis: _redis } = setup_on(&host, &settings).await;
    let seventy = request(70);
    let batches = (0..3).map(|_| post(&replica, OPENAI, &seventy));
    let (replies, ()) = tokio::join!(futures_util::future::join_all(batches), async {
        let divided = async || slices(&host).await.iter().filter(|texts| **texts == 8).count() >= 3;
        assert!(eventually(LIMIT, divided).await);
        chat_works(&replica).await;
    });
    for reply in replies {
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    chat_works(&replica).await;
    assert_eq!(slices(&host).await.iter().filter(|texts| **texts == 64).count(), 3);
}

#[tokio::test]
async fn a_reply_beyond_its_bound_is_refused_after_one_slice_and_its_sender_pays_for_that() {
    let host = ["--dimensions", "4096"];
    let Setup { replica, ollama: host, redis: _redis } = setup_on(&host, &SLOW_LIMITS).await;
    let url = format!("{}{OPENAI}", replica.url);
    let embed = |user| send(http().post(&url).bearer_auth(token(user)).json(&request(TEXTS)));
    let refused = embed("alice").await;
    assert_eq!(code(&refused), (413, "reply_too_large"), "{}", refused.body);
    assert_eq!(refused.body["error"]["param"], "input");
    assert_eq!(slices(&host).await, [64], "the rest is not asked for, and nothing twice");
    let paid = async || matches!(used(&replica, "alice").await, (1, 1..));
    assert!(eventually(LIMIT, paid).await, "{:?}", used(&replica, "alice").await);
    // The vectors of the model are shorter, which is known after one slice.
    let mut longer = request(TEXTS);
    longer["dimensions"] = json!(4097);
    let refused = send(http().post(&url).bearer_auth(token("bob")).json(&longer)).await;
    assert_eq!(code(&refused), (400, "invalid_value"), "{}", refused.body);
    assert_eq!(slices(&host).await, [64, 64]);
    chat_works(&replica).await;
    // A request that is refused without a host costs nothing.
    let empty = json!({"model": MODEL, "input": []});
    let refused = send(http().post(&url).bearer_auth(token("carol")).json(&empty)).await;
    assert_eq!((refused.status, used(&replica, "carol").await), (400, (0, 0)));
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_slices_and_pays_for_what_its_hosts_did() {
    let Setup { replica, ollama: host, redis: _redis } =
        setup_on(&["--embed-text-ms", "15"], &SLOW_LIMITS).await;
    for front in [OPENAI, OLLAMA] {
        http().delete(format!("{}/sim/requests", host.url)).send().await.expect("forgotten");
        let url = format!("{}{front}", replica.url);
        let leaving = http().post(&url).bearer_auth(token(front)).json(&request(TEXTS)).send();
        let leaving = tokio::spawn(leaving);
        assert!(eventually(LIMIT, async || slices(&host).await.len() == 2).await);
        leaving.abort();
        let running = async || stat(&host, "running").await == 0;
        assert!(eventually(LIMIT, running).await);
        let asked = slices(&host).await.len();
        // Twice the time of a slice: 64 texts of 15 ms.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(slices(&host).await.len(), asked, "{front}: the slices go on");
        let paid = async || matches!(used(&replica, front).await, (1, 128..));
        assert!(eventually(LIMIT, paid).await, "{:?}", used(&replica, front).await);
    }
}

#[tokio::test]
async fn a_long_batch_returns_its_slot_between_slices_to_those_that_wait() {
    let settings = [("JARVIS_OLLAMA_SLOTS", "1")];
    let Setup { replica, ollama: host, redis: _redis } =
        setup_on(&["--embed-text-ms", "12"], &settings).await;
    let url = format!("{}{OLLAMA}", replica.url);
    let batch = tokio::spawn(http().post(&url).json(&request(1024)).send());
    assert!(eventually(LIMIT, async || !slices(&host).await.is_empty()).await);
    let began = Instant::now();
    chat_works(&replica).await;
    assert!(began.elapsed() < Duration::from_secs(8), "it waits for {:?}", began.elapsed());
    let done = slices(&host).await.len();
    assert!((2..16).contains(&done), "the chat runs in the middle of the batch: {done}");
    let batch = batch.await.expect("a task").expect("a response");
    assert_eq!(batch.status(), 200);
    assert_eq!(stat(&host, "peak_running").await, 1);
}

#[tokio::test]
async fn the_vectors_of_one_reply_are_made_by_one_model() {
    let redis = RedisServer::start();
    let first = ollama_sim(&["--embed-text-ms", "10"]);
    // Another model of the same name.
    let other = ["--models", "other", "--alias", "tinyllama:latest=other"];
    let other = ollama_sim(&other);
    // The host that has the model in its memory is preferred.
    let load = json!({"model": MODEL, "messages": []});
    assert_eq!(post(&first, "/api/chat", &load).await.status, 200);
    let hosts = format!("{},{}", first.url, other.url);
    let replica = jarvis(&redis.url(), &hosts, &[("JARVIS_HOST_WAIT_TIMEOUT", "3")]);
    until_ok(&replica, "/health/ready").await;
    let url = format!("{}{OLLAMA}", replica.url);
    let batch = tokio::spawn(send(http().post(&url).json(&request(640))));
    assert!(eventually(LIMIT, async || slices(&first).await.len() >= 2).await);
    first.kill();
    let reply = batch.await.expect("a reply");
    assert_eq!(reply.status, 503, "vectors of two models: {}", reply.body);
    assert_eq!(post(&replica, OLLAMA, &request(640)).await.status, 200, "the other has its own");
}
