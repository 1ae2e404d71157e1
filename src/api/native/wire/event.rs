//! The events of the server, field by field. docs/PROTOCOL.md describes each field.

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use uuid::Uuid;

use crate::session::model::{ContextReport, Continuation, ToolCall};
use crate::session::{Cursor, FinishReason, GenerationId, SessionId, Usage};

/// Bytes that an event usually has in addition to its text, reserved before it is written.
const USUAL_FRAME: usize = 320;

/// An event that the server sends.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs, reason = "docs/PROTOCOL.md describes each field under its own name")]
pub enum ServerEvent<'a> {
    Connection {
        status: &'static str,
        session_id: SessionId,
        message: &'static str,
        resumed: bool,
        recovered: bool,
        #[serde(flatten)]
        envelope: Envelope,
    },
    Pong {
        timestamp: String,
    },
    AuthExpiring {
        expires_at: String,
    },
    Authenticated {
        expires_at: Option<String>,
    },
    MessageReceived {
        message: &'a str,
        timestamp: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        message_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        regenerated: Option<Uuid>,
        #[serde(skip_serializing_if = "Option::is_none")]
        edited: Option<Uuid>,
        #[serde(flatten)]
        envelope: Envelope,
    },
    BranchSelected {
        message_id: Uuid,
        #[serde(flatten)]
        envelope: Envelope,
    },
    Queued {
        position: u64,
        eta_seconds: Option<f64>,
        #[serde(flatten)]
        envelope: Envelope,
    },
    StreamStart {
        model: &'a str,
        #[serde(flatten)]
        envelope: Envelope,
    },
    StreamChunk {
        content: &'a str,
        done: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        #[serde(flatten)]
        envelope: Envelope,
    },
    StreamThinking {
        content: &'a str,
        offset: u64,
        #[serde(flatten)]
        envelope: Envelope,
    },
    StreamRestart {
        from: u64,
        #[serde(flatten)]
        envelope: Envelope,
    },
    ToolCalls {
        calls: &'a [ToolCall],
        #[serde(flatten)]
        envelope: Envelope,
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
        envelope: Envelope,
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
        envelope: Envelope,
    },
    Cancelled {
        full_response: &'a str,
        #[serde(flatten)]
        envelope: Envelope,
        /// Present only for the socket that cancelled.
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
        envelope: Envelope,
    },
    HistoryCleared {
        session_id: SessionId,
        #[serde(flatten)]
        envelope: Envelope,
    },
    History {
        messages: &'a [Box<RawValue>],
        count: usize,
        has_more: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        answer: Option<RunningAnswer<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        message_id: Option<&'a str>,
    },
}

/// The generation that an event belongs to, and the cursor after it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Envelope {
    /// The generation; `None` where the event concerns the session.
    pub generation: Option<GenerationId>,
    /// The cursor; `None` where the event is not stored.
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

/// The beginning of a running answer.
#[derive(Debug, Serialize)]
pub struct RunningAnswer<'a> {
    /// The generation of the answer.
    pub generation_id: GenerationId,
    /// The reasoning, or its beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<&'a str>,
    /// The beginning of the answer.
    pub content: &'a str,
    /// The length of `content` in UTF-8 bytes, which is the offset of the next piece.
    pub offset: usize,
}

impl ServerEvent<'_> {
    /// Encodes the event, with room for `texts` bytes of text.
    pub fn write(&self, texts: usize) -> Utf8Bytes {
        let mut json = Vec::with_capacity(texts + USUAL_FRAME);
        // It cannot fail, because all keys are text.
        let _ = serde_json::to_writer(&mut json, self);
        Utf8Bytes::try_from(json).unwrap_or_default()
    }

    /// Encodes an event with little text.
    pub fn json(&self) -> Utf8Bytes {
        self.write(0)
    }
}
