//! Cancels of generations, and clears of histories.
//!
//! Each is a value, so that the replica that called it can apply it again after a failover lost it.

use chrono::Utc;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::keys::TOMBSTONE_SECONDS;
use super::transfer::transfer_tag;
use super::{SessionKeys, Store, StoreError, field, json, message, unexpected};
use crate::session::cursor::Tag;
use crate::session::event::Control;
use crate::session::model::{
    FinishReason, GenerationId, Message, Owner, Role, SessionId, Status, rfc3339,
};
use crate::session::stored_message;

/// A request to cancel a generation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cancellation {
    owner: Owner,
    session: SessionId,
    generation: Option<GenerationId>,
    header: String,
    tag: Tag,
    again: bool,
}

/// The reply to a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReply {
    /// This running generation was cancelled.
    Running(GenerationId),
    /// This waiting turn was cancelled.
    Waiting(GenerationId),
    /// There was nothing to cancel.
    Nothing,
}

impl Cancellation {
    /// Returns the bytes of text that it keeps.
    pub fn bytes(&self) -> usize {
        self.header.len()
    }

    /// Creates the request for this generation; without one for the running generation, or else for
    /// the oldest that waits.
    pub fn new(owner: &Owner, session: SessionId, generation: Option<GenerationId>) -> Self {
        let message = message(Role::Assistant, Utc::now());
        let (id, model, writers) = (message.id, "MODEL", 0);
        let header = stored_message::header(&Message {
            generation_id: Some(GenerationId(id)),
            model: Some(model.to_owned()),
            status: Some(Status::Cancelled),
            finish_reason: Some(FinishReason::Cancelled),
            writers: Some(writers),
            ..message
        });
        // The function fills in these three. No other part of the header has so many capitals. The id
        // of an answer is that of its generation.
        let header = header
            .replacen(&id.to_string(), "GENERATION", 1)
            .replacen(r#""MODEL""#, model, 1)
            .replacen(r#""w":0"#, r#""w":WRITERS"#, 1);
        Self { owner: owner.clone(), session, generation, header, tag: Tag::random(), again: false }
    }

    /// Returns the same request for a repeat after a failover, which also keeps a turn that Redis
    /// does not have from coming back.
    #[must_use]
    pub fn again(self, generation: GenerationId) -> Self {
        Self { generation: Some(generation), again: true, ..self }
    }
}

/// A request to clear the history of a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Clearing {
    owner: Owner,
    session: SessionId,
    delete: bool,
    /// Whether a session in which a turn runs or waits is left alone.
    #[serde(default)]
    if_idle: bool,
    tag: Tag,
    /// The random part of the epoch that begins with it.
    epoch: String,
    /// Where all sessions of the owner are deleted, when that began, in microseconds of Redis: a
    /// session that is created since stays.
    deletion_began: Option<u64>,
    /// The time of that epoch and the cancelled generations, as Redis replied; empty before the
    /// first reply.
    done: String,
}

impl Clearing {
    /// Returns the bytes of text that it keeps.
    pub fn bytes(&self) -> usize {
        self.epoch.len() + self.done.len()
    }

    /// Creates the request; with `delete` the session is deleted, too.
    pub fn new(owner: &Owner, session: SessionId, delete: bool) -> Self {
        Self {
            owner: owner.clone(),
            session,
            delete,
            if_idle: false,
            tag: Tag::random(),
            epoch: Uuid::new_v4().simple().to_string(),
            deletion_began: None,
            done: String::new(),
        }
    }

    /// Creates the request to delete a session together with all others of its owner, which then has
    /// an epoch with this random part. A session that has such an epoch already is left alone: it
    /// was deleted by the same request. So is one that was created since the deletion began, where
    /// that time is given. With
    /// what [`Clearing::done`] returned of the first call it is applied again after a failover.
    pub fn of_deletion(
        owner: &Owner,
        session: SessionId,
        epoch: &str,
        began: Option<u64>,
        done: &str,
    ) -> Self {
        Self {
            epoch: epoch.to_owned(),
            deletion_began: began,
            done: done.to_owned(),
            ..Self::new(owner, session, true)
        }
    }

    /// Creates the request to delete a session in which no turn runs or waits.
    pub(super) fn of_idle_session(owner: &Owner, session: SessionId) -> Self {
        Self { if_idle: true, ..Self::new(owner, session, true) }
    }

    /// Returns the session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Returns the time of the epoch and the cancelled generations, as Redis replied.
    pub fn done(&self) -> &str {
        &self.done
    }
}

impl Store {
    /// Cancels a generation. The first of cancel and finish wins.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn cancel(&self, cancellation: &Cancellation) -> Result<CancelReply, StoreError> {
        let generation =
            cancellation.generation.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let call = SessionKeys::of(cancellation.session)
            .call("jarvis_cancel_1")
            .arg("owner", cancellation.owner.key())
            .arg("generation", generation)
            .arg("header", cancellation.header.as_str())
            .text("tag", cancellation.tag)
            .arg("event", json(&Control::Cancelled {}))
            .flag("again", cancellation.again)
            .arg("transfer_tag", transfer_tag(&cancellation.owner, cancellation.session));
        let reply: Vec<String> = self.redis.call_replicated(call).await?;
        match reply.first().map(String::as_str) {
            Some("absent") => Err(StoreError::Absent),
            Some("none") => Ok(CancelReply::Nothing),
            Some("cancelled") if reply.get(2).is_some_and(|state| state == "running") => {
                Ok(CancelReply::Running(field(&reply, 1)?))
            }
            Some("cancelled") => Ok(CancelReply::Waiting(field(&reply, 1)?)),
            _ => Err(unexpected("cancel")),
        }
    }

    /// Clears the history of the session and cancels its turns. Returns the number of messages that
    /// it had. A repeat leaves everything after the first clear alone.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn clear(&self, clearing: &mut Clearing) -> Result<u64, StoreError> {
        let turns = self.limits.waiting_turns + 1;
        let call = SessionKeys::of(clearing.session)
            .call("jarvis_clear_1")
            .arg("owner", clearing.owner.key())
            .flag("delete", clearing.delete)
            .flag("if_idle", clearing.if_idle)
            .text("tag", clearing.tag)
            .arg("event", json(&Control::Cleared {}))
            .arg("cancel_event", json(&Control::Cancelled {}))
            .arg("now", rfc3339(&Utc::now()))
            .text("tombstone_seconds", TOMBSTONE_SECONDS)
            .arg("new_epoch", clearing.epoch.as_str())
            .arg("again", clearing.done.as_str())
            .arg(
                "deletion_began",
                clearing.deletion_began.map(|at| at.to_string()).unwrap_or_default(),
            )
            .arg("transfer_tag", transfer_tag(&clearing.owner, clearing.session))
            .rest("cancel_tags", (0..turns).map(|_| Tag::random().to_string().into()));
        let reply: Vec<String> = self.redis.call_replicated(call).await?;
        let count: i64 = field(&reply, 0)?;
        let count = u64::try_from(count).map_err(|_| StoreError::Absent)?;
        if clearing.done.is_empty() {
            clearing.done = reply[1..].join(" ");
        }
        Ok(count)
    }
}
