//! The rules of the wire contract that no other test checks.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::client::{
    Socket, get, http, joined, kinds, narrow, post, send, server_sent, until_ok, with,
};
use support::eventually;
use support::host::stat;
use support::metrics::metrics;
use support::process::{LIMIT, Process, logged, logged_jarvis, ollama_sim};
use support::redis::RedisServer;
use support::setup::{Setup, setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

fn id() -> String {
    Uuid::new_v4().to_string()
}

fn text<'a>(event: &'a Value, field: &str) -> &'a str {
    event[field].as_str().unwrap_or_else(|| panic!("no {field} in {event}"))
}

fn handshake(replica: &Process, query: &str) -> reqwest::RequestBuilder {
    http()
        .get(format!("{}/ws{query}", replica.url))
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
}

async fn refused(request: reqwest::RequestBuilder) -> (u16, String) {
    let reply = send(request).await;
    assert_eq!(reply.headers["content-type"], "application/problem+json");
    assert_eq!(reply.body["status"], reply.status);
    assert!(reply.body["detail"].is_string(), "{}", reply.body);
    if matches!(reply.status, 429 | 503) {
        assert!(reply.headers.contains_key("retry-after"), "{}", reply.body);
    }
    (reply.status, text(&reply.body, "code").to_owned())
}

#[tokio::test]
async fn methods_and_protocols_are_answered_as_http_has_them() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    for path in ["/", "/health", "/api/v1/chat/models/", "/docs", "/openapi.json"] {
        let head = send(http().head(format!("{}{path}", replica.url))).await;
        assert_eq!((head.status, &head.body), (200, &json!("")), "{path}");
    }
    let options = send(http().request(reqwest::Method::OPTIONS, format!("{}/ws", replica.url)));
    let options = options.await;
    assert_eq!((options.status, options.headers["allow"].to_str().ok()), (405, Some("GET,HEAD")));
    for path in ["/ws", "/ws/", "/api/v1/chat/ws", "/api/v1/chat/ws/"] {
        let plain = get(replica, path).await;
        assert_eq!(plain.status, 426, "{path}");
        assert_eq!(plain.headers["upgrade"], "websocket");
        assert!(Socket::open(replica, path).await.1["session_id"].is_string(), "{path}");
    }
    for path in ["/api/v1/chat", "/api/v1/chat/message/", "/api/v1/chat/send"] {
        let reply = post(replica, path, &json!({"message": "[[tokens=3]] hi"})).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
    }
}

#[tokio::test]
async fn a_forbidden_handshake_is_refused_as_a_problem() {
    let limits = [
        ("JARVIS_MAX_SOCKETS", "1"),
        ("JARVIS_ALLOWED_HOSTS", "127.0.0.1"),
        ("JARVIS_ALLOWED_ORIGINS", "https://app.example"),
    ];
    let Setup { replica, .. } = &setup("500", &limits).await;
    let ask = |name, value| handshake(replica, "").header(name, value);
    let forbidden = |code: &str| (403, code.to_owned());
    assert_eq!(refused(ask("Origin", "http://x.example")).await, forbidden("origin_not_allowed"));
    assert_eq!(refused(ask("Sec-Fetch-Site", "cross-site")).await, forbidden("origin_not_allowed"));
    assert_eq!(refused(ask("Host", "rebound.example")).await, forbidden("host_not_allowed"));
    let invalid = (422, "validation_failed".to_owned());
    assert_eq!(refused(handshake(replica, "?session_id=mine")).await, invalid);
    let listed = send(
        http()
            .post(format!("{}/api/v1/chat", replica.url))
            .header("Origin", "https://app.example")
            .json(&json!({"message": "[[tokens=3]] hi"})),
    )
    .await;
    assert_eq!(listed.status, 200);
    assert_eq!(listed.headers["access-control-allow-origin"], "https://app.example");
    let open = Socket::open(replica, "/ws").await;
    let full = (503, "too_many_connections".to_owned());
    assert_eq!(refused(handshake(replica, "")).await, full);
    let stream = http().post(format!("{}/api/v1/chat", replica.url));
    assert_eq!(refused(stream.json(&json!({"message": "hi", "stream": true}))).await, full);
    drop(open);
}

