//! Titles of sessions: the first question's words, or those of the model.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::client::{chat, get, http, send};
use support::eventually;
use support::fleet::Fleet;
use support::host::stat;
use support::metrics::{metrics, until_metric_line};
use support::owned::id;
use support::process::{LIMIT, Process};

const BY_MODEL: (&str, &str) = ("JARVIS_TITLES", "model");
const WRITTEN: &str = "jarvis_titles_total{outcome=\"written\"} 1";
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

#[tokio::test]
async fn a_title_of_the_model_follows_the_first_answer_once_and_costs_its_user_tokens() {
    let fleet = Fleet::start(1, &[], &[BY_MODEL]).await;
    let replica = &fleet.replicas[0];
    let session = id();
    assert_eq!(chat(replica, &session, QUESTION).await.status, 200);
    until_metric_line(replica, WRITTEN).await;
    let first = title(replica, &session).await;
    assert!(!first.is_empty() && !first.contains("tokens=3"), "{first}");
    assert!(first.chars().count() <= 80, "{first}");
    assert!(!first.contains(['\n', '"', '*', '#']), "{first}");
    // The host got the conversation and the request, behind the same prompt as the next question has.
    assert_eq!(stat(&fleet.ollama, "started").await, 2);
    assert_eq!(chat(replica, &session, "[[tokens=1]] and then?").await.status, 200);
    assert_eq!(stat(&fleet.ollama, "started").await, 3, "a second answer has no title");
    assert_eq!(title(replica, &session).await, first);
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
    let is_over = async || {
        let text = metrics(replica).await;
        text.contains(WRITTEN) || text.contains(BUSY)
    };
    assert!(eventually(LIMIT, is_over).await, "{}", metrics(replica).await);
    assert_eq!(title(replica, &session).await, "Mine");
}

#[tokio::test]
async fn a_title_of_the_model_is_dropped_where_another_turn_needs_the_slot() {
    let extra = [BY_MODEL, ("JARVIS_OLLAMA_SLOTS", "1")];
    let fleet = Fleet::start(1, &["--rate", "10"], &extra).await;
    let replica = &fleet.replicas[0];
    let (session, other) = (id(), id());
    assert_eq!(chat(replica, &session, "[[tokens=2]] first").await.status, 200);
    // The title is being written, or about to be: the other turn has the only slot soon all the same.
    let reply = chat(replica, &other, "[[tokens=2]] second").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    until_metric_line(replica, BUSY).await;
    let kept: Value = title(replica, &session).await.into();
    assert_eq!(kept, "[[tokens=2]] first");
}
