//! What a stranger may keep of a replica is bounded: sockets, half messages, buffers, descriptors
//! and log lines.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use support::client::{Socket, get, http, send, until_ok};
use support::eventually;
use support::process::{LIMIT, Process, jarvis, limited_jarvis, logged, ollama_sim};
use support::redis::RedisServer;
use support::setup::setup;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

type Opened = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The refusal of a handshake: status, code, and whether it says when to retry.
type Refused = (u16, String, bool);

/// Opens a socket as a proxy does for a client at this address.
async fn open_from(url: &str, forwarded_for: &str) -> Result<Opened, Refused> {
    let mut request = url.into_client_request().expect("a request");
    if !forwarded_for.is_empty() {
        let value = forwarded_for.parse().expect("a value");
        request.headers_mut().insert("x-forwarded-for", value);
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            let body: Value = serde_json::from_slice(body).unwrap_or_default();
            let code = body["code"].as_str().unwrap_or_default().to_owned();
            let retry = response.headers().contains_key("retry-after");
            Err((response.status().as_u16(), code, retry))
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn no_more_sockets_are_open_than_may_be_however_many_come_at_once() {
    let world = setup("100", &[("JARVIS_MAX_SOCKETS", "10")]).await;
    let url = world.replica.websocket("/ws");
    let opened = join_all((0..100).map(|_| open_from(&url, ""))).await;
    let (open, refused): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
    assert_eq!(open.len(), 10);
    let full = (503, "too_many_connections".to_owned(), true);
    assert!(refused.iter().all(|refused| refused.as_ref().err() == Some(&full)));
    drop(open);
    let room = async || open_from(&url, "").await.is_ok();
    assert!(eventually(LIMIT, room).await, "a closed socket leaves no room");
}

#[tokio::test]
async fn an_address_has_a_bounded_number_of_sockets_and_streams() {
    let settings = [("JARVIS_ADDRESS_SOCKETS", "3"), ("JARVIS_TRUSTED_PROXIES", "127.0.0.1")];
    let world = setup("100", &settings).await;
    let url = world.replica.websocket("/ws");
    let full = Some((429, "rate_limited".to_owned(), true));
    let opened = join_all((0..20).map(|_| open_from(&url, "192.0.2.1:4711"))).await;
    let (open, refused): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
    assert_eq!(open.len(), 3);
    assert!(refused.into_iter().all(|refused| refused.err() == full));
    let stream = http().post(format!("{}/api/v1/chat/", world.replica.url));
    let stream = stream.header("x-forwarded-for", "192.0.2.1");
    let stream = send(stream.json(&json!({"message": "hello", "stream": true}))).await;
    assert_eq!((stream.status, &stream.body["code"]), (429, &json!("rate_limited")));
    assert!(stream.headers.contains_key("retry-after"));
    // Another address has its own, and a loopback address no bound.
    let other = open_from(&url, "192.0.2.2").await;
    let loopback = join_all((0..20).map(|_| open_from(&url, ""))).await;
    assert!(other.is_ok() && loopback.iter().all(Result::is_ok));
    drop(open);
    let room = async || open_from(&url, "192.0.2.1").await.is_ok();
    assert!(eventually(LIMIT, room).await, "a closed socket leaves no room");
}

/// Returns the first part of a message whose other part never comes.
fn half_message(bytes: usize) -> Message {
    Message::Frame(Frame::message(vec![b' '; bytes], OpCode::Data(Data::Text), false))
}

#[tokio::test]
async fn a_message_that_does_not_arrive_whole_in_time_ends_its_socket_and_no_other() {
    let world = setup("100", &[]).await;
    let (mut slow, _) = Socket::open(&world.replica, "/ws").await;
    let (mut quick, _) = Socket::open(&world.replica, "/ws").await;
    let began = Instant::now();
    slow.frame(half_message(300_000)).await;
    // Pings between the parts do not extend the time.
    slow.frame(Message::Ping("still here".into())).await;
    assert_eq!(slow.closed().await, 1008);
    let took = began.elapsed();
    assert!((Duration::from_secs(8)..Duration::from_secs(25)).contains(&took), "{took:?}");
    // A message in two parts that comes whole is taken, and an idle socket stays.
    quick.frame(half_message(10)).await;
    let rest = Frame::message(r#"{"type":"ping"}"#, OpCode::Data(Data::Continue), true);
    quick.frame(Message::Frame(rest)).await;
    assert_eq!(quick.event().await["type"], "pong");
}

#[tokio::test]
async fn half_messages_of_all_sockets_have_one_budget() {
    let world = setup("100", &[]).await;
    let (mut small, _) = Socket::open(&world.replica, "/ws").await;
    // 8 MiB have room for eight of them, with the buffers in which they arrived.
    let closes = (0..60).map(|_| async {
        let (mut socket, _) = Socket::open(&world.replica, "/ws").await;
        socket.frame(half_message(516_000)).await;
        socket.closed().await
    });
    let closes = join_all(closes).await;
    let count = |code| closes.iter().filter(|close| **close == code).count();
    assert!(count(1013) >= 20, "{closes:?}");
    assert_eq!(count(1013) + count(1008), closes.len(), "{closes:?}");
    small.say(&json!({"type": "ping"})).await;
    assert_eq!(small.event().await["type"], "pong");
}

#[tokio::test]
async fn half_messages_of_one_address_leave_room_for_the_messages_of_others() {
    let world = setup("100", &[("JARVIS_TRUSTED_PROXIES", "127.0.0.1")]).await;
    let open = async |address: &str| {
        let headers = [("x-forwarded-for", address)];
        Socket::open_with(&world.replica, "/ws", &headers).await.expect("a socket").0
    };
    let mut other = open("192.0.2.2").await;
    // 2 MiB have room for two of them, and 8 MiB for eight.
    let refusals = AtomicUsize::new(0);
    let halves = (0..60).map(|_| async {
        let mut socket = open("192.0.2.1").await;
        socket.frame(half_message(516_000)).await;
        let code = socket.closed().await;
        refusals.fetch_add(usize::from(code == 1013), Ordering::Relaxed);
        code
    });
    let large = async {
        let is_spent = async || refusals.load(Ordering::Relaxed) >= 50;
        assert!(eventually(LIMIT, is_spent).await, "{refusals:?} are refused");
        other.say(&json!({"type": "ping", "filler": "x".repeat(500_000)})).await;
        assert_eq!(other.event().await["type"], "pong");
    };
    let (closes, ()) = tokio::join!(join_all(halves), large);
    let in_room = closes.iter().filter(|code| **code == 1008).count();
    // Parts of refused ones took room for a moment.
    assert!(in_room <= 4, "{closes:?}");
}

#[tokio::test]
async fn a_socket_gives_back_the_buffers_of_a_large_message() {
    const SOCKETS: usize = 60;
    let world = setup("100", &[]).await;
    let large = json!({"type": "ping", "filler": "x".repeat(500_000)});
    let open = async |count: usize| {
        let open = (0..count).map(|_| async { Socket::open(&world.replica, "/ws").await.0 });
        join_all(open).await
    };
    let say_large = async |socket: &mut Socket| {
        socket.say(&large).await;
        assert_eq!(socket.event().await["type"], "pong");
    };
    // The allocator keeps what the first ones needed.
    for socket in &mut open(4).await {
        say_large(socket).await;
    }
    let mut sockets = open(SOCKETS).await;
    let before = world.replica.resident_kib().expect("a figure");
    for socket in &mut sockets {
        say_large(socket).await;
    }
    let each = || (world.replica.resident_kib().expect("a figure") - before) / SOCKETS as f64;
    let fits = eventually(LIMIT, async || each() < 64.0).await;
    println!("{:.1} KiB each", each());
    assert!(fits, "{:.1} KiB each", each());
    // They go on as before.
    for socket in &mut sockets {
        socket.say(&json!({"message": "[[tokens=1]] hello"})).await;
        socket.until("stream_end").await;
    }
}

#[tokio::test]
async fn requests_that_wait_on_a_socket_are_bounded_by_bytes_too() {
    let world = setup("100", &[]).await;
    let (mut socket, _) = Socket::open(&world.replica, "/ws").await;
    let large = json!({"type": "get_history", "filler": "x".repeat(400_000)});
    // The first one runs, and cannot end while Redis does not answer.
    world.redis.pause();
    for _ in 0..5 {
        socket.say(&large).await;
    }
    // Two wait, and two more have no room.
    for _ in 0..2 {
        let refused = socket.event().await;
        assert_eq!(
            (&refused["type"], &refused["code"]),
            (&json!("error"), &json!("too_many_requests"))
        );
    }
    world.redis.resume();
    for _ in 0..3 {
        assert_ne!(socket.event().await["code"], "too_many_requests");
    }
}

#[tokio::test]
async fn a_low_limit_of_descriptors_is_raised_and_one_that_cannot_be_is_reported() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&[]));
    let replica = limited_jarvis(&redis.url(), &ollama.url, "ulimit -Sn 256; ulimit -Hn 1000");
    until_ok(&replica, "/health/ready").await;
    let id = replica.id().expect("a process");
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).expect("limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let numbers: Vec<_> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers, ["1000", "1000"]);
    let log = std::fs::read_to_string(replica.log()).expect("a log");
    let warned = log.lines().find(|line| line.contains("fewer sockets admitted than set"));
    let warned = warned.unwrap_or_else(|| panic!("no warning: {log}"));
    assert!(warned.contains("19000") && warned.contains("admitted=500"), "{warned}");
}

