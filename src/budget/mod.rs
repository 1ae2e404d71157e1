//! Storage budgets: how much of Redis a caller's sessions may take, and all anonymous ones together.
//!
//! The replica that ends a turn measures the session and records it in an index, from which a budget
//! is one lookup. Where all anonymous sessions take too much, the ones that were used least recently
//! go, of the network that takes most, however young they are; never one with a running or waiting
//! turn. Those without an answer go before the others of their network, and those with a client that
//! listens after them; the client gets the event of a cleared history. The network that takes most is
//! looked for at each width: the /48, the /56 within it, and the /64 within that.
//! A budget is a limit and no account: a failover may lose the last records, and the next turn of each
//! session brings them back.
//!
//! The bytes of an import or a claim are known before they are stored. The call that finds room for
//! them reserves it, so that many at the same time fit together; the record takes its place.

mod sessions;

use std::time::Duration;

use fred::prelude::Value;
use tracing::Instrument;

pub use sessions::{Deletion, DueSession, ListEntry, ListOrder, ListPosition};

use crate::lifecycle::spawn_caught;
use crate::redis::{Call, RedisError, keys};
use crate::session::store::Evicted;
use crate::session::{Owner, SessionId, Store, StoreError};
use crate::telemetry::metric;

/// The bytes that a session takes in addition to its text: its keys, the fields of its hash, and its entries
/// in the indexes. `MEMORY USAGE` of the keys of a session with one short turn, rounded up.
const SESSION_BYTES: u64 = 4096;
/// The smallest memory of Redis that is shared out, in bytes: one with less is full without any session,
/// and says that itself.
const SMALLEST_REDIS: u64 = 16 << 20;
/// How long room is reserved: longer than an import runs, and its messages are kept after it broke
/// off, for ten minutes each.
const RESERVED: Duration = Duration::from_mins(21);

