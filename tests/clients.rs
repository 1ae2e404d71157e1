//! Other people's clients of OpenAI's and Ollama's APIs drive two replicas, as their users do. Their
//! packages take long to install, so that `make verify` runs these tests.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::path::Path;

use serde_json::Value;
use support::client::until_ok;
use support::process::{Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::sdks::Sdk;
use testkit::programs::find;
use tokio::process::Command;

struct Fleet {
    replicas: [Process; 2],
    _ollama: Process,
    _redis: RedisServer,
}

async fn fleet() -> Fleet {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "2000"]);
    let replica = || jarvis(&redis.url(), &ollama.url, &[]);
    let replicas = [replica(), replica()];
    for replica in &replicas {
        until_ok(replica, "/health/ready").await;
    }
    Fleet { replicas, _ollama: ollama, _redis: redis }
}

async fn passes(sdk: Sdk, folder: &str, checks: &[&str]) {
    let fleet = fleet().await;
    let [one, two] = &fleet.replicas;
    assert_eq!(sdk.run(folder, &[&one.url, &two.url]).checks().await, checks);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "its packages take minutes to install: make verify FILTER=clients"]
async fn langchain_chats_calls_tools_and_embeds_over_both_apis() {
    let checks = [
        "openai_chat",
        "openai_tools",
        "openai_structured",
        "openai_embeddings",
        "ollama_chat",
        "ollama_tools",
        "ollama_structured",
        "ollama_embeddings",
    ];
    passes(Sdk::Python, "clients/langchain", &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "its packages take minutes to install: make verify FILTER=clients"]
async fn litellm_chats_calls_tools_and_embeds_over_both_apis() {
    let checks = [
        "openai_chat",
        "openai_tools",
        "openai_embeddings",
        "ollama_chat",
        "ollama_embeddings",
        "errors",
    ];
    passes(Sdk::Python, "clients/litellm", &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "its packages take minutes to install: make verify FILTER=clients"]
async fn vercels_ai_sdk_streams_calls_tools_and_embeds() {
    let checks = ["whole", "streamed", "tools", "structured", "embedded", "errors"];
    passes(Sdk::Node, "clients/vercel", &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs curl: make verify FILTER=clients"]
async fn curl_reads_the_answers_of_both_apis_as_the_page_about_clients_shows_it() {
    let fleet = fleet().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/curl.sh");
    let curl = find("curl").expect("curl: `make verify` installs it");
    for replica in &fleet.replicas {
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
