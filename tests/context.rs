//! The part of a conversation that the model gets, and the report of the rest.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::client::{Socket, chat, get, post, until_ok};
use support::process::{Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use uuid::Uuid;

#[tokio::test]
async fn a_conversation_longer_than_the_window_never_fails_and_reports_what_was_left_out() {
    const TURNS: u64 = 200;
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "100000"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[("JARVIS_NUM_CTX", "2048")]);
    until_ok(&replica, "/health/ready").await;
    let session = Uuid::new_v4().to_string();
    let mut dropped_before = 0;
    for turn in 0..TURNS {
        // The text has words, signs and characters beyond ASCII: no measure of bytes fits them all.
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
        let count = |field: &str| context[field].as_u64().expect("a count");
        let (sent, dropped) = (count("messages_sent"), count("messages_dropped"));
        assert_eq!(sent + dropped, turn * 2 + 1, "turn {turn}: {context}");
        assert!(dropped >= dropped_before.min(turn * 2), "turn {turn}");
        assert!(count("prompt_tokens") + 60 <= 2048, "turn {turn}: {context}");
        dropped_before = dropped.saturating_sub(4);
        // The host got the system prompt, and this many messages.
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

/// Returns the requests of the host, oldest first, as its journal has them.
async fn journal(ollama: &Process) -> Vec<Value> {
    let asked = get(ollama, "/sim/requests").await.body;
    asked["requests"].as_array().expect("requests").clone()
}

/// Returns the messages of a request without the system prompt.
fn messages(request: &Value) -> Vec<Value> {
    let messages = request["messages"].as_array().expect("messages");
    messages.iter().filter(|message| message["role"] != "system").cloned().collect()
}

#[tokio::test]
async fn a_full_window_is_cut_at_turns_and_so_rarely_that_most_prompts_begin_as_the_last_one() {
    const TURNS: usize = 40;
    const WINDOW: u64 = 1024;
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "100000"]);
    let settings = [("JARVIS_NUM_CTX", "1024")];
    let replicas = [(); 2].map(|()| jarvis(&redis.url(), &ollama.url, &settings));
    for replica in &replicas {
        until_ok(replica, "/health/ready").await;
    }
    let session = Uuid::new_v4().to_string();
    let mut reports = Vec::new();
    for turn in 0..TURNS {
        let message = format!("[[tokens=20]] {turn}: {}", "some words of it ".repeat(3));
        let body = json!({"message": message, "session_id": session, "max_tokens": 100,
            "system": "Answer briefly."});
        // The replicas take turns: a replica knows of the last prompt only from Redis.
        let reply = post(&replicas[turn % 2], "/api/v1/chat/", &body).await;
        assert_eq!(reply.status, 200, "turn {turn}: {}", reply.body);
        reports.push(reply.body["context"].clone());
    }
    let requests = journal(&ollama).await;
    assert_eq!(requests.len(), TURNS, "a request was refused as too long, or made twice");
    let (mut changed, mut same_in_a_row, mut shortest_run) = (0, 0, usize::MAX);
    let mut first_before: Option<Value> = None;
    for (turn, (request, report)) in requests.iter().zip(&reports).enumerate() {
        let sent = messages(request);
        let roles: Vec<_> = sent.iter().map(|message| message["role"].clone()).collect();
        let expected = (0..sent.len()).map(|at| if at % 2 == 0 { "user" } else { "assistant" });
        assert_eq!(roles, expected.collect::<Vec<_>>(), "turn {turn}");
        assert_eq!(report["messages_sent"], sent.len(), "turn {turn}");
        assert_eq!(report["messages_dropped"], turn * 2 + 1 - sent.len(), "turn {turn}");
        // The questions are numbered, which shows the first one of the window.
        let dropped_turns = (turn * 2 + 1 - sent.len()) / 2;
        let begins = sent[0]["content"].as_str().expect("a text").to_owned();
        assert!(begins.starts_with(&format!("[[tokens=20]] {dropped_turns}: ")), "{begins}");
        assert!(request["prompt_tokens"].as_u64().expect("a count") + 100 <= WINDOW);
        if first_before.replace(sent[0].clone()).is_some_and(|before| before != sent[0]) {
            if changed > 0 {
                shortest_run = shortest_run.min(same_in_a_row);
            }
            (changed, same_in_a_row) = (changed + 1, 0);
        }
        same_in_a_row += 1;
    }
    println!(
        "{changed} of {TURNS} prompts began otherwise; at least {shortest_run} in a row alike"
    );
    assert!(changed >= 3, "the window was full too seldom");
    assert!(changed * 5 <= TURNS && shortest_run >= 4, "{changed}, {shortest_run}");
}

