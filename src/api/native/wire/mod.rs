//! The native wire format: encodes events, and parses the messages of clients. Pure.

mod client;
mod event;
#[cfg(test)]
mod tests;

use chrono::Utc;
use tokio_tungstenite::tungstenite::Utf8Bytes;

pub use self::client::{BadMessage, ClientMessage, parse_client_message};
pub use self::event::{Envelope, RunningAnswer, ServerEvent};
use crate::follow::snapshot::Snapshot;
use crate::http::codes::is_listed;
use crate::http::problem::Problem;
use crate::session::model::{Failure, rfc3339};
use crate::session::reasoning::Shape;
use crate::session::{
    Anchor, Change, Control, Cursor, Delta, Event, FinishReason, Front, GenerationId, Message,
    SessionId, Status,
};

/// Bytes of one event, at most, except for a history whose only message is larger.
pub const EVENT_BYTES: usize = 512 << 10;
/// Bytes of an event in addition to its texts, at most.
const FRAME_BYTES: usize = 2 << 10;

/// The native front's wire format: one JSON object for each delta.
pub struct Native;

impl Front for Native {
    type Encoded = Utf8Bytes;

    fn encode(delta: &Delta) -> Utf8Bytes {
        encode_at(delta, delta.after, None)
    }
}

/// Encodes a delta with another cursor than its own, for a socket from which text before it was
/// withheld. `upstream_closed` is for the socket whose cancel ended the generation.
pub fn encode_at(delta: &Delta, cursor: Cursor, upstream_closed: Option<bool>) -> Utf8Bytes {
    let envelope = Envelope { generation: delta.generation, cursor: Some(cursor) };
    match &delta.change {
        Change::Text { offset, text } => {
            ServerEvent::StreamChunk { content: text, done: false, offset: Some(*offset), envelope }
                .write(quoted(text))
        }
        Change::Reasoning { offset, text } => {
            ServerEvent::StreamThinking { content: text, offset: *offset, envelope }
                .write(quoted(text))
        }
        Change::Event { event, answer, .. } => {
            control(delta.session, &event.control, answer, envelope, upstream_closed)
        }
        Change::Restart { from } => ServerEvent::StreamRestart { from: *from, envelope }.json(),
        Change::QueuePosition(queued) => ServerEvent::Queued {
            position: queued.position,
            eta_seconds: queued.eta_seconds,
            envelope: Envelope { generation: Some(queued.generation), cursor: None },
        }
        .json(),
    }
}

/// Returns the room for a text as JSON, where few of its characters are escaped.
fn quoted(text: &str) -> usize {
    text.len() + text.len() / 8
}

fn control(
    session_id: SessionId,
    control: &Control,
    answer: &str,
    envelope: Envelope,
    upstream_closed: Option<bool>,
) -> Utf8Bytes {
    match control {
        Control::Accepted { message, timestamp, message_id, anchor } => {
            ServerEvent::MessageReceived {
                message,
                timestamp,
                message_id: message_id.as_deref(),
                regenerated: anchor.and_then(Anchor::regenerated),
                edited: anchor.and_then(Anchor::edited),
                envelope,
            }
            .write(quoted(message))
        }
        Control::Started { model } => ServerEvent::StreamStart { model, envelope }.json(),
        Control::Claimed { from, .. } => {
            ServerEvent::StreamRestart { from: *from, envelope }.json()
        }
        Control::Done {} => {
            ServerEvent::StreamChunk { content: "", done: true, offset: None, envelope }.json()
        }
        Control::ToolCalls { calls } => ServerEvent::ToolCalls { calls, envelope }.json(),
        Control::Ended { timestamp, finish_reason, usage, context, continued, .. } => {
            ServerEvent::StreamEnd {
                full_response: answer,
                timestamp,
                finish_reason: *finish_reason,
                usage: *usage,
                context: *context,
                continued,
                envelope,
            }
            .write(quoted(answer))
        }
        Control::Cancelled {} => {
            ServerEvent::Cancelled { full_response: answer, envelope, upstream_closed }
                .write(quoted(answer))
        }
        Control::Failed(failure) => failed(failure, envelope),
        Control::Selected { message } => {
            ServerEvent::BranchSelected { message_id: *message, envelope }.json()
        }
        Control::Cleared {} => ServerEvent::HistoryCleared { session_id, envelope }.json(),
        // A reader passes over it.
        Control::Transferred { .. } => Utf8Bytes::from_static("{}"),
    }
}

fn failed(failure: &Failure, envelope: Envelope) -> Utf8Bytes {
    debug_assert!(is_listed(&failure.code), "{} is not in the list of codes", failure.code);
    ServerEvent::Error {
        message: &failure.message,
        code: &failure.code,
        retryable: failure.retryable,
        retry_after: failure.retry_after,
        message_id: None,
        envelope,
    }
    .json()
}

/// Encodes the end of a generation for a socket that requested the whole answer at once. `None`
/// where the generation was cancelled or has failed.
pub fn response(
    event: &Event,
    answer: &str,
    thinking: Option<&str>,
    after: Cursor,
) -> Option<Utf8Bytes> {
    let Control::Ended { timestamp, model, finish_reason, usage, context, continued, .. } =
        &event.control
    else {
        return None;
    };
    let response = ServerEvent::Response {
        content: answer,
        thinking,
        model,
        timestamp,
        finish_reason: *finish_reason,
        usage: *usage,
        context: *context,
        continued,
        envelope: Envelope { generation: event.generation, cursor: Some(after) },
    };
    Some(response.write(quoted(answer) + thinking.map_or(0, quoted)))
}

