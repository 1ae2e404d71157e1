//! Bounds of exports, imports and searches: how many run at a time, what imports hold in memory, and at
//! which pace the clients of long bodies have to go.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::byte_room::{ByteRoom, RoomPermit};
use crate::http::problem::Problem;
use crate::session::Owner;

/// Exports at a time. Each holds a page of messages as they are stored, of about a megabyte, and a part of
/// its body.
const EXPORTS: usize = 8;
/// Imports at a time. Each holds the messages of one session, of up to 64 MiB. A slow client holds its
/// permit for ten minutes, and a user has one: so they are more than the largest sessions for which there
/// is room.
const IMPORTS: usize = 8;
/// The room for the sessions of all imports, in MiB.
const IMPORT_MIB: u32 = 128;
/// How long a search waits for the one before it of its user.
const SEARCH_LIMIT: Duration = Duration::from_secs(5);
/// When to try a search again that has waited so long, in seconds.
const SEARCH_RETRY_SECONDS: u64 = 1;
/// Users whose searches are remembered before those that search nothing are forgotten.
const SEARCHERS_KEPT: usize = 1024;
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
    import_room: ByteRoom,
    /// The users of those that run.
    users: Arc<Mutex<HashSet<(Bulk, String)>>>,
    /// The one search of each user that searches.
    searches: Arc<Mutex<HashMap<String, Weak<Semaphore>>>>,
}

/// The permit of one search, until it is dropped.
#[derive(Debug)]
pub struct SearchPermit {
    _permit: OwnedSemaphorePermit,
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
        Self {
            exports: permits(EXPORTS),
            imports: permits(IMPORTS),
            import_room: ByteRoom::new(IMPORT_MIB, IMPORT_MIB / 4),
            users: Arc::default(),
            searches: Arc::default(),
        }
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

    /// Takes room for a session of an import, of so many bytes. Returns none where there is none.
    pub fn import_room(&self, bytes: usize) -> Option<RoomPermit> {
        self.import_room.try_take(None, bytes)
    }

    /// Returns the problem of an import whose session there is no room for.
    pub fn no_import_room() -> Problem {
        let detail =
            "This replica's imports hold as much as they may; send the file again in 10 s.";
        Problem::unavailable("too_many_connections", detail, RETRY_SECONDS)
    }

    /// Waits until no other search of the user runs at this replica, in the order of the calls: a search
    /// keeps Redis busy, and the reader of a page sends one for each letter.
    ///
    /// # Errors
    /// A 429 where that takes too long.
    pub async fn search(&self, owner: &Owner) -> Result<SearchPermit, Problem> {
        let waiting = self.search_of(owner.key()).acquire_owned();
        // The semaphore is never closed.
        let permit = timeout(SEARCH_LIMIT, waiting).await.ok().and_then(Result::ok);
        permit.map(|permit| SearchPermit { _permit: permit }).ok_or_else(|| {
            let detail = "Your searches before this one have not ended; retry after 1 s.";
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail);
            problem.retry_after(SEARCH_RETRY_SECONDS)
        })
    }

    fn search_of(&self, user: String) -> Arc<Semaphore> {
        let mut searches = lock(&self.searches);
        if let Some(search) = searches.get(&user).and_then(Weak::upgrade) {
            return search;
        }
        if searches.len() >= SEARCHERS_KEPT {
            // A caller that searches or waits holds the semaphore.
            searches.retain(|_, search| search.strong_count() > 0);
        }
        let search = Arc::new(Semaphore::new(1));
        searches.insert(user, Arc::downgrade(&search));
        search
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
        let others = (1..IMPORTS).map(|number| user(&format!("user{number}")));
        let others: Vec<_> = others.map(|other| permits.take(Bulk::Import, &other)).collect();
        assert!(others.iter().all(Result::is_ok), "other users");
        let full = permits.take(Bulk::Import, &user("carol")).expect_err("as many as may run");
        assert_eq!((full.status.as_u16(), &*full.code), (503, "too_many_connections"));
        assert!(permits.take(Bulk::Export, &user("carol")).is_ok());
        drop(export);
        assert!(permits.take(Bulk::Export, &user("alice")).is_ok());
    }

    #[test]
    fn the_sessions_of_all_imports_share_one_room_and_one_user_has_half_of_it() {
        let permits = BulkPermits::default();
        let mib = |count: usize| count << 20;
        let large = permits.import_room(mib(64)).expect("room");
        let growing = permits.import_room(mib(1)).and_then(|room| room.resize(mib(60)));
        let growing = growing.expect("room");
        let small = permits.import_room(mib(4)).expect("room");
        assert!(permits.import_room(1).is_none());
        assert!(small.resize(mib(5)).is_none(), "all of it is taken");
        drop(large);
        assert!(growing.resize(mib(64)).is_some());
    }

    #[tokio::test]
    async fn a_user_searches_once_at_a_time_and_other_users_do_not_wait() {
        let permits = BulkPermits::default();
        let first = permits.search(&user("alice")).await.expect("the first");
        let soon = |owner| {
            let permits = permits.clone();
            async move { timeout(Duration::from_millis(50), permits.search(&owner)).await }
        };
        assert!(soon(user("alice")).await.is_err(), "it waits");
        assert!(soon(user("bob")).await.is_ok_and(|permit| permit.is_ok()));
        let refused = permits.search(&user("alice")).await.expect_err("too long");
        assert_eq!((refused.status.as_u16(), refused.retry_after), (429, Some(1)));
        drop(first);
        assert!(soon(user("alice")).await.is_ok_and(|permit| permit.is_ok()));
        for number in 0..=SEARCHERS_KEPT {
            let permit = permits.search(&user(&format!("user{number}"))).await;
            assert!(permit.is_ok());
        }
        let kept = lock(&permits.searches).len();
        assert!(kept < SEARCHERS_KEPT, "{kept}: users that search nothing are forgotten");
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
