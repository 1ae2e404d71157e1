//! OpenAI's own packages drive two replicas, as their users do.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::json;
use support::sdks::Sdk;

const SCRIPTS: &str = "openai_sdks";
const LONG: &str = "[[tokens=150 rate=60]] a long answer";

#[tokio::test(flavor = "multi_thread")]
async fn openais_python_package_works_unchanged() {
    let checks = "models whole streamed helper asynchronous stop_and_limit seed conversation \
        json_schema tools images embedded errors rate_limit error_in_a_stream";
    Sdk::Python.passes_signed_in(SCRIPTS, checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_node_package_works_unchanged() {
    let checks = "models whole streamed helper stop_and_limit seed conversation json_schema tools \
        images embedded errors rate_limit leaves";
    Sdk::Node.passes_signed_in(SCRIPTS, checks).await;
}

/// Kills the replica that writes an answer while the package reads it from the other one.
async fn reads_the_whole_text(sdk: Sdk) {
    let request = json!({
        "model": "tinyllama", "temperature": 0, "stream": true,
        "messages": [{"role": "user", "content": LONG}],
    });
    let (read, whole) = sdk.reads_on(SCRIPTS, "/v1/chat/completions", request).await;
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
