//! The failures of turns: each names what is wrong, and when to try again.

use std::time::Duration;

use crate::ollama::OllamaError;
use crate::session::model::Failure;

/// The time until a retry, where no time was measured yet.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The measured time is multiplied by this, because it is an estimate.
const MARGIN: f64 = 1.3;

/// Returns the failure that the turn's clients get for an error of a model host.
pub(super) fn failure(error: &OllamaError) -> Failure {
    let after = error.retry_after().map_or(2, |after| after.as_secs_f64().ceil().max(1.0) as u64);
    Failure {
        code: error.code().to_owned(),
        message: error.to_string(),
        retryable: error.is_retryable(),
        retry_after: error.is_retryable().then_some(after),
    }
}

/// Returns the failure of a turn for which the queue has no room.
pub(super) fn queue_full(after: Option<Duration>) -> Failure {
    let after = after.map_or(RETRY_AFTER, |after| after.mul_f64(MARGIN));
    later("queue_full", "The queue is full", after)
}

/// Returns the failure of a turn whose texts there is no room for.
pub(super) fn texts_full() -> Failure {
    let what = "The texts of the requests that wait take as much memory as they may, and those of one \
        address a quarter of it; send less text";
    later("queue_full", what, RETRY_AFTER)
}

/// Returns the failure of a turn that waited as long as it may for a host with its model.
pub(super) fn no_host() -> Failure {
    later("no_model_host", "No model host can be reached", RETRY_AFTER)
}

/// Returns the failure of a turn that waited as long as it may for a slot.
pub(super) fn too_long() -> Failure {
    later("queue_timeout", "The turn waited for as long as a turn may and got no slot", RETRY_AFTER)
}

/// Returns the failure of a turn that waited while nobody listened, and others needed its position.
pub(super) fn abandoned() -> Failure {
    later("abandoned", "The turn waited while nobody listened to its session", RETRY_AFTER)
}

/// Returns the failure of a turn that waited while Redis refused what turns need. `trouble` is what
/// is wrong, without a host, user or secret.
pub(super) fn refused(trouble: &str) -> Failure {
    later("store_unavailable", &format!("Redis is not usable: {trouble}"), RETRY_AFTER)
}

/// Returns the failure of a turn whose model called this tool with arguments that do not obey its schema.
pub(super) fn call_invalid(name: &str) -> Failure {
    let name = &name[..name.floor_char_boundary(64)];
    Failure {
        code: "tool_call_invalid".to_owned(),
        message: format!(
            "The model called the tool {name:?} with arguments that do not obey its schema; ask again, or \
             leave strict out."
        ),
        retryable: false,
        retry_after: None,
    }
}

/// Returns a temporary failure, whose message is `what` and then when to try again.
fn later(code: &str, what: &str, after: Duration) -> Failure {
    let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
    Failure {
        code: code.to_owned(),
        message: format!("{what}; retry after {seconds} s."),
        retryable: true,
        retry_after: Some(seconds),
    }
}
