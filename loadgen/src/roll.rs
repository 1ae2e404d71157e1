//! Sessions over a private fleet whose replicas are replaced one after another, as an update does it.
//!
//! Each leaves the service, is asked to end, ends by itself, is started again, and comes back once it
//! is ready: what Kubernetes does with a Deployment. No client may notice anything but that it is told
//! to come back.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use testkit::redis::RedisKind;
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::{Options, Replicas};
use crate::fleet::{Fleet, Plan, end};
use crate::report::{Report, Times};
use crate::tally::{Tally, record, times};

const REPLICAS: usize = 3;
const SIMS: usize = 2;
/// Nothing is replaced before the sessions have begun.
const FIRST: Duration = Duration::from_secs(4);
/// From one replacement to the next: the longest answer and more, so that none outlasts the sessions.
const EVERY: Duration = Duration::from_secs(12);
/// New turns are begun so long after the last replacement.
const LAST: Duration = Duration::from_secs(4);
/// How long whoever balances the load needs to take a replica out of service.
const OUT_OF_SERVICE: Duration = Duration::from_secs(1);
/// How long a replica may take to end.
const END_LIMIT: Duration = Duration::from_secs(25);

/// A run.
#[derive(Clone, Debug)]
pub struct Roll {
    /// Where the `jarvis` and `ollama-sim` binaries are.
    pub binaries: PathBuf,
    /// Where logs and data go.
    pub dir: PathBuf,
    /// Which Redis.
    pub redis: RedisKind,
    /// How often every replica is replaced.
    pub rounds: u32,
    /// What the sessions are like; replicas and duration are filled in.
    pub load: Options,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct RollReport {
    /// What the sessions saw.
    pub clients: Report,
    /// Replicas that were replaced.
    pub replaced: usize,
    /// From the request to end to the end.
    pub end_ms: Times,
}

/// Starts the fleet, runs the sessions and replaces every replica so many times.
///
/// # Errors
/// Where the fleet does not start, or a replica does not come back.
pub async fn run(roll: Roll) -> anyhow::Result<RollReport> {
    let fleet = Plan {
        binaries: roll.binaries,
        dir: roll.dir,
        redis: roll.redis,
        replicas: REPLICAS,
        sims: SIMS,
        settings: [("JARVIS_OLLAMA_SLOTS", "256"), ("JARVIS_QUEUE_SHARE", "1000")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
    };
    let fleet = Fleet::start(&fleet).await?;
    let replicas = Replicas::new(fleet.urls());
    let tally = Arc::new(Tally::default());
    let count = roll.rounds * u32::try_from(REPLICAS)?;
    let load = Options {
        replicas: Arc::clone(&replicas),
        duration: FIRST + EVERY * count + LAST,
        ..roll.load
    };
    let (seed, sessions, duration) = (load.seed, load.sessions, load.duration);
    let began = Instant::now();
    let replacing = async {
        let ended = replace_all(&fleet, &replicas, roll.rounds).await;
        (ended, began.elapsed() <= duration)
    };
    let (in_time, (ended, under_load)) =
        tokio::join!(crate::run::run(load, Arc::clone(&tally)), replacing);
    let mut clients = Report::of(&tally, seed, sessions, 0.0);
    if !in_time? {
        clients.broken.push("the sessions did not come to their end".to_owned());
    }
    if !under_load {
        clients.broken.push("the replacements outlasted the sessions".to_owned());
    }
    let ended = ended?;
    let late = ended.iter().filter(|ended| ended.is_none()).count();
    if late > 0 {
        clients.broken.push(format!("{late} replicas did not end within 25 s"));
    }
    let errors: u64 = clients.errors.values().sum();
    if errors > 0 {
        clients.broken.push(format!("clients saw {errors} errors"));
    }
    if clients.unrecovered > 0 {
        clients.broken.push(format!("{} resumes got a snapshot", clients.unrecovered));
    }
    let mut times = times();
    for time in ended.iter().flatten() {
        record(&mut times, *time);
    }
    Ok(RollReport { clients, replaced: ended.len(), end_ms: Times::of(&times) })
}

/// Gives how long each took to end; none where it had to be killed.
async fn replace_all(
    fleet: &Fleet,
    replicas: &Replicas,
    rounds: u32,
) -> anyhow::Result<Vec<Option<Duration>>> {
    let mut ended = Vec::new();
    sleep(FIRST).await;
    for _ in 0..rounds {
        for number in 0..REPLICAS {
            let next = Instant::now() + EVERY;
            replicas.set(number, false);
            sleep(OUT_OF_SERVICE).await;
            let asked = Instant::now();
            let by_itself = end(&fleet.replicas[number], END_LIMIT).await;
            ended.push(by_itself.then(|| asked.elapsed()));
            fleet.start_replica(number).await?;
            replicas.set(number, true);
            sleep_until(next).await;
        }
    }
    Ok(ended)
}

impl RollReport {
    /// For people.
    pub fn table(&self) -> String {
        let mut table = String::new();
        let _ = writeln!(table, "  {:<34} {}", "replicas replaced", self.replaced);
        let _ = writeln!(table, "{}", self.end_ms.row("SIGTERM to end"));
        table + &self.clients.table()
    }
}
