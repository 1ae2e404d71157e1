//! Sessions in Redis: the keys, and the functions that change them.

mod answer;
mod cancel;
mod history;
mod read;
mod takeover;
mod turns;

use fred::prelude::Value;
use serde::Serialize;
use tokio::sync::watch;

pub use answer::Written;
pub use cancel::{Cancellation, Cancelled, Clearing};
pub use history::{Described, Page, REPLY_BYTES, message};
pub use read::{From, Read};
pub use takeover::{BUCKETS, Claim, OpenTurn};
pub use turns::{Acceptance, Begin, Fence, IdempotencyKey, NewTurn, Proposal, Restored, Turn};

use super::event::Control;
use super::model::{Owner, SessionId};
use crate::redis::{Redis, RedisError};
use crate::tasks::EssentialTasks;

/// Bounds of what is stored.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Turns that may wait in one session.
    pub waiting_turns: u32,
    /// Bytes of one session's messages.
    pub session_bytes: u64,
    /// Seconds that an idle anonymous session is kept.
    pub anonymous_idle_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            waiting_turns: 8,
            session_bytes: 64 << 20,
            anonymous_idle_seconds: 30 * 24 * 60 * 60,
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
    limits: Limits,
}

struct Keys([String; 6]);

impl Keys {
    fn of(session: SessionId) -> Self {
        let base = channel(session);
        let bucket = bucket(session);
        Self([
            base.clone(),
            format!("{base}:messages"),
            format!("{base}:waiting"),
            format!("{base}:events"),
            format!("{base}:answer"),
            format!("jarvis:{{b{bucket}}}:open"),
        ])
    }

    fn idempotency(&self, key: &IdempotencyKey) -> String {
        format!("{}:key:{}", self.0[0], key.key)
    }

    fn all(&self) -> [&str; 6] {
        self.0.each_ref().map(String::as_str)
    }
}

/// All keys of a bucket lie in one slot, so that a function may touch a session and its bucket's
/// index in one step.
fn bucket(session: SessionId) -> u8 {
    session.0.as_bytes().iter().fold(0, |sum, byte| sum ^ byte)
}

/// The name of a session's hash and of its channel.
pub(super) fn channel(session: SessionId) -> String {
    format!("jarvis:{{b{}}}:s:{session}", bucket(session))
}

/// The session that a channel belongs to.
pub(super) fn session_of(channel: &str) -> Option<SessionId> {
    channel.rsplit(':').next()?.parse().ok()
}

impl Store {
    /// A store whose turns are held in the name of `replica`.
    pub fn new(redis: Redis, replica: String, limits: Limits) -> Self {
        Self { redis, replica, limits }
    }

    /// The name that this replica's turns are held in.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// The essential tasks of this replica.
    pub fn tasks(&self) -> &EssentialTasks {
        self.redis.tasks()
    }

    /// Changes whenever a connection to Redis was lost or a command failed: what was acknowledged
    /// shortly before may be gone, if another server took over.
    pub fn disturbances(&self) -> watch::Receiver<u64> {
        self.redis.disturbances()
    }

    fn idle_seconds(&self, owner: &Owner) -> u64 {
        match owner {
            Owner::Anonymous => self.limits.anonymous_idle_seconds,
            Owner::User(_) => 0,
        }
    }
}

/// The event of a claim, where the function fills in the length that it continues from.
fn claimed_event() -> String {
    json(&Control::Claimed { from: 0 }).replace(":0", ":LENGTH")
}

fn writer_args(turn: &Turn, rest: Vec<Value>) -> Vec<Value> {
    let mut args: Vec<Value> = vec![
        turn.owner.key().into(),
        turn.generation.to_string().into(),
        turn.fence.0.to_string().into(),
    ];
    args.extend(rest);
    args
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
