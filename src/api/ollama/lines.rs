//! Writes the lines of an answer. Pure: it knows no connection.

use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::shapes::Figures;
use crate::api::sent_text::{Diverged, SentText};
use crate::session::model::ToolCall;
use crate::session::{FinishReason, Message};

/// The two forms of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The reply of `/api/chat`, with a message.
    Chat,
    /// The reply of `/api/generate`, with a response.
    Generate,
}

/// The times of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    began: Option<Instant>,
    first: Option<Instant>,
}

impl Clock {
    /// Begins with the request.
    pub fn start(started: Instant) -> Self {
        Self { started, began: None, first: None }
    }

    /// Notes that a host began. A continuation changes nothing.
    pub fn begin(&mut self) {
        self.began.get_or_insert_with(Instant::now);
    }

    /// Notes that there is text.
    pub fn text(&mut self) {
        self.first.get_or_insert_with(Instant::now);
    }

    fn figures(self, answer: &Message) -> Figures {
        let now = Instant::now();
        let began = self.began.unwrap_or(self.started);
        let first = self.first.unwrap_or(began);
        let usage = answer.usage.unwrap_or_default();
        Figures {
            total_duration: nanoseconds(now - self.started),
            load_duration: nanoseconds(began - self.started),
            prompt_eval_count: usage.prompt_tokens,
            prompt_eval_duration: nanoseconds(first - began),
            eval_count: usage.completion_tokens,
            eval_duration: nanoseconds(now - first),
        }
    }
}

/// Returns a time in nanoseconds, as Ollama's replies have it.
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The lines of one answer.
pub struct Lines {
    shape: Shape,
    /// The model's name as JSON text.
    model: String,
    /// The times of the answer.
    pub clock: Clock,
    text: SentText,
    reasoning: SentReasoning,
}

impl Lines {
    /// Begins an answer of a model, as the request spells it.
    pub fn new(shape: Shape, model: &str, clock: Clock) -> Self {
        let (text, reasoning) = (SentText::default(), SentReasoning::default());
        Self { shape, model: quoted(model), clock, text, reasoning }
    }

    /// Returns a line without text, while the turn waits.
    pub fn heartbeat(&self) -> String {
        self.line(&LinePart::default(), "\"done\":false")
    }

    /// Returns the line of a text at this byte of the answer; none where all of it was sent.
    ///
    /// # Errors
    /// [`Diverged`].
    pub fn text(&mut self, offset: u64, text: &str) -> Result<Option<String>, Diverged> {
        let new = self.text.add(offset, text)?;
        Ok((!new.is_empty()).then(|| self.line(&LinePart::text(new), "\"done\":false")))
    }

    /// Returns the line of reasoning at this byte of it; none where all of it was sent, and where the
    /// answer itself has begun.
    pub fn reasoning(&mut self, offset: u64, text: &str) -> Option<String> {
        if !self.text.as_str().is_empty() {
            return None;
        }
        let new = self.reasoning.add(offset, text);
        let part = LinePart { reasoning: &new, ..LinePart::default() };
        (!new.is_empty()).then(|| self.line(&part, "\"done\":false"))
    }

    /// Returns the last lines of an answer that is complete.
    ///
    /// # Errors
    /// [`Diverged`].
    pub fn end(&mut self, answer: &Message) -> Result<Vec<String>, Diverged> {
        let unsent = answer.thinking.as_deref().filter(|_| self.reasoning.is_empty());
        let reasoning = unsent.and_then(|whole| self.reasoning(0, whole));
        let rest = self.text.end(&answer.content)?;
        let rest = (!rest.is_empty()).then(|| self.line(&LinePart::text(rest), "\"done\":false"));
        let calls = (!answer.tool_calls.is_empty()).then(|| {
            let part = LinePart { tool_calls: &answer.tool_calls, ..LinePart::default() };
            self.line(&part, "\"done\":false")
        });
        let last = self.line(&LinePart::default(), &self.done(answer));
        Ok(reasoning.into_iter().chain(rest).chain(calls).chain([last]).collect())
    }

    /// Returns the bytes of the texts that were sent.
    pub fn kept_bytes(&self) -> usize {
        self.text.as_str().len() + self.reasoning.sent.len()
    }

    /// Returns a whole answer as one object.
    pub fn whole(&self, answer: &Message) -> String {
        let part = LinePart {
            text: &answer.content,
            reasoning: answer.thinking.as_deref().unwrap_or_default(),
            tool_calls: &answer.tool_calls,
        };
        self.line(&part, &self.done(answer))
    }

