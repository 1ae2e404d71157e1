//! A completion as server-sent events.
//!
//! Some of OpenAI's SDKs fail at a comment or at an `id:` line, so there are only `data:` lines, and
//! a heartbeat is a chunk that says nothing.

use super::chunks::Chunks;
use super::errors::error_json;
use crate::api::streamed_turn::{FrontOutput, TurnWriter};
use crate::api::whole_turn::completed;
use crate::byte_room::ClientRoom;
use crate::follow::{CancelOnDrop, Follow, Update, final_message};
use crate::http::problem::Problem;
use crate::session::{Change, Message};

/// The last line of a stream.
const DONE: &str = "[DONE]";

/// Writes the chunks of a completion.
pub struct CompletionWriter {
    follow: Follow,
    chunks: Chunks,
    guard: Option<CancelOnDrop>,
}

impl CompletionWriter {
    /// Begins to write a turn of this model, with its usage at the end where that is wanted.
    pub fn new(
        follow: Follow,
        created: i64,
        (model, include_usage): (&str, bool),
        guard: Option<CancelOnDrop>,
    ) -> Self {
        let generation = follow.generation();
        let chunks = Chunks::new(generation, created, model, include_usage);
        Self { follow, chunks, guard }
    }

    fn end(&mut self, answer: Message, output: &mut FrontOutput) -> Result<(), Problem> {
        if let Some(guard) = &mut self.guard {
            guard.disarm();
        }
        for chunk in self.chunks.end(&completed(answer)?)? {
            output.push(event(&chunk));
        }
        output.push(event(DONE));
        output.end();
        Ok(())
    }
}

impl TurnWriter for CompletionWriter {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    async fn advance(&mut self, output: &mut FrontOutput) -> Result<(), Problem> {
        match self.follow.next().await? {
            // The text that follows starts again, and `Chunks` compares it with what was sent.
            Update::Restart => Ok(()),
            Update::Stored(message) => self.end(*message, output),
            Update::Delta(delta) => match &delta.change {
                Change::Text { offset, text } => {
                    if let Some(chunk) = self.chunks.text(*offset, text)? {
                        output.push(event(&chunk));
                    }
                    Ok(())
                }
                Change::Event { .. } => match final_message(&delta) {
                    Some(message) => self.end(message, output),
                    None => Ok(()),
                },
                Change::Reasoning { .. } | Change::Restart { .. } | Change::QueuePosition(_) => {
                    Ok(())
                }
            },
        }
    }

    fn kept_bytes(&self) -> usize {
        // A stored answer is written at once, as JSON.
        self.chunks.kept_bytes() + 2 * self.follow.stored_bytes()
    }

    fn charge(&mut self, room: ClientRoom) {
        self.follow.charge(room);
    }

    fn begin(&mut self, output: &mut FrontOutput) -> Result<(), Problem> {
        output.push_first(event(&self.chunks.role()));
        Ok(())
    }

    fn error(&mut self, problem: &Problem) -> String {
        event(&error_json(problem))
    }

    fn heartbeat(&mut self) -> String {
        event(&self.chunks.heartbeat())
    }
}

/// Returns an event whose data is this line.
fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}
