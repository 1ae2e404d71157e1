//! What the model is given of a conversation, and what is told of it.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::json;
use support::client::{chat, get, post, until_ok};
use support::process::{jarvis, ollama_sim};
use support::redis::RedisServer;
use uuid::Uuid;

#[tokio::test]
async fn a_conversation_longer_than_the_window_never_fails_and_tells_what_was_left_out() {
    const TURNS: u64 = 200;
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "100000"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[("JARVIS_NUM_CTX", "2048")]);
    until_ok(&replica, "/health/ready").await;
    let session = Uuid::new_v4().to_string();
    let mut dropped_before = 0;
    for turn in 0..TURNS {
        // Words, signs and characters beyond ASCII: no measure of bytes fits them all.
        let question = match turn % 3 {
            0 => "a rather long question ".repeat(20),
            1 => "¿qué? «это» — ; : ! ".repeat(15),
            _ => "漢字かな交じり文 ".repeat(20),
        };
        let message = format!("[[tokens=60]] {turn}: {question}");
        let body = json!({"message": message, "session_id": session, "max_tokens": 200,
            "system": "Answer briefly."});
        let reply = post(&replica, "/api/v1/chat/", &body).await;
        assert_eq!(reply.status, 200, "turn {turn}: {}", reply.body);
        let context = &reply.body["context"];
        let told = |field: &str| context[field].as_u64().expect("a count");
        let (sent, dropped) = (told("messages_sent"), told("messages_dropped"));
        assert_eq!(sent + dropped, turn * 2 + 1, "turn {turn}: {context}");
        assert!(dropped >= dropped_before.min(turn * 2), "turn {turn}");
        assert!(told("prompt_tokens") + 60 <= 2048, "turn {turn}: {context}");
        dropped_before = dropped.saturating_sub(4);
        // What the host was really asked: the system prompt, and so many messages.
        if turn % 20 == 19 {
            let asked = get(&ollama, "/sim/requests").await.body;
            let last = asked["requests"]
                .as_array()
                .and_then(|asked| asked.iter().rfind(|asked| asked["path"] == "/api/chat"))
                .and_then(|asked| asked["messages"].as_array())
                .expect("messages");
            assert_eq!(last.len() as u64, sent + 1, "turn {turn}");
            assert_eq!(last[0]["content"], "Answer briefly.", "the system prompt always goes");
            assert_eq!(last[last.len() - 1]["content"], message.as_str());
        }
    }
    assert!(dropped_before > 100, "the window was never full");
}

#[tokio::test]
async fn a_text_that_is_denser_than_any_estimate_is_shortened_until_it_fits() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "100000"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[("JARVIS_NUM_CTX", "1024")]);
    until_ok(&replica, "/health/ready").await;
    let session = Uuid::new_v4().to_string();
    // A sign a token, where three bytes are taken for one; and answers of no use as a measure.
    for turn in 0..6 {
        let message = format!("[[tokens=1]] {turn} {}", "!?".repeat(170));
        let body = json!({"message": message, "session_id": session, "max_tokens": 100});
        let reply = post(&replica, "/api/v1/chat/", &body).await;
        assert_eq!(reply.status, 200, "turn {turn}: {}", reply.body);
        let context = &reply.body["context"];
        let told = |field: &str| context[field].as_u64().expect("a count");
        assert_eq!(told("messages_sent") + told("messages_dropped"), turn * 2 + 1, "{context}");
        assert!(told("prompt_tokens") <= 1024, "{context}");
        // What was measured is forgotten with its answers.
        let keys = redis.cli(&["KEYS", &format!("*{session}:messages")]);
        let forget = "local all = redis.call('LRANGE', KEYS[1], 0, -1) \
                      for i, m in ipairs(all) do redis.call('LSET', KEYS[1], i - 1, \
                      (string.gsub(m, '\"prompt_tokens\":%d+', '\"prompt_tokens\":0'))) end";
        redis.cli(&["EVAL", forget, "1", keys.trim()]);
    }
}

#[tokio::test]
async fn a_question_that_alone_is_too_long_is_refused_with_both_figures() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "100000"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[("JARVIS_NUM_CTX", "512")]);
    until_ok(&replica, "/health/ready").await;
    let reply = chat(&replica, &Uuid::new_v4().to_string(), &"word ".repeat(2000)).await;
    assert_eq!(reply.status, 413, "{}", reply.body);
    assert_eq!(reply.body["code"], "context_too_long");
    let detail = reply.body["detail"].as_str().expect("detail");
    assert!(detail.contains("512") && detail.contains("20"), "{detail}");
}
