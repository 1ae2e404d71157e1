//! One session that many sockets follow: what a delivery costs, and how much later the last socket
//! has it than the first.

use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use uuid::Uuid;

use super::cpu;
use crate::fleet::Fleet;
use crate::tally::{record, times};

const TOKENS: usize = 200;
const RATE: usize = 20;
/// The time limit of the answer.
const LIMIT: Duration = Duration::from_mins(1);

/// The figures of one session that many sockets follow.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FanOut {
    /// The sockets.
    pub watchers: usize,
    /// The events that all sockets received.
    pub deliveries: usize,
    /// CPU time of all replicas for one delivery, in microseconds.
    pub cpu_us: f64,
    /// The time from the first socket that has a piece to the last, in milliseconds; p50.
    pub last_p50_ms: f64,
    /// The same, p99.
    pub last_p99_ms: f64,
}

#[derive(Deserialize)]
struct Piece<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    content: String,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;
type Received = Vec<(Instant, Utf8Bytes)>;

/// Measures one answer.
///
/// # Errors
/// Fails where a socket breaks off.
pub async fn measure(fleet: &Fleet, watchers: usize) -> anyhow::Result<FanOut> {
    let session = Uuid::new_v4();
    let mut sockets = Vec::with_capacity(watchers);
    for (_, replica) in (0..watchers).zip(fleet.replicas.iter().cycle()) {
        let url = format!("{}/ws?session_id={session}", replica.url.replacen("http", "ws", 1));
        let connecting = tokio_tungstenite::connect_async_with_config(url, None, true);
        let (mut socket, _) = timeout(LIMIT, connecting).await??;
        timeout(LIMIT, socket.next()).await?.context("no greeting")??;
        sockets.push(socket);
    }
    let before = cpu(fleet);
    let ask = json!({"type": "chat", "max_tokens": TOKENS + 1,
        "message": format!("[[count tokens={TOKENS} rate={RATE}]] fan out")});
    let asker = sockets.first_mut().context("no watchers")?;
    asker.send(Message::text(ask.to_string())).await?;
    let mut following = JoinSet::new();
    for socket in sockets {
        following.spawn(async move { timeout(LIMIT, follow(socket)).await? });
    }
    let mut received = Vec::with_capacity(watchers);
    while let Some(followed) = following.join_next().await {
        received.push(followed??);
    }
    let used = cpu(fleet) - before;
    let deliveries: usize = received.iter().map(|(events, _)| events.len()).sum();
    let lags = lags(&received)?;
    let milliseconds = |quantile| lags.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(FanOut {
        watchers,
        deliveries,
        cpu_us: used * 1e6 / deliveries.max(1) as f64,
        last_p50_ms: milliseconds(0.5),
        last_p99_ms: milliseconds(0.99),
    })
}

/// Receives every event to the end of the answer. The events are parsed later, so that a measured
/// time is that of the arrival. The socket stays open until all have ended.
async fn follow(mut socket: Socket) -> anyhow::Result<(Received, Socket)> {
    let mut received = Received::with_capacity(TOKENS + 8);
    loop {
        let packet = socket.next().await.context("closed")??;
        let Message::Text(text) = packet else { continue };
        let is_end = text.contains(r#""type":"stream_end""#);
        let is_error = text.contains(r#""type":"error""#);
        received.push((Instant::now(), text));
        if is_error {
            bail!("an error: {:?}", received.last());
        }
        if is_end {
            return Ok((received, socket));
        }
    }
}

/// Returns for each piece the time from the first socket that has it to the last. A socket that is
/// late receives several pieces as one.
fn lags(received: &[(Received, Socket)]) -> anyhow::Result<Histogram<u64>> {
    let mut arrivals: Vec<Vec<(u64, Instant)>> = Vec::with_capacity(received.len());
    for (events, _) in received {
        let mut ends = Vec::with_capacity(events.len());
        for (at, text) in events {
            let piece: Piece = serde_json::from_str(text)?;
            if piece.kind == "stream_chunk" && !piece.content.is_empty() {
                ends.push((piece.offset + piece.content.len() as u64, *at));
            }
        }
        arrivals.push(ends);
    }
    let mut lags = times();
    for (end, _) in arrivals.first().context("no watchers")? {
        let mut at: Vec<Instant> = Vec::with_capacity(arrivals.len());
        for watcher in &arrivals {
            let index = watcher.partition_point(|(until, _)| until < end);
            at.push(watcher.get(index).context("a piece is missing")?.1);
        }
        if let (Some(first), Some(last)) = (at.iter().min(), at.iter().max()) {
            record(&mut lags, *last - *first);
        }
    }
    Ok(lags)
}