/// The bounds of what is stored.
#[derive(Clone, Copy, Debug)]
pub struct StorageLimits {
    /// Sessions of one user, or of one network of anonymous callers. The next wider network may have
    /// twice as many, and so on.
    pub caller_sessions: u64,
    /// Bytes of the sessions of one user, or of one network of anonymous callers. The next wider network
    /// may have twice as many, and so on.
    pub caller_bytes: u64,
    /// Bytes of all anonymous sessions; at most half of what Redis may use.
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
    /// The caller, or a network around it, has its largest number of sessions, and this is another one.
    #[error(
        "As many sessions are stored for this caller as there may be; delete some, or use one that exists."
    )]
    Sessions,
    /// The sessions of the caller, or of a network around it, take as much as they may.
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

    /// Returns the bytes that all anonymous sessions may take: strangers never fill the Redis of users.
    fn anonymous_limit(&self) -> u64 {
        let limit = self.store.redis().memory_limit().filter(|limit| *limit >= SMALLEST_REDIS);
        let half = limit.map(|limit| limit / 2);
        half.map_or(self.limits.anonymous_bytes, |half| half.min(self.limits.anonymous_bytes))
    }

    /// Checks that a turn of this caller may be stored in the session, and lists it for a user.
    /// `network` is the digest of the network that an anonymous caller comes from; where that is
    /// unknown, only the limit of all anonymous sessions counts.
    ///
    /// # Errors
    /// [`OverBudget`]. Where Redis does not reply, there is room: the turn is about to find that
    /// out, too.
    pub async fn room(
        &self,
        owner: &Owner,
        network: &str,
        session: SessionId,
    ) -> Result<RoomGrant, OverBudget> {
        self.room_with(owner, network, session, 0).await
    }

    /// Checks as [`Budget::room`] for a turn that also stores so many bytes.
    ///
    /// # Errors
    /// As [`Budget::room`].
    pub async fn room_with(
        &self,
        owner: &Owner,
        network: &str,
        session: SessionId,
        bytes: u64,
    ) -> Result<RoomGrant, OverBudget> {
        self.room_for(owner, network, session, Purpose::Turn { bytes }).await
    }

    /// Reserves room for the messages of an import, which take so many bytes, and lists the session.
    /// A repeat takes the place of the first reservation.
    ///
    /// # Errors
    /// As [`Budget::room`].
    pub async fn reserve_import(
        &self,
        owner: &Owner,
        session: SessionId,
        bytes: u64,
    ) -> Result<RoomGrant, OverBudget> {
        let bytes = bytes + SESSION_BYTES;
        self.room_for(owner, "", session, Purpose::Import { bytes }).await
    }

    /// Reserves room for an anonymous session that a user is about to claim, and lists it.
    ///
    /// # Errors
    /// As [`Budget::room`].
    pub async fn reserve_claim(
        &self,
        owner: &Owner,
        session: SessionId,
    ) -> Result<RoomGrant, OverBudget> {
        self.room_for(owner, "", session, Purpose::Claim).await
    }

    async fn room_for(
        &self,
        owner: &Owner,
        network: &str,
        session: SessionId,
        purpose: Purpose,
    ) -> Result<RoomGrant, OverBudget> {
        let is_known = *owner != Owner::Anonymous || !network.is_empty();
        let limit = |limit: u64| if is_known { limit } else { 0 };
        let (name, bytes, reserved) = match purpose {
            Purpose::Turn { bytes } => ("turn", bytes, Duration::ZERO),
            Purpose::Claim => ("claim", 0, RESERVED),
            Purpose::Import { bytes } => ("import", bytes, RESERVED),
        };
        let call = call("jarvis_budget_room_1")
            .text("session", session)
            .arg("payer", payer(owner, network))
            .text("bytes", bytes)
            .arg("purpose", name)
            .text("reserve_seconds", reserved.as_secs())
            .text("sessions_limit", limit(self.limits.caller_sessions))
            .text("bytes_limit", limit(self.limits.caller_bytes))
            .text("total_limit", self.anonymous_limit());
        let budget = self.clone();
        // A task of its own, because a request may be dropped, and what the call names is to be
        // removed nevertheless.
        let asked = async move {
            let reply = budget.store.redis().call::<Value>(call).await.ok()?;
            let Some((verdict, listed, token, work)) = parse_room(reply) else {
                tracing::warn!("unreadable reply about the storage budget");
                return None;
            };
            if !work.is_empty() {
                spawn_caught("budget", async move { budget.catch_up(&work).await });
            }
            Some((verdict, listed, token))
        };
        let asked = spawn_caught("budget", asked.in_current_span()).await;
        let Ok(Ok(Some((verdict, listed, token)))) = asked else {
            return Ok(RoomGrant::default());
        };
        match &*verdict {
            "sessions" => Err(OverBudget::Sessions),
            "bytes" => Err(OverBudget::Bytes),
            "total" => Err(OverBudget::Total),
            _ => Ok(RoomGrant { purpose: name, listed, token }),
        }
    }

    /// Takes back what a call listed and reserved for a user in a session that turned out to be none of
    /// that user's. Bytes and entries that another call reserved, or listed since, stay. A failure is only
    /// logged: the reservation ends by itself, and the entry goes when the list is read. What an anonymous
    /// caller reserved ends by itself alone: an address has no list.
    pub async fn withdraw(&self, owner: &Owner, session: SessionId, grant: RoomGrant) {
        if *owner == Owner::Anonymous {
            return;
        }
        let call = call("jarvis_budget_withdraw_1")
            .text("session", session)
            .arg("payer", payer(owner, ""))
            .arg("listed", grant.listed)
            .arg("purpose", grant.purpose)
            .arg("token", grant.token);
        if let Err(error) = self.store.redis().call::<()>(call).await {
            tracing::debug!(%error, "refused session not removed from the list");
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
        let work = self.measure_and_record(network, session, InUse::Unknown, true).await?;
        self.catch_up(&work).await;
        Ok(())
    }

    /// Returns what else there is to do; with `removes` also sessions to remove where all anonymous
    /// ones take too much.
    async fn measure_and_record(
        &self,
        network: Option<&str>,
        session: SessionId,
        in_use: InUse,
        removes: bool,
    ) -> Result<CatchUp, StoreError> {
        let Some(measured) = self.store.measure(session).await? else {
            self.forget(session).await?;
            return Ok(CatchUp::default());
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
            .arg("in_use", in_use.as_str())
            .text("total_limit", if removes { self.anonymous_limit() } else { 0 })
            .text("young", self.limits.young.as_secs());
        let reply: Value = self.store.redis().call(call).await?;
        let work = CatchUp::parse(&mut reply.into_array().into_iter())
            .ok_or_else(|| RedisError::Unexpected("budget_record".to_owned()))?;
        match self.store.measure(session).await? {
            // The session was deleted since it was measured.
            None => self.forget(session).await?,
            // It became a user's since, and what was recorded then is overwritten.
            Some(now) if now.owner != measured.owner => {
                return Box::pin(self.measure_and_record(network, session, in_use, removes)).await;
            }
            Some(_) => {}
        }
        Ok(work)
    }

    /// Records sessions that were never recorded, and forgets those of them that there are not.
    /// Removes anonymous sessions that are not in use. The others go after the rest of their network.
    /// A failure is only logged, and leaves the session to a later call.
    async fn catch_up(&self, work: &CatchUp) {
        let parsed = |sessions: &[String]| {
            sessions.iter().filter_map(|session| session.parse().ok()).collect::<Vec<SessionId>>()
        };
        for session in parsed(&work.unrecorded) {
            let recorded = self.measure_and_record(None, session, InUse::Unknown, false).await;
            logged(recorded.map(drop));
        }
        for session in parsed(&work.remove) {
            logged(self.remove(session, false).await);
        }
        for session in parsed(&work.although_listened) {
            logged(self.remove(session, true).await);
        }
    }

    /// Removes an anonymous session, or records how it is in use.
    async fn remove(&self, session: SessionId, although_listened: bool) -> Result<(), StoreError> {
        let mut evicted = self.store.evict(&Owner::Anonymous, session).await?;
        if evicted == Evicted::Listened && although_listened {
            evicted = self.store.evict_listened(&Owner::Anonymous, session).await?;
        }
        let in_use = match evicted {
            Evicted::Removed => {
                metrics::counter!(metric::SESSIONS_EVICTED_TOTAL).increment(1);
                return Ok(self.forget(session).await?);
            }
            Evicted::Gone => return Ok(self.forget(session).await?),
            Evicted::Listened => InUse::Listened,
            Evicted::Busy => InUse::Turn,
            Evicted::Kept => InUse::Unknown,
        };
        self.measure_and_record(None, session, in_use, false).await.map(drop)
    }

    async fn forget(&self, session: SessionId) -> Result<(), RedisError> {
        let call = call("jarvis_budget_forget_1").text("session", session);
        self.store.redis().call(call).await
    }
}

/// The entry and the bytes that a call reserved, for [`Budget::withdraw`]. Of a caller that is not signed in,
/// and while Redis does not reply, that is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomGrant {
    /// The use of the room.
    purpose: &'static str,
    /// When the session was listed, where it was not before.
    listed: String,
    /// The token of the reservation, where bytes were reserved.
    token: String,
}

