//! Connections that send bytes of their own making: slow ones, garbage, and sockets in a loop.

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use testkit::frames::{DATA, END_HEADERS, HEADERS, PING, PREFACE, SETTINGS, fields, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout, timeout_at};

use super::frames::{CONTINUATION, TEXT, WEBSOCKET_PING, masked};
use super::target::{Addresses, Target};

/// The time limit of a connection, and of a write.
const LIMIT: Duration = Duration::from_secs(5);
/// The pause before a connection that the server closed is opened again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The time within which all connections of an attack are opened, one after another.
const RAMP: Duration = Duration::from_secs(2);
/// The bytes of the first fragment of a message that never ends: as many as one may have.
const FRAGMENT: usize = 512_000;
/// The pings of a flood that one write holds.
const PINGS: usize = 20;
/// The clients of the one address that open sockets at the same time.
const OPENERS: usize = 16;
/// The sockets that each of them holds, before it closes the oldest.
const HELD: usize = 40;
/// The pause between two sockets of one of them.
const NEXT_SOCKET: Duration = Duration::from_millis(20);

/// The kinds of connections of an attack, over which its connections are spread.
#[derive(Clone, Copy, Debug)]
pub enum Connections {
    /// HTTP/1: half heads, heads and bodies of one byte a second.
    SlowHttp1,
    /// HTTP/2: prefaces without a request, half heads, bodies of one byte a second, only pings.
    SlowHttp2,
    /// Bytes that are no HTTP, frames that are no WebSocket's, fragments of messages that never end,
    /// floods of pings.
    Garbage,
}

/// The bytes that one connection sends.
struct Bytes {
    first: Vec<u8>,
    then: Vec<u8>,
    every: Duration,
}

/// Holds `count` connections until the attack is over. One that the server closes is opened again.
pub async fn run(
    target: &Target,
    kind: Connections,
    count: usize,
    addresses: Addresses,
    seed: u64,
) {
    let mut clients = JoinSet::new();
    for number in 0..count {
        let target = target.clone();
        clients.spawn(async move {
            sleep(RAMP.mul_f64(number as f64 / count.max(1) as f64)).await;
            let mut random = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
            while !target.is_over() {
                let bytes = bytes(kind, number, &addresses.of(number), &mut random);
                let held = timeout_at(target.until, hold(target.replica(number), &bytes)).await;
                target.saw(held.unwrap_or("held to the end"));
                let _ = timeout_at(target.until, sleep(AGAIN_AFTER)).await;
            }
        });
    }
    while clients.join_next().await.is_some() {}
}

/// Sends the bytes; returns once the connection has ended, and how.
async fn hold(replica: &str, bytes: &Bytes) -> &'static str {
    let Ok(Ok(mut stream)) = timeout(LIMIT, TcpStream::connect(replica)).await else {
        return "refused a connection";
    };
    let (mut reader, mut writer) = stream.split();
    let read = async {
        let mut received = [0; 4096];
        while matches!(reader.read(&mut received).await, Ok(count) if count > 0) {}
    };
    let write = async {
        let mut tick = interval(bytes.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        let mut next = &bytes.first;
        while writer.write_all(next).await.is_ok() {
            next = &bytes.then;
            tick.tick().await;
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
    "closed by the server"
}

fn bytes(kind: Connections, number: usize, address: &str, random: &mut StdRng) -> Bytes {
    let second = Duration::from_secs(1);
    let head = |line: &str, more: &str| {
        let head = format!("{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: {address}\r\n");
        (head + more).into_bytes()
    };
    let post = |more: &str| head("POST /api/v1/chat/", more);
    let socket = |frames: &[u8]| {
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        [&head("GET /ws", upgrade)[..], frames].concat()
    };
    let mut garbage = |length: usize| {
        let mut bytes = vec![0; length];
        random.fill_bytes(&mut bytes);
        bytes
    };
    let (first, then, every) = match (kind, number % 4) {
        (Connections::SlowHttp1, 0) => (post("X-Half: "), Vec::new(), second),
        (Connections::SlowHttp1, 1) => (post("X-Slow: "), b"x".to_vec(), second),
        (Connections::SlowHttp1, _) => {
            let length = "Content-Type: application/json\r\nContent-Length: 10000\r\n\r\n{";
            (post(length), b" ".to_vec(), second)
        }
        (Connections::SlowHttp2, 0) => (preface(), Vec::new(), second),
        (Connections::SlowHttp2, 1) => {
            let half = fields("POST", "/api/v1/chat/", Some(address));
            let half = frame(HEADERS, 0, 1, &half[..half.len() / 2]);
            ([preface(), half].concat(), Vec::new(), second)
        }
        (Connections::SlowHttp2, 2) => {
            let head = fields("POST", "/api/v1/chat/", Some(address));
            let request = frame(HEADERS, END_HEADERS, 1, &head);
            ([preface(), request].concat(), frame(DATA, 0, 1, b" "), second)
        }
        (Connections::SlowHttp2, _) => (preface(), frame(PING, 0, 0, &[0; 8]), second),
        (Connections::Garbage, 0) => (garbage(4096), garbage(256), second / 10),
        (Connections::Garbage, 1) => (socket(&garbage(4096)), garbage(256), second / 10),
        (Connections::Garbage, 2) => {
            let fragment = masked(TEXT, false, &vec![b' '; FRAGMENT]);
            (socket(&fragment), masked(CONTINUATION, false, b" "), second)
        }
        (Connections::Garbage, _) => {
            let pings = masked(WEBSOCKET_PING, true, b"1234").repeat(PINGS);
            (socket(&pings), pings, second / 5)
        }
    };
    Bytes { first, then, every }
}

/// Opens WebSockets of one address in a loop until the attack is over.
pub async fn open_in_a_loop(target: &Target, addresses: Addresses) {
    let mut clients = JoinSet::new();
    for number in 0..OPENERS {
        let target = target.clone();
        clients.spawn(async move {
            let mut held = VecDeque::with_capacity(HELD);
            let mut turn = number;
            while !target.is_over() {
                match timeout(LIMIT, open(target.replica(turn), &addresses.of(0))).await {
                    Ok(Ok((stream, status))) => {
                        target.saw(&status);
                        if held.len() >= HELD {
                            held.pop_front();
                        }
                        if status == "101" {
                            held.push_back(stream);
                        }
                    }
                    Ok(Err(_)) => target.saw("connection lost"),
                    Err(_) => target.saw("no response in time"),
                }
                turn += 1;
                sleep(NEXT_SOCKET).await;
            }
        });
    }
    while clients.join_next().await.is_some() {}
}

/// Sends a handshake, and returns the status of its response.
async fn open(replica: &str, address: &str) -> std::io::Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect(replica).await?;
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: {address}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut line = [0; 12];
    stream.read_exact(&mut line).await?;
    Ok((stream, String::from_utf8_lossy(&line[9..]).into_owned()))
}

/// Returns what begins a connection of HTTP/2.
fn preface() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}
