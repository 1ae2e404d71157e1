//! The lines of an import: read one by one from a body, and checked field by field.

use axum::body::{BodyDataStream, Bytes};
use axum::http::StatusCode;
use bytes::BytesMut;
use chrono::{DateTime, Datelike as _, Utc};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout};

use crate::api::bulk_permits::ClientPace;
use crate::api::native::export::VERSION;
use crate::api::native::input::TITLE_CHARACTERS;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::{
    FieldFault, NotAnObject, Object, TOO_MANY_FIELDS_TEXT, TOO_MANY_VALUES,
};
use crate::http::problem::Problem;
use crate::session::model::ToolCall;
use crate::session::{FinishReason, Role, Status, Usage};

/// Bytes of an import, at most.
pub const BYTES: usize = 64 << 20;
/// Bytes of one line, at most: an answer has 500 KiB as JSON.
const LINE_BYTES: usize = 1 << 20;
/// Bytes of one message as text, at most.
const MESSAGE_BYTES: usize = 500 << 10;
/// Calls of one message, at most.
const MESSAGE_CALLS: usize = 64;
/// Characters of the id of a call and of the name of a tool, at most.
const CALL_CHARACTERS: usize = 256;
/// Characters of a model's name, at most.
const MODEL_CHARACTERS: usize = 255;

/// A line that is not valid: the field, the kind of the error, and what is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct LineFault {
    field: &'static str,
    kind: &'static str,
    msg: String,
}

impl LineFault {
    /// Creates the fault of a field.
    pub fn new(field: &'static str, kind: &'static str, msg: impl Into<String>) -> Self {
        Self { field, kind, msg: msg.into() }
    }

    /// Returns the error of the whole import, which names the line and what was imported before it.
    pub fn at(self, number: usize, sessions: u64) -> Problem {
        let Self { field, kind, msg } = self;
        let what = if field.is_empty() { String::new() } else { format!("{field}: ") };
        let detail = format!(
            "Line {number}: {what}{msg}. The {sessions} sessions before it are imported, and nothing \
             of its own; correct the line, and send the file again."
        );
        let mut loc = vec!["body".to_owned(), number.to_string()];
        if !field.is_empty() {
            loc.push(field.to_owned());
        }
        let errors = vec![FieldError { loc, msg, kind }];
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Problem { errors, ..Problem::new(status, "import_invalid", detail) }
    }
}

/// Why an import ended before its last line.
#[derive(Debug)]
pub enum ImportError {
    /// A line is not valid.
    Line(LineFault),
    /// Something else went wrong.
    Other(Problem),
}

impl From<LineFault> for ImportError {
    fn from(fault: LineFault) -> Self {
        Self::Line(fault)
    }
}

impl From<Problem> for ImportError {
    fn from(problem: Problem) -> Self {
        Self::Other(problem)
    }
}

/// The lines of a body.
pub struct ImportLines {
    chunks: BodyDataStream,
    buffer: BytesMut,
    /// The bytes of the buffer that were searched for the end of a line.
    searched: usize,
    bytes: usize,
    /// The number of the last line, from 1.
    pub number: usize,
    has_ended: bool,
    pace: ClientPace,
}

impl ImportLines {
    /// Reads the lines of a body, which arrives at this pace.
    pub fn new(chunks: BodyDataStream, pace: ClientPace) -> Self {
        let buffer = BytesMut::new();
        Self { chunks, buffer, searched: 0, bytes: 0, number: 0, has_ended: false, pace }
    }

