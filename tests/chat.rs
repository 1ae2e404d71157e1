//! Chat through real replicas on a real Redis, as clients see it.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::client::{Socket, chat, get, http, joined, kinds, post, send, until_ok};
use support::eventually;
use support::fleet::{Fleet, ready_replicas};
use support::metrics::metrics;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use uuid::Uuid;

/// The time from the death of a replica to the next character at a client of another one.
const CONTINUED: Duration = Duration::from_secs(1);

/// Starts so many replicas, whose host has these arguments.
async fn fleet(replicas: usize, host: &[&str]) -> Fleet {
    Fleet::start(replicas, host, &[]).await
}

fn id() -> String {
    Uuid::new_v4().to_string()
}

/// A turn that the first replica runs, and a socket on the second that watches it.
struct Watched {
    session: String,
    watching: Socket,
    _asking: Socket,
    events: Vec<Value>,
}

/// Starts a turn and reads up to the first piece of its answer.
async fn watched(fleet: &Fleet, message: &str) -> Watched {
    let session = id();
    let path = format!("/ws?session_id={session}");
    let (mut watching, _) = Socket::open(&fleet.replicas[1], &path).await;
    let (mut asking, _) = Socket::open(&fleet.replicas[0], &path).await;
    asking.say(&json!({"type": "chat", "message": message})).await;
    let events = watching.until("stream_chunk").await;
    Watched { session, watching, _asking: asking, events }
}

#[tokio::test]
async fn a_turn_over_rest_on_one_replica_streams_to_a_websocket_on_the_other() {
    let fleet = fleet(2, &["--rate", "200"]).await;
    let (here, there) = (&fleet.replicas[0], &fleet.replicas[1]);
    let session = id();
    let (mut socket, connection) = Socket::open(there, &format!("/ws?session_id={session}")).await;
    assert_eq!(connection["session_id"], session.as_str());
    assert_eq!(connection["status"], "connected");
    assert_eq!(connection["resumed"], false);
    let (reply, events) =
        tokio::join!(chat(here, &session, "[[tokens=60]] tell me"), socket.until("stream_end"));
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(kinds(&events), ["message_received", "stream_start", "stream_chunk", "stream_end"]);
    let pieces = events.iter().filter(|event| event["done"] == false).count();
    assert!(pieces > 10, "piece by piece, not {pieces}");
    let whole = events.last().expect("an end");
    assert_eq!(whole["full_response"], joined(&events).as_str());
    assert_eq!(reply.body["response"], whole["full_response"]);
    assert_eq!(reply.body["status"], "success");
    assert_eq!(reply.body["session_id"], session.as_str());
    assert_eq!(reply.body["generation_id"], whole["generation_id"]);
    assert!(reply.body["usage"]["completion_tokens"].as_u64() > Some(0));
    for event in &events {
        assert!(event["cursor"].is_string(), "without a cursor: {event}");
        assert_eq!(event["generation_id"], whole["generation_id"], "{event}");
    }
}

#[tokio::test]
async fn the_history_reads_the_same_from_both_and_survives_a_restart_of_all() {
    let fleet = fleet(2, &[]).await;
    let session = id();
    chat(&fleet.replicas[0], &session, "first").await;
    chat(&fleet.replicas[1], &session, "second").await;
    let path = format!("/api/v1/chat/sessions/{session}");
    let one = get(&fleet.replicas[0], &path).await;
    assert_eq!(one.status, 200, "{}", one.body);
    assert_eq!(one.body["total"], 4);
    assert_eq!(one.body["has_more"], false);
    let roles: Vec<_> = one.body["messages"].as_array().expect("messages").iter().collect();
    assert_eq!(roles[0]["content"], "first");
    assert_eq!(roles[0]["user_id"], "anonymous");
    assert_eq!(roles[1]["role"], "assistant");
    assert_eq!(roles[1]["status"], "complete");
    assert_eq!(one.body, get(&fleet.replicas[1], &path).await.body);
    let Fleet { redis, ollama, replicas } = fleet;
    drop(replicas);
    redis.restart();
    let again = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&again, "/health/ready").await;
    assert_eq!(get(&again, &path).await.body, one.body);
}

