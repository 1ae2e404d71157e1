//! Other people's clients of OpenAI's and Ollama's APIs drive two replicas, as their users do. Their
//! packages take long to install, so that `make verify` runs these tests.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::path::Path;

use serde_json::Value;
use support::sdks::Sdk;
use support::setup::pair;
use testkit::programs::find;
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "its packages take minutes to install: make verify FILTER=clients"]
async fn langchain_chats_calls_tools_and_embeds_over_both_apis() {
    let checks = "openai_chat openai_tools openai_choices openai_structured openai_embeddings \
        ollama_chat ollama_tools ollama_structured ollama_embeddings";
    Sdk::Python.passes("clients/langchain", checks).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "its packages take minutes to install: make verify FILTER=clients"]
async fn litellm_chats_calls_tools_and_embeds_over_both_apis() {
    let checks = "openai_chat openai_tools openai_embeddings ollama_chat ollama_embeddings errors";
    Sdk::Python.passes("clients/litellm", checks).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "its packages take minutes to install: make verify FILTER=clients"]
async fn vercels_ai_sdk_streams_calls_tools_and_embeds() {
    let checks = "whole streamed tools choices structured embedded errors";
    Sdk::Node.passes("clients/vercel", checks).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs curl: make verify FILTER=clients"]
async fn curl_reads_the_answers_of_both_apis_as_the_page_about_clients_shows_it() {
    let pair = pair(&["--rate", "2000"], &[]).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/curl.sh");
    let curl = find("curl").expect("curl: `make verify` installs it");
    for replica in &pair.replicas {
        let mut command = Command::new("sh");
        command.arg(&script).arg(&curl).arg(&replica.url).kill_on_drop(true);
        let output = command.output().await.expect("a program that runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).expect("a text");
        let lines = printed.lines().filter(|line| *line != "[DONE]" && !line.is_empty());
        let lines: Vec<Value> =
            lines.map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let whole = lines[0]["choices"][0]["message"]["content"].as_str().expect("an answer");
        let joined = |part: &str| -> String {
            lines.iter().filter_map(|line| line.pointer(part)?.as_str()).collect()
        };
        assert_eq!(joined("/choices/0/delta/content"), whole);
        assert_eq!(joined("/message/content"), whole);
        assert!(lines.iter().any(|line| line["data"][0]["embedding"].is_array()));
        assert_eq!(lines.last().expect("an end")["done"], true);
    }
}