/// The bytes that a caller is about to store in a session.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Turn { bytes: u64 },
    Import { bytes: u64 },
    Claim,
}

/// Whether an anonymous session was in use when it should be removed.
#[derive(Clone, Copy, Debug)]
enum InUse {
    /// It should not be removed.
    Unknown,
    /// A client listens.
    Listened,
    /// A turn runs or waits.
    Turn,
}

impl InUse {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Listened => "listened",
            Self::Turn => "turn",
        }
    }
}

/// The work that a call of the index left.
#[derive(Debug, Default)]
struct CatchUp {
    /// Anonymous sessions to remove.
    remove: Vec<String>,
    /// Anonymous sessions to remove, also where a client listens.
    although_listened: Vec<String>,
    /// Sessions of users that were listed long ago and never recorded.
    unrecorded: Vec<String>,
}

impl CatchUp {
    fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.although_listened.is_empty() && self.unrecorded.is_empty()
    }

    fn parse(reply: &mut impl Iterator<Item = Value>) -> Option<Self> {
        let mut sessions = || reply.next()?.convert().ok();
        Some(Self { remove: sessions()?, although_listened: sessions()?, unrecorded: sessions()? })
    }
}

/// Returns the verdict, when the session was listed, the token of the reservation, and what there is
/// to do.
fn parse_room(reply: Value) -> Option<(String, String, String, CatchUp)> {
    let mut reply = reply.into_array().into_iter();
    let mut text = || reply.next()?.as_string();
    let (verdict, listed, token) = (text()?, text()?, text()?);
    Some((verdict, listed, token, CatchUp::parse(&mut reply)?))
}

fn logged(outcome: Result<(), StoreError>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "storage not recorded");
    }
}

fn call(function: &'static str) -> Call {
    Call::new(function).key("budget", keys::BUDGET.to_owned())
}

/// Returns the name of the caller whose budget a session counts for.
fn payer(owner: &Owner, network: &str) -> String {
    match owner {
        Owner::Anonymous => format!("a:{network}"),
        Owner::User(_) => owner.key(),
    }
}
