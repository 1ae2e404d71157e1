//! Takes over the turns of replicas that are gone.
//!
//! A wrong suspicion costs a continuation, and never makes a second writer: each claim is a
//! compare-and-set of the turn's fence.

use std::collections::HashSet;

use futures_util::StreamExt;
use rand::seq::SliceRandom;

use super::Generations;
use super::copies::Adopted;
use super::turn_spans;
use super::turn_state::TurnState;
use crate::membership::{GoneReason, GoneReplica, Successor};
use crate::queue::Freed;
use crate::session::GenerationId;
use crate::session::StoreError;
use crate::session::store::{BUCKETS, Claim, OpenTurn};
use crate::telemetry::metric;

/// Calls of Redis at the same time.
const CALLS_AT_ONCE: usize = 32;

/// Takes over the turns of replicas that are gone, and has the queue free their slots.
pub(super) struct TurnSuccessor {
    generations: Generations,
    /// Turns in this replica's name that it did not run at the last sweep.
    idle_before: HashSet<GenerationId>,
}

impl TurnSuccessor {
    pub(super) fn new(generations: Generations) -> Self {
        Self { generations, idle_before: HashSet::new() }
    }
}

impl Successor for TurnSuccessor {
    type Error = StoreError;

    async fn take_over(&self, gone: &GoneReplica) -> Result<(), StoreError> {
        let generations = &self.generations;
        let mut adopted = Adopted::of(generations, &gone.name);
        adopted.apply_ends(generations);
        let reason = gone.reason.as_str();
        // A replica that signs off ends its spans itself.
        let lost = gone.reason != GoneReason::SignedOff;
        let of_gone = |turn: &OpenTurn| turn.replica == gone.name;
        let turns = match take_over(generations, reason, lost, of_gone).await {
            Ok(turns) => turns,
            Err(error) => {
                adopted.put_back(generations);
                return Err(error);
            }
        };
        adopted.restore_turns(generations);
        let replica = &gone.name;
        if turns > 0 {
            tracing::warn!(replica, turns, reason, "replica gone; turns taken over");
        } else {
            tracing::info!(replica, reason, "replica gone without turns");
        }
        if self.generations.queue.free(replica, gone.counter).await? == Freed::Alive {
            metrics::counter!(metric::WRONG_SUSPICIONS_TOTAL, "reason" => reason).increment(1);
            tracing::warn!(replica, reason, "suspected replica is alive");
        }
        Ok(())
    }

    fn note_watcher(&self, watcher: Option<String>) {
        self.generations.copies.set_backup(watcher);
    }

    /// Finds turns in the name of replicas without a heartbeat. Takes over turns in this replica's
    /// name that it does not run, because Redis accepted them and the reply was lost.
    async fn sweep(&mut self, alive: &HashSet<String>) -> Result<Vec<String>, StoreError> {
        let this_replica = self.generations.store.replica();
        let open = open_turns(&self.generations).await?;
        let idle: HashSet<GenerationId> = {
            let running = self.generations.running();
            open.iter()
                .filter(|turn| turn.replica == this_replica && !running.contains(&turn.generation))
                .map(|turn| turn.generation)
                .collect()
        };
        // Only on the second sight, because a turn may be accepted just now.
        let orphans: HashSet<GenerationId> =
            idle.intersection(&self.idle_before).copied().collect();
        if !orphans.is_empty() {
            let orphaned = |turn: &OpenTurn| orphans.contains(&turn.generation);
            take_over(&self.generations, "reply_lost", false, orphaned).await?;
        }
        self.idle_before = idle;
        let holders = open.into_iter().map(|turn| turn.replica);
        let holders = holders.chain(self.generations.copies.senders());
        Ok(holders.filter(|replica| !alive.contains(replica)).collect())
    }
}

/// Claims the open turns that are `wanted`, and runs them on this replica. The spans of writers that
/// are `lost` end here. Returns the number of turns.
async fn take_over(
    generations: &Generations,
    reason: &'static str,
    lost: bool,
    wanted: impl Fn(&OpenTurn) -> bool,
) -> Result<usize, StoreError> {
    let mut turns: Vec<_> = open_turns(generations).await?.into_iter().filter(wanted).collect();
    // In a random order, so that the replicas share the turns.
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
        let (turn, state) = match claim {
            Ok(Claim::Running(turn, writers)) => (turn, TurnState::Running { writers }),
            Ok(Claim::Waiting(turn)) => (turn, TurnState::Waiting),
            Ok(Claim::Other) => continue,
            Err(error) => {
                failed = Some(error);
                continue;
            }
        };
        taken += 1;
        metrics::counter!(metric::TAKEOVERS_TOTAL, "reason" => reason).increment(1);
        tracing::info!(
            session = turn.session.redacted(),
            generation = %turn.generation,
            from = open.replica,
            reason,
            trace = turn.trace().map(|trace| tracing::field::display(trace.trace_id())),
            "turn taken over"
        );
        if lost {
            let writers = if let TurnState::Running { writers } = state { writers } else { 0 };
            turn_spans::end_lost_writer(&turn, writers, Some(&open.replica));
        }
        generations.run_again(turn, state);
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