/// Encodes the events of an ended generation from its stored message. Only the last event carries a
/// cursor, so a client that loses the connection before it must request the generation again.
pub fn replay(message: &Message, at_once: bool, end: Cursor) -> Vec<Utf8Bytes> {
    let generation = message.generation_id;
    let (unlogged, envelope) =
        (Envelope { generation, cursor: None }, Envelope { generation, cursor: Some(end) });
    let text = message.content.as_str();
    let model = message.model.as_deref().unwrap_or_default();
    let timestamp = &rfc3339(&message.timestamp);
    let finish_reason = message.finish_reason.unwrap_or(FinishReason::Stop);
    let (usage, context) = (message.usage.unwrap_or_default(), message.context.unwrap_or_default());
    let chunk = |content, done, offset| {
        ServerEvent::StreamChunk { content, done, offset, envelope: unlogged }.json()
    };
    let mut events = Vec::new();
    if !at_once {
        events.push(ServerEvent::StreamStart { model, envelope: unlogged }.json());
        if let Some(content) = message.thinking.as_deref() {
            let reasoning = ServerEvent::StreamThinking { content, offset: 0, envelope: unlogged };
            events.push(reasoning.json());
        }
        if !text.is_empty() {
            events.push(chunk(text, false, Some(0)));
        }
    }
    let calls = &message.tool_calls;
    if at_once && !calls.is_empty() {
        events.push(ServerEvent::ToolCalls { calls, envelope: unlogged }.json());
    }
    let last = match (message.status, &message.error) {
        (Some(Status::Cancelled), _) => {
            ServerEvent::Cancelled { full_response: text, envelope, upstream_closed: None }.json()
        }
        (Some(Status::Failed), Some(failure)) => failed(failure, envelope),
        _ if at_once => ServerEvent::Response {
            content: text,
            thinking: message.thinking.as_deref(),
            model,
            timestamp,
            finish_reason,
            usage,
            context,
            continued: &message.continued,
            envelope,
        }
        .json(),
        _ => {
            events.push(chunk("", true, None));
            if !calls.is_empty() {
                events.push(ServerEvent::ToolCalls { calls, envelope: unlogged }.json());
            }
            let full_response = text;
            ServerEvent::StreamEnd {
                full_response,
                timestamp,
                finish_reason,
                usage,
                context,
                continued: &message.continued,
                envelope,
            }
            .json()
        }
    };
    events.push(last);
    events
}

/// Returns about how many bytes [`replay`] takes in addition to the message.
pub fn replay_bytes(message: &Message) -> usize {
    let thinking = message.thinking.as_deref().map_or(0, quoted);
    let calls: usize = message.tool_calls.iter().map(|call| quoted(&call.arguments)).sum();
    // The text comes once as a chunk, and once at the end.
    2 * quoted(&message.content) + thinking + calls
}

/// Encodes an error in reply to a client's message.
pub fn error(problem: &Problem, message_id: Option<&str>) -> Utf8Bytes {
    ServerEvent::Error {
        message: &problem.detail,
        code: &problem.code,
        retryable: problem.retryable,
        retry_after: problem.retry_after,
        message_id,
        envelope: Envelope::default(),
    }
    .json()
}

/// Returns the first event of a WebSocket or an event stream.
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
        envelope: Envelope { generation, cursor },
    }
    .json()
}

/// Encodes the reply to a `ping`.
pub fn pong() -> Utf8Bytes {
    ServerEvent::Pong { timestamp: rfc3339(&Utc::now()) }.json()
}

/// Encodes the `history` event of a snapshot, and returns it with the cursor after it. The part of
/// the running answer that does not fit follows as chunks.
pub fn snapshot(snapshot: &Snapshot) -> (Utf8Bytes, Cursor) {
    let running = snapshot.running.as_ref().map(|(id, text)| (*id, text.as_str()));
    let (json, shown) = history(&snapshot.messages, snapshot.has_more, running, None);
    (json, snapshot.cursor_after(shown))
}

/// Encodes a `history` event of the newest of `messages` that fit, and of as much of the running
/// answer as fits beside them, reasoning first. `more` reports whether there are older messages. The
/// number of stored bytes of the encoded answer is returned, too. A reply repeats the client's
/// identifier of its request.
pub fn history(
    messages: &[Message],
    more: bool,
    answer: Option<(GenerationId, &str)>,
    message_id: Option<&str>,
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
        let (thinking, content) = (shape.reasoning(text), shape.answer(text));
        RunningAnswer { generation_id, thinking, content, offset: content.len() }
    });
    let event = ServerEvent::History {
        count: fitting.len(),
        has_more: more || fitting.len() < messages.len(),
        messages: &fitting,
        answer,
        message_id,
    };
    (event.write(used + shown), shown)
}

/// Returns the longest beginning of `text` that has at most `room` bytes as JSON.
fn json_prefix(text: &str, room: usize) -> &str {
    let mut used = 0;
    for (index, character) in text.char_indices() {
        used += match character {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            '\0'..='\x1f' => 6,
            other => other.len_utf8(),
        };
        if used > room {
            return &text[..index];
        }
    }
    text
}