#[tokio::test]
async fn a_question_that_failed_or_was_cancelled_without_an_answer_is_left_out() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "100"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    let session = Uuid::new_v4().to_string();
    let first = chat(&replica, &session, "[[tokens=5]] first").await;
    let failed = chat(&replica, &session, "[[fault=status@400!]] fails").await;
    assert_ne!(failed.status, 200, "{}", failed.body);
    let (mut socket, _) = Socket::open(&replica, &format!("/ws?session_id={session}")).await;
    socket.say(&json!({"type": "chat", "message": "[[first_ms=20000]] silent"})).await;
    socket.until("stream_start").await;
    socket.say(&json!({"type": "cancel"})).await;
    socket.until("cancelled").await;
    // This turn has some of its answer, which its user has read.
    socket.say(&json!({"type": "chat", "message": "[[tokens=500]] half"})).await;
    socket.until("stream_chunk").await;
    socket.say(&json!({"type": "cancel"})).await;
    let half = socket.until("cancelled").await;
    let half = half.last().expect("an end")["full_response"].clone();
    let last = chat(&replica, &session, "[[tokens=5]] last").await;
    assert_eq!(last.status, 200, "{}", last.body);
    let requests = journal(&ollama).await;
    let expected = json!([
        {"role": "user", "content": "[[tokens=5]] first"},
        {"role": "assistant", "content": first.body["response"]},
        {"role": "user", "content": "[[tokens=500]] half"},
        {"role": "assistant", "content": half},
        {"role": "user", "content": "[[tokens=5]] last"},
    ]);
    assert_eq!(requests.last().expect("a request")["messages"], expected);
    let context = &last.body["context"];
    assert_eq!((&context["messages_sent"], &context["messages_dropped"]), (&json!(5), &json!(4)));
}

#[tokio::test]
async fn a_takeover_continues_with_the_exact_prompt_that_the_answer_was_begun_with() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "40"]);
    let settings = [("JARVIS_NUM_CTX", "1024"), ("JARVIS_LEASE_MS", "1000")];
    let replicas = [(); 2].map(|()| jarvis(&redis.url(), &ollama.url, &settings));
    for replica in &replicas {
        until_ok(replica, "/health/ready").await;
    }
    let session = Uuid::new_v4().to_string();
    // The text is denser than the estimate: the host refuses the first prompt, which is then
    // shortened.
    let dense = |tokens: usize| "!?".repeat(tokens / 2);
    for turn in 0..4 {
        let body = json!({"message": format!("[[tokens=1]] {turn} {}", dense(170)),
            "session_id": session, "max_tokens": 100});
        let reply = post(&replicas[1], "/api/v1/chat/", &body).await;
        assert_eq!(reply.status, 200, "turn {turn}: {}", reply.body);
        assert_eq!(reply.body["context"]["messages_dropped"], 0, "turn {turn}");
        forget_what_was_measured(&redis, &session);
    }
    let (mut socket, _) = Socket::open(&replicas[1], &format!("/ws?session_id={session}")).await;
    let body = json!({"type": "chat", "message": format!("[[tokens=90]] long {}", dense(300)),
        "max_tokens": 100});
    let (mut asking, _) = Socket::open(&replicas[0], &format!("/ws?session_id={session}")).await;
    asking.say(&body).await;
    let mut events = socket.until("stream_chunk").await;
    for _ in 0..10 {
        events.push(socket.event().await);
    }
    replicas[0].kill();
    events.extend(socket.until("stream_end").await);
    assert!(!events.iter().any(|event| event["type"] == "stream_restart"), "text was taken back");
    let requests = journal(&ollama).await;
    let mut of_turn = requests.iter().filter(|asked| {
        let last = asked["messages"].as_array().and_then(|messages| messages.last());
        last.is_some_and(|last| last["content"] == body["message"])
    });
    let outcomes = requests.iter().filter_map(|asked| asked["outcome"].as_str());
    let refused = outcomes.filter(|outcome| outcome.starts_with("refused")).count();
    // The second one is refused that prompt with the text behind it, too.
    assert_eq!(refused, 3, "each of the two was refused the longer prompt");
    let begun = of_turn.find(|asked| asked["rendered"].is_string()).expect("an answer");
    let begun = begun["rendered"].as_str().expect("a prompt");
    let is_continued =
        |asked: &&Value| asked["path"] == "/api/generate" && asked["options"]["num_predict"] != 1;
    let continued = requests.iter().rfind(is_continued).expect("a request");
    let prompt = continued["prompt"].as_str().expect("a prompt");
    assert!(prompt.starts_with(begun) && prompt.len() > begun.len(), "{begun}\n---\n{prompt}");
}