#[tokio::test]
async fn a_client_that_keeps_sending_invalid_messages_is_closed_and_so_is_one_that_sends_too_much()
{
    let Setup { replica, .. } = &setup("500", &[]).await;
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    for _ in 0..20 {
        socket.text("rubbish").await;
        assert_eq!(socket.event().await["code"], "json_invalid");
    }
    socket.say(&json!({"type": "ping"})).await;
    assert_eq!(socket.event().await["type"], "pong");
    // The 21st within ten seconds.
    socket.text("rubbish").await;
    let (events, close) = socket.end().await;
    assert_eq!((events.len(), close.expect("a close").0), (0, 1008));
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    socket.text(&" ".repeat((512 << 10) + 1)).await;
    assert_eq!(socket.end().await.1.expect("a close").0, 1009);
}

#[tokio::test]
async fn a_request_without_stream_gets_one_response_and_other_sockets_get_the_stream() {
    let Setup { replica, .. } = &setup("300", &[]).await;
    let path = format!("/ws?session_id={}", id());
    let (mut asking, _) = Socket::open(replica, &path).await;
    let (mut other, _) = Socket::open(replica, &path).await;
    let ask = json!({"message": "[[tokens=40]] go", "stream": false, "message_id": "m"});
    asking.say(&ask).await;
    let (own, seen) = tokio::join!(asking.until("response"), other.until("stream_end"));
    assert_eq!(kinds(&own), ["message_received", "response"]);
    assert_eq!(kinds(&seen), ["message_received", "stream_start", "stream_chunk", "stream_end"]);
    let (response, end) = (&own[1], &seen[seen.len() - 1]);
    assert_eq!(response["content"], joined(&seen).as_str());
    for field in ["cursor", "generation_id", "usage", "context", "timestamp"] {
        assert!(!end[field].is_null(), "{field}");
        assert_eq!(response[field], end[field], "{field}");
    }
    assert_eq!(response["model"], "tinyllama:latest");
    // The same message again is the same turn.
    asking.say(&ask).await;
    let again = asking.until("response").await;
    assert_eq!(again[1]["generation_id"], response["generation_id"]);
    assert_eq!(again[1]["content"], response["content"]);
    // An end comes once.
    other.say(&json!({"type": "ping"})).await;
    assert_eq!(kinds(&other.until("pong").await), ["pong"]);
}

#[tokio::test]
async fn a_message_that_is_sent_again_before_its_end_came_is_not_answered_twice() {
    let Setup { replica, .. } = &setup("50", &[]).await;
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    let ask = json!({"message": "[[tokens=500]] go", "message_id": "m"});
    socket.say(&ask).await;
    socket.until("stream_chunk").await;
    // The turn is looked up after the cancel that comes before it.
    let (cancel, history) = (json!({"type": "cancel"}), json!({"type": "get_history"}));
    socket.say_at_once(&[&cancel, &ask, &history]).await;
    let events = socket.until("history").await;
    let ends = events.iter().filter(|event| event["type"] == "cancelled").count();
    assert_eq!(ends, 1, "{:?}", kinds(&events));
    assert!(events.iter().all(|event| event["type"] != "stream_start"), "{:?}", kinds(&events));
}

#[tokio::test]
async fn a_socket_that_requested_no_stream_resumes_from_any_event_without_a_hole() {
    let Setup { replica, .. } = &setup("50", &[]).await;
    let path = format!("/ws?session_id={}", id());
    let (mut asking, _) = Socket::open(replica, &path).await;
    let (mut other, _) = Socket::open(replica, &path).await;
    asking.say(&json!({"message": "[[tokens=60]] whole", "stream": false})).await;
    other.until("stream_chunk").await;
    other.say(&json!({"message": "[[tokens=3]] next"})).await;
    asking.until("message_received").await;
    // The cursor is not beyond the text that was kept for the answer in one piece.
    let next = asking.until("message_received").await;
    let cursor = text(&next[next.len() - 1], "cursor").to_owned();
    drop(asking);
    let (mut again, hello) = Socket::open(replica, &format!("{path}&cursor={cursor}")).await;
    assert_eq!(hello["recovered"], true);
    let events = again.until("stream_end").await;
    assert_eq!(events[events.len() - 1]["full_response"], joined(&events).as_str());
}

