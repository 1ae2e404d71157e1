//! The items of an answer, as OpenAI's API has them. Pure.

use serde_json::{Value, json};

use crate::session::model::ToolCall;
use crate::session::{FinishReason, GenerationId, Message, Status};

/// The items of the answer of a generation.
#[derive(Clone, Copy, Debug)]
pub struct AnswerItems(pub GenerationId);

impl AnswerItems {
    /// Returns the items of an answer.
    pub fn output(&self, answer: &Message) -> Vec<Value> {
        let status = if status_of(answer) == "completed" { "completed" } else { "incomplete" };
        let reasoning = answer.thinking.as_deref().filter(|text| !text.is_empty());
        // Reasoning was whole when the text after it began.
        let of_reasoning = if answer.content.is_empty() { status } else { "completed" };
        let reasoning = reasoning.map(|text| self.reasoning_item(of_reasoning, Some(text)));
        let text = has_message(answer).then(|| self.message_item(status, Some(&answer.content)));
        let calls = answer.tool_calls.iter().enumerate();
        let calls = calls.map(|(at, call)| self.call_item(at, call, status, true));
        reasoning.into_iter().chain(text).chain(calls).collect()
    }

    /// Returns the id of the item with the model's reasoning.
    pub fn reasoning_id(&self) -> String {
        format!("rs_{}", self.0.0.simple())
    }

    /// Returns the id of the item with the model's message.
    pub fn message_id(&self) -> String {
        format!("msg_{}", self.0.0.simple())
    }

    /// Returns the id of the item with a call of a function.
    pub fn call_id(&self, at: usize) -> String {
        format!("fc_{}_{at}", self.0.0.simple())
    }

    /// Returns the item with the model's reasoning, without its text while that grows.
    pub fn reasoning_item(&self, status: &str, text: Option<&str>) -> Value {
        let content: Vec<_> = text.map(reasoning_part).into_iter().collect();
        json!({
            "id": self.reasoning_id(), "type": "reasoning", "status": status, "summary": [],
            "content": content,
        })
    }

    /// Returns the item with the model's message, without its text while that grows.
    pub fn message_item(&self, status: &str, text: Option<&str>) -> Value {
        let content: Vec<_> = text.map(text_part).into_iter().collect();
        json!({
            "id": self.message_id(), "type": "message", "status": status, "role": "assistant",
            "content": content,
        })
    }

    /// Returns the item with a call of a function, without its arguments before they are sent.
    pub fn call_item(&self, at: usize, call: &ToolCall, status: &str, is_whole: bool) -> Value {
        json!({
            "id": self.call_id(at), "type": "function_call", "status": status,
            "call_id": call.id, "name": call.name,
            "arguments": if is_whole { &*call.arguments } else { "" },
        })
    }
}

/// Returns the part of a message with this text.
pub fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// Returns the part of reasoning with this text.
pub fn reasoning_part(text: &str) -> Value {
    json!({"type": "reasoning_text", "text": text})
}

/// Returns whether an answer has a message. One that ended well without any output has an empty one.
pub fn has_message(answer: &Message) -> bool {
    let is_complete = answer.status == Some(Status::Complete);
    !answer.content.is_empty() || (is_complete && answer.tool_calls.is_empty())
}

/// Returns the status of a response that has ended.
pub fn status_of(answer: &Message) -> &'static str {
    match (answer.status, answer.finish_reason) {
        (Some(Status::Failed), _) => "failed",
        (Some(Status::Cancelled), _) => "cancelled",
        // An answer that only repeats itself is cut, as one is that reached a limit.
        (_, Some(FinishReason::Length | FinishReason::Repetition)) => "incomplete",
        _ => "completed",
    }
}
