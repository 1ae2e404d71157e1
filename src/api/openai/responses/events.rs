//! The events of a response, each with its number. Pure: it knows no connection.
//!
//! The events and their numbers follow from the reasoning, the text and the end of the answer, and
//! not from when these arrived: each replica writes the same ones at any time, so that a client
//! resumes after any number, anywhere.
//!
//! This dialect cannot take text back. Where an answer starts again, the numbers of its events leap by
//! [`RESTART_LEAP`], so that a number never stands for two texts.
//!
//! An event is made only when it is sent: those of an answer take fifty times the bytes of its text, and a
//! client may read them as slowly as it likes.

use std::collections::VecDeque;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::super::errors::ErrorEnvelope;
use super::object::{OpenState, ResponseObject};
use super::output::{has_message, reasoning_part, status_of, text_part};
use super::pieces::next_piece;
use crate::api::sent_text::{Diverged, SentText};
use crate::http::problem::Problem;
use crate::session::Message;
use crate::session::model::ToolCall;
use crate::session::stored_message::escaped_size;

/// By how much the numbers leap where an answer starts again: by more events than one answer has.
pub const RESTART_LEAP: u64 = 1_000_000;
/// The number of the first event that depends on the answer.
const FIRST_OF_ANSWER: u64 = 2;
/// Bytes of an event in addition to its texts and its response, at most.
const FRAME_BYTES: usize = 1 << 10;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumberedEvent {
    /// Its `sequence_number`.
    pub number: u64,
    /// The event as a client gets it.
    pub text: String,
}

/// The events of one response, in their order.
pub struct Events {
    response: ResponseObject,
    /// The number of the last event that the client has.
    after: Option<u64>,
    /// How often the answer has started again.
    restarts: u64,
    /// The number of the next event, without the leaps.
    next: u64,
    output_index: usize,
    reasoning: Growing,
    message: Growing,
    /// The events that are known, and not made yet.
    planned: VecDeque<Planned>,
    /// Whether events of the answer were planned.
    has_answer: bool,
    /// The answer without its texts, once it has ended.
    answer: Option<Box<Message>>,
    /// Bytes of the response as JSON before its end.
    open_bytes: usize,
}

/// Events that are known, and not made yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planned {
    Created,
    Begun,
    Added(ItemKind),
    PartAdded(ItemKind),
    /// The pieces of a text as far as it is known; with `is_whole` to its end.
    Pieces {
        kind: ItemKind,
        is_whole: bool,
    },
    TextDone(ItemKind),
    PartDone(ItemKind),
    ItemDone(ItemKind, &'static str),
    /// A call of a function: it is added, has its arguments twice, and is done.
    CallAdded(usize),
    CallDelta(usize),
    CallArguments(usize),
    CallDone(usize),
    Ended,
}

/// A text that grows.
#[derive(Default)]
struct Growing {
    sent: SentText,
    /// Bytes that events carried.
    cut: usize,
    state: GrowingState,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum GrowingState {
    #[default]
    Absent,
    Open,
    Done,
}

/// The kind of a growing text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ItemKind {
    Reasoning,
    Message,
}

impl ItemKind {
    fn event(self, end: &str) -> String {
        match self {
            Self::Reasoning => format!("response.reasoning_text.{end}"),
            Self::Message => format!("response.output_text.{end}"),
        }
    }

    fn part(self, text: &str) -> Value {
        match self {
            Self::Reasoning => reasoning_part(text),
            Self::Message => text_part(text),
        }
    }
}

impl Events {
    /// Begins the events of a response, for a client that has those up to the number `after`.
    pub fn new(response: ResponseObject, after: Option<u64>) -> Self {
        let open_bytes = response.open_bytes();
        Self {
            response,
            after,
            restarts: 0,
            next: 0,
            output_index: 0,
            reasoning: Growing::default(),
            message: Growing::default(),
            planned: [Planned::Created, Planned::Begun].into(),
            has_answer: false,
            answer: None,
            open_bytes,
        }
    }

