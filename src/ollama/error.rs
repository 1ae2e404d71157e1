//! The errors of model hosts, with texts that a client may read.

use std::time::Duration;

/// Models that an error lists, at most.
const LISTED_MODELS: usize = 20;

/// Why a host refuses a model, whatever the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelRefusal {
    /// The model does not fit in the host's memory. Another host may have more.
    Memory,
    /// The host cannot run models of this kind. Another host may have a newer release.
    Format,
    /// The model lacks this capability, such as `chat` or `thinking`, on every host.
    Capability(&'static str),
}

/// The breaker that a failure counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The host's, as a connection failed.
    Host,
    /// The model's on this host.
    Model,
}

/// Why a request to a host failed, or why an answer broke off.
///
/// No text here holds a host's name, its URL or the text of its error: those go to the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OllamaError {
    /// The fleet cannot be built from these settings.
    #[error("{0}")]
    Setting(&'static str),
    /// No host replies.
    #[error("no model host can be reached")]
    NoHost,
    /// Hosts reply, and no host has the model.
    #[error("{}", not_found(.model, .available))]
    ModelNotFound {
        /// The name in the request.
        model: String,
        /// The models of the hosts, in order; empty where there are none, or they are not known.
        available: Vec<String>,
    },
    /// The host cannot run the model for this request. This is no fault of the host.
    #[error("{}; choose another model", refused(.model, *.refusal))]
    ModelRefused {
        /// The model's name on the host.
        model: String,
        /// The reason.
        refusal: ModelRefusal,
    },
    /// The host cannot make the model's answer obey the format of the request. This is no fault of
    /// the host.
    #[error(
        "the model host cannot follow the JSON schema of the answer's format; send another schema"
    )]
    FormatRefused,
    /// The breaker of the model on this host is open.
    #[error("the model {model} fails on its host; choose another model, or try again later")]
    ModelFailing {
        /// The model's name on the host.
        model: String,
        /// The time after which a retry may succeed.
        retry_after: Duration,
    },
    /// Every slot stayed in use, or the host's own queue is full. This is no fault of the host.
    #[error("all model hosts are busy")]
    Busy {
        /// The time after which a retry may succeed.
        retry_after: Duration,
    },
    /// The prompt is longer than the context window.
    #[error("the conversation is too long for the model: {prompt_tokens} tokens of {num_ctx}")]
    ContextTooLong {
        /// Tokens of the prompt; 0 where the host does not report them.
        prompt_tokens: u64,
        /// Tokens of the context window; 0 where the host does not report them.
        num_ctx: u64,
    },
    /// This host refuses connections.
    #[error("the model host cannot be reached")]
    Unreachable,
    /// The connection to this host was not established in time.
    #[error("the model host cannot be reached in time")]
    ConnectTimeout,
    /// No token came in time.
    #[error("the model did not begin to answer in time")]
    FirstTokenTimeout,
    /// No further token came in time.
    #[error("the model stopped in the middle of its answer")]
    TokenGapTimeout,
    /// The host did not reply in time to a request that needs no model.
    #[error("the model host did not reply in time")]
    ReplyTimeout,
    /// The connection to this host was lost.
    #[error("the answer broke off: the connection to the model host was lost")]
    ConnectionLost,
    /// The answer broke off for this reason, although the connection still worked.
    #[error("the answer broke off: {0}")]
    Interrupted(&'static str),
    /// The host loaded or unloaded the model instead of answering. This is no fault of the host.
    #[error("the model host did not answer, although it was asked again")]
    NotAnswered,
    /// The model repeated itself until its host ended the stream. This is no fault of the host.
    #[error("the model repeated itself")]
    Repetition,
    /// The host refused the request.
    #[error("the model host refused the request (status {status})")]
    Rejected {
        /// The HTTP status of the refusal.
        status: u16,
    },
    /// The host's reply is not in Ollama's protocol, or too large.
    #[error("the model host sent what cannot be understood")]
    Malformed,
    /// The host's reply to a request with several texts is too large, or late. This is no fault of the
    /// host: fewer texts at a time may do.
    #[error("the texts are too many for one request to a model host; send fewer")]
    TooManyTexts,
    /// The vector of one text is larger than any reply may be. This is no fault of the host, which
    /// did what it was asked for.
    #[error("the vectors are larger than a reply may be; ask for fewer dimensions")]
    ReplyTooLarge,
}