/// Starts a replica, and holds all connections that it leaves to others than probes: 25 at a time.
async fn with_all_connections_held(
    redis: &RedisServer,
    ollama: &Process,
) -> (Process, Vec<TcpStream>) {
    let replica = limited_jarvis(&redis.url(), &ollama.url, "ulimit -n 400");
    until_ok(&replica, "/health/ready").await;
    let mut held = Vec::new();
    for _ in 0..450 {
        held.push(connection(&replica).await);
    }
    (replica, held)
}

async fn connection(replica: &Process) -> TcpStream {
    let address = replica.url.trim_start_matches("http://");
    TcpStream::connect(address).await.expect("a connection")
}

#[tokio::test]
async fn health_probes_are_answered_when_strangers_hold_all_connections() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&[]));
    let (replica, held) = with_all_connections_held(&redis, &ollama).await;
    let probed = async || get(&replica, "/health/live").await.status == 200;
    assert!(eventually(LIMIT, probed).await, "no answer");
    let refused = get(&replica, "/api/v1/models").await;
    assert_eq!((refused.status, &refused.body["code"]), (503, &json!("too_many_connections")));
    // It passed no middleware.
    assert_eq!(refused.headers["x-content-type-options"], "nosniff");
    assert!(refused.headers.contains_key("content-security-policy"), "{:?}", refused.headers);
    drop(held);
    let served = async || get(&replica, "/api/v1/models").await.status == 200;
    assert!(eventually(LIMIT, served).await, "the connections do not come back");
}

