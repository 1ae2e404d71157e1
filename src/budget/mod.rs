//! Storage budgets: how much of Redis a caller's sessions may take, and all anonymous ones together.
//!
//! The replica that ends a turn measures the session and records it in an index, from which a budget
//! is one lookup. Where all anonymous sessions take too much, the ones that were used least recently
//! go, of the network that takes most, however young they are; never one with a running or waiting
//! turn, or with a client that listens. Those without an answer go before the others of their network.
//! A budget is a limit and no account: a failover may lose the last records, and the next turn of each
//! session brings them back.

mod sessions;

use std::time::Duration;

pub use sessions::{ListEntry, ListOrder, ListPosition};

use crate::redis::{Call, RedisError};
use crate::session::store::Evicted;
use crate::session::{Owner, SessionId, Store, StoreError};
use crate::telemetry::metric;

/// The beginning of all keys of the index, which lie in one hash slot.
const BUDGET: &str = "jarvis:{budget}";
/// What a session takes besides its text: its keys, the fields of its hash, and its entries in the
/// indexes. `MEMORY USAGE` of the keys of a session with one short turn, rounded up.
const SESSION_BYTES: u64 = 4096;

/// The bounds of what is stored.
#[derive(Clone, Copy, Debug)]
pub struct StorageLimits {
    /// Sessions of one user, or of one network of anonymous callers.
    pub caller_sessions: u64,
    /// Bytes of the sessions of one user, or of one network of anonymous callers.
    pub caller_bytes: u64,
    /// Bytes of all anonymous sessions.
    pub anonymous_bytes: u64,
    /// How long a session without an answer goes before the others of its network.
    pub young: Duration,
}

impl Default for StorageLimits {
    fn default() -> Self {
        Self {
            caller_sessions: 10_000,
            caller_bytes: 256 << 20,
            anonymous_bytes: 1 << 30,
            young: Duration::from_mins(3),
        }
    }
}

/// Why nothing more is stored for a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverBudget {
    /// The caller has its largest number of sessions, and this is another one.
    #[error(
        "As many sessions are stored for this caller as there may be; delete some, or use one that exists."
    )]
    Sessions,
    /// The caller's sessions take as much as they may.
    #[error(
        "As much is stored for this caller as there may be; delete sessions, or try again later."
    )]
    Bytes,
    /// All anonymous sessions take as much as they may, and none can be removed yet.
    #[error(
        "As much is stored for callers that are not signed in as there may be; try again later."
    )]
    Total,
}

/// The storage budgets. Cloning is cheap.
#[derive(Clone)]
pub struct Budget {
    store: Store,
    limits: StorageLimits,
}

impl Budget {
    /// Creates the budgets of the sessions in `store`.
    pub fn new(store: Store, limits: StorageLimits) -> Self {
        Self { store, limits }
    }

    /// Checks that a turn of this caller may be stored in the session, and lists it for a user.
    /// `network` is the digest of
    /// the network that an anonymous caller comes from; where that is unknown, only the limit of all
    /// anonymous sessions counts.
    ///
    /// # Errors
    /// [`OverBudget`]. Where Redis does not reply, there is room: the turn is about to find that
    /// out, too.
    pub async fn room(
        &self,
        owner: &Owner,
        network: &str,
        session: SessionId,
    ) -> Result<(), OverBudget> {
        self.room_for(owner, network, session, 0).await
    }

