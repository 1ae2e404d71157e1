//! Control events, and the hints that publish them and the pieces of an answer.
//!
//! An event is stored as one header line and one line of JSON, so that a function in Redis reads
//! the header without decoding the JSON:
//! `<number> <tag> <running generation or -> <its length> <kind> <generation, =, or ->\n<json>`. The
//! generation is = where it is the running one.
//!
//! No text is stored twice: the event of an acceptance or of an end refers to the stored question or
//! answer. It has `\n<content of the question>` or `\n<header of the answer>` behind it where it is
//! published or read.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::branch::Anchor;
use super::cursor::Tag;
use super::model::{
    ContextReport, Continuation, Failure, FinishReason, GenerationId, Owner, ToolCall, Usage,
    rfc3339,
};
use super::stored_message::parse_header;

/// A control event: everything that happens in a session except the pieces of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// A user's message was accepted as a turn.
    Accepted {
        /// The time of acceptance, RFC 3339.
        timestamp: String,
        /// The client's own identifier of the message.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        message_id: Option<String>,
        /// The text; empty where it was cleared, and where a question is answered once more.
        message: String,
        /// Where the turn goes, if not to the end of the selected path.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        anchor: Option<Anchor>,
    },
    /// The answer begins.
    Started {
        /// The requested model.
        model: String,
    },
    /// Another writer continues from this length; the text beyond it is taken back.
    Claimed {
        /// UTF-8 bytes of the answer that stay.
        from: u64,
        /// How often the answer has started again by now, so that its text may be another one; 0 also
        /// where another replica only continues it.
        #[serde(skip_serializing_if = "is_zero", default)]
        restarts: u32,
    },
    /// No further piece follows.
    Done {},
    /// The model requests calls of tools. The end of the generation follows.
    ToolCalls {
        /// The calls.
        calls: Vec<ToolCall>,
    },
    /// The generation ended by itself.
    Ended {
        /// The time of the end, RFC 3339.
        timestamp: String,
        /// The requested model.
        model: String,
        /// The reason why the answer ended.
        finish_reason: FinishReason,
        /// The tokens of prompt and answer.
        usage: Usage,
        /// The part of the conversation that the model received.
        context: ContextReport,
        /// The continuations of the answer, oldest first.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        continued: Vec<Continuation>,
        /// The calls of tools that the model requests.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        tool_calls: Vec<ToolCall>,
    },
    /// The generation was cancelled.
    Cancelled {},
    /// The generation failed.
    Failed(Failure),
    /// The history was cleared.
    Cleared {},
    /// The branch of a message was selected: the history leads through it from now on.
    Selected {
        /// The message.
        message: Uuid,
    },
    /// The session, anonymous until then, has become a user's. No client sees this event.
    Transferred {
        /// The user.
        owner: Owner,
    },
}

impl Control {
    /// Returns the event's kind, as the header line names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Started { .. } => "started",
            Self::Claimed { .. } => "claimed",
            Self::Done {} => "done",
            Self::ToolCalls { .. } => "tool_calls",
            Self::Ended { .. } => "ended",
            Self::Cancelled {} => "cancelled",
            Self::Failed(_) => "failed",
            Self::Cleared {} => "cleared",
            Self::Selected { .. } => "selected",
            Self::Transferred { .. } => "transferred",
        }
    }

    /// Returns the JSON of the event as it is stored, without the message that it refers to.
    pub(super) fn stored(&self) -> String {
        let json = match self {
            Self::Accepted { timestamp, message_id, anchor, .. } => {
                serde_json::to_string(&StoredAccepted {
                    timestamp: timestamp.into(),
                    message_id: message_id.as_deref().map(Into::into),
                    anchor: *anchor,
                })
            }
            Self::Ended { .. } => return String::new(),
            control => serde_json::to_string(control),
        };
        // This cannot fail: the types have no maps with keys other than text.
        json.unwrap_or_default()
    }

    /// Parses an event of this kind from its stored JSON, and the message that it refers to.
    fn parse(kind: &str, json: &str, message: &str) -> Result<Self, Unreadable> {
        match kind {
            "accepted" => {
                let StoredAccepted { timestamp, message_id, anchor } =
                    serde_json::from_str(json).map_err(|_| Unreadable)?;
                // A question that is answered once more is stored with the waiting turn only.
                let is_new = anchor.and_then(Anchor::regenerated).is_none();
                Ok(Self::Accepted {
                    timestamp: timestamp.into_owned(),
                    message_id: message_id.map(Into::into),
                    message: if is_new { message.to_owned() } else { String::new() },
                    anchor,
                })
            }
            "ended" => {
                let answer = parse_header(message).ok_or(Unreadable)?;
                Ok(Self::Ended {
                    timestamp: rfc3339(&answer.timestamp),
                    model: answer.model.ok_or(Unreadable)?,
                    finish_reason: answer.finish_reason.ok_or(Unreadable)?,
                    usage: answer.usage.ok_or(Unreadable)?,
                    context: answer.context.ok_or(Unreadable)?,
                    continued: answer.continued,
                    tool_calls: answer.tool_calls,
                })
            }
            _ => serde_json::from_str(json).map_err(|_| Unreadable),
        }
    }

    /// Returns whether this event ends its generation.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Ended { .. } | Self::Cancelled {} | Self::Failed(_))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The JSON of a stored [`Control::Accepted`].