#[tokio::test]
async fn health_probes_are_answered_in_time_while_silent_connections_come_at_100_a_second() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&[]));
    let (replica, held) = with_all_connections_held(&redis, &ollama).await;
    let address = replica.url.trim_start_matches("http://").to_owned();
    let (come, mut coming) = tokio::sync::watch::channel(0);
    let flood = tokio::spawn(async move {
        let mut flood = Vec::new();
        // A hundred a second.
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        for _ in 0..1000 {
            pace.tick().await;
            flood.extend(TcpStream::connect(&address).await);
            come.send_replace(flood.len());
        }
        flood
    });
    // Each second more come than 25, which a limit of a second for each would let pass.
    tokio::time::timeout(LIMIT, coming.wait_for(|come| *come >= 300)).await.expect("a flood").ok();
    let began = Instant::now();
    assert_eq!(get(&replica, "/health/live").await.status, 200);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(!flood.is_finished(), "the silent connections had ended");
    flood.abort();
    drop(held);
}

#[tokio::test]
async fn refused_requests_beyond_a_rate_are_counted_in_the_log_and_not_listed() {
    const REQUESTS: u64 = 600;
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&[]));
    let settings = [("JARVIS_LOG", "info,fred=off"), ("JARVIS_LOG_FORMAT", "json")];
    let (replica, log) = logged(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/live").await;
    let client = http();
    let refused = (0..REQUESTS).map(|_| client.get(format!("{}/nowhere", replica.url)).send());
    for response in join_all(refused).await {
        assert_eq!(response.expect("a response").status(), 404);
    }
    let counts = || {
        let log = std::fs::read_to_string(&log).expect("a log");
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.fold((0, 0), |(listed, suppressed), line| match line["message"].as_str() {
            Some("request handled") if line["status"] == 404 => (listed + 1, suppressed),
            Some("log lines suppressed") => {
                (listed, suppressed + line["lines"].as_u64().expect("a number"))
            }
            _ => (listed, suppressed),
        })
    };
    let all = async || {
        let (listed, suppressed) = counts();
        listed + suppressed >= REQUESTS
    };
    assert!(eventually(LIMIT, all).await, "{:?}", counts());
    let (listed, suppressed) = counts();
    assert!(listed > 0 && suppressed > REQUESTS / 4, "{listed} listed, {suppressed} suppressed");
}