#[tokio::test]
async fn a_turn_that_waits_is_followed_by_its_name_from_any_cursor() {
    let Setup { replica, .. } = &setup("50", &[]).await;
    let session = id();
    let (mut socket, _) = Socket::open(replica, &format!("/ws?session_id={session}")).await;
    for message in ["[[tokens=40]] first", "[[tokens=3]] second"] {
        socket.say(&json!({"message": message})).await;
    }
    socket.until("message_received").await;
    let second = socket.until("message_received").await;
    let waiting = text(&second[second.len() - 1], "generation_id").to_owned();
    let url = format!("{}/api/v1/chat/sessions/{session}/events", replica.url);
    let follow = |cursor: &[u8]| {
        let cursor = reqwest::header::HeaderValue::from_bytes(cursor).expect("a header");
        let url = format!("{url}?generation_id={waiting}");
        send(http().get(url).header("Last-Event-ID", cursor))
    };
    for reply in [follow(b"none of ours").await, follow(b"\xff").await] {
        let (events, _) = server_sent(reply.body.as_str().expect("a stream"));
        let hello = &events[0];
        assert_eq!((&hello["resumed"], &hello["recovered"]), (&json!(true), &json!(false)));
        let end = &events[events.len() - 1];
        assert_eq!(end["full_response"], joined(&events).as_str(), "{:?}", kinds(&events));
    }
}

#[tokio::test]
async fn the_answer_of_a_turn_that_waits_is_not_in_a_history_and_starts_after_it() {
    let Setup { replica, .. } = &setup("50", &[("JARVIS_OLLAMA_SLOTS", "1")]).await;
    let (mut holding, _) = Socket::open(replica, "/ws").await;
    holding.say(&json!({"message": "[[tokens=1000]] holds the slot"})).await;
    let held = holding.until("stream_chunk").await;
    let session = id();
    let (mut asking, _) = Socket::open(replica, &format!("/ws?session_id={session}")).await;
    asking.say(&json!({"message": "[[tokens=3]] waits"})).await;
    asking.until("queued").await;
    let path = format!("/ws?session_id={session}&cursor=1-1-abc-0-0");
    let (mut socket, connection) = Socket::open(replica, &path).await;
    assert_eq!(connection["recovered"], false);
    let history = socket.event().await;
    assert_eq!((&history["type"], &history["answer"]), (&json!("history"), &Value::Null));
    assert_eq!(history["messages"][0]["content"], "[[tokens=3]] waits");
    let running = &held[held.len() - 1]["generation_id"];
    holding.say(&json!({"type": "cancel", "generation_id": running})).await;
    let events = socket.until("stream_end").await;
    let starts = events.iter().filter(|event| event["type"] == "stream_start").count();
    assert_eq!(starts, 1, "{:?}", kinds(&events));
    assert_eq!(events[events.len() - 1]["full_response"], joined(&events).as_str());
}

#[tokio::test]
async fn a_client_that_sends_far_too_much_without_reading_gets_the_reason_of_its_refusal() {
    let Setup { replica, .. } = &setup("50", &[]).await;
    let mut stream = narrow(replica).await;
    let body = vec![b' '; 10 << 20];
    let head = format!("POST /api/v1/chat HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.expect("room");
    stream.write_all(&body).await.expect("all of it is taken");
    let mut reply = vec![0; 4096];
    let read = stream.read(&mut reply).await.expect("an answer");
    let reply = String::from_utf8_lossy(&reply[..read]);
    assert!(reply.starts_with("HTTP/1.1 413") && reply.contains("body_too_large"), "{reply}");
}

#[tokio::test]
async fn the_history_is_read_page_by_page_over_a_websocket() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    socket.say(&json!({"type": "get_history"})).await;
    let empty = socket.event().await;
    assert_eq!((&empty["count"], &empty["messages"]), (&json!(0), &json!([])));
    for message in ["one", "two", "three"] {
        socket.say(&json!({"message": format!("[[tokens=3]] {message}")})).await;
        socket.until("stream_end").await;
    }
    socket.say(&json!({"type": "history", "limit": 2})).await;
    let newest = socket.event().await;
    assert_eq!((&newest["type"], &newest["count"]), (&json!("history"), &json!(2)));
    assert!(newest["cursor"].is_null() && newest["messages"][1]["role"] == "assistant");
    assert_eq!(newest["messages"][0]["content"], "[[tokens=3]] three");
    let before = text(&newest["messages"][0], "id");
    socket.say(&json!({"type": "get_history", "limit": 3, "before": before})).await;
    let older = socket.event().await;
    assert_eq!((&older["count"], &older["has_more"]), (&json!(3), &json!(true)));
    assert_eq!(older["messages"][1]["content"], "[[tokens=3]] two");
    socket.say(&json!({"type": "get_history", "before": id()})).await;
    assert_eq!(socket.event().await["code"], "message_not_found");
}

