//! Errors in OpenAI's envelope, with the statuses by which its SDKs choose the class to raise.

use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::params::{INVALID_TYPE, INVALID_VALUE};
use super::{headers, serves, serves_responses};
use crate::http::problem::Problem;

/// The header by which OpenAI's SDKs learn whether the same request may succeed on a retry.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The parameter of a completion with the format of its answer.
const FORMAT: &str = "response_format";

/// The name of the schema of [`ErrorEnvelope`].
pub const ERROR_SCHEMA: &str = "ErrorEnvelope";

/// An error as OpenAI's API sends it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorEnvelope {
    /// The error.
    pub error: ErrorObject,
}

/// The error in its envelope.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorObject {
    /// The text for people.
    pub message: String,
    /// The kind of the error.
    #[serde(rename = "type")]
    pub kind: String,
    /// The path of the parameter that is not valid, such as `messages[0].role`.
    pub param: Option<String>,
    /// The stable code: OpenAI's own where it has one for the error, else that of docs/PROTOCOL.md.
    pub code: Option<String>,
}

/// Writes a response to a request of this front in OpenAI's dialect, also one of a shared layer.
pub fn dialect(path: &str, mut response: Response) -> Response {
    if !serves(path) {
        return response;
    }
    headers::add_limits(&mut response);
    headers::allow_to_pages(response.headers_mut());
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    let (mut parts, _) = response.into_parts();
    parts.status = status(&problem);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    parts.headers.remove(CONTENT_LENGTH);
    if !problem.retryable {
        parts.headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    let envelope = ErrorEnvelope::from(&problem);
    let envelope = if serves_responses(path) { envelope.of_response() } else { envelope };
    Response::from_parts(parts, envelope.json().into())
}

/// Returns the envelope of an error as JSON.
pub fn error_json(problem: &Problem) -> String {
    ErrorEnvelope::from(problem).json()
}

impl ErrorEnvelope {
    /// Returns the error of a response: what a completion calls its messages is its input, and the format has
    /// another path.
    #[must_use]
    pub fn of_response(mut self) -> Self {
        let param = match (self.error.param.as_deref(), self.error.code.as_deref()) {
            (Some("messages"), _) => "input",
            // Of a parameter of that name, which a response does not have, the code is another one.
            (Some(FORMAT), Some(INVALID_VALUE)) => "text.format",
            _ => return self,
        };
        self.error.param = Some(param.to_owned());
        self
    }

    fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Returns the status of an error. Where the client has to change its request, OpenAI's is 400.
fn status(problem: &Problem) -> StatusCode {
    match (&*problem.code, problem.status) {
        ("context_too_long", _) | (_, StatusCode::UNPROCESSABLE_ENTITY) => StatusCode::BAD_REQUEST,
        (_, status) => status,
    }
}

impl From<&Problem> for ErrorEnvelope {
    fn from(problem: &Problem) -> Self {
        let status = status(problem);
        let first = problem.errors.first();
        let (code, param) = match (&*problem.code, first) {
            ("validation_failed" | "too_many_values", Some(error)) => {
                (code_of(error.kind), param(&error.loc))
            }
            ("context_too_long", _) => ("context_length_exceeded", Some("messages".to_owned())),
            (code @ ("model_not_found" | "model_too_large" | "model_unsupported"), _) => {
                (code, Some("model".to_owned()))
            }
            ("token_invalid" | "token_expired" | "token_ambiguous" | "sign_in_required", _) => {
                ("invalid_api_key", None)
            }
            (code @ "reply_too_large", _) => (code, Some("input".to_owned())),
            ("format_unsupported", _) => (INVALID_VALUE, Some(FORMAT.to_owned())),
            ("rate_limited", _) => ("rate_limit_exceeded", None),
            ("quota_exceeded", _) => ("insufficient_quota", None),
            (code, _) => (code, None),
        };
        let kind = match (status, code) {
            (StatusCode::TOO_MANY_REQUESTS, "insufficient_quota") => "insufficient_quota",
            (StatusCode::TOO_MANY_REQUESTS, _) => "requests",
            (status, _) if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        Self {
            error: ErrorObject {
                message: first.map_or_else(|| problem.detail.clone(), ToString::to_string),
                kind: kind.to_owned(),
                param,
                code: Some(code.to_owned()),
            },
        }
    }
}

/// Returns this front's code of a field error, where the shared reader of a query has another one.
fn code_of(kind: &'static str) -> &'static str {
    match kind {
        "bool_type" | "int_type" => INVALID_TYPE,
        "out_of_range" | "query_parsing" => INVALID_VALUE,
        kind => kind,
    }
}

/// Returns the parameter that an error is at: without the part of the request that it is in.
fn param(loc: &[String]) -> Option<String> {
    loc.last().filter(|_| loc.len() > 1).cloned()
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;
    use crate::http::extract::fields::FieldError;

    fn envelope(problem: &Problem) -> (u16, String, Option<String>, Option<String>) {
        let status = status(problem).as_u16();
        let ErrorObject { kind, param, code, .. } = ErrorEnvelope::from(problem).error;
        (status, kind, param, code)
    }

    #[test]
    fn each_error_has_the_status_type_param_and_code_that_openai_gives_it() {
        let some = |text: &str| Some(text.to_owned());
        let problem = |status, code| Problem::new(status, code, "text");
        for (given, wanted) in [
            (
                problem(StatusCode::NOT_FOUND, "model_not_found"),
                (404, "invalid_request_error", some("model"), some("model_not_found")),
            ),
            (
                problem(StatusCode::PAYLOAD_TOO_LARGE, "context_too_long"),
                (400, "invalid_request_error", some("messages"), some("context_length_exceeded")),
            ),
            (
                vec![FieldError::new("body", "messages[0].role", "invalid_value", "m")].into(),
                (400, "invalid_request_error", some("messages[0].role"), some("invalid_value")),
            ),
            (
                vec![FieldError::new("query", "stream", "bool_type", "m")].into(),
                (400, "invalid_request_error", some("stream"), some("invalid_type")),
            ),
            (
                vec![FieldError::new("query", "limit", "out_of_range", "m")].into(),
                (400, "invalid_request_error", some("limit"), some("invalid_value")),
            ),
            (
                problem(StatusCode::UNAUTHORIZED, "token_invalid"),
                (401, "invalid_request_error", None, some("invalid_api_key")),
            ),
            (
                problem(StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
                (429, "requests", None, some("rate_limit_exceeded")),
            ),
            (
                problem(StatusCode::TOO_MANY_REQUESTS, "quota_exceeded"),
                (429, "insufficient_quota", None, some("insufficient_quota")),
            ),
            (Problem::draining(), (503, "server_error", None, some("draining"))),
            (Problem::not_found(), (404, "invalid_request_error", None, some("not_found"))),
        ] {
            let (status, kind, param, code) = wanted;
            assert_eq!(envelope(&given), (status, kind.to_owned(), param, code));
        }
    }

    #[test]
    fn an_error_of_a_response_names_its_own_parameters() {
        let refused =
            |name: &str, kind| Problem::from(vec![FieldError::new("body", name, kind, "m")]);
        let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
        for (problem, wanted) in [
            (Problem::new(unprocessable, "format_unsupported", "text"), "text.format"),
            (Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "context_too_long", "text"), "input"),
            (refused("response_format", "unknown_parameter"), "response_format"),
            (refused("input[0].role", "invalid_value"), "input[0].role"),
        ] {
            let envelope = ErrorEnvelope::from(&problem).of_response();
            assert_eq!(envelope.error.param.as_deref(), Some(wanted));
        }
    }

    #[tokio::test]
    async fn only_errors_of_this_front_are_written_again() {
        for (path, wanted) in [
            ("/v1/chat/completions", r#"{"error":{"message":"The session"#),
            ("/v1/nothing", r#"{"error":{"message":"The session"#),
            ("/v10", r#"{"type":"about:blank""#),
            ("/api/v1/chat", r#"{"type":"about:blank""#),
        ] {
            let response = dialect(path, Problem::store_unavailable().into_response());
            assert_eq!(response.status(), 503, "{path}");
            assert_eq!(response.headers()["retry-after"], "2", "{path}");
            let body = axum::body::to_bytes(response.into_body(), 4096).await.expect("a body");
            let body = String::from_utf8_lossy(&body);
            assert!(body.starts_with(wanted), "{path}: {body}");
        }
    }
}
