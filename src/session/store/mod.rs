//! Sessions in Redis: the keys, and the functions that change them.

mod answer;
mod cancel;
mod conversation;
mod history;
mod keys;
mod read;
mod takeover;
mod turns;

use serde::Serialize;
use tokio::sync::watch;

pub use answer::Written;
pub use cancel::{CancelReply, Cancellation, Clearing};
pub use conversation::{ConversationTooLarge, OwnConversation};
pub use history::{Described, Page, REPLY_BYTES, message};
pub use keys::{BUCKETS, bucket, channel, open_turns};
pub use read::{ReadFrom, ReadOutcome};
pub use takeover::{Claim, OpenTurn};
pub use turns::{Acceptance, Begin, Fence, IdempotencyKey, NewTurn, Proposal, Restored, Turn};

use super::event::Control;
use super::model::Owner;
use crate::lifecycle::Lifecycle;
use crate::redis::{Call, Redis, RedisError};
use keys::SessionKeys;
pub(super) use keys::session_of;

/// Bounds of what is stored.
#[derive(Clone, Debug)]
pub struct SessionLimits {
    /// Turns that may wait in one session.
    pub waiting_turns: u32,
    /// Bytes of one session's messages.
    pub session_bytes: u64,
    /// Seconds that an idle anonymous session is kept.
    pub anonymous_idle_seconds: u64,
    /// Seconds that a session is kept whose first turn brought its own conversation, from the end of
    /// its last turn.
    pub own_conversation_idle_seconds: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            waiting_turns: 8,
            session_bytes: 64 << 20,
            anonymous_idle_seconds: 30 * 24 * 60 * 60,
            own_conversation_idle_seconds: 60 * 60,
        }
    }
}

/// What went wrong with a session.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is not there, or not the caller's.
    #[error("There is no such session.")]
    Absent,
    /// As many turns wait as may.
    #[error(
        "As many turns as may wait in this session do; send the message again when one has ended."
    )]
    Busy,
    /// The session holds as much as it may.
    #[error("This session is full; clear it or begin a new one.")]
    Full,
    /// The idempotency key was used for another request.
    #[error("This idempotency key was used for another request; choose a new key.")]
    KeyReused,
    /// The turn brings its own conversation, and the session has one already.
    #[error("This session exists; a turn that brings its own conversation begins a new session.")]
    Occupied,
    /// The memory of Redis is full: what was asked for was not done.
    #[error("the memory of Redis is full")]
    OutOfMemory,
    /// Redis failed, and may have done what was asked for.
    #[error(transparent)]
    Redis(RedisError),
}

impl std::convert::From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        match error {
            RedisError::OutOfMemory => Self::OutOfMemory,
            error => Self::Redis(error),
        }
    }
}

/// The sessions in Redis.
#[derive(Clone)]
pub struct Store {
    redis: Redis,
    replica: String,
    limits: SessionLimits,
}

impl Store {
    /// A store whose turns are held in the name of `replica`.
    pub fn new(redis: Redis, replica: String, limits: SessionLimits) -> Self {
        Self { redis, replica, limits }
    }

    /// The name that this replica's turns are held in.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Returns the life of this process.
    pub fn lifecycle(&self) -> &Lifecycle {
        self.redis.lifecycle()
    }

    /// Changes whenever a connection to Redis was lost or a command failed: what was acknowledged
    /// shortly before may be gone, if another server took over.
    pub fn disturbances(&self) -> watch::Receiver<u64> {
        self.redis.disturbances()
    }

    /// How long a session is kept that begins with a turn of this owner; 0 for ever.
    fn idle_seconds(&self, owner: &Owner, own_conversation: bool) -> u64 {
        match owner {
            _ if own_conversation => self.limits.own_conversation_idle_seconds,
            Owner::Anonymous => self.limits.anonymous_idle_seconds,
            Owner::User(_) => 0,
        }
    }
}

/// The event of a claim, where the function fills in the length that it continues from.
fn claimed_event() -> String {
    json(&Control::Claimed { from: 0 }).replace(":0", ":LENGTH")
}

/// The arguments of the turn's holder, which come first in each of its calls.
fn of_writer(call: Call, turn: &Turn) -> Call {
    call.arg("owner", turn.owner.key())
        .text("generation", turn.generation)
        .text("fence", turn.fence.0)
}

fn field<T: std::str::FromStr>(reply: &[String], at: usize) -> Result<T, StoreError> {
    reply.get(at).and_then(|text| text.parse().ok()).ok_or_else(|| unexpected("field"))
}

fn optional<T: std::str::FromStr>(reply: &[String], at: usize) -> Result<Option<T>, StoreError> {
    match reply.get(at).map(String::as_str) {
        None | Some("-") => Ok(None),
        Some(_) => field(reply, at).map(Some),
    }
}

fn unexpected(what: &str) -> StoreError {
    StoreError::Redis(RedisError::Unexpected(format!("unreadable {what}")))
}

/// Types of ours have no maps with keys that are not text: writing them as JSON cannot fail.
fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
