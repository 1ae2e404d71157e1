//! Maps the errors of the modules below to problems: an HTTP status, a code and a text.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::StatusCode;

use crate::follow::FollowError;
use crate::generation::SubmitError;
use crate::http::codes::is_listed;
use crate::http::extract::fields::FieldError;
use crate::http::problem::Problem;
use crate::readiness::NotReady;
use crate::session::StoreError;
use crate::session::model::Failure;

/// When a caller that may store nothing more may try again, in seconds: sessions without an answer
/// expire within ten minutes.
const OVER_BUDGET_SECONDS: u64 = 60;
/// Time limit of a call of the session store.
const STORE_LIMIT: Duration = Duration::from_millis(2500);

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        match error {
            StoreError::Absent => Self::new(StatusCode::NOT_FOUND, "session_not_found", detail),
            StoreError::Busy => {
                Self { retryable: true, ..Self::new(StatusCode::CONFLICT, "session_busy", detail) }
            }
            StoreError::Full => Self::new(StatusCode::CONFLICT, "session_full", detail),
            StoreError::Occupied => Self::new(StatusCode::CONFLICT, "session_exists", detail),
            StoreError::KeyReused => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                Self::new(status, "idempotency_key_reused", detail)
            }
            StoreError::MessageAbsent => Self::message_not_found(),
            StoreError::WrongRole(msg) => {
                vec![FieldError::new("body", "message_id", "role", msg)].into()
            }
            StoreError::TooManySiblings => {
                Self::new(StatusCode::CONFLICT, "too_many_siblings", detail)
            }
            StoreError::TurnRuns(_) => {
                Self { retryable: true, ..Self::new(StatusCode::CONFLICT, "turn_running", detail) }
            }
            StoreError::ImagesAbsent => Self::store_unavailable(),
            StoreError::OutOfMemory => {
                tracing::warn!("session store full");
                Self::store_full()
            }
            StoreError::Redis(error) => {
                tracing::warn!(%error, "session store call failed");
                if error.is_permanent() {
                    Self::redis_unusable(&error.summary())
                } else {
                    Self::store_unavailable()
                }
            }
        }
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        let detail = error.to_string();
        match error {
            SubmitError::Store(error) => error.into(),
            SubmitError::ModelNotFound(_) => {
                Self::new(StatusCode::NOT_FOUND, "model_not_found", detail)
            }
            SubmitError::NoModelHost => Self::unavailable("no_model_host", &detail, 5),
            SubmitError::QueueFull(failure) | SubmitError::TooLong(failure) => failure.into(),
            SubmitError::RequestTooLarge => {
                let errors = vec![FieldError::new("body", "system", "too_long", detail.clone())];
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                Self { errors, ..Self::new(status, "validation_failed", detail) }
            }
            SubmitError::OverBudget(_) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "quota_exceeded", detail)
                    .retry_after(OVER_BUDGET_SECONDS)
            }
            SubmitError::Limited(refusal) => Self::limited(&refusal),
            SubmitError::Draining => Self::draining(),
            SubmitError::Internal => Self::internal(),
            SubmitError::Upstream { code, .. } => {
                let errors = of_field(code, &detail);
                Self { errors, ..Self::new(upstream_status(code), code, detail) }
            }
        }
        .with_wait()
    }
}

impl From<FollowError> for Problem {
    fn from(error: FollowError) -> Self {
        match error {
            FollowError::UnknownGeneration => Self::generation_not_found(),
            FollowError::Store(error) => error.into(),
            FollowError::Refused(trouble) => Self::redis_unusable(&trouble),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        debug_assert!(is_listed(&failure.code), "{} is not in the list of codes", failure.code);
        let errors = of_field(&failure.code, &failure.message);
        let problem = Self {
            code: Cow::Owned(failure.code),
            errors,
            retryable: failure.retryable,
            retry_after: failure.retry_after,
            ..Self::new(StatusCode::BAD_GATEWAY, "upstream_error", failure.message)
        };
        Self { status: upstream_status(&problem.code), ..problem }.with_wait()
    }
}

/// Returns the field that is to be changed where no host can follow a request.
fn of_field(code: &str, message: &str) -> Vec<FieldError> {
    let (field, kind) = match code {
        "model_too_large" => ("model", "model_too_large"),
        "model_unsupported" => ("model", "model_unsupported"),
        "format_unsupported" => ("format", "format_unsupported"),
        _ => return Vec::new(),
    };
    vec![FieldError::new("body", field, kind, message)]
}

fn upstream_status(code: &str) -> StatusCode {
    match code {
        "model_not_found" => StatusCode::NOT_FOUND,
        // The same request fails on every retry; the client must choose another model, or format.
        "model_too_large" | "model_unsupported" | "format_unsupported" => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        "context_too_long" | "reply_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
        "abandoned" | "no_model_host" | "model_unavailable" | "upstream_busy" | "queue_full"
        | "queue_timeout" | "store_unavailable" => StatusCode::SERVICE_UNAVAILABLE,
        "upstream_timeout" => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    }
}

impl From<NotReady> for Problem {
    fn from(reason: NotReady) -> Self {
        match reason {
            NotReady::Draining => Self::draining(),
            NotReady::TaskDied(task) => {
                let detail =
                    format!("The task \"{task}\" of this replica died; restart the replica.");
                Self::unavailable("task_died", &detail, 5)
            }
            NotReady::Redis(trouble) => Self::redis_unusable(&trouble),
            NotReady::RedisFull => Self::store_full_without_functions(),
        }
    }
}

/// Returns the reply of the store within its time limit. The call is boxed, because it would make
/// the future of every caller large.
///
/// # Errors
/// The store's, or [`Problem::store_unavailable`] after the limit.
pub async fn in_time<T, E: Into<Problem>>(
    reply: impl Future<Output = Result<T, E>> + Send,
) -> Result<T, Problem> {
    match tokio::time::timeout(STORE_LIMIT, Box::pin(reply)).await {
        Ok(reply) => reply.map_err(Into::into),
        Err(_) => Err(Problem::store_unavailable()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_with_status_503_gets_a_time_to_retry() {
        let failure = Failure {
            code: "no_model_host".to_owned(),
            message: "No model host can be reached; retry after 5 s.".to_owned(),
            retryable: true,
            retry_after: None,
        };
        assert_eq!(Problem::from(failure).retry_after, Some(5));
    }
}