    /// Returns the next line that is not blank, without its end; none at the end of the body.
    ///
    /// # Errors
    /// The problem of a body that is too large, too slow, or broke off; a fault where the line is too
    /// long.
    pub async fn next(&mut self) -> Result<Option<BytesMut>, ImportError> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            let line = match end {
                Some(end) => self.buffer.split_to(self.searched + end + 1),
                None if self.has_ended => std::mem::take(&mut self.buffer),
                None => {
                    self.searched = self.buffer.len();
                    if self.searched > LINE_BYTES {
                        self.number += 1;
                        return Err(too_long().into());
                    }
                    self.read().await?;
                    continue;
                }
            };
            self.searched = 0;
            if line.is_empty() {
                return Ok(None);
            }
            self.number += 1;
            if line.len() > LINE_BYTES {
                return Err(too_long().into());
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    async fn read(&mut self) -> Result<(), Problem> {
        let late = || {
            let detail =
                "The body did not arrive in time, or at less than 16 KiB a second; send it again.";
            Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
        };
        let began = Instant::now();
        let chunk = timeout(self.pace.left_for_next(), self.chunks.next()).await;
        self.pace.add_time(began.elapsed());
        let chunk = chunk.map_err(|_| late())?;
        let broken = || {
            let detail = "The body broke off; send it again.";
            Problem::new(StatusCode::BAD_REQUEST, "body_unreadable", detail)
        };
        if let Some(chunk) = chunk.transpose().map_err(|_| broken())? {
            return self.add(&chunk);
        }
        self.has_ended = true;
        Ok(())
    }

    fn add(&mut self, chunk: &Bytes) -> Result<(), Problem> {
        self.bytes += chunk.len();
        self.pace.add_bytes(chunk.len());
        if self.bytes > BYTES {
            return Err(too_large());
        }
        self.buffer.extend_from_slice(chunk);
        Ok(())
    }
}

fn too_long() -> LineFault {
    LineFault::new("", "line_too_long", format!("is longer than {LINE_BYTES} bytes"))
}

/// Returns the problem of an import that is too large.
pub fn too_large() -> Problem {
    let detail = format!("The import is larger than {BYTES} bytes; send it in parts.");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
}

/// A line of an import.
#[derive(Debug)]
pub enum ImportLine {
    /// The first line.
    Export,
    /// The beginning of a session.
    Session(SessionLine),
    /// A message of that session.
    Message(Box<MessageLine>),
    /// The end of that session, with the number of its messages.
    SessionEnd(u64),
    /// The last line.
    End,
}

/// The description of a session.
#[derive(Debug)]
pub struct SessionLine {
    /// The title; none where it follows from the first question.
    pub title: Option<String>,
    /// The model of the last turn.
    pub model: Option<String>,
    /// When the session began.
    pub created_at: Option<DateTime<Utc>>,
    /// Whether the session is pinned.
    pub pinned: bool,
    /// Whether the session is archived.
    pub archived: bool,
}

/// A message of a session.
#[derive(Debug)]
pub struct MessageLine {
    /// The author: a user, an assistant or a tool.
    pub role: Role,
    /// The text.
    pub content: String,
    /// The model's reasoning before its answer.
    pub thinking: Option<String>,
    /// When the message was written.
    pub timestamp: Option<DateTime<Utc>>,
    /// The model of an answer.
    pub model: Option<String>,
    /// How an answer ended.
    pub status: Option<Status>,
    /// Why an answer ended.
    pub finish_reason: Option<FinishReason>,
    /// The tokens of an answer.
    pub usage: Option<Usage>,
    /// The calls of tools that an answer requests.
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result a tool's message is.
    pub tool_call_id: Option<String>,
    /// The name of that tool.
    pub tool_name: Option<String>,
}

impl ImportLine {
    /// Reads a line.
    ///
    /// # Errors
    /// The fault of the line.
    pub fn parse(line: &[u8]) -> Result<Self, LineFault> {
        let value = Object::parse(line).map_err(|error| match error {
            NotAnObject::OtherJson => LineFault::new("", "dict_type", "must be an object"),
            NotAnObject::TooManyFields => LineFault::new("", TOO_MANY_VALUES, TOO_MANY_FIELDS_TEXT),
            NotAnObject::Invalid(error) => {
                let msg = format!("is not valid JSON, at column {}", error.column());
                LineFault::new("", "json_invalid", msg)
            }
        })?;
        match required::<String>(&value, "type", "a string")?.as_str() {
            "export" => {
                let version: u64 = required(&value, "version", "a number")?;
                if version == VERSION {
                    return Ok(Self::Export);
                }
                let msg = format!("must be {VERSION}, the version that this release reads");
                Err(LineFault::new("version", "version_unknown", msg))
            }
            "session" => Ok(Self::Session(SessionLine {
                title: text(&value, "title", TITLE_CHARACTERS)?,
                model: text(&value, "model", MODEL_CHARACTERS)?,
                created_at: time(&value, "created_at")?,
                pinned: optional(&value, "pinned", "true or false")?.unwrap_or_default(),
                archived: optional(&value, "archived", "true or false")?.unwrap_or_default(),
            })),
            "message" => MessageLine::parse(&value).map(Box::new).map(Self::Message),
            "session_end" => Ok(Self::SessionEnd(required(&value, "messages", "a number")?)),
            "end" => Ok(Self::End),
            _ => Err(LineFault::new(
                "type",
                "enum",
                "must be export, session, message, session_end or end",
            )),
        }
    }
}

impl MessageLine {
    fn parse(value: &Object) -> Result<Self, LineFault> {
        let role = match required::<String>(value, "role", "a string")?.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            _ => {
                let msg = "must be user, assistant or tool";
                return Err(LineFault::new("role", "enum", msg));
            }
        };
        let content: String = required(value, "content", "a string")?;
        let thinking: Option<String> = optional(value, "thinking", "a string")?;
        let tool_calls = calls(value)?;
        let of_calls = tool_calls.iter().map(|call| call.arguments.len()).sum::<usize>();
        let bytes = content.len() + thinking.as_ref().map_or(0, String::len) + of_calls;
        if bytes > MESSAGE_BYTES {
            let msg =
                format!("must have at most {MESSAGE_BYTES} bytes, reasoning and calls included");
            return Err(LineFault::new("content", "string_too_long", msg));
        }
        let of_role = |is_there: bool, field: &'static str, of: Role, whose: &str| {
            if is_there && role != of {
                let msg = format!("is of {whose} message only");
                return Err(LineFault::new(field, "not_of_role", msg));
            }
            Ok(())
        };
        let tool_call_id = text(value, "tool_call_id", CALL_CHARACTERS)?;
        let tool_name = text(value, "tool_name", CALL_CHARACTERS)?;
        of_role(thinking.is_some(), "thinking", Role::Assistant, "an assistant's")?;
        of_role(!tool_calls.is_empty(), "tool_calls", Role::Assistant, "an assistant's")?;
        of_role(tool_call_id.is_some(), "tool_call_id", Role::Tool, "a tool's")?;
        of_role(tool_name.is_some(), "tool_name", Role::Tool, "a tool's")?;
        let is_answer = role == Role::Assistant;
        Ok(Self {
            role,
            content,
            thinking,
            timestamp: time(value, "timestamp")?,
            model: text(value, "model", MODEL_CHARACTERS)?.filter(|_| is_answer),
            status: optional(value, "status", "complete, cancelled or failed")?
                .filter(|_| is_answer),
            finish_reason: optional(
                value,
                "finish_reason",
                "stop, length, repetition or cancelled",
            )?
            .filter(|_| is_answer),
            usage: optional(value, "usage", "an object with prompt_tokens and completion_tokens")?
                .filter(|_| is_answer),
            tool_calls,
            tool_call_id,
            tool_name,
        })
    }
}

