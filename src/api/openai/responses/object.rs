//! The response object, as OpenAI's API has it, at each state of its turn. Pure.

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::conversation_id::conversation_id;
use super::super::errors::ErrorEnvelope;
use super::ResponseKey;
use super::output::{AnswerItems, status_of};
use super::request::Shown;
use crate::http::problem::Problem;
use crate::session::model::Failure;
use crate::session::{GenerationId, Message, Status};

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
    /// The id of the conversation that it is a turn of.
    conversation: Option<String>,
    /// The items of its answer.
    pub items: AnswerItems,
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

/// Counts bytes instead of writing them.
struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation: Option<Value>,
    #[serde(flatten)]
    shown: &'a Shown,
}

impl ResponseObject {
    /// Creates the response of a turn.
    pub fn new(key: ResponseKey, generation: GenerationId, request: StoredRequest) -> Self {
        let conversation = key.generation.map(|_| conversation_id(key.session));
        Self { id: key.id(), conversation, items: AnswerItems(generation), request }
    }

    /// Returns the response as JSON before its end.
    pub fn open(&self, state: OpenState) -> String {
        let status = match state {
            OpenState::Queued => "queued",
            OpenState::InProgress => "in_progress",
        };
        self.write(status, None, &[])
    }

    /// Returns the bytes of the response as JSON before its end, and of what it shows of its request.
    pub fn open_bytes(&self) -> usize {
        let mut counted = Counted(0);
        // Counting does not fail.
        let _ = self.write_to(&mut counted, "in_progress", None, &[]);
        counted.0
    }

    /// Returns the response as JSON after its end.
    pub fn ended(&self, answer: &Message) -> String {
        self.write(status_of(answer), Some(answer), &self.items.output(answer))
    }

    fn write(&self, status: &'static str, answer: Option<&Message>, output: &[Value]) -> String {
        let mut text = Vec::new();
        // This cannot fail: the types have no maps with keys other than text.
        let _ = self.write_to(&mut text, status, answer, output);
        String::from_utf8(text).unwrap_or_default()
    }

    fn write_to(
        &self,
        into: impl io::Write,
        status: &'static str,
        answer: Option<&Message>,
        output: &[Value],
    ) -> serde_json::Result<()> {
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
            conversation: self.conversation.as_ref().map(|id| json!({"id": id})),
            shown: &self.request.shown,
        };
        serde_json::to_writer(into, &written)
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
    use crate::session::model::ToolCall;
    use crate::session::store::message;
    use crate::session::{FinishReason, Role, SessionId, Usage};

    fn response() -> ResponseObject {
        let request = json!({"model": "m", "input": "hi", "metadata": {"a": "b"},
            "tools": [{"type": "function", "name": "f", "parameters": {"z": 1, "a": 2}}]});
        let object = request.as_object().expect("an object").clone().into();
        let text = request.to_string();
        let read = ResponseRequest::read(&object, text.as_bytes()).expect("valid");
        let request = StoredRequest { created_at: 7, earlier: 0, shown: read.shown };
        let key = ResponseKey::alone(SessionId::random());
        ResponseObject::new(key, GenerationId::random(), request)
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
        assert!(open.get("conversation").is_none());
        let (session, generation) = (SessionId::random(), GenerationId::random());
        let key = ResponseKey { session, generation: Some(generation) };
        let turn = ResponseObject::new(key, generation, response.request.clone());
        let turn = parsed(&turn.open(OpenState::Queued));
        assert_eq!(turn["id"], key.id());
        assert_eq!(turn["conversation"], json!({"id": conversation_id(session)}));
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
