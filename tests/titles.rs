//! Titles of sessions: the first question's words, or those of the model.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::Duration;

use serde_json::json;
use support::client::{chat, get, http, send};
use support::eventually;
use support::fleet::Fleet;
use support::host::stat;
use support::metrics::{metrics, until_metric_line};
use support::owned::id;
use support::process::{LIMIT, Process};
use support::tokens::{SECRET, token};

const BY_MODEL: (&str, &str) = ("JARVIS_TITLES", "model");
const SIGN_IN: (&str, &str) = ("JARVIS_JWT_SECRET", SECRET);
/// So few that none comes back while a test runs.
const TOKENS_PER_DAY: (&str, &str) = ("JARVIS_USER_TOKENS_PER_DAY", "1000");
const WRITTEN: &str = "jarvis_titles_total{outcome=\"written\"} 1";
const GIVEN: &str = "jarvis_titles_total{outcome=\"given\"} 1";
const BUSY: &str = "jarvis_titles_total{outcome=\"busy\"} 1";
const QUESTION: &str =
    "[[tokens=3]] how do I sort a list of numbers without a loop, and what does it cost?";

async fn title(replica: &Process, session: &str) -> String {
    let path = format!("/api/v1/chat/sessions/{session}");
    let info = get(replica, &path).await.body;
    info["title"].as_str().expect("a title").to_owned()
}

