//! The events of a response, each with its number. Pure: it knows no connection.
//!
//! The events and their numbers follow from the reasoning, the text and the end of the answer, and
//! not from when these arrived: each replica writes the same ones at any time, so that a client
//! resumes after any number, anywhere.
//!
//! This dialect cannot take text back. Where an answer begins anew, the numbers of its events leap by
//! [`RESTART_LEAP`], so that a number never stands for two texts.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::super::errors::ErrorEnvelope;
use super::object::{OpenState, ResponseObject};
use super::output::{has_message, reasoning_part, status_of, text_part};
use super::pieces::next_piece;
use crate::api::sent_text::{Diverged, SentText};
use crate::http::problem::Problem;
use crate::session::Message;

/// By how much the numbers leap where an answer begins anew: by more events than one answer has.
pub const RESTART_LEAP: u64 = 1_000_000;
/// The number of the first event that depends on the answer.
const FIRST_OF_ANSWER: u64 = 2;

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
    /// How often the answer has begun anew.
    restarts: u64,
    /// The number of the next event, without the leaps.
    next: u64,
    output_index: usize,
    reasoning: Growing,
    message: Growing,
    written: Vec<NumberedEvent>,
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
#[derive(Clone, Copy, PartialEq, Eq)]
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
}

impl Events {
    /// Begins the events of a response, for a client that has those up to the number `after`.
    pub fn new(response: ResponseObject, after: Option<u64>) -> Self {
        let state = if response.request.shown.background {
            OpenState::Queued
        } else {
            OpenState::InProgress
        };
        let (created, begun) = (response.open(state), response.open(OpenState::InProgress));
        let mut events = Self {
            response,
            after,
            restarts: 0,
            next: 0,
            output_index: 0,
            reasoning: Growing::default(),
            message: Growing::default(),
            written: Vec::new(),
        };
        events.write("response.created", &format!(r#""response":{created}"#));
        events.write("response.in_progress", &format!(r#""response":{begun}"#));
        events
    }

    /// Returns the events that were written since the last call, without those that the client has.
    pub fn take(&mut self) -> Vec<NumberedEvent> {
        std::mem::take(&mut self.written)
    }

    /// Returns whether events of the answer were written.
    pub fn has_answer(&self) -> bool {
        self.next > FIRST_OF_ANSWER
    }

    /// Notes how often the answer has begun anew, before its first text and where it may have begun
    /// anew.
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
                    "The answer began anew, and event {after} is not one of it; stream the response \
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
    pub fn end(&mut self, answer: &Message) -> Result<(), Diverged> {
        let status = status_of(answer);
        let item_status = if status == "completed" { status } else { "incomplete" };
        let reasoning = answer.thinking.as_deref().unwrap_or_default();
        self.reasoning.sent.end(reasoning)?;
        self.message.sent.end(&answer.content)?;
        if !reasoning.is_empty() {
            self.grow(ItemKind::Reasoning);
            // It was whole when the text began, however that ended.
            let is_whole = !answer.content.is_empty();
            self.close(ItemKind::Reasoning, if is_whole { "completed" } else { item_status });
        }
        if has_message(answer) {
            self.grow(ItemKind::Message);
            self.close(ItemKind::Message, item_status);
        }
        for (at, call) in answer.tool_calls.iter().enumerate() {
            let (id, index) = (self.response.items.call_id(at), self.output_index);
            let item = self.response.items.call_item(at, call, "in_progress", false);
            self.item("added", &item);
            let part = |name: &str| {
                fields(&json!({"item_id": id, "output_index": index, name: call.arguments}))
            };
            self.write("response.function_call_arguments.delta", &part("delta"));
            self.write("response.function_call_arguments.done", &part("arguments"));
            let item = self.response.items.call_item(at, call, item_status, true);
            self.item("done", &item);
            self.output_index += 1;
        }
        let name = match status {
            "completed" => "response.completed",
            "failed" => "response.failed",
            // OpenAI has no event of its own for a response that was cancelled.
            _ => "response.incomplete",
        };
        let response = self.response.ended(answer);
        self.write(name, &format!(r#""response":{response}"#));
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

    /// Writes the events of the pieces that a text has beyond those that were written.
    fn grow(&mut self, kind: ItemKind) {
        let growing = self.growing(kind);
        if growing.state == GrowingState::Absent {
            growing.state = GrowingState::Open;
            let (item, part) = match kind {
                ItemKind::Reasoning => {
                    (self.response.items.reasoning_item("in_progress", None), reasoning_part(""))
                }
                ItemKind::Message => {
                    (self.response.items.message_item("in_progress", None), text_part(""))
                }
            };
            self.item("added", &item);
            self.part(kind, "response.content_part.added", &json!({"part": part}));
        }
        while let Some(bytes) = next_piece(self.growing(kind).rest()) {
            self.delta(kind, bytes);
        }
    }

    /// Writes the events of a text's last piece and its end, where the text is open.
    fn close(&mut self, kind: ItemKind, status: &str) {
        if self.growing(kind).state != GrowingState::Open {
            return;
        }
        let rest = self.growing(kind).rest().len();
        if rest > 0 {
            self.delta(kind, rest);
        }
        let growing = self.growing(kind);
        growing.state = GrowingState::Done;
        let text = growing.sent.as_str().to_owned();
        let (item, part, mut done) = match kind {
            ItemKind::Reasoning => (
                self.response.items.reasoning_item(status, Some(&text)),
                reasoning_part(&text),
                json!({"text": text}),
            ),
            ItemKind::Message => (
                self.response.items.message_item(status, Some(&text)),
                text_part(&text),
                json!({"text": text, "logprobs": []}),
            ),
        };
        self.part(kind, &kind.event("done"), &done.take());
        self.part(kind, "response.content_part.done", &json!({"part": part}));
        self.item("done", &item);
        self.output_index += 1;
    }

    fn delta(&mut self, kind: ItemKind, bytes: usize) {
        let growing = self.growing(kind);
        let piece = growing.rest().get(..bytes).unwrap_or_default().to_owned();
        growing.cut += bytes;
        let delta = match kind {
            ItemKind::Reasoning => json!({"delta": piece}),
            ItemKind::Message => json!({"delta": piece, "logprobs": []}),
        };
        self.part(kind, &kind.event("delta"), &delta);
    }

    /// Writes an event about the one part of an item.
    fn part(&mut self, kind: ItemKind, name: &str, about: &Value) {
        if self.is_known() {
            self.next += 1;
            return;
        }
        let id = match kind {
            ItemKind::Reasoning => self.response.items.reasoning_id(),
            ItemKind::Message => self.response.items.message_id(),
        };
        let place = json!({"item_id": id, "output_index": self.output_index, "content_index": 0});
        let text = format!("{},{}", fields(&place), fields(about));
        self.write(name, &text);
    }

    /// Writes an event about a whole item.
    fn item(&mut self, what: &str, item: &Value) {
        let about = fields(&json!({"output_index": self.output_index, "item": item}));
        self.write(&format!("response.output_item.{what}"), &about);
    }

    /// Writes the next event, with these fields of its object, unless the client has it.
    fn write(&mut self, name: &str, fields: &str) {
        if !self.is_known() {
            let number = self.number();
            let text = format!(
                "event: {name}\ndata: {{\"type\":\"{name}\",\"sequence_number\":{number},{fields}}}\n\n"
            );
            self.written.push(NumberedEvent { number, text });
        }
        self.next += 1;
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
    use crate::session::model::{Failure, ToolCall};
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
        events.end(answer).expect("the same");
        events.take()
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
    fn an_answer_that_begins_anew_has_other_numbers_and_is_never_spliced() {
        let response = response();
        let mut events = Events::new(response.clone(), None);
        events.note_restarts(1).expect("nothing was sent");
        events.add_text(0, "one two three").expect("new");
        let numbers: Vec<_> = events.take().iter().map(|event| event.number).collect();
        assert_eq!(&numbers[..4], [0, 1, RESTART_LEAP + 2, RESTART_LEAP + 3]);
        // The same text, written again after a failover.
        events.note_restarts(1).expect("the same answer");
        events.add_text(0, "one two").expect("the same");
        assert!(events.take().is_empty());
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
            let mut written = parts.take();
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
                        written.extend(parts.take());
                        from = to;
                    }
                }
                if is_reasoning && from < whole.len() {
                    parts.add_reasoning(from as u64, &whole[from..]).expect("new");
                }
            }
            parts.end(&answer).expect("the same");
            written.extend(parts.take());
            prop_assert_eq!(&written, &all);
            for after in 0..all.len() {
                let rest = whole(&response, &answer, Some(after as u64));
                prop_assert_eq!(&rest[..], &all[after + 1..]);
            }
        }
    }
}
