//! Ollama's own packages drive two replicas, as their users do.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::json;
use support::sdks::Sdk;

const SCRIPTS: &str = "ollama_sdks";
const LONG: &str = "[[tokens=300 rate=50]] a long answer";

#[tokio::test(flavor = "multi_thread")]
async fn ollamas_python_package_works_unchanged() {
    let checks = "models whole streamed generated asynchronous options conversation formatted tools \
        images embedded errors rate_limit error_in_a_stream";
    Sdk::Python.passes_signed_in(SCRIPTS, checks).await;
    Sdk::Python.runs_the_blocks_of("CLIENTS.md", "ollama, Python").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ollamas_node_package_works_unchanged() {
    let checks = "models whole streamed generated options formatted tools images embedded errors \
        rate_limit error_in_a_stream leaves";
    Sdk::Node.passes_signed_in(SCRIPTS, checks).await;
    Sdk::Node.runs_the_blocks_of("CLIENTS.md", "ollama, JavaScript").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_ollamas_own_error_in_its_python_package() {
    Sdk::Python.meets_a_full_queue(SCRIPTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_ollamas_own_error_in_its_node_package() {
    Sdk::Node.meets_a_full_queue(SCRIPTS).await;
}

/// Kills the replica that writes an answer while the package reads it from the other one.
async fn reads_the_whole_text(sdk: Sdk) {
    let request = json!({
        "model": "tinyllama", "options": {"temperature": 0},
        "messages": [{"role": "user", "content": LONG}],
    });
    let (read, whole) = sdk.reads_on(SCRIPTS, "/api/chat", request).await;
    assert_eq!(read["text"], whole["message"]["content"]);
    for name in ["done_reason", "eval_count", "prompt_eval_count"] {
        assert_eq!(read[name], whole[name], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_costs_a_reader_with_ollamas_python_package_no_character() {
    reads_the_whole_text(Sdk::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_costs_a_reader_with_ollamas_node_package_no_character() {
    reads_the_whole_text(Sdk::Node).await;
}