#[tokio::test]
async fn a_replica_of_the_old_setting_of_proxies_is_refused_with_a_hint() {
    let binary = env!("CARGO_BIN_EXE_jarvis");
    let output = std::process::Command::new(binary)
        .arg("serve")
        .env("JARVIS_PROXIES", "1")
        .output()
        .expect("an output");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(text.contains("JARVIS_TRUSTED_PROXIES"), "{text}");
    // The new name is taken.
    let redis = RedisServer::start();
    let ollama = ollama_sim(&[]);
    let networks = [("JARVIS_TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8")];
    until_ok(&jarvis(&redis.url(), &ollama.url, &networks), "/health/live").await;
}

#[tokio::test]
async fn a_handshake_that_offers_compression_gets_a_socket_without_it() {
    let replica = setup("0", &[]).await;
    let mut request = replica.replica.websocket("/ws").into_client_request().expect("a request");
    let offer = "permessage-deflate; client_max_window_bits, x-webkit-deflate-frame";
    request.headers_mut().insert("sec-websocket-extensions", offer.parse().expect("a value"));
    let (mut socket, response) =
        tokio_tungstenite::connect_async(request).await.expect("a handshake");
    assert_eq!(response.status(), 101);
    assert!(!response.headers().contains_key("sec-websocket-extensions"), "{response:?}");
    let next = async |socket: &mut Opened| loop {
        let packet = socket.next().await.expect("a message").expect("no error");
        if let Message::Text(text) = packet {
            return text;
        }
    };
    assert!(next(&mut socket).await.contains("\"connection\""), "the event is plain text");
    // A frame that says that it is compressed (RSV1) ends the socket with 1002.
    let mut frame = Frame::message(b"x".to_vec(), OpCode::Data(Data::Text), true);
    frame.header_mut().rsv1 = true;
    let _ = socket.send(Message::Frame(frame)).await;
    let ended = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(Some(close)))) => return Some(u16::from(close.code)),
                Some(Ok(_)) => {}
                _ => return None,
            }
        }
    };
    let ended = tokio::time::timeout(LIMIT, ended).await.expect("an end in time");
    assert!(matches!(ended, Some(1002) | None), "{ended:?}");
}