#[tokio::test]
async fn an_answer_that_continues_at_a_host_with_another_window_keeps_its_prompt() {
    let redis = RedisServer::start();
    let large = ollama_sim(&["--rate", "100", "--model-ctx", "2048"]);
    let small = ollama_sim(&["--rate", "100", "--model-ctx", "512"]);
    // The model is in the memory of the large host, which is therefore preferred.
    let load = json!({"model": "tinyllama", "messages": []});
    assert_eq!(post(&large, "/api/chat", &load).await.status, 200);
    let hosts = format!("{},{}", large.url, small.url);
    let replica = jarvis(&redis.url(), &hosts, &[]);
    until_ok(&replica, "/health/ready").await;
    let session = Uuid::new_v4().to_string();
    for turn in 0..3 {
        let message = format!("[[tokens=40]] {turn} {}", "words ".repeat(30));
        assert_eq!(chat(&replica, &session, &message).await.status, 200, "turn {turn}");
    }
    // The answer has 300 tokens, where the small window would leave room for 256 in addition to it.
    let last = chat(&replica, &session, "[[tokens=60 fault=cut@20]] goes on").await;
    assert_eq!(last.status, 200, "{}", last.body);
    assert_eq!(last.body["context"]["messages_sent"], 7);
    let asked = journal(&large).await;
    let mut begun = asked.iter().filter(|asked| asked["path"] == "/api/chat");
    let begun = begun.rfind(|asked| asked["rendered"].is_string()).expect("an answer");
    let begun = begun["rendered"].as_str().expect("a prompt");
    let continued = journal(&small).await;
    assert!(!continued.is_empty(), "the first host failed this turn");
    for asked in continued.iter().filter(|asked| asked["path"] == "/api/generate") {
        let prompt = asked["prompt"].as_str().expect("a prompt");
        assert!(prompt.starts_with(begun), "{begun}\n---\n{prompt}");
    }
    // Others only count the tokens of the prompt.
    let goes_on =
        |asked: &&Value| asked["path"] == "/api/generate" && asked["options"]["num_predict"] != 1;
    let last = continued.iter().rfind(goes_on).expect("a request");
    assert!(last["prompt"].as_str().expect("a prompt").len() > begun.len());
}

/// Removes the measurements of a conversation from its answers, so that it is estimated again.
fn forget_what_was_measured(redis: &RedisServer, session: &str) {
    let keys = redis.cli(&["KEYS", &format!("*{session}:messages")]);
    let forget = "local all = redis.call('HGETALL', KEYS[1]) \
                  for i = 1, #all, 2 do redis.call('HSET', KEYS[1], all[i], \
                  (string.gsub(string.gsub(all[i + 1], '\"k\":%[%d+', '\"k\":[0'), \
                  '(\"x\":%[%d+,%d+,)%d+', '%10'))) end";
    redis.cli(&["EVAL", forget, "1", keys.trim()]);
}

#[tokio::test]
async fn a_conversation_that_is_denser_than_any_estimate_is_shortened_until_it_fits() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "100000"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[("JARVIS_NUM_CTX", "1024")]);
    until_ok(&replica, "/health/ready").await;
    let session = Uuid::new_v4().to_string();
    // Each sign is a token, where the estimate takes three bytes for one; the answers are no use as
    // a measure.
    for turn in 0..6 {
        let message = format!("[[tokens=1]] {turn} {}", "!?".repeat(170));
        let body = json!({"message": message, "session_id": session, "max_tokens": 100});
        let reply = post(&replica, "/api/v1/chat/", &body).await;
        assert_eq!(reply.status, 200, "turn {turn}: {}", reply.body);
        let context = &reply.body["context"];
        let count = |field: &str| context[field].as_u64().expect("a count");
        assert_eq!(count("messages_sent") + count("messages_dropped"), turn * 2 + 1, "{context}");
        assert!(count("prompt_tokens") <= 1024, "{context}");
        // The measurements are lost with the answers.
        forget_what_was_measured(&redis, &session);
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
