//! A response that comes before the request was read nevertheless reaches its client, and a client
//! that has sent its whole request gets its answer.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::client::{self, Socket, get, joined, post, send, server_sent, until_ok};
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::raw_http::{Framing, Raw};
use support::redis::RedisServer;
use support::setup::{Setup, setup};
use uuid::Uuid;

const KEPT: [usize; 5] = [0, 1_000, 30_000, 100_000, 1_000_000];
const TOO_LONG: usize = 9_000_000;
/// The bytes of a body that the server reads.
const LARGEST: usize = 512 << 10;
/// The bytes that images add to a body of declared length.
const IMAGES: usize = 6 << 20;
const CHAT: &str = "/api/v1/chat/";

/// Starts a replica that allows one host name.
async fn guarded(rate: &str) -> Setup {
    setup(rate, &[("JARVIS_ALLOWED_HOSTS", "127.0.0.1")]).await
}

/// A refused request, with its status where the body is read and where it is not.
struct Refusal {
    request: (&'static str, String, &'static str),
    status: u16,
    too_large: u16,
}

/// Returns every kind of refusal.
async fn refusals(replica: &Process) -> Vec<Refusal> {
    let refusal = |request: (&'static str, &str, &'static str), status, too_large| {
        let request = (request.0, request.1.to_owned(), request.2);
        Refusal { request, status, too_large }
    };
    let early = |request, status| refusal(request, status, status);
    let ended = post(replica, CHAT, &json!({"message": "[[tokens=1]] hi"})).await;
    assert_eq!(ended.status, 200, "{}", ended.body);
    let ended = ended.body["session_id"].as_str().expect("a session").to_owned();
    let cancel = |session: &str| format!("/api/v1/chat/sessions/{session}/cancel");
    vec![
        early(("POST", "/nowhere", ""), 404),
        early(("POST", "/health", ""), 405),
        early(("PUT", CHAT, ""), 405),
        early(("POST", CHAT, "Origin: http://x.example\r\n"), 403),
        early(("POST", CHAT, "Sec-Fetch-Site: cross-site\r\n"), 403),
        early(("POST", CHAT, "Host: rebound.example\r\n"), 403),
        early(("POST", CHAT, "Content-Encoding: gzip\r\n"), 415),
        early(("POST", &cancel("mine"), ""), 422),
        early(("DELETE", &format!("/api/v1/chat/sessions/{}", Uuid::new_v4()), ""), 404),
        refusal(("POST", &cancel(&Uuid::new_v4().to_string()), ""), 404, 413),
        refusal(("POST", &cancel(&ended), ""), 409, 413),
        refusal(("POST", CHAT, ""), 422, 413),
    ]
}

impl Refusal {
    fn status(&self, bytes: usize, framing: Framing) -> u16 {
        let takes_images = self.request.1 == CHAT && matches!(framing, Framing::ContentLength);
        let largest = if takes_images { LARGEST + IMAGES } else { LARGEST };
        if bytes > largest { self.too_large } else { self.status }
    }

    async fn send(&self, raw: &mut Raw, bytes: usize, framing: Framing) -> bool {
        let (method, path, headers) = &self.request;
        let what = format!("{method} {path} {headers:?} {bytes} {framing:?}");
        let sent = raw.request((method, path, headers), bytes, framing).await;
        sent.unwrap_or_else(|error| panic!("{what} cannot be sent: {error}"));
        let response = raw.response().await;
        let response = response.unwrap_or_else(|error| panic!("{what} has no response: {error}"));
        assert_eq!(response.status, self.status(bytes, framing), "{what}: {}", response.body);
        let problem: Value = serde_json::from_str(&response.body).expect("a problem");
        assert_eq!(problem["status"], response.status, "{what}");
        response.closes()
    }
}