    /// Checks as [`Budget::room`] that so many bytes may be stored in the session.
    ///
    /// # Errors
    /// As [`Budget::room`].
    pub async fn room_for(
        &self,
        owner: &Owner,
        network: &str,
        session: SessionId,
        bytes: u64,
    ) -> Result<(), OverBudget> {
        let is_known = *owner != Owner::Anonymous || !network.is_empty();
        let limit = |limit: u64| if is_known { limit } else { 0 };
        let call = call("jarvis_budget_room_1")
            .text("session", session)
            .arg("payer", payer(owner, network))
            .text("bytes", bytes)
            .text("sessions_limit", limit(self.limits.caller_sessions))
            .text("bytes_limit", limit(self.limits.caller_bytes))
            .text("total_limit", self.limits.anonymous_bytes);
        let Ok(reply) = self.store.redis().call::<Vec<String>>(call).await else { return Ok(()) };
        let (verdict, remove) =
            reply.split_first().map_or(("", &[][..]), |(verdict, rest)| (verdict.as_str(), rest));
        if !remove.is_empty() {
            let (budget, remove) = (self.clone(), remove.to_vec());
            tokio::spawn(async move { logged(budget.remove(&remove).await) });
        }
        match verdict {
            "sessions" => Err(OverBudget::Sessions),
            "bytes" => Err(OverBudget::Bytes),
            "total" => Err(OverBudget::Total),
            _ => Ok(()),
        }
    }

    /// Records what a session takes after a turn of a caller from this network, and removes sessions
    /// where all anonymous ones take too much. A failure is only logged.
    pub async fn record(&self, network: &str, session: SessionId) {
        logged(self.try_record(Some(network), session).await);
    }

    /// Records what a session takes after its messages were removed. A failure is only logged.
    pub async fn record_again(&self, session: SessionId) {
        logged(self.try_record(None, session).await);
    }

    async fn try_record(
        &self,
        network: Option<&str>,
        session: SessionId,
    ) -> Result<(), StoreError> {
        let remove = self.measure_and_record(network, session).await?;
        self.remove(&remove).await
    }

    /// Returns the sessions to remove.
    async fn measure_and_record(
        &self,
        network: Option<&str>,
        session: SessionId,
    ) -> Result<Vec<String>, StoreError> {
        let Some(measured) = self.store.measure(session).await? else {
            self.forget(session).await?;
            return Ok(Vec::new());
        };
        let payer = match (&measured.owner, network) {
            (Owner::Anonymous, None) => String::new(),
            (owner, network) => payer(owner, network.unwrap_or_default()),
        };
        let call = call("jarvis_budget_record_1")
            .text("session", session)
            .arg("payer", payer)
            .text("bytes", measured.bytes + SESSION_BYTES)
            .text("seconds", measured.expires_in.map_or(-1, u64::cast_signed))
            .text("total_limit", self.limits.anonymous_bytes)
            .text("young", self.limits.young.as_secs());
        let remove = self.store.redis().call(call).await?;
        match self.store.measure(session).await? {
            // The session was deleted since it was measured.
            None => self.forget(session).await?,
            // It became a user's since, and what was recorded then is overwritten.
            Some(now) if now.owner != measured.owner => {
                return Box::pin(self.measure_and_record(network, session)).await;
            }
            Some(_) => {}
        }
        Ok(remove)
    }

    /// Removes anonymous sessions that are not in use. The others count as used just now.
    async fn remove(&self, sessions: &[String]) -> Result<(), StoreError> {
        for session in sessions.iter().filter_map(|session| session.parse().ok()) {
            if self.store.evict(&Owner::Anonymous, session).await? == Evicted::Removed {
                self.forget(session).await?;
                metrics::counter!(metric::SESSIONS_EVICTED_TOTAL).increment(1);
            } else {
                self.measure_and_record(None, session).await?;
            }
        }
        Ok(())
    }

    async fn forget(&self, session: SessionId) -> Result<(), RedisError> {
        let call = call("jarvis_budget_forget_1").text("session", session);
        self.store.redis().call(call).await
    }
}

fn logged(outcome: Result<(), StoreError>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "storage not recorded");
    }
}

fn call(function: &'static str) -> Call {
    Call::new(function).key("budget", BUDGET.to_owned())
}

/// Returns the name of the caller whose budget a session counts for.
fn payer(owner: &Owner, network: &str) -> String {
    match owner {
        Owner::Anonymous => format!("a:{network}"),
        Owner::User(_) => owner.key(),
    }
}
