//! OpenAI's own packages drive two replicas, as their users do.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use support::client::{http, post, until_ok};
use support::process::{Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::tokens::{SECRET, token};
use testkit::programs::{find, run_folder};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// How long a package may take for all its checks.
const RUN_LIMIT: Duration = Duration::from_mins(2);
const LONG: &str = "[[tokens=150 rate=60]] a long answer";

/// OpenAI's package for a language.
#[derive(Clone, Copy)]
enum Sdk {
    Python,
    Node,
}

/// A program that uses the package.
struct Driver {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Sdk {
    fn run(self, arguments: &[&str]) -> Driver {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai_sdks");
        let mut command = match self {
            Self::Python => {
                let mut command = Command::new(run_folder().join("venv/bin/python"));
                command.arg(scripts.join("sdk.py")).env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
            Self::Node => {
                let mut command = Command::new(find("node").expect("Node.js"));
                command.arg(scripts.join("sdk.mjs")).arg(run_folder().join("node/node_modules"));
                command
            }
        };
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let spawned = command.spawn();
        let mut child = spawned.expect("a program: `make test` installs it from PyPI and npm");
        let output = child.stdout.take().expect("its output");
        Driver { child, lines: BufReader::new(output).lines() }
    }
}

impl Driver {
    /// Returns the next line; none where the program has ended well.
    async fn line(&mut self) -> Option<Value> {
        let line = timeout(RUN_LIMIT, self.lines.next_line()).await.expect("a line in time");
        if let Some(line) = line.expect("output") {
            return Some(serde_json::from_str(&line).expect("JSON"));
        }
        let status = self.child.wait().await.expect("an end");
        let mut errors = String::new();
        let printed = self.child.stderr.as_mut().expect("its errors");
        printed.read_to_string(&mut errors).await.expect("a text");
        assert!(status.success(), "{status}\n{errors}");
        None
    }
}

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
    let mut driver = sdk.run(&["checks", &token("alice"), &one.url, &two.url]);
    let mut passed = Vec::new();
    while let Some(line) = driver.line().await {
        passed.push(line["check"].as_str().expect("a name").to_owned());
    }
    assert_eq!(passed, checks);
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
    let mut driver = sdk.run(&["read", &key, LONG, &reading.url]);
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
