//! OpenAI's own packages drive two replicas, as their users do.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::json;
use support::client::{http, post, until_ok};
use support::process::{Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::sdks::Sdk;
use support::tokens::{SECRET, token};

const SCRIPTS: &str = "openai_sdks";
const LONG: &str = "[[tokens=150 rate=60]] a long answer";

struct Fleet {
    replicas: [Process; 2],
    _ollama: Process,
    _redis: RedisServer,
}

async fn fleet(settings: &[(&str, &str)]) -> Fleet {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "2000", "--models", "tinyllama,vision"]);
    let replica = || jarvis(&redis.url(), &ollama.url, settings);
    let replicas = [replica(), replica()];
    for replica in &replicas {
        until_ok(replica, "/health/ready").await;
    }
    Fleet { replicas, _ollama: ollama, _redis: redis }
}

async fn passes(sdk: Sdk, checks: &[&str]) {
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_USER_TURNS_PER_MINUTE", "2")];
    let fleet = fleet(&settings).await;
    let [one, two] = &fleet.replicas;
    let driver = sdk.run(SCRIPTS, &["checks", &token("alice"), &one.url, &two.url]);
    assert_eq!(driver.checks().await, checks);
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_python_package_works_unchanged() {
    let checks = [
        "models",
        "whole",
        "streamed",
        "helper",
        "asynchronous",
        "stop_and_limit",
        "seed",
        "conversation",
        "json_schema",
        "tools",
        "images",
        "embedded",
        "errors",
        "rate_limit",
        "error_in_a_stream",
    ];
    passes(Sdk::Python, &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_node_package_works_unchanged() {
    let checks = [
        "models",
        "whole",
        "streamed",
        "helper",
        "stop_and_limit",
        "seed",
        "conversation",
        "json_schema",
        "tools",
        "images",
        "embedded",
        "errors",
        "rate_limit",
        "leaves",
    ];
    passes(Sdk::Node, &checks).await;
}

/// Kills the replica that writes an answer while the package reads it from the other one.
async fn reads_the_whole_text(sdk: Sdk) {
    let settings = [("JARVIS_LEASE_MS", "2000")];
    let fleet = fleet(&settings).await;
    let [writing, reading] = &fleet.replicas;
    let key = uuid::Uuid::new_v4().to_string();
    let request = json!({
        "model": "tinyllama", "temperature": 0, "stream": true,
        "messages": [{"role": "user", "content": LONG}],
    });
    let path = "/v1/chat/completions";
    let begun = http().post(format!("{}{path}", writing.url)).header("idempotency-key", &key);
    let mut begun = begun.json(&request).send().await.expect("a response");
    begun.chunk().await.expect("a chunk");
    let mut driver = sdk.run(SCRIPTS, &["read", &key, LONG, &reading.url]);
    assert_eq!(driver.line().await, Some(json!({"begun": true})));
    writing.kill();
    let read = driver.line().await.expect("the whole text");
    assert_eq!(driver.line().await, None);
    let mut whole = request.clone();
    whole["stream"] = json!(false);
    let whole = post(reading, path, &whole).await.body;
    assert_eq!(read["text"], whole["choices"][0]["message"]["content"]);
    assert_eq!(read["finish_reason"], "stop");
    assert_eq!(read["usage"], whole["usage"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_costs_a_reader_with_openais_python_package_no_character() {
    reads_the_whole_text(Sdk::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_costs_a_reader_with_openais_node_package_no_character() {
    reads_the_whole_text(Sdk::Node).await;
}
