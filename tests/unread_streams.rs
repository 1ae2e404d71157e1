//! What sockets and streams hold for clients that do not read is bounded over all connections together, and
//! one address leaves room to the others.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::client::{Socket, chat, http, joined, narrow, post, server_sent};
use support::eventually;
use support::metrics::metrics;
use support::process::{LIMIT, Process};
use support::setup::{Setup, setup, setup_on, setup_with_large_window};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

/// As many as one address may have.
const STREAMS: usize = 200;
/// A room of 16 MiB, of which an address may take four.
const ROOM: (&str, &str) = ("JARVIS_UNREAD_MIB", "16");
const PROXY: (&str, &str) = ("JARVIS_TRUSTED_PROXIES", "127.0.0.1");
/// Bytes that may be held: the share, the part that is read of Redis and written at that moment, the buffers
/// of the connections (64 KiB each), and what the allocator keeps.
const MOST_KIB: f64 = (4.0 + 60.0) * 1024.0;
const UNREAD_ADDRESS: &str = "192.0.2.1";
const OTHER_ADDRESS: &str = "192.0.2.2";

/// Opens so many streams of one address, and reads nothing of them. Returns them, and how many KiB more than
/// before the replica held at most in some seconds.
async fn unread(
    replica: &Process,
    count: usize,
    path: &str,
    headers: &str,
) -> (Vec<TcpStream>, f64) {
    let before = replica.resident_kib().expect("a figure");
    let open = (0..count).map(async |_| {
        let mut stream = narrow(replica).await;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {UNREAD_ADDRESS}\r\n\
             {headers}\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream
    });
    let held = join_all(open).await;
    let mut most = 0.0f64;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(replica.resident_kib().expect("a figure"));
    }
    (held, most - before)
}

/// Reads what these streams have got, and returns how many were refused with a time to retry: before their
/// head, or by an event or a close that says so.
async fn refused(held: Vec<TcpStream>, sign: &str) -> usize {
    let read = held.into_iter().map(async |mut stream| {
        let mut bytes = Vec::new();
        let _ = timeout(Duration::from_secs(2), stream.read_to_end(&mut bytes)).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.starts_with("HTTP/1.1 503") || text.contains(sign)
    });
    join_all(read).await.into_iter().filter(|is_refused| *is_refused).count()
}

async fn gauge(replica: &Process, name: &str) -> f64 {
    let text = metrics(replica).await;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.expect("a figure").parse().expect("a number")
}

/// Reads a stream of events from another address to its end.
async fn read_elsewhere(replica: &Process, path: &str) -> String {
    let request = http().get(format!("{}{path}", replica.url));
    let reply = request.header("x-forwarded-for", OTHER_ADDRESS).send().await.expect("a reply");
    assert_eq!(reply.status().as_u16(), 200);
    reply.text().await.expect("a text")
}

/// Makes a session whose newest messages are about as large as a snapshot may be.
async fn large_session(replica: &Process) -> String {
    let session = Uuid::new_v4().to_string();
    let message = format!("{} [[tokens=1]]", "x".repeat(30_000));
    for _ in 0..17 {
        assert_eq!(chat(replica, &session, &message).await.status, 200);
    }
    session
}

#[tokio::test]
async fn streams_of_responses_that_are_not_read_are_held_within_the_room_of_their_address() {
    const RESPONSES: usize = 400;
    let sockets = ("JARVIS_ADDRESS_SOCKETS", "400");
    let Setup { replica, redis: _redis, ollama: _ollama } =
        &setup_with_large_window(&[ROOM, PROXY, sockets]).await;
    let body = json!({"model": "tinyllama", "input": "[[tokens=6000]] at length",
        "instructions": "x".repeat(250_000), "max_output_tokens": 7000});
    let response = post(replica, "/v1/responses", &body).await;
    assert_eq!(response.status, 200, "{}", response.body);
    let path =
        format!("/v1/responses/{}?stream=true", response.body["id"].as_str().expect("an id"));
    let events = |text: &str| {
        let (events, _) = server_sent(text);
        let numbers = events.iter().map(|event| event["sequence_number"].as_u64());
        assert!(numbers.eq((0..).take(events.len()).map(Some)), "not each event once, in order");
        let last = events.last().expect("an end");
        assert_eq!(
            (&last["type"], &last["response"]),
            (&json!("response.completed"), &response.body)
        );
        let is_delta = |event: &&Value| event["type"] == "response.output_text.delta";
        let deltas = events.iter().filter(is_delta).filter_map(|event| event["delta"].as_str());
        assert_eq!(deltas.collect::<String>(), response.body["output"][0]["content"][0]["text"]);
    };
    events(&read_elsewhere(replica, &path).await);
    let (held, most) = unread(replica, RESPONSES, &path, "").await;
    println!("{RESPONSES} unread streams of a response: {most:.0} KiB");
    // Without room for what each keeps, which is about 280 KiB, they would hold 110 MiB.
    assert!(most < MOST_KIB, "{most:.0} KiB");
    events(&read_elsewhere(replica, &path).await);
    let refused = refused(held, "too_many_connections").await;
    assert!(refused > RESPONSES / 2, "only {refused} were refused");
    let no_stream = async || gauge(replica, "jarvis_event_streams").await == 0.0;
    assert!(eventually(LIMIT, no_stream).await, "a stream is left");
    events(&read_elsewhere(replica, &path).await);
}

