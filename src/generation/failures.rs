//! What a turn fails with: what is wrong, and when to try again.

use std::time::Duration;

use crate::ollama::OllamaError;
use crate::session::model::Failure;

/// When to come back, where nothing was measured yet.
const COME_BACK: Duration = Duration::from_secs(5);
/// What was measured may be wrong by so much.
const MARGIN: f64 = 1.3;

/// What an error of a model host is to the turn's clients.
pub(super) fn failure(error: &OllamaError) -> Failure {
    let after = error.retry_after().map_or(2, |after| after.as_secs_f64().ceil().max(1.0) as u64);
    Failure {
        code: error.code().to_owned(),
        message: error.to_string(),
        retryable: error.is_retryable(),
        retry_after: error.is_retryable().then_some(after),
    }
}

/// The queue has no room.
pub(super) fn queue_full(after: Option<Duration>) -> Failure {
    let after = after.map_or(COME_BACK, |after| after.mul_f64(MARGIN));
    later("queue_full", "The queue is full", after)
}

/// No host with the model could be reached for as long as a turn waits.
pub(super) fn no_host() -> Failure {
    later("no_model_host", "No model host can be reached", COME_BACK)
}

/// The turn waited for as long as a turn may.
pub(super) fn too_long() -> Failure {
    later("queue_timeout", "The turn waited for as long as a turn may and got no slot", COME_BACK)
}

/// A failure that passes: what is wrong, and then when to try again.
fn later(code: &str, what: &str, after: Duration) -> Failure {
    let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
    Failure {
        code: code.to_owned(),
        message: format!("{what}; retry after {seconds} s."),
        retryable: true,
        retry_after: Some(seconds),
    }
}
