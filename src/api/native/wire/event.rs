//! The events, field by field. The contract says what each field is.

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::session::model::{ContextReport, Continuation};
use crate::session::{Cursor, FinishReason, GenerationId, SessionId, Usage};

/// Room for an event beside its text, so that writing it does not have to grow it.
const USUAL_FRAME: usize = 320;

/// What is sent to a client.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs)] // The contract says what each field is, and the names are its own.
pub enum ServerEvent<'a> {
    Connection {
        status: &'static str,
        session_id: SessionId,
        message: &'static str,
        resumed: bool,
        recovered: bool,
        #[serde(flatten)]
        place: Envelope,
    },
    Pong {
        timestamp: String,
    },
    MessageReceived {
        message: &'a str,
        timestamp: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        message_id: Option<&'a str>,
        #[serde(flatten)]
        place: Envelope,
    },
    Queued {
        position: u64,
        eta_seconds: Option<f64>,
        #[serde(flatten)]
        place: Envelope,
    },
    StreamStart {
        model: &'a str,
        #[serde(flatten)]
        place: Envelope,
    },
    StreamChunk {
        content: &'a str,
        done: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        #[serde(flatten)]
        place: Envelope,
    },
    StreamThinking {
        content: &'a str,
        offset: u64,
        #[serde(flatten)]
        place: Envelope,
    },
    StreamRestart {
        from: u64,
        #[serde(flatten)]
        place: Envelope,
    },
    StreamEnd {
        full_response: &'a str,
        timestamp: &'a str,
        finish_reason: FinishReason,
        usage: Usage,
        context: ContextReport,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        continued: &'a [Continuation],
        #[serde(flatten)]
        place: Envelope,
    },
    Response {
        content: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        thinking: Option<&'a str>,
        model: &'a str,
        timestamp: &'a str,
        finish_reason: FinishReason,
        usage: Usage,
        context: ContextReport,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        continued: &'a [Continuation],
        #[serde(flatten)]
        place: Envelope,
    },
    Cancelled {
        full_response: &'a str,
        #[serde(flatten)]
        place: Envelope,
        /// Only for the socket that asked.
        #[serde(skip_serializing_if = "Option::is_none")]
        upstream_closed: Option<bool>,
    },
    Error {
        message: &'a str,
        code: &'a str,
        retryable: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        message_id: Option<&'a str>,
        #[serde(flatten)]
        place: Envelope,
    },
    HistoryCleared {
        session_id: SessionId,
        #[serde(flatten)]
        place: Envelope,
    },
    History {
        messages: &'a [Box<RawValue>],
        count: usize,
        has_more: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        answer: Option<RunningAnswer<'a>>,
    },
}

/// The generation that an event belongs to, and the cursor after it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Envelope {
    /// None where the event is about the session.
    pub generation: Option<GenerationId>,
    /// None where the event is not logged.
    pub cursor: Option<Cursor>,
}

impl Serialize for Envelope {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = to.serialize_map(None)?;
        if let Some(generation) = &self.generation {
            map.serialize_entry("generation_id", generation)?;
        }
        if let Some(cursor) = &self.cursor {
            map.serialize_entry("cursor", &format_args!("{cursor}"))?;
        }
        map.end()
    }
}

/// What there is of an answer that is being written.
#[derive(Debug, Serialize)]
pub struct RunningAnswer<'a> {
    /// Whose answer.
    pub generation_id: GenerationId,
    /// The thoughts before it, or their beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<&'a str>,
    /// Its beginning.
    pub content: &'a str,
    /// UTF-8 bytes of it: the next piece follows here.
    pub offset: usize,
}

impl ServerEvent<'_> {
    /// As it is sent; `texts` bytes of room for what it quotes.
    pub fn write(&self, texts: usize) -> Utf8Bytes {
        let mut json = Vec::with_capacity(texts + USUAL_FRAME);
        // Types of ours have no maps with keys that are not text: writing them cannot fail.
        let _ = serde_json::to_writer(&mut json, self);
        Utf8Bytes::try_from(json).unwrap_or_default()
    }

    /// As it is sent.
    pub fn json(&self) -> Utf8Bytes {
        self.write(0)
    }
}
