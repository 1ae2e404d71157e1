//! Acknowledgements of writes by Redis replicas.
//!
//! `WAIT` blocks its connection, and covers every write on that connection before it. So the calls
//! that need it share one connection, and one `WAIT` at a time serves all of them. Where Redis
//! replicas did not acknowledge in time, there is no other `WAIT` for a while: their outage must not
//! delay every turn.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fred::prelude::Server;
use tokio::time::Instant;

/// Time without a `WAIT` on a server whose Redis replicas did not acknowledge in time.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a missing acknowledgement counts for [`Replication::is_complete`].
const DOUBTED_FOR: Duration = Duration::from_secs(10);
/// Servers that are remembered, at most. Beyond it all are forgotten.
const SERVERS: usize = 64;

/// The known Redis replicas of each server.
#[derive(Debug, Default)]
pub(super) struct Replication {
    servers: Mutex<HashMap<Option<Server>, Arc<Acknowledgements>>>,
    /// When an acknowledgement was missing last.
    missed: Mutex<Option<Instant>>,
}

/// The acknowledgements of one server's Redis replicas.
#[derive(Debug, Default)]
struct Acknowledgements {
    /// The number of the `WAIT` that began last.
    begun: AtomicU64,
    waits: tokio::sync::Mutex<Waits>,
}

#[derive(Debug, Default)]
struct Waits {
    /// The number of the last `WAIT` that was acknowledged.
    acknowledged: u64,
    /// The time before which there is no other `WAIT`.
    not_before: Option<Instant>,
}

impl Replication {
    /// Returns whether Redis replicas of this server acknowledge the writes of the shared
    /// connection so far. `wait` makes a `WAIT` on it, and returns whether that succeeded.
    pub(super) async fn acknowledge(
        &self,
        server: Option<Server>,
        wait: impl AsyncFnOnce() -> bool,
    ) -> bool {
        let acknowledgements = self.of(server);
        // Each one that begins from now on covers the caller's write.
        let needed = acknowledgements.begun.load(Ordering::SeqCst) + 1;
        let mut waits = acknowledgements.waits.lock().await;
        if waits.acknowledged >= needed {
            return true;
        }
        if waits.not_before.is_some_and(|at| Instant::now() < at) {
            self.miss();
            return false;
        }
        let number = acknowledgements.begun.fetch_add(1, Ordering::SeqCst) + 1;
        if wait().await {
            *waits = Waits { acknowledged: number, not_before: None };
            return true;
        }
        waits.not_before = Some(Instant::now() + PAUSE);
        self.miss();
        false
    }

    /// Returns whether no acknowledgement was missing in the last ten seconds.
    pub(super) fn is_complete(&self) -> bool {
        lock(&self.missed).is_none_or(|missed| missed.elapsed() > DOUBTED_FOR)
    }

    fn miss(&self) {
        *lock(&self.missed) = Some(Instant::now());
    }

    fn of(&self, server: Option<Server>) -> Arc<Acknowledgements> {
        let mut servers = lock(&self.servers);
        if servers.len() >= SERVERS && !servers.contains_key(&server) {
            servers.clear();
        }
        Arc::clone(servers.entry(server).or_default())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_wait_serves_the_calls_that_came_before_it() {
        let replication = Replication::default();
        let waits = AtomicU64::new(0);
        let acknowledge = || {
            replication.acknowledge(None, async || {
                waits.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
                true
            })
        };
        let all = futures_util::future::join_all((0..50).map(|_| acknowledge())).await;
        assert!(all.iter().all(|acknowledged| *acknowledged));
        // All of them came before the first WAIT ended, and the second one covers them.
        assert_eq!(waits.load(Ordering::SeqCst), 2);
        assert!(replication.is_complete());
    }

    #[tokio::test]
    async fn an_outage_of_the_redis_replicas_delays_a_call_now_and_then_and_no_more() {
        let replication = Replication::default();
        let missing = async || {
            tokio::time::sleep(Duration::from_millis(100)).await;
            false
        };
        let start = Instant::now();
        let calls = (0..50).map(|_| replication.acknowledge(None, missing));
        assert!(!futures_util::future::join_all(calls).await.contains(&true));
        // One after another they would take five seconds.
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert!(!replication.is_complete());
        tokio::time::sleep(PAUSE).await;
        assert!(replication.acknowledge(None, async || true).await, "it is tried again");
    }
}
