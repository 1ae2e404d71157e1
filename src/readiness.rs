//! Whether this replica can take a turn: the one source of every health reply.

use std::time::Duration;

use tokio::sync::watch;

use crate::lifecycle::Lifecycle;
use crate::redis::Condition;

/// Whether this replica can take a turn. Asking costs nothing: others keep it up to date.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// The phase of the process, and the failure of a task without which it cannot serve.
    pub lifecycle: Lifecycle,
    /// What the last probe of Redis found.
    pub redis: watch::Receiver<Condition>,
    /// How long Redis may be unusable before a replica that was ready is so no longer. A short outage
    /// must not take every replica out of the load balancer at once.
    pub patience: Duration,
}

/// Why a replica is to get no requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// It is on its way out.
    Draining,
    /// An essential task died.
    TaskDied(&'static str),
    /// No turn could be taken with Redis, never yet or for longer than the patience; why, in a few
    /// words.
    Redis(String),
}

impl Readiness {
    /// Why this replica is to get no requests; none where it is ready.
    pub fn not_ready(&self) -> Option<NotReady> {
        // First, as it is why such a replica drains.
        if let Some(failure) = self.lifecycle.failure() {
            return Some(NotReady::TaskDied(failure.task));
        }
        if self.lifecycle.is_draining() {
            return Some(NotReady::Draining);
        }
        let redis = self.redis.borrow();
        if redis.is_usable_within(self.patience) {
            return None;
        }
        // Usable when it was probed last, and not probed since.
        Some(NotReady::Redis(redis.trouble().unwrap_or("not reachable").to_owned()))
    }

    /// Why no turn can be taken with Redis now, in a few words; none where one can. A replica may be
    /// ready all the same, for a while.
    pub fn redis_trouble(&self) -> Option<String> {
        self.redis.borrow().trouble().map(str::to_owned)
    }

    /// Whether no turn can be taken for lack of Redis's memory alone.
    pub fn is_store_full(&self) -> bool {
        self.redis.borrow().is_full()
    }
}
