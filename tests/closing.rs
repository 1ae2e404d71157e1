//! The beginning and the end of a WebSocket, byte for byte.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use support::client::{Socket, chat, get, until_ok};
use support::eventually;
use support::metrics::until_metric_line;
use support::process::{LIMIT, Process};
use support::raw::{
    CLOSE, PING, PONG, Raw, TEXT, close, close_payload, masked, reads_head_and_events_apart,
};
use support::setup::{Setup, setup};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

const NO_MASK: [u8; 4] = [0; 4];
/// A closing handshake takes at most three steps of a second each.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// The time between the head and the first event.
const WELCOME_DELAY: Duration = Duration::from_millis(50);
/// The answer is larger than the kernel's buffers.
const MANY_TOKENS: usize = 60_000;
const MIB: usize = 1 << 20;

async fn until_sockets(replica: &Process, wanted: usize) {
    until_metric_line(replica, &format!("jarvis_websockets {wanted}")).await;
}

fn ask(tokens: usize) -> Vec<u8> {
    let message = json!({"message": format!("[[tokens={tokens}]] go"), "max_tokens": tokens});
    masked(TEXT, NO_MASK, message.to_string().as_bytes())
}

#[tokio::test]
async fn a_close_is_answered_with_its_own_code_and_1000_where_it_has_none() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    let table: [(&[u8], &[u8]); 7] = [
        (b"\x88\x82\0\0\0\0\x03\xe8", b"\x88\x02\x03\xe8"),
        (b"\x88\x80\0\0\0\0", b"\x88\x02\x03\xe8"),
        (b"\x88\x80\x01\x02\x03\x04", b"\x88\x02\x03\xe8"),
        (b"\x88\x82\0\0\0\0\x13\x87", b"\x88\x02\x13\x87"),
        (b"\x88\x82\xff\xff\xff\xff\xfc\x16", b"\x88\x02\x03\xe9"),
        (b"\x88\x85\0\0\0\0\x13\x87bye", b"\x88\x05\x13\x87bye"),
        // Messages behind a client's close frame are dropped.
        (b"\x88\x82\0\0\0\0\x03\xe8\x81\x81\0\0\0\0x\x83\x80\0\0\0\0", b"\x88\x02\x03\xe8"),
    ];
    for welcomed in [false, true] {
        for (sent, expected) in table {
            let mut raw = Raw::open(replica, "/ws").await;
            if welcomed {
                raw.until("connection").await;
            }
            raw.send(sent).await;
            let mut received = Vec::new();
            loop {
                let bytes = raw.one_read().await;
                if bytes.is_empty() {
                    break;
                }
                received.extend(bytes);
            }
            assert_eq!(received, expected, "to {sent:02x?}, welcomed: {welcomed}");
        }
    }
}

/// Returns the codes that an endpoint may send (RFC 6455, section 7.4). The library does not know 1014,
/// which was registered later.
fn codes() -> impl Strategy<Value = u16> {
    prop_oneof![1000u16..=1003, 1007u16..=1013, 3000u16..=4999]
}