#[tokio::test]
async fn a_generation_is_cancelled_by_its_name_running_or_waiting() {
    let Setup { replica, ollama, .. } = &setup("50", &[]).await;
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    let turn =
        |name: &str| json!({"message": format!("[[tokens=500]] {name}"), "message_id": name});
    socket.say(&turn("first")).await;
    let first = socket.until("stream_chunk").await;
    let first = text(&first[0], "generation_id").to_owned();
    socket.say(&turn("second")).await;
    let second = socket.until("message_received").await;
    let second = text(&second[second.len() - 1], "generation_id").to_owned();
    for (generation, answered) in [(&second, false), (&first, true)] {
        socket.say(&json!({"type": "cancel", "generation_id": generation})).await;
        let cancelled = socket.until("cancelled").await;
        let cancelled = &cancelled[cancelled.len() - 1];
        assert_eq!(text(cancelled, "generation_id"), generation);
        assert_eq!(cancelled["upstream_closed"], true, "{cancelled}");
        assert_eq!(!text(cancelled, "full_response").is_empty(), answered, "{cancelled}");
    }
    for generation in [&second, &first] {
        socket.say(&json!({"type": "cancel", "generation_id": generation})).await;
        assert_eq!(socket.event().await["code"], "already_ended");
    }
    let stats = get(ollama, "/sim/stats").await.body;
    assert_eq!((&stats["running"], &stats["started"]), (&json!(0), &json!(1)), "{stats}");
}

#[tokio::test]
async fn a_history_may_be_cleared_while_a_turn_runs() {
    let Setup { replica, .. } = &setup("50", &[]).await;
    let session = id();
    let (mut socket, _) = Socket::open(replica, &format!("/ws?session_id={session}")).await;
    socket.say(&json!({"message": "[[tokens=500]] go"})).await;
    socket.until("stream_chunk").await;
    socket.say(&json!({"type": "clear_history"})).await;
    let events = socket.until("history_cleared").await;
    let ends = events.iter().filter(|event| event["type"] == "cancelled").count();
    assert_eq!(ends, 1, "a generation ends with one end");
    assert_eq!(events[events.len() - 1]["session_id"], session.as_str());
    assert!(events[events.len() - 1]["cursor"].is_string());
    socket.say(&json!({"type": "get_history"})).await;
    assert_eq!(socket.event().await["count"], 0);
    socket.say(&json!({"message": "[[tokens=3]] on"})).await;
    socket.until("stream_end").await;
    let path = format!("/api/v1/chat/sessions/{session}");
    let deleted = send(http().delete(format!("{}{path}", replica.url))).await;
    assert_eq!((deleted.status, &deleted.body["messages_deleted"]), (200, &json!(2)));
    assert_eq!(deleted.body["message"], format!("Session {session} cleared"));
    assert_eq!(get(replica, &path).await.status, 404);
}

