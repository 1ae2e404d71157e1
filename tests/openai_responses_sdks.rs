//! OpenAI's own packages ask two replicas for responses, as their users do.
#![allow(missing_docs, reason = "tests")]

mod support;

use support::client::until_ok;
use support::process::{jarvis, ollama_sim};
use support::redis::RedisServer;
use support::sdks::Sdk;

const FOLDER: &str = "openai_responses_sdks";

async fn passes(sdk: Sdk, checks: &[&str]) {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "2000"]);
    let replicas = [0, 1].map(|_| jarvis(&redis.url(), &ollama.url, &[]));
    for replica in &replicas {
        until_ok(replica, "/health/ready").await;
    }
    let [one, two] = &replicas;
    assert_eq!(sdk.run(FOLDER, &[&one.url, &two.url]).checks().await, checks);
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_python_package_works_unchanged_with_responses() {
    let checks = [
        "whole",
        "streamed",
        "helper",
        "asynchronous",
        "background",
        "cancel_and_delete",
        "conversation",
        "json_schema",
        "tools",
        "errors",
    ];
    passes(Sdk::Python, &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_node_package_works_unchanged_with_responses() {
    let checks = [
        "whole",
        "streamed",
        "helper",
        "background",
        "cancel_and_delete",
        "conversation",
        "json_schema",
        "tools",
        "errors",
    ];
    passes(Sdk::Node, &checks).await;
}
