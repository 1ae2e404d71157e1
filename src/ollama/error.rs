//! What can go wrong with a model host, in words that a client may read.

use std::time::Duration;

/// Why there is no answer, or no more of it.
///
/// No text here holds a host's name, its URL or its own words: those go to the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OllamaError {
    /// The fleet cannot be built from these settings.
    #[error("{0}")]
    Setting(&'static str),
    /// No host answers.
    #[error("no model host can be reached")]
    NoHost,
    /// Hosts answer, and none has the model.
    #[error("there is no model {model}")]
    ModelNotFound {
        /// As asked for.
        model: String,
        /// What the hosts have, in order; empty where it is not known.
        available: Vec<String>,
    },
    /// Every slot stayed in use, or a host's own queue is full. Not a failure of the host.
    #[error("all model hosts are busy")]
    Busy {
        /// When to come back.
        retry_after: Duration,
    },
    /// The prompt is longer than the context window.
    #[error("the conversation is too long for the model: {prompt_tokens} tokens of {num_ctx}")]
    ContextTooLong {
        /// Tokens of the prompt; 0 where the host does not tell.
        prompt_tokens: u64,
        /// Tokens of the window; 0 where the host does not tell.
        num_ctx: u64,
    },
    /// This host refuses connections.
    #[error("the model host cannot be reached")]
    Unreachable,
    /// This host could not be connected to in time.
    #[error("the model host cannot be reached in time")]
    ConnectTimeout,
    /// No token came in time.
    #[error("the model did not begin to answer in time")]
    FirstTokenTimeout,
    /// No further token came in time.
    #[error("the model stopped in the middle of its answer")]
    TokenGapTimeout,
    /// A question about the host or its models was not answered in time.
    #[error("the model host did not reply in time")]
    ReplyTimeout,
    /// The answer broke off: why.
    #[error("the answer broke off: {0}")]
    Interrupted(&'static str),
    /// The model repeated itself until its host ended the stream. An end, not a fault.
    #[error("the model repeated itself")]
    Repetition,
    /// The host refused the request.
    #[error("the model host refused the request (status {status})")]
    Rejected {
        /// Its HTTP status.
        status: u16,
    },
    /// The host sent what is not Ollama's protocol, or too much of it.
    #[error("the model host sent what cannot be understood")]
    Malformed,
}

impl OllamaError {
    /// A stable name, in `snake_case`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Setting(_) => "invalid_setting",
            Self::NoHost | Self::Unreachable | Self::ConnectTimeout => "no_model_host",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::Busy { .. } => "upstream_busy",
            Self::ContextTooLong { .. } => "context_too_long",
            Self::FirstTokenTimeout | Self::TokenGapTimeout | Self::ReplyTimeout => {
                "upstream_timeout"
            }
            Self::Interrupted(_) => "upstream_interrupted",
            Self::Repetition => "repetition",
            Self::Rejected { .. } | Self::Malformed => "upstream_error",
        }
    }

    /// Whether the same request may succeed elsewhere or later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Setting(_)
            | Self::ModelNotFound { .. }
            | Self::ContextTooLong { .. }
            | Self::Repetition => false,
            Self::Rejected { status } => *status >= 500,
            _ => true,
        }
    }

    /// Whether the host is to blame, and others may do better.
    pub(super) fn is_fault(&self) -> bool {
        match self {
            Self::Unreachable
            | Self::ConnectTimeout
            | Self::FirstTokenTimeout
            | Self::TokenGapTimeout
            | Self::ReplyTimeout
            | Self::Interrupted(_)
            | Self::Malformed => true,
            Self::Rejected { status } => *status >= 500,
            _ => false,
        }
    }

    /// When to come back, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after } => Some(*retry_after),
            _ => None,
        }
    }
}