    /// Makes the next event that the client does not have; none where it waits for more of the answer.
    pub fn next(&mut self) -> Option<NumberedEvent> {
        while self.skip_known() {
            if let Some(made) = self.make() {
                return Some(made);
            }
        }
        None
    }

    /// Returns how many bytes the next event has at most; none where there is none.
    pub fn next_size(&mut self) -> Option<usize> {
        if !self.skip_known() {
            return None;
        }
        let response = |answer: Option<&Message>| {
            let calls = answer.map_or(&[][..], |answer| &answer.tool_calls);
            let calls: usize = calls.iter().map(call_bytes).sum();
            let texts = [ItemKind::Reasoning, ItemKind::Message].map(|kind| self.text_bytes(kind));
            self.open_bytes + calls + texts.iter().sum::<usize>()
        };
        let call = |at: usize| {
            self.answer.as_ref().and_then(|answer| answer.tool_calls.get(at)).map_or(0, call_bytes)
        };
        let texts = match *self.planned.front()? {
            Planned::Created | Planned::Begun => self.open_bytes,
            Planned::Added(_) | Planned::PartAdded(_) | Planned::Pieces { .. } => 0,
            Planned::TextDone(kind) | Planned::PartDone(kind) | Planned::ItemDone(kind, _) => {
                self.text_bytes(kind)
            }
            Planned::CallAdded(at)
            | Planned::CallDelta(at)
            | Planned::CallArguments(at)
            | Planned::CallDone(at) => call(at),
            Planned::Ended => response(self.answer.as_deref()),
        };
        Some(texts + FRAME_BYTES)
    }

    /// Returns the bytes that are kept in addition to the events: what the response shows of its request, and
    /// the texts so far.
    pub fn kept_bytes(&self) -> usize {
        let texts = self.reasoning.sent.as_str().len() + self.message.sent.as_str().len();
        let answer = self.answer.as_ref();
        let calls = answer.map_or(&[][..], |answer| &answer.tool_calls);
        let calls: usize = calls.iter().map(|call| call.arguments.len()).sum();
        self.open_bytes + texts + calls
    }

    /// Returns whether events of the answer were planned.
    pub fn has_answer(&self) -> bool {
        self.has_answer
    }

    /// Notes how often the answer has started again, before its first text and where it may have started
    /// again.
    ///
    /// # Errors
    /// Where the client has events of a text that was taken back.
    pub fn note_restarts(&mut self, restarts: u32) -> Result<(), Problem> {
        let restarts = u64::from(restarts);
        if self.has_answer() {
            return if restarts == self.restarts { Ok(()) } else { Err(Diverged.into()) };
        }
        self.restarts = restarts;
        match self.after {
            Some(after) if after >= FIRST_OF_ANSWER && after / RESTART_LEAP != restarts => {
                let detail = format!(
                    "The answer started again, and event {after} is not one of it; stream the response \
                     from its beginning."
                );
                Err(Problem::new(StatusCode::CONFLICT, "answer_restarted", detail))
            }
            _ => Ok(()),
        }
    }

    /// Adds a text of the reasoning that begins at this byte.
    ///
    /// # Errors
    /// [`Diverged`].
    pub fn add_reasoning(&mut self, offset: u64, text: &str) -> Result<(), Diverged> {
        self.reasoning.sent.add(offset, text)?;
        self.grow(ItemKind::Reasoning);
        Ok(())
    }

    /// Adds a text of the answer that begins at this byte.
    ///
    /// # Errors
    /// [`Diverged`].
    pub fn add_text(&mut self, offset: u64, text: &str) -> Result<(), Diverged> {
        self.message.sent.add(offset, text)?;
        self.close(ItemKind::Reasoning, "completed");
        self.grow(ItemKind::Message);
        Ok(())
    }

