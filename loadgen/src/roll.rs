//! Sessions over a private fleet whose replicas are replaced one after another, as an update does it.
//!
//! Each replica leaves the service, gets SIGTERM, ends by itself, is started again, and comes back
//! once it is ready: what Kubernetes does with a Deployment. A client may notice nothing but the
//! request to reconnect.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{PathBuf, absolute};
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
/// The time before the first replacement, in which the sessions begin.
const FIRST: Duration = Duration::from_secs(4);
/// The time from one replacement to the next: the longest answer and more, so that none outlasts
/// the sessions.
const EVERY: Duration = Duration::from_secs(12);
/// The time after the last replacement in which new turns begin.
const LAST: Duration = Duration::from_secs(4);
/// The time that a load balancer needs to take a replica out of service.
const OUT_OF_SERVICE: Duration = Duration::from_secs(1);
/// The time that a replica may take to end.
const END_LIMIT: Duration = Duration::from_secs(25);

/// The properties of a run.
#[derive(Clone, Debug)]
pub struct Roll {
    /// The folder of the `jarvis` and `ollama-sim` binaries.
    pub binaries: PathBuf,
    /// Another `jarvis`: every second round replaces the replicas by it, and the others go back, so
    /// that an upgrade and a rollback run under load.
    pub other: Option<PathBuf>,
    /// The folder of logs and data.
    pub dir: PathBuf,
    /// The kind of Redis.
    pub redis: RedisKind,
    /// How often every replica is replaced.
    pub rounds: u32,
    /// The properties of the sessions; replicas and duration are filled in.
    pub load: Options,
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct RollReport {
    /// The measurements of the sessions.
    pub clients: Report,
    /// The number of replaced replicas.
    pub replaced: usize,
    /// The times from SIGTERM to the end of the process.
    pub end_ms: Times,
}

/// Starts the fleet, runs the sessions and replaces every replica `rounds` times.
///
/// # Errors
/// Fails where the fleet does not start, or a replica does not come back.
pub async fn run(roll: Roll) -> anyhow::Result<RollReport> {
    let versions = Versions::new(&roll)?;
    let fleet = Plan {
        binaries: versions.folder.clone(),
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
        let ended = replace_all(&fleet, &replicas, &versions, roll.rounds).await;
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

/// The binaries of a run, where another `jarvis` may take the place of the first one.
struct Versions {
    /// The folder that the fleet starts its binaries from.
    folder: PathBuf,
    /// The first `jarvis`, and the other one.
    both: Option<[PathBuf; 2]>,
}

impl Versions {
    fn new(roll: &Roll) -> std::io::Result<Self> {
        let Some(other) = &roll.other else {
            return Ok(Self { folder: roll.binaries.clone(), both: None });
        };
        let folder = roll.dir.join("binaries");
        std::fs::create_dir_all(&folder)?;
        symlink(absolute(roll.binaries.join("ollama-sim"))?, folder.join("ollama-sim"))?;
        let both = [absolute(roll.binaries.join("jarvis"))?, absolute(other)?];
        let versions = Self { folder, both: Some(both) };
        versions.choose(false)?;
        Ok(versions)
    }

    /// Chooses what the next replicas are, if there is a choice.
    fn choose(&self, is_other: bool) -> std::io::Result<()> {
        let Some(both) = &self.both else { return Ok(()) };
        let (link, next) = (self.folder.join("jarvis"), self.folder.join("next"));
        symlink(&both[usize::from(is_other)], &next)?;
        std::fs::rename(next, link)
    }
}

/// Returns how long each replica took to end; none where it had to be killed.
async fn replace_all(
    fleet: &Fleet,
    replicas: &Replicas,
    versions: &Versions,
    rounds: u32,
) -> anyhow::Result<Vec<Option<Duration>>> {
    let mut ended = Vec::new();
    sleep(FIRST).await;
    for round in 0..rounds {
        versions.choose(round % 2 == 0)?;
        for number in 0..REPLICAS {
            let next = Instant::now() + EVERY;
            replicas.set(number, false);
            sleep(OUT_OF_SERVICE).await;
            let asked = Instant::now();
            let by_itself = end(&fleet.replicas[number], END_LIMIT).await?;
            ended.push(by_itself.then(|| asked.elapsed()));
            fleet.start_replica(number).await?;
            replicas.set(number, true);
            sleep_until(next).await;
        }
    }
    Ok(ended)
}

impl RollReport {
    /// Formats the result as a table.
    pub fn table(&self) -> String {
        let mut table = String::new();
        let _ = writeln!(table, "  {:<34} {}", "replicas replaced", self.replaced);
        let _ = writeln!(table, "{}", self.end_ms.row("SIGTERM to end"));
        table + &self.clients.table()
    }
}
