//! What can go wrong with a model host, in words that a client may read.

use std::time::Duration;

/// Models that an error names, at most.
const NAMED: usize = 20;

/// Why a host refuses a model, whatever the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelRefusal {
    /// It does not fit in the host's memory. Another host may have more.
    Memory,
    /// The host cannot run models of its kind. Another host may have a newer release.
    Format,
    /// The model does not have this: `chat`, `thinking`. It has not on any host.
    Capability(&'static str),
}

/// To whom a failure is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// To the host: its connections fail.
    Host,
    /// To this model on this host.
    Model,
}

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
    #[error("{}", not_found(.model, .available))]
    ModelNotFound {
        /// As asked for.
        model: String,
        /// What the hosts have, in order; empty where they have none, or it is not known.
        available: Vec<String>,
    },
    /// The host cannot run the model for this request. Not a failure of the host.
    #[error("{}; choose another model", refused(.model, *.refusal))]
    ModelRefused {
        /// As the host calls it.
        model: String,
        /// Why.
        refusal: ModelRefusal,
    },
    /// The model has failed on this host again and again, and is left alone there for a while.
    #[error("the model {model} fails on its host; choose another model, or try again later")]
    ModelFailing {
        /// As the host calls it.
        model: String,
        /// When it may be tried again.
        retry_after: Duration,
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
    /// The connection to this host was lost.
    #[error("the answer broke off: the connection to the model host was lost")]
    ConnectionLost,
    /// The answer broke off while the connection was well: why.
    #[error("the answer broke off: {0}")]
    Interrupted(&'static str),
    /// The host loaded or unloaded the model instead of answering. Not a failure of the host.
    #[error("the model host did not answer, although it was asked again")]
    NotAnswered,
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
            Self::ModelRefused { refusal: ModelRefusal::Memory, .. } => "model_too_large",
            Self::ModelRefused { .. } => "model_unsupported",
            Self::ModelFailing { .. } => "model_unavailable",
            Self::Busy { .. } => "upstream_busy",
            Self::ContextTooLong { .. } => "context_too_long",
            Self::FirstTokenTimeout | Self::TokenGapTimeout | Self::ReplyTimeout => {
                "upstream_timeout"
            }
            Self::ConnectionLost | Self::Interrupted(_) => "upstream_interrupted",
            Self::Repetition => "repetition",
            Self::NotAnswered | Self::Rejected { .. } | Self::Malformed => "upstream_error",
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Setting(_)
            | Self::ModelNotFound { .. }
            | Self::ModelRefused { .. }
            | Self::ContextTooLong { .. }
            | Self::Repetition => false,
            Self::Rejected { status } => *status >= 500,
            _ => true,
        }
    }

    /// Whether another host that has the model may run it where this one refuses.
    pub fn may_differ_elsewhere(&self) -> bool {
        matches!(
            self,
            Self::ModelRefused { refusal: ModelRefusal::Memory | ModelRefusal::Format, .. }
        )
    }

    /// To whom the failure is charged; none where it is the request's, or no failure.
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

    /// When to come back, where that is known.
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
    let named = available.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match available.len().saturating_sub(NAMED) {
        _ if available.is_empty() => {
            format!("there is no model {model}; the model hosts have none yet: pull one first")
        }
        0 => format!("there is no model {model}; there are: {named}"),
        more => format!("there is no model {model}; there are: {named}, and {more} more"),
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
    fn a_missing_model_is_told_with_those_that_there_are_and_never_with_an_empty_list() {
        let told = |available: usize| {
            let available = (0..available).map(|number| format!("m{number}")).collect();
            OllamaError::ModelNotFound { model: "x".to_owned(), available }.to_string()
        };
        assert_eq!(told(0), "there is no model x; the model hosts have none yet: pull one first");
        assert_eq!(told(2), "there is no model x; there are: m0, m1");
        assert!(told(NAMED).ends_with("m18, m19"));
        assert!(told(NAMED + 5).ends_with("m19, and 5 more"));
    }
}
