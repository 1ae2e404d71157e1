//! Events as they are sent, and clients' messages as they are read. Pure.

use axum::extract::ws::Utf8Bytes;
use chrono::Utc;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::input::{ChatRequest, FieldError, Fields, PAGE_LIMIT, cancel_target};
use super::problem::{Problem, not_json};
use crate::session::model::{ContextReport, Failure, rfc3339};
use crate::session::{
    Control, Cursor, Event, FinishReason, GenerationId, Message, SessionId, Status, Step, Usage,
};

/// Bytes of one event, at most, but for a history whose one message is larger alone.
pub const EVENT_BYTES: usize = 512 << 10;
/// Bytes of an event beside its texts, at most.
const FRAME_BYTES: usize = 2 << 10;
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
        #[serde(serialize_with = "as_text")]
        cursor: Option<Cursor>,
        resumed: bool,
        recovered: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        generation_id: Option<GenerationId>,
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
        place: Place,
    },
    StreamStart {
        model: &'a str,
        #[serde(flatten)]
        place: Place,
    },
    StreamChunk {
        content: &'a str,
        done: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        #[serde(flatten)]
        place: Place,
    },
    StreamRestart {
        from: u64,
        #[serde(flatten)]
        place: Place,
    },
    StreamEnd {
        full_response: &'a str,
        timestamp: &'a str,
        finish_reason: FinishReason,
        usage: Usage,
        context: ContextReport,
        #[serde(flatten)]
        place: Place,
    },
    Response {
        content: &'a str,
        model: &'a str,
        timestamp: &'a str,
        finish_reason: FinishReason,
        usage: Usage,
        context: ContextReport,
        #[serde(flatten)]
        place: Place,
    },
    Cancelled {
        full_response: &'a str,
        #[serde(flatten)]
        place: Place,
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
        place: Place,
    },
    HistoryCleared {
        session_id: SessionId,
        #[serde(flatten)]
        place: Place,
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
pub struct Place {
    /// None where the event is about the session.
    pub generation: Option<GenerationId>,
    /// None where the event is not logged.
    pub cursor: Option<Cursor>,
}

impl Serialize for Place {
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
    /// Its beginning.
    pub content: &'a str,
    /// UTF-8 bytes of it: the next piece follows here.
    pub offset: usize,
}

fn as_text<S: Serializer>(cursor: &Option<Cursor>, to: S) -> Result<S::Ok, S::Error> {
    match cursor {
        Some(cursor) => to.collect_str(cursor),
        None => to.serialize_none(),
    }
}

impl ServerEvent<'_> {
    /// As it is sent; `texts` bytes of room for what it quotes.
    fn write(&self, texts: usize) -> Utf8Bytes {
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

/// What a feed's readers are sent for a step. Nothing for what is not told.
pub fn encode(session: SessionId, step: &Step<'_>) -> Utf8Bytes {
    match step {
        Step::Piece { generation, offset, text, after } => ServerEvent::StreamChunk {
            content: text,
            done: false,
            offset: Some(*offset),
            place: Place { generation: Some(*generation), cursor: Some(*after) },
        }
        .write(text.len() + text.len() / 8),
        Step::Event { event, answer, after } => control(session, event, answer, *after),
        Step::Restart { generation, from, after } => ServerEvent::StreamRestart {
            from: *from,
            place: Place { generation: Some(*generation), cursor: Some(*after) },
        }
        .json(),
        Step::Silent { .. } | Step::UpToDate | Step::Behind | Step::Unknown => Utf8Bytes::default(),
    }
}

fn control(session: SessionId, event: &Event, answer: &str, after: Cursor) -> Utf8Bytes {
    let place = Place { generation: event.generation, cursor: Some(after) };
    match &event.control {
        Control::Accepted { message, timestamp, message_id } => ServerEvent::MessageReceived {
            message,
            timestamp,
            message_id: message_id.as_deref(),
            place,
        }
        .write(message.len()),
        Control::Started { model } => ServerEvent::StreamStart { model, place }.json(),
        Control::Claimed { from } => ServerEvent::StreamRestart { from: *from, place }.json(),
        Control::Done {} => {
            ServerEvent::StreamChunk { content: "", done: true, offset: None, place }.json()
        }
        Control::Ended { timestamp, finish_reason, usage, context, .. } => ServerEvent::StreamEnd {
            full_response: answer,
            timestamp,
            finish_reason: *finish_reason,
            usage: *usage,
            context: *context,
            place,
        }
        .write(answer.len() + answer.len() / 8),
        Control::Cancelled {} => {
            ServerEvent::Cancelled { full_response: answer, place }.write(answer.len())
        }
        Control::Failed(failure) => failed(failure, place),
        Control::Cleared {} => ServerEvent::HistoryCleared { session_id: session, place }.json(),
    }
}

fn failed(failure: &Failure, place: Place) -> Utf8Bytes {
    ServerEvent::Error {
        message: &failure.message,
        code: &failure.code,
        retryable: failure.retryable,
        retry_after: failure.retry_after,
        message_id: None,
        place,
    }
    .json()
}

/// The end of a generation for a socket that wanted its answer in one piece. None where it did not
/// end by itself.
pub fn response(event: &Event, answer: &str, after: Cursor) -> Option<Utf8Bytes> {
    let Control::Ended { timestamp, model, finish_reason, usage, context } = &event.control else {
        return None;
    };
    let response = ServerEvent::Response {
        content: answer,
        model,
        timestamp,
        finish_reason: *finish_reason,
        usage: *usage,
        context: *context,
        place: Place { generation: event.generation, cursor: Some(after) },
    };
    Some(response.write(answer.len() + answer.len() / 8))
}

/// A `cancelled` for the socket that asked for it: with whether the model's host was told.
pub fn with_upstream_closed(cancelled: &Utf8Bytes, closed: bool) -> Utf8Bytes {
    match cancelled.strip_suffix('}') {
        Some(open) => format!(r#"{open},"upstream_closed":{closed}}}"#).into(),
        None => cancelled.clone(),
    }
}

/// A generation that has ended, told from what is stored of it. Only the last event carries a
/// cursor: whoever loses the connection before it has to ask again.
pub fn replay(message: &Message, in_one_piece: bool, end: Cursor) -> Vec<Utf8Bytes> {
    let generation = message.generation_id;
    let (unlogged, place) =
        (Place { generation, cursor: None }, Place { generation, cursor: Some(end) });
    let content = message.content.as_str();
    let model = message.model.as_deref().unwrap_or_default();
    let timestamp = &rfc3339(&message.timestamp);
    let finish_reason = message.finish_reason.unwrap_or(FinishReason::Stop);
    let (usage, context) =
        (message.usage.unwrap_or_default(), message.context.unwrap_or_default());
    let chunk = |content, done, offset| {
        ServerEvent::StreamChunk { content, done, offset, place: unlogged }.json()
    };
    let mut events = Vec::new();
    if !in_one_piece {
        events.push(ServerEvent::StreamStart { model, place: unlogged }.json());
        if !content.is_empty() {
            events.push(chunk(content, false, Some(0)));
        }
    }
    let last = match (message.status, &message.error) {
        (Some(Status::Cancelled), _) => {
            ServerEvent::Cancelled { full_response: content, place }.json()
        }
        (Some(Status::Failed), Some(failure)) => failed(failure, place),
        _ if in_one_piece => {
            ServerEvent::Response { content, model, timestamp, finish_reason, usage, context, place }
                .json()
        }
        _ => {
            events.push(chunk("", true, None));
            let full_response = content;
            ServerEvent::StreamEnd { full_response, timestamp, finish_reason, usage, context, place }
                .json()
        }
    };
    events.push(last);
    events
}

/// An error that is the answer to a client's message.
pub fn error(problem: &Problem, message_id: Option<&str>) -> Utf8Bytes {
    ServerEvent::Error {
        message: &problem.detail,
        code: &problem.code,
        retryable: problem.retryable,
        retry_after: problem.retry_after,
        message_id,
        place: Place::default(),
    }
    .json()
}

/// The first event of a WebSocket or an event stream.
pub fn connection(
    session_id: SessionId,
    cursor: Option<Cursor>,
    resumed: bool,
    recovered: bool,
    generation_id: Option<GenerationId>,
) -> Utf8Bytes {
    ServerEvent::Connection {
        status: "connected",
        session_id,
        message: "WebSocket chat connected successfully",
        cursor,
        resumed,
        recovered,
        generation_id,
    }
    .json()
}

/// The answer to a `ping`.
pub fn pong() -> Utf8Bytes {
    ServerEvent::Pong { timestamp: rfc3339(&Utc::now()) }.json()
}

/// A `history` event of the newest of `messages` that fit, `more` telling whether there are older
/// ones, and as much of the running answer as fits beside them. Gives the bytes of it, too.
pub fn history(
    messages: &[Message],
    more: bool,
    answer: Option<(GenerationId, &str)>,
) -> (Utf8Bytes, usize) {
    let room = EVENT_BYTES - FRAME_BYTES;
    let mut left = if answer.is_some() { room / 2 } else { room };
    let mut fitting = Vec::with_capacity(messages.len());
    let mut used = 0;
    for message in messages.iter().rev() {
        let Ok(json) = serde_json::value::to_raw_value(message) else { continue };
        let bytes = json.get().len() + 1;
        if bytes > left && !fitting.is_empty() {
            break;
        }
        left = left.saturating_sub(bytes);
        used += bytes;
        fitting.push(json);
    }
    fitting.reverse();
    let answer = answer.map(|(generation_id, text)| {
        let content = json_prefix(text, room.saturating_sub(used));
        RunningAnswer { generation_id, content, offset: content.len() }
    });
    let offset = answer.as_ref().map_or(0, |answer| answer.offset);
    let event = ServerEvent::History {
        count: fitting.len(),
        has_more: more || fitting.len() < messages.len(),
        messages: &fitting,
        answer,
    };
    (event.write(used + offset), offset)
}

/// The longest beginning of `text` that is at most `room` bytes as JSON.
fn json_prefix(text: &str, room: usize) -> &str {
    let mut used = 0;
    for (at, character) in text.char_indices() {
        used += match character {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            '\0'..='\x1f' => 6,
            other => other.len_utf8(),
        };
        if used > room {
            return &text[..at];
        }
    }
    text
}

/// What a client says over a WebSocket.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMessage {
    /// Are you there?
    Ping,
    /// A message to the model.
    Chat(Box<ChatRequest>),
    /// Messages of the session, please.
    History {
        /// At most so many, 1 to 500.
        limit: u64,
        /// Those before this message.
        before: Option<Uuid>,
    },
    /// Forget the history.
    ClearHistory,
    /// Stop a generation.
    Cancel {
        /// This one, else the running one, else the oldest that waits.
        generation: Option<GenerationId>,
    },
}

impl ClientMessage {
    /// Its name on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Chat(_) => "chat",
            Self::History { .. } => "get_history",
            Self::ClearHistory => "clear_history",
            Self::Cancel { .. } => "cancel",
        }
    }
}

