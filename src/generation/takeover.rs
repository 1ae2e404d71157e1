//! Takes over the turns of replicas that are gone.
//!
//! A wrong suspicion costs a continuation, and never makes a second writer: each claim is a
//! compare-and-set of the turn's fence.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt;
use rand::seq::SliceRandom;

use super::Generations;
use super::copies::RestoredCopies;
use super::turn_spans;
use super::turn_state::TurnState;
use crate::membership::{GoneReason, GoneReplica, Successor};
use crate::queue::Freed;
use crate::session::GenerationId;
use crate::session::StoreError;
use crate::session::store::{BUCKETS, Claim, ClaimAttempt, OpenTurn};
use crate::telemetry::{LIVE, metric};

/// Calls of Redis at the same time.
const CALLS_AT_ONCE: usize = 32;

/// Takes over the turns of replicas that are gone, and has the queue free their slots.
pub(super) struct TurnSuccessor {
    generations: Generations,
    /// Turns in this replica's name that it did not run at the last sweep.
    idle_before: HashSet<GenerationId>,
    /// The claims of the last takeover that Redis did not reply to. They are made again with the
    /// next one: of those that were carried out, this replica is the holder.
    unanswered: HashMap<GenerationId, ClaimAttempt>,
}

impl TurnSuccessor {
    pub(super) fn new(generations: Generations) -> Self {
        Self { generations, idle_before: HashSet::new(), unanswered: HashMap::new() }
    }
}

impl Successor for TurnSuccessor {
    type Error = StoreError;

    async fn take_over(&mut self, gone: &GoneReplica) -> Result<usize, StoreError> {
        let Self { generations, unanswered, .. } = self;
        let mut restored = RestoredCopies::of(generations, &gone.name);
        restored.apply_ends(generations);
        let reason = gone.reason.as_str();
        // A replica that signs off ends its spans itself.
        let lost = gone.reason != GoneReason::SignedOff;
        let of_gone = |turn: &OpenTurn| turn.replica == gone.name;
        let turns = match take_over(generations, unanswered, reason, lost, of_gone).await {
            Ok(turns) => turns,
            Err(error) => {
                restored.put_back(generations);
                return Err(error);
            }
        };
        restored.restore_turns(generations);
        let replica = &gone.name;
        if turns > 0 {
            tracing::warn!(replica, turns, reason, "replica gone; turns taken over");
        } else {
            tracing::info!(replica, reason, "replica gone without turns");
        }
        if generations.queue.free(replica, gone.counter).await? == Freed::Alive {
            metrics::counter!(metric::WRONG_SUSPICIONS_TOTAL, "reason" => reason).increment(1);
            tracing::warn!(replica, reason, "suspected replica is alive");
        }
        Ok(turns)
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
                .filter(|turn| {
                    turn.replica == this_replica && !running.contains_key(&turn.generation)
                })
                .map(|turn| turn.generation)
                .collect()
        };
        // Only on the second sight, because a turn may be accepted just now; one that this replica
        // claimed was not.
        let is_orphan = |turn: &&GenerationId| {
            self.idle_before.contains(turn) || self.unanswered.contains_key(turn)
        };
        let orphans: HashSet<GenerationId> = idle.iter().filter(is_orphan).copied().collect();
        if !orphans.is_empty() {
            let orphaned = |turn: &OpenTurn| orphans.contains(&turn.generation);
            let Self { generations, unanswered, .. } = self;
            take_over(generations, unanswered, "reply_lost", false, orphaned).await?;
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
    unanswered: &mut HashMap<GenerationId, ClaimAttempt>,
    reason: &'static str,
    lost: bool,
    wanted: impl Fn(&OpenTurn) -> bool,
) -> Result<usize, StoreError> {
    let open = open_turns(generations).await?;
    let mut made_before = std::mem::take(unanswered);
    let this_replica = generations.store.replica();
    let attempt = |turn: OpenTurn| match made_before.remove(&turn.generation) {
        Some(made) if made.is_carried_out(&turn, this_replica) => Some(made),
        Some(made) if made.is_left(&turn) && wanted(&turn) => Some(made),
        _ => wanted(&turn).then(|| ClaimAttempt::new(turn)),
    };
    let mut attempts: Vec<_> = open.into_iter().filter_map(attempt).collect();
    // In a random order, so that the replicas share the turns.
    attempts.shuffle(&mut rand::rng());
    let mut claims = futures_util::stream::iter(attempts)
        .map(|attempt| async move {
            let claim = generations.store.claim(&attempt).await;
            (attempt, claim)
        })
        .buffer_unordered(CALLS_AT_ONCE);
    let mut taken = 0;
    let mut failed = None;
    while let Some((attempt, claim)) = claims.next().await {
        let (turn, state) = match claim {
            Ok(Claim::Running(turn, writers)) => (turn, TurnState::Running { writers }),
            Ok(Claim::Waiting(turn)) => (turn, TurnState::Waiting),
            Ok(Claim::Other) => continue,
            Err(error) => {
                unanswered.insert(attempt.open().generation, attempt);
                failed = Some(error);
                continue;
            }
        };
        let from = &attempt.open().replica;
        taken += 1;
        LIVE.taken_over.rise();
        metrics::counter!(metric::TAKEOVERS_TOTAL, "reason" => reason).increment(1);
        tracing::info!(
            session = turn.session.redacted(),
            generation = %turn.generation,
            from,
            reason,
            trace = turn.trace().map(|trace| tracing::field::display(trace.trace_id())),
            "turn taken over"
        );
        if lost {
            let writers = if let TurnState::Running { writers } = state { writers } else { 0 };
            turn_spans::end_lost_writer(&turn, writers, Some(from));
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