#[tokio::test]
async fn the_ninth_turn_that_waits_is_refused_as_retryable() {
    let Setup { replica, .. } = &setup("50", &[]).await;
    let session = id();
    let (mut socket, _) = Socket::open(replica, &format!("/ws?session_id={session}")).await;
    for number in 0..10 {
        socket
            .say(&json!({"message": "[[tokens=500]] go", "message_id": number.to_string()}))
            .await;
    }
    let events = socket.until("error").await;
    let error = &events[events.len() - 1];
    assert_eq!((&error["code"], &error["retryable"]), (&json!("session_busy"), &json!(true)));
    assert_eq!(error["message_id"], "9");
    let url = format!("{}/api/v1/chat", replica.url);
    let turn = http().post(&url).json(&json!({"message": "hi", "session_id": session}));
    assert_eq!(refused(turn).await, (409, "session_busy".to_owned()));
    let keyed = http().post(&url).header("Idempotency-Key", "guess").body(r#"{"message":"x"}"#);
    assert_eq!(refused(keyed).await, (422, "validation_failed".to_owned()));
}

#[tokio::test]
async fn an_event_stream_resumes_after_the_last_event_that_was_seen() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    let session = id();
    let turn = json!({"message": "[[tokens=40]] go", "stream": true, "session_id": session});
    let streamed = post(replica, "/api/v1/chat", &turn).await;
    let (events, last) = server_sent(streamed.body.as_str().expect("a stream"));
    let generation = text(&events[events.len() - 1], "generation_id");
    let url = format!("{}/api/v1/chat/sessions/{session}/events", replica.url);
    let ended = http().get(format!("{url}?generation_id={generation}"));
    let last = last.expect("an id");
    assert_eq!(last, text(&events[events.len() - 1], "cursor"));
    assert_eq!(send(ended.header("Last-Event-ID", &last)).await.status, 204);
    assert_eq!(get(replica, &format!("/api/v1/chat/sessions/{}/events", id())).await.status, 404);
    // The stream resumes from the middle, by header or query; the header is the newer of the two.
    let middle = text(&events[3], "cursor");
    let by_query = http().get(format!("{url}?generation_id={generation}&cursor={middle}"));
    let by_header = http()
        .get(format!("{url}?generation_id={generation}&cursor={last}"))
        .header("Last-Event-ID", middle);
    for request in [by_query, by_header] {
        let reply = send(request).await;
        assert_eq!(reply.headers["cache-control"], "no-cache, no-transform");
        let (rest, _) = server_sent(reply.body.as_str().expect("a stream"));
        assert_eq!((&rest[0]["type"], &rest[0]["recovered"]), (&json!("connection"), &json!(true)));
        let seen: Vec<Value> = events[..4].iter().chain(&rest[1..]).cloned().collect();
        assert_eq!(rest[rest.len() - 1]["full_response"], joined(&seen).as_str());
    }
    // Without a cursor the stream has all events.
    let all = send(http().get(format!("{url}?generation_id={generation}"))).await;
    let (all, _) = server_sent(all.body.as_str().expect("a stream"));
    assert_eq!(all[all.len() - 1]["full_response"], joined(&all).as_str());
}

#[tokio::test]
async fn a_request_id_is_echoed_and_is_in_each_log_line_of_its_request() {
    let Setup { ollama, redis, .. } = &setup("500", &[]).await;
    let (replica, log) = logged_jarvis(&redis.url(), &ollama.url);
    until_ok(&replica, "/health/ready").await;
    let session = id();
    let turn = json!({"message": "[[tokens=3]] hi", "session_id": session});
    let ask = |id| http().post(format!("{}/api/v1/chat", replica.url)).header("X-Request-ID", id);
    let reply = send(ask("trace-7").json(&turn)).await;
    assert_eq!((reply.status, reply.headers["x-request-id"].to_str().ok()), (200, Some("trace-7")));
    let unfit = send(ask("two words").body("{")).await;
    assert_eq!((unfit.status, unfit.headers["x-request-id"].len()), (422, 36));
    let lines = std::fs::read_to_string(log).expect("a log");
    let answered = lines.lines().find(|line| line.contains("trace-7")).expect("a line");
    assert!(answered.contains(text(&reply.body, "generation_id")), "{answered}");
    assert!(!lines.contains(&session), "an anonymous session's name is its key");
}