#[tokio::test]
async fn a_refused_request_whose_body_is_within_the_bound_keeps_its_connection() {
    let Setup { replica, .. } = &guarded("0").await;
    let refusals = refusals(replica).await;
    for framing in [Framing::ContentLength, Framing::Chunked] {
        // All requests use the same connection, one after another.
        let mut raw = Raw::connect(replica).await;
        for refusal in &refusals {
            for bytes in KEPT {
                assert!(!refusal.send(&mut raw, bytes, framing).await, "{:?}", refusal.request);
            }
        }
        raw.request(("GET", "/health/live", ""), 0, framing).await.expect("an open connection");
        assert_eq!(raw.response().await.expect("a response").status, 200);
    }
}

#[tokio::test]
async fn a_refused_request_whose_body_is_beyond_the_bound_gets_its_response_and_a_close() {
    let Setup { replica, .. } = &guarded("0").await;
    for refusal in &refusals(replica).await {
        for framing in [Framing::ContentLength, Framing::Chunked] {
            let mut raw = Raw::connect(replica).await;
            assert!(refusal.send(&mut raw, TOO_LONG, framing).await, "{:?}", refusal.request);
            assert_eq!(raw.rest().await.expect("an end and no reset"), "");
        }
    }
}

#[tokio::test]
async fn a_refusal_beyond_the_bound_reaches_a_client_that_offers_an_upgrade() {
    let Setup { replica, .. } = &guarded("0").await;
    let piece = vec![b'x'; 50_000];
    for (path, protocol) in [("/nowhere", "foo"), ("/nowhere", "h2c"), ("/nowhere", "websocket")] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n\
             Upgrade: {protocol}\r\nContent-Length: {TOO_LONG}\r\n\r\n"
        );
        for _ in 0..5 {
            let mut raw = Raw::connect(replica).await;
            raw.write(head.as_bytes()).await.expect("an open connection");
            let response = raw.response().await.expect("a response");
            assert_eq!((response.status, response.closes()), (404, true), "{protocol}");
            for _ in 0..TOO_LONG / piece.len() {
                raw.write(&piece).await.expect("no reset while the client still sends");
            }
            raw.half_close().await;
            assert_eq!(raw.rest().await.expect("an end and no reset"), "", "{protocol}");
        }
    }
}

#[tokio::test]
async fn a_refusal_beyond_the_bound_reaches_a_client_that_pipelines() {
    let Setup { replica, .. } = &guarded("0").await;
    let live = "GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    let large =
        format!("POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {TOO_LONG}\r\n\r\n");
    let piece = vec![b'x'; 50_000];
    for (last, status) in [(large.as_str(), 404), ("NO HTTP\r\n\r\n", 400)] {
        for _ in 0..10 {
            let mut raw = Raw::connect(replica).await;
            raw.write(format!("{live}{live}{last}").as_bytes()).await.expect("an open connection");
            for expected in [200, 200, status] {
                let response = raw.response().await.expect("a response");
                assert_eq!((response.status, response.closes()), (expected, expected != 200));
            }
            for _ in 0..TOO_LONG / piece.len() {
                raw.write(&piece).await.expect("no reset while the client still sends");
            }
            raw.half_close().await;
            assert_eq!(raw.rest().await.expect("an end and no reset"), "");
        }
    }
}

#[tokio::test]
async fn a_body_that_comes_a_moment_after_its_head_does_not_cost_the_connection() {
    let Setup { replica, .. } = &guarded("0").await;
    for framing in ["Content-Length: 2\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"] {
        let mut raw = Raw::connect(replica).await;
        for _ in 0..20 {
            let head = format!("POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n{framing}");
            raw.write(head.as_bytes()).await.expect("an open connection");
            // A client writes its head and its body apart, within the second that the server waits
            // for the body.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let body: &[u8] =
                if framing.starts_with('C') { b"{}" } else { b"2\r\n{}\r\n0\r\n\r\n" };
            raw.write(body).await.expect("an open connection");
            let response = raw.response().await.expect("a response");
            assert_eq!((response.status, response.closes()), (404, false));
        }
    }
}