    /// Returns the reply to a request that has nothing to answer.
    pub fn without_answer(&self, done_reason: &str) -> String {
        let end = format!("\"done\":true,\"done_reason\":\"{done_reason}\"");
        self.line(&LinePart::default(), &end)
    }

    fn done(&self, answer: &Message) -> String {
        let reason = match answer.finish_reason {
            // An answer that only repeats itself is cut, as one is that reached a limit.
            Some(FinishReason::Length | FinishReason::Repetition) => "length",
            Some(FinishReason::Stop | FinishReason::Cancelled) | None => "stop",
        };
        let figures = serde_json::to_string(&self.clock.figures(answer)).unwrap_or_default();
        let figures = figures.trim_matches(['{', '}']);
        format!("\"done\":true,\"done_reason\":\"{reason}\",{figures}")
    }

    fn line(&self, part: &LinePart<'_>, end: &str) -> String {
        let Self { model, .. } = self;
        let at = Utc::now().to_rfc3339_opts(SecondsFormat::Nanos, true);
        let text = quoted(part.text);
        let thinking = match part.reasoning {
            "" => String::new(),
            reasoning => format!(",\"thinking\":{}", quoted(reasoning)),
        };
        let calls = calls(part.tool_calls);
        let answer = match self.shape {
            Shape::Chat => {
                format!(
                    "\"message\":{{\"role\":\"assistant\",\"content\":{text}{thinking}{calls}}}"
                )
            }
            Shape::Generate => format!("\"response\":{text}{thinking}"),
        };
        format!("{{\"model\":{model},\"created_at\":\"{at}\",{answer},{end}}}\n")
    }
}

/// The part of an answer that one line adds.
#[derive(Default)]
struct LinePart<'a> {
    text: &'a str,
    reasoning: &'a str,
    tool_calls: &'a [ToolCall],
}

impl<'a> LinePart<'a> {
    fn text(text: &'a str) -> Self {
        Self { text, ..Self::default() }
    }
}

/// Returns the field of calls of tools, with a comma before it; nothing where there are none.
fn calls(calls: &[ToolCall]) -> String {
    if calls.is_empty() {
        return String::new();
    }
    let call = |(index, ToolCall { id, name, arguments }): (usize, &ToolCall)| {
        // The host sent an object; the fields of the arguments keep their order.
        let is_json = serde_json::from_str::<&RawValue>(arguments).is_ok();
        let arguments = if is_json { arguments.as_str() } else { "{}" };
        let (id, name) = (quoted(id), quoted(name));
        format!(
            "{{\"id\":{id},\"function\":{{\"index\":{index},\"name\":{name},\
             \"arguments\":{arguments}}}}}"
        )
    };
    let list: Vec<String> = calls.iter().enumerate().map(call).collect();
    format!(",\"tool_calls\":[{}]", list.join(","))
}

/// The reasoning that was sent. It comes before the answer, and one that starts again is sent as a
/// paragraph of its own: clients show it, and nothing depends on it.
#[derive(Default)]
struct SentReasoning {
    sent: String,
    /// Where the attempt that is sent now begins.
    from: usize,
}

impl SentReasoning {
    fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Returns what is to be sent of a text at this byte of the current attempt.
    fn add(&mut self, offset: u64, text: &str) -> String {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let attempt = &self.sent[self.from..];
        let known = attempt.get(offset..).unwrap_or_default();
        if offset <= attempt.len() {
            if known.starts_with(text) {
                return String::new();
            }
            if let Some(new) = text.strip_prefix(known) {
                self.sent.push_str(new);
                return new.to_owned();
            }
        }
        let before = attempt.get(..offset).unwrap_or_default().to_owned();
        self.sent.push_str("\n\n");
        self.from = self.sent.len();
        self.sent.push_str(&before);
        self.sent.push_str(text);
        format!("\n\n{before}{text}")
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::session::store::message;
    use crate::session::{Role, Usage};

    fn lines(shape: Shape) -> Lines {
        Lines::new(shape, "m\"", Clock::start(Instant::now()))
    }

    fn parsed(line: &str) -> Value {
        assert_eq!(line.find('\n'), Some(line.len() - 1), "one line: {line}");
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["model"], "m\"");
        let at = line["created_at"].as_str().expect("a time");
        assert!(chrono::DateTime::parse_from_rfc3339(at).is_ok(), "{at}");
        line
    }