#[tokio::test]
async fn an_invalid_field_is_reported_with_its_path() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    let body = json!({
        "message": "x", "max_tokens": 0, "seed": 1.5, "temperature": "hot", "stop": [""],
        "session_id": "mine", "unknown": {"is": "ignored"},
    });
    let reply = post(replica, "/api/v1/chat", &body).await;
    assert_eq!((reply.status, &reply.body["code"]), (422, &json!("validation_failed")));
    let errors = reply.body["errors"].as_array().expect("errors");
    let places: Vec<_> =
        errors.iter().map(|error| error["loc"][1].as_str().expect("loc")).collect();
    assert_eq!(places, ["temperature", "max_tokens", "seed", "stop", "session_id"]);
    assert!(errors.iter().all(|error| error["msg"].is_string() && error["type"].is_string()));
    for blank in [" ", "\u{85}", "\u{feff}\u{3000}\n"] {
        let reply = post(replica, "/api/v1/chat", &json!({"message": blank})).await;
        assert_eq!((reply.status, &reply.body["errors"][0]["loc"][1]), (422, &json!("message")));
    }
    let good = json!({
        "message": "[[tokens=3]] x", "max_tokens": 5_000_000_000_u64, "seed": -1, "temperature": 0,
        "stop": ["never", "ever"], "session_id": null, "model": null, "unknown": 1,
    });
    let reply = post(replica, "/api/v1/chat/", &good).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.body["model"], "tinyllama:latest");
    let path = format!("/api/v1/chat/sessions/{}", text(&reply.body, "session_id"));
    for query in ["?limit=501", "?skip=-1", "?limit=many"] {
        assert_eq!(get(replica, &format!("{path}{query}")).await.status, 422, "{query}");
    }
    let beyond = get(replica, &format!("{path}?skip=9007199254740991&limit=345")).await;
    assert_eq!((beyond.status, &beyond.body["messages"]), (200, &json!([])), "{}", beyond.body);
    let page = get(replica, &format!("{path}/?skip=1&limit=1")).await.body;
    assert_eq!((&page["total"], &page["messages"][0]["role"]), (&json!(2), &json!("assistant")));
    let renamed = send(http().patch(format!("{}{path}", replica.url)).body(r#"{"title":"new"}"#));
    assert_eq!(renamed.await.body["title"], "new");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_turn_only_where_it_requested_that() {
    let Setup { replica, ollama, .. } = &setup("50", &[]).await;
    for (on_disconnect, stream) in [("continue", false), ("cancel", false), ("cancel", true)] {
        let session = id();
        let (mut watching, _) = Socket::open(replica, &format!("/ws?session_id={session}")).await;
        let body = json!({
            "message": "[[tokens=100]] go", "session_id": session, "stream": stream,
            "on_disconnect": on_disconnect,
        });
        let url = format!("{}/api/v1/chat", replica.url);
        let asking = tokio::spawn(async move {
            let mut response = http().post(url).json(&body).send().await.expect("a response");
            while response.chunk().await.is_ok_and(|chunk| chunk.is_some()) {}
        });
        watching.until("stream_chunk").await;
        asking.abort();
        let end = if on_disconnect == "cancel" { "cancelled" } else { "stream_end" };
        watching.until(end).await;
    }
    // The event may come before the host has noticed that its client is gone.
    let stopped = async || stat(ollama, "running").await == 0;
    assert!(eventually(LIMIT, stopped).await, "a model still runs");
}

#[tokio::test]
async fn an_answer_that_is_late_is_a_504_and_is_found_with_its_key() {
    let Setup { replica, .. } = &setup("40", &[("JARVIS_REQUEST_TIMEOUT", "1")]).await;
    let key = id();
    let ask = || {
        http()
            .post(format!("{}/api/v1/chat", replica.url))
            .header("Idempotency-Key", &key)
            .json(&json!({"message": "[[tokens=60]] go"}))
    };
    assert_eq!(refused(ask()).await, (504, "timeout".to_owned()));
    // The answer grew meanwhile: the second wait is for the rest.
    let found = send(ask()).await;
    assert_eq!((found.status, &found.body["status"]), (200, &json!("success")), "{}", found.body);
}

#[tokio::test]
async fn an_empty_message_id_is_none_and_names_no_turn() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    let mut generations = Vec::new();
    for text in ["one", "two", "two"] {
        let message = format!("[[tokens=2]] {text}");
        socket.say(&json!({"message": message, "message_id": ""})).await;
        let events = socket.until("stream_end").await;
        assert_eq!(kinds(&events)[0], "message_received", "{events:?}");
        assert_eq!(
            (&events[0]["message"], &events[0]["message_id"]),
            (&json!(message), &Value::Null)
        );
        generations.push(text_of(&events, "generation_id"));
    }
    generations.dedup();
    assert_eq!(generations.len(), 3, "{generations:?}");
}

fn text_of(events: &[Value], field: &str) -> String {
    text(events.last().expect("an event"), field).to_owned()
}

#[tokio::test]
async fn a_key_names_the_same_turn_however_the_model_is_spelled() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    let key = id();
    let ask = |model: Value| {
        http()
            .post(format!("{}/api/v1/chat", replica.url))
            .header("Idempotency-Key", &key)
            .json(&json!({"message": "[[tokens=3]] hi", "model": model}))
    };
    let first = send(ask(json!("tinyllama"))).await;
    assert_eq!(first.status, 200, "{}", first.body);
    // The default model has the same name, and each answer has the name of its own request.
    for (model, named) in [
        (json!("TinyLlama"), "TinyLlama"),
        (json!("tinyllama:latest"), "tinyllama:latest"),
        (json!(" library/TINYLLAMA:LATEST "), "library/TINYLLAMA:LATEST"),
        (Value::Null, "tinyllama:latest"),
        (json!("tinyllama"), "tinyllama"),
    ] {
        let again = send(ask(model)).await;
        assert_eq!(again.status, 200, "{named}: {}", again.body);
        assert_eq!(again.body["generation_id"], first.body["generation_id"], "{named}");
        assert_eq!(again.body["model"], named);
    }
    assert_eq!(refused(ask(json!("tinyllama:other"))).await.0, 422, "another model");
}

