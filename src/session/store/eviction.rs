//! The bytes of a session in Redis, and its removal.

use super::cancel::Clearing;
use super::{SessionKeys, Store, StoreError, field, unexpected};
use crate::session::model::{Owner, SessionId};

/// The bytes of one session in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The owner of the session.
    pub owner: Owner,
    /// The bytes of its messages, events and running answer.
    pub bytes: u64,
    /// The seconds until it expires; none for a session that never does.
    pub expires_in: Option<u64>,
    /// Whether the user or the model gave its title; else it is the beginning of the first question.
    pub is_titled: bool,
}

/// The outcome of an eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    /// The session was there, and is removed.
    Removed,
    /// There is no such session.
    Gone,
    /// A turn of the session runs or waits.
    Busy,
    /// A client listens.
    Listened,
    /// The session is another owner's.
    Kept,
}

impl Store {
    /// Returns what a session takes; none where there is none.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn measure(&self, session: SessionId) -> Result<Option<Measured>, StoreError> {
        let keys = SessionKeys::of(session);
        let call = keys.call_with("jarvis_measure_1", &["session", "answer", "images"]);
        let reply: Vec<String> = self.redis.call_readonly(call).await?;
        if reply.first().is_some_and(|first| first == "absent") {
            return Ok(None);
        }
        let expires_in: i64 = field(&reply, 2)?;
        Ok(Some(Measured {
            owner: Owner::from_key(&field::<String>(&reply, 0)?),
            bytes: field(&reply, 1)?,
            expires_in: u64::try_from(expires_in).ok(),
            is_titled: field::<u8>(&reply, 3)? == 1,
        }))
    }

    /// Removes a session of this owner with everything that Redis has of it, unless it is in use.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn evict(&self, owner: &Owner, session: SessionId) -> Result<Evicted, StoreError> {
        let call = SessionKeys::of(session).call("jarvis_evict_1").arg("owner", owner.key());
        match self.redis.call::<String>(call).await?.as_str() {
            "removed" => Ok(Evicted::Removed),
            "gone" => Ok(Evicted::Gone),
            "busy" => Ok(Evicted::Busy),
            "listened" => Ok(Evicted::Listened),
            "kept" => Ok(Evicted::Kept),
            _ => Err(unexpected("eviction")),
        }
    }
    /// Removes a session of this owner although clients listen, unless a turn runs or waits. It is
    /// deleted as by its owner's request, so that the clients get the event of a cleared history.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn evict_listened(
        &self,
        owner: &Owner,
        session: SessionId,
    ) -> Result<Evicted, StoreError> {
        match self.clear(&mut Clearing::of_idle_session(owner, session)).await {
            Ok(_) => Ok(Evicted::Removed),
            Err(StoreError::Absent) => Ok(Evicted::Busy),
            Err(error) => Err(error),
        }
    }
}
