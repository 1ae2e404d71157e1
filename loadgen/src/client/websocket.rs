//! A client that uses a WebSocket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rand::Rng;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::{Client, FORWARDED_FOR, Outcome, Watch, parse};
use crate::checker::{Flaw, Progress, Turn};
use crate::event::Event;
use crate::script::random_uuid;
use crate::tally::count;

/// The time limit of a send, and the longest one of a handshake and its first event.
const CONNECT_LIMIT: Duration = Duration::from_secs(4);
/// The time without an event in a running turn after which the client sends a ping.
const SILENCE: Duration = Duration::from_secs(5);
/// The time limit of the pong.
const PONG_LIMIT: Duration = Duration::from_secs(2);
/// The time that the receipt of a message may take before the message is sent again to another
/// replica.
const RECEIPT_LIMIT: Duration = Duration::from_secs(10);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The connection of one session, and the cursor to resume from.
#[derive(Default)]
pub struct Line {
    socket: Option<Socket>,
    cursor: Option<String>,
    /// The time when the running turn's message was sent over this connection.
    sent: Option<Instant>,
    /// The earliest time of the next message, as the service requested.
    not_before: Option<Instant>,
    /// An ended turn whose message was repeated: the repeat's answer may still come.
    repeated: Option<Turn>,
}

impl Line {
    /// Keeps a turn that has ended.
    pub fn keep(&mut self, turn: Turn) {
        self.repeated = turn.was_repeated().then_some(turn);
    }

    fn may_ask(&self) -> bool {
        self.sent.is_none() && self.not_before.is_none_or(|until| Instant::now() >= until)
    }
}

/// The events of a connection.
enum Heard {
    Event(Box<Event>),
    /// The connection is lost; with the seconds until a new attempt, where the replica named them.
    Lost(Option<f64>),
    /// The server refuses this client for good.
    Refused(String),
    Over,
}

/// Sends a turn, and reads the answer to its end.
pub async fn turn(
    client: &mut Client,
    line: &mut Line,
    turn: &mut Turn,
    watch: &mut Watch,
) -> Outcome {
    let message_id = random_uuid(&mut client.random).to_string();
    line.sent = None;
    line.not_before = None;
    loop {
        if watch.is_over() {
            return Outcome::Unfinished;
        }
        let heard = match line.socket {
            None => {
                connect(client, line).await;
                watch.attempted(line.socket.is_some());
                continue;
            }
            Some(_) if turn.is_unacknowledged() && line.may_ask() => {
                ask(client, line, turn, &message_id).await
            }
            Some(_) => {
                let until = line.not_before.filter(|_| line.sent.is_none());
                listen(line, until.unwrap_or(watch.limit)).await
            }
        };
        match heard {
            Heard::Over => {}
            Heard::Lost(asked) => {
                line.socket = None;
                line.sent = None;
                watch.lost(asked.is_some());
                client.pause(asked).await;
            }
            Heard::Refused(code) => {
                line.socket = None;
                return Outcome::Failed(code);
            }
            Heard::Event(event) => {
                if let Some(outcome) = hear(client, line, turn, watch, &event) {
                    return outcome;
                }
            }
        }
        if turn.is_unacknowledged() && line.sent.is_some_and(|sent| sent.elapsed() > RECEIPT_LIMIT)
        {
            client.error("no_receipt");
            line.socket = None;
            line.sent = None;
        }
    }
}

/// Reads between two turns, where no event of a turn may come.
pub async fn idle(client: &mut Client, line: &mut Line, until: Instant) {
    while let Some(socket) = &mut line.socket {
        let Ok(frame) = tokio::time::timeout_at(until, socket.next()).await else { return };
        match read(frame) {
            Heard::Event(event) => {
                if event.cursor.is_some() {
                    line.cursor.clone_from(&event.cursor);
                }
                if !is_replayed(client, line, &event) && event.generation_id.is_some() {
                    let flaw = Flaw::Reordered(format!("{} after the end", event.kind));
                    let generation = event.generation_id.as_deref();
                    client.shared.tally.flaw(client.name, &client.session, generation, &flaw);
                }
            }
            Heard::Over => {}
            Heard::Lost(_) | Heard::Refused(_) => line.socket = None,
        }
    }
    tokio::time::sleep_until(until).await;
}

async fn ask(client: &mut Client, line: &mut Line, turn: &mut Turn, message_id: &str) -> Heard {
    let Some(socket) = &mut line.socket else { return Heard::Lost(None) };
    let model = &client.shared.options.script.model;
    let chat = match turn.target() {
        None => json!({"type": "chat", "message": turn.prompt(), "message_id": message_id,
            "model": model}),
        Some(beside) => json!({"type": beside.name(), "message": turn.prompt(),
            "message_id": beside.id(), "idempotency_key": message_id, "model": model}),
    };
    if turn.sent() > 1 {
        count(&client.shared.tally.counters.resends);
    }
    line.sent = Some(Instant::now());
    match timeout(CONNECT_LIMIT, socket.send(Message::text(chat.to_string()))).await {
        Ok(Ok(())) => Heard::Over,
        _ => Heard::Lost(None),
    }
}

