//! The replies of this front, as OpenAI's API has them.

use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use super::errors::ErrorEnvelope;
use crate::session::model::ToolCall;
use crate::session::{FinishReason, GenerationId, Message, Usage};

/// A chat completion.
#[derive(Serialize, ToSchema)]
pub struct ChatCompletionReply {
    /// The identifier.
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    /// The model, as the request spells it.
    pub model: String,
    /// The one choice.
    pub choices: [Choice; 1],
    /// The tokens of prompt and answer.
    pub usage: CompletionUsage,
}

/// The answer.
#[derive(Serialize, ToSchema)]
pub struct Choice {
    /// Always 0.
    pub index: u32,
    /// The message of the model.
    pub message: AnswerMessage,
    /// Always null.
    pub logprobs: Option<()>,
    /// Why the answer ended.
    pub finish_reason: &'static str,
}

/// The message of the model.
#[derive(Serialize, ToSchema)]
pub struct AnswerMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// The text; null where the answer is calls of tools alone.
    pub content: Option<String>,
    /// Always null.
    pub refusal: Option<()>,
    /// The calls of tools that the model requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<FunctionCall>,
}

/// A call of a tool.
#[derive(Serialize, ToSchema)]
pub struct FunctionCall {
    /// The position in the answer; only in a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub index: Option<usize>,
    /// The identifier, by which the result names the call.
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The function that is called.
    pub function: CalledFunctionReply,
}

/// The function of a call.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiCalledFunction)]
pub struct CalledFunctionReply {
    /// The name.
    pub name: String,
    /// The arguments: a JSON object, as text.
    pub arguments: String,
}

impl From<ToolCall> for FunctionCall {
    fn from(ToolCall { id, name, arguments }: ToolCall) -> Self {
        let function = CalledFunctionReply { name, arguments };
        Self { index: None, id, kind: "function", function }
    }
}

impl From<Message> for AnswerMessage {
    fn from(Message { content, tool_calls, .. }: Message) -> Self {
        let only_calls = content.is_empty() && !tool_calls.is_empty();
        let tool_calls = tool_calls.into_iter().map(FunctionCall::from).collect();
        let content = (!only_calls).then_some(content);
        Self { role: "assistant", content, refusal: None, tool_calls }
    }
}

/// The tokens of a completion.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "OpenAI's names")]
pub struct CompletionUsage {
    /// Tokens of the conversation.
    pub prompt_tokens: u64,
    /// Tokens of the answer, with those of the reasoning before it.
    pub completion_tokens: u64,
    /// Both together.
    pub total_tokens: u64,
}

impl From<Usage> for CompletionUsage {
    fn from(Usage { prompt_tokens, completion_tokens }: Usage) -> Self {
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        Self { prompt_tokens, completion_tokens, total_tokens }
    }
}

/// Returns the identifier of a completion.
pub fn completion_id(generation: GenerationId) -> String {
    format!("chatcmpl-{}", generation.0.simple())
}

/// Returns why an answer ended, in the words that the SDKs know. An answer that only repeats itself
/// is cut, as one is that reached a limit.
pub fn finish_reason(answer: &Message) -> &'static str {
    match answer.finish_reason {
        Some(FinishReason::Stop) if !answer.tool_calls.is_empty() => "tool_calls",
        Some(FinishReason::Length | FinishReason::Repetition) => "length",
        Some(FinishReason::Stop | FinishReason::Cancelled) | None => "stop",
    }
}

/// The errors of an operation that names something, or has parameters.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only their descriptions are used")]
pub enum ErrorReply {
    /// A parameter is not valid.
    #[response(
        status = 400,
        description = "A parameter is not valid; `param` names it",
        content_type = "application/json"
    )]
    Invalid(ErrorEnvelope),
    /// There is no such thing.
    #[response(
        status = 404,
        description = "The caller has no such thing, or no host has the model",
        content_type = "application/json"
    )]
    NotFound(ErrorEnvelope),
    /// The replica cannot serve the request now.
    #[response(
        status = 503,
        description = "The replica cannot serve this now; see `code` and Retry-After",
        content_type = "application/json"
    )]
    Unavailable(ErrorEnvelope),
}

/// The error of an operation that what is stored does not allow now.
#[derive(IntoResponses)]
#[response(
    status = 409,
    description = "What is stored does not allow this now; see `code`",
    content_type = "application/json"
)]
#[allow(dead_code, reason = "only its description is used")]
pub struct ConflictReply(ErrorEnvelope);

/// The errors of an operation that a model host works for.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only their descriptions are used")]
pub enum HostErrorReply {
    /// The host failed.
    #[response(
        status = 502,
        description = "The model host failed, or its answer broke off",
        content_type = "application/json"
    )]
    Failed(ErrorEnvelope),
    /// The host, or the whole answer, took too long.
    #[response(status = 504, description = "Out of time", content_type = "application/json")]
    OutOfTime(ErrorEnvelope),
}
