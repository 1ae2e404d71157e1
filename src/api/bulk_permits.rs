//! Bounds of exports and imports: how many run at a time, and at which pace their clients have to go.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::problem::Problem;
use crate::session::Owner;

/// Exports at a time. Each holds a page of messages as they are stored, of about a megabyte, and a part of
/// its body.
const EXPORTS: usize = 8;
/// Imports at a time. Each holds the messages of one session, of up to 64 MiB.
const IMPORTS: usize = 2;
/// When to retry, in seconds.
const RETRY_SECONDS: u64 = 10;
/// Bytes a second that a client has to send or read on average.
const BYTES_PER_SECOND: u64 = 16 << 10;
/// The time by which a client may fall behind that pace, at most.
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// The exports and imports that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bulk {
    /// An export.
    Export,
    /// An import.
    Import,
}

/// The permits of this replica's exports and imports. Cloning is cheap.
#[derive(Clone)]
pub struct BulkPermits {
    exports: Arc<Semaphore>,
    imports: Arc<Semaphore>,
    /// The users of those that run.
    users: Arc<Mutex<HashSet<(Bulk, String)>>>,
}

/// The permit of one export or import, until it is dropped.
#[derive(Debug)]
pub struct BulkPermit {
    users: Arc<Mutex<HashSet<(Bulk, String)>>>,
    user: (Bulk, String),
    _permit: OwnedSemaphorePermit,
}

impl Default for BulkPermits {
    fn default() -> Self {
        let permits = |count| Arc::new(Semaphore::new(count));
        Self { exports: permits(EXPORTS), imports: permits(IMPORTS), users: Arc::default() }
    }
}

impl BulkPermits {
    /// Takes the permit of an export or an import. A user has one of each at a time.
    ///
    /// # Errors
    /// A 429 where the user has one under way, a 503 where as many run as may.
    pub fn take(&self, bulk: Bulk, owner: &Owner) -> Result<BulkPermit, Problem> {
        let semaphore = match bulk {
            Bulk::Export => &self.exports,
            Bulk::Import => &self.imports,
        };
        let user = (bulk, owner.key());
        let mut users = lock(&self.users);
        if users.contains(&user) {
            let detail = "You have one under way at this replica; wait for its end, or retry after \
                10 s.";
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail);
            return Err(problem.retry_after(RETRY_SECONDS));
        }
        let Ok(permit) = Arc::clone(semaphore).try_acquire_owned() else {
            let detail =
                "This replica runs as many exports and imports as it may; retry after 10 s.";
            return Err(Problem::unavailable("too_many_connections", detail, RETRY_SECONDS));
        };
        users.insert(user.clone());
        Ok(BulkPermit { users: Arc::clone(&self.users), user, _permit: permit })
    }
}

impl Drop for BulkPermit {
    fn drop(&mut self) {
        lock(&self.users).remove(&self.user);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pace of a client that sends or reads a long body.
#[derive(Clone, Copy, Debug)]
pub struct ClientPace {
    /// The time by which the client may fall behind.
    delay: Duration,
    /// How long the client has taken.
    taken: Duration,
    bytes: u64,
}

impl ClientPace {
    /// Creates the pace of a client that may be silent for so long, and for 30 s at most.
    pub fn new(silence: Duration) -> Self {
        Self { delay: silence.min(LONGEST_DELAY), taken: Duration::ZERO, bytes: 0 }
    }

    /// Counts bytes that were sent or are to be read.
    pub fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// Counts the time that the client has taken.
    pub fn add_time(&mut self, taken: Duration) {
        self.taken += taken;
    }

    /// Returns how long the client may take for the bytes until now; zero where it is too slow.
    pub fn left(&self) -> Duration {
        let expected = Duration::from_millis(self.bytes * 1000 / BYTES_PER_SECOND);
        (self.delay + expected).saturating_sub(self.taken)
    }

    /// Returns how long the next bytes may take to arrive.
    pub fn left_for_next(&self) -> Duration {
        self.left().min(self.delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::model::User;

    fn user(name: &str) -> Owner {
        Owner::User(User::local(name).expect("a name"))
    }

    #[test]
    fn a_user_has_one_export_and_one_import_at_a_time_and_the_others_have_theirs() {
        let permits = BulkPermits::default();
        let export = permits.take(Bulk::Export, &user("alice")).expect("the first");
        let refused = permits.take(Bulk::Export, &user("alice")).expect_err("the second");
        assert_eq!((refused.status.as_u16(), &*refused.code), (429, "rate_limited"));
        assert_eq!(refused.retry_after, Some(10));
        let _import = permits.take(Bulk::Import, &user("alice")).expect("an import");
        let _other = permits.take(Bulk::Import, &user("bob")).expect("another user's");
        let full = permits.take(Bulk::Import, &user("carol")).expect_err("as many as may run");
        assert_eq!((full.status.as_u16(), &*full.code), (503, "too_many_connections"));
        assert!(permits.take(Bulk::Export, &user("carol")).is_ok());
        drop(export);
        assert!(permits.take(Bulk::Export, &user("alice")).is_ok());
    }

    #[test]
    fn a_client_may_fall_behind_a_pace_by_a_bounded_time() {
        let second = Duration::from_secs(1);
        let mut pace = ClientPace::new(90 * second);
        assert_eq!(pace.left(), 30 * second);
        // Slower than the pace by half.
        let mut seconds = 0;
        while !pace.left_for_next().is_zero() {
            pace.add_bytes(8 << 10);
            pace.add_time(second);
            seconds += 1;
        }
        assert_eq!(seconds, 60);
        // Faster, and then silent.
        let mut pace = ClientPace::new(90 * second);
        pace.add_bytes(64 << 20);
        pace.add_time(10 * second);
        assert_eq!(pace.left_for_next(), 30 * second);
        assert_eq!(ClientPace::new(2 * second).left(), 2 * second);
    }
}
