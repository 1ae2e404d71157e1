//! The part of an HTTP client that is needed to check whether a server of this machine answers.
//!
//! It speaks HTTP/1.0, in which a body ends with its connection: no lengths, no chunks, no TLS, and
//! no proxy. The development commands are compiled before anything else, so a whole client would
//! cost more than it is worth.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, bail};

/// The largest body that is read whole, in bytes.
const LARGEST_BODY: u64 = 64 << 20;

/// A response whose head was read; its body comes line by line or whole.
pub struct Response {
    /// The status.
    pub status: u16,
    body: BufReader<TcpStream>,
}

impl Response {
    /// Reads the rest of the body.
    ///
    /// # Errors
    /// Fails where the connection breaks, and where the body is not UTF-8.
    pub fn text(self) -> anyhow::Result<String> {
        let mut text = String::new();
        self.body.take(LARGEST_BODY).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Returns the body's lines as they come.
    pub fn lines(self) -> impl Iterator<Item = std::io::Result<String>> {
        self.body.lines()
    }
}

/// Sends a request; `body` is JSON. `limit` holds for the connection and for each pause of the response.
///
/// # Errors
/// Fails where no server answers in time, and where the address is not `http://host:port/path`.
pub fn send(
    method: &str,
    url: &str,
    body: Option<&str>,
    limit: Duration,
) -> anyhow::Result<Response> {
    let rest =
        url.strip_prefix("http://").with_context(|| format!("not an http address: {url}"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
    let address = (host.trim_matches(['[', ']']), port.parse()?);
    let address = address.to_socket_addrs()?.next().context("the host has no address")?;
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let body = body.unwrap_or_default();
    let request = format!(
        "{method} /{path} HTTP/1.0\r\nHost: {authority}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.by_ref().take(4096).read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let Some(status) = status else { bail!("{url} does not answer in HTTP: {line:?}") };
    while line.trim_end() != "" {
        line.clear();
        reader.by_ref().take(64 << 10).read_line(&mut line)?;
    }
    Ok(Response { status, body: reader })
}

/// Returns whether this address answers a GET with success in time.
pub fn is_ok(url: &str, limit: Duration) -> bool {
    send("GET", url, None, limit).is_ok_and(|answer| (200..300).contains(&answer.status))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Answers one request, and returns its address and the request.
    fn answering(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let url = format!("http://{}/a?b", listener.local_addr().expect("an address"));
        let request = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut bytes = [0; 1024];
            let size = stream.read(&mut bytes).expect("a request");
            stream.write_all(answer.as_bytes()).expect("an answer");
            String::from_utf8_lossy(&bytes[..size]).into_owned()
        });
        (url, request)
    }

    #[test]
    fn a_request_carries_its_body_and_the_answer_its_status_and_lines() {
        let (url, request) = answering("HTTP/1.0 201 Created\r\nA: b\r\n\r\none\ntwo\n");
        let answer = send("POST", &url, Some("{}"), LIMIT).expect("an answer");
        assert_eq!(answer.status, 201);
        let lines: Vec<String> = answer.lines().map_while(Result::ok).collect();
        assert_eq!(lines, ["one", "two"]);
        let request = request.join().expect("a request");
        assert!(request.starts_with("POST /a?b HTTP/1.0\r\n"), "{request}");
        assert!(request.ends_with("Content-Length: 2\r\n\r\n{}"), "{request}");
    }

    #[test]
    fn a_reply_that_is_not_http_and_a_missing_server_are_errors() {
        let (url, _asked) = answering("SSH-2.0-x\r\n");
        assert!(send("GET", &url, None, LIMIT).is_err());
        assert!(send("GET", "https://127.0.0.1:1/", None, LIMIT).is_err());
        assert!(!is_ok("http://127.0.0.1:1/", LIMIT));
    }
}