/// Waits for the next event. After a long time without one the client sends a ping.
async fn listen(line: &mut Line, limit: Instant) -> Heard {
    let Some(socket) = &mut line.socket else { return Heard::Lost(None) };
    let left = limit.saturating_duration_since(Instant::now());
    if let Ok(frame) = timeout(SILENCE.min(left), socket.next()).await {
        return read(frame);
    }
    if left < SILENCE {
        return Heard::Over;
    }
    let ping = Message::text(json!({"type": "ping"}).to_string());
    match timeout(PONG_LIMIT, socket.send(ping)).await {
        Ok(Ok(())) => {}
        _ => return Heard::Lost(None),
    }
    match timeout(PONG_LIMIT, socket.next()).await {
        Ok(frame) => read(frame),
        Err(_) => Heard::Lost(None),
    }
}

fn read(frame: Option<Result<Message, Error>>) -> Heard {
    #[derive(Deserialize)]
    struct Reason {
        retry_after: f64,
    }
    match frame {
        Some(Ok(Message::Text(text))) => match parse(&text) {
            Some(event) => Heard::Event(Box::new(event)),
            None => Heard::Refused("not_json".to_owned()),
        },
        Some(Ok(Message::Close(frame))) => {
            let Some(frame) = frame else { return Heard::Lost(None) };
            let code = u16::from(frame.code);
            if matches!(code, 1008 | 1009) {
                return Heard::Refused(format!("closed_{code}"));
            }
            let reason: Option<Reason> = serde_json::from_str(&frame.reason).ok();
            Heard::Lost(reason.map(|reason| reason.retry_after))
        }
        Some(Ok(_)) => Heard::Over,
        Some(Err(_)) | None => Heard::Lost(None),
    }
}

/// Returns whether an event belongs to the turn before, whose repeated message is answered only
/// now.
fn is_replayed(client: &Client, line: &mut Line, event: &Event) -> bool {
    let Some(turn) = &mut line.repeated else { return false };
    if event.generation_id.is_none() || event.generation_id.as_deref() != turn.generation() {
        return false;
    }
    turn.take(event);
    client.flaws(turn);
    true
}

fn hear(
    client: &mut Client,
    line: &mut Line,
    turn: &mut Turn,
    watch: &mut Watch,
    event: &Event,
) -> Option<Outcome> {
    if event.cursor.is_some() {
        line.cursor.clone_from(&event.cursor);
    }
    if is_replayed(client, line, event) {
        return None;
    }
    if event.kind == "error" && event.generation_id.is_none() {
        let code = event.code.clone().unwrap_or_default();
        client.error(&code);
        if !event.retryable {
            return Some(Outcome::Failed(code));
        }
        // The client continues to read: the refused message may nevertheless have been accepted.
        let seconds = event.retry_after.unwrap_or(1.0) + client.random.random_range(0.0..1.0);
        line.not_before = Some(Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 10.0)));
        line.sent = None;
        return None;
    }
    let progress = if event.kind == "history" {
        count(&client.shared.tally.counters.unrecovered);
        line.sent = None;
        turn.take_snapshot(event)
    } else {
        turn.take(event)
    };
    client.note(watch, turn, &progress);
    match progress {
        Progress::Complete => Some(Outcome::Complete),
        Progress::Failed(code) => Some(Outcome::Failed(code)),
        _ => None,
    }
}

/// Connects once; after a failure it waits.
async fn connect(client: &mut Client, line: &mut Line) {
    let base = client.another_replica().replacen("http", "ws", 1);
    let mut url = format!("{base}/ws?session_id={}", client.session);
    if let Some(cursor) = &line.cursor {
        url.push_str("&cursor=");
        url.push_str(cursor);
    }
    let limit = client.patience(CONNECT_LIMIT);
    let handshake = async {
        let mut request = url.into_client_request()?;
        if let Some(address) = client.address.as_deref().and_then(|text| text.parse().ok()) {
            request.headers_mut().insert(FORWARDED_FOR, address);
        }
        tokio_tungstenite::connect_async_with_config(request, None, true).await
    };
    let socket = match timeout(limit, handshake).await {
        Ok(Ok((socket, _))) => socket,
        Ok(Err(Error::Http(response))) => {
            client.error(&format!("handshake_{}", response.status().as_u16()));
            let asked = response
                .headers()
                .get("retry-after")
                .and_then(|value| value.to_str().ok())
                .and_then(|value| value.parse().ok());
            return client.pause(asked).await;
        }
        Ok(Err(_)) => {
            client.error("unreachable");
            return client.pause(None).await;
        }
        Err(_) => {
            client.error("handshake_timeout");
            return client.pause(None).await;
        }
    };
    greet(client, line, socket, limit).await;
}

async fn greet(client: &mut Client, line: &mut Line, mut socket: Socket, limit: Duration) {
    let Ok(frame) = timeout(limit, socket.next()).await else {
        client.error("greeting_timeout");
        return client.pause(None).await;
    };
    match read(frame) {
        Heard::Event(event) if event.kind == "connection" => {
            // Without a cursor of its own the client resumes from here.
            if line.cursor.is_none() {
                line.cursor = event.cursor;
            }
            line.socket = Some(socket);
            line.sent = None;
            client.attempts = 0;
            client.counted_connection();
        }
        Heard::Lost(asked) => client.pause(asked).await,
        _ => {
            client.error("no_greeting");
            let seconds = client.random.random_range(0.1..1.0);
            client.pause(Some(seconds)).await;
        }
    }
}