#[tokio::test]
async fn the_nil_uuid_is_refused_as_a_key_as_it_is_as_a_session() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    for nil in ["00000000-0000-0000-0000-000000000000", "00000000000000000000000000000000"] {
        let request = http().post(format!("{}/api/v1/chat", replica.url));
        let body = json!({"message": "[[tokens=3]] hi", "session_id": id()});
        let reply = send(request.header("Idempotency-Key", nil).json(&body)).await;
        assert_eq!(reply.status, 422, "{nil}: {}", reply.body);
        let error = &reply.body["errors"][0];
        assert_eq!(
            (&error["type"], &error["loc"][1]),
            (&json!("uuid_nil"), &json!("Idempotency-Key"))
        );
    }
}

#[tokio::test]
async fn a_text_that_breaks_off_is_no_json_and_one_that_is_no_object_gets_another_error() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    let table = ["[1,", "12x", "[] x", "{} x", "tru", "\"x"].map(|body| (body, "json_invalid"));
    let others = ["[1]", "12", "\"x\"", "1e999"].map(|body| (body, "dict_type"));
    for (body, kind) in table.into_iter().chain(others) {
        let request = http().post(format!("{}/api/v1/chat", replica.url)).body(body);
        let reply = send(request).await;
        assert_eq!((reply.status, &reply.body["errors"][0]["type"]), (422, &json!(kind)), "{body}");
        socket.text(body).await;
        let code = if kind == "dict_type" { "not_an_object" } else { kind };
        assert_eq!(socket.event().await["code"], code, "{body}");
    }
}

#[tokio::test]
async fn a_field_that_is_named_as_a_library_s_own_means_nothing() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    let hidden = json!({"$serde_json::private::RawValue": r#"{"message": "[[tokens=3]] hi"}"#});
    let reply = post(replica, "/api/v1/chat", &hidden).await;
    assert_eq!((reply.status, &reply.body["errors"][0]["loc"][1]), (422, &json!("message")));
    let mut beside = hidden;
    beside["message"] = json!("[[tokens=3]] hi");
    assert_eq!(post(replica, "/api/v1/chat", &beside).await.status, 200);
}

#[tokio::test]
async fn a_handshake_has_no_body() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    for path in ["", "?session_id="] {
        let with_body = || handshake(replica, path);
        let code = (400, "handshake_with_body".to_owned());
        assert_eq!(refused(with_body().body("hello")).await, code);
        let chunked =
            reqwest::Body::wrap_stream(futures_util::stream::iter([Ok::<_, std::io::Error>("x")]));
        let chunked = with_body().header("Transfer-Encoding", "chunked").body(chunked);
        assert_eq!(refused(chunked).await, code);
        let empty = send(with_body().header("Content-Length", "0").body("")).await;
        assert_eq!(empty.status, 101);
        let connection = empty.headers["connection"].to_str().expect("text").to_ascii_lowercase();
        assert_eq!(connection, "upgrade");
    }
}

/// Begins a session by a key, one by a response, a conversation, and a session on a socket by a key of its
/// own. Returns the texts that open these sessions, or repeat their turns.
async fn named_sessions(replica: &Process) -> Vec<String> {
    let [key, message_id, of_socket] = [(); 3].map(|()| id());
    let question = json!({"message": "[[tokens=2]] hi"});
    let keyed = http().post(format!("{}/api/v1/chat", replica.url)).header("Idempotency-Key", &key);
    let keyed = send(keyed.json(&question)).await;
    assert_eq!(keyed.status, 200, "{}", keyed.body);
    let request = json!({"model": "tinyllama", "input": "[[tokens=2]] hi"});
    let response = post(replica, "/v1/responses", &request).await;
    let conversation = post(replica, "/v1/conversations", &json!({})).await;
    let [response, conversation] = [&response, &conversation].map(|reply| text(&reply.body, "id"));
    for path in [format!("/v1/responses/{response}"), format!("/v1/conversations/{conversation}")] {
        assert_eq!(get(replica, &path).await.status, 200, "{path}");
        assert_eq!(get(replica, &format!("{path}/nothing")).await.status, 404, "{path}");
    }
    let (mut socket, _) = Socket::open(replica, &format!("/ws?session_id={of_socket}")).await;
    socket.say(&with(question, "message_id", json!(message_id))).await;
    socket.until("stream_end").await;
    let digits = [response, conversation].map(|id| id.split_once('_').expect("an id").1.to_owned());
    let session = text(&keyed.body, "session_id").to_owned();
    let names = [key, message_id, of_socket, session];
    let bare = names.clone().map(|name| name.replace('-', ""));
    names.into_iter().chain(bare).chain(digits).collect()
}