async fn rename(replica: &Process, session: &str, title: &str) {
    let url = format!("{}/api/v1/chat/sessions/{session}", replica.url);
    let reply = send(http().patch(url).json(&json!({"title": title}))).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

#[tokio::test]
async fn a_title_is_the_first_question_shortened_at_a_word() {
    let fleet = Fleet::start(1, &[], &[]).await;
    let session = id();
    assert_eq!(chat(&fleet.replicas[0], &session, QUESTION).await.status, 200);
    let title = title(&fleet.replicas[0], &session).await;
    assert_eq!(
        title,
        "[[tokens=3]] how do I sort a list of numbers without a loop, and what does it…"
    );
    assert!(title.chars().count() <= 80);
    assert!(
        metrics(&fleet.replicas[0]).await.contains("jarvis_titles_total{outcome=\"written\"} 0")
    );
}

/// Has a user ask, and returns the tokens of the turn.
async fn tokens_of_turn(replica: &Process, user: &str, session: &str, message: &str) -> u64 {
    let url = format!("{}/api/v1/chat", replica.url);
    let body = json!({"message": message, "session_id": session});
    let reply = send(http().post(url).bearer_auth(token(user)).json(&body)).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let tokens = |kind: &str| reply.body["usage"][kind].as_u64().expect("a number");
    tokens("prompt_tokens") + tokens("completion_tokens")
}

/// Returns the tokens that count for a user.
async fn tokens_of_user(replica: &Process, user: &str) -> u64 {
    let url = format!("{}/api/v1/usage", replica.url);
    let reply = send(http().get(url).bearer_auth(token(user))).await;
    let limits = reply.body["limits"].as_array().expect("a list");
    let tokens = limits.iter().find(|limit| limit["limit"] == "user-tokens");
    tokens.and_then(|limit| limit["used"].as_u64()).expect("a number")
}

async fn title_of(replica: &Process, user: &str, session: &str) -> String {
    let url = format!("{}/api/v1/chat/sessions/{session}", replica.url);
    let info = send(http().get(url).bearer_auth(token(user))).await.body;
    info["title"].as_str().expect("a title").to_owned()
}

#[tokio::test]
async fn a_title_of_the_model_follows_the_first_answer_once_and_costs_its_user_tokens() {
    let fleet = Fleet::start(1, &[], &[BY_MODEL, SIGN_IN, TOKENS_PER_DAY]).await;
    let replica = &fleet.replicas[0];
    let session = id();
    let of_turn = tokens_of_turn(replica, "alice", &session, QUESTION).await;
    until_metric_line(replica, WRITTEN).await;
    let used = tokens_of_user(replica, "alice").await;
    // Its prompt has all of the first turn.
    assert!(used > 2 * of_turn, "{used} with the title, {of_turn} without");
    let first = title_of(replica, "alice", &session).await;
    assert!(!first.is_empty() && !first.contains("tokens=3"), "{first}");
    assert!(first.chars().count() <= 80, "{first}");
    assert!(!first.contains(['\n', '"', '*', '#']), "{first}");
    // The host got the conversation and the request, behind the same prompt as the next question has.
    assert_eq!(stat(&fleet.ollama, "started").await, 2);
    let of_turn = tokens_of_turn(replica, "alice", &session, "[[tokens=1]] and then?").await;
    assert_eq!(stat(&fleet.ollama, "started").await, 3, "a second answer has no title");
    assert_eq!(title_of(replica, "alice", &session).await, first);
    assert_eq!(tokens_of_user(replica, "alice").await, used + of_turn);
}

#[tokio::test]
async fn a_title_of_the_model_never_replaces_one_that_the_user_gave() {
    let fleet = Fleet::start(1, &["--rate", "20"], &[BY_MODEL]).await;
    let replica = &fleet.replicas[0];
    let session = id();
    // It is renamed while the answer runs.
    let url = format!("{}/api/v1/chat", replica.url);
    let ask = json!({"session_id": session, "message": "[[tokens=20]] hello"});
    let asked = send(http().post(url).json(&ask));
    let renamed = async {
        let path = format!("/api/v1/chat/sessions/{session}");
        let is_there = async || get(replica, &path).await.status == 200;
        assert!(eventually(LIMIT, is_there).await, "no session");
        rename(replica, &session, "Mine").await;
    };
    let (reply, ()) = tokio::join!(asked, renamed);
    assert_eq!(reply.status, 200, "{}", reply.body);
    until_metric_line(replica, GIVEN).await;
    assert_eq!(title(replica, &session).await, "Mine");
    assert_eq!(stat(&fleet.ollama, "started").await, 1, "the model was asked for a title");
    // Another one is renamed while the model writes its title.
    let session = id();
    assert_eq!(chat(replica, &session, "[[tokens=2]] hello").await.status, 200);
    let is_being_written = async || stat(&fleet.ollama, "started").await == 3;
    assert!(eventually(LIMIT, is_being_written).await, "no title is written");
    rename(replica, &session, "Mine, too").await;
    until_metric_line(replica, WRITTEN).await;
    assert_eq!(title(replica, &session).await, "Mine, too");
}

#[tokio::test]
async fn a_title_without_end_is_cut_and_its_host_is_freed() {
    // The model writes 200,000 tokens, whatever it may.
    let host = ["--rate", "20000", "--models", "heedless", "--tokens", "200000"];
    let fleet = Fleet::start(1, &host, &[BY_MODEL, SIGN_IN, TOKENS_PER_DAY]).await;
    let replica = &fleet.replicas[0];
    let session = id();
    let url = format!("{}/api/v1/chat", replica.url);
    let body = json!({"message": "[[tokens=3]] hi", "session_id": session, "model": "heedless"});
    let reply = send(http().post(url).bearer_auth(token("alice")).json(&body)).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    until_metric_line(replica, WRITTEN).await;
    let title = title_of(replica, "alice", &session).await;
    assert!(!title.contains("tokens=3") && title.chars().count() <= 80, "{title}");
    let used = tokens_of_user(replica, "alice").await;
    assert!(used < 5_000, "{used} tokens");
    let is_free = async || stat(&fleet.ollama, "running").await == 0;
    assert!(eventually(Duration::from_secs(3), is_free).await, "the host goes on");
}

#[tokio::test]
async fn a_title_that_is_dropped_for_another_turn_costs_its_user_what_the_host_did() {
    let extra = [BY_MODEL, SIGN_IN, TOKENS_PER_DAY, ("JARVIS_OLLAMA_SLOTS", "1")];
    let fleet = Fleet::start(1, &["--rate", "10"], &extra).await;
    let replica = &fleet.replicas[0];
    let (session, other) = (id(), id());
    let of_turn = tokens_of_turn(replica, "alice", &session, "[[tokens=2]] first").await;
    let is_being_written = async || stat(&fleet.ollama, "started").await == 2;
    assert!(eventually(LIMIT, is_being_written).await, "no title is written");
    // The other turn needs the only slot.
    tokens_of_turn(replica, "bob", &other, "[[tokens=2]] second").await;
    until_metric_line(replica, BUSY).await;
    assert_eq!(title_of(replica, "alice", &session).await, "[[tokens=2]] first");
    let used = tokens_of_user(replica, "alice").await;
    assert!(used > of_turn + 10, "{used} with the title, {of_turn} without");
}
