//! An answer on its way: it begins, grows, is taken back, ends.

use fred::prelude::Value;

use super::turns::Turn;
use super::{Keys, Store, StoreError, field, json, unexpected, writer_args};
use crate::session::cursor::Tag;
use crate::session::event::Control;
use crate::session::model::{Message, rfc3339};

/// What Redis said to a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Stored.
    Ok,
    /// The generation has ended, or somebody else has the fence, or a failover took it:
    /// [`Store::restore`] tells.
    Fenced,
    /// The writer's last event that shaped the answer is not there: tell it again.
    Unmarked,
    /// Redis has only this many bytes of the answer: write again from there.
    Hole(u64),
}

impl Store {
    /// Tells that the answer begins, once, and leaves `tag` as the writer's mark.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn start(&self, turn: &Turn, tag: Tag) -> Result<Written, StoreError> {
        let started = json(&Control::Started { model: turn.spec.model.clone() });
        self.write("jarvis_start_1", turn, vec![tag.to_string().into(), started.into()]).await
    }

    /// Writes bytes of the answer at their offset, and announces them. Without bytes it only looks
    /// whether the writer may go on.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn append(
        &self,
        turn: &Turn,
        mark: Tag,
        offset: u64,
        text: &str,
    ) -> Result<Written, StoreError> {
        let args = vec![mark.to_string().into(), offset.to_string().into(), text.into()];
        self.write("jarvis_append_1", turn, args).await
    }

    /// Takes back what lies beyond `length` bytes of the answer, and leaves `tag` in place of `mark`.
    /// With `told` readers may have seen more than Redis has, and it has to be said in any case.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn rewind(
        &self,
        turn: &Turn,
        mark: Tag,
        length: u64,
        tag: Tag,
        told: bool,
    ) -> Result<Written, StoreError> {
        let event = json(&Control::Claimed { from: length });
        let args = vec![
            mark.to_string().into(),
            length.to_string().into(),
            tag.to_string().into(),
            event.into(),
            if told { "1" } else { "0" }.into(),
        ];
        self.write("jarvis_rewind_1", turn, args).await
    }

    /// Ends the generation: its answer of `length` bytes becomes a message, with `header`'s fields.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn finish(
        &self,
        turn: &Turn,
        mark: Tag,
        length: u64,
        header: &Message,
        events: &[(Tag, Control)],
    ) -> Result<Written, StoreError> {
        let mut args: Vec<Value> = vec![
            mark.to_string().into(),
            length.to_string().into(),
            json(header).into(),
            rfc3339(&header.timestamp).into(),
            self.idle_seconds(&turn.owner).to_string().into(),
        ];
        for (tag, event) in events {
            args.extend([tag.to_string().into(), event.kind().into(), json(event).into()]);
        }
        let keys = Keys::of(turn.session);
        let args = writer_args(turn, args);
        let reply: Vec<String> =
            self.redis.call_replicated("jarvis_finish_1", &keys.all(), args).await?;
        written(&reply)
    }

    /// Tells whoever cancelled that the request to the model's host is closed.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn upstream_closed(&self, turn: &Turn) -> Result<(), StoreError> {
        let keys = Keys::of(turn.session);
        let args = vec![turn.generation.to_string().into()];
        Ok(self.redis.call("jarvis_closed_1", &keys.all(), args).await?)
    }

    async fn write(
        &self,
        function: &'static str,
        turn: &Turn,
        rest: Vec<Value>,
    ) -> Result<Written, StoreError> {
        let keys = Keys::of(turn.session);
        let reply: Vec<String> =
            self.redis.call(function, &keys.all(), writer_args(turn, rest)).await?;
        written(&reply)
    }
}

fn written(reply: &[String]) -> Result<Written, StoreError> {
    match reply.first().map(String::as_str) {
        Some("ok") => Ok(Written::Ok),
        Some("fenced") => Ok(Written::Fenced),
        Some("unmarked") => Ok(Written::Unmarked),
        Some("hole") => Ok(Written::Hole(field(reply, 1)?)),
        _ => Err(unexpected("write")),
    }
}
