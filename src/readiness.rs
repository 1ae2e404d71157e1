//! Whether this replica can take a turn: the one source of every health reply.

use std::time::Duration;

use tokio::sync::watch;

use crate::lifecycle::Lifecycle;
use crate::redis::Condition;
use crate::source::SourceKey;

/// Why a replica is not ready before it has the key of the digests of addresses.
const NO_KEY: &str = "the key of addresses was not read yet";

/// Whether this replica can take a turn. Reading it costs nothing, because other tasks keep it up
/// to date.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// The phase of the process, and the failure of an essential task.
    pub lifecycle: Lifecycle,
    /// The condition of Redis at its last probe.
    pub redis: watch::Receiver<Condition>,
    /// The key of the digests of addresses.
    pub source_key: SourceKey,
    /// How long Redis may be unusable before a replica that was ready becomes unready. A short
    /// outage must not take every replica out of the load balancer at once.
    pub patience: Duration,
}

/// Why a replica must get no requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// The process drains.
    Draining,
    /// The essential task of this name failed.
    TaskDied(&'static str),
    /// No turn could be taken with Redis, never yet or for longer than the patience. The text is a
    /// short reason.
    Redis(String),
    /// Redis was full before it had the functions, without which nothing can be done with it.
    RedisFull,
}

impl Readiness {
    /// Returns why this replica must get no requests; none where it is ready.
    pub fn not_ready(&self) -> Option<NotReady> {
        // The failure comes first, because it is the reason why such a replica drains.
        if let Some(failure) = self.lifecycle.failure() {
            return Some(NotReady::TaskDied(failure.task));
        }
        if self.lifecycle.is_draining() {
            return Some(NotReady::Draining);
        }
        let redis = self.redis.borrow();
        if redis.is_usable_within(self.patience) {
            let is_agreed = self.source_key.is_agreed();
            return (!is_agreed).then(|| NotReady::Redis(NO_KEY.to_owned()));
        }
        if redis.is_full() {
            return Some(NotReady::RedisFull);
        }
        // Without trouble Redis was usable at its last probe, which is too long ago.
        Some(NotReady::Redis(redis.trouble().unwrap_or("not reachable").to_owned()))
    }

    /// Returns why a new turn would wait for an operator: Redis refuses what turns need, or was full
    /// before it had the functions. Other troubles end by themselves, or are for the call to find.
    pub fn refusal(&self) -> Option<NotReady> {
        let redis = self.redis.borrow();
        if let Some(refusal) = redis.refusal() {
            return Some(NotReady::Redis(refusal.to_owned()));
        }
        let is_without_functions = redis.is_full() && !redis.is_usable_within(self.patience);
        is_without_functions.then_some(NotReady::RedisFull)
    }

    /// Returns a short reason why no turn can be taken with Redis now; none where a turn can. A
    /// replica may nevertheless be ready for a while.
    pub fn redis_trouble(&self) -> Option<String> {
        self.redis.borrow().trouble().map(str::to_owned)
    }

    /// Returns whether full memory of Redis is the only reason why no turn can be taken.
    pub fn is_store_full(&self) -> bool {
        self.redis.borrow().is_full()
    }
}