#[tokio::test]
async fn a_slow_body_of_a_refused_request_is_waited_for_a_second_and_its_client_answered() {
    let Setup { replica, .. } = &guarded("0").await;
    let mut raw = Raw::connect(replica).await;
    let head = "POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n";
    raw.write(head.as_bytes()).await.expect("an open connection");
    let began = Instant::now();
    let mut byte = tokio::time::interval(Duration::from_millis(100));
    let response = loop {
        tokio::select! {
            response = raw.response() => break response.expect("a response"),
            // The response is in one segment, so that a timeout of the read loses no byte of it.
            _ = byte.tick() => {}
        }
        raw.write(b"x").await.expect("an open connection");
    };
    assert_eq!((response.status, response.closes()), (404, true));
    // Without a limit the body would take hours.
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    for _ in 0..10 {
        byte.tick().await;
        raw.write(b"x").await.expect("no reset while the client still sends");
    }
    assert_eq!(raw.rest().await.expect("an end and no reset"), "");
}

#[tokio::test]
async fn of_a_body_without_end_a_bounded_part_is_read() {
    let Setup { replica, .. } = &guarded("0").await;
    let mut raw = Raw::connect(replica).await;
    let head = "POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000000\r\n\r\n";
    raw.write(head.as_bytes()).await.expect("an open connection");
    let (piece, mut sent) = (vec![b'x'; 64 << 10], 0);
    while raw.write(&piece).await.is_ok() {
        sent += piece.len();
        assert!(sent < 64 << 20, "the server reads on and on");
    }
    assert!(sent > 1 << 20, "the server read {sent} bytes only");
}

#[tokio::test]
async fn a_client_that_sends_nothing_after_its_refusal_is_disconnected() {
    let Setup { replica, .. } = &guarded("0").await;
    let mut raw = Raw::connect(replica).await;
    let head = "POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000000\r\n\r\n";
    raw.write(head.as_bytes()).await.expect("an open connection");
    assert_eq!(raw.response().await.expect("a response").status, 404);
    let began = Instant::now();
    // A byte for a closed connection resets it; the next one shows that.
    while raw.write(b"x").await.is_ok() {
        assert!(began.elapsed() < LIMIT, "the server still waits for more");
        // The time in which the server drops what still comes.
        tokio::time::sleep(Duration::from_secs(6)).await;
    }
}

#[tokio::test]
async fn a_client_that_expects_100_continue_is_refused_without_it() {
    let Setup { replica, .. } = &guarded("0").await;
    let expecting = |path: &str, bytes: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: 100-continue\r\n\
             Content-Length: {bytes}\r\n\r\n"
        )
    };
    for (path, bytes, status) in
        [("/nowhere", 1_000, 404), (CHAT, TOO_LONG, 413), (CHAT, 2_000_000_000, 413)]
    {
        let mut raw = Raw::connect(replica).await;
        raw.write(expecting(path, bytes).as_bytes()).await.expect("an open connection");
        let response = raw.response().await.expect("a response");
        assert_eq!((response.status, response.closes()), (status, true), "{path} {bytes}");
        assert_eq!(raw.rest().await.expect("an end and no reset"), "");
    }
    // A client that has waited long enough nevertheless sends its body.
    let mut raw = Raw::connect(replica).await;
    raw.write(expecting("/nowhere", 100_000).as_bytes()).await.expect("an open connection");
    raw.write(&vec![b'x'; 100_000]).await.expect("no reset");
    assert_eq!(raw.response().await.expect("a response").status, 404);
    assert_eq!(raw.rest().await.expect("an end and no reset"), "");
    // A body that is wanted is requested by `100 Continue`.
    let mut raw = Raw::connect(replica).await;
    raw.write(expecting(CHAT, 2).as_bytes()).await.expect("an open connection");
    assert_eq!(raw.response().await.expect("a word").status, 100);
    raw.write(b"{}").await.expect("an open connection");
    let response = raw.response().await.expect("a response");
    assert_eq!((response.status, response.closes()), (422, false));
}