#[tokio::test]
async fn snapshots_on_sockets_that_are_not_read_are_held_within_the_room_of_their_address() {
    const SOCKETS_KEPT: f64 = 50.0;
    let Setup { replica, redis: _redis, ollama: _ollama } =
        &setup_with_large_window(&[ROOM, PROXY]).await;
    let session = large_session(replica).await;
    let path = format!("/ws?session_id={session}&cursor=unknown");
    let other = async || {
        let headers = [("x-forwarded-for", OTHER_ADDRESS)];
        let (mut socket, ..) = Socket::open_with(replica, &path, &headers).await.expect("a socket");
        let snapshot = socket.until("history").await.pop().expect("a snapshot");
        let messages = snapshot["messages"].as_array().expect("a list").len();
        assert!(snapshot.to_string().len() > 450_000 && messages > 20, "{messages} messages");
        // A page of it comes by a request, too.
        socket.say(&json!({"type": "get_history", "limit": 500})).await;
        let page = socket.until("history").await.pop().expect("a page");
        assert_eq!(page["messages"].as_array().map(Vec::len), Some(messages));
    };
    other().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let (held, most) = unread(replica, STREAMS, &path, upgrade).await;
    println!("{STREAMS} unread snapshots on sockets: {most:.0} KiB");
    assert!(most < MOST_KIB, "{most:.0} KiB");
    other().await;
    let few = async || gauge(replica, "jarvis_websockets").await < SOCKETS_KEPT;
    assert!(eventually(LIMIT, few).await, "sockets without room are not closed");
    let refused = refused(held, "as many unread bytes as it may").await;
    assert!(refused > STREAMS / 2, "only {refused} were refused");
    let closed = gauge(replica, r#"jarvis_websockets_closed_total{code="1013"}"#).await;
    assert!(closed > 0.0, "no socket was closed with 1013");
    other().await;
}

#[tokio::test]
async fn snapshots_on_streams_that_are_not_read_are_held_within_the_room_of_their_address() {
    let Setup { replica, redis: _redis, ollama: _ollama } =
        &setup_with_large_window(&[ROOM, PROXY]).await;
    let session = large_session(replica).await;
    let path = format!("/api/v1/chat/sessions/{session}/events?cursor=unknown");
    let (held, most) = unread(replica, STREAMS, &path, "").await;
    println!("{STREAMS} unread snapshots on streams: {most:.0} KiB");
    assert!(most < MOST_KIB, "{most:.0} KiB");
    let request = http().get(format!("{}{path}", replica.url));
    let reply = request.header("x-forwarded-for", OTHER_ADDRESS).send().await;
    let mut reply = reply.expect("a reply");
    let mut text = String::new();
    while server_sent(&text).0.len() < 2 {
        let read = timeout(LIMIT, reply.chunk()).await.expect("in time").expect("a chunk");
        text.push_str(&String::from_utf8_lossy(&read.expect("no end")));
    }
    assert_eq!(server_sent(&text).0[1]["type"], "history");
    let refused = refused(held, "too_many_connections").await;
    assert!(refused > STREAMS / 2, "only {refused} were refused");
}

#[tokio::test]
async fn what_unread_streams_catch_up_with_is_held_within_the_room_of_their_address() {
    const TOKENS: usize = 60_000;
    let Setup { replica, redis: _redis, ollama: _ollama } = &setup("50000", &[ROOM, PROXY]).await;
    let session = Uuid::new_v4().to_string();
    let (mut socket, _) = Socket::open(replica, &format!("/ws?session_id={session}")).await;
    let message = format!("[[tokens={TOKENS}]] at length");
    socket.say(&json!({"type": "chat", "message": message, "max_tokens": TOKENS})).await;
    let before = socket.until("stream_start").await;
    let cursor = before.last().and_then(|event| event["cursor"].as_str()).expect("a cursor");
    let expected = socket.until("stream_end").await;
    let generation = expected.last().and_then(|end| end["generation_id"].as_str()).expect("an id");
    let path = format!("/api/v1/chat/sessions/{session}/events?cursor={cursor}");
    // The window of the session's feed keeps 32 events.
    for _ in 0..12 {
        assert_eq!(chat(replica, &session, "[[tokens=1]] more").await.status, 200);
    }
    let path = format!("{path}&generation_id={generation}");
    let read = || async {
        let (events, _) = server_sent(&read_elsewhere(replica, &path).await);
        assert_eq!(joined(&events), joined(&expected));
        assert_eq!(events.last().expect("an end")["full_response"], joined(&expected).as_str());
    };
    read().await;
    let (held, most) = unread(replica, STREAMS, &path, "").await;
    println!("{STREAMS} unread streams of {} KiB: {most:.0} KiB", joined(&expected).len() >> 10);
    assert!(most < MOST_KIB, "{most:.0} KiB");
    read().await;
    // Those that hold nothing of it wait for room, and end with an error that says when to retry.
    let refused = refused(held, "too_many_connections").await;
    assert!((1..STREAMS).contains(&refused), "{refused} were refused");
}

#[tokio::test]
async fn an_answer_that_is_read_goes_on_and_ends_while_others_hold_all_of_the_room() {
    let extra = [ROOM, PROXY, ("JARVIS_NUM_CTX", "131072")];
    let host = ["--rate", "4000", "--model-ctx", "131072"];
    let Setup { replica, redis: _redis, ollama: _ollama } = &setup_on(&host, &extra).await;
    let session = large_session(replica).await;
    let page = format!("/api/v1/chat/sessions/{session}?limit=500");
    let request = format!("GET {page} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // Callers of this machine have no share: they take all.
    let held = join_all((0..50).map(async |_| {
        let mut stream = narrow(replica).await;
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream
    }));
    let held = held.await;
    let is_full = async || {
        let request = http().get(format!("{}{page}", replica.url));
        let reply = request.header("x-forwarded-for", OTHER_ADDRESS).send().await.expect("a reply");
        reply.status().as_u16() == 503
    };
    assert!(is_full().await, "there is room");
    let ask = async |path: &str, body: &Value| {
        let request = http().post(format!("{}{path}", replica.url)).json(body);
        let reply = request.header("x-forwarded-for", OTHER_ADDRESS).send().await;
        let reply = reply.expect("a reply");
        assert_eq!(reply.status().as_u16(), 200);
        reply
    };
    let question = "[[tokens=12000]] at length";
    let body = json!({"model": "tinyllama", "stream": true, "max_tokens": 12_000,
        "messages": [{"role": "user", "content": question}]});
    let text = ask("/v1/chat/completions", &body).await.text().await.expect("a text");
    let contents = text.lines().filter_map(|line| {
        let chunk: Value = serde_json::from_str(line.strip_prefix("data: ")?).ok()?;
        chunk["choices"][0]["delta"]["content"].as_str().map(str::len)
    });
    let length: usize = contents.sum();
    assert!(length > 48 << 10, "{length} bytes");
    assert!(text.ends_with("data: [DONE]\n\n"), "{}", &text[text.len() - 200..]);
    assert!(is_full().await, "there is room again");
    // The last event of a response has all of its text, and waits for room.
    let body = json!({"model": "tinyllama", "stream": true, "input": question,
        "max_output_tokens": 13_000});
    let mut reply = ask("/v1/responses", &body).await;
    let mut read = async |until: &str| {
        // What was read before a chunk ends with less than this.
        let mut rest = String::new();
        while !rest.contains(until) {
            rest = rest.split_off(rest.floor_char_boundary(rest.len().saturating_sub(until.len())));
            let read = timeout(LIMIT, reply.chunk()).await.expect("in time").expect("a chunk");
            let Some(read) = read else { panic!("it ends before {until}: {rest}") };
            rest.push_str(&String::from_utf8_lossy(&read));
        }
    };
    read("response.output_text.delta").await;
    assert!(is_full().await, "there is room again");
    drop(held);
    read("event: response.completed").await;
}
