//! Sessions over a private fleet into which faults are injected.

pub mod claims;
pub mod inject;
pub mod plan;
pub mod suspicions;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use testkit::redis::RedisKind;

use crate::client::{Options, Replicas};
use crate::fleet::{Fleet, Plan};
use crate::report::{Report, Times};
use crate::tally::{Pause, Tally, record, times};
use inject::{Injected, Injector, Record};
use plan::{Part, Setting, plan};
use suspicions::Suspicions;

const REPLICAS: usize = 3;
/// The seconds for which a fault has effects after its repair.
const FELT: f64 = 3.0;
const SIMS: usize = 2;
/// How often a response that has ended is streamed again, unless that happens after every event.
const RESUMES: usize = 8;

/// A run of chaos.
#[derive(Clone, Debug)]
pub struct Chaos {
    /// The folder of the `jarvis` and `ollama-sim` binaries.
    pub binaries: PathBuf,
    /// The folder of logs and data.
    pub dir: PathBuf,
    /// The kind of Redis.
    pub redis: RedisKind,
    /// The targets that get no faults.
    pub spared: Vec<Part>,
    /// The properties of the sessions; the replicas are filled in.
    pub load: Options,
    /// The percentage of turns that may end with an error.
    pub failed_percent: f64,
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct ChaosReport {
    /// The kind of Redis, in words.
    pub redis: String,
    /// The measurements of the sessions.
    pub clients: Report,
    /// The injected faults by kind.
    pub faults_by_kind: BTreeMap<&'static str, usize>,
    /// The times from a replica's death to the claim of each of its turns, without a fault of
    /// Redis.
    pub claim_ms: Times,
    /// The same with a fault of Redis under way, or less than 6 s before.
    pub claim_with_redis_fault_ms: Times,
    /// The times from a replica's death to the next character of its turns at clients that were connected
    /// to others, without a fault of Redis.
    pub kept_connection_ms: Times,
    /// The same with a fault of Redis.
    pub kept_connection_with_redis_fault_ms: Times,
    /// Turns of dead replicas that ended before they were seen under another replica.
    pub ended_unseen: usize,
    /// Turns of dead replicas without a claim within 30 s.
    pub unclaimed: usize,
    /// Deaths without a claim that could be measured.
    pub unwatched: usize,
    /// Replicas that others took for gone.
    pub suspicions: Suspicions,
    /// All faults.
    pub faults: Vec<Injected>,
}

/// Starts the fleet, runs the sessions and injects faults until the time is over.
///
/// # Errors
/// Fails where the fleet does not start.
pub async fn run(chaos: Chaos) -> anyhow::Result<ChaosReport> {
    let settings = [
        ("JARVIS_OLLAMA_SLOTS", "256"),
        // All sessions come from one address, and may all have to wait.
        ("JARVIS_QUEUE_SHARE", "1000"),
        // A turn lasts up to ten seconds: some turns end while their replica drains, and some are
        // handed over.
        ("JARVIS_DRAIN_TIMEOUT", "5"),
        ("JARVIS_FIRST_TOKEN_TIMEOUT", "8"),
        ("JARVIS_TOKEN_GAP_TIMEOUT", "5"),
        ("JARVIS_LOG", "info,fred=warn"),
        ("JARVIS_LOG_FORMAT", "json"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let fleet = Plan {
        binaries: chaos.binaries,
        dir: chaos.dir,
        redis: chaos.redis,
        replicas: REPLICAS,
        sims: SIMS,
        settings,
    };
    let fleet = Arc::new(Fleet::start(&fleet).await?);
    let faults = plan(&Setting {
        seed: chaos.load.seed,
        length: chaos.load.duration,
        redis: chaos.redis,
        replicas: REPLICAS,
        sims: SIMS,
        spared: chaos.spared,
    });
    let tally = Arc::new(Tally::default());
    let replicas = Replicas::new(fleet.urls());
    let load = Options { replicas, resumes: RESUMES, ..chaos.load };
    let (seed, sessions) = (load.seed, load.sessions);
    // With fewer sessions there may be none of this kind.
    let has_responses = load.sessions * load.responses_percent >= 100;
    let injector = Injector::new(Arc::clone(&fleet));
    let (in_time, ()) =
        tokio::join!(crate::run::run(load, Arc::clone(&tally)), injector.run(faults));
    let mut clients = Report::of(&tally, seed, sessions, chaos.failed_percent);
    if !in_time? {
        clients.broken.push("the sessions did not come to their end".to_owned());
    }
    if has_responses {
        clients.require_replays();
    }
    let logs = fleet.replicas.iter().map(|replica| replica.log());
    let suspicions = Suspicions::read(logs, &injector.lives)?;
    clients.broken.extend(suspicions.wrong.iter().cloned());
    let pauses = std::mem::take(&mut tally.measured().pauses);
    Ok(report(chaos.redis, clients, suspicions, &pauses, injector.take_record()))
}

fn report(
    redis: RedisKind,
    mut clients: Report,
    suspicions: Suspicions,
    pauses: &[Pause],
    record_of: Record,
) -> ChaosReport {
    let mut faults_by_kind = BTreeMap::new();
    for fault in record_of.faults.iter().filter(|fault| fault.outcome == "done") {
        *faults_by_kind.entry(fault.kind).or_insert(0) += 1;
    }
    for fault in record_of.faults.iter().filter(|fault| fault.outcome.starts_with("failed")) {
        clients.broken.push(format!("{}: {}", fault.what, fault.outcome));
    }
    let (mut quiet, mut disturbed) = (times(), times());
    let (mut kept, mut kept_disturbed) = (times(), times());
    let (mut ended_unseen, mut unclaimed) = (0, 0);
    for death in &record_of.deaths {
        let histogram = if death.redis_disturbed { &mut disturbed } else { &mut quiet };
        for time in &death.claims.claimed {
            record(histogram, *time);
        }
        let kept = if death.redis_disturbed { &mut kept_disturbed } else { &mut kept };
        for pause in pauses {
            let is_over = pause.from <= death.died && pause.until > death.died;
            if is_over && death.claims.generations.contains(&pause.generation) {
                record(kept, pause.until - death.died);
            }
        }
        ended_unseen += death.claims.ended;
        unclaimed += death.claims.left;
    }
    if unclaimed > 0 {
        clients.broken.push(format!("{unclaimed} turns of dead replicas were never claimed"));
    }
    ChaosReport {
        redis: redis.to_string(),
        clients,
        faults_by_kind,
        claim_ms: Times::of(&quiet),
        claim_with_redis_fault_ms: Times::of(&disturbed),
        kept_connection_ms: Times::of(&kept),
        kept_connection_with_redis_fault_ms: Times::of(&kept_disturbed),
        ended_unseen,
        unclaimed,
        unwatched: record_of.unwatched,
        suspicions,
        faults: record_of.faults,
    }
}

impl ChaosReport {
    /// Formats the result as a table.
    pub fn table(&self) -> String {
        let mut table = String::new();
        let faults: usize = self.faults_by_kind.values().sum();
        let skipped = self.faults.iter().filter(|fault| fault.outcome != "done").count();
        let _ = writeln!(table, "  {:<34} {}", "Redis", self.redis);
        let _ = writeln!(table, "  {:<34} {faults}, not carried out: {skipped}", "faults");
        for (kind, count) in &self.faults_by_kind {
            let _ = writeln!(table, "    {kind:<32} {count}");
        }
        let _ = writeln!(table, "{}", self.claim_ms.row("death to claim, Redis well"));
        let name = "death to claim, Redis disturbed";
        let _ = writeln!(table, "{}", self.claim_with_redis_fault_ms.row(name));
        for (name, times) in [
            ("death to character, Redis well", &self.kept_connection_ms),
            ("death to character, disturbed", &self.kept_connection_with_redis_fault_ms),
        ] {
            let _ = writeln!(table, "{}", times.row(name));
        }
        let _ = writeln!(
            table,
            "  {:<34} {} ended unseen, {} unclaimed, {} deaths not watched",
            "other turns of the dead", self.ended_unseen, self.unclaimed, self.unwatched
        );
        let suspicions: Vec<String> = self
            .suspicions
            .by_reason
            .iter()
            .map(|(reason, count)| format!("{count} {}", reason.replace('_', " ")))
            .collect();
        let _ = writeln!(
            table,
            "  {:<34} {}; {} against a running replica",
            "suspicions of replicas",
            suspicions.join(", "),
            self.suspicions.wrong.len()
        );
        table + &self.clients.table() + &self.slowest()
    }

    /// Formats the slowest recoveries, with the faults that were under way meanwhile.
    fn slowest(&self) -> String {
        let mut table = String::new();
        for slow in &self.clients.slowest_recoveries {
            let end = slow.at + slow.seconds();
            let overlaps = |fault: &&Injected| {
                fault.outcome == "done" && fault.at < end && fault.until > slow.at - FELT
            };
            let faults: Vec<String> = self
                .faults
                .iter()
                .filter(overlaps)
                .map(|fault| format!("{:+.1} {}", fault.at - slow.at, fault.what))
                .collect();
            let _ = writeln!(
                table,
                "  slow: at {:>6.1} s {:<9} {:.2} s to connect ({} attempts), {:.2} s to the next \
                 character; generation {}; {}",
                slow.at,
                slow.client,
                slow.connected,
                slow.attempts,
                slow.character,
                slow.generation.as_deref().unwrap_or("?"),
                faults.join("; ")
            );
        }
        table
    }
}
