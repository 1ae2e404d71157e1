//! The writes of an answer: its start, its growth, what is taken back, and its end.

use fred::prelude::Value;

use super::turns::Turn;
use super::{SessionKeys, Store, StoreError, field, json, of_writer, unexpected};
use crate::redis::Call;
use crate::session::cursor::Tag;
use crate::session::event::Control;
use crate::session::model::{Continuation, Message, Runner, rfc3339};
use crate::session::stored_message;

/// The reply to a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The write is stored.
    Ok,
    /// The generation has ended, or another replica has the fence, or a failover lost the turn:
    /// [`Store::restore`] returns which.
    Fenced,
    /// Redis has another revision: a failover lost the writer's last event that shaped the answer,
    /// and the writer publishes it again.
    Outdated,
    /// Redis has only this many bytes of the answer: the writer continues from there.
    Hole(u64),
}

/// The reply to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Whether the text is stored.
    pub written: Written,
    /// The number and tag of the last event before the text; none without stored text.
    pub after: Option<(u64, Tag)>,
    /// Whether the text is published. It is not where only this replica is subscribed to the
    /// session.
    pub is_published: bool,
}

/// The part of its answer that a writer takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenBack {
    /// Bytes of the answer that stay.
    pub length: u64,
    /// How often the answer has started again by now.
    pub restarts: u32,
}

impl Store {
    /// Publishes once that the answer begins, and leaves `tag` as the writer's revision, with the
    /// runner of the answer's text.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn start(
        &self,
        turn: &Turn,
        tag: Tag,
        runner: Option<&Runner>,
    ) -> Result<Written, StoreError> {
        let started = Control::Started { model: turn.spec.model.clone() };
        let call = of_writer(SessionKeys::of(turn.session).call("jarvis_start_1"), turn);
        let call = call.text("tag", tag).arg("event", json(&started));
        self.write(call.arg("runner", runner.map_or("", Runner::as_str))).await
    }

    /// Writes text of the answer at its offset, and publishes it. With `listens`, this replica is
    /// certain that its own subscription to the session is in force, and the text is published only
    /// where another replica is subscribed, too. Without text the call only checks whether the writer may
    /// continue.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn append(
        &self,
        turn: &Turn,
        revision: Tag,
        offset: u64,
        listens: bool,
        text: &str,
    ) -> Result<Appended, StoreError> {
        let keys = SessionKeys::of(turn.session);
        let call = of_writer(keys.call_with("jarvis_append_1", &["session", "answer"]), turn);
        let call = call.text("revision", revision).text("offset", offset).flag("listens", listens);
        let reply: Vec<String> = self.redis.call(call.arg("text", text)).await?;
        let written = written(&reply)?;
        let has_text = written == Written::Ok && reply.len() > 1;
        let after = if has_text { Some((field(&reply, 1)?, field(&reply, 2)?)) } else { None };
        let is_published = reply.get(3).is_some_and(|published| published == "1");
        Ok(Appended { written, after, is_published })
    }

    /// Takes back a part of the answer, and replaces `revision` by `tag`. With `published`, readers
    /// may have seen more than Redis holds, and the event is written in any case.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn rewind(
        &self,
        turn: &Turn,
        revision: Tag,
        tag: Tag,
        taken_back: TakenBack,
        published: bool,
    ) -> Result<Written, StoreError> {
        let TakenBack { length, restarts } = taken_back;
        let claimed = Control::Claimed { from: length, restarts };
        let call = of_writer(SessionKeys::of(turn.session).call("jarvis_rewind_1"), turn);
        let call = call.text("revision", revision).text("length", length).text("tag", tag);
        self.write(call.arg("event", json(&claimed)).flag("published", published)).await
    }

    /// Stores the continuations of the answer so far, and the runner of the last one, for a replica
    /// that takes the turn over. Does nothing where the turn is not this writer's, or more are
    /// stored already.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn note_continued(
        &self,
        turn: &Turn,
        continued: &[Continuation],
        runner: Option<&Runner>,
    ) -> Result<(), StoreError> {
        let keys = SessionKeys::of(turn.session);
        let call =
            of_writer(keys.call_with("jarvis_note_continued_1", &["session", "messages"]), turn);
        let call = call.arg("continued", json(&continued));
        Ok(self.redis.call(call.arg("runner", runner.map_or("", Runner::as_str))).await?)
    }

    /// Ends the generation: its answer of `length` bytes becomes a message with the fields of
    /// `header` and the generation's id.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn finish(
        &self,
        turn: &Turn,
        revision: Tag,
        length: u64,
        header: &Message,
        events: &[(Tag, Control)],
    ) -> Result<Written, StoreError> {
        let header = Message { id: turn.generation.0, ..header.clone() };
        let events = events.iter().flat_map(|(tag, event)| {
            [Value::from(tag.to_string()), event.kind().into(), event.stored().into()]
        });
        let call = of_writer(SessionKeys::of(turn.session).call("jarvis_finish_1"), turn)
            .text("revision", revision)
            .text("length", length)
            .arg("header", stored_message::header(&header))
            .arg("now", rfc3339(&header.timestamp))
            .rest("events", events);
        written(&self.redis.call_replicated::<Vec<String>>(call).await?)
    }

    /// Publishes that the request to the model host is closed, for the caller that cancelled.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn upstream_closed(&self, turn: &Turn) -> Result<(), StoreError> {
        let keys = SessionKeys::of(turn.session);
        let call = keys.call_with("jarvis_upstream_closed_1", &["session"]);
        Ok(self.redis.call(call.text("generation", turn.generation)).await?)
    }

    async fn write(&self, call: Call) -> Result<Written, StoreError> {
        written(&self.redis.call::<Vec<String>>(call).await?)
    }
}

fn written(reply: &[String]) -> Result<Written, StoreError> {
    match reply.first().map(String::as_str) {
        Some("ok") => Ok(Written::Ok),
        Some("fenced") => Ok(Written::Fenced),
        Some("outdated") => Ok(Written::Outdated),
        Some("hole") => Ok(Written::Hole(field(reply, 1)?)),
        _ => Err(unexpected("write")),
    }
}