/// A client's message that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadMessage {
    /// Why.
    pub problem: Problem,
    /// The client's own identifier of it, where that much could be read.
    pub message_id: Option<String>,
}

/// Reads a client's message.
///
/// # Errors
/// [`BadMessage`] for whatever is none.
pub fn parse_client_message(text: &[u8]) -> Result<ClientMessage, BadMessage> {
    let bad = |code, detail: &str| BadMessage {
        problem: Problem::new(axum::http::StatusCode::UNPROCESSABLE_ENTITY, code, detail),
        message_id: None,
    };
    let map = match serde_json::from_slice(text) {
        Ok(Value::Object(map)) => map,
        Ok(_) => return Err(bad("not_an_object", "the message is not a JSON object")),
        Err(error) => return Err(bad("json_invalid", &not_json(&error))),
    };
    let kind = match map.get("type") {
        None | Some(Value::Null) => "chat",
        Some(Value::String(kind)) => kind,
        Some(_) => return Err(bad("unknown_type", "type must be a string")),
    };
    let parsed = match kind {
        "ping" => Ok(ClientMessage::Ping),
        "chat" => ChatRequest::from_message(&map).map(Box::new).map(ClientMessage::Chat),
        "get_history" | "history" => history_request(&map),
        "clear_history" => Ok(ClientMessage::ClearHistory),
        "cancel" => cancel_target(&map).map(|generation| ClientMessage::Cancel { generation }),
        _ => return Err(bad("unknown_type", "there is no such type of message")),
    };
    parsed.map_err(|errors| BadMessage {
        problem: errors.into(),
        message_id: map.get("message_id").and_then(Value::as_str).map(str::to_owned),
    })
}

fn history_request(map: &Map<String, Value>) -> Result<ClientMessage, Vec<FieldError>> {
    let mut fields = Fields::new("body", map);
    // A client of the original may ask for more than there is at once, and is told that there is.
    let (most, default) = PAGE_LIMIT;
    let limit = fields.integer("limit", 1, i64::MAX).unwrap_or(default).min(most);
    let before = fields.uuid("before");
    fields.finish(ClientMessage::History { limit: limit.unsigned_abs(), before })
}
