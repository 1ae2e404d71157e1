//! Many idle sockets: their memory, their return after a replica's death, and one session that many
//! sockets follow.

mod fan_out;
pub mod hold;
mod holders;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use testkit::Process;
use testkit::redis::RedisKind;
use tokio::time::{Instant, sleep};

use crate::bench::cost::cpu_seconds;
use crate::fleet::{Fleet, Plan};
use fan_out::FanOut;
use holders::Holders;

const REPLICAS: usize = 3;
/// The time that opening the sockets, or their return, may take.
const LIMIT: Duration = Duration::from_mins(2);
/// The time limit for the return of all sockets after a replica's death.
const RETURN_LIMIT: Duration = Duration::from_secs(5);
/// The time in which a replica frees the buffers of handshakes, and after a close what sockets
/// took.
const SETTLE: Duration = Duration::from_secs(15);

/// The properties of a run.
#[derive(Clone, Debug)]
pub struct Sockets {
    /// The folder of the `jarvis` and `ollama-sim` binaries.
    pub binaries: PathBuf,
    /// The folder of logs and data.
    pub dir: PathBuf,
    /// The sockets that are held, over all replicas.
    pub sockets: usize,
    /// The processes that hold them.
    pub holders: usize,
    /// The sockets that follow one session.
    pub watchers: usize,
}

/// The memory of one replica.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// Resident memory before the first socket, in MiB.
    pub idle_mib: f64,
    /// The sockets that were open at once.
    pub sockets: usize,
    /// Resident memory of each of them, in KiB.
    pub kib_a_socket: f64,
    /// The share of that memory that the replica gives back after they are closed.
    pub given_back: f64,
}

/// The return of all sockets after a replica's death.
#[derive(Clone, Debug, Serialize)]
pub struct Return {
    /// The sockets of the dead replica.
    pub lost: usize,
    /// The time from the kill until the last of them was greeted elsewhere, in seconds; none where
    /// they did not all come back.
    pub seconds: Option<f64>,
    /// The failed attempts, by their reason.
    pub errors: BTreeMap<String, usize>,
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct SocketsReport {
    /// The sockets in all.
    pub sockets: usize,
    /// The memory of a replica that was not killed.
    pub memory: Memory,
    /// CPU time of the replicas for one handshake, in microseconds.
    pub handshake_us: f64,
    /// The return of the sockets.
    pub returned: Return,
    /// One session that many sockets follow.
    pub fan_out: FanOut,
    /// The broken promises.
    pub broken: Vec<String>,
}

/// Starts a fleet, and measures.
///
/// # Errors
/// Fails where the fleet or a process that holds sockets does not start.
pub async fn run(run: Sockets) -> anyhow::Result<SocketsReport> {
    let settings = [
        ("JARVIS_LOG", "warn,fred=error"),
        ("JARVIS_REDIS_TIMEOUT_MS", "10000"),
        // As the image sets them.
        ("MIMALLOC_GENERIC_COLLECT", "100"),
        ("MIMALLOC_PURGE_DELAY", "0"),
    ];
    let fleet = Fleet::start(&Plan {
        binaries: run.binaries,
        dir: run.dir,
        redis: RedisKind::Single,
        replicas: REPLICAS,
        sims: 1,
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
    })
    .await?;
    sleep(Duration::from_secs(1)).await;
    let survivor = &fleet.replicas[REPLICAS - 1];
    let idle = survivor.resident_kib()?;
    let before = cpu(&fleet);
    let mut holders = Holders::start(&fleet.urls(), run.sockets, run.holders)?;
    let is_open = holders.wait(LIMIT, |status| status.open == run.sockets).await;
    let handshake_us = (cpu(&fleet) - before) * 1e6 / holders.status().open.max(1) as f64;
    sleep(SETTLE).await;
    let (full, open) = (survivor.resident_kib()?, holders.status().open / REPLICAS);
    let kib_a_socket = (full - idle) / open.max(1) as f64;
    let (lost, killed) = (run.sockets.div_ceil(REPLICAS), Instant::now());
    fleet.replicas[0].kill();
    let is_back = holders.wait(LIMIT, |status| status.back >= lost).await;
    let seconds = is_back.then(|| killed.elapsed().as_secs_f64());
    let status = holders.status();
    sleep(SETTLE).await;
    let fullest = survivor.resident_kib()?;
    holders.stop().await;
    sleep(SETTLE).await;
    let given_back = (fullest - survivor.resident_kib()?) / (fullest - idle);
    fleet.start_replica(0).await?;
    let fan_out = fan_out::measure(&fleet, run.watchers).await?;
    let memory = Memory { idle_mib: idle / 1024.0, sockets: open, kib_a_socket, given_back };
    let returned = Return { lost: status.lost, seconds, errors: status.errors };
    let mut broken = Vec::new();
    if !is_open {
        broken.push(format!("only {} of {} sockets were opened", status.open, run.sockets));
    }
    if seconds.is_none_or(|seconds| seconds > RETURN_LIMIT.as_secs_f64()) {
        broken.push(format!("{} of {lost} sockets came back, not all within 5 s", status.back));
    }
    let errors: usize = returned.errors.values().sum();
    if errors > 0 {
        broken.push(format!("clients saw {errors} errors"));
    }
    Ok(SocketsReport { sockets: run.sockets, memory, handshake_us, returned, fan_out, broken })
}

/// Returns the CPU time of all replicas, in seconds.
fn cpu(fleet: &Fleet) -> f64 {
    let of = |process: &Process| process.id().and_then(cpu_seconds).unwrap_or(0.0);
    fleet.replicas.iter().map(|replica| of(replica)).sum()
}

impl SocketsReport {
    /// Formats the result as a table.
    pub fn table(&self) -> String {
        let mut table = String::new();
        let Memory { idle_mib, sockets, kib_a_socket, given_back } = self.memory;
        let _ = writeln!(table, "  idle replica                       {idle_mib:.1} MiB");
        let _ = writeln!(
            table,
            "  idle socket ({sockets} on a replica)  {kib_a_socket:.2} KiB, {:.0} % given back",
            given_back * 100.0
        );
        let _ = writeln!(table, "  CPU a handshake                    {:.0} µs", self.handshake_us);
        let Return { lost, seconds, errors } = &self.returned;
        let seconds = seconds.map_or("never".to_owned(), |seconds| format!("{seconds:.2} s"));
        let _ = writeln!(
            table,
            "  a replica of {lost} sockets killed   all back after {seconds}, errors: {errors:?}"
        );
        let FanOut { watchers, deliveries, cpu_us, last_p50_ms, last_p99_ms } = self.fan_out;
        let _ = writeln!(
            table,
            "  one session, {watchers} watchers       {deliveries} deliveries of {cpu_us:.1} µs; \
             first to last watcher p50 {last_p50_ms:.1} ms, p99 {last_p99_ms:.1} ms"
        );
        for broken in &self.broken {
            let _ = writeln!(table, "  BROKEN: {broken}");
        }
        table
    }
}
