//! Changes of what a session is called, and of how its owner keeps it.

use chrono::Utc;
use serde::{Deserialize, Serialize};

use super::{SessionKeys, Store, StoreError, field};
use crate::session::model::{Owner, SessionId, rfc3339};

/// A change of a session by its owner; what is none stays as it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SessionChange {
    /// The title, not empty.
    pub title: Option<String>,
    /// Whether the session is pinned.
    pub pinned: Option<bool>,
    /// Whether the session is archived.
    pub archived: Option<bool>,
    /// The metadata as JSON, not empty; a front shows it again.
    pub metadata: Option<String>,
}

/// A change of a session, which can be applied again after a failover lost it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Update {
    owner: Owner,
    session: SessionId,
    change: SessionChange,
    /// When the change was made.
    at: String,
    /// The epoch of the session, as Redis replied; empty before the first reply.
    epoch: String,
}

impl Update {
    /// Creates a change of a session.
    pub fn new(owner: &Owner, session: SessionId, change: SessionChange) -> Self {
        let at = rfc3339(&Utc::now());
        Self { owner: owner.clone(), session, change, at, epoch: String::new() }
    }

    /// Returns the bytes of text that it keeps.
    pub fn bytes(&self) -> usize {
        let SessionChange { title, metadata, .. } = &self.change;
        let texts = [title, metadata].into_iter().flatten().map(String::len).sum::<usize>();
        self.owner.key().len() + self.at.len() + self.epoch.len() + texts
    }
}

impl Store {
    /// Changes the title of the session, whether it is pinned and archived, and its metadata. A repeat after a
    /// failover leaves alone what was changed later.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn update(&self, update: &mut Update) -> Result<(), StoreError> {
        let epoch = self.call_update(update, "user").await?;
        if update.epoch.is_empty() {
            update.epoch = epoch;
        }
        Ok(())
    }

    /// Gives the session a title of the model's, unless it has one of the user's or the model's.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn entitle(
        &self,
        owner: &Owner,
        session: SessionId,
        title: &str,
    ) -> Result<(), StoreError> {
        let title = Some(title.to_owned());
        let change = SessionChange { title, ..SessionChange::default() };
        self.call_update(&Update::new(owner, session, change), "model").await.map(drop)
    }

    /// Returns the epoch of the session.
    async fn call_update(&self, update: &Update, by: &str) -> Result<String, StoreError> {
        let flag = |flag: Option<bool>| match flag {
            Some(true) => "1",
            Some(false) => "0",
            None => "",
        };
        let Update { owner, session, change, at, epoch } = update;
        let call = SessionKeys::of(*session)
            .call_with("jarvis_update_1", &["session", "messages"])
            .arg("owner", owner.key())
            .arg("title", change.title.as_deref().unwrap_or_default())
            .arg("by", by)
            .arg("pinned", flag(change.pinned))
            .arg("archived", flag(change.archived))
            .arg("metadata", change.metadata.as_deref().unwrap_or_default())
            .arg("now", at.as_str())
            .arg("epoch", epoch.as_str());
        let reply: Vec<String> = self.redis.call(call).await?;
        match reply.first().map(String::as_str) {
            Some("ok") => field(&reply, 1),
            _ => Err(StoreError::Absent),
        }
    }
}
