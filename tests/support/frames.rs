//! HTTP/2 frame by frame, as a hostile client sends it.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub use testkit::frames::{DATA, END_HEADERS, HEADERS, PING, PREFACE, SETTINGS, fields, frame};

use super::process::{LIMIT, Process};

pub const PRIORITY: u8 = 2;
pub const RESET: u8 = 3;
pub const GO_AWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;

/// One frame of the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// One connection.
pub struct Frames {
    pub stream: TcpStream,
}

impl Frames {
    /// Connects, and sends the preface and settings, as pairs of identifier and value.
    pub async fn open(server: &Process, settings: &[(u16, u32)]) -> Self {
        let address = server.url.trim_start_matches("http://");
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        let mut frames = Self { stream };
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        frames.send(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()).await.expect("sent");
        frames
    }

    /// Sends bytes; the server may have closed the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        tokio::time::timeout(LIMIT, self.stream.write_all(bytes)).await.expect("room in time")
    }

    /// Returns the next frame; none at the end of the stream, also by a reset.
    pub async fn next(&mut self) -> Option<Frame> {
        tokio::time::timeout(LIMIT, self.read()).await.expect("a frame in time").ok()
    }

    async fn read(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await?;
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Returns the next frame of this type.
    pub async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("an open connection");
            if frame.kind == kind {
                return frame;
            }
        }
    }
}

/// Returns the frame that begins a request; one without a body is whole.
pub fn request(stream: u32, method: &str, path: &str, has_body: bool) -> Vec<u8> {
    let flags = if has_body { END_HEADERS } else { END_HEADERS | END_STREAM };
    frame(HEADERS, flags, stream, &fields(method, path, None))
}
