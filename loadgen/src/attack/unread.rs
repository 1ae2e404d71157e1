//! Clients that ask for large replies and read nothing of them.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at};
use uuid::Uuid;

use super::frames::{TEXT, masked};
use super::target::{Addresses, Target};

/// The messages of the session that is asked for, and the characters of each: a page of them has half a MiB.
const MESSAGES: usize = 60;
const MESSAGE: usize = 8_000;
/// The receive buffer of a connection, in bytes.
const BUFFER: u32 = 4096;
/// The time limit of one step.
const LIMIT: Duration = Duration::from_secs(10);
/// The time for which a reply is left unread.
const HELD: Duration = Duration::from_secs(20);
/// The time within which all connections are opened.
const RAMP: Duration = Duration::from_secs(2);

/// Holds so many connections with replies that are not read, until the attack is over.
pub async fn run(target: &Target, count: usize, addresses: Addresses) {
    let Some(session) = large_session(target, &addresses.of(0)).await else {
        target.saw("no session to ask for");
        return;
    };
    let mut clients = JoinSet::new();
    for number in 0..count {
        let target = target.clone();
        let request = request(number, &session, &addresses.of(number));
        clients.spawn(async move {
            sleep(RAMP.mul_f64(number as f64 / count.max(1) as f64)).await;
            while !target.is_over() {
                let held = timeout_at(target.until, hold(target.replica(number), &request)).await;
                target.saw(held.unwrap_or("held to the end"));
            }
        });
    }
    while clients.join_next().await.is_some() {}
}

/// Makes a session with long messages.
async fn large_session(target: &Target, address: &str) -> Option<String> {
    let session = Uuid::new_v4().to_string();
    let message = format!("[[tokens=1]] {}", "x".repeat(MESSAGE));
    for _ in 0..MESSAGES {
        let request = target.http.post(format!("http://{}/api/v1/chat", target.replica(0)));
        let request = request.header("x-forwarded-for", address);
        let sent = request.json(&json!({"session_id": session, "message": message})).send();
        let reply = timeout(LIMIT, sent).await.ok()?.ok()?;
        target.saw(reply.status().as_str());
    }
    Some(session)
}

/// Returns the bytes that a client of this number sends.
fn request(number: usize, session: &str, address: &str) -> Vec<u8> {
    let head = |path: &str, more: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: {address}\r\n{more}\r\n"
        )
        .into_bytes()
    };
    match number % 3 {
        0 => head(&format!("/api/v1/chat/sessions/{session}?limit=500"), ""),
        1 => head(&format!("/api/v1/chat/sessions/{session}/events?cursor=unknown"), ""),
        _ => {
            let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
            let ask = masked(TEXT, true, br#"{"type":"get_history","limit":500}"#);
            [head(&format!("/ws?session_id={session}"), upgrade), ask].concat()
        }
    }
}

/// Sends a request, and reads nothing of its reply.
async fn hold(replica: &str, request: &[u8]) -> &'static str {
    let Ok(Ok(mut stream)) = timeout(LIMIT, connect(replica)).await else {
        sleep(Duration::from_secs(1)).await;
        return "refused a connection";
    };
    if !matches!(timeout(LIMIT, stream.write_all(request)).await, Ok(Ok(()))) {
        return "closed by the server";
    }
    sleep(HELD).await;
    "left unread"
}

async fn connect(replica: &str) -> std::io::Result<TcpStream> {
    let address: SocketAddr = replica.parse().map_err(std::io::Error::other)?;
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.connect(address).await
}