#[tokio::test]
async fn a_websocket_is_logged_as_it_opens_and_as_it_closes_with_its_code() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&[]));
    let (replica, log) = logged_jarvis(&redis.url(), &ollama.url);
    until_ok(&replica, "/health/ready").await;
    let session = id();
    for lost in [false, true] {
        let (mut socket, _) = Socket::open(&replica, &format!("/ws?session_id={session}")).await;
        if !lost {
            socket.frame(Message::Close(None)).await;
            socket.end().await;
        }
        drop(socket);
    }
    let mut lines = Vec::new();
    let complete = eventually(LIMIT, async || {
        let log = std::fs::read_to_string(&log).expect("the log");
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines = events
            .filter(|line| line["status"] == 101 || line["message"] == "websocket closed")
            .collect();
        lines.len() == 4
    });
    assert!(complete.await, "{lines:?}");
    let shortened = &session[..8];
    let of = |name: &'static str| lines.iter().filter(move |line| line["message"] == name);
    for opened in of("request handled") {
        let request = &opened["spans"][0];
        assert_eq!(request["session"], shortened, "{opened}");
        assert!(request["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{opened}");
    }
    let closed: Vec<_> = of("websocket closed").map(|line| line["code"].clone()).collect();
    assert_eq!(closed, [1005, 1006]);
    assert!(of("websocket closed").all(|line| line["session"] == shortened), "{lines:?}");
}

#[tokio::test]
async fn no_log_line_holds_the_identifier_of_a_session_or_a_key_whatever_the_path() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let settings = [("JARVIS_LOG", "debug,fred=off"), ("JARVIS_LOG_FORMAT", "json")];
    let (replica, log) = logged(&redis.url(), &ollama.url, &settings);
    let replica = &replica;
    until_ok(replica, "/health/ready").await;
    let session = id();
    let asked = json!({"message": "[[tokens=2]] hi", "session_id": session});
    assert_eq!(post(replica, "/api/v1/chat", &asked).await.status, 200);
    let bare = session.replace('-', "");
    let mut paths = Vec::new();
    for id in [
        &session,
        &bare,
        &session.to_uppercase(),
        &format!("%{:02X}{}", session.as_bytes()[0], &session[1..]),
    ] {
        for path in [
            format!("/api/v1/chat/session/{id}"),
            format!("/api/v1/chat/sessions/{id}/nothing"),
            format!("/api/v1/chat/sessions/{id}/cancel/x"),
            format!("/{id}"),
            format!("/api/v1/chat/sessions//{id}"),
            format!("/docs/{id}"),
            format!("/nowhere?session_id={id}"),
        ] {
            assert_eq!(get(replica, &path).await.status, 404, "{path}");
            paths.push(path);
        }
        let path = format!("/api/v1/chat/sessions/{id}/");
        assert_eq!(get(replica, &path).await.status, 200, "{path}");
        let put = http().put(format!("{}{path}", replica.url));
        assert_eq!(send(put).await.status, 405);
    }
    let mut names = named_sessions(replica).await;
    names.extend([session, bare]);
    let mut lines = String::new();
    let complete = eventually(LIMIT, async || {
        lines = std::fs::read_to_string(&log).expect("the log");
        lines.matches("request handled").count() >= paths.len() + 16
    });
    assert!(complete.await, "the log has not all requests");
    assert!(lines.contains(r#""level":"DEBUG""#), "the log is at debug");
    let lower = lines.to_ascii_lowercase();
    for secret in names.iter().map(|name| &name[1..]) {
        assert!(
            !lower.contains(secret),
            "{}",
            lines
                .lines()
                .find(|line| line.to_ascii_lowercase().contains(secret))
                .unwrap_or_default()
        );
    }
    assert!(lines.contains("/api/v1/chat/sessions/{session_id}"), "the route is not in the log");
    let metrics = metrics(replica).await.to_ascii_lowercase();
    assert!(metrics.contains(r#"route="/api/v1/chat/sessions/{session_id}""#), "no route");
    assert!(names.iter().all(|name| !metrics.contains(&name[1..])), "{metrics}");
}