#[tokio::test]
async fn the_second_question_has_the_first_in_its_context() {
    let fleet = fleet(2, &[]).await;
    let session = id();
    let first = chat(&fleet.replicas[0], &session, "my name is Ada").await;
    chat(&fleet.replicas[1], &session, "what is my name?").await;
    let asked = get(&fleet.ollama, "/sim/requests").await.body;
    let asked = asked["requests"].as_array().expect("requests");
    let messages = asked
        .iter()
        .filter(|asked| asked["path"] == "/api/chat")
        .filter_map(|asked| asked["messages"].as_array())
        .max_by_key(|messages| messages.len())
        .expect("a conversation");
    let contents: Vec<_> = messages.iter().map(|message| &message["content"]).collect();
    assert_eq!(
        contents,
        [&json!("my name is Ada"), &first.body["response"], &json!("what is my name?")]
    );
}

#[tokio::test]
async fn a_ping_is_answered_in_the_middle_of_a_stream() {
    let fleet = fleet(1, &["--rate", "50"]).await;
    let (mut socket, _) = Socket::open(&fleet.replicas[0], "/ws").await;
    socket.say(&json!({"type": "chat", "message": "[[tokens=100]] go"})).await;
    socket.until("stream_chunk").await;
    socket.say(&json!({"type": "ping"})).await;
    let events = socket.until("pong").await;
    assert!(events.iter().all(|event| event["type"] != "stream_end"), "too late");
    let pong = events.last().expect("a pong");
    assert!(pong["timestamp"].is_string() && pong["cursor"].is_null());
    socket.until("stream_end").await;
}

#[tokio::test]
async fn after_any_bad_input_the_socket_still_works() {
    let fleet = fleet(1, &[]).await;
    let (mut socket, _) = Socket::open(&fleet.replicas[0], "/api/v1/chat/ws").await;
    for bad in ["{", "[]", "7", r#"{"type":"chat","message":" "}"#, r#"{"type":"dance"}"#, "{}"] {
        socket.text(bad).await;
        let event = socket.event().await;
        assert_eq!(event["type"], "error", "{bad}: {event}");
        assert!(event["code"].is_string() && event["message"].is_string(), "{event}");
    }
    socket.frame(tokio_tungstenite::tungstenite::Message::binary(vec![0, 159])).await;
    assert_eq!(socket.event().await["type"], "error");
    socket.say(&json!({"message": "no type is chat", "stream": false, "message_id": "m1"})).await;
    let events = socket.until("response").await;
    assert_eq!(kinds(&events), ["message_received", "response"]);
    assert_eq!(events[0]["message_id"], "m1");
    assert!(!events[1]["content"].as_str().expect("content").is_empty());
}

#[tokio::test]
async fn a_reconnect_with_a_cursor_gets_the_rest_from_another_replica() {
    let fleet = fleet(2, &["--rate", "100"]).await;
    let (mut socket, connection) = Socket::open(&fleet.replicas[0], "/ws").await;
    let session = connection["session_id"].as_str().expect("a session").to_owned();
    socket.say(&json!({"type": "chat", "message": "[[tokens=100]] go"})).await;
    let mut events = socket.until("stream_chunk").await;
    for _ in 0..5 {
        events.push(socket.event().await);
    }
    drop(socket);
    let cursor = events.last().expect("an event")["cursor"].as_str().expect("a cursor").to_owned();
    let path = format!("/ws?session_id={session}&cursor={cursor}");
    let (mut socket, connection) = Socket::open(&fleet.replicas[1], &path).await;
    assert_eq!((&connection["resumed"], &connection["recovered"]), (&json!(true), &json!(true)));
    events.extend(socket.until("stream_end").await);
    let end = events.last().expect("an end");
    assert_eq!(end["full_response"], joined(&events).as_str());
}

#[tokio::test]
async fn a_cursor_that_cannot_be_served_gets_the_history_and_never_a_silent_hole() {
    let fleet = fleet(1, &[]).await;
    let session = id();
    chat(&fleet.replicas[0], &session, "hello").await;
    let path = format!("/ws?session_id={session}&cursor=1-1-abc-0-0");
    let (mut socket, connection) = Socket::open(&fleet.replicas[0], &path).await;
    assert_eq!((&connection["resumed"], &connection["recovered"]), (&json!(true), &json!(false)));
    let history = socket.event().await;
    assert_eq!(history["type"], "history");
    assert_eq!(history["count"], 2);
    socket.say(&json!({"type": "chat", "message": "on"})).await;
    socket.until("stream_end").await;
}

