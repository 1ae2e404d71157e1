//! Events as they are sent, and clients' messages as they are read. Pure.

mod client;
mod event;
#[cfg(test)]
mod tests;

use chrono::Utc;
use tokio_tungstenite::tungstenite::Utf8Bytes;

pub use self::client::{BadMessage, ClientMessage, parse_client_message};
pub use self::event::{Place, RunningAnswer, ServerEvent};
use super::problem::Problem;
use crate::session::model::{Failure, rfc3339};
use crate::session::thoughts::Shape;
use crate::session::{
    Control, Cursor, Event, FinishReason, GenerationId, Message, SessionId, Status, Step,
};

/// Bytes of one event, at most, but for a history whose one message is larger alone.
pub const EVENT_BYTES: usize = 512 << 10;
/// Bytes of an event beside its texts, at most.
const FRAME_BYTES: usize = 2 << 10;

/// What a feed's readers are sent for a step. Nothing for what is not told.
pub fn encode(session: SessionId, step: &Step<'_>) -> Utf8Bytes {
    match step {
        Step::Piece { generation, thought, offset, text, after } => {
            let place = Place { generation: Some(*generation), cursor: Some(*after) };
            let (content, offset) = (*text, *offset);
            let event = if *thought {
                ServerEvent::StreamThinking { content, offset, place }
            } else {
                ServerEvent::StreamChunk { content, done: false, offset: Some(offset), place }
            };
            event.write(text.len() + text.len() / 8)
        }
        Step::Event { event, answer, after } => control(session, event, answer, *after),
        Step::Restart { generation, from, after } => ServerEvent::StreamRestart {
            from: *from,
            place: Place { generation: Some(*generation), cursor: Some(*after) },
        }
        .json(),
        Step::Queued(queued) => ServerEvent::Queued {
            position: queued.position,
            eta_seconds: queued.eta_seconds,
            place: Place { generation: Some(queued.generation), cursor: None },
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

/// An event that carries the cursor `is`, with another one.
pub fn with_cursor(event: &Utf8Bytes, is: Cursor, other: Cursor) -> Utf8Bytes {
    match event.rsplit_once(&format!(r#""cursor":"{is}""#)) {
        Some((before, after)) => format!(r#"{before}"cursor":"{other}"{after}"#).into(),
        None => event.clone(),
    }
}

/// A generation that has ended, told from what is stored of it. Only the last event carries a
/// cursor: whoever loses the connection before it has to ask again.
pub fn replay(message: &Message, in_one_piece: bool, end: Cursor) -> Vec<Utf8Bytes> {
    let generation = message.generation_id;
    let (unlogged, place) =
        (Place { generation, cursor: None }, Place { generation, cursor: Some(end) });
    let text = message.content.as_str();
    let model = message.model.as_deref().unwrap_or_default();
    let timestamp = &rfc3339(&message.timestamp);
    let finish_reason = message.finish_reason.unwrap_or(FinishReason::Stop);
    let (usage, context) = (message.usage.unwrap_or_default(), message.context.unwrap_or_default());
    let chunk = |content, done, offset| {
        ServerEvent::StreamChunk { content, done, offset, place: unlogged }.json()
    };
    let mut events = Vec::new();
    if !in_one_piece {
        events.push(ServerEvent::StreamStart { model, place: unlogged }.json());
        if let Some(content) = message.thinking.as_deref() {
            let thoughts = ServerEvent::StreamThinking { content, offset: 0, place: unlogged };
            events.push(thoughts.json());
        }
        if !text.is_empty() {
            events.push(chunk(text, false, Some(0)));
        }
    }
    let last = match (message.status, &message.error) {
        (Some(Status::Cancelled), _) => {
            ServerEvent::Cancelled { full_response: text, place }.json()
        }
        (Some(Status::Failed), Some(failure)) => failed(failure, place),
        _ if in_one_piece => ServerEvent::Response {
            content: text,
            model,
            timestamp,
            finish_reason,
            usage,
            context,
            place,
        }
        .json(),
        _ => {
            events.push(chunk("", true, None));
            let full_response = text;
            ServerEvent::StreamEnd {
                full_response,
                timestamp,
                finish_reason,
                usage,
                context,
                place,
            }
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
    generation: Option<GenerationId>,
) -> Utf8Bytes {
    ServerEvent::Connection {
        status: "connected",
        session_id,
        message: "WebSocket chat connected successfully",
        resumed,
        recovered,
        place: Place { generation, cursor },
    }
    .json()
}

/// The answer to a `ping`.
pub fn pong() -> Utf8Bytes {
    ServerEvent::Pong { timestamp: rfc3339(&Utc::now()) }.json()
}

/// A `history` event of the newest of `messages` that fit, `more` telling whether there are older
/// ones, and as much of the running answer, thoughts first, as fits beside them. Gives the bytes of
/// that as they are stored, too.
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
    let mut shown = 0;
    let answer = answer.map(|(generation_id, text)| {
        let text = json_prefix(text, room.saturating_sub(used));
        shown = text.len();
        let shape = Shape::of(text);
        let (thinking, content) = (shape.thoughts(text), shape.answer(text));
        RunningAnswer { generation_id, thinking, content, offset: content.len() }
    });
    let event = ServerEvent::History {
        count: fitting.len(),
        has_more: more || fitting.len() < messages.len(),
        messages: &fitting,
        answer,
    };
    (event.write(used + shown), shown)
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
