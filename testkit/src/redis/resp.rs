//! A few commands to one Redis server over RESP2, on a connection of its own.
//!
//! The clients of jarvis reconnect by themselves and would hide faults that a test or a fault
//! injector has to see. A reply is read as it comes, so that one of many megabytes takes no longer than
//! its bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};

/// Time limit of a connection, and of each read and write.
const LIMIT: Duration = Duration::from_secs(1);
/// The largest text in a reply, in bytes.
const LARGEST_TEXT: usize = 64 << 20;
/// The deepest nesting of lists in a reply.
const DEEPEST: usize = 16;

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A string, or the text of a status.
    Text(String),
    /// An integer.
    Number(i64),
    /// An error.
    Error(String),
    /// A list.
    List(Vec<Reply>),
    /// Nothing.
    Nil,
}

impl Reply {
    /// Returns the reply as one text; empty where it is a list or nothing.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) | Self::Error(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::List(_) | Self::Nil => String::new(),
        }
    }

    /// Returns the texts of a list; empty where the reply is none.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::List(parts) => parts.iter().map(Self::text).collect(),
            _ => Vec::new(),
        }
    }
}

/// Writes one line a part, as `redis-cli` does without a terminal.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(parts) => parts.iter().try_for_each(|part| part.fmt(f)),
            other => writeln!(f, "{}", other.text()),
        }
    }
}

/// A connection to one server of this machine.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects to a port.
    ///
    /// # Errors
    /// Fails where no server answers in time.
    pub fn open(port: u16) -> anyhow::Result<Self> {
        Self::open_with(port, LIMIT)
    }

    /// Connects to a port, with another time limit of each read and write.
    ///
    /// # Errors
    /// Fails where no server answers in time.
    pub fn open_with(port: u16, limit: Duration) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = TcpStream::connect_timeout(&address, LIMIT)
            .with_context(|| format!("the Redis at port {port} does not answer"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let mut connection = Self { stream: BufReader::new(stream) };
        let credentials = credentials().get(&port).cloned();
        if let Some((user, password)) = credentials {
            // Another server may have the port by now, whose default user may do everything.
            connection.ask(&[["AUTH", &user, &password]])?;
        }
        Ok(connection)
    }

    /// Sends commands at once and returns their replies, errors among them, in order.
    ///
    /// # Errors
    /// Fails where the connection breaks or the replies do not come in time.
    pub fn ask<C: AsRef<[A]>, A: AsRef<str>>(
        &mut self,
        commands: &[C],
    ) -> anyhow::Result<Vec<Reply>> {
        let mut request = Vec::new();
        for command in commands {
            write!(request, "*{}\r\n", command.as_ref().len())?;
            for part in command.as_ref() {
                let part = part.as_ref();
                write!(request, "${}\r\n{part}\r\n", part.len())?;
            }
        }
        self.stream.get_mut().write_all(&request)?;
        commands.iter().map(|_| read(&mut self.stream, DEEPEST)).collect()
    }
}

/// The user and the password by which connections to a port sign in.
type Credentials = BTreeMap<u16, (String, String)>;

fn credentials() -> MutexGuard<'static, Credentials> {
    static CREDENTIALS: Mutex<Credentials> = Mutex::new(BTreeMap::new());
    CREDENTIALS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the connections that this process opens to a port sign in.
pub(super) fn sign_in_at(port: u16, user: &str, password: &str) {
    credentials().insert(port, (user.to_owned(), password.to_owned()));
}

/// Sends one command over a connection of its own. An error that the server replies is an error here.
///
/// # Errors
/// Fails as [`Connection::ask`] does, and where the server replies with an error.
pub fn ask(port: u16, command: &[&str]) -> anyhow::Result<Reply> {
    match Connection::open(port)?.ask(&[command])?.pop() {
        Some(Reply::Error(error)) => bail!("{}: {error}", command.join(" ")),
        Some(reply) => Ok(reply),
        None => bail!("no reply"),
    }
}

fn read(stream: &mut impl BufRead, depth: usize) -> anyhow::Result<Reply> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        bail!("Redis closed the connection");
    }
    let line = line.trim_end();
    let (kind, rest) = line.split_at_checked(1).context("an empty line is no reply")?;
    let length = || -> anyhow::Result<Option<usize>> {
        let length: i64 = rest.parse().with_context(|| format!("not a length: {line:?}"))?;
        Ok(usize::try_from(length).ok())
    };
    Ok(match kind {
        "+" => Reply::Text(rest.to_owned()),
        "-" => Reply::Error(rest.to_owned()),
        ":" => Reply::Number(rest.parse()?),
        "$" => match length()? {
            Some(length) if length > LARGEST_TEXT => bail!("a text of {length} bytes is too large"),
            Some(length) => {
                let mut bytes = vec![0; length + 2];
                stream.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Reply::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            None => Reply::Nil,
        },
        "*" => match length()? {
            Some(_) if depth == 0 => bail!("a reply is nested too deep"),
            Some(length) => {
                Reply::List((0..length).map(|_| read(stream, depth - 1)).collect::<Result<_, _>>()?)
            }
            None => Reply::Nil,
        },
        _ => bail!("not a reply: {line:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_reply_is_read_and_printed_a_line_a_part() {
        let bytes = b"*6\r\n+OK\r\n:12\r\n$4\r\na\r\nb\r\n$-1\r\n*1\r\n-ERR no\r\n*-1\r\n";
        let reply = read(&mut bytes.as_slice(), DEEPEST).expect("a reply");
        let text = |text: &str| Reply::Text(text.to_owned());
        let list = [
            text("OK"),
            Reply::Number(12),
            text("a\r\nb"),
            Reply::Nil,
            Reply::List(vec![Reply::Error("ERR no".to_owned())]),
            Reply::Nil,
        ];
        assert_eq!(reply, Reply::List(list.to_vec()));
        assert_eq!(reply.to_string(), "OK\n12\na\r\nb\n\nERR no\n\n");
    }

    #[test]
    fn a_reply_that_is_cut_off_or_is_none_is_an_error() {
        for bytes in ["", "$5\r\nab", "*2\r\n+a\r\n", "?\r\n", "$x\r\n", "\r\n"] {
            assert!(read(&mut bytes.as_bytes(), DEEPEST).is_err(), "{bytes:?}");
        }
    }
}
