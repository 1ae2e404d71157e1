//! A few questions to one Redis server, each on a connection of its own or many on one.

use std::time::Duration;

use anyhow::{Context, bail};
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Time limit of a connection or a batch of commands.
const LIMIT: Duration = Duration::from_secs(1);
/// Bytes of a reply, at most.
const LARGEST: usize = 16 << 20;

/// A reply.
pub type Reply = OwnedFrame;

/// A connection to one server.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects to a port of this machine.
    ///
    /// # Errors
    /// Where nobody answers in time.
    pub async fn open(port: u16) -> anyhow::Result<Self> {
        let stream = timeout(LIMIT, TcpStream::connect(("127.0.0.1", port)))
            .await
            .with_context(|| format!("Redis at port {port} does not answer"))??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends commands at once and gives their replies, errors among them, in order.
    ///
    /// # Errors
    /// Where the connection breaks or the replies do not come in time.
    pub async fn ask<C: AsRef<[A]>, A: AsRef<str>>(
        &mut self,
        commands: &[C],
    ) -> anyhow::Result<Vec<Reply>> {
        timeout(LIMIT, self.exchange(commands)).await.context("Redis does not reply in time")?
    }

    async fn exchange<C: AsRef<[A]>, A: AsRef<str>>(
        &mut self,
        commands: &[C],
    ) -> anyhow::Result<Vec<Reply>> {
        let mut request = Vec::new();
        for command in commands {
            let command = command.as_ref();
            request.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
            for word in command {
                let word = word.as_ref();
                request.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
            }
        }
        self.stream.write_all(&request).await?;
        let mut replies = Vec::with_capacity(commands.len());
        while replies.len() < commands.len() {
            match decode(&self.buffer) {
                Ok(Some((reply, used))) => {
                    self.buffer.drain(..used);
                    replies.push(reply);
                }
                Ok(None) => {
                    if self.stream.read_buf(&mut self.buffer).await? == 0 {
                        bail!("Redis closed the connection");
                    }
                    if self.buffer.len() > LARGEST {
                        bail!("a reply is larger than {LARGEST} bytes");
                    }
                }
                Err(error) => bail!("not a reply: {error}"),
            }
        }
        Ok(replies)
    }
}

/// One command over a connection of its own. A reply that is an error is one here too.
///
/// # Errors
/// As [`Connection::ask`], and the server's own.
pub async fn ask(port: u16, command: &[&str]) -> anyhow::Result<Reply> {
    let reply = Connection::open(port).await?.ask(&[command]).await?.pop();
    match reply {
        Some(Reply::Error(error)) => bail!("{}: {error}", command.join(" ")),
        Some(reply) => Ok(reply),
        None => bail!("no reply"),
    }
}

/// A reply as text; empty where it is none.
pub fn text(reply: &Reply) -> String {
    match reply {
        Reply::BulkString(bytes) | Reply::SimpleString(bytes) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
        Reply::Integer(number) => number.to_string(),
        _ => String::new(),
    }
}

/// A reply's parts as texts.
pub fn texts(reply: &Reply) -> Vec<String> {
    match reply {
        Reply::Array(parts) => parts.iter().map(text).collect(),
        _ => Vec::new(),
    }
}
