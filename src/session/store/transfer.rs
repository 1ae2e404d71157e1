//! The transfer of an anonymous session to a user.
//!
//! The owner that the session has in Redis is the truth. A turn that is held, a redo entry or a copy
//! may name the anonymous caller from before the transfer: the functions accept their writes, and no
//! others. A user's write in a session that Redis has as an anonymous one shows that a failover lost
//! the transfer, and applies it again.

use serde::{Deserialize, Serialize};

use super::keys::TOMBSTONE_SECONDS;
use super::{SessionKeys, Store, StoreError, Turn, field, unexpected};
use crate::session::cursor::Tag;
use crate::session::model::{Owner, SessionId};

/// A transfer of an anonymous session to a user, which can be applied again after a failover.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Transfer {
    owner: Owner,
    session: SessionId,
    /// The epoch of the session, as Redis replied; empty before the first reply.
    epoch: String,
}

impl Transfer {
    /// Creates the transfer of a session to this user.
    pub fn new(owner: &Owner, session: SessionId) -> Self {
        Self { owner: owner.clone(), session, epoch: String::new() }
    }

    /// Returns the session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Returns the bytes of text that it keeps.
    pub fn bytes(&self) -> usize {
        self.owner.key().len() + self.epoch.len()
    }
}

/// Returns the tag of the event by which a session would have become this owner's, or `-` where the
/// owner is no user.
pub(super) fn transfer_tag(owner: &Owner, session: SessionId) -> String {
    match owner {
        Owner::Anonymous => "-".to_owned(),
        Owner::User(_) => Tag::of_transfer(session, owner).to_string(),
    }
}

impl Store {
    /// Makes an anonymous session a user's: one atomic step. A repeat changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Absent`] where there is no such session, or it is another user's;
    /// [`StoreError::Redis`].
    pub async fn transfer(&self, transfer: &mut Transfer) -> Result<(), StoreError> {
        let Transfer { owner, session, epoch } = &*transfer;
        let call = SessionKeys::of(*session)
            .call("jarvis_transfer_1")
            .arg("owner", owner.key())
            .arg("tag", transfer_tag(owner, *session))
            .arg("epoch", epoch.as_str())
            .text("tombstone_seconds", TOMBSTONE_SECONDS);
        let reply: Vec<String> = self.redis.call_replicated(call).await?;
        match reply.first().map(String::as_str) {
            Some("transferred" | "owned") => {
                transfer.epoch = field(&reply, 1)?;
                Ok(())
            }
            Some("absent") => Err(StoreError::Absent),
            _ => Err(unexpected("transfer")),
        }
    }

    /// Returns the owner that a turn's session has now, which is a user where the session was
    /// anonymous when the turn was accepted and has been transferred since.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn owner_of(&self, turn: &Turn) -> Result<Owner, StoreError> {
        let measured = self.measure(turn.session).await?;
        Ok(measured.map_or_else(|| turn.owner.clone(), |measured| measured.owner))
    }
}
