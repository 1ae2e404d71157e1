//! Turns of a replica that is gone are taken over.
//!
//! A replica is gone when this one has seen its heartbeat unchanged for the length of a lease, on
//! its own clock, while its own way to Redis was healthy throughout. No clock is compared with
//! another's. A wrong suspicion costs a continuation, never a second writer: each claim is a
//! compare-and-set of the turn's fence.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt;
use rand::seq::SliceRandom;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::Generations;
use super::turn::Stage;
use crate::session::GenerationId;
use crate::session::StoreError;
use crate::session::store::{BUCKETS, Claim, OpenTurn};

/// Heartbeats in one lease.
const BEATS_PER_LEASE: u32 = 10;
/// How often the index is searched for turns of replicas that have no heartbeat at all, and for
/// own ones that nobody runs.
const SWEEP: Duration = Duration::from_secs(10);
/// Calls of Redis at the same time.
const CALLS_AT_ONCE: usize = 32;
/// What a replica writes as its counter when it gives everything up.
const SIGNED_OFF: i64 = -1;

/// What was seen of another replica, and since when it has not changed.
struct Seen {
    /// None: it has no heartbeat, and yet there are turns in its name.
    counter: Option<i64>,
    since: Instant,
}

pub(super) async fn watch(generations: Generations) {
    let mut tick = interval(generations.lease / BEATS_PER_LEASE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen: HashMap<String, Seen> = HashMap::new();
    let mut forgotten: HashSet<GenerationId> = HashSet::new();
    let mut swept = Instant::now();
    let mut last_beat = Instant::now();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = generations.stop.cancelled() => return,
        }
        let Ok(Ok(beats)) = timeout(generations.lease, generations.store.heartbeat()).await else {
            // Who cannot see must not suspect.
            seen.clear();
            continue;
        };
        if last_beat.elapsed() > generations.lease {
            seen.clear();
        }
        last_beat = Instant::now();
        if generations.drain.is_cancelled() {
            continue;
        }
        let gone = observe(&mut seen, &beats, &generations);
        for replica in &gone {
            match take_over(&generations, |turn| turn.replica == *replica).await {
                Ok(turns) => {
                    if turns > 0 {
                        tracing::warn!(
                            replica,
                            turns,
                            "a replica is gone; its turns are taken over"
                        );
                    } else {
                        tracing::info!(replica, "a replica is gone; it had no turns");
                    }
                    let counter = seen.get(replica).and_then(|seen| seen.counter);
                    if let Err(error) = generations.queue.free(replica, counter).await {
                        tracing::warn!(%error, replica, "its slots wait for Redis");
                        continue;
                    }
                    seen.remove(replica);
                    if let Some(counter) = counter {
                        let _ = generations.store.remove_replica(replica, counter).await;
                    }
                }
                Err(error) => tracing::warn!(%error, "a takeover waits for Redis"),
            }
        }
        if swept.elapsed() >= SWEEP {
            swept = Instant::now();
            if let Err(error) = sweep(&generations, &beats, &mut seen, &mut forgotten).await {
                tracing::debug!(%error, "a sweep of the open turns waits for Redis");
            }
        }
    }
}

/// Updates what was seen and gives the replicas that are gone.
fn observe(
    seen: &mut HashMap<String, Seen>,
    beats: &HashMap<String, i64>,
    generations: &Generations,
) -> Vec<String> {
    let now = Instant::now();
    let me = generations.store.replica();
    for (replica, counter) in beats.iter().filter(|(replica, _)| *replica != me) {
        let entry = seen
            .entry(replica.clone())
            .or_insert_with(|| Seen { counter: Some(*counter), since: now });
        if entry.counter != Some(*counter) {
            *entry = Seen { counter: Some(*counter), since: now };
        }
    }
    // A counter that is missing counts as unchanged.
    seen.iter()
        .filter(|(_, seen)| {
            seen.counter == Some(SIGNED_OFF) || now - seen.since >= generations.lease
        })
        .map(|(replica, _)| replica.clone())
        .collect()
}

/// Claims the open turns that are wanted and runs them here. Gives how many.
async fn take_over(
    generations: &Generations,
    wanted: impl Fn(&OpenTurn) -> bool,
) -> Result<usize, StoreError> {
    let mut turns: Vec<_> = open_turns(generations).await?.into_iter().filter(wanted).collect();
    // Every replica takes what it can: in another order each, so that they share.
    turns.shuffle(&mut rand::rng());
    let mut claims = futures_util::stream::iter(turns)
        .map(|turn| async move {
            let claim = generations.store.claim(&turn).await;
            (turn, claim)
        })
        .buffer_unordered(CALLS_AT_ONCE);
    let mut taken = 0;
    let mut failed = None;
    while let Some((open, claim)) = claims.next().await {
        let (turn, stage) = match claim {
            Ok(Claim::Running(turn, writers)) => (turn, Stage::Running { writers }),
            Ok(Claim::Waiting(turn)) => (turn, Stage::Waiting),
            Ok(Claim::Other) => continue,
            Err(error) => {
                failed = Some(error);
                continue;
            }
        };
        taken += 1;
        metrics::counter!("jarvis_takeovers_total").increment(1);
        tracing::info!(
            session = turn.session.redacted(),
            generation = %turn.generation,
            from = open.replica,
            "taken over"
        );
        generations.run(turn, stage);
    }
    failed.map_or(Ok(taken), Err)
}

async fn open_turns(generations: &Generations) -> Result<Vec<OpenTurn>, StoreError> {
    let reads = (0..BUCKETS).map(|bucket| generations.store.open_turns(bucket));
    let read: Vec<_> =
        futures_util::stream::iter(reads).buffer_unordered(CALLS_AT_ONCE).collect().await;
    let lists = read.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(lists.into_iter().flatten().collect())
}

/// Looks for turns in the name of replicas without a heartbeat, and for turns in this replica's
/// name that it does not run: their acceptance was not told to it.
async fn sweep(
    generations: &Generations,
    beats: &HashMap<String, i64>,
    seen: &mut HashMap<String, Seen>,
    forgotten: &mut HashSet<GenerationId>,
) -> Result<(), StoreError> {
    let me = generations.store.replica();
    let open = open_turns(generations).await?;
    for turn in open.iter().filter(|turn| !beats.contains_key(&turn.replica)) {
        let now = Instant::now();
        seen.entry(turn.replica.clone()).or_insert(Seen { counter: None, since: now });
    }
    let idle: HashSet<GenerationId> = {
        let running = generations.running();
        open.iter()
            .filter(|turn| turn.replica == me && !running.contains(&turn.generation))
            .map(|turn| turn.generation)
            .collect()
    };
    // Twice in a row: one that is just being accepted is no orphan.
    let orphans: HashSet<GenerationId> = idle.intersection(forgotten).copied().collect();
    if !orphans.is_empty() {
        take_over(generations, |turn| orphans.contains(&turn.generation)).await?;
    }
    *forgotten = idle;
    Ok(())
}
