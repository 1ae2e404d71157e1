//! Answers whose replica is killed: how exact their continuation is, and what it costs the host.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::client::{Socket, get, joined, kinds, post, until_ok};
use support::metrics::until_metric_line;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use testkit::eventually;
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

/// Returns the requests of the host that continued an answer or counted tokens, oldest first.
async fn raw_requests(host: &Process) -> Vec<Value> {
    let requests = get(host, "/sim/requests").await.body;
    let requests = requests["requests"].as_array().expect("requests");
    requests.iter().filter(|request| request["path"] == "/api/generate").cloned().collect()
}

/// Returns whether a request only has the host count the tokens of its prompt.
fn is_count(request: &Value) -> bool {
    request["options"]["num_predict"] == 1
}

/// Returns the beginning of an answer that has this number of tokens.
fn answer_of(message: &str, tokens: usize) -> String {
    let whole = ollama_sim::script_answer(MODEL, message, None, 1000);
    let counter = ollama_sim::TokenCounter::default();
    ollama_sim::first_tokens(counter, &whole, tokens).to_owned()
}

/// Returns the usage of an answer, as its host counts: the tokens of the first prompt, and of the
/// text.
async fn exact_usage(host: &Process, text: &str) -> Value {
    let requests = get(host, "/sim/requests").await.body;
    let requests = requests["requests"].as_array().expect("requests").clone();
    let is_answer = |request: &&Value| request["path"] == "/api/chat" && request["tokens"] != 0;
    let asked = requests.iter().find(is_answer).expect("an answer");
    json!({
        "prompt_tokens": asked["prompt_tokens"],
        "completion_tokens": ollama_sim::count_tokens(text),
    })
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
async fn an_answer_starts_again_where_the_next_host_has_another_model_of_that_name() {
    let first = ollama_sim(&["--rate", "60"]);
    let second = ollama_sim(&["--rate", "60", "--models", "other"]);
    let copy = json!({"source": "other", "destination": "tinyllama"});
    assert_eq!(post(&second, "/api/copy", &copy).await.status, 200);
    let pair = Pair::at(&[&first, &second], MODEL).await;
    let message = "[[tokens=120]] go on";
    let broken = pair.break_off(&cold(message), || first.kill()).await;
    broken.was_continued(&pair.heir, "restarted").await;
    let whole = ollama_sim::script_answer("other:latest", message, None, 1000);
    assert_eq!(broken.end()["full_response"], whole);
}

#[tokio::test]
async fn an_answer_starts_again_where_a_host_does_not_report_which_build_of_the_model_it_has() {
    let silent = ["--rate", "60", "--without-digest"];
    let message = "[[tokens=120]] go on";
    let alone = ollama_sim(&silent);
    let pair = Pair::at(&[&alone], MODEL).await;
    let broken = pair.break_off(&cold(message), || {}).await;
    broken.was_continued(&pair.heir, "restarted").await;
    // The first has reported its own.
    let (first, second) = (ollama_sim(&["--rate", "60"]), ollama_sim(&silent));
    let pair = Pair::at(&[&first, &second], MODEL).await;
    let broken = pair.break_off(&cold(message), || first.kill()).await;
    broken.was_continued(&pair.heir, "restarted").await;
    let whole = ollama_sim::script_answer(MODEL, message, None, 1000);
    assert_eq!(broken.end()["full_response"], whole);
}

#[tokio::test]
async fn a_digest_that_is_missing_from_one_list_of_models_costs_no_text() {
    let host = ollama_sim(&["--rate", "15"]);
    let pair = Pair::at(&[&host], MODEL).await;
    let path = format!("/ws?session_id={}", Uuid::new_v4());
    let (mut asking, _) = Socket::open(&pair.killed, &path).await;
    let (mut watching, _) = Socket::open(&pair.heir, &path).await;
    asking.say(&cold("[[tokens=200]] go on")).await;
    let mut events = Vec::new();
    while joined(&events).len() < READ {
        events.push(watching.event().await);
    }
    // Each replica gets one such list.
    let fault = json!({"fault": "odd", "times": 2, "path": "/api/tags"});
    assert_eq!(post(&host, "/sim/faults", &fault).await.status, 204);
    let armed = async || get(&host, "/sim/faults").await.body["armed"].as_array().map(Vec::len);
    assert!(eventually(LIMIT, async || armed().await == Some(0)).await, "{:?}", armed().await);
    pair.killed.kill();
    events.extend(watching.until("stream_end").await);
    assert!(!kinds(&events).contains(&"stream_restart"), "text was taken back");
    let continued = json!([{"how": "exact", "why": "replica_gone"}]);
    assert_eq!(events.last().expect("an end")["continued"], continued);
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

#[tokio::test]
async fn text_goes_on_before_any_count_and_the_usage_is_exact_at_the_end() {
    let host = ollama_sim(&["--rate", "60"]);
    let pair = Pair::at(&[&host], MODEL).await;
    let message = "[[tokens=120]] go on";
    let broken = pair.break_off(&cold(message), || {}).await;
    let text = answer_of(message, 1000);
    assert_eq!(broken.end()["full_response"], text.as_str());
    let requests = raw_requests(&host).await;
    assert!(!is_count(&requests[0]), "the first request counts: {}", requests[0]);
    let counts: Vec<_> = requests.iter().filter(|request| is_count(request)).collect();
    assert_eq!((requests.len(), counts.len()), (2, 1), "{requests:?}");
    let prompt = counts[0]["prompt"].as_str().expect("a prompt");
    let continued = requests[0]["prompt"].as_str().expect("a prompt");
    assert!(continued.len() > prompt.len() && continued.starts_with(prompt), "{requests:?}");
    assert_eq!(broken.end()["usage"], exact_usage(&host, &text).await);
}

#[tokio::test]
async fn a_continued_answer_ends_exactly_at_its_limit_of_tokens() {
    // Of these limits the first may be reached at once, so that the answer is counted first; the
    // second leaves a continuation some room, and the third more than the answer needs.
    for (limit, counted_first) in [(READ / 2, true), (READ * 2, false), (2000, false)] {
        let host = ollama_sim(&["--rate", "60"]);
        let pair = Pair::at(&[&host], MODEL).await;
        let message = format!("[[tokens=150]] as far as {limit}");
        let mut turn = cold(&message);
        turn["max_tokens"] = json!(limit);
        let broken = pair.break_off(&turn, || {}).await;
        let text = answer_of(&message, limit);
        let end = broken.end();
        assert_eq!(end["full_response"], text.as_str(), "{limit}");
        let reason = if limit < 150 { "length" } else { "stop" };
        assert_eq!(end["finish_reason"], reason, "{limit}");
        assert_eq!(end["usage"], exact_usage(&host, &text).await, "{limit}");
        let requests = raw_requests(&host).await;
        assert_eq!(is_count(&requests[0]), counted_first, "{limit}: {requests:?}");
        broken.was_continued(&pair.heir, "exact").await;
    }
}

#[tokio::test]
async fn an_answer_that_is_too_long_for_the_window_of_the_next_host_ends_with_its_usage() {
    let large = ollama_sim(&["--rate", "500", "--model-ctx", "2048"]);
    let small = ollama_sim(&["--rate", "500", "--model-ctx", "256"]);
    let pair = Pair::at(&[&large, &small], MODEL).await;
    let message = "[[tokens=600 fault=cut@200]] too long";
    let body = json!({"message": message, "max_tokens": 8000});
    let reply = post(&pair.heir, "/api/v1/chat", &body).await;
    assert_eq!((reply.status, &reply.body["finish_reason"]), (200, &json!("length")));
    let text = reply.body["response"].as_str().expect("a text");
    assert!(ollama_sim::count_tokens(text) > 256, "{text}");
    assert_eq!(reply.body["usage"], exact_usage(&large, text).await);
    assert!(!is_count(&raw_requests(&small).await[0]));
}

#[tokio::test]
async fn a_continued_answer_whose_host_reports_no_count_at_its_end_is_counted() {
    let host = ollama_sim(&["--rate", "500"]);
    let pair = Pair::at(&[&host], MODEL).await;
    let message = "[[tokens=50 repeat fault=cut@10]] again";
    let body = json!({"message": message, "max_tokens": 4000});
    let reply = post(&pair.heir, "/api/v1/chat", &body).await;
    assert_eq!((reply.status, &reply.body["finish_reason"]), (200, &json!("repetition")));
    assert_eq!(reply.body["continued"].as_array().map(Vec::len), Some(1), "{}", reply.body);
    let text = reply.body["response"].as_str().expect("a text");
    assert_eq!(reply.body["usage"], exact_usage(&host, text).await);
}
