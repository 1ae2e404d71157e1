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
    /// Whether the title is the model's: it replaces the first question only.
    is_by_model: bool,
    /// When the change was made, on the clock of this replica.
    now: String,
    /// The epoch of the session, as Redis replied; empty before the first reply.
    epoch: String,
    /// Microseconds of the change on the clock of Redis, as it replied; empty before the first reply.
    at: String,
}

impl Update {
    /// Creates a change of a session.
    pub fn new(owner: &Owner, session: SessionId, change: SessionChange) -> Self {
        Self {
            owner: owner.clone(),
            session,
            change,
            is_by_model: false,
            now: rfc3339(&Utc::now()),
            epoch: String::new(),
            at: String::new(),
        }
    }

    /// Creates the change that gives a session a title of the model's, unless it has one of the user's or
    /// the model's.
    pub fn title_of_model(owner: &Owner, session: SessionId, title: String) -> Self {
        let change = SessionChange { title: Some(title), ..SessionChange::default() };
        Self { is_by_model: true, ..Self::new(owner, session, change) }
    }

    /// Returns the bytes of text that it keeps.
    pub fn bytes(&self) -> usize {
        let SessionChange { title, metadata, .. } = &self.change;
        let texts = [title, metadata].into_iter().flatten().map(String::len).sum::<usize>();
        self.owner.key().len() + self.now.len() + self.epoch.len() + self.at.len() + texts
    }
}

impl Store {
    /// Changes the title of the session, whether it is pinned and archived, and its metadata. A repeat after a
    /// failover leaves alone what was changed later.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn update(&self, update: &mut Update) -> Result<(), StoreError> {
        let flag = |flag: Option<bool>| match flag {
            Some(true) => "1",
            Some(false) => "0",
            None => "",
        };
        let Update { owner, session, change, is_by_model, now, epoch, at } = &*update;
        let call = SessionKeys::of(*session)
            .call_with("jarvis_update_1", &["session", "messages"])
            .arg("owner", owner.key())
            .arg("title", change.title.as_deref().unwrap_or_default())
            .arg("by", if *is_by_model { "model" } else { "user" })
            .arg("pinned", flag(change.pinned))
            .arg("archived", flag(change.archived))
            .arg("metadata", change.metadata.as_deref().unwrap_or_default())
            .arg("now", now.as_str())
            .arg("epoch", epoch.as_str())
            .arg("at", at.as_str());
        let reply: Vec<String> = self.redis.call(call).await?;
        if reply.first().map(String::as_str) != Some("ok") {
            return Err(StoreError::Absent);
        }
        if update.epoch.is_empty() {
            (update.epoch, update.at) = (field(&reply, 1)?, field(&reply, 2)?);
        }
        Ok(())
    }
}
