//! Generations that are stopped, and histories that are emptied.
//!
//! Each is a value of its own, so that whoever did it can do the same again where a failover undid
//! it.

use chrono::Utc;
use uuid::Uuid;

use super::{SessionKeys, Store, StoreError, field, json, message, unexpected};
use crate::session::cursor::Tag;
use crate::session::event::Control;
use crate::session::model::{
    FinishReason, GenerationId, Message, Owner, Role, SessionId, Status, rfc3339,
};

/// How long a deleted session's counters are kept, so that its cursors do not come again.
const TOMBSTONE_SECONDS: u64 = 60 * 60;

/// One wish that a generation should stop.
#[derive(Clone, Debug)]
pub struct Cancellation {
    owner: Owner,
    session: SessionId,
    generation: Option<GenerationId>,
    header: String,
    tag: Tag,
    again: bool,
}

/// What a cancel met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReply {
    /// The running generation.
    Running(GenerationId),
    /// A turn that waited.
    Waiting(GenerationId),
    /// Nothing that could be cancelled.
    Nothing,
}

impl Cancellation {
    /// Of the generation that is named, else of the running one, else of the oldest that waits.
    pub fn new(owner: &Owner, session: SessionId, generation: Option<GenerationId>) -> Self {
        let message = message(Role::Assistant, Utc::now());
        // The id of an answer is its generation's.
        let (id, filled_in) = (format!(r#""{}""#, message.id), r#""GENERATION""#);
        let header = json(&Message {
            status: Some(Status::Cancelled),
            finish_reason: Some(FinishReason::Cancelled),
            ..message
        });
        let header = header.replacen(&id, filled_in, 1);
        // The function knows these three, and they stand where no JSON string has capitals.
        let fields = r#"{"generation_id":"GENERATION","model":MODEL,"writers":WRITERS,"#;
        let header = header.replacen('{', fields, 1);
        Self { owner: owner.clone(), session, generation, header, tag: Tag::random(), again: false }
    }

    /// The same wish, to be done again where a failover undid it: then not even a turn that is not
    /// there may come back.
    #[must_use]
    pub fn again(self, generation: GenerationId) -> Self {
        Self { generation: Some(generation), again: true, ..self }
    }
}

/// One wish that a session's history should go.
#[derive(Clone, Debug)]
pub struct Clearing {
    owner: Owner,
    session: SessionId,
    delete: bool,
    tag: Tag,
    /// The random part of the epoch that begins with it.
    epoch: String,
    /// The time of that epoch and the generations that were cancelled, as Redis replied; empty before
    /// it was done.
    done: String,
}

impl Clearing {
    /// Of the messages, and with `delete` of the session too.
    pub fn new(owner: &Owner, session: SessionId, delete: bool) -> Self {
        let epoch = Uuid::new_v4().simple().to_string();
        Self {
            owner: owner.clone(),
            session,
            delete,
            tag: Tag::random(),
            epoch,
            done: String::new(),
        }
    }
}

impl Store {
    /// Stops a generation. The first of cancel and finish wins.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn cancel(&self, wish: &Cancellation) -> Result<CancelReply, StoreError> {
        let generation = wish.generation.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let call = SessionKeys::of(wish.session)
            .call("jarvis_cancel_1")
            .arg("owner", wish.owner.key())
            .arg("generation", generation)
            .arg("header", wish.header.as_str())
            .text("tag", wish.tag)
            .arg("event", json(&Control::Cancelled {}))
            .flag("again", wish.again);
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

    /// Empties the session's history, cancelling its turns. Gives the number of messages that were
    /// in it. Done again, it touches nothing that came after it.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn clear(&self, wish: &mut Clearing) -> Result<u64, StoreError> {
        let turns = self.limits.waiting_turns + 1;
        let call = SessionKeys::of(wish.session)
            .call("jarvis_clear_1")
            .arg("owner", wish.owner.key())
            .flag("delete", wish.delete)
            .text("tag", wish.tag)
            .arg("event", json(&Control::Cleared {}))
            .arg("cancel_event", json(&Control::Cancelled {}))
            .arg("now", rfc3339(&Utc::now()))
            .text("tombstone_seconds", TOMBSTONE_SECONDS)
            .arg("new_epoch", wish.epoch.as_str())
            .arg("again", wish.done.as_str())
            .rest("cancel_tags", (0..turns).map(|_| Tag::random().to_string().into()));
        let reply: Vec<String> = self.redis.call_replicated(call).await?;
        let count: i64 = field(&reply, 0)?;
        let count = u64::try_from(count).map_err(|_| StoreError::Absent)?;
        if wish.done.is_empty() {
            wish.done = reply[1..].join(" ");
        }
        Ok(count)
    }
}