#[test]
fn every_valid_close_code_and_reason_comes_back() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let Setup { replica, .. } = &runtime.block_on(setup("500", &[]));
    let closes = (
        proptest::option::of((codes(), "[a-zé-ü€😀]{0,30}")),
        any::<[u8; 4]>(),
        // The bytes are split in different ways, and different messages come before.
        any::<prop::sample::Index>(),
        prop::sample::select(vec![
            vec![],
            masked(PING, [1, 2, 3, 4], b"before"),
            // The message is not whole yet.
            b"\x01\x81\0\0\0\0a".to_vec(),
            ask(50),
        ]),
    );
    let mut runner =
        TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&closes, |(close, mask, split, before)| {
        let payload = close.as_ref().map_or(Vec::new(), |(code, reason)| {
            close_payload(*code, &reason.chars().take(30).collect::<String>())
        });
        let mut bytes = before;
        bytes.extend(masked(CLOSE, mask, &payload));
        let (first, second) = bytes.split_at(split.index(bytes.len()));
        let answer = runtime.block_on(async {
            let mut raw = Raw::open(replica, "/ws").await;
            raw.send(first).await;
            raw.send(second).await;
            raw.closed_within(CLOSE_LIMIT).await
        });
        let expected = if payload.is_empty() { close_payload(1000, "") } else { payload };
        prop_assert_eq!(answer, expected);
        Ok(())
    });
    outcome.expect("every close to be answered");
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_gets_1002_or_1007_before_the_end() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    let long_control = masked(PING, NO_MASK, &[0; 126]);
    let table: &[(&str, &[u8], u16)] = &[
        ("text that is not UTF-8", b"\x81\x82\0\0\0\0\xc3\x28", 1007),
        ("text that ends in a character", b"\x81\x81\0\0\0\0\xc3", 1007),
        ("a surrogate", b"\x81\x83\0\0\0\0\xed\xa0\x80", 1007),
        ("a fragment not UTF-8", b"\x01\x82\0\0\0\0\xc3\x28", 1007),
        ("fragments not UTF-8", b"\x01\x81\0\0\0\0\xc3\x80\x81\0\0\0\0\x28", 1007),
        ("a reason not UTF-8", b"\x88\x84\0\0\0\0\x03\xe8\xc3\x28", 1007),
        ("a data opcode that is unknown", b"\x83\x80\0\0\0\0", 1002),
        ("the last of them", b"\x87\x80\0\0\0\0", 1002),
        ("a control opcode that is unknown", b"\x8b\x80\0\0\0\0", 1002),
        ("the last of these", b"\x8f\x80\0\0\0\0", 1002),
        ("the first reserved bit", b"\xc1\x81\0\0\0\0x", 1002),
        ("the second reserved bit", b"\xa1\x81\0\0\0\0x", 1002),
        ("the third reserved bit", b"\x91\x81\0\0\0\0x", 1002),
        ("a reserved bit of a close", b"\xc8\x82\0\0\0\0\x03\xe8", 1002),
        ("a text that is not masked", b"\x81\x01x", 1002),
        ("a close that is not masked", b"\x88\x02\x03\xe8", 1002),
        ("a ping that is too long", &long_control, 1002),
        ("a ping in fragments", b"\x09\x80\0\0\0\0", 1002),
        ("a close in fragments", b"\x08\x82\0\0\0\0\x03\xe8", 1002),
        ("a stray continuation", b"\x80\x81\0\0\0\0x", 1002),
        ("a stray first continuation", b"\x00\x81\0\0\0\0x", 1002),
        ("a text in a fragmented one", b"\x01\x81\0\0\0\0x\x81\x81\0\0\0\0y", 1002),
        ("a close of one byte", b"\x88\x81\0\0\0\0\x03", 1002),
        ("close code 0", b"\x88\x82\0\0\0\0\0\0", 1002),
        ("close code 999", b"\x88\x82\0\0\0\0\x03\xe7", 1002),
        ("close code 1004", b"\x88\x82\0\0\0\0\x03\xec", 1002),
        ("close code 1005", b"\x88\x82\0\0\0\0\x03\xed", 1002),
        ("close code 1006", b"\x88\x82\0\0\0\0\x03\xee", 1002),
        // The code was registered after the library's list was made: docs/PROTOCOL.md names it.
        ("close code 1014", b"\x88\x82\0\0\0\0\x03\xf6", 1002),
        ("close code 1015", b"\x88\x82\0\0\0\0\x03\xf7", 1002),
        ("close code 2999", b"\x88\x82\0\0\0\0\x0b\xb7", 1002),
        ("close code 5000", b"\x88\x82\0\0\0\0\x13\x88", 1002),
    ];
    for (what, bytes, code) in table {
        let mut raw = Raw::open(replica, "/ws").await;
        raw.until("connection").await;
        raw.send(bytes).await;
        let payload = raw.closed_within(CLOSE_LIMIT).await;
        assert_eq!(payload[..2], code.to_be_bytes(), "{what}");
        assert!(std::str::from_utf8(&payload[2..]).is_ok_and(|text| !text.is_empty()), "{what}");
    }
    until_sockets(replica, 0).await;
}

#[tokio::test]
async fn a_client_that_ends_its_direction_without_a_close_frame_is_lost_without_a_protocol_error() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    for before in [vec![], masked(PING, NO_MASK, b"1"), b"\x81".to_vec(), b"\x81\x85\0\0".to_vec()]
    {
        let mut raw = Raw::open(replica, "/ws").await;
        raw.until("connection").await;
        raw.send(&before).await;
        raw.stream.shutdown().await.expect("the end of one direction");
        while let Some(frame) = raw.frame().await {
            assert_ne!(frame.opcode, CLOSE, "after {before:02x?}: {:?}", frame.payload);
        }
    }
    until_sockets(replica, 0).await;
}

/// The ways in which a client ends its socket.
#[derive(Clone, Copy, Debug)]
enum Leave {
    Close,
    HalfClose,
    /// The client leaves the server's events unread, which resets the connection.
    Vanish,
}