/// Reads the calls of tools in a message.
fn calls(value: &Object) -> Result<Vec<ToolCall>, LineFault> {
    let calls = optional(value, "tool_calls", "a list of calls, each with id, name and arguments")?;
    let calls: Vec<ToolCall> = calls.unwrap_or_default();
    let fault = |msg: String| Err(LineFault::new("tool_calls", "value_error", msg));
    if calls.len() > MESSAGE_CALLS {
        return fault(format!("must have at most {MESSAGE_CALLS} calls"));
    }
    for ToolCall { id, name, arguments } in &calls {
        if [id, name].iter().any(|text| text.is_empty() || text.chars().count() > CALL_CHARACTERS) {
            return fault(format!("must have ids and names of 1 to {CALL_CHARACTERS} characters"));
        }
        if serde_json::from_str::<Map<String, Value>>(arguments).is_err() {
            return fault("must have JSON objects as arguments".to_owned());
        }
    }
    Ok(calls)
}

fn optional<T: DeserializeOwned>(
    value: &Object,
    field: &'static str,
    expected: &str,
) -> Result<Option<T>, LineFault> {
    let unreadable = |fault: FieldFault| {
        let kind = match fault {
            FieldFault::TooManyValues => TOO_MANY_VALUES,
            FieldFault::LoneSurrogate | FieldFault::BeyondBounds => "json_invalid",
        };
        LineFault::new(field, kind, fault.text())
    };
    match value.get(field).map_err(unreadable)? {
        None => Ok(None),
        Some(found) => T::deserialize(found)
            .map(Some)
            .map_err(|_| LineFault::new(field, "value_error", format!("must be {expected}"))),
    }
}

