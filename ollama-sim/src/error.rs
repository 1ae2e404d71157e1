//! The errors that a client gets, with Ollama's statuses and texts.

use std::fmt;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// The text of an error line when a runner dies.
pub const RUNNER_DIED: &str = "an error was encountered while running the model: unexpected EOF";

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiError {
    /// 400 with this text.
    BadRequest(String),
    /// 404: no such model.
    ModelNotFound(String),
    /// 400: the model lacks a capability that the request needs.
    Unsupported {
        /// The model as the request spells it.
        model: String,
        /// The capability: `thinking`, `chat`, `generate`.
        what: &'static str,
    },
    /// 500: the model does not fit in memory.
    TooLarge,
    /// 500: the runner ended because it does not know the model's architecture.
    UnknownKind,
    /// 400: the prompt is longer than the context, and may not be cut.
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens of the context.
        num_ctx: usize,
    },
    /// 503: every slot is taken, and the queue is full.
    Busy,
    /// 500 with this text.
    Internal(String),
    /// The status of an injected fault.
    Simulated(StatusCode),
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::Unsupported { .. } | Self::PromptTooLong { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::ModelNotFound(_) => StatusCode::NOT_FOUND,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) | Self::TooLarge | Self::UnknownKind => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::Simulated(status) => *status,
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRequest(text) | Self::Internal(text) => f.write_str(text),
            Self::ModelNotFound(model) => write!(f, "model '{model}' not found"),
            Self::Unsupported { model, what } => write!(f, "{model:?} does not support {what}"),
            Self::TooLarge => f.write_str(
                "model requires more system memory (7.5 GiB) than is available (5.2 GiB)",
            ),
            Self::UnknownKind => f.write_str(
                "llama runner process has terminated: error loading model: \
                 unknown model architecture: 'alien'",
            ),
            Self::PromptTooLong { prompt_tokens, num_ctx } => {
                let message = format!(
                    "request ({prompt_tokens} tokens) exceeds the available context size ({num_ctx} tokens), try increasing it"
                );
                let inner = json!({"error": {
                    "code": 400,
                    "message": message,
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": prompt_tokens,
                    "n_ctx": num_ctx,
                }});
                write!(f, "{inner}")
            }
            Self::Busy => {
                f.write_str("server busy, please try again.  maximum pending requests exceeded")
            }
            Self::Simulated(status) => write!(f, "simulated failure {status}"),
        }
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Json(json!({"error": self.to_string()}));
        (self.status(), body).into_response()
    }
}
