//! The events of a response as server-sent events.
//!
//! Some of OpenAI's SDKs fail at a comment with a blank line behind it, and at an `id:` line. So a
//! heartbeat is a comment that belongs to the event after it.

use super::events::Events;
use super::object::ResponseObject;
use crate::api::streamed_turn::{FrontOutput, TurnWriter};
use crate::api::whole_turn::completed;
use crate::byte_room::ClientRoom;
use crate::follow::{CancelOnDrop, Follow, FollowError, Update, final_message};
use crate::http::problem::Problem;
use crate::retry::Backoff;
use crate::session::{Change, Message, Status, StoreError};

/// A comment without a blank line behind it.
const HEARTBEAT: &str = ":\n";

/// Writes the events of a response.
pub struct ResponseWriter {
    follow: Follow,
    events: Events,
    /// The update that is to be written next.
    update: Option<Update>,
    /// Whether the next text is the first one, so that the answer may have started again before it.
    is_fresh: bool,
    /// Why the turn failed.
    failure: Option<Problem>,
    /// Whether a turn that fails before the first byte is an error with a status of its own.
    may_refuse: bool,
    guard: Option<CancelOnDrop>,
}

impl TurnWriter for ResponseWriter {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    async fn advance(&mut self, output: &mut FrontOutput) -> Result<(), Problem> {
        if self.update.is_none() {
            self.update = Some(self.follow.next().await?);
        }
        if let Some(restarts) = self.restarts_before_update().await? {
            self.events.note_restarts(restarts)?;
            self.is_fresh = false;
        }
        let Some(update) = self.update.take() else { return Ok(()) };
        let answer = match update {
            // The text that follows starts again, and `Events` compares it with what was sent.
            Update::Restart => {
                self.is_fresh = true;
                None
            }
            Update::Stored(message) => Some(*message),
            Update::Delta(delta) => {
                match &delta.change {
                    Change::Text { offset, text } => self.events.add_text(*offset, text)?,
                    Change::Reasoning { offset, text } => {
                        self.events.add_reasoning(*offset, text)?;
                    }
                    Change::Restart { from } => self.is_fresh |= *from == 0,
                    Change::Event { .. } | Change::QueuePosition(_) => {}
                }
                final_message(&delta)
            }
        };
        if let Some(answer) = answer {
            output.end();
            self.end(answer)?;
        }
        Ok(())
    }

    fn next_size(&mut self) -> Option<usize> {
        self.events.next_size()
    }

    fn next_frame(&mut self) -> Option<String> {
        self.events.next().map(|event| event.text)
    }

    fn kept_bytes(&self) -> usize {
        self.events.kept_bytes() + self.follow.stored_bytes()
    }

    fn charge(&mut self, room: ClientRoom) {
        self.follow.charge(room);
    }

    fn has_begun(&self, _: &FrontOutput) -> bool {
        self.events.has_answer()
    }

    fn begin(&mut self, output: &mut FrontOutput) -> Result<(), Problem> {
        if let Some(failure) = self.failure.take_if(|_| self.may_refuse) {
            return Err(failure);
        }
        if self.events.next_size().is_none() && !output.has_ended() {
            output.push(HEARTBEAT.to_owned());
        }
        Ok(())
    }

    fn error(&mut self, problem: &Problem) -> String {
        self.events.error(problem)
    }

    fn heartbeat(&mut self) -> String {
        HEARTBEAT.to_owned()
    }
}

impl ResponseWriter {
    /// Begins to write a response that is created with its stream.
    pub fn new(
        follow: Follow,
        response: ResponseObject,
        guard: Option<CancelOnDrop>,
    ) -> (Self, FrontOutput) {
        let may_refuse = !response.request.shown.background;
        Self::of(follow, Events::new(response, None), may_refuse, guard)
    }

    /// Begins to write a response again, behind the event with the number `after`.
    pub fn again(
        follow: Follow,
        response: ResponseObject,
        after: Option<u64>,
    ) -> (Self, FrontOutput) {
        Self::of(follow, Events::new(response, after), false, None)
    }

    fn of(
        follow: Follow,
        events: Events,
        may_refuse: bool,
        guard: Option<CancelOnDrop>,
    ) -> (Self, FrontOutput) {
        let (update, is_fresh, failure) = (None, true, None);
        let writer = Self { follow, events, update, is_fresh, failure, may_refuse, guard };
        (writer, FrontOutput::default())
    }

    /// Returns how often the answer has started again, where the update brings its first text or its end.
    async fn restarts_before_update(&mut self) -> Result<Option<u32>, Problem> {
        let until = match &self.update {
            _ if !self.is_fresh => return Ok(None),
            Some(Update::Stored(message)) => return Ok(Some(message.restarts())),
            Some(Update::Delta(delta)) => match &delta.change {
                Change::Text { .. } | Change::Reasoning { .. } => delta.after.events,
                Change::Event { event, .. } if event.control.is_terminal() => event.number,
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        let mut backoff = Backoff::redis();
        loop {
            match self.follow.restarts(until).await {
                Err(FollowError::Store(StoreError::Redis(error))) => {
                    tracing::debug!(%error, "response stream waiting for redis");
                    let _ = backoff.pause().await;
                }
                restarts => return Ok(Some(restarts?)),
            }
        }
    }

    fn end(&mut self, answer: Message) -> Result<(), Problem> {
        if let Some(guard) = &mut self.guard {
            guard.disarm();
        }
        if answer.status == Some(Status::Failed) {
            self.failure = completed(answer.clone()).err();
        }
        self.events.end(answer)?;
        Ok(())
    }
}