#[tokio::test]
async fn rest_streams_as_server_sent_events_and_closes_after_the_end() {
    let fleet = fleet(1, &[]).await;
    let body = json!({"message": "hello", "stream": true});
    let url = format!("{}/api/v1/chat/", fleet.replicas[0].url);
    let reply = send(http().post(url).json(&body)).await;
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    assert_eq!(reply.headers["cache-control"], "no-cache, no-transform");
    assert_eq!(reply.headers["x-accel-buffering"], "no");
    let text = reply.body.as_str().expect("a stream");
    let events: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: ").or(line.strip_prefix("data:")))
        .map(|json| serde_json::from_str(json).expect("JSON"))
        .collect();
    assert_eq!(
        kinds(&events),
        ["connection", "message_received", "stream_start", "stream_chunk", "stream_end"]
    );
    assert_eq!(events.last().expect("an end")["full_response"], joined(&events).as_str());
}

#[tokio::test]
async fn the_same_idempotency_key_gives_the_same_answer_from_any_replica() {
    let fleet = fleet(2, &[]).await;
    let key = id();
    let ask = |replica: &Process, message: &str| {
        let url = format!("{}/api/v1/chat", replica.url);
        send(http().post(url).header("Idempotency-Key", &key).json(&json!({"message": message})))
    };
    let first = ask(&fleet.replicas[0], "hello").await;
    assert_eq!(first.status, 200, "{}", first.body);
    let again = ask(&fleet.replicas[1], "hello").await;
    for field in ["generation_id", "response", "session_id"] {
        assert_eq!(first.body[field], again.body[field], "{field}");
    }
    let other = ask(&fleet.replicas[1], "another question").await;
    assert_eq!(other.status, 422, "{}", other.body);
    let asked = get(&fleet.ollama, "/sim/stats").await.body;
    assert_eq!(asked["started"], 1, "{asked}");
}

#[tokio::test]
async fn a_repeat_with_its_key_finds_its_answer_though_no_host_is_left() {
    let fleet = fleet(1, &[]).await;
    let url = format!("{}/api/v1/chat", fleet.replicas[0].url);
    let body = json!({"message": "hello"});
    let key = id();
    let ask = || send(http().post(&url).header("Idempotency-Key", &key).json(&body));
    let first = ask().await;
    assert_eq!(first.status, 200, "{}", first.body);
    fleet.ollama.kill();
    let unavailable = async || get(&fleet.replicas[0], "/api/v1/models").await.status == 503;
    assert!(eventually(LIMIT, unavailable).await, "the replica still has a host");
    let again = ask().await;
    assert_eq!(again.status, 200, "{}", again.body);
    assert_eq!(again.body["generation_id"], first.body["generation_id"]);
}

#[tokio::test]
async fn a_cancel_from_another_replica_stops_the_model_and_keeps_the_text_so_far() {
    let fleet = fleet(2, &["--rate", "50"]).await;
    let (mut socket, connection) = Socket::open(&fleet.replicas[0], "/ws").await;
    let session = connection["session_id"].as_str().expect("a session").to_owned();
    socket.say(&json!({"type": "chat", "message": "[[tokens=2000]] go"})).await;
    let mut events = socket.until("stream_chunk").await;
    let path = format!("/api/v1/chat/sessions/{session}/cancel");
    let cancelled = post(&fleet.replicas[1], &path, &json!({})).await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.body);
    assert_eq!(cancelled.body["status"], "cancelled");
    assert_eq!(cancelled.body["upstream_closed"], true);
    events.extend(socket.until("cancelled").await);
    assert_eq!(events.last().expect("an end")["full_response"], joined(&events).as_str());
    let running = get(&fleet.ollama, "/sim/stats").await.body;
    assert_eq!(running["running"], 0, "{running}");
    let history = get(&fleet.replicas[1], &format!("/api/v1/chat/sessions/{session}")).await;
    assert_eq!(history.body["messages"][1]["status"], "cancelled");
    let again = post(&fleet.replicas[1], &path, &json!({})).await;
    assert_eq!(again.status, 409, "{}", again.body);
}