    fn answer(content: &str, thinking: Option<&str>) -> Message {
        Message {
            content: content.to_owned(),
            thinking: thinking.map(str::to_owned),
            finish_reason: Some(FinishReason::Length),
            usage: Some(Usage { prompt_tokens: 2, completion_tokens: 3 }),
            ..message(Role::Assistant, Utc::now())
        }
    }

    #[test]
    fn a_chat_is_lines_with_messages_and_ends_with_reason_and_figures() {
        let mut lines = lines(Shape::Chat);
        let empty = parsed(&lines.heartbeat());
        assert_eq!(empty["message"], json!({"role": "assistant", "content": ""}));
        assert_eq!(empty["done"], false);
        lines.clock.begin();
        let thought = parsed(&lines.reasoning(0, "hm").expect("new"));
        let wanted = json!({"role": "assistant", "content": "", "thinking": "hm"});
        assert_eq!(thought["message"], wanted);
        let piece = parsed(&lines.text(0, "é\n").expect("new").expect("a line"));
        assert_eq!(piece["message"]["content"], "é\n");
        let last = lines.end(&answer("é\n!", Some("hm"))).expect("the same");
        let last: Vec<Value> = last.iter().map(|line| parsed(line)).collect();
        assert_eq!(last.len(), 2);
        assert_eq!(last[0]["message"]["content"], "!");
        let end = last[1].as_object().expect("an object");
        assert_eq!((&end["done"], &end["done_reason"]), (&json!(true), &json!("length")));
        assert_eq!((&end["prompt_eval_count"], &end["eval_count"]), (&json!(2), &json!(3)));
        let time = |name: &str| end[name].as_u64().expect("nanoseconds");
        let parts = ["load_duration", "prompt_eval_duration", "eval_duration"].map(time);
        assert_eq!(parts.iter().sum::<u64>(), time("total_duration"));
    }

    #[test]
    fn a_whole_answer_is_one_object() {
        let whole = parsed(&lines(Shape::Generate).whole(&answer("text", Some("hm"))));
        assert_eq!((&whole["response"], &whole["thinking"]), (&json!("text"), &json!("hm")));
        assert_eq!((&whole["done"], &whole["eval_count"]), (&json!(true), &json!(3)));
        let loaded = parsed(&lines(Shape::Generate).without_answer("unload"));
        assert_eq!((&loaded["response"], &loaded["done_reason"]), (&json!(""), &json!("unload")));
        assert!(loaded.get("eval_count").is_none());
    }

    #[test]
    fn calls_of_tools_are_a_line_before_the_last_one_with_their_arguments_as_they_are() {
        let arguments = r#"{"z":1,"a":{"b":[]}}"#.to_owned();
        let call = ToolCall { id: "call_0".to_owned(), name: "f".to_owned(), arguments };
        let called = Message { tool_calls: vec![call], ..answer("", None) };
        let last = lines(Shape::Chat).end(&called).expect("the same");
        assert_eq!(last.len(), 2);
        let field = r#""tool_calls":[{"id":"call_0","function":{"index":0,"name":"f","arguments":{"z":1,"a":{"b":[]}}}}]"#;
        assert!(last[0].contains(field), "{}", last[0]);
        assert_eq!(parsed(&last[0])["done"], false);
        assert!(!last[1].contains("tool_calls") && parsed(&last[1])["done"] == true);
        assert!(lines(Shape::Chat).whole(&called).contains(field));
    }

    #[test]
    fn reasoning_that_starts_again_is_a_new_paragraph_and_none_follows_the_answer() {
        let mut sent = SentReasoning::default();
        assert_eq!(sent.add(0, "one two"), "one two");
        // The same text comes again, in other pieces.
        assert_eq!(sent.add(0, "one"), "");
        assert_eq!(sent.add(3, " two three"), " three");
        assert_eq!(sent.add(0, "one"), "");
        assert_eq!(sent.add(3, " six"), "\n\none six");
        assert_eq!(sent.add(7, " seven"), " seven");
        assert_eq!(sent.add(99, "lost"), "\n\nlost");
        let mut lines = lines(Shape::Chat);
        assert!(lines.text(0, "text").expect("new").is_some());
        assert_eq!(lines.reasoning(0, "hm"), None);
        assert_eq!(lines.end(&answer("text", Some("hm"))).expect("the same").len(), 1);
        assert_eq!(lines.end(&answer("test", None)), Err(Diverged));
    }
}
