//! The phase of the process, which only advances.

use std::sync::Arc;

use tokio::sync::watch;

use super::failure::TaskFailure;

/// A phase in the life of a process, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The process listens, and Redis could not take a turn yet.
    #[default]
    Starting,
    /// Turns are accepted.
    Serving,
    /// Nothing new is accepted. Running turns may end within the drain limit.
    Draining,
    /// All turns have ended or are handed over. Connections are closed, and the process ends.
    Stopped,
}

/// The life of one process. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    shared: Arc<PhaseState>,
}

#[derive(Debug, Default)]
struct PhaseState {
    phase: watch::Sender<Phase>,
    /// The first essential task that failed.
    failure: watch::Sender<Option<TaskFailure>>,
}

impl Lifecycle {
    /// Returns the phase of the process.
    pub fn phase(&self) -> Phase {
        *self.shared.phase.borrow()
    }

    /// Returns a receiver of the phase.
    pub fn subscribe(&self) -> watch::Receiver<Phase> {
        self.shared.phase.subscribe()
    }

    /// Advances to a phase. The phase never goes back: an earlier one changes nothing.
    pub fn advance(&self, to: Phase) {
        let advanced = self.shared.phase.send_if_modified(|phase| {
            let later = to > *phase;
            *phase = to.max(*phase);
            later
        });
        if advanced {
            tracing::info!(phase = ?to, "phase changed");
        }
    }

    /// Returns whether the process accepts nothing new.
    pub fn is_draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    /// Resolves when the process is in this phase or a later one. Cancel-safe.
    pub async fn reached(&self, phase: Phase) {
        // It cannot fail: `self` keeps the sender.
        let _ = self.shared.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Returns the first failure of an essential task.
    pub fn failure(&self) -> Option<TaskFailure> {
        self.shared.failure.borrow().clone()
    }

    /// Resolves when an essential task has failed. Cancel-safe.
    pub async fn failed(&self) {
        // It cannot fail: `self` keeps the sender.
        let _ = self.shared.failure.subscribe().wait_for(Option::is_some).await;
    }

    /// Notes the failure of an essential task, if it is the first.
    pub(super) fn note_failure(&self, failure: TaskFailure) {
        self.shared.failure.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(failure);
            is_first
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_phase_advances_in_order_and_never_goes_back() {
        let lifecycle = Lifecycle::default();
        let observed = lifecycle.subscribe();
        assert_eq!(lifecycle.phase(), Phase::Starting);
        lifecycle.reached(Phase::Starting).await;
        lifecycle.clone().advance(Phase::Draining);
        lifecycle.advance(Phase::Serving);
        assert_eq!((lifecycle.phase(), *observed.borrow()), (Phase::Draining, Phase::Draining));
        // A phase that was skipped counts as reached.
        lifecycle.reached(Phase::Serving).await;
        let stopped = lifecycle.reached(Phase::Stopped);
        tokio::pin!(stopped);
        assert!(futures_util::poll!(&mut stopped).is_pending());
        lifecycle.advance(Phase::Stopped);
        stopped.await;
    }
}
