//! CPU time and memory of processes, as the kernel counts them.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use rustix::param::clock_ticks_per_second;
use serde::Serialize;
use testkit::Process;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::middle;
use crate::fleet::Fleet;
use crate::tally::count;

const LIMIT: Duration = Duration::from_secs(10);
/// The sockets that are opened at the same time.
const AT_ONCE: usize = 32;
const HANDSHAKES_FOR: Duration = Duration::from_secs(3);
/// The clients that open and close sockets: each waits 50 ms for the first event, unless it sends something.
const HANDSHAKE_CLIENTS: usize = 512;
/// The time until the buffers of the handshakes are freed.
const SETTLE: Duration = Duration::from_secs(2);

/// The CPU time of one token, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    /// The CPU time of the replica.
    pub jarvis_us: f64,
    /// The CPU time of redis-server.
    pub redis_us: f64,
}

impl Cost {
    /// Returns the median of each process.
    pub fn median(costs: &[Self]) -> Self {
        let of = |part: fn(&Self) -> f64| middle(costs.iter().map(part).collect());
        Self { jarvis_us: of(|cost| cost.jarvis_us), redis_us: of(|cost| cost.redis_us) }
    }

    /// Returns the sum of both.
    pub fn whole(&self) -> f64 {
        self.jarvis_us + self.redis_us
    }
}

/// The CPU time of the processes since their start, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// The replica.
    pub jarvis: f64,
    /// redis-server.
    pub redis: f64,
}

impl Usage {
    /// Reads the CPU time of the first replica and of Redis.
    pub fn of(fleet: &Fleet) -> Self {
        let of = |process: &Process| process.id().and_then(cpu_seconds).unwrap_or(f64::NAN);
        Self { jarvis: of(&fleet.replicas[0]), redis: of(&fleet.redis.nodes()[0]) }
    }

    /// Returns the CPU time since `before`.
    pub fn since(self, before: &Self) -> Self {
        Self { jarvis: self.jarvis - before.jarvis, redis: self.redis - before.redis }
    }

    /// Returns what each of so many tokens took.
    pub fn per_token(self, tokens: usize) -> Cost {
        let each = |seconds: f64| seconds * 1e6 / tokens as f64;
        Cost { jarvis_us: each(self.jarvis), redis_us: each(self.redis) }
    }
}

/// Returns the CPU time of a process since its start, in seconds.
pub fn cpu_seconds(id: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name may hold blanks and brackets.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / clock_ticks_per_second() as f64)
}

/// Returns the processor, cores, memory and kernel.
pub fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map_or("?".to_owned(), |(_, v)| v.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory: u64 =
        value(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    format!(
        "{}, {cores} cores, {} GiB, Linux {}",
        value(&read("/proc/cpuinfo"), "model name"),
        memory >> 20,
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// The figures of idle sockets and handshakes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sockets {
    /// The sockets that were open at once.
    pub open: usize,
    /// The resident memory of the replica for each, in KiB.
    pub kib_a_socket: f64,
    /// The sockets that were opened, greeted and closed in a second.
    pub handshakes_a_second: f64,
}

/// Measures idle sockets and handshakes.
///
/// # Errors
/// Fails where the replica has ended or refuses.
pub async fn sockets(fleet: &Fleet, number: usize) -> anyhow::Result<Sockets> {
    let url = format!("{}/ws", fleet.replicas[0].url.replacen("http", "ws", 1));
    // Memory that the first sockets take is taken once.
    for _ in 0..AT_ONCE {
        drop(greeted(url.clone()).await?);
    }
    let before = fleet.replicas[0].resident_kib()?;
    let mut opening = JoinSet::new();
    let mut open = Vec::with_capacity(number);
    for _ in 0..number {
        if opening.len() >= AT_ONCE {
            open.push(opening.join_next().await.context("none")???);
        }
        opening.spawn(greeted(url.clone()));
    }
    while let Some(socket) = opening.join_next().await {
        open.push(socket??);
    }
    sleep(SETTLE).await;
    let after = fleet.replicas[0].resident_kib()?;
    let kib_a_socket = (after - before).max(0.0) / open.len().max(1) as f64;
    let open_count = open.len();
    drop(open);
    let handshakes_a_second = handshakes(&url).await?;
    let kib_a_socket = (kib_a_socket * 10.0).round() / 10.0;
    Ok(Sockets { open: open_count, kib_a_socket, handshakes_a_second })
}

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn greeted(url: String) -> anyhow::Result<Socket> {
    let connecting = tokio_tungstenite::connect_async_with_config(url, None, true);
    let (mut socket, _) = timeout(LIMIT, connecting).await??;
    timeout(LIMIT, socket.next()).await?.context("no greeting")??;
    Ok(socket)
}

async fn handshakes(url: &str) -> anyhow::Result<f64> {
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..HANDSHAKE_CLIENTS {
        let (url, done) = (url.to_owned(), Arc::clone(&done));
        clients.spawn(async move {
            while began.elapsed() < HANDSHAKES_FOR {
                drop(greeted(url.clone()).await?);
                count(&done);
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}
