//! Clients of HTTP, server-sent events and WebSockets.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::process::{LIMIT, Process};

/// A response.
pub struct Reply {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

pub fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(LIMIT).build().expect("a client")
}

pub async fn send(request: reqwest::RequestBuilder) -> Reply {
    let response = request.send().await.expect("a response");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.expect("a body");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Reply { status, headers, body }
}

pub async fn get(server: &Process, path: &str) -> Reply {
    send(http().get(format!("{}{path}", server.url))).await
}

pub async fn post(server: &Process, path: &str, body: &Value) -> Reply {
    send(http().post(format!("{}{path}", server.url)).json(body)).await
}

pub async fn chat(server: &Process, session: &str, message: &str) -> Reply {
    post(server, "/api/v1/chat/", &json!({"message": message, "session_id": session})).await
}

/// Returns the newest messages of a session, oldest first; none where it cannot be read.
pub async fn history(server: &Process, session: &str) -> Vec<Value> {
    let reply = get(server, &format!("/api/v1/chat/sessions/{session}")).await;
    reply.body["messages"].as_array().cloned().unwrap_or_default()
}

/// Waits until the history of a session meets the condition.
pub async fn history_until(
    server: &Process,
    session: &str,
    wanted: impl Fn(&[Value]) -> bool,
) -> Vec<Value> {
    let mut messages = Vec::new();
    let found = testkit::eventually(LIMIT, async || {
        messages = history(server, session).await;
        wanted(&messages)
    });
    assert!(found.await, "the history stays {messages:?}");
    messages
}

/// Returns the request with another value of a field.
pub fn with(mut request: Value, name: &str, value: Value) -> Value {
    request[name] = value;
    request
}

/// Waits until this path answers 200.
pub async fn until_ok(server: &Process, path: &str) {
    let url = format!("{}{path}", server.url);
    let ok =
        async || http().get(&url).send().await.is_ok_and(|response| response.status().is_success());
    assert!(testkit::eventually(LIMIT, ok).await, "{path} is not 200 in time");
}

/// Opens a connection whose kernel keeps a few kilobytes of unread bytes.
pub async fn narrow(server: &Process) -> TcpStream {
    let address = server.url.trim_start_matches("http://").parse().expect("an address");
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4 << 10).expect("a buffer");
    socket.connect(address).await.expect("a connection")
}

