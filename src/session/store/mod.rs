//! Sessions in Redis: the keys, and the calls of the functions that read and change them.

mod added;
mod answer;
mod branches;
mod cancel;
mod conversation;
mod copies;
mod eviction;
mod history;
mod images;
mod import;
mod keys;
mod read;
mod takeover;
mod transfer;
mod turns;
mod update;

use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

pub use added::{ADDED_BYTES, BROUGHT_BYTES, DescribedConversation, NewConversation, json_bytes};
pub use answer::{Appended, TakenBack, Written};
pub use branches::Selection;
pub use cancel::{CancelReply, Cancellation, Clearing};
pub use conversation::{ConversationTooLarge, OwnConversation};
pub use copies::TurnCopy;
pub use eviction::{Evicted, Measured};
pub use history::{AnsweredTurn, Described, Found, Page, REPLY_BYTES, message};
pub use images::Attached;
pub use import::{ImportStep, ImportedSession};
pub use keys::{BUCKETS, bucket, channel, open_turns};
pub use read::{ReadFrom, ReadOutcome};
pub use takeover::{Claim, ClaimAttempt, OpenTurn};
pub use transfer::Transfer;
pub use turns::{
    Acceptance, Begin, Fence, IdempotencyKey, NewTurn, Proposal, QUESTION_BYTES, REQUEST_BYTES,
    Restored, StoredSize, Turn,
};
pub use update::{SessionChange, Update};

use super::branch::Anchor;
use super::event::Control;
use super::model::Owner;
use crate::lifecycle::Lifecycle;
use crate::redis::{Call, Redis, RedisError};
use keys::SessionKeys;
pub(super) use keys::session_of;

/// The bounds of stored sessions.
#[derive(Clone, Debug)]
pub struct SessionLimits {
    /// Turns that may wait in one session.
    pub waiting_turns: u32,
    /// Bytes of one session's messages.
    pub session_bytes: u64,
    /// Seconds that an idle anonymous session is kept.
    pub anonymous_idle_seconds: u64,
    /// Seconds that an idle session of a user is kept; 0 forever.
    pub user_idle_seconds: u64,
    /// Seconds, from the end of the last turn, that a session is kept whose first turn brought its
    /// own conversation.
    pub own_conversation_idle_seconds: u64,
    /// The same of an anonymous session that is kept ([`TurnSpec::is_kept`]). A user's is kept as the
    /// user's other sessions are.
    pub kept_conversation_idle_seconds: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            waiting_turns: 8,
            session_bytes: 64 << 20,
            anonymous_idle_seconds: 30 * 24 * 60 * 60,
            user_idle_seconds: 0,
            own_conversation_idle_seconds: 60 * 60,
            kept_conversation_idle_seconds: 24 * 60 * 60,
        }
    }
}

/// The error of a call of the session store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The session does not exist, or belongs to another owner.
    #[error("There is no such session.")]
    Absent,
    /// The session has its largest number of waiting turns.
    #[error(
        "This session has as many waiting turns as it may; send the message again when one has ended."
    )]
    Busy,
    /// The session holds its largest number of bytes.
    #[error("This session is full; clear it or begin a new one.")]
    Full,
    /// The idempotency key was used for another request.
    #[error("This idempotency key was used for another request; choose a new key.")]
    KeyReused,
    /// The turn brings its own conversation, and the session exists already.
    #[error("This session exists; a turn that brings its own conversation begins a new session.")]
    Occupied,
    /// The session has no such message.
    #[error("there is no such message in this session")]
    MessageAbsent,
    /// The message is no answer that can be regenerated, or no question that can be edited.
    #[error("{0}")]
    WrongRole(&'static str),
    /// The message has its largest number of alternatives.
    #[error("This message has 50 alternatives, which is the most; continue with one of them.")]
    TooManySiblings,
    /// The answer is still being written, or a turn runs or waits where none may.
    #[error("{0}")]
    TurnRuns(&'static str),
    /// An image that the turn names is not there: it is to be put again.
    #[error("an image of the message is not stored")]
    ImagesAbsent,
    /// The memory of Redis is full, and the call changed nothing.
    #[error("the memory of Redis is full")]
    OutOfMemory,
    /// Redis failed, and may have carried out the call.
    #[error(transparent)]
    Redis(RedisError),
}

impl StoreError {
    /// The error where the answer that a turn would go beside is still being written.
    pub const ANSWER_RUNS: Self =
        Self::TurnRuns("This answer is still being written; cancel it, or wait for its end.");

    /// Returns the error where a message is not of the kind that this anchor needs.
    pub fn wrong_role(anchor: Anchor) -> Self {
        Self::WrongRole(match anchor {
            Anchor::BesideAnswer(_) => "must be the id of an answer to a question",
            Anchor::BesideQuestion(_) | Anchor::Behind(_) => "must be the id of a question",
        })
    }
}

impl std::convert::From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        match error {
            RedisError::OutOfMemory => Self::OutOfMemory,
            error => Self::Redis(error),
        }
    }
}

/// How a session is kept that begins with a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// As a session whose history is stored.
    AsHistory,
    /// Its first turn brought its own conversation, and nobody looks for it later.
    Briefly,
    /// Its first turn brought its own conversation, and clients come back for the answer.
    ForClients,
}

/// The sessions in Redis.
#[derive(Clone)]
pub struct Store {
    redis: Redis,
    replica: String,
    limits: SessionLimits,
}

impl Store {
    /// Creates a store that holds its turns in the name of `replica`.
    pub fn new(redis: Redis, replica: String, limits: SessionLimits) -> Self {
        Self { redis, replica, limits }
    }

    /// Returns the name in which this replica holds its turns.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Returns the connection to Redis.
    pub fn redis(&self) -> &Redis {
        &self.redis
    }

    /// Returns the largest number of bytes of one session's messages.
    pub fn session_bytes(&self) -> u64 {
        self.limits.session_bytes
    }

    /// Returns the lifecycle of this process.
    pub fn lifecycle(&self) -> &Lifecycle {
        self.redis.lifecycle()
    }

    /// Returns a counter that changes whenever a connection to Redis is lost or a command fails:
    /// writes acknowledged shortly before may be lost, if another server became the primary.
    pub fn disturbances(&self) -> watch::Receiver<u64> {
        self.redis.disturbances()
    }

    /// Resolves when no turn could be taken with Redis for `limit` for reasons that only an operator
    /// can end, with the last reason. Cancel-safe.
    pub async fn refused_for(&self, limit: Duration) -> String {
        self.redis.refused_for(limit).await
    }

    /// Returns how long an idle session is kept that begins with a turn of this owner; 0 forever.
    fn idle_seconds(&self, owner: &Owner, kept: Kept) -> u64 {
        match owner {
            _ if kept == Kept::Briefly => self.limits.own_conversation_idle_seconds,
            Owner::Anonymous if kept == Kept::ForClients => {
                self.limits.kept_conversation_idle_seconds
            }
            Owner::Anonymous => self.limits.anonymous_idle_seconds,
            Owner::User(_) => self.limits.user_idle_seconds,
        }
    }
}

/// Returns the event of a claim; the function replaces `LENGTH` by the length that it continues
/// from.
fn claimed_event() -> String {
    json(&Control::Claimed { from: 0, restarts: 0 }).replace(":0", ":LENGTH")
}

/// Adds the arguments of the turn's holder, which come first in each of its calls.
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

/// Writes a value as JSON. This cannot fail: the stored types have no maps with keys other than
/// text.
fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