#[derive(Serialize, Deserialize)]
struct StoredAccepted<'a> {
    #[serde(rename = "t")]
    timestamp: Cow<'a, str>,
    #[serde(rename = "i", skip_serializing_if = "Option::is_none", default)]
    message_id: Option<Cow<'a, str>>,
    #[serde(rename = "a", skip_serializing_if = "Option::is_none", default)]
    anchor: Option<Anchor>,
}

/// A control event with its position in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The event's number over the session's life, from 1, without a gap.
    pub number: u64,
    /// The event's tag. Two events of one number have the same tag only where the events before
    /// them are the same, too.
    pub tag: Tag,
    /// The generation that was running when the event was written, and the bytes of its answer at
    /// that time: those pieces precede the event.
    pub answer_position: Option<(GenerationId, u64)>,
    /// The generation that the event belongs to; none for an event of the session.
    pub generation: Option<GenerationId>,
    /// The content of the event.
    pub control: Control,
}

/// The payload of a session's channel. It is only a hint: events and pieces are stored first.
#[derive(Debug, PartialEq)]
pub enum Hint<'a> {
    /// A control event.
    Event {
        /// The tag of the event before it.
        previous: Tag,
        /// The event.
        event: Event,
    },
    /// A piece of an answer.
    Piece {
        /// The generation of the answer.
        generation: GenerationId,
        /// UTF-8 bytes of the answer before the piece.
        offset: u64,
        /// The number and tag of the last event that was written before the piece.
        after: (u64, Tag),
        /// The text of the piece.
        text: &'a str,
    },
    /// The writer has closed its request to the model's host.
    UpstreamClosed(GenerationId),
    /// A turn waits for its slot. This is not stored; the next one follows at the next change.
    Queued(Queued),
    /// A replica does not know the queue position of the waiting turn: the replica that holds the
    /// turn publishes it again.
    PositionRequested,
    /// A client that does not listen has asked how the turns of the session stand, at any replica.
    Polled,
}

/// The queue position of a turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Queued {
    /// The generation that waits.
    pub generation: GenerationId,
    /// The position, from 1.
    pub position: u64,
    /// The estimated seconds until the turn gets a slot; none before any turn was measured.
    pub eta_seconds: Option<f64>,
    /// The stored bytes of the answer, where it waits to be continued; none while it has not begun.
    /// An answer that has grown since then no longer waits.
    pub answer: Option<u64>,
}

impl Queued {
    /// Returns the hint as the channel's payload.
    pub(super) fn payload(&self) -> String {
        let eta = self.eta_seconds.map_or_else(|| "-".to_owned(), |eta| eta.to_string());
        let answer = self.answer.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        format!("q{} {} {eta} {answer}", self.generation, self.position)
    }
}

/// The error for data in Redis that this version does not write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this version cannot read a stored event; run the version that wrote it")]
pub struct Unreadable;

impl Event {
    /// Returns the generation and the length of its whole answer, where this event completes it.
    pub fn final_length(&self) -> Option<(GenerationId, u64)> {
        let complete = self.control.is_terminal() || self.control == Control::Done {};
        self.answer_position.filter(|(running, _)| complete && self.generation == Some(*running))
    }