fn required<T: DeserializeOwned>(
    value: &Object,
    field: &'static str,
    expected: &str,
) -> Result<T, LineFault> {
    optional(value, field, expected)?.ok_or_else(|| LineFault::new(field, "missing", "is required"))
}

/// Reads a text of at most `longest` characters; a blank one counts as absent.
fn text(value: &Object, field: &'static str, longest: usize) -> Result<Option<String>, LineFault> {
    let text: Option<String> = optional(value, field, "a string")?;
    let text = text.filter(|text| !text.trim().is_empty());
    if text.as_ref().is_some_and(|text| text.chars().count() > longest) {
        let msg = format!("must have at most {longest} characters");
        return Err(LineFault::new(field, "string_too_long", msg));
    }
    Ok(text)
}

fn time(value: &Object, field: &'static str) -> Result<Option<DateTime<Utc>>, LineFault> {
    let text: Option<String> = optional(value, field, "a time as RFC 3339 has it")?;
    let fault = || LineFault::new(field, "datetime_parsing", "must be a time as RFC 3339 has it");
    let parsed = text.map(|text| DateTime::parse_from_rfc3339(&text)).transpose();
    let time = parsed.map_err(|_| fault())?.map(|time| time.with_timezone(&Utc));
    // In UTC the last hours of the year 9999 may be those of a year that RFC 3339 does not have.
    match time {
        Some(time) if !(0..=9999).contains(&time.year()) => Err(fault()),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
    use futures_util::stream;

    use super::*;

    fn pace() -> ClientPace {
        ClientPace::new(Duration::from_secs(30))
    }

    fn fault(line: &str) -> (&'static str, &'static str) {
        let fault = ImportLine::parse(line.as_bytes()).expect_err(line);
        (fault.field, fault.kind)
    }

    #[test]
    fn a_bad_line_is_refused_and_its_field_named() {
        for (line, field, kind) in [
            ("{", "", "json_invalid"),
            ("[1]", "", "dict_type"),
            (r#"{"type":"session","title":7}"#, "title", "value_error"),
            (r#"{"type":"session","created_at":"yesterday"}"#, "created_at", "datetime_parsing"),
            (
                r#"{"type":"session","created_at":"9999-12-31T23:59:59-01:00"}"#,
                "created_at",
                "datetime_parsing",
            ),
            (r#"{"type":"export","version":2}"#, "version", "version_unknown"),
            (r#"{"type":"rubbish"}"#, "type", "enum"),
            (r#"{"role":"user"}"#, "type", "missing"),
            (r#"{"type":"message","role":"system","content":"x"}"#, "role", "enum"),
            (r#"{"type":"message","role":"user"}"#, "content", "missing"),
            (r#"{"type":"message","role":"user","content":"\ud800"}"#, "content", "json_invalid"),
            (
                r#"{"type":"message","role":"user","content":"x","thinking":"y"}"#,
                "thinking",
                "not_of_role",
            ),
            (r#"{"type":"session","pinned":"yes"}"#, "pinned", "value_error"),
            (
                r#"{"type":"message","role":"user","content":"x","tool_call_id":"y"}"#,
                "tool_call_id",
                "not_of_role",
            ),
            (
                r#"{"type":"message","role":"tool","content":"x",
                    "tool_calls":[{"id":"a","name":"b","arguments":"{}"}]}"#,
                "tool_calls",
                "not_of_role",
            ),
            (
                r#"{"type":"message","role":"assistant","content":"x",
                    "tool_calls":[{"id":"a","name":"b","arguments":"[]"}]}"#,
                "tool_calls",
                "value_error",
            ),
            (
                r#"{"type":"message","role":"assistant","content":"x","status":"odd"}"#,
                "status",
                "value_error",
            ),
        ] {
            assert_eq!(fault(line), (field, kind), "{line}");
        }
        let long = "x".repeat(MESSAGE_BYTES + 1);
        let line = format!(r#"{{"type":"message","role":"tool","content":"{long}"}}"#);
        assert_eq!(fault(&line), ("content", "string_too_long"));
    }

    #[tokio::test]
    async fn lines_are_whole_however_the_body_is_cut() {
        let text = "first\n\n  \r\nsecond line\nlast";
        for size in 1..=text.len() {
            let chunks: Vec<Result<Bytes, std::convert::Infallible>> = text
                .as_bytes()
                .chunks(size)
                .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
                .collect();
            let body = Body::from_stream(stream::iter(chunks));
            let mut lines = ImportLines::new(body.into_data_stream(), pace());
            let mut found = Vec::new();
            while let Some(line) = lines.next().await.expect("a body") {
                let line = String::from_utf8(line.to_vec()).expect("text");
                found.push((lines.number, line.trim().to_owned()));
            }
            let expected = [(1, "first"), (4, "second line"), (5, "last")];
            assert_eq!(found, expected.map(|(number, line)| (number, line.to_owned())), "{size}");
        }
    }

    #[tokio::test]
    async fn a_body_that_arrives_drop_by_drop_is_refused_long_before_its_end() {
        let drops = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Some((Ok::<_, std::convert::Infallible>(Bytes::from_static(b"\n\n")), ()))
        });
        let pace = ClientPace::new(Duration::from_millis(300));
        let mut lines = ImportLines::new(Body::from_stream(drops).into_data_stream(), pace);
        let refused = tokio::time::timeout(Duration::from_secs(20), lines.next()).await;
        let refused = refused.expect("an end").expect_err("too slow");
        let ImportError::Other(problem) = refused else { panic!("{refused:?}") };
        assert_eq!((problem.status.as_u16(), &*problem.code), (408, "body_timeout"));
    }

    #[tokio::test]
    async fn a_line_and_a_body_that_are_too_long_are_refused_before_they_are_read_whole() {
        let endless = stream::repeat_with(|| {
            Ok::<_, std::convert::Infallible>(Bytes::from(vec![b'x'; 1 << 16]))
        });
        let mut lines = ImportLines::new(Body::from_stream(endless).into_data_stream(), pace());
        let refused = lines.next().await.expect_err("too long");
        assert!(matches!(refused, ImportError::Line(LineFault { kind: "line_too_long", .. })));
        let short = stream::repeat_with(|| {
            Ok::<_, std::convert::Infallible>(Bytes::from(vec![b'\n'; 1 << 16]))
        });
        let mut lines = ImportLines::new(Body::from_stream(short).into_data_stream(), pace());
        let refused = lines.next().await.expect_err("too large");
        let ImportError::Other(problem) = refused else { panic!("{refused:?}") };
        assert_eq!((problem.status.as_u16(), &*problem.code), (413, "body_too_large"));
    }
}
