//! Clients that do not read: a slow one costs a cursor, and one that never reads is closed.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};
use support::client::{Socket, joined, narrow, rest_of, server_sent};
use support::eventually;
use support::metrics::metrics;
use support::process::{LIMIT, Process};
use support::setup::{Setup, setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

/// The sockets that read nothing: the figure is that of one of them.
const SLOW: usize = 20;
const TOKENS: usize = 10_000;
/// A queue would be more than one event that waits and one buffer of the socket.
const BUDGET_KIB: f64 = 64.0;
/// The answer is larger than the kernel's buffers, and within the limit of an answer.
const MANY_TOKENS: usize = 60_000;
const LARGEST_PIECE: usize = 16 << 10;

fn long_turn(tokens: usize) -> Value {
    json!({"message": format!("[[tokens={tokens}]] at length"), "max_tokens": tokens})
}

async fn metric(replica: &Process, name: &str) -> u64 {
    let metrics = metrics(replica).await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse::<f64>().expect("a figure") as u64)
}

async fn until_metric(replica: &Process, name: &str, wanted: u64) {
    let reached = eventually(LIMIT, async || metric(replica, name).await == wanted).await;
    assert!(reached, "{name} is not {wanted} in time");
}

/// Returns the pause after the answer's end: `SLOW_SECONDS=60` is the long form.
fn pause() -> Duration {
    let seconds = std::env::var("SLOW_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

#[tokio::test]
async fn a_slow_reader_costs_bounded_memory_and_then_gets_every_piece_once_in_order() {
    let Setup { replica, .. } = &setup("3000", &[]).await;
    let session = Uuid::new_v4();
    let path = format!("/ws?session_id={session}");
    let (mut fast, _) = Socket::open(replica, &path).await;
    // The memory that the replica needs for any turn is no cost of slow readers.
    fast.say(&long_turn(TOKENS)).await;
    fast.until("stream_end").await;
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        slow.push(Socket::open_narrow(replica, &path).await.0);
    }
    let before = replica.resident_kib().expect("a figure");
    fast.say(&long_turn(TOKENS)).await;
    let fast_events = fast.until("stream_end").await;
    tokio::time::sleep(pause()).await;
    let each = (replica.resident_kib().expect("a figure") - before) / SLOW as f64;
    let expected = joined(&fast_events);
    println!("{TOKENS} tokens, {} KiB: {each:.1} KiB for each slow reader", expected.len() >> 10);
    assert!(each <= BUDGET_KIB, "{each:.1} KiB each");
    for mut socket in slow {
        let events = socket.until("stream_end").await;
        assert_eq!(joined(&events), expected);
        assert_eq!(events.last().expect("an end")["full_response"], expected.as_str());
        let cursors: HashSet<_> = events.iter().map(|event| event["cursor"].as_str()).collect();
        assert_eq!(cursors.len(), events.len(), "an event came twice");
        for event in &events {
            assert!(event["content"].as_str().unwrap_or_default().len() <= LARGEST_PIECE);
        }
        assert!(
            events.len() < fast_events.len() / 2,
            "{} of {} events",
            events.len(),
            fast_events.len()
        );
    }
}

#[tokio::test]
async fn a_websocket_that_never_reads_is_closed_and_resumes_without_a_hole() {
    let Setup { replica, .. } = &setup("50000", &[("JARVIS_READ_TIMEOUT", "1")]).await;
    let session = Uuid::new_v4();
    let path = format!("/ws?session_id={session}");
    let (mut socket, _) = Socket::open_narrow(replica, &path).await;
    socket.say(&long_turn(MANY_TOKENS)).await;
    until_metric(replica, "jarvis_slow_readers_total{protocol=\"websocket\"}", 1).await;
    until_metric(replica, "jarvis_websockets", 0).await;
    let (mut events, _) = socket.end().await;
    assert_ne!(events.last().expect("an event")["type"], "stream_end");
    let cursor = events.last().expect("an event")["cursor"].as_str().expect("a cursor").to_owned();
    let (mut socket, hello) = Socket::open(replica, &format!("{path}&cursor={cursor}")).await;
    assert_eq!(hello["recovered"], true);
    events.extend(socket.until("stream_end").await);
    assert_eq!(events.last().expect("an end")["full_response"], joined(&events).as_str());
}

#[tokio::test]
async fn a_websocket_that_answers_no_ping_is_closed_with_try_again_later() {
    let limits = [("JARVIS_READ_TIMEOUT", "1"), ("JARVIS_HEARTBEAT", "1")];
    let Setup { replica, .. } = &setup("50000", &limits).await;
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    until_metric(replica, "jarvis_slow_readers_total{protocol=\"websocket\"}", 1).await;
    assert_eq!(socket.end().await.1.map(|(code, _)| code), Some(1013));
}

#[tokio::test]
async fn an_event_stream_that_is_not_read_is_closed_and_resumes_without_a_hole() {
    let Setup { replica, .. } = &setup("50000", &[("JARVIS_READ_TIMEOUT", "1")]).await;
    let session = Uuid::new_v4();
    let mut body = long_turn(MANY_TOKENS);
    body["stream"] = true.into();
    body["session_id"] = session.to_string().into();
    let body = body.to_string();
    // HTTP/1.0 has no chunks to decode.
    let head = format!("POST /api/v1/chat/ HTTP/1.0\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut stream = narrow(replica).await;
    stream.write_all((head + &body).as_bytes()).await.expect("a request");
    until_metric(replica, "jarvis_slow_readers_total{protocol=\"http\"}", 1).await;
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    let (mut events, last) = server_sent(&String::from_utf8_lossy(&text));
    let rest = rest_of(replica, &session, &events, last).await;
    events.extend(rest);
    assert_eq!(events.last().expect("an end")["full_response"], joined(&events).as_str());
}

#[tokio::test]
async fn a_connection_that_sends_no_request_in_time_is_closed() {
    let Setup { replica, .. } = &setup("500", &[("JARVIS_READ_TIMEOUT", "1")]).await;
    for beginning in ["", "PRI * HTTP", "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow:"] {
        let mut stream = narrow(replica).await;
        stream.write_all(beginning.as_bytes()).await.expect("room");
        let mut received = Vec::new();
        let closed = tokio::time::timeout(LIMIT, stream.read_to_end(&mut received)).await;
        assert!(closed.is_ok(), "still open after {beginning:?}");
    }
}
