//! HTTP/1.1 byte by byte, like a simple client: it writes its whole request, and then reads.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::process::{LIMIT, Process};

/// The ways in which a body shows its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    ContentLength,
    Chunked,
}

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    /// Returns whether the server announces that it closes the connection.
    pub fn closes(&self) -> bool {
        self.head.to_ascii_lowercase().contains("\r\nconnection: close\r\n")
    }
}

/// One connection.
pub struct Raw(BufReader<TcpStream>);

impl Raw {
    pub async fn connect(server: &Process) -> Self {
        Self::at(server.url.trim_start_matches("http://")).await
    }

    pub async fn at(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        Self(BufReader::new(stream))
    }

    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        tokio::time::timeout(LIMIT, self.0.get_mut().write_all(bytes)).await.expect("room in time")
    }

    /// Ends the direction to the server, and continues to read.
    pub async fn half_close(&mut self) {
        self.0.get_mut().shutdown().await.expect("a half-open connection");
    }

    /// Sends a request with this many bytes of JSON: the head in one segment, its body in others.
    pub async fn request(
        &mut self,
        (method, path, headers): (&str, &str, &str),
        bytes: usize,
        framing: Framing,
    ) -> io::Result<()> {
        let host = if headers.contains("Host:") { "" } else { "Host: 127.0.0.1\r\n" };
        let length = match framing {
            Framing::ContentLength => format!("Content-Length: {bytes}"),
            Framing::Chunked => "Transfer-Encoding: chunked".to_owned(),
        };
        let head = format!("{method} {path} HTTP/1.1\r\n{host}{headers}{length}\r\n\r\n");
        self.write(head.as_bytes()).await?;
        let body = body(bytes);
        match framing {
            Framing::ContentLength => self.write(&body).await,
            Framing::Chunked => {
                for chunk in body.chunks(16 << 10) {
                    self.write(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
                    self.write(chunk).await?;
                    self.write(b"\r\n").await?;
                }
                self.write(b"0\r\n\r\n").await
            }
        }
    }

    /// Returns the next response, interim ones too.
    pub async fn response(&mut self) -> io::Result<Response> {
        tokio::time::timeout(LIMIT, self.read_response()).await.expect("a response in time")
    }

    /// Returns the next response, whenever it comes.
    pub async fn response_in_any_time(&mut self) -> io::Result<Response> {
        self.read_response().await
    }

    async fn read_response(&mut self) -> io::Result<Response> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await?);
        }
        let head = String::from_utf8(head).expect("text");
        let status = head[9..12].parse().expect("a status");
        let length = head.to_ascii_lowercase();
        let length =
            length.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
        self.0.read_exact(&mut body).await?;
        Ok(Response { status, head, body: String::from_utf8(body).expect("text") })
    }

    /// Returns the next byte, of whatever kind.
    pub async fn byte(&mut self) -> io::Result<u8> {
        self.0.read_u8().await
    }

    /// Returns all bytes that still come, to the end of the connection.
    pub async fn rest(&mut self) -> io::Result<String> {
        let mut rest = String::new();
        let read = self.0.read_to_string(&mut rest);
        tokio::time::timeout(LIMIT, read).await.expect("an end in time").map(|_| rest)
    }
}

/// Returns a JSON object of this many bytes without a meaning; of none, nothing.
fn body(bytes: usize) -> Vec<u8> {
    let empty = r#"{"pad":""}"#;
    if bytes < empty.len() {
        return vec![b' '; bytes];
    }
    format!(r#"{{"pad":"{}"}}"#, "x".repeat(bytes - empty.len())).into_bytes()
}
