//! Attacks on a private fleet, one after another, beside honest sessions.
//!
//! The honest sessions chat all the time, each from an address of its own. Their gap between tokens
//! without an attack is measured first, in the same run. Each attack then runs for the same time, and
//! a rest follows. The attackers' addresses are those of X-Forwarded-For, as behind a proxy: loopback
//! itself has no limits by address.

mod connections;
mod floods;
mod frames;
mod plan;
mod report;
mod target;
mod unread;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use testkit::redis::RedisKind;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::client::{Options, Replicas};
use crate::fleet::{Fleet, Plan, with};
use crate::report::Report;
use crate::tally::Tally;
use target::Target;

pub use plan::AttackKind;
pub use report::{AttackReport, Memory, Row};

const REPLICAS: usize = 3;
/// The concurrent generations of the one model host: of all honest sessions and of all running turns
/// of attackers.
const SLOTS: &str = "256";
/// The time in which the honest sessions begin, and the buffers of their beginning are freed. A rest follows,
/// after which a replica holds as many ended turns of theirs as it ever does.
const WARM_UP: Duration = Duration::from_secs(5);
/// The time after the last attack in which new honest turns begin.
const LAST: Duration = Duration::from_secs(1);
/// The time between two samples of memory.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// The time limit of an attacker's request.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// The properties of a run.
#[derive(Clone, Debug)]
pub struct Attack {
    /// The folder of the `jarvis` and `ollama-sim` binaries.
    pub binaries: PathBuf,
    /// The folder of logs and data.
    pub dir: PathBuf,
    /// The attacks, in this order.
    pub attacks: Vec<AttackKind>,
    /// The duration of the baseline and of each attack.
    pub duration: Duration,
    /// The time after each attack in which memory is given back.
    pub rest: Duration,
    /// The requests a minute of a flood.
    pub per_minute: u32,
    /// The connections of an attack that holds connections.
    pub connections: usize,
    /// The budget of all anonymous sessions, in MiB.
    pub anonymous_mib: u32,
    /// The properties of the honest sessions; replicas and duration are filled in.
    pub load: Options,
}

/// Starts the fleet and the honest sessions, measures them, and attacks.
///
/// # Errors
/// Fails where the fleet does not start, or a server of it ends.
pub async fn run(attack: Attack) -> anyhow::Result<AttackReport> {
    let fleet = start(&attack).await?;
    let tally = Arc::new(Tally::default());
    let count = u32::try_from(attack.attacks.len())?;
    let load = Options {
        replicas: Replicas::new(fleet.urls()),
        duration: WARM_UP
            + attack.rest
            + attack.duration
            + (attack.duration + attack.rest) * count
            + LAST,
        own_addresses: true,
        ..attack.load.clone()
    };
    let (seed, sessions) = (load.seed, load.sessions);
    let (in_time, rows) =
        tokio::join!(crate::run::run(load, Arc::clone(&tally)), all(&fleet, &attack, &tally));
    let mut honest = Report::of(&tally, seed, sessions, 0.0);
    if !in_time? {
        honest.broken.push("the sessions did not come to their end".to_owned());
    }
    Ok(AttackReport::of(honest, rows?, attack.anonymous_mib))
}

async fn start(attack: &Attack) -> anyhow::Result<Fleet> {
    let (turns, share) = (floods::ADDRESS_TURNS.to_string(), floods::QUEUE_SHARE.to_string());
    let anonymous_mib = attack.anonymous_mib.to_string();
    let settings = [
        ("JARVIS_TRUSTED_PROXIES", "127.0.0.0/8"),
        ("JARVIS_HTTP2", "true"),
        ("JARVIS_OLLAMA_SLOTS", SLOTS),
        ("JARVIS_ADDRESS_TURNS", &turns),
        ("JARVIS_QUEUE_SHARE", &share),
        ("JARVIS_ANONYMOUS_MIB", &anonymous_mib),
        // As the image sets them.
        ("MIMALLOC_GENERIC_COLLECT", "100"),
        ("MIMALLOC_PURGE_DELAY", "0"),
    ];
    Fleet::start(&Plan {
        binaries: attack.binaries.clone(),
        dir: attack.dir.clone(),
        redis: RedisKind::Single,
        replicas: REPLICAS,
        sims: 1,
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
    })
    .await
}

/// Measures the baseline and each attack; the first row is the baseline.
async fn all(fleet: &Fleet, attack: &Attack, tally: &Tally) -> anyhow::Result<Vec<Row>> {
    sleep(WARM_UP + attack.rest).await;
    tally.take_honest();
    let mut rows = Vec::with_capacity(attack.attacks.len() + 1);
    let before = memory(fleet).await?;
    let (peak, ()) = peak_during(fleet, before.clone(), sleep(attack.duration)).await?;
    let after = memory(fleet).await?;
    let mut honest = tally.take_honest();
    honest.count_errors(tally);
    rows.push(Row::new("none", &honest, [before, peak, after], BTreeMap::default()));
    for kind in &attack.attacks {
        let until = Instant::now() + attack.duration;
        let target = Target::new(&fleet.urls(), until, attackers()?);
        eprintln!("attack: {}", kind.text());
        tally.take_honest();
        let before = memory(fleet).await?;
        let work = kind.run(&target, attack);
        let (peak, ()) = peak_during(fleet, before.clone(), work).await?;
        let mut honest = tally.take_honest();
        let seen = target.seen();
        drop(target);
        sleep(attack.rest).await;
        // The effect of an attack on a session may show only after it.
        honest.count_errors(tally);
        let row = Row::new(kind.text(), &honest, [before, peak, memory(fleet).await?], seen);
        rows.push(row.keeping(kind.kept_mib()));
    }
    Ok(rows)
}

/// Returns the most memory of each server while `work` runs, and its result.
async fn peak_during<T>(
    fleet: &Fleet,
    before: Memory,
    work: impl Future<Output = T>,
) -> anyhow::Result<(Memory, T)> {
    let (stop, stopped) = watch::channel(false);
    let sample = async {
        let mut peak = before;
        let mut tick = interval(SAMPLE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stopped.borrow() {
            tick.tick().await;
            peak = peak.max(&memory(fleet).await?);
        }
        anyhow::Ok(peak)
    };
    let work = async {
        let result = work.await;
        let _ = stop.send(true);
        result
    };
    let (peak, result) = tokio::join!(sample, work);
    Ok((peak?, result))
}

/// Reads the memory of all replicas and of Redis.
async fn memory(fleet: &Fleet) -> anyhow::Result<Memory> {
    let mut replicas_mib = Vec::with_capacity(fleet.replicas.len());
    for replica in &fleet.replicas {
        replicas_mib.push(replica.resident_kib()? / 1024.0);
    }
    let used = with(&fleet.redis, testkit::redis::Redis::used_memory).await?;
    Ok(Memory { replicas_mib, redis_mib: used as f64 / f64::from(1 << 20) })
}

/// Creates the client of attackers that send whole requests.
fn attackers() -> anyhow::Result<reqwest::Client> {
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).timeout(REQUEST_LIMIT);
    Ok(client.build()?)
}
