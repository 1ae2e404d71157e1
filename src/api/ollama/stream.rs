//! An answer as a stream of lines, or whole.
//!
//! Lines have no comments: what keeps a connection alive, and is the first byte of a turn that waits,
//! is a line with an empty text, which every client adds to its text.

use super::errors::{error_json, of_model};
use super::lines::Lines;
use crate::api::streamed_turn::{FrontOutput, TurnWriter};
use crate::api::whole_turn::completed;
use crate::byte_room::ClientRoom;
use crate::follow::{CancelOnDrop, Follow, Update, final_message};
use crate::http::problem::Problem;
use crate::session::{Change, Control, Message};

/// Writes the lines of an answer.
pub struct AnswerWriter {
    follow: Follow,
    lines: Lines,
    model: String,
    guard: Option<CancelOnDrop>,
}

impl AnswerWriter {
    /// Begins to write a turn of this model, as the request spells it.
    pub fn new(follow: Follow, lines: Lines, model: &str, guard: Option<CancelOnDrop>) -> Self {
        Self { follow, lines, model: model.to_owned(), guard }
    }

    fn completed(&self, answer: Message) -> Result<Message, Problem> {
        completed(answer).map_err(|problem| of_model(&self.model, problem))
    }
}

impl TurnWriter for AnswerWriter {
    const CONTENT_TYPE: &'static str = "application/x-ndjson";

    async fn advance(&mut self, output: &mut FrontOutput) -> Result<(), Problem> {
        let update = self.follow.next().await?;
        // Where the answer starts again, `Lines` compares it with what was sent.
        if let Update::Delta(delta) = &update {
            let line = match &delta.change {
                Change::Text { offset, text } => self.lines.text(*offset, text)?,
                Change::Reasoning { offset, text } => self.lines.reasoning(*offset, text),
                Change::Event { .. } | Change::Restart { .. } | Change::QueuePosition(_) => None,
            };
            if let Some(line) = line {
                output.push(line);
            }
        }
        if let Some(answer) = note(&mut self.lines, update) {
            if let Some(guard) = &mut self.guard {
                guard.disarm();
            }
            let answer = self.completed(answer)?;
            for line in self.lines.end(&answer)? {
                output.push(line);
            }
            output.end();
        }
        Ok(())
    }

    fn kept_bytes(&self) -> usize {
        // A stored answer is written at once, as JSON.
        self.lines.kept_bytes() + 2 * self.follow.stored_bytes()
    }

    fn charge(&mut self, room: ClientRoom) {
        self.follow.charge(room);
    }

    fn begin(&mut self, output: &mut FrontOutput) -> Result<(), Problem> {
        if output.is_empty() {
            output.push(self.lines.heartbeat());
        }
        Ok(())
    }

    fn error(&mut self, problem: &Problem) -> String {
        error_json(problem) + "\n"
    }

    fn heartbeat(&mut self) -> String {
        self.lines.heartbeat()
    }
}

/// Waits for the end of a turn, and returns the answer. Nothing is sent before, so that an answer that
/// starts again takes nothing back. `lines` notes the times of the turn.
///
/// # Errors
/// Why there is none.
pub async fn whole(mut follow: Follow, lines: &mut Lines) -> Result<Box<Message>, Problem> {
    loop {
        let update = follow.next().await?;
        if let Some(answer) = note(lines, update) {
            return Ok(Box::new(answer));
        }
    }
}

/// Notes the time of an update, and returns the answer where the turn has ended.
fn note(lines: &mut Lines, update: Update) -> Option<Message> {
    match update {
        Update::Restart => None,
        Update::Stored(message) => Some(*message),
        Update::Delta(delta) => {
            match &delta.change {
                Change::Text { .. } | Change::Reasoning { .. } => lines.clock.text(),
                Change::Event { event, .. } => {
                    if let Control::Started { .. } = event.control {
                        lines.clock.begin();
                    }
                }
                Change::Restart { .. } | Change::QueuePosition(_) => {}
            }
            final_message(&delta)
        }
    }
}
