//! Control events, and the hints that announce them and the pieces of an answer.
//!
//! An event is stored as one header line and one line of JSON, so that a function in Redis reads
//! the header without decoding the rest:
//! `<number> <tag> <running generation or -> <its length> <kind> <generation or ->\n<json>`.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::cursor::Tag;
use super::model::{ContextReport, Continuation, Failure, FinishReason, GenerationId, Usage};

/// Anything that happens in a session, but for the pieces of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// A user's message was accepted as a turn.
    Accepted {
        /// When, RFC 3339.
        timestamp: String,
        /// The client's own identifier.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        message_id: Option<String>,
        /// The text. The last field: a function takes it out of a stored event (`clear.lua`).
        message: String,
    },
    /// The answer begins.
    Started {
        /// As asked for.
        model: String,
    },
    /// Another writer goes on from this length; what was beyond it is taken back.
    Claimed {
        /// UTF-8 bytes of the answer that stay.
        from: u64,
    },
    /// No further piece comes.
    Done {},
    /// The generation ended by itself.
    Ended {
        /// When, RFC 3339.
        timestamp: String,
        /// As asked for.
        model: String,
        /// Why there is no more text.
        finish_reason: FinishReason,
        /// Tokens.
        usage: Usage,
        /// What the model was given.
        context: ContextReport,
        /// Each time that the answer went on after it had broken off.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        continued: Vec<Continuation>,
    },
    /// The generation was stopped.
    Cancelled {},
    /// The generation broke off.
    Failed(Failure),
    /// The history was cleared.
    Cleared {},
}

impl Control {
    /// The word for it in the header line.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Started { .. } => "started",
            Self::Claimed { .. } => "claimed",
            Self::Done {} => "done",
            Self::Ended { .. } => "ended",
            Self::Cancelled {} => "cancelled",
            Self::Failed(_) => "failed",
            Self::Cleared {} => "cleared",
        }
    }

    /// Whether the generation has ended with it.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Ended { .. } | Self::Cancelled {} | Self::Failed(_))
    }
}

/// A control event with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Counted over the session's life, from 1, without a gap.
    pub number: u64,
    /// Equal for two events of one number only where the events before them are the same, too.
    pub tag: Tag,
    /// The generation that was running when it was written, and the bytes of its answer then:
    /// those pieces come before it.
    pub place: Option<(GenerationId, u64)>,
    /// The generation that it is about.
    pub generation: Option<GenerationId>,
    /// What happened.
    pub control: Control,
}

/// What a session's channel carries. It is only a hint: everything in it was first stored.
#[derive(Debug, PartialEq)]
pub enum Hint<'a> {
    /// A control event.
    Event {
        /// The tag of the event before it.
        previous: Tag,
        /// What was written.
        event: Event,
    },
    /// Bytes of an answer, at their offset.
    Piece {
        /// Whose answer.
        generation: GenerationId,
        /// UTF-8 bytes before it.
        offset: u64,
        /// The number and tag of the last event that was written before it.
        after: (u64, Tag),
        /// The bytes.
        text: &'a str,
    },
    /// The writer has closed its request to the model's host.
    UpstreamClosed(GenerationId),
    /// A turn waits for its slot. Stored nowhere: the next one follows when something changes.
    Queued(Queued),
    /// A replica does not know the position of the turn that waits: whoever does publishes it again.
    PositionRequested,
}

/// Where a turn stands in the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Queued {
    /// Which.
    pub generation: GenerationId,
    /// From 1.
    pub position: u64,
    /// Seconds until it begins, by what was measured; none before anything was.
    pub eta_seconds: Option<f64>,
    /// Bytes of its answer, as they are stored, where that waits in its middle; none while it has
    /// not begun. An answer that has grown since does not wait any more.
    pub answer: Option<u64>,
}

impl Queued {
    /// As a channel carries it.
    pub(super) fn payload(&self) -> String {
        let eta = self.eta_seconds.map_or_else(|| "-".to_owned(), |eta| eta.to_string());
        let answer = self.answer.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        format!("q{} {} {eta} {answer}", self.generation, self.position)
    }
}

/// What came from Redis is not what this version writes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stored event that this version cannot read")]
pub struct Unreadable;

impl Event {
    /// The whole length of the answer, where it is complete with this event.
    pub fn final_length(&self) -> Option<(GenerationId, u64)> {
        let complete = self.control.is_terminal() || self.control == Control::Done {};
        self.place.filter(|(running, _)| complete && self.generation == Some(*running))
    }

    /// Reads an event as it is stored.
    ///
    /// # Errors
    /// [`Unreadable`] where it is none, or of a later version.
    pub fn parse(entry: &str) -> Result<Self, Unreadable> {
        let (header, json) = entry.split_once('\n').ok_or(Unreadable)?;
        let mut words = header.split(' ');
        let mut word = || words.next().ok_or(Unreadable);
        let number = word()?.parse().map_err(|_| Unreadable)?;
        let tag = word()?.parse().map_err(|_| Unreadable)?;
        let running = generation(word()?)?;
        let length = word()?.parse().map_err(|_| Unreadable)?;
        let _kind = word()?;
        let about = generation(word()?)?;
        Ok(Self {
            number,
            tag,
            place: running.map(|id| (id, length)),
            generation: about,
            control: serde_json::from_str(json).map_err(|_| Unreadable)?,
        })
    }
}

impl<'a> Hint<'a> {
    /// [`Hint::PositionRequested`] as a channel carries it.
    pub(super) const POSITION_REQUESTED: &'static str = "w";

    /// Reads what a channel carried.
    ///
    /// # Errors
    /// [`Unreadable`] where it is none of ours, or of a later version.
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
                let mut words = header.split(' ');
                let mut word = || words.next().ok_or(Unreadable);
                Ok(Hint::Piece {
                    generation: generation(word()?)?.ok_or(Unreadable)?,
                    offset: word()?.parse().map_err(|_| Unreadable)?,
                    after: (
                        word()?.parse().map_err(|_| Unreadable)?,
                        word()?.parse().map_err(|_| Unreadable)?,
                    ),
                    text,
                })
            }
            "x" => Ok(Hint::UpstreamClosed(generation(rest)?.ok_or(Unreadable)?)),
            "q" => {
                let mut words = rest.split(' ');
                let mut word = || words.next().ok_or(Unreadable);
                Ok(Hint::Queued(Queued {
                    generation: generation(word()?)?.ok_or(Unreadable)?,
                    position: word()?.parse().map_err(|_| Unreadable)?,
                    eta_seconds: match word()? {
                        "-" => None,
                        eta => Some(eta.parse().map_err(|_| Unreadable)?),
                    },
                    // An earlier version publishes nothing of it, and only before the answer.
                    answer: match word().unwrap_or("-") {
                        "-" => None,
                        bytes => Some(bytes.parse().map_err(|_| Unreadable)?),
                    },
                }))
            }
            "w" => Ok(Hint::PositionRequested),
            _ => Err(Unreadable),
        }
    }
}

fn generation(word: &str) -> Result<Option<GenerationId>, Unreadable> {
    match word {
        "-" => Ok(None),
        id => Uuid::try_parse(id).map(|id| Some(GenerationId(id))).map_err(|_| Unreadable),
    }
}
