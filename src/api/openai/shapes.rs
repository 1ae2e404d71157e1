//! The replies of this front, as OpenAI's API has them.

use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use super::errors::ErrorEnvelope;
use crate::session::{FinishReason, GenerationId, Usage};

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
    /// The text.
    pub content: String,
    /// Always null.
    pub refusal: Option<()>,
}

/// The tokens of a completion.
#[derive(Clone, Copy, Serialize, ToSchema)]
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
pub fn finish_reason(reason: Option<FinishReason>) -> &'static str {
    match reason {
        Some(FinishReason::Length | FinishReason::Repetition) => "length",
        Some(FinishReason::Stop | FinishReason::Cancelled) | None => "stop",
    }
}

/// An error of this front.
#[derive(IntoResponses)]
#[response(status = "default", description = "An error", content_type = "application/json")]
#[allow(dead_code, reason = "only its description is used")]
pub struct ErrorReply(ErrorEnvelope);
