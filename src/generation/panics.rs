//! A panic in a turn's task: the turn goes on, or ends with `internal`, and leaves nothing behind.
//!
//! The slot is given up as the lease is dropped, and what the writer knew is lost with it. So the
//! turn is claimed again, as that of a dead replica would be, and continued behind the text that is
//! stored. A second panic ends it with a failure; a third one, in writing that failure, cancels it.

use std::sync::Arc;

use super::Generations;
use super::turn::{self, TurnState, ask_redis};
use crate::lifecycle::catch_panic;
use crate::session::GenerationId;
use crate::session::model::Failure;
use crate::session::store::{Cancellation, Claim, OpenTurn, Turn};

/// The panic after which a turn is not continued any more, and ends with a failure.
const FAILED_AFTER: u32 = 2;

/// Runs a turn, through panics, until it has ended or is another replica's.
pub(super) async fn run(generations: &Generations, turn: Arc<Turn>, state: TurnState) {
    let (mut turn, mut state) = (turn, state);
    for panics in 0..=FAILED_AFTER {
        let failure = (panics >= FAILED_AFTER).then(internal);
        let running = turn::run(generations.clone(), Arc::clone(&turn), state, failure);
        if catch_panic("turn", running).await.is_ok() {
            return;
        }
        let open = OpenTurn {
            session: turn.session,
            generation: turn.generation,
            replica: generations.store.replica().to_owned(),
            fence: turn.fence,
        };
        (turn, state) = match ask_redis(|| generations.store.claim(&open)).await {
            Claim::Running(turn, writers) => (turn, TurnState::Running { writers }),
            Claim::Waiting(turn) => (turn, TurnState::Waiting),
            Claim::Other => return,
        };
    }
    tracing::error!(generation = %turn.generation, "turn cancelled after its last panic");
    let cancellation = Cancellation::new(&turn.owner, turn.session, Some(turn.generation));
    ask_redis(|| generations.store.cancel(&cancellation)).await;
}

fn internal() -> Failure {
    Failure {
        code: "internal".to_owned(),
        message: "Something failed in this service while it answered; send the message again, and \
            if that fails too, tell its operator."
            .to_owned(),
        retryable: true,
        retry_after: None,
    }
}

/// Lists a generation as running here, until it is dropped.
pub(super) struct Listed {
    generations: Generations,
    generation: GenerationId,
}

impl Listed {
    pub(super) fn new(generations: Generations, generation: GenerationId) -> Self {
        generations.running().insert(generation);
        Self { generations, generation }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.generations.running().remove(&self.generation);
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::InjectedPanics;