    /// Parses a stored event, with the message that it refers to behind it.
    ///
    /// # Errors
    /// [`Unreadable`] where the entry is no event, or an event of a later version.
    pub fn parse(entry: &str) -> Result<Self, Unreadable> {
        let (header, rest) = entry.split_once('\n').ok_or(Unreadable)?;
        let (json, message) = rest.split_once('\n').unwrap_or((rest, ""));
        Self::of_parts(header, json, message)
    }

    /// Parses a stored event, and the message that it refers to; empty where it refers to none.
    ///
    /// # Errors
    /// As [`Event::parse`].
    pub(super) fn parse_with(entry: &str, message: &str) -> Result<Self, Unreadable> {
        let (header, json) = entry.split_once('\n').ok_or(Unreadable)?;
        Self::of_parts(header, json, message)
    }

    fn of_parts(header: &str, json: &str, message: &str) -> Result<Self, Unreadable> {
        let mut fields = header.split(' ');
        let mut field = || fields.next().ok_or(Unreadable);
        let number = field()?.parse().map_err(|_| Unreadable)?;
        let tag = field()?.parse().map_err(|_| Unreadable)?;
        let running = generation(field()?)?;
        let length = field()?.parse().map_err(|_| Unreadable)?;
        let kind = field()?;
        let about = match field()? {
            "=" => running,
            id => generation(id)?,
        };
        Ok(Self {
            number,
            tag,
            answer_position: running.map(|id| (id, length)),
            generation: about,
            control: Control::parse(kind, json, message)?,
        })
    }
}

impl<'a> Hint<'a> {
    /// The payload of [`Hint::PositionRequested`].
    pub(super) const POSITION_REQUESTED: &'static str = "w";
    /// The payload of [`Hint::Polled`].
    pub(super) const POLLED: &'static str = "g";

    /// Parses the payload of a channel.
    ///
    /// # Errors
    /// [`Unreadable`] where the payload is no hint, or a hint of a later version.
    pub fn parse(payload: &'a str) -> Result<Self, Unreadable> {
        let kind = payload.get(..1).ok_or(Unreadable)?;
        let rest = &payload[1..];
        match kind {
            "e" => {
                let (previous, entry) = rest.split_once(' ').ok_or(Unreadable)?;
                let previous = previous.parse().map_err(|_| Unreadable)?;
                Ok(Hint::Event { previous, event: Event::parse(entry)? })
            }
            "p" => {
                let (header, text) = rest.split_once('\n').ok_or(Unreadable)?;
                let mut fields = header.split(' ');
                let mut field = || fields.next().ok_or(Unreadable);
                Ok(Hint::Piece {
                    generation: generation(field()?)?.ok_or(Unreadable)?,
                    offset: field()?.parse().map_err(|_| Unreadable)?,
                    after: (
                        field()?.parse().map_err(|_| Unreadable)?,
                        field()?.parse().map_err(|_| Unreadable)?,
                    ),
                    text,
                })
            }
            "x" => Ok(Hint::UpstreamClosed(generation(rest)?.ok_or(Unreadable)?)),
            "q" => {
                let mut fields = rest.split(' ');
                let mut field = || fields.next().ok_or(Unreadable);
                Ok(Hint::Queued(Queued {
                    generation: generation(field()?)?.ok_or(Unreadable)?,
                    position: field()?.parse().map_err(|_| Unreadable)?,
                    eta_seconds: match field()? {
                        "-" => None,
                        eta => Some(eta.parse().map_err(|_| Unreadable)?),
                    },
                    // An earlier version leaves it out, and publishes before the answer only.
                    answer: match field().unwrap_or("-") {
                        "-" => None,
                        bytes => Some(bytes.parse().map_err(|_| Unreadable)?),
                    },
                }))
            }
            "w" => Ok(Hint::PositionRequested),
            "g" => Ok(Hint::Polled),
            // Also "l": the log has an event whose message is too large to be published.
            _ => Err(Unreadable),
        }
    }
}

fn generation(field: &str) -> Result<Option<GenerationId>, Unreadable> {
    match field {
        "-" => Ok(None),
        id => Uuid::try_parse(id).map(|id| Some(GenerationId(id))).map_err(|_| Unreadable),
    }
}