/// Sends all messages in one segment, and leaves.
async fn say_and_leave(
    replica: &Process,
    session: Uuid,
    messages: &[serde_json::Value],
    how: Leave,
) {
    let mut raw = Raw::open(replica, &format!("/ws?session_id={session}")).await;
    raw.until("connection").await;
    let frames =
        messages.iter().map(|message| masked(TEXT, NO_MASK, message.to_string().as_bytes()));
    let mut bytes = frames.collect::<Vec<_>>().concat();
    if matches!(how, Leave::Close) {
        bytes.extend(close(1000, ""));
    }
    raw.send(&bytes).await;
    match how {
        Leave::Close => drop(raw.closed_within(CLOSE_LIMIT).await),
        Leave::HalfClose => raw.stream.shutdown().await.expect("the end of one direction"),
        Leave::Vanish => drop(raw),
    }
}

/// Checks that three turns are taken, with requests between them whose replies are not read.
async fn three_turns_are_taken(replica: &Process, how: Leave) {
    let session = Uuid::new_v4();
    let ask = |text: &str| json!({"message": format!("[[tokens=2]] {text}")});
    let history = json!({"type": "get_history"});
    let messages = [ask("one"), history, ask("two"), json!({"type": "ping"}), ask("three")];
    say_and_leave(replica, session, &messages, how).await;
    let path = format!("/api/v1/chat/sessions/{session}");
    let mut kept = serde_json::Value::Null;
    let all_kept = eventually(LIMIT, async || {
        kept = get(replica, &path).await.body;
        kept["total"] == 6
    });
    assert!(all_kept.await, "{how:?}: not all three turns were taken");
    for (number, text) in ["one", "two", "three"].iter().enumerate() {
        assert_eq!(kept["messages"][2 * number]["content"], ask(text)["message"], "{how:?}");
    }
}

#[tokio::test]
async fn messages_that_a_client_sends_right_before_it_leaves_are_carried_out() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    let ways = [Leave::Close, Leave::HalfClose, Leave::Vanish].repeat(10);
    join_all(ways.into_iter().map(|how| three_turns_are_taken(replica, how))).await;
}

#[tokio::test]
async fn requests_for_a_reply_alone_do_not_displace_a_chat_right_before_the_end_of_a_socket() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    for how in [Leave::Close, Leave::HalfClose, Leave::Vanish].repeat(3) {
        let session = Uuid::new_v4();
        let mut messages = vec![json!({"type": "ping"}); 40];
        messages.push(json!({"message": "[[tokens=1]] last"}));
        say_and_leave(replica, session, &messages, how).await;
        let path = format!("/api/v1/chat/sessions/{session}");
        let kept = eventually(LIMIT, async || {
            let history = get(replica, &path).await;
            history.status == 200 && history.body["messages"][0]["content"] == "[[tokens=1]] last"
        });
        assert!(kept.await, "{how:?}: the chat is lost");
    }
}

#[tokio::test]
async fn a_cancel_right_before_the_end_of_a_socket_is_carried_out() {
    let Setup { replica, .. } = &setup("50", &[]).await;
    for how in [Leave::Close, Leave::HalfClose, Leave::Vanish].repeat(3) {
        let session = Uuid::new_v4();
        let (mut watching, _) = Socket::open(replica, &format!("/ws?session_id={session}")).await;
        watching.say(&json!({"message": "[[tokens=1000]] go", "max_tokens": 1000})).await;
        watching.until("stream_chunk").await;
        say_and_leave(replica, session, &[json!({"type": "cancel"})], how).await;
        let ended = tokio::time::timeout(Duration::from_secs(5), watching.until("cancelled"));
        ended.await.unwrap_or_else(|_| panic!("{how:?}: the turn runs on"));
    }
}

#[tokio::test]
async fn a_close_is_answered_while_an_answer_is_streamed() {
    let Setup { replica, .. } = &setup("300", &[]).await;
    let mut raw = Raw::open(replica, "/ws").await;
    raw.send(&ask(1000)).await;
    raw.until("stream_chunk").await;
    raw.send(&close(4999, "enough")).await;
    assert_eq!(raw.closed_within(CLOSE_LIMIT).await, close_payload(4999, "enough"));
}