    /// Ends the response.
    ///
    /// # Errors
    /// [`Diverged`].
    pub fn end(&mut self, mut answer: Message) -> Result<(), Diverged> {
        let status = item_status(&answer);
        // The texts are kept once.
        let (text, reasoning) = (std::mem::take(&mut answer.content), answer.thinking.take());
        let reasoning = reasoning.unwrap_or_default();
        self.reasoning.sent.end(&reasoning)?;
        self.message.sent.end(&text)?;
        self.has_answer = true;
        if !reasoning.is_empty() {
            self.grow(ItemKind::Reasoning);
            // It was whole when the text began, however that ended.
            self.close(ItemKind::Reasoning, if text.is_empty() { status } else { "completed" });
        }
        answer.content = text;
        if has_message(&answer) {
            self.grow(ItemKind::Message);
            self.close(ItemKind::Message, status);
        }
        answer.content = String::new();
        for at in 0..answer.tool_calls.len() {
            self.planned.extend([
                Planned::CallAdded(at),
                Planned::CallDelta(at),
                Planned::CallArguments(at),
                Planned::CallDone(at),
            ]);
        }
        self.planned.push_back(Planned::Ended);
        self.answer = Some(Box::new(answer));
        Ok(())
    }

    /// Returns an event that ends the stream, and not the response. It has the number of the last
    /// event, so that a client resumes behind that.
    pub fn error(&self, problem: &Problem) -> String {
        let error = ErrorEnvelope::from(problem).of_response().error;
        let last = (self.restarts * RESTART_LEAP + self.next).saturating_sub(1);
        let number = self.after.unwrap_or_default().max(last);
        let data = json!({
            "type": "error", "code": error.code, "message": error.message, "param": error.param,
            "sequence_number": number,
        });
        format!("event: error\ndata: {data}\n\n")
    }

    /// Plans the events of the pieces that a text has beyond those that were made.
    fn grow(&mut self, kind: ItemKind) {
        self.has_answer = true;
        let growing = self.growing(kind);
        if growing.state == GrowingState::Absent {
            growing.state = GrowingState::Open;
            self.planned.extend([Planned::Added(kind), Planned::PartAdded(kind)]);
        }
        let pieces = Planned::Pieces { kind, is_whole: false };
        if self.planned.back() != Some(&pieces) {
            self.planned.push_back(pieces);
        }
    }

    /// Plans the events of a text's last piece and its end, where the text is open.
    fn close(&mut self, kind: ItemKind, status: &'static str) {
        let growing = self.growing(kind);
        if growing.state != GrowingState::Open {
            return;
        }
        growing.state = GrowingState::Done;
        self.planned.extend([
            Planned::Pieces { kind, is_whole: true },
            Planned::TextDone(kind),
            Planned::PartDone(kind),
            Planned::ItemDone(kind, status),
        ]);
    }

    /// Passes over the events that the client has, and over pieces that are not known yet. Returns whether
    /// an event is left.
    fn skip_known(&mut self) -> bool {
        while let Some(planned) = self.planned.front().copied() {
            if let Planned::Pieces { kind, is_whole } = planned
                && self.piece(kind, is_whole).is_none()
            {
                self.planned.pop_front();
                continue;
            }
            if !self.is_known() {
                return true;
            }
            self.next += 1;
            match planned {
                Planned::Pieces { kind, is_whole } => {
                    let bytes = self.piece(kind, is_whole).unwrap_or_default();
                    self.growing(kind).cut += bytes;
                    continue;
                }
                Planned::ItemDone(..) | Planned::CallDone(_) => self.output_index += 1,
                _ => {}
            }
            self.planned.pop_front();
        }
        false
    }

    /// Returns the bytes of the next piece of a text, where it is known.
    fn piece(&self, kind: ItemKind, is_whole: bool) -> Option<usize> {
        let rest = match kind {
            ItemKind::Reasoning => self.reasoning.rest(),
            ItemKind::Message => self.message.rest(),
        };
        next_piece(rest).or_else(|| (is_whole && !rest.is_empty()).then_some(rest.len()))
    }

