//! Connections of HTTP/2 are kept only while their clients ask, answer pings and make room.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::http;
use futures_util::future::join_all;
use h2::client::{Connection, SendRequest};
use serde_json::{Value, json};
use support::client::{self, send};
use support::eventually;
use support::process::{LIMIT, Process};
use support::raw_http::Raw;
use support::setup::{Setup, setup};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant as Moment, Sleep, sleep};
use uuid::Uuid;

/// Lengths of bodies in bytes; a refusal reads the body of each and keeps the connection.
const KEPT: [usize; 5] = [0, 1_000, 30_000, 100_000, 1_000_000];
const TOO_LONG: usize = 5_000_000;
const CHAT: &str = "/api/v1/chat/";
const ON: (&str, &str) = ("JARVIS_HTTP2", "true");

#[tokio::test]
async fn a_refusal_reaches_its_client_and_costs_no_other_request_anything() {
    let Setup { replica, .. } = &setup("0", &[ON]).await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .timeout(LIMIT)
        .build()
        .expect("a client");
    for bytes in KEPT.into_iter().chain([TOO_LONG]) {
        for (path, status) in [("/nowhere", 404), ("/health", 405)] {
            let url = format!("{}{path}", replica.url);
            let refused = send(client.post(url).body("x".repeat(bytes))).await;
            assert_eq!(refused.status, status, "{path} {bytes}");
            assert_eq!(refused.body["status"], status);
        }
        let live = send(client.get(format!("{}/health/live", replica.url))).await;
        assert_eq!(live.status, 200);
    }
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_gets_its_refusal() {
    let Setup { replica, .. } = &setup("0", &[ON]).await;
    let stream = TcpStream::connect(replica.url.trim_start_matches("http://")).await;
    let (client, connection) =
        h2::client::handshake(stream.expect("a connection")).await.expect("h2");
    let connection = tokio::spawn(connection);
    for bytes in [TOO_LONG, 0, 1_000_000, TOO_LONG] {
        let client = client.clone().ready().await;
        let request = http::Request::post(format!("{}/nowhere", replica.url)).body(());
        let (response, mut body) = client
            .expect("a stream")
            .send_request(request.expect("a request"), false)
            .expect("sent");
        let mut left = bytes;
        while left > 0 {
            body.reserve_capacity(left);
            let room = tokio::time::timeout(LIMIT, poll_fn(|context| body.poll_capacity(context)));
            let room =
                room.await.expect("room in time").expect("an open stream").expect("no reset");
            body.send_data(vec![b'x'; room].into(), false).expect("an open stream");
            left -= room;
        }
        body.send_data(bytes::Bytes::new(), true).expect("an open stream");
        assert_eq!(response.await.expect("a response").status(), 404, "{bytes}");
    }
    connection.abort();
}

/// Starts a replica that lets its clients take a second.
async fn impatient(sockets: &str) -> Setup {
    patient_for("1", sockets).await
}

/// Starts a replica that lets its clients take `seconds`.
async fn patient_for(seconds: &str, sockets: &str) -> Setup {
    let limits = [
        ON,
        ("JARVIS_READ_TIMEOUT", seconds),
        ("JARVIS_HEARTBEAT", "1"),
        ("JARVIS_MAX_SOCKETS", sockets),
    ];
    setup("0", &limits).await
}

async fn connect(replica: &Process) -> (SendRequest<bytes::Bytes>, Connection<TcpStream>) {
    let stream = TcpStream::connect(replica.url.trim_start_matches("http://")).await;
    h2::client::handshake(stream.expect("a connection")).await.expect("h2")
}

#[tokio::test]
async fn a_client_that_sends_only_its_preface_is_disconnected() {
    let Setup { replica, .. } = &impatient("9").await;
    let settings = b"\0\0\0\x04\0\0\0\0\0".as_slice();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let said = [
        preface[..10].to_vec(),
        preface.to_vec(),
        [preface, settings].concat(),
        [preface, &settings[..5]].concat(),
    ];
    let let_go = said.into_iter().map(async |said| {
        let mut raw = Raw::connect(replica).await;
        raw.write(&said).await.expect("an open connection");
        let end = async { while raw.byte().await.is_ok() {} };
        let ended = tokio::time::timeout(LIMIT, end).await;
        assert!(ended.is_ok(), "{} bytes keep the connection", said.len());
    });
    join_all(let_go).await;
}

#[tokio::test]
async fn an_idle_client_is_disconnected() {
    let Setup { replica, .. } = &impatient("9").await;
    let began = Instant::now();
    let (client, connection) = connect(replica).await;
    // The connection answers pings.
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.expect("a stream");
    let request = http::Request::get(format!("{}/health/live", replica.url)).body(());
    let (response, _) = client.send_request(request.expect("a request"), true).expect("sent");
    assert_eq!(response.await.expect("a response").status(), 200);
    let ended = tokio::time::timeout(LIMIT, connection).await.expect("the end in time");
    ended.expect("no panic").expect("a clean end");
    assert!(began.elapsed() >= Duration::from_millis(700), "{:?}", began.elapsed());
    drop(client);
}

#[tokio::test]
async fn a_client_that_never_sends_its_body_is_answered_and_disconnected() {
    let Setup { replica, .. } = &impatient("9").await;
    let (client, connection) = connect(replica).await;
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.expect("a stream");
    let request = http::Request::post(format!("{}/nowhere", replica.url)).body(());
    let (response, body) = client.send_request(request.expect("a request"), false).expect("sent");
    assert_eq!(response.await.expect("a response").status(), 404);
    tokio::time::timeout(LIMIT, connection).await.expect("the end in time").expect("no panic").ok();
    drop((client, body));
}

#[tokio::test]
async fn a_live_stream_is_not_cut() {
    let Setup { replica, .. } = &impatient("1").await;
    let session = Uuid::new_v4().to_string();
    assert_eq!(client::chat(replica, &session, "[[tokens=2]] one").await.status, 200);
    let events = || {
        let url = format!("{}/api/v1/chat/sessions/{session}/events", replica.url);
        http::Request::get(url).body(()).expect("a request")
    };
    let (client, connection) = connect(replica).await;
    let answering = tokio::spawn(connection);
    let mut client = client.ready().await.expect("a stream");
    let (response, _) = client.send_request(events(), true).expect("sent");
    let mut stream = response.await.expect("a response").into_body();
    let mut text = String::new();
    let mut until = async |wanted: &str, count: usize| {
        while text.matches(wanted).count() < count {
            let piece = tokio::time::timeout(LIMIT, stream.data()).await.expect("more in time");
            let piece = piece.expect("no end").expect("no reset");
            stream.flow_control().release_capacity(piece.len()).expect("room");
            text.push_str(&String::from_utf8_lossy(&piece));
        }
    };
    // A comment comes each second: the stream lasts longer than the limits for idle clients.
    until("\n:", 8).await;
    assert_eq!(client::chat(replica, &session, "[[tokens=2]] two").await.status, 200);
    until("stream_end", 1).await;
    answering.abort();
}

#[tokio::test]
async fn a_stream_whose_client_answers_no_ping_is_closed() {
    let Setup { replica, .. } = &impatient("1").await;
    let session = Uuid::new_v4().to_string();
    assert_eq!(client::chat(replica, &session, "[[tokens=2]] one").await.status, 200);
    let url = format!("{}/api/v1/chat/sessions/{session}/events", replica.url);
    let (client, mut connection) = connect(replica).await;
    let open = async {
        let mut client = client.ready().await.expect("a stream");
        let request = http::Request::get(&url).body(()).expect("a request");
        let (response, _) = client.send_request(request, true).expect("sent");
        (client, response.await.expect("a response"))
    };
    let (client, response) = tokio::select! {
        opened = open => opened,
        _ = &mut connection => panic!("the end of the connection"),
    };
    assert_eq!(response.status(), 200);
    // From here on this connection is not read, but stays open.
    let mut refused = 0;
    let freed = eventually(LIMIT, async || {
        let events = client::http().get(&url).send().await.expect("a response");
        match events.status().as_u16() {
            200 => return true,
            503 => refused += 1,
            status => panic!("{status}"),
        }
        false
    });
    assert!(freed.await, "the stream still takes room");
    assert!(refused > 0, "the stream took no room");
    drop((client, response, connection));
}

#[tokio::test]
async fn a_stream_whose_client_makes_no_room_is_reset_and_costs_no_other() {
    let Setup { replica, .. } = &impatient("1").await;
    let stream = TcpStream::connect(replica.url.trim_start_matches("http://")).await;
    let stream = stream.expect("a connection");
    let narrow = h2::client::Builder::new().initial_window_size(1 << 10).handshake(stream).await;
    let (client, connection): (SendRequest<bytes::Bytes>, _) = narrow.expect("h2");
    // The connection answers pings.
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.expect("a stream");
    let request = http::Request::post(format!("{}{CHAT}", replica.url)).body(());
    let (response, mut body) =
        client.send_request(request.expect("a request"), false).expect("sent");
    let asked = json!({"message": "[[tokens=1000]] go", "stream": true});
    body.send_data(asked.to_string().into(), true).expect("an open stream");
    let mut stream = response.await.expect("a response").into_body();
    // The stream is not read; beside it other requests are sent.
    let began = Instant::now();
    let asked = json!({"message": "[[tokens=1]] hi", "stream": true});
    let freed = eventually(LIMIT, async || {
        let request = http::Request::get(format!("{}/health/live", replica.url)).body(());
        client = client.clone().ready().await.expect("an open connection");
        let (live, _) = client.send_request(request.expect("a request"), true).expect("sent");
        assert_eq!(live.await.expect("a response").status(), 200);
        let other = client::http().post(format!("{}{CHAT}", replica.url)).json(&asked);
        other.send().await.expect("a response").status().as_u16() == 200
    });
    assert!(freed.await, "the stream still takes room");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    let reset = loop {
        match stream.data().await.expect("no clean end") {
            Ok(piece) => stream.flow_control().release_capacity(piece.len()).expect("room"),
            Err(error) => break error,
        }
    };
    assert!(reset.is_reset(), "{reset}");
    connection.abort();
}

/// Characters of a message that fills a history.
const LONG: usize = 30_000;
const LONG_MESSAGES: usize = 32;

#[tokio::test]
async fn a_client_that_makes_room_slowly_and_steadily_gets_its_whole_response() {
    let Setup { replica, .. } = &impatient("1").await;
    let session = long_session(replica).await;
    let stream = TcpStream::connect(replica.url.trim_start_matches("http://")).await;
    let stream = stream.expect("a connection");
    let narrow = h2::client::Builder::new().initial_window_size(8 << 10).handshake(stream).await;
    let (client, connection): (SendRequest<bytes::Bytes>, _) = narrow.expect("h2");
    let connection = tokio::spawn(connection);
    let began = Instant::now();
    // About 110 KB a second: a frame holds as much as the window.
    let pause = Duration::from_millis(70);
    assert_whole(&read_session(client, replica, &session, pause).await);
    // Longer than the limit and the grace after it.
    assert!(began.elapsed() > Duration::from_secs(7), "{:?}", began.elapsed());
    connection.abort();
}

#[tokio::test]
async fn a_client_whose_room_holds_a_response_that_it_reads_slowly_gets_it_whole() {
    let Setup { replica, .. } = &patient_for("2", "1").await;
    let session = long_session(replica).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(8 << 10).expect("a small buffer");
    let address = replica.url.trim_start_matches("http://").parse().expect("an address");
    let stream = socket.connect(address).await.expect("a connection");
    let slow = Slow { stream, pause: Box::pin(sleep(Duration::ZERO)) };
    let mut wide = h2::client::Builder::new();
    wide.initial_window_size(4 << 20).initial_connection_window_size(4 << 20);
    let (client, connection): (SendRequest<bytes::Bytes>, _) =
        wide.handshake(slow).await.expect("h2");
    let connection = tokio::spawn(connection);
    let began = Instant::now();
    assert_whole(&read_session(client, replica, &session, Duration::ZERO).await);
    assert!(began.elapsed() > Duration::from_secs(8), "{:?}", began.elapsed());
    connection.abort();
}

/// Writes a session of about 960 KB, and returns its id.
async fn long_session(replica: &Process) -> String {
    let session = Uuid::new_v4().to_string();
    let message = format!("{} [[tokens=1]]", "x".repeat(LONG));
    for _ in 0..LONG_MESSAGES {
        assert_eq!(client::chat(replica, &session, &message).await.status, 200);
    }
    session
}

/// Reads a session, with a pause after each piece.
async fn read_session(
    client: SendRequest<bytes::Bytes>,
    replica: &Process,
    session: &str,
    pause: Duration,
) -> Vec<u8> {
    let mut client = client.ready().await.expect("a stream");
    let url = format!("{}/api/v1/chat/sessions/{session}?limit=500", replica.url);
    let request = http::Request::get(url).body(()).expect("a request");
    let (response, _) = client.send_request(request, true).expect("sent");
    let response = response.await.expect("a response");
    assert_eq!(response.status(), 200);
    let mut stream = response.into_body();
    let mut body = Vec::new();
    while let Some(piece) = tokio::time::timeout(LIMIT, stream.data()).await.expect("more in time")
    {
        let piece = piece.expect("no reset");
        body.extend_from_slice(&piece);
        sleep(pause).await;
        stream.flow_control().release_capacity(piece.len()).expect("room");
    }
    body
}

fn assert_whole(body: &[u8]) {
    let page: Value = serde_json::from_slice(body).expect("the whole JSON");
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(2 * LONG_MESSAGES));
    assert!(body.len() > LONG * LONG_MESSAGES);
}

/// A connection whose client reads about 120 KB a second.
struct Slow {
    stream: TcpStream,
    pause: Pin<Box<Sleep>>,
}

impl AsyncRead for Slow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.pause.as_mut().poll(context));
        let mut few = [0; 6_000];
        let room = into.remaining().min(few.len());
        let mut read = ReadBuf::new(&mut few[..room]);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
        into.put_slice(read.filled());
        self.pause.as_mut().reset(Moment::now() + Duration::from_millis(50));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Slow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