#[tokio::test]
async fn a_close_is_answered_while_a_request_waits_for_redis() {
    let Setup { replica, redis, .. } = &setup("300", &[]).await;
    let mut raw = Raw::open(replica, "/ws").await;
    raw.until("connection").await;
    redis.pause();
    raw.send(&masked(TEXT, NO_MASK, br#"{"type":"get_history"}"#)).await;
    raw.send(&ask(10)).await;
    raw.send(&masked(PING, NO_MASK, b"1")).await;
    assert_eq!(raw.frame().await.map(|frame| frame.opcode), Some(PONG));
    raw.send(&close(4999, "")).await;
    let answer = raw.closed_within(Duration::from_secs(1)).await;
    redis.resume();
    assert_eq!(answer, close_payload(4999, ""));
}

#[tokio::test]
async fn a_close_is_answered_when_there_was_no_room_to_send() {
    let Setup { replica, .. } = &setup("50000", &[]).await;
    let session = Uuid::new_v4();
    let mut raw = Raw::open_narrow(replica, &format!("/ws?session_id={session}")).await;
    raw.send(&ask(MANY_TOKENS)).await;
    // The other turn runs after this one; this client reads nothing of it.
    assert_eq!(chat(replica, &session.to_string(), "[[tokens=5]] next").await.status, 200);
    raw.send(&close(4999, "")).await;
    assert_eq!(raw.closed().await, close_payload(4999, ""));
}

#[tokio::test]
async fn a_close_behind_a_flood_of_messages_is_answered() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    let mut raw = Raw::open(replica, "/ws").await;
    let ping = masked(TEXT, [9, 8, 7, 6], br#"{"type":"ping"}"#);
    let mut flood = [ping, masked(PING, NO_MASK, &[7; 125])].concat().repeat(500);
    flood.extend(close(1001, ""));
    let (mut reading, mut writing) = raw.stream.split();
    let mut received = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut reading, &mut received);
    let (written, read) = tokio::join!(writing.write_all(&flood), read);
    written.expect("bytes to be sent");
    read.expect("the end without a reset");
    assert!(received.ends_with(b"\x88\x02\x03\xe9"), "{:02x?}", received.last_chunk::<8>());
}

/// Sends the bytes, and reads the close code only afterwards: a reset would have discarded it.
async fn code_after(replica: &Process, bytes: &[u8]) -> Vec<u8> {
    let mut raw = Raw::open(replica, "/ws").await;
    raw.until("connection").await;
    raw.send(bytes).await;
    raw.closed_within(CLOSE_LIMIT).await[..2].to_vec()
}

#[tokio::test]
async fn a_client_that_sends_on_after_its_close_still_gets_the_close_code() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    let rest = vec![0x55; 8 * MIB];
    let bad_opcode = [b"\x83\x80\0\0\0\0".as_slice(), &rest].concat();
    assert_eq!(code_after(replica, &bad_opcode).await, 1002u16.to_be_bytes());
    let large = masked(TEXT, [1, 2, 3, 4], &rest);
    assert_eq!(code_after(replica, &large).await, 1009u16.to_be_bytes());
    let part = "x".repeat(0xffff);
    let first = [b"\x01\xfe\xff\xff\0\0\0\0", part.as_bytes()].concat();
    let next = [b"\x00\xfe\xff\xff\0\0\0\0", part.as_bytes()].concat();
    let fragments = [first, next.repeat(32)].concat();
    assert_eq!(code_after(replica, &fragments).await, 1009u16.to_be_bytes());
    let rubbish = masked(TEXT, NO_MASK, b"rubbish").repeat(5000);
    assert_eq!(code_after(replica, &rubbish).await, 1008u16.to_be_bytes());
}

#[tokio::test]
async fn a_frame_that_announces_too_much_is_refused_before_its_payload_comes() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    let before = replica.resident_kib().expect("a figure");
    let table: [(&str, &[u8], u16); 5] = [
        ("a megabyte", b"\x81\xff\0\0\0\0\0\x10\0\0", 1009),
        ("the largest length", b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff", 1009),
        ("a length beyond it", b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff", 1009),
        ("a binary message", b"\x82\xff\0\0\x7f\xff\xff\xff\xff\xff", 1009),
        ("a ping of a megabyte", b"\x89\xff\0\0\0\0\0\x10\0\0", 1009),
    ];
    for (what, head, code) in table {
        for _ in 0..20 {
            let mut raw = Raw::open(replica, "/ws").await;
            raw.until("connection").await;
            raw.send(&[head, b"\x01\x02\x03\x04 and no more"].concat()).await;
            let payload = raw.closed_within(CLOSE_LIMIT).await;
            assert_eq!(payload[..2], code.to_be_bytes(), "{what}");
        }
    }
    until_sockets(replica, 0).await;
    let grown = replica.resident_kib().expect("a figure") - before;
    assert!(grown < 16.0 * 1024.0, "{grown} KiB more");
}

/// Frames as a hostile client makes them: each part is valid, or is not.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![Just(0x81u8), Just(0x01), Just(0x80), Just(0x00), any::<u8>()];
    let length = prop_oneof![
        (0u8..=125).prop_map(|length| vec![0x80 | length]),
        any::<[u8; 2]>().prop_map(|length| [&[0xfe], &length[..]].concat()),
        any::<[u8; 8]>().prop_map(|length| [&[0xff], &length[..]].concat()),
        any::<u8>().prop_map(|byte| vec![byte]),
    ];
    let payload = prop::collection::vec(any::<u8>(), 0..200);
    let frame =
        (first, length, any::<[u8; 4]>(), payload).prop_map(|(first, length, mask, payload)| {
            [&[first], &length[..], &mask, &payload].concat()
        });
    prop::collection::vec(frame, 1..20).prop_map(|frames| frames.concat())
}