    /// Makes the first of the planned events.
    fn make(&mut self) -> Option<NumberedEvent> {
        let planned = self.planned.front().copied()?;
        if let Planned::Pieces { kind, is_whole } = planned {
            let bytes = self.piece(kind, is_whole)?;
            return Some(self.delta(kind, bytes));
        }
        self.planned.pop_front();
        Some(match planned {
            Planned::Created => {
                let is_queued = self.response.request.shown.background;
                let state = if is_queued { OpenState::Queued } else { OpenState::InProgress };
                let response = self.response.open(state);
                self.write("response.created", &format!(r#""response":{response}"#))
            }
            Planned::Begun => {
                let response = self.response.open(OpenState::InProgress);
                self.write("response.in_progress", &format!(r#""response":{response}"#))
            }
            Planned::Added(kind) => {
                let item = self.text_item(kind, "in_progress", None);
                self.item("added", &item)
            }
            Planned::PartAdded(kind) => {
                self.part(kind, "response.content_part.added", &json!({"part": kind.part("")}))
            }
            Planned::Pieces { .. } => return None,
            Planned::TextDone(kind) => {
                let text = self.text(kind);
                let done = match kind {
                    ItemKind::Reasoning => json!({"text": text}),
                    ItemKind::Message => json!({"text": text, "logprobs": []}),
                };
                self.part(kind, &kind.event("done"), &done)
            }
            Planned::PartDone(kind) => {
                let part = kind.part(self.text(kind));
                self.part(kind, "response.content_part.done", &json!({"part": part}))
            }
            Planned::ItemDone(kind, status) => {
                let item = self.text_item(kind, status, Some(self.text(kind)));
                let event = self.item("done", &item);
                self.output_index += 1;
                event
            }
            Planned::CallAdded(at)
            | Planned::CallDelta(at)
            | Planned::CallArguments(at)
            | Planned::CallDone(at) => self.call(planned, at)?,
            Planned::Ended => self.ended()?,
        })
    }

    /// Makes an event of a call of a function.
    fn call(&mut self, planned: Planned, at: usize) -> Option<NumberedEvent> {
        let answer = self.answer.as_deref()?;
        let call = answer.tool_calls.get(at)?;
        let (id, index) = (self.response.items.call_id(at), self.output_index);
        let part = |name: &str| {
            fields(&json!({"item_id": id, "output_index": index, name: call.arguments}))
        };
        Some(match planned {
            Planned::CallDelta(_) => {
                let delta = part("delta");
                self.write("response.function_call_arguments.delta", &delta)
            }
            Planned::CallArguments(_) => {
                let arguments = part("arguments");
                self.write("response.function_call_arguments.done", &arguments)
            }
            Planned::CallDone(_) => {
                let item = self.response.items.call_item(at, call, item_status(answer), true);
                let event = self.item("done", &item);
                self.output_index += 1;
                event
            }
            _ => {
                let item = self.response.items.call_item(at, call, "in_progress", false);
                self.item("added", &item)
            }
        })
    }

    /// Makes the last event, and drops what it has.
    fn ended(&mut self) -> Option<NumberedEvent> {
        let mut answer = self.answer.take()?;
        answer.content = self.message.sent.take();
        answer.thinking = Some(self.reasoning.sent.take()).filter(|text| !text.is_empty());
        let name = match status_of(&answer) {
            "completed" => "response.completed",
            "failed" => "response.failed",
            // OpenAI has no event of its own for a response that was cancelled.
            _ => "response.incomplete",
        };
        let response = self.response.ended(&answer);
        Some(self.write(name, &format!(r#""response":{response}"#)))
    }

    fn delta(&mut self, kind: ItemKind, bytes: usize) -> NumberedEvent {
        let growing = self.growing(kind);
        let piece = growing.rest().get(..bytes).unwrap_or_default().to_owned();
        growing.cut += bytes;
        let delta = match kind {
            ItemKind::Reasoning => json!({"delta": piece}),
            ItemKind::Message => json!({"delta": piece, "logprobs": []}),
        };
        self.part(kind, &kind.event("delta"), &delta)
    }

    /// Returns the item of a text, without the text while it grows.
    fn text_item(&self, kind: ItemKind, status: &str, text: Option<&str>) -> Value {
        match kind {
            ItemKind::Reasoning => self.response.items.reasoning_item(status, text),
            ItemKind::Message => self.response.items.message_item(status, text),
        }
    }

    fn text(&self, kind: ItemKind) -> &str {
        match kind {
            ItemKind::Reasoning => self.reasoning.sent.as_str(),
            ItemKind::Message => self.message.sent.as_str(),
        }
    }

    /// Returns the bytes of a text as JSON.
    fn text_bytes(&self, kind: ItemKind) -> usize {
        escaped_size(self.text(kind)) + FRAME_BYTES
    }

    /// Makes an event about the one part of an item.
    fn part(&mut self, kind: ItemKind, name: &str, about: &Value) -> NumberedEvent {
        let id = match kind {
            ItemKind::Reasoning => self.response.items.reasoning_id(),
            ItemKind::Message => self.response.items.message_id(),
        };
        let place = json!({"item_id": id, "output_index": self.output_index, "content_index": 0});
        let text = format!("{},{}", fields(&place), fields(about));
        self.write(name, &text)
    }

    /// Makes an event about a whole item.
    fn item(&mut self, what: &str, item: &Value) -> NumberedEvent {
        let about = fields(&json!({"output_index": self.output_index, "item": item}));
        self.write(&format!("response.output_item.{what}"), &about)
    }

    /// Makes the next event, with these fields of its object.
    fn write(&mut self, name: &str, fields: &str) -> NumberedEvent {
        let number = self.number();
        let text = format!(
            "event: {name}\ndata: {{\"type\":\"{name}\",\"sequence_number\":{number},{fields}}}\n\n"
        );
        self.next += 1;
        NumberedEvent { number, text }
    }

    /// Returns the number of the next event.
    fn number(&self) -> u64 {
        let leap = if self.next < FIRST_OF_ANSWER { 0 } else { self.restarts * RESTART_LEAP };
        leap + self.next
    }

    /// Returns whether the client has the next event.
    fn is_known(&self) -> bool {
        self.after.is_some_and(|after| self.number() <= after)
    }

    fn growing(&mut self, kind: ItemKind) -> &mut Growing {
        match kind {
            ItemKind::Reasoning => &mut self.reasoning,
            ItemKind::Message => &mut self.message,
        }
    }
}

impl Growing {
    /// Returns the text that no event carried.
    fn rest(&self) -> &str {
        self.sent.as_str().get(self.cut..).unwrap_or_default()
    }
}

/// Returns the status of the items of an answer.
fn item_status(answer: &Message) -> &'static str {
    if status_of(answer) == "completed" { "completed" } else { "incomplete" }
}

/// Returns the bytes of a call of a function as JSON, at most.
fn call_bytes(call: &ToolCall) -> usize {
    [&call.id, &call.name, &call.arguments].map(|text| escaped_size(text)).iter().sum::<usize>()
        + FRAME_BYTES
}

/// Returns the fields of an object as JSON, without its braces.
fn fields(object: &Value) -> String {
    let text = object.to_string();
    text.get(1..text.len() - 1).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use proptest::prelude::*;

    use super::super::ResponseKey;
    use super::super::object::StoredRequest;
    use super::super::request::ResponseRequest;
    use super::*;
    use crate::samples::RESPONSE_EVENTS;
    use crate::session::model::Failure;
    use crate::session::store::message;
    use crate::session::{FinishReason, GenerationId, Role, SessionId, Status};

    fn response() -> ResponseObject {
        let request = json!({"model": "m", "input": "hi"});
        let object = request.as_object().expect("an object").clone().into();
        let read = ResponseRequest::read(&object, request.to_string().as_bytes()).expect("valid");
        let request = StoredRequest { created_at: 7, earlier: 0, shown: read.shown };
        let key = ResponseKey::alone(SessionId::random());
        ResponseObject::new(key, GenerationId::random(), request)
    }

    fn answer(reasoning: &str, text: &str, calls: usize) -> Message {
        let call = |at| ToolCall {
            id: format!("call_{at}"),
            name: "f".to_owned(),
            arguments: "{\"x\":1}".to_owned(),
        };
        Message {
            content: text.to_owned(),
            thinking: (!reasoning.is_empty()).then(|| reasoning.to_owned()),
            tool_calls: (0..calls).map(call).collect(),
            status: Some(Status::Complete),
            finish_reason: Some(FinishReason::Stop),
            ..message(Role::Assistant, Utc::now())
        }
    }

    /// Returns the whole events of an answer that arrives at once.
    fn whole(
        response: &ResponseObject,
        answer: &Message,
        after: Option<u64>,
    ) -> Vec<NumberedEvent> {
        let mut events = Events::new(response.clone(), after);
        events.note_restarts(0).expect("no restart");
        events.end(answer.clone()).expect("the same");
        taken(&mut events)
    }

    /// Makes all events that are known, each within the size that is announced before.
    fn taken(events: &mut Events) -> Vec<NumberedEvent> {
        let mut made = Vec::new();
        while let Some(bytes) = events.next_size() {
            let event = events.next().expect("an event of this size");
            assert!(event.text.len() <= bytes, "{bytes} bytes for {}", event.text);
            made.push(event);
        }
        assert_eq!(events.next(), None);
        made
    }

    fn parsed(events: &[NumberedEvent]) -> Vec<Value> {
        let parse = |event: &NumberedEvent| {
            let (name, data) = event.text.split_once('\n').expect("two lines");
            let data = data.strip_prefix("data: ").and_then(|data| data.strip_suffix("\n\n"));
            let data: Value = serde_json::from_str(data.expect("data")).expect("JSON");
            assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
            assert_eq!(data["sequence_number"], event.number);
            data
        };
        events.iter().map(parse).collect()
    }

    fn kinds(events: &[Value]) -> Vec<&str> {
        let mut kinds: Vec<_> = events.iter().filter_map(|event| event["type"].as_str()).collect();
        kinds.dedup();
        kinds
    }

    #[test]
    fn the_events_of_a_message_come_in_openais_order() {
        let events = parsed(&whole(&response(), &answer("", "a text of words", 0), None));
        assert_eq!(kinds(&events), RESPONSE_EVENTS);
        let last = events.last().expect("an end");
        let done = &events[events.len() - 2]["item"];
        assert_eq!(&last["response"]["output"], &json!([done]));
    }

    #[test]
    fn reasoning_and_calls_are_items_of_their_own() {
        let events = parsed(&whole(&response(), &answer("let me see", "yes", 2), None));
        let added: Vec<_> = events
            .iter()
            .filter(|event| event["type"] == "response.output_item.added")
            .map(|event| (event["output_index"].as_u64(), event["item"]["type"].as_str()))
            .collect();
        let wanted = [
            (Some(0), Some("reasoning")),
            (Some(1), Some("message")),
            (Some(2), Some("function_call")),
            (Some(3), Some("function_call")),
        ];
        assert_eq!(added, wanted);
        let done: Vec<_> = events
            .iter()
            .filter(|event| event["type"] == "response.output_item.done")
            .map(|event| event["item"].clone())
            .collect();
        assert_eq!(events.last().expect("an end")["response"]["output"], json!(done));
        assert!(kinds(&events).contains(&"response.reasoning_text.delta"));
        assert!(kinds(&events).contains(&"response.function_call_arguments.done"));
        let only_call = parsed(&whole(&response(), &answer("", "", 1), None));
        assert!(!kinds(&only_call).contains(&"response.output_text.delta"));
    }

    #[test]
    fn each_end_has_its_event() {
        for (status, finish, name) in [
            (Status::Complete, FinishReason::Length, "response.incomplete"),
            (Status::Cancelled, FinishReason::Cancelled, "response.incomplete"),
            (Status::Failed, FinishReason::Stop, "response.failed"),
        ] {
            let error = (status == Status::Failed).then(|| Failure {
                code: "no_model_host".to_owned(),
                message: "m".to_owned(),
                retryable: true,
                retry_after: None,
            });
            let answer = Message {
                status: Some(status),
                finish_reason: Some(finish),
                error,
                ..answer("", "half a", 0)
            };
            let events = parsed(&whole(&response(), &answer, None));
            assert_eq!(events.last().expect("an end")["type"], name);
            assert_eq!(events[events.len() - 2]["item"]["status"], "incomplete");
        }
    }

    #[test]
    fn an_answer_that_starts_again_has_other_numbers_and_is_never_spliced() {
        let response = response();
        let mut events = Events::new(response.clone(), None);
        events.note_restarts(1).expect("nothing was sent");
        events.add_text(0, "one two three").expect("new");
        let numbers: Vec<_> = taken(&mut events).iter().map(|event| event.number).collect();
        assert_eq!(&numbers[..4], [0, 1, RESTART_LEAP + 2, RESTART_LEAP + 3]);
        // The same text, written again after a failover.
        events.note_restarts(1).expect("the same answer");
        events.add_text(0, "one two").expect("the same");
        assert!(taken(&mut events).is_empty());
        assert!(events.note_restarts(2).is_err());
        for (after, restarts, is_known) in [
            (None, 3, true),
            (Some(1), 3, true),
            (Some(2), 0, true),
            (Some(2), 1, false),
            (Some(RESTART_LEAP + 5), 1, true),
            (Some(RESTART_LEAP + 5), 0, false),
        ] {
            let mut events = Events::new(response.clone(), after);
            let noted = events.note_restarts(restarts);
            assert_eq!(noted.is_ok(), is_known, "{after:?} {restarts}");
        }
        let error = events.error(&Diverged.into());
        assert!(error.starts_with("event: error\n") && error.contains("upstream_interrupted"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn events_and_their_numbers_follow_from_the_answer_and_not_from_its_parts(
            reasoning in "[ a-zä日\n]{0,20}",
            text in "[ a-zä日\n]{0,40}",
            calls in 0usize..3,
            cuts in proptest::collection::vec(0usize..60, 0..6),
        ) {
            let response = response();
            let answer = answer(&reasoning, &text, calls);
            let all = whole(&response, &answer, None);
            prop_assert!(all.iter().zip(0..).all(|(event, number)| event.number == number));
            parsed(&all);
            let mut parts = Events::new(response.clone(), None);
            parts.note_restarts(0).expect("no restart");
            let mut written = taken(&mut parts);
            let mut cuts = cuts;
            cuts.sort_unstable();
            for (whole, is_reasoning) in [(&reasoning, true), (&text, false)] {
                let mut from = 0;
                for cut in &cuts {
                    let to = whole.floor_char_boundary((*cut).min(whole.len()));
                    if to > from {
                        let part = &whole[from..to];
                        let added = if is_reasoning {
                            parts.add_reasoning(from as u64, part)
                        } else {
                            parts.add_text(from as u64, part)
                        };
                        added.expect("new");
                        written.extend(taken(&mut parts));
                        from = to;
                    }
                }
                if is_reasoning && from < whole.len() {
                    parts.add_reasoning(from as u64, &whole[from..]).expect("new");
                }
            }
            parts.end(answer.clone()).expect("the same");
            written.extend(taken(&mut parts));
            prop_assert_eq!(&written, &all);
            for after in 0..all.len() {
                let rest = whole(&response, &answer, Some(after as u64));
                prop_assert_eq!(&rest[..], &all[after + 1..]);
            }
        }
    }
}
