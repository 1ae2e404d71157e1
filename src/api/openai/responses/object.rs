//! The response object, as OpenAI's API has it, at each state of its turn. Pure.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::errors::ErrorEnvelope;
use super::request::Shown;
use super::response_id;
use crate::http::problem::Problem;
use crate::session::model::{Failure, ToolCall};
use crate::session::{FinishReason, GenerationId, Message, SessionId, Status};

/// The part of the request of a response that is stored beside its messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredRequest {
    /// Seconds since 1970.
    pub created_at: i64,
    /// The number of the messages that earlier responses brought.
    pub earlier: u64,
    /// The parameters that the response shows again.
    pub shown: Shown,
}

/// A response of which the request is known.
#[derive(Clone, Debug)]
pub struct ResponseObject {
    id: String,
    generation: GenerationId,
    /// The request.
    pub request: StoredRequest,
}

/// The state of a response that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenState {
    /// The turn waits.
    Queued,
    /// The turn runs.
    InProgress,
}

#[derive(Serialize)]
struct WrittenResponse<'a> {
    id: &'a str,
    object: &'static str,
    created_at: i64,
    completed_at: Option<i64>,
    status: &'static str,
    error: Option<Value>,
    incomplete_details: Option<Value>,
    output: &'a [Value],
    usage: Option<Value>,
    max_tool_calls: Option<u32>,
    #[serde(flatten)]
    shown: &'a Shown,
}

impl ResponseObject {
    /// Creates the response of a turn.
    pub fn new(session: SessionId, generation: GenerationId, request: StoredRequest) -> Self {
        Self { id: response_id(session), generation, request }
    }

    /// Returns the id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the response as JSON before its end.
    pub fn open(&self, state: OpenState) -> String {
        let status = match state {
            OpenState::Queued => "queued",
            OpenState::InProgress => "in_progress",
        };
        self.write(status, None, &[])
    }

    /// Returns the response as JSON after its end.
    pub fn ended(&self, answer: &Message) -> String {
        self.write(status_of(answer), Some(answer), &self.output(answer))
    }

    fn write(&self, status: &'static str, answer: Option<&Message>, output: &[Value]) -> String {
        let usage = answer.and_then(|answer| answer.usage).map(|usage| {
            json!({
                "input_tokens": usage.prompt_tokens,
                // The model hosts do not count these apart.
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
            })
        });
        let written = WrittenResponse {
            id: &self.id,
            object: "response",
            created_at: self.request.created_at,
            completed_at: answer
                .filter(|answer| answer.status == Some(Status::Complete))
                .map(|answer| answer.timestamp.timestamp()),
            status,
            error: answer.and_then(|answer| answer.error.clone()).map(error_of),
            incomplete_details: (status == "incomplete")
                .then(|| json!({"reason": "max_output_tokens"})),
            output,
            usage,
            max_tool_calls: None,
            shown: &self.request.shown,
        };
        // This cannot fail: the types have no maps with keys other than text.
        serde_json::to_string(&written).unwrap_or_default()
    }

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
        format!("rs_{}", self.generation.0.simple())
    }

    /// Returns the id of the item with the model's message.
    pub fn message_id(&self) -> String {
        format!("msg_{}", self.generation.0.simple())
    }

    /// Returns the id of the item with a call of a function.
    pub fn call_id(&self, at: usize) -> String {
        format!("fc_{}_{at}", self.generation.0.simple())
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

/// Returns the error of a response that failed. OpenAI's list of codes is closed; the stable code of
/// docs/PROTOCOL.md is the type.
fn error_of(failure: Failure) -> Value {
    let message = failure.message.clone();
    let stable = failure.code.clone();
    let error = ErrorEnvelope::from(&Problem::from(failure)).of_response().error;
    let code = match error.kind.as_str() {
        "invalid_request_error" => "invalid_prompt",
        _ => "server_error",
    };
    json!({"code": code, "message": message, "type": stable, "param": error.param})
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::super::request::ResponseRequest;
    use super::*;
    use crate::session::store::message;
    use crate::session::{Role, Usage};

    fn response() -> ResponseObject {
        let request = json!({"model": "m", "input": "hi", "metadata": {"a": "b"},
            "tools": [{"type": "function", "name": "f", "parameters": {"z": 1, "a": 2}}]});
        let object = request.as_object().expect("an object").clone().into();
        let text = request.to_string();
        let read = ResponseRequest::read(&object, text.as_bytes()).expect("valid");
        let request = StoredRequest { created_at: 7, earlier: 0, shown: read.shown };
        ResponseObject::new(SessionId::random(), GenerationId::random(), request)
    }

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn a_response_shows_its_request_and_each_state() {
        let response = response();
        let open = parsed(&response.open(OpenState::Queued));
        assert_eq!((&open["status"], &open["created_at"]), (&json!("queued"), &json!(7)));
        assert_eq!((&open["output"], &open["usage"]), (&json!([]), &json!(null)));
        assert_eq!(open["metadata"], json!({"a": "b"}));
        assert_eq!(open["tools"][0]["name"], "f");
        let answer = Message {
            content: "text".to_owned(),
            status: Some(Status::Complete),
            finish_reason: Some(FinishReason::Stop),
            usage: Some(Usage { prompt_tokens: 2, completion_tokens: 3 }),
            ..message(Role::Assistant, Utc::now())
        };
        let ended = parsed(&response.ended(&answer));
        assert_eq!(ended["status"], "completed");
        assert_eq!(ended["output"][0]["content"][0]["text"], "text");
        assert_eq!(ended["usage"]["total_tokens"], 5);
        let cut = Message { finish_reason: Some(FinishReason::Length), ..answer.clone() };
        let cut = parsed(&response.ended(&cut));
        assert_eq!(cut["incomplete_details"]["reason"], "max_output_tokens");
        assert_eq!(cut["output"][0]["status"], "incomplete");
        let failure = Failure {
            code: "no_model_host".to_owned(),
            message: "m".to_owned(),
            retryable: true,
            retry_after: None,
        };
        let failed = Message {
            status: Some(Status::Failed),
            error: Some(failure),
            content: String::new(),
            ..answer.clone()
        };
        let failed = parsed(&response.ended(&failed));
        assert_eq!((&failed["status"], &failed["output"]), (&json!("failed"), &json!([])));
        assert_eq!(failed["error"]["code"], "server_error");
        assert_eq!(failed["error"]["type"], "no_model_host");
        let call =
            ToolCall { id: "c".to_owned(), name: "f".to_owned(), arguments: "{}".to_owned() };
        let called = Message { content: String::new(), tool_calls: vec![call], ..answer };
        let called = parsed(&response.ended(&called));
        assert_eq!(called["output"].as_array().map(Vec::len), Some(1));
        assert_eq!(called["output"][0]["call_id"], "c");
    }
}