#[test]
fn whatever_frames_a_client_sends_its_socket_ends_with_a_code_of_the_protocol_or_lives_on() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let Setup { replica, .. } = &runtime.block_on(setup("500", &[]));
    let mut runner =
        TestRunner::new(Config { cases: 256, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&frames(), |bytes| {
        let code = runtime.block_on(async {
            let mut raw = Raw::open(replica, "/ws").await;
            raw.until("connection").await;
            raw.send(&bytes).await;
            raw.stream.shutdown().await.expect("the end of one direction");
            let mut code = None;
            while let Some(frame) = raw.frame().await {
                if frame.opcode == CLOSE {
                    code = frame.payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                }
            }
            code
        });
        // A close of the client comes back as it is.
        let is_own = |code| matches!(code, 1000..=1003 | 1007..=1013 | 3000..=4999);
        prop_assert!(code.is_none_or(is_own), "{code:?}");
        Ok(())
    });
    outcome.expect("every socket to end in order");
    runtime.block_on(async {
        until_sockets(replica, 0).await;
        let (mut socket, _) = Socket::open(replica, "/ws").await;
        socket.say(&json!({"type": "ping"})).await;
        assert_eq!(socket.event().await["type"], "pong");
    });
}

#[tokio::test]
async fn a_close_that_meets_a_drain_is_answered_once() {
    let setup = setup("500", &[]).await;
    let mut raws = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::open(&setup.replica, "/ws").await;
        raw.until("connection").await;
        raws.push(raw);
    }
    setup.replica.terminate();
    for raw in &mut raws {
        raw.send(&close(4999, "")).await;
    }
    for raw in &mut raws {
        let payload = raw.closed_within(CLOSE_LIMIT).await;
        let code = u16::from_be_bytes([payload[0], payload[1]]);
        assert!([4999, 1012].contains(&code), "{code}");
    }
}

#[tokio::test]
async fn a_client_that_never_answers_a_close_is_disconnected_in_time() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    let mut raw = Raw::open(replica, "/ws").await;
    raw.until("connection").await;
    raw.send(&masked(TEXT, NO_MASK, b"rubbish").repeat(25)).await;
    assert_eq!(raw.closed_within(CLOSE_LIMIT).await[..2], 1008u16.to_be_bytes());
    // This client keeps its own direction open forever.
    let other = async {
        until_ok(replica, "/health/live").await;
        until_sockets(replica, 0).await;
    };
    tokio::time::timeout(CLOSE_LIMIT, other).await.expect("the socket to be let go");
    drop(raw);
}

#[tokio::test]
async fn the_head_of_the_handshake_comes_alone_fifty_times_of_fifty() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    let address = replica.url.trim_start_matches("http://");
    reads_head_and_events_apart(address, 50, WELCOME_DELAY).await;
}

#[tokio::test]
async fn a_client_that_speaks_first_is_welcomed_before_it_is_answered() {
    let Setup { replica, .. } = &setup("500", &[]).await;
    let mut raw = Raw::open(replica, "/ws").await;
    raw.send(&masked(TEXT, NO_MASK, br#"{"type":"ping"}"#)).await;
    for kind in ["connection", "pong"] {
        let frame = raw.frame().await.expect("an event");
        let text = String::from_utf8_lossy(&frame.payload);
        assert!(text.contains(&format!(r#""type":"{kind}""#)), "{text}");
    }
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    socket.say(&json!({"type": "ping"})).await;
    assert_eq!(socket.event().await["type"], "pong");
}
