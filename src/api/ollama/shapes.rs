//! The replies of this front, for the API's description; [`super::lines`] writes those of answers.

use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use super::errors::OllamaErrorObject;

/// The reply of `/api/chat`, or one line of it.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaChatReply)]
#[allow(dead_code, reason = "only its description is used")]
pub struct ChatReply {
    /// The model, as the request spells it.
    pub model: String,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// The message of the model, or its next part.
    pub message: MessageReply,
    /// Whether this is the end.
    pub done: bool,
    /// `stop`, `length`, `load` or `unload`; at the end.
    pub done_reason: Option<String>,
    #[serde(flatten)]
    pub figures: FiguresAtTheEnd,
}

/// The reply of `/api/generate`, or one line of it.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaGenerateReply)]
#[allow(dead_code, reason = "only its description is used")]
pub struct GenerateReply {
    /// The model, as the request spells it.
    pub model: String,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// The text of the model, or its next part.
    pub response: String,
    /// The reasoning, or its next part.
    pub thinking: Option<String>,
    /// Whether this is the end.
    pub done: bool,
    /// `stop`, `length`, `load` or `unload`; at the end.
    pub done_reason: Option<String>,
    #[serde(flatten)]
    pub figures: FiguresAtTheEnd,
}

/// The message of the model.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaReplyMessage)]
#[allow(dead_code, reason = "only its description is used")]
pub struct MessageReply {
    /// Always `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
    /// The reasoning.
    pub thinking: Option<String>,
}

/// The figures of an answer, which only its end has.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaFigures)]
#[allow(dead_code, reason = "only its description is used")]
pub struct FiguresAtTheEnd {
    /// Nanoseconds from the request to the end.
    pub total_duration: Option<u64>,
    /// Nanoseconds from the request until a host began: the wait in the queue, too.
    pub load_duration: Option<u64>,
    /// Tokens of the conversation.
    pub prompt_eval_count: Option<u64>,
    /// Nanoseconds from then to the first text.
    pub prompt_eval_duration: Option<u64>,
    /// Tokens of the answer, with those of the reasoning before it.
    pub eval_count: Option<u64>,
    /// Nanoseconds from the first text to the end.
    pub eval_duration: Option<u64>,
}

/// The figures of an answer; times are in nanoseconds, as this service measured them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// From the request to the end.
    pub total_duration: u64,
    /// From the request until a host began: the wait in the queue, too.
    pub load_duration: u64,
    /// Tokens of the conversation.
    pub prompt_eval_count: u64,
    /// From then to the first text.
    pub prompt_eval_duration: u64,
    /// Tokens of the answer, with those of the reasoning before it.
    pub eval_count: u64,
    /// From the first text to the end.
    pub eval_duration: u64,
}

/// The error of any operation.
#[derive(IntoResponses)]
#[response(
    status = 503,
    description = "The replica cannot serve this now; see Retry-After",
    content_type = "application/json"
)]
#[allow(dead_code, reason = "only its description is used")]
pub struct OllamaErrorReply(OllamaErrorObject);

/// The errors of an operation that names a model.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only their descriptions are used")]
pub enum ModelErrorReply {
    /// A field is not valid.
    #[response(
        status = 400,
        description = "A field is not valid, or the model does not support it",
        content_type = "application/json"
    )]
    Invalid(OllamaErrorObject),
    /// No host has the model.
    #[response(
        status = 404,
        description = "No host has the model",
        content_type = "application/json"
    )]
    NotFound(OllamaErrorObject),
}

/// The error of a turn that what is stored does not allow now.
#[derive(IntoResponses)]
#[response(
    status = 409,
    description = "The session of this Idempotency-Key exists already",
    content_type = "application/json"
)]
#[allow(dead_code, reason = "only its description is used")]
pub struct TurnConflictReply(OllamaErrorObject);

/// The errors of an operation that a model host works for.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only their descriptions are used")]
pub enum HostErrorReply {
    /// The model does not fit in the memory of its host.
    #[response(
        status = 500,
        description = "The model does not fit in the memory of its host",
        content_type = "application/json"
    )]
    TooLarge(OllamaErrorObject),
    /// The host failed.
    #[response(
        status = 502,
        description = "The model host failed, or its answer broke off",
        content_type = "application/json"
    )]
    Failed(OllamaErrorObject),
    /// The host, or the whole answer, took too long.
    #[response(status = 504, description = "Out of time", content_type = "application/json")]
    OutOfTime(OllamaErrorObject),
}