/// One WebSocket.
pub struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    /// Connects and returns the `connection` event.
    pub async fn open(server: &Process, path: &str) -> (Self, Value) {
        Self::open_at(&server.websocket(path)).await
    }

    /// Connects to any address and returns the `connection` event.
    pub async fn open_at(url: &str) -> (Self, Value) {
        let (stream, _) = tokio_tungstenite::connect_async(url).await.expect("a handshake");
        let mut socket = Self(stream);
        let connection = socket.event().await;
        assert_eq!(connection["type"], "connection");
        (socket, connection)
    }

    /// Connects with these headers, and returns the subprotocol that the server chose, too.
    ///
    /// # Errors
    /// The status of a refusal.
    pub async fn open_with(
        server: &Process,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(Self, Value, Option<String>), u16> {
        let mut request = server.websocket(path).into_client_request().expect("a request");
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().expect("a value"));
        }
        match tokio_tungstenite::connect_async(request).await {
            Ok((stream, response)) => {
                let protocol = response.headers().get("sec-websocket-protocol");
                let protocol = protocol.map(|it| it.to_str().expect("a text").to_owned());
                let mut socket = Self(stream);
                let connection = socket.event().await;
                Ok((socket, connection, protocol))
            }
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("no handshake: {error}"),
        }
    }

    /// Connects with so small a buffer that the server notices soon when it is not read.
    pub async fn open_narrow(server: &Process, path: &str) -> (Self, Value) {
        let stream = MaybeTlsStream::Plain(narrow(server).await);
        let (stream, _) = tokio_tungstenite::client_async(server.websocket(path), stream)
            .await
            .expect("a handshake");
        let mut socket = Self(stream);
        let connection = socket.event().await;
        (socket, connection)
    }

    pub async fn say(&mut self, message: &Value) {
        self.text(&message.to_string()).await;
    }

    /// Sends all messages before the server can answer the first.
    pub async fn say_at_once(&mut self, messages: &[&Value]) {
        for message in messages {
            self.0.feed(Message::text(message.to_string())).await.expect("room");
        }
        self.0.flush().await.expect("frames to be sent");
    }

    pub async fn text(&mut self, text: &str) {
        self.frame(Message::text(text)).await;
    }

    pub async fn frame(&mut self, frame: Message) {
        self.0.send(frame).await.expect("a frame to be sent");
    }

    /// Returns the next event.
    pub async fn event(&mut self) -> Value {
        match self.raw().await {
            Message::Text(text) => serde_json::from_str(&text).expect("JSON"),
            other => panic!("not an event: {other:?}"),
        }
    }

    /// Returns the close code.
    pub async fn closed(&mut self) -> u16 {
        loop {
            match self.raw().await {
                Message::Close(frame) => return frame.map_or(0, |frame| frame.code.into()),
                Message::Text(_) => {}
                other => panic!("not a close: {other:?}"),
            }
        }
    }

    /// Returns all events that still come, and the close code and reason if there are.
    pub async fn end(&mut self) -> (Vec<Value>, Option<(u16, String)>) {
        let mut events = Vec::new();
        loop {
            match tokio::time::timeout(LIMIT, self.0.next()).await.expect("an end in time") {
                Some(Ok(Message::Text(text))) => {
                    events.push(serde_json::from_str(&text).expect("JSON"));
                }
                Some(Ok(Message::Close(frame))) => {
                    return (
                        events,
                        frame.map(|frame| (frame.code.into(), frame.reason.to_string())),
                    );
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return (events, None),
            }
        }
    }

    async fn raw(&mut self) -> Message {
        // Pings come forever.
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let next = tokio::time::timeout_at(deadline, self.0.next());
            let next = next.await.expect("a frame in time");
            match next.expect("an open socket").expect("a frame") {
                Message::Ping(_) | Message::Pong(_) => {}
                frame => return frame,
            }
        }
    }

    /// Returns all events up to the first of this type.
    pub async fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.event().await;
            let last = event["type"] == kind;
            events.push(event);
            if last {
                return events;
            }
        }
    }
}

/// Returns the whole events of a stream, and the last identifier.
pub fn server_sent(text: &str) -> (Vec<Value>, Option<String>) {
    let mut last = None;
    let mut events = Vec::new();
    for block in text.split_inclusive("\n\n").filter(|block| block.ends_with("\n\n")) {
        let field = |name| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let Some(data) = field("data:") {
            events.push(serde_json::from_str(data).expect("JSON"));
            last = field("id:").map(str::to_owned).or(last);
        }
    }
    (events, last)
}

/// Reads the rest of the generation that `events` belong to, behind the event `last`, from this
/// server: nothing of it may be lost.
pub async fn rest_of(
    server: &Process,
    session: &impl std::fmt::Display,
    events: &[Value],
    last: Option<String>,
) -> Vec<Value> {
    let generation = events[1]["generation_id"].as_str().expect("a generation");
    let path = format!("/api/v1/chat/sessions/{session}/events?generation_id={generation}");
    let rest = http()
        .get(format!("{}{path}", server.url))
        .header("Last-Event-ID", last.expect("an id"))
        .send()
        .await
        .expect("a stream");
    let (rest, _) = server_sent(&rest.text().await.expect("its end"));
    assert_eq!(rest[0]["recovered"], true);
    rest
}

/// Joins the pieces and checks every offset: no hole, no double.
pub fn joined(events: &[Value]) -> String {
    let mut text = String::new();
    for event in events.iter().filter(|event| event["type"] == "stream_chunk") {
        if event["done"] == false {
            assert_eq!(event["offset"], text.len(), "a hole or a double: {event}");
            text.push_str(event["content"].as_str().expect("content"));
        }
    }
    text
}

/// Returns the types in order, the pieces of an answer as one.
pub fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    kinds.dedup();
    kinds
}
