//! Writes the chunks of a streamed completion. Pure: it knows no connection.
//!
//! This dialect cannot take text back: see [`SentText`].

use serde_json::json;

use super::shapes::{CompletionUsage, FunctionCall, completion_id, finish_reason};
use crate::api::sent_text::{Diverged, SentText};
use crate::session::{GenerationId, Message};

/// The chunks of one completion.
pub struct Chunks {
    /// The beginning of each chunk, up to its choices.
    prefix: String,
    /// Whether the usage comes before the end; all other chunks then have an empty one.
    include_usage: bool,
    /// The text that was sent.
    sent: SentText,
}

impl Chunks {
    /// Begins a completion.
    pub fn new(generation: GenerationId, created: i64, model: &str, include_usage: bool) -> Self {
        let head = json!({
            "id": completion_id(generation),
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        });
        let mut prefix = head.to_string();
        prefix.pop();
        Self { prefix, include_usage, sent: SentText::default() }
    }

    /// Returns the first chunk, which has the role.
    pub fn role(&self) -> String {
        self.chunk(r#"{"role":"assistant","content":"","refusal":null}"#, None)
    }

    /// Returns a chunk that says nothing, while the turn waits.
    pub fn heartbeat(&self) -> String {
        self.chunk("{}", None)
    }

    /// Returns the chunk of a text that begins at this byte of the answer; none where all of it was
    /// sent.
    ///
    /// # Errors
    /// [`Diverged`].
    pub fn text(&mut self, offset: u64, text: &str) -> Result<Option<String>, Diverged> {
        let new = self.sent.add(offset, text)?.to_owned();
        Ok((!new.is_empty()).then(|| self.content(&new)))
    }

    /// Returns the bytes of the text that was sent.
    pub fn kept_bytes(&self) -> usize {
        self.sent.as_str().len()
    }

    /// Returns the last chunks of a completed answer.
    ///
    /// # Errors
    /// [`Diverged`].
    pub fn end(&mut self, answer: &Message) -> Result<Vec<String>, Diverged> {
        let rest = self.sent.end(&answer.content)?.to_owned();
        let mut chunks = Vec::new();
        if !rest.is_empty() {
            chunks.push(self.content(&rest));
        }
        if !answer.tool_calls.is_empty() {
            let calls: Vec<_> = (0..)
                .zip(answer.tool_calls.iter().cloned())
                .map(|(at, call)| FunctionCall { index: Some(at), ..call.into() })
                .collect();
            let calls = serde_json::to_string(&calls).unwrap_or_default();
            chunks.push(self.chunk(&format!(r#"{{"tool_calls":{calls}}}"#), None));
        }
        chunks.push(self.chunk("{}", Some(finish_reason(answer))));
        if self.include_usage {
            let usage = CompletionUsage::from(answer.usage.unwrap_or_default());
            let usage = serde_json::to_string(&usage).unwrap_or_default();
            chunks.push(format!(r#"{},"choices":[],"usage":{usage}}}"#, self.prefix));
        }
        Ok(chunks)
    }

    fn content(&self, text: &str) -> String {
        let content = serde_json::to_string(text).unwrap_or_default();
        self.chunk(&format!(r#"{{"content":{content}}}"#), None)
    }

    fn chunk(&self, delta: &str, finish_reason: Option<&str>) -> String {
        let finish =
            finish_reason.map_or_else(|| "null".to_owned(), |reason| format!("\"{reason}\""));
        let usage = if self.include_usage { r#","usage":null"# } else { "" };
        format!(
            r#"{},"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]{usage}}}"#,
            self.prefix
        )
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use serde_json::Value;

    use super::*;
    use crate::session::store::message;
    use crate::session::{FinishReason, Role, Usage};

    fn chunks(include_usage: bool) -> Chunks {
        Chunks::new(GenerationId::random(), 7, "m\"", include_usage)
    }

    fn delta(chunk: &str) -> Value {
        let chunk: Value = serde_json::from_str(chunk).expect("JSON");
        assert_eq!(
            (&chunk["object"], &chunk["created"]),
            (&json!("chat.completion.chunk"), &json!(7))
        );
        assert_eq!(chunk["model"], "m\"");
        chunk["choices"][0]["delta"].clone()
    }

    fn answer(content: &str) -> Message {
        Message {
            content: content.to_owned(),
            finish_reason: Some(FinishReason::Length),
            usage: Some(Usage { prompt_tokens: 2, completion_tokens: 3 }),
            ..message(Role::Assistant, Utc::now())
        }
    }

    #[test]
    fn a_stream_begins_with_the_role_and_ends_with_reason_and_usage() {
        let mut stream = chunks(true);
        assert_eq!(
            delta(&stream.role()),
            json!({"role": "assistant", "content": "", "refusal": null})
        );
        assert_eq!(delta(&stream.heartbeat()), json!({}));
        let chunk = stream.text(0, "é\n").expect("new").expect("a chunk");
        assert_eq!(delta(&chunk), json!({"content": "é\n"}));
        let last = stream.end(&answer("é\n!")).expect("the same");
        let last: Vec<Value> =
            last.iter().map(|chunk| serde_json::from_str(chunk).expect("JSON")).collect();
        assert_eq!(last.len(), 3);
        assert_eq!(last[0]["choices"][0]["delta"], json!({"content": "!"}));
        assert_eq!(last[0]["usage"], Value::Null);
        assert_eq!(last[1]["choices"][0]["finish_reason"], "length");
        assert_eq!(last[2]["choices"], json!([]));
        let usage = json!({"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5});
        assert_eq!(last[2]["usage"], usage);
        let plain: Value = serde_json::from_str(&chunks(false).role()).expect("JSON");
        assert!(plain.as_object().is_some_and(|chunk| !chunk.contains_key("usage")));
    }

    #[test]
    fn an_answer_that_starts_again_is_sent_once_and_never_with_another_text() {
        let mut stream = chunks(false);
        assert!(stream.text(0, "one two").expect("new").is_some());
        assert_eq!(stream.text(0, "one"), Ok(None));
        assert_eq!(stream.text(4, "six"), Err(Diverged));
        assert_eq!(stream.end(&answer("one two four")).map(|last| last.len()), Ok(2));
        assert_eq!(stream.end(&answer("one two")), Err(Diverged));
    }
}