#[tokio::test]
async fn an_invalid_request_is_a_problem_with_a_stable_code() {
    let fleet = fleet(1, &[]).await;
    let replica = &fleet.replicas[0];
    let url = format!("{}/api/v1/chat/", replica.url);
    let json_body = |body: &'static str| http().post(&url).body(body);
    for (request, status, code) in [
        (json_body("{"), 422, "json_invalid"),
        (json_body(r#"{"message":""}"#), 422, "validation_failed"),
        (json_body(r#"{"message":"x","temperature":3}"#), 422, "validation_failed"),
        (json_body(r#"{"message":"x","session_id":"mine"}"#), 422, "validation_failed"),
        (json_body(r#"{"message":"x","model":"nope"}"#), 404, "model_not_found"),
        (http().get(format!("{}/nowhere", replica.url)), 404, "not_found"),
        (http().put(&url), 405, "method_not_allowed"),
        (json_body("{}").header("Origin", "http://evil.example"), 403, "origin_not_allowed"),
        (json_body("{}").header("Sec-Fetch-Site", "cross-site"), 403, "origin_not_allowed"),
        (
            http().get(format!("{}/api/v1/chat/sessions/{}", replica.url, id())),
            404,
            "session_not_found",
        ),
    ] {
        let reply = send(request).await;
        assert_eq!(
            (reply.status, reply.body["code"].as_str()),
            (status, Some(code)),
            "{}",
            reply.body
        );
        assert_eq!(reply.headers["content-type"], "application/problem+json");
        assert!(reply.body["detail"].is_string() && reply.body["title"].is_string());
        assert_eq!(reply.body["status"], status);
    }
    let unknown = send(json_body(r#"{"message":"x","model":"nope"}"#)).await;
    assert!(unknown.body["detail"].as_str().expect("detail").contains("tinyllama:latest"));
    // Images make a body large; one that does not say its length has none.
    let big = |bytes: usize| format!(r#"{{"message":"{}"}}"#, "x".repeat(bytes));
    assert_eq!(send(http().post(&url).body(big(7 << 20))).await.status, 413);
    let chunks = [Ok::<_, std::io::Error>(big(600 << 10))];
    let chunked = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    assert_eq!(send(http().post(&url).body(chunked)).await.status, 413);
}

#[tokio::test]
async fn both_forms_of_each_path_answer_and_health_and_docs_are_there() {
    let fleet = fleet(1, &[]).await;
    for path in [
        "/health",
        "/health/detailed",
        "/health/live",
        "/health/ready",
        "/api/v1/chat/models",
        "/api/v1/chat/health",
        "/api/v1/models",
        "/openapi.json",
        "/metrics",
    ] {
        for form in [path.to_owned(), format!("{path}/")] {
            let reply = get(&fleet.replicas[0], &form).await;
            assert_eq!(reply.status, 200, "{form}: {}", reply.body);
            assert!(!reply.body.is_null(), "{form}");
        }
    }
    let api = get(&fleet.replicas[0], "/openapi.json").await.body;
    assert!(api["paths"]["/api/v1/chat/sessions/{session_id}/events"].is_object());
    let models = get(&fleet.replicas[0], "/api/v1/chat/models").await.body;
    assert_eq!(models["models"][0]["name"], "tinyllama:latest");
    assert_eq!(get(&fleet.replicas[0], "/").await.body["status"], "operational");
}

#[tokio::test]
async fn without_a_model_host_there_is_an_error_and_never_a_canned_answer() {
    let redis = RedisServer::start();
    let replica = jarvis(&redis.url(), "http://127.0.0.1:9", &[]);
    until_ok(&replica, "/health/ready").await;
    let reply = chat(&replica, &id(), "hello").await;
    assert_eq!((reply.status, reply.body["code"].as_str()), (503, Some("no_model_host")));
    assert!(reply.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_replica_serves_after_redis_starts_late_and_after_it_returns() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&[]);
    redis.kill();
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    assert_eq!(get(&replica, "/health/live").await.status, 200);
    assert_eq!(get(&replica, "/health/ready").await.status, 503);
    redis.restart();
    until_ok(&replica, "/health/ready").await;
    let (mut socket, connection) = Socket::open(&replica, "/ws").await;
    let session = connection["session_id"].as_str().expect("a session").to_owned();
    redis.kill();
    let asked = std::time::Instant::now();
    let reply = chat(&replica, &session, "hello").await;
    assert_eq!(reply.status, 503, "{}", reply.body);
    assert!(reply.headers.contains_key("retry-after"));
    assert!(asked.elapsed().as_secs_f64() < 4.5, "{:?}", asked.elapsed());
    redis.restart();
    until_ok(&replica, "/health/ready").await;
    let (reply, events) =
        tokio::join!(chat(&replica, &session, "hello"), socket.until("stream_end"));
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(joined(&events), reply.body["response"].as_str().expect("an answer"));
}

#[tokio::test]
async fn every_fault_of_ollama_in_mid_stream_is_a_clean_end_or_a_clean_error() {
    let fleet = fleet(1, &["--rate", "500"]).await;
    for fault in ["cut@0!", "error@0!", "end@0!", "garbage@0!", "status@500!"] {
        let (mut socket, _) = Socket::open(&fleet.replicas[0], "/ws").await;
        let message = format!("[[tokens=50 fault={fault}]] go");
        socket.say(&json!({"type": "chat", "message": message})).await;
        let events = socket.until("error").await;
        let error = events.last().expect("an error");
        assert!(
            error["code"].as_str().is_some_and(|code| code.starts_with("upstream_")),
            "{error}"
        );
        assert!(error["generation_id"].is_string() && error["retryable"] == true, "{error}");
        socket.say(&json!({"type": "chat", "message": "and on"})).await;
        socket.until("stream_end").await;
    }
}

#[test]
fn a_wrong_setting_is_refused_in_one_line_with_exit_code_64() {
    for wrong in [
        ["--listen", "nowhere"],
        ["--redis-url", "http://x"],
        ["--ollama-urls", "ftp://x"],
        ["--ollama-slots", "0"],
        ["--default-model", " "],
        ["--no-such-flag", "1"],
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_jarvis"))
            .arg("serve")
            .args(wrong)
            .output()
            .expect("jarvis");
        assert_eq!(output.status.code(), Some(64), "{wrong:?}");
        let printed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(printed.lines().count(), 1, "{printed}");
        assert!(printed.contains(wrong[0]), "{printed}");
    }
}

#[tokio::test]
async fn on_sigterm_sockets_are_closed_with_service_restart_and_the_process_ends() {
    let fleet = fleet(1, &[]).await;
    let (mut socket, _) = Socket::open(&fleet.replicas[0], "/ws").await;
    fleet.replicas[0].terminate();
    assert_eq!(socket.closed().await, 1012);
    assert_eq!(fleet.replicas[0].wait(), Some(0));
}

#[test]
fn the_settings_page_has_the_table_that_the_binary_prints() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_jarvis"))
        .arg("settings")
        .output()
        .expect("jarvis");
    let table = String::from_utf8(output.stdout).expect("text");
    let page = std::fs::read_to_string("docs/SETTINGS.md").expect("docs/SETTINGS.md");
    assert!(page.contains(table.trim()), "put this into docs/SETTINGS.md:\n{table}");
}

#[tokio::test]
async fn a_killed_replica_is_replaced_without_a_lost_character() {
    let fleet = fleet(3, &["--rate", "60"]).await;
    let message = "[[tokens=300]] survive";
    let expected = ollama_sim::script_answer("tinyllama:latest", message, None, 64);
    let Watched { session, mut watching, _asking, mut events } = watched(&fleet, message).await;
    // New replicas are watched within a second, in which 60 pieces come.
    for _ in 0..80 {
        events.push(watching.event().await);
    }
    fleet.replicas[0].kill();
    let killed = std::time::Instant::now();
    let next = watching.event().await;
    let paused = killed.elapsed();
    println!("the answer continued {paused:?} after the kill");
    assert!(paused < CONTINUED, "{paused:?}");
    events.push(next);
    events.extend(watching.until("stream_end").await);
    assert_eq!(joined(&events), expected);
    let end = events.last().expect("an end");
    assert_eq!(end["full_response"], expected.as_str());
    let history = get(&fleet.replicas[2], &format!("/api/v1/chat/sessions/{session}")).await.body;
    assert_eq!(history["messages"][1]["content"], expected.as_str());
    assert_eq!(history["messages"][1]["writers"], 2);
}

#[tokio::test]
async fn a_killed_replica_is_noticed_by_its_lost_connections_and_a_paused_one_is_not() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "60"]);
    let long_lease = [("JARVIS_LEASE_MS", "60000")];
    let replicas = ready_replicas(3, &redis.url(), &ollama.url, &long_lease).await;
    let path = format!("/ws?session_id={}", id());
    let (mut asking, _) = Socket::open(&replicas[0], &path).await;
    let message = "[[tokens=300]] survive";
    asking.say(&json!({"type": "chat", "message": message})).await;
    asking.until("stream_start").await;
    let (mut watching, _) = Socket::open(&replicas[1], &path).await;
    watching.until("stream_chunk").await;
    // New replicas are watched within a second, in which 60 pieces come.
    for _ in 0..60 {
        watching.until("stream_chunk").await;
    }
    replicas[2].pause();
    replicas[0].kill();
    // Within the limit of a test, and long before the lease is over.
    let end = watching.until("stream_end").await.pop().expect("an end");
    let expected = ollama_sim::script_answer("tinyllama:latest", message, None, 64);
    assert_eq!(end["full_response"], expected.as_str());
    let line = "jarvis_takeovers_total{reason=\"connection_lost\"} 1";
    assert!(metrics(&replicas[1]).await.contains(line));
    let heartbeats = redis.cli(&["HLEN", "jarvis:{queue}:heartbeats"]);
    assert_eq!(heartbeats.trim(), "2", "the paused replica is still a member");
    replicas[2].resume();
}

#[tokio::test]
async fn text_is_published_only_where_another_replica_listens() {
    let fleet = fleet(2, &["--rate", "100"]).await;
    let published = || {
        let stats = fleet.redis.cli(&["INFO", "commandstats"]);
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_spublish:calls="));
        let calls = calls.and_then(|calls| calls.split(',').next()?.parse::<usize>().ok());
        calls.expect("a number of calls")
    };
    let path = format!("/ws?session_id={}", id());
    let (mut asking, _) = Socket::open(&fleet.replicas[0], &path).await;
    let (mut beside, _) = Socket::open(&fleet.replicas[0], &path).await;
    let message = "[[tokens=100]] alone";
    asking.say(&json!({"type": "chat", "message": message})).await;
    let expected = ollama_sim::script_answer("tinyllama:latest", message, None, 64);
    assert_eq!(joined(&asking.until("stream_end").await), expected);
    assert_eq!(joined(&beside.until("stream_end").await), expected);
    let alone = published();
    assert!(alone < 20, "{alone} messages for 100 tokens");

    let (mut elsewhere, _) = Socket::open(&fleet.replicas[1], &path).await;
    elsewhere.say(&json!({"type": "ping"})).await;
    elsewhere.until("pong").await;
    let message = "[[tokens=100]] together";
    asking.say(&json!({"type": "chat", "message": message})).await;
    let expected = ollama_sim::script_answer("tinyllama:latest", message, None, 64);
    assert_eq!(joined(&asking.until("stream_end").await), expected);
    let events = elsewhere.until("stream_end").await;
    assert_eq!(joined(&events), expected);
    let pieces = events.iter().filter(|event| event["type"] == "stream_chunk").count();
    assert!(published() - alone >= pieces - 1, "{pieces} pieces came from the channel");
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_continued_without_a_lost_or_doubled_character() {
    let fleet = fleet(1, &["--rate", "300"]).await;
    for fault in ["cut@20", "error@20", "end@20"] {
        let message = format!("[[tokens=80 fault={fault}]] on and on");
        let expected = ollama_sim::script_answer("tinyllama:latest", &message, None, 64);
        let (mut socket, _) = Socket::open(&fleet.replicas[0], "/ws").await;
        socket.say(&json!({"type": "chat", "message": message})).await;
        let events = socket.until("stream_end").await;
        assert_eq!(joined(&events), expected, "{fault}");
        assert_eq!(events.last().expect("an end")["full_response"], expected.as_str());
    }
}

#[tokio::test]
async fn a_drained_replica_hands_over_its_turns_at_once() {
    let fleet = fleet(2, &["--rate", "60"]).await;
    let message = "[[tokens=300]] hand over";
    let expected = ollama_sim::script_answer("tinyllama:latest", message, None, 64);
    let Watched { mut watching, _asking, mut events, .. } = watched(&fleet, message).await;
    fleet.replicas[0].terminate();
    events.extend(watching.until("stream_end").await);
    assert_eq!(joined(&events), expected);
}