#[tokio::test]
async fn bytes_that_are_no_http_are_refused_without_a_reset() {
    let Setup { replica, .. } = &guarded("0").await;
    for (head, status) in [("NO HTTP\r\n\r\n".to_owned(), 400), (huge_head(), 431)] {
        let mut raw = Raw::connect(replica).await;
        raw.write(head.as_bytes()).await.expect("an open connection");
        assert_eq!(raw.response().await.expect("a response").status, status);
        for _ in 0..50 {
            raw.write(&[b'x'; 10_000]).await.expect("no reset while the client still sends");
        }
        raw.half_close().await;
        assert_eq!(raw.rest().await.expect("an end and no reset"), "");
    }
}

fn huge_head() -> String {
    format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: {}\r\n", "x".repeat(200_000))
}

fn chat_request(body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!("POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n{body}")
}

#[tokio::test]
async fn a_client_that_has_sent_its_last_byte_still_gets_its_answer() {
    let Setup { replica, .. } = &guarded("20").await;
    for on_disconnect in ["continue", "cancel"] {
        let ask = |stream| {
            json!({
                "message": "[[tokens=20]] hi", "stream": stream, "on_disconnect": on_disconnect,
            })
        };
        let mut raw = Raw::connect(replica).await;
        raw.write(chat_request(&ask(true)).as_bytes()).await.expect("an open connection");
        raw.half_close().await;
        let stream = raw.rest().await.expect("the whole stream");
        // The lines with the lengths of the chunks are removed.
        let (_, stream) = stream.split_once("\r\n\r\n").expect("a head");
        let stream: String = stream.split("\r\n").skip(1).step_by(2).collect();
        let (events, _) = server_sent(&stream);
        let end = events.last().expect("an end");
        assert_eq!(
            (&end["type"], &end["full_response"]),
            (&json!("stream_end"), &json!(joined(&events)))
        );

        let mut raw = Raw::connect(replica).await;
        raw.write(chat_request(&ask(false)).as_bytes()).await.expect("an open connection");
        raw.half_close().await;
        let response = raw.response().await.expect("a response");
        assert_eq!(response.status, 200, "{}", response.body);
        let answer: Value = serde_json::from_str(&response.body).expect("JSON");
        // A client that wants its turn cancelled when it leaves, and ends its direction, gets the
        // cancel.
        let reason = if on_disconnect == "cancel" { "cancelled" } else { "stop" };
        assert_eq!(answer["finish_reason"], reason, "{answer}");
        assert_eq!(raw.rest().await.expect("an end and no reset"), "");
    }
    let mut raw = Raw::connect(replica).await;
    raw.write(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await.expect("a request");
    raw.half_close().await;
    assert_eq!(raw.response().await.expect("a response").status, 200);
}

#[tokio::test]
async fn a_stream_whose_client_is_gone_ends_although_nothing_is_written_to_it() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "0"]);
    let replica = &jarvis(&redis.url(), &ollama.url, &[("JARVIS_MAX_SOCKETS", "3")]);
    until_ok(replica, "/health/ready").await;
    let session = Uuid::new_v4().to_string();
    let (mut watching, _) = Socket::open(replica, &format!("/ws?session_id={session}")).await;
    let turn = |message: &str| {
        json!({
            "message": message, "session_id": session, "stream": true, "on_disconnect": "cancel",
        })
    };
    let open =
        |turn: Value| client::http().post(format!("{}{CHAT}", replica.url)).json(&turn).send();
    // The first token never comes.
    let hung = open(turn("[[fault=hang]] hi")).await.expect("a stream");
    watching.until("stream_start").await;
    let path = format!("/api/v1/chat/sessions/{session}/events");
    let silent =
        client::http().get(format!("{}{path}", replica.url)).send().await.expect("a stream");
    assert_eq!((hung.status().as_u16(), silent.status().as_u16()), (200, 200));
    assert_eq!(open(turn("hi")).await.expect("a response").status().as_u16(), 503, "no room");
    drop((silent, hung));
    watching.until("cancelled").await;
    // Both turns have ended, long before the next comment would have been written to their clients.
    let began = Instant::now();
    let mut again = Vec::new();
    while again.len() < 2 {
        let events =
            client::http().get(format!("{}{path}", replica.url)).send().await.expect("a response");
        if events.status().as_u16() == 200 {
            again.push(events);
        }
        assert!(began.elapsed() < Duration::from_secs(15), "no room after {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_refusal_names_the_setting_that_would_allow_it() {
    let Setup { replica, .. } = &guarded("0").await;
    for (header, value, setting) in [
        ("Origin", "http://x.example", "JARVIS_ALLOWED_ORIGINS"),
        ("Sec-Fetch-Site", "cross-site", "JARVIS_ALLOWED_ORIGINS"),
        ("Host", "rebound.example", "JARVIS_ALLOWED_HOSTS"),
    ] {
        let asked = client::http().post(format!("{}{CHAT}", replica.url)).header(header, value);
        let refused = send(asked.json(&json!({"message": "hi"}))).await;
        assert_eq!(refused.status, 403);
        let detail = refused.body["detail"].as_str().expect("a detail");
        assert!(detail.contains(setting), "{detail}");
    }
}

#[tokio::test]
async fn requests_are_taken_in_the_forms_that_the_original_took() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--models", "tinyllama:latest,think:latest"]);
    let replica = &jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(replica, "/health/ready").await;
    let ask =
        |body: Vec<u8>| send(client::http().post(format!("{}{CHAT}", replica.url)).body(body));
    let say = |fields: &str| format!(r#"{{"message": "[[tokens=3]] hi"{fields}}}"#).into_bytes();
    let streams = |reply: &client::Reply| {
        reply.headers["content-type"].to_str().is_ok_and(|kind| kind == "text/event-stream")
    };
    for yes in [r#""true""#, r#""TRUE""#, r#""1""#, "1", "1.0", r#""yes""#, r#""on""#, r#""t""#] {
        let reply = ask(say(&format!(r#", "stream": {yes}"#))).await;
        assert!(reply.status == 200 && streams(&reply), "{yes}: {}", reply.body);
    }
    for no in [r#""false""#, "0", r#""0""#, r#""no""#, r#""off""#, r#""n""#, r#""F""#] {
        let reply = ask(say(&format!(r#", "stream": {no}"#))).await;
        assert_eq!((reply.status, &reply.body["status"]), (200, &json!("success")), "{no}");
    }
    for fields in [
        r#", "max_tokens": -1"#,
        r#", "max_tokens": "5.0", "temperature": "0.5", "seed": 7.0"#,
        r#", "session_id": """#,
        r#", "stop": "X""#,
        r#", "note": "\ud800""#,
        r#", "\ud800": 1, "think": "yes""#,
    ] {
        let reply = ask(say(fields)).await;
        assert_eq!(reply.status, 200, "{fields}: {}", reply.body);
    }
    let marked = ask([b"\xef\xbb\xbf".to_vec(), say("")].concat()).await;
    assert_eq!(marked.status, 200, "{}", marked.body);
    let thinking = r#", "think": "high", "model": "think:latest", "stop": "X", "max_tokens": -1"#;
    assert_eq!(ask(say(thinking)).await.status, 200);
    let asked = get(&ollama, "/sim/requests").await.body;
    let asked = asked["requests"].as_array().expect("requests");
    let last = asked.iter().rfind(|asked| asked["path"] == "/api/chat").expect("a request");
    let body = &last["request"];
    assert_eq!(
        (&body["think"], &body["options"]["stop"]),
        (&json!("high"), &json!(["X"])),
        "{last}"
    );
    assert_eq!(body["options"]["num_predict"], u32::MAX);
    for (fields, field, kind) in [
        (r#", "model": "\ud800""#, "model", "string_unicode"),
        (r#", "session_id": "00000000-0000-0000-0000-000000000000""#, "session_id", "uuid_nil"),
        (r#", "stream": 2"#, "stream", "bool_type"),
        (r#", "max_tokens": -2"#, "max_tokens", "out_of_range"),
        (r#", "think": "hardest""#, "think", "enum"),
    ] {
        let reply = ask(say(fields)).await;
        assert_eq!(reply.status, 422, "{fields}: {}", reply.body);
        let error = &reply.body["errors"][0];
        assert_eq!((&error["loc"][1], &error["type"]), (&json!(field), &json!(kind)), "{fields}");
    }
    for coding in ["gzip", "br", "identity, gzip", "deflate"] {
        let compressed = client::http().post(format!("{}{CHAT}", replica.url));
        let reply = send(compressed.header("Content-Encoding", coding).body(say(""))).await;
        assert_eq!((reply.status, &reply.body["code"]), (415, &json!("encoding_not_supported")));
        assert!(reply.body["detail"].as_str().is_some_and(|detail| detail.contains("identity")));
        assert_eq!(reply.headers["accept-encoding"], "identity");
    }
    let plain = client::http()
        .post(format!("{}{CHAT}", replica.url))
        .header("Content-Encoding", "Identity");
    assert_eq!(send(plain.body(say(""))).await.status, 200);
}

#[tokio::test]
async fn over_a_websocket_the_same_forms_are_taken() {
    let Setup { replica, .. } = &guarded("0").await;
    let (_, empty) = Socket::open(replica, "/ws?session_id=").await;
    let session: Uuid =
        empty["session_id"].as_str().and_then(|id| id.parse().ok()).expect("a UUID");
    assert!(!session.is_nil());
    let nil = format!("{}/ws?session_id={}", replica.url, Uuid::nil());
    let refused = send(
        client::http()
            .get(nil)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    )
    .await;
    assert_eq!((refused.status, &refused.body["errors"][0]["type"]), (422, &json!("uuid_nil")));
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    socket.text(r#"{"message": "a\ud800", "message_id": "1"}"#).await;
    let error = socket.event().await;
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("validation_failed")));
    assert_eq!(error["message_id"], "1");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("lone surrogate"), "{message}");
    for text in [
        "{\"message\": \"[[tokens=3]] hi\", \"stream\": \"off\", \"note\": \"\\ud800\"}",
        "\u{feff}{\"message\": \"[[tokens=3]] hi\", \"stream\": 0, \"max_tokens\": \"-1\"}",
    ] {
        socket.text(text).await;
        let events = socket.until("response").await;
        assert_eq!(events[0]["type"], "message_received", "{events:?}");
    }
}

#[tokio::test]
async fn the_api_describes_the_forms_that_it_takes() {
    let Setup { replica, .. } = &guarded("0").await;
    let described = get(replica, "/openapi.json").await.body;
    let fields = &described["components"]["schemas"]["ChatRequest"]["properties"];
    let forms = |field: &str| fields[field]["anyOf"].as_array().cloned().unwrap_or_default();
    let has = |field: &str, form: Value| {
        let found = forms(field).iter().any(|known| {
            form.as_object().is_some_and(|form| form.iter().all(|(name, is)| known[name] == *is))
        });
        assert!(found, "{field} has no form {form}: {}", fields[field]);
    };
    has("stream", json!({"type": "boolean"}));
    has("stream", json!({"type": "integer", "enum": [0, 1]}));
    has("stop", json!({"type": "string"}));
    has("stop", json!({"type": "array", "maxItems": 4}));
    has("think", json!({"type": "boolean"}));
    has("think", json!({"type": "string", "enum": ["low", "medium", "high"]}));
    has("max_tokens", json!({"type": "integer", "enum": [-1]}));
    has("max_tokens", json!({"type": "integer", "minimum": 1}));
    has("temperature", json!({"type": "number", "minimum": 0, "maximum": 2}));
    has("session_id", json!({"type": "string", "format": "uuid"}));
    has("session_id", json!({"type": "string", "maxLength": 0}));
    for field in ["stream", "stop", "think", "max_tokens", "temperature", "session_id", "seed"] {
        has(field, json!({"type": "null"}));
        assert!(fields[field]["description"].is_string(), "{field}");
    }
    let required = &described["components"]["schemas"]["ChatRequest"]["required"];
    assert_eq!(required, &json!(["message"]));
}
