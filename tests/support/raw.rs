//! A WebSocket client that sends any bytes, and parses what it receives into frames.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::narrow;
use super::process::{LIMIT, Process};

/// The frame types of RFC 6455.
pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// The largest read of the clients that this one stands for.
const ONE_READ: usize = 4096;

/// One frame of the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// One connection after the handshake was sent.
pub struct Raw {
    pub stream: TcpStream,
    received: Vec<u8>,
}

impl Raw {
    /// Sends the handshake.
    pub async fn connect(server: &Process, path: &str) -> Self {
        Self::connect_at(server.url.trim_start_matches("http://"), path).await
    }

    /// Sends the handshake to any address.
    pub async fn connect_at(address: &str, path: &str) -> Self {
        Self::handshake(TcpStream::connect(address).await.expect("a connection"), path).await
    }

    /// Sends the handshake over a connection with little room for what is not read, and reads the
    /// head.
    pub async fn open_narrow(server: &Process, path: &str) -> Self {
        let mut raw = Self::handshake(narrow(server).await, path).await;
        raw.head().await;
        raw
    }

    /// Sends the handshake and reads the head of the response.
    pub async fn open(server: &Process, path: &str) -> Self {
        let mut raw = Self::connect(server, path).await;
        raw.head().await;
        raw
    }

    async fn handshake(stream: TcpStream, path: &str) -> Self {
        let mut raw = Self { stream, received: Vec::new() };
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        raw.send(head.as_bytes()).await;
        raw
    }

    /// Returns the bytes of one read, at most 4,096.
    pub async fn one_read(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; ONE_READ];
        let read = tokio::time::timeout(LIMIT, self.stream.read(&mut bytes));
        let read = read.await.expect("bytes in time").expect("no reset");
        bytes.truncate(read);
        bytes
    }

    /// Returns the event of a text frame that comes whole and alone by one read.
    async fn event_of_one_read(&mut self) -> serde_json::Value {
        self.received = self.one_read().await;
        let frame = self.take().expect("a whole frame");
        assert_eq!((frame.opcode, self.received.len()), (TEXT, 0), "more than one text frame");
        serde_json::from_slice(&frame.payload).expect("JSON")
    }

    async fn head(&mut self) {
        const END: &[u8] = b"\r\n\r\n";
        loop {
            if let Some(at) = self.received.windows(END.len()).position(|bytes| bytes == END) {
                assert!(self.received.starts_with(b"HTTP/1.1 101 "), "no handshake");
                self.received.drain(..at + END.len());
                return;
            }
            let bytes = self.one_read().await;
            assert!(!bytes.is_empty(), "the end before the head");
            self.received.extend(bytes);
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("bytes to be sent");
    }

    /// Returns the next frame; none where the server ended the stream. A reset is a failure.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.take() {
                return Some(frame);
            }
            let bytes = self.one_read().await;
            if bytes.is_empty() {
                assert!(self.received.is_empty(), "the end in the middle of a frame");
                return None;
            }
            self.received.extend(bytes);
        }
    }

    fn take(&mut self) -> Option<Frame> {
        let [first, second, ..] = *self.received else { return None };
        let extended = |bytes: usize| -> Option<usize> {
            let length = self.received.get(2..2 + bytes)?;
            Some(length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
        };
        let (head, length) = match second {
            126 => (4, extended(2)?),
            127 => (10, extended(8)?),
            length => (2, usize::from(length)),
        };
        let payload = self.received.get(head..head + length)?.to_vec();
        assert_eq!(first & 0xf0, 0x80, "a fragment, or a reserved bit");
        self.received.drain(..head + length);
        Some(Frame { opcode: first & 0x0f, payload })
    }

    /// Reads up to the first text of this kind.
    pub async fn until(&mut self, kind: &str) {
        let kind = format!(r#""type":"{kind}""#);
        loop {
            let frame = self.frame().await.expect("an open socket");
            if frame.opcode == TEXT && String::from_utf8_lossy(&frame.payload).contains(&kind) {
                return;
            }
        }
    }

    /// Returns the payload of the close frame, after which the stream has to end without a reset.
    pub async fn closed(&mut self) -> Vec<u8> {
        let payload = loop {
            let frame = self.frame().await.expect("a close frame before the end");
            if frame.opcode == CLOSE {
                break frame.payload;
            }
        };
        assert_eq!(self.frame().await, None, "something after the close frame");
        payload
    }

    /// Does the same within this time.
    pub async fn closed_within(&mut self, limit: Duration) -> Vec<u8> {
        tokio::time::timeout(limit, self.closed()).await.expect("the end in time")
    }
}

/// Greets the server at this address in so many tries like a client without a library: it reads the head
/// of the handshake by one read, and each event by one more. On a busy machine the client itself may
/// read later than the welcome comes; such a try shows nothing.
pub async fn reads_head_and_events_apart(address: &str, tries: usize, welcome: Duration) {
    let (mut alone, mut late) = (0, 0);
    while alone < tries {
        let asked = Instant::now();
        let mut raw = Raw::connect_at(address, "/ws").await;
        let head = raw.one_read().await;
        assert!(head.starts_with(b"HTTP/1.1 101 "), "no handshake");
        if !head.ends_with(b"\r\n\r\n") {
            assert!(asked.elapsed() >= welcome, "{}", String::from_utf8_lossy(&head));
            late += 1;
            assert!(late < 10, "the head never comes alone");
            continue;
        }
        alone += 1;
        assert_eq!(raw.event_of_one_read().await["type"], "connection");
        raw.send(&masked(TEXT, [1, 2, 3, 4], br#"{"type": "ping"}"#)).await;
        assert_eq!(raw.event_of_one_read().await["type"], "pong");
    }
}

/// Returns a frame as a client has to send it.
pub fn masked(opcode: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frame.push(0xfe);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0xff);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Returns a close frame of a client.
pub fn close(code: u16, reason: &str) -> Vec<u8> {
    masked(CLOSE, [0; 4], &close_payload(code, reason))
}

/// Returns the payload of a close frame with this code and reason.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}
