//! A process that holds idle sockets, each of a session of its own.
//!
//! It prints its counts as a line of JSON whenever they have changed, and ends with its input.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use uuid::Uuid;

/// The handshakes of a process that begin at the same time, before the death of a replica.
const AT_ONCE: usize = 32;
/// The time limit of a handshake and the greeting.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest pause before the first attempt to reconnect; it doubles from one attempt to the
/// next.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// The time between two lines.
const REPORT_EVERY: Duration = Duration::from_millis(20);

/// The counts of one process so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldStatus {
    /// The sockets that were greeted.
    pub open: usize,
    /// The sockets whose connection was lost.
    pub lost: usize,
    /// The lost sockets that were greeted by another replica, without a gap.
    pub back: usize,
    /// The failed attempts, by their reason.
    pub errors: BTreeMap<String, usize>,
}

/// The work of one process.
#[derive(Clone, Debug)]
pub struct Hold {
    /// The replicas' addresses.
    pub replicas: Vec<String>,
    /// The sockets.
    pub sockets: usize,
}

/// The event that greets a socket.
#[derive(Deserialize)]
struct Greeting {
    cursor: String,
    recovered: bool,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Opens the sockets, and holds them until standard input ends.
///
/// # Errors
/// Fails where the counts cannot be encoded.
pub async fn run(hold: Hold) -> anyhow::Result<()> {
    let status = Arc::new(Mutex::new(HoldStatus::default()));
    let opening = Arc::new(Semaphore::new(AT_ONCE));
    let replicas: Arc<[String]> = hold.replicas.into();
    for number in 0..hold.sockets {
        let (status, opening) = (Arc::clone(&status), Arc::clone(&opening));
        tokio::spawn(hold_one(Arc::clone(&replicas), number, opening, status));
    }
    let reporting = async {
        let mut printed = None;
        loop {
            let now = status.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if printed.as_ref() != Some(&now) {
                println!("{}", serde_json::to_string(&now)?);
                printed = Some(now);
            }
            sleep(REPORT_EVERY).await;
        }
    };
    let mut end = [0];
    let mut input = tokio::io::stdin();
    tokio::select! {
        _ = input.read(&mut end) => Ok(()),
        failed = reporting => failed,
    }
}

async fn hold_one(
    replicas: Arc<[String]>,
    number: usize,
    opening: Arc<Semaphore>,
    status: Arc<Mutex<HoldStatus>>,
) {
    let note = |change: &dyn Fn(&mut HoldStatus)| {
        change(&mut status.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let failed = |error: &anyhow::Error| {
        let reason = format!("{error:#}");
        note(&|status| *status.errors.entry(reason.clone()).or_default() += 1);
    };
    let session = Uuid::new_v4();
    let home = number % replicas.len();
    let connected = {
        let _permit = opening.acquire().await;
        connect(&replicas[home], session, None).await
    };
    let (mut socket, mut cursor) = match connected {
        Ok(connected) => connected,
        Err(error) => return failed(&error),
    };
    note(&|status| status.open += 1);
    loop {
        while let Some(Ok(packet)) = socket.next().await {
            if packet.is_close() {
                break;
            }
        }
        note(&|status| status.lost += 1);
        // The clients of a dead replica spread over all others.
        let others = replicas.len().saturating_sub(1).max(1);
        let next = (home + 1 + number / replicas.len() % others) % replicas.len();
        let mut longest = FIRST_PAUSE;
        (socket, cursor) = loop {
            sleep(longest.mul_f64(rand::random())).await;
            longest = (longest * 2).min(LONGEST_PAUSE);
            match connect(&replicas[next], session, Some(&cursor)).await {
                Ok(connected) => break connected,
                Err(error) => failed(&error),
            }
        };
        note(&|status| status.back += 1);
    }
}

/// Returns a socket that was greeted, and its cursor.
async fn connect(
    replica: &str,
    session: Uuid,
    cursor: Option<&str>,
) -> anyhow::Result<(Socket, String)> {
    let mut url = format!("{}/ws?session_id={session}", replica.replacen("http", "ws", 1));
    if let Some(cursor) = cursor {
        url = format!("{url}&cursor={cursor}");
    }
    let config = WebSocketConfig::default().read_buffer_size(1 << 10).write_buffer_size(0);
    let connecting = tokio_tungstenite::connect_async_with_config(url, Some(config), true);
    let (mut socket, _) = timeout(LIMIT, connecting).await.context("no handshake in time")??;
    let greeting = timeout(LIMIT, socket.next()).await.context("no greeting in time")?;
    let Message::Text(text) = greeting.context("closed before the greeting")?? else {
        bail!("the greeting is no text");
    };
    let greeting: Greeting = serde_json::from_str(&text)?;
    if cursor.is_some() && !greeting.recovered {
        bail!("a gap");
    }
    Ok((socket, greeting.cursor))
}
