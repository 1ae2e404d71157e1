//! Answers whose replica is killed: how exact their continuation is, and what it costs the host.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::client::{Socket, get, joined, kinds, post, until_ok};
use support::metrics::until_metric_line;
use support::process::{Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use uuid::Uuid;

const MODEL: &str = "tinyllama:latest";
/// Bytes of the answer that a client has before the replica is killed.
const READ: usize = 60;

/// Two replicas: one that is killed, and one that takes over.
struct Pair {
    _redis: RedisServer,
    killed: Process,
    heir: Process,
}

impl Pair {
    /// Starts the replicas. The first host has the model in its memory, and is preferred.
    async fn at(hosts: &[&Process], model: &str) -> Self {
        let load = json!({"model": model, "messages": []});
        assert_eq!(post(hosts[0], "/api/chat", &load).await.status, 200);
        let urls: Vec<_> = hosts.iter().map(|host| host.url.as_str()).collect();
        let redis = RedisServer::start();
        let extra = [("JARVIS_LEASE_MS", "1000"), ("JARVIS_DEFAULT_MODEL", model)];
        let start = || jarvis(&redis.url(), &urls.join(","), &extra);
        let (killed, heir) = (start(), start());
        for replica in [&killed, &heir] {
            until_ok(replica, "/health/ready").await;
        }
        Self { _redis: redis, killed, heir }
    }

    /// Sends a turn to the first replica, and kills that replica in the middle of the answer, and
    /// then whatever `also` kills. Returns the events of a socket of the other replica.
    async fn break_off(&self, turn: &Value, also: impl FnOnce()) -> Broken {
        let session = Uuid::new_v4().to_string();
        let path = format!("/ws?session_id={session}");
        let (mut asking, _) = Socket::open(&self.killed, &path).await;
        let (mut watching, _) = Socket::open(&self.heir, &path).await;
        asking.say(turn).await;
        let mut events = Vec::new();
        while joined(&events).len() < READ {
            events.push(watching.event().await);
        }
        self.killed.kill();
        also();
        events.extend(watching.until("stream_end").await);
        Broken { session, events }
    }
}

/// An answer that was broken off, as a socket of the heir has it.
struct Broken {
    session: String,
    events: Vec<Value>,
}

impl Broken {
    fn end(&self) -> &Value {
        self.events.last().expect("an end")
    }

    /// Checks how the answer was continued, wherever that is shown.
    async fn was_continued(&self, heir: &Process, how: &str) {
        let continued = json!([{"how": how, "why": "replica_gone"}]);
        assert_eq!(self.end()["continued"], continued);
        let path = format!("/api/v1/chat/sessions/{}", self.session);
        let history = get(heir, &path).await.body;
        assert_eq!(history["messages"][1]["continued"], continued, "{history}");
        let labels = format!(r#"how="{how}",why="replica_gone""#);
        until_metric_line(heir, &format!("jarvis_continuations_total{{{labels}}} 1")).await;
    }
}

fn turn(message: &str) -> Value {
    json!({"type": "chat", "message": message})
}

fn cold(message: &str) -> Value {
    json!({"type": "chat", "message": message, "temperature": 0})
}

#[tokio::test]
async fn a_continuation_without_sampling_on_the_same_host_is_exact() {
    let host = ollama_sim(&["--rate", "60"]);
    let pair = Pair::at(&[&host], MODEL).await;
    let broken = pair.break_off(&cold("[[tokens=120]] go on"), || {}).await;
    broken.was_continued(&pair.heir, "exact").await;
}

#[tokio::test]
async fn a_continuation_of_a_sampled_answer_is_approximate_also_with_a_seed() {
    let host = ollama_sim(&["--rate", "60"]);
    for seed in [json!(null), json!(7)] {
        let pair = Pair::at(&[&host], MODEL).await;
        let mut turn = turn(&format!("[[tokens=120]] go on with {seed}"));
        turn["seed"] = seed;
        let broken = pair.break_off(&turn, || {}).await;
        broken.was_continued(&pair.heir, "approximate").await;
    }
}

#[tokio::test]
async fn a_continuation_on_another_host_is_approximate() {
    let hosts = [(); 2].map(|()| ollama_sim(&["--rate", "60"]));
    let pair = Pair::at(&[&hosts[0], &hosts[1]], MODEL).await;
    let broken = pair.break_off(&cold("[[tokens=120]] go on"), || hosts[0].kill()).await;
    broken.was_continued(&pair.heir, "approximate").await;
}

#[tokio::test]
async fn a_continuation_is_exact_on_the_host_that_wrote_the_text_after_another_had_failed() {
    let hosts = [(); 2].map(|()| ollama_sim(&["--rate", "60"]));
    let pair = Pair::at(&[&hosts[0], &hosts[1]], MODEL).await;
    let fault = json!({"fault": "refuse", "times": 1, "path": "/api/chat"});
    assert_eq!(post(&hosts[0], "/sim/faults", &fault).await.status, 204);
    // The preferred host failed before the first token, and is gone when the answer goes on.
    let broken = pair.break_off(&cold("[[tokens=120]] go on"), || hosts[0].kill()).await;
    broken.was_continued(&pair.heir, "exact").await;
}

#[tokio::test]
async fn a_continuation_whose_model_goes_another_way_is_approximate() {
    let host = ollama_sim(&["--rate", "60"]);
    let pair = Pair::at(&[&host], MODEL).await;
    let pieces = "word  |".repeat(60);
    let message = format!("[[strict rate=20 by=| say]]{pieces}");
    let broken = pair.break_off(&cold(&message), || {}).await;
    broken.was_continued(&pair.heir, "approximate").await;
}

#[tokio::test]
async fn an_answer_with_reasoning_is_restarted() {
    let host = ollama_sim(&["--models", "thinker", "--rate", "60"]);
    let pair = Pair::at(&[&host], "thinker").await;
    let mut turn = cold("[[tokens=120 think=10]] why?");
    turn["think"] = json!(true);
    let broken = pair.break_off(&turn, || {}).await;
    assert!(kinds(&broken.events).contains(&"stream_restart"));
    broken.was_continued(&pair.heir, "restarted").await;
}

#[tokio::test]
async fn a_reply_over_rest_lists_the_continuations_of_its_answer() {
    let host = ollama_sim(&["--rate", "500"]);
    let pair = Pair::at(&[&host], MODEL).await;
    let session = Uuid::new_v4().to_string();
    let mut turn = cold("[[tokens=60 fault=cut@20]] go on");
    turn["session_id"] = json!(session);
    let reply = post(&pair.heir, "/api/v1/chat", &turn).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let continued = json!([{"how": "exact", "why": "upstream_interrupted"}]);
    assert_eq!(reply.body["continued"], continued);
    let (mut socket, _) =
        Socket::open(&pair.heir, &format!("/ws?session_id={}", Uuid::new_v4())).await;
    let mut whole = cold("[[tokens=60 fault=cut@20]] go on in one piece");
    whole["stream"] = json!(false);
    socket.say(&whole).await;
    let response = socket.until("response").await.pop().expect("a response");
    assert_eq!(response["continued"], continued);
}