impl OllamaError {
    /// Returns the stable code of the error, in `snake_case`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Setting(_) => "invalid_setting",
            Self::NoHost | Self::Unreachable | Self::ConnectTimeout => "no_model_host",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::ModelRefused { refusal: ModelRefusal::Memory, .. } => "model_too_large",
            Self::ModelRefused { .. } => "model_unsupported",
            Self::FormatRefused => "format_unsupported",
            Self::ModelFailing { .. } => "model_unavailable",
            Self::Busy { .. } => "upstream_busy",
            Self::ContextTooLong { .. } => "context_too_long",
            Self::FirstTokenTimeout
            | Self::TokenGapTimeout
            | Self::ReplyTimeout
            | Self::TooManyTexts => "upstream_timeout",
            Self::ReplyTooLarge => "reply_too_large",
            Self::ConnectionLost | Self::Interrupted(_) => "upstream_interrupted",
            Self::Repetition => "repetition",
            Self::NotAnswered | Self::Rejected { .. } | Self::Malformed => "upstream_error",
        }
    }

    /// Returns whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Setting(_)
            | Self::ModelNotFound { .. }
            | Self::ModelRefused { .. }
            | Self::FormatRefused
            | Self::ContextTooLong { .. }
            | Self::TooManyTexts
            | Self::ReplyTooLarge
            | Self::Repetition => false,
            Self::Rejected { status } => *status >= 500,
            _ => true,
        }
    }

    /// Returns whether another host that has the model may run it.
    pub fn may_differ_elsewhere(&self) -> bool {
        matches!(
            self,
            Self::ModelRefused { refusal: ModelRefusal::Memory | ModelRefusal::Format, .. }
        )
    }

    /// Returns the breaker that the failure counts for; `None` for a refusal.
    pub(super) fn fault(&self) -> Option<Fault> {
        match self {
            Self::Unreachable | Self::ConnectTimeout | Self::ConnectionLost => Some(Fault::Host),
            Self::FirstTokenTimeout
            | Self::TokenGapTimeout
            | Self::ReplyTimeout
            | Self::Interrupted(_)
            | Self::Malformed => Some(Fault::Model),
            Self::Rejected { status } if *status >= 500 => Some(Fault::Model),
            _ => None,
        }
    }

    /// Returns the time after which a retry may succeed, where it is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after } | Self::ModelFailing { retry_after, .. } => {
                Some(*retry_after)
            }
            _ => None,
        }
    }
}

fn not_found(model: &str, available: &[String]) -> String {
    let listed: Vec<&str> = available.iter().take(LISTED_MODELS).map(String::as_str).collect();
    let listed = listed.join(", ");
    match available.len().saturating_sub(LISTED_MODELS) {
        _ if available.is_empty() => {
            format!("there is no model {model}; the model hosts have none yet: pull one first")
        }
        0 => format!("there is no model {model}; there are: {listed}"),
        more => format!("there is no model {model}; there are: {listed}, and {more} more"),
    }
}

fn refused(model: &str, refusal: ModelRefusal) -> String {
    match refusal {
        ModelRefusal::Memory => format!("the model {model} needs more memory than its host has"),
        ModelRefusal::Format => format!("the model host cannot run models like {model}"),
        ModelRefusal::Capability(what) => format!("the model {model} does not support {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_missing_model_lists_the_models_and_never_an_empty_list() {
        let text = |available: usize| {
            let available = (0..available).map(|number| format!("m{number}")).collect();
            OllamaError::ModelNotFound { model: "x".to_owned(), available }.to_string()
        };
        assert_eq!(text(0), "there is no model x; the model hosts have none yet: pull one first");
        assert_eq!(text(2), "there is no model x; there are: m0, m1");
        assert!(text(LISTED_MODELS).ends_with("m18, m19"));
        assert!(text(LISTED_MODELS + 5).ends_with("m19, and 5 more"));
    }
}
