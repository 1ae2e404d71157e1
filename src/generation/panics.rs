//! A panic in a turn's task: the turn continues, or ends with `internal`, and leaves nothing
//! behind.
//!
//! The panic drops the ticket, which frees the slot, and the writer's state. So the turn is claimed
//! again, as after the death of a replica, and continued behind the text that is stored. A second
//! panic ends the turn with a failure; a third one, while that is written, cancels the turn.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::Generations;
use super::redis_call::call_redis;
use super::turn;
use super::turn_state::TurnState;
use crate::lifecycle::catch_panic;
use crate::session::GenerationId;
use crate::session::model::Failure;
use crate::session::store::{Cancellation, Claim, ClaimAttempt, OpenTurn, Turn};

/// Panics after which a turn is not continued, and ends with a failure.
const FAILED_AFTER: u32 = 2;

/// Runs a turn, again after a panic, until it has ended or is another replica's.
pub(super) async fn run(generations: &Generations, turn: Arc<Turn>, state: TurnState) {
    let (mut turn, mut state) = (turn, state);
    for panics in 0..=FAILED_AFTER {
        let failure = (panics >= FAILED_AFTER).then(internal);
        let running = turn::run(generations.clone(), Arc::clone(&turn), state, failure);
        if catch_panic("turn", running).await.is_ok() {
            return;
        }
        let attempt = ClaimAttempt::new(OpenTurn {
            session: turn.session,
            generation: turn.generation,
            replica: generations.store.replica().to_owned(),
            fence: turn.fence,
        });
        (turn, state) = match call_redis(|| generations.store.claim(&attempt)).await {
            Claim::Running(turn, writers) => (turn, TurnState::Running { writers }),
            Claim::Waiting(turn) => (turn, TurnState::Waiting),
            Claim::Other => return,
        };
    }
    tracing::error!(generation = %turn.generation, "turn cancelled after its last panic");
    let cancellation = Cancellation::new(&turn.owner, turn.session, Some(turn.generation));
    call_redis(|| generations.store.cancel(&cancellation)).await;
}

fn internal() -> Failure {
    Failure {
        code: "internal".to_owned(),
        message: "This service failed while it answered; send the message again, and report it to \
            the operator if that fails, too."
            .to_owned(),
        retryable: true,
        retry_after: None,
    }
}

/// Lists a generation as running on this replica, until this value is dropped.
pub(super) struct Listed {
    generations: Generations,
    generation: GenerationId,
}

impl Listed {
    pub(super) fn new(generations: Generations, generation: GenerationId) -> Self {
        *generations.running().entry(generation).or_default() += 1;
        Self { generations, generation }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut running = self.generations.running();
        if let Entry::Occupied(mut runs) = running.entry(self.generation) {
            *runs.get_mut() -= 1;
            if *runs.get() == 0 {
                runs.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::InjectedPanics;
