//! Error responses in the form of RFC 9457.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::codes::is_listed;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::{TOO_MANY_FIELDS_TEXT, TOO_MANY_VALUES};
use crate::http::rate_limit::Standings;
use crate::limits::{LimitRefusal, Standing};
use crate::sign_in::SignInError;

/// An error for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// The stable code, in `snake_case`.
    pub code: Cow<'static, str>,
    /// The text for people.
    pub detail: String,
    /// The fields that are not valid.
    pub errors: Vec<FieldError>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Seconds before a retry.
    pub retry_after: Option<u64>,
    /// The state of the limits that refuse the request, or from which its refusal takes.
    pub standings: Option<Box<Standings>>,
}

/// The body of an error response: `application/problem+json`.
#[derive(Serialize, ToSchema)]
pub struct ProblemDetails<'a> {
    /// Always `about:blank`; `code` distinguishes errors.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The name of the status.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// The text for people.
    detail: &'a str,
    /// The stable code, in `snake_case`.
    code: &'a str,
    /// The fields that are not valid.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
}

impl Problem {
    /// Creates an error that no retry can avoid.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        debug_assert!(is_listed(code), "{code} is not in the list of codes");
        Self {
            status,
            code: Cow::Borrowed(code),
            detail: detail.into(),
            errors: Vec::new(),
            retryable: false,
            retry_after: None,
            standings: None,
        }
    }

    /// Makes the error retryable after so many seconds.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retryable: true, retry_after: Some(seconds), ..self }
    }

    /// Creates a 503, retryable after so many seconds.
    pub fn unavailable(code: &'static str, detail: &str, retry_after: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(retry_after)
    }

    /// Returns the error of a Redis that does not reply, or replies with an error.
    pub fn store_unavailable() -> Self {
        let detail = "The session store is not available; retry after 2 s.";
        Self::unavailable("store_unavailable", detail, 2)
    }

    /// Returns the error of a Redis whose memory is full.
    pub fn store_full() -> Self {
        let detail = "The session store is full; delete sessions that are no longer needed, or retry \
                      after 10 s.";
        Self::unavailable("store_full", detail, 10)
    }

    /// Returns the error of a Redis that was full before the functions were loaded.
    pub fn store_full_without_functions() -> Self {
        let detail = "The memory of Redis is full, and its functions do not fit; raise its maxmemory \
                      or delete data, and turns are accepted a second later.";
        Self::unavailable("store_full", detail, 10)
    }

    /// Returns the error of a Redis that cannot accept turns, for the reason in `trouble`.
    pub fn redis_unusable(trouble: &str) -> Self {
        let detail =
            format!("No turn can be accepted, as Redis is not usable: {trouble}; retry after 2 s.");
        Self::unavailable("store_unavailable", &detail, 2)
    }

    /// Returns the error of a replica that drains.
    pub fn draining() -> Self {
        Self::unavailable("draining", "This replica is being replaced; send the request again.", 1)
    }

    /// Returns the error of a message that the session does not have, or not on the selected branch.
    pub fn message_not_found() -> Self {
        let detail = "This session has no such message; read its history.";
        Self::new(StatusCode::NOT_FOUND, "message_not_found", detail)
    }

    /// Returns the error of an image that the session does not have.
    pub fn image_not_found() -> Self {
        let detail = "This session has no such image; its messages name those that it has.";
        Self::new(StatusCode::NOT_FOUND, "image_not_found", detail)
    }

    /// Returns the error of a generation that is unknown, or whose answer is no longer stored.
    pub fn generation_not_found() -> Self {
        let detail = "This session has no such generation, or its answer is no longer kept.";
        Self::new(StatusCode::NOT_FOUND, "generation_not_found", detail)
    }

    /// Returns the error of a path without a route.
    pub fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "There is nothing at this path; the API is described at /docs.",
        )
    }

    /// Returns the error of a fault in this service.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Something failed in this service; its operator finds the cause in the log by the request's X-Request-ID.",
        )
    }

    /// Returns the error of a body that is not JSON; `detail` names the position.
    pub fn invalid_json(detail: String) -> Self {
        let error = FieldError { loc: vec!["body".to_owned()], msg: detail, kind: "json_invalid" };
        Self { code: Cow::Borrowed("json_invalid"), ..Self::from(vec![error]) }
    }

    /// Returns the error of a body with more fields than one may have.
    pub fn too_many_fields() -> Self {
        let (loc, msg) = (vec!["body".to_owned()], TOO_MANY_FIELDS_TEXT.to_owned());
        vec![FieldError { loc, msg, kind: TOO_MANY_VALUES }].into()
    }

    /// Returns the error of a caller that is not signed in.
    pub fn not_signed_in(error: &SignInError) -> Self {
        let code = match error {
            SignInError::Required => "sign_in_required",
            SignInError::Ambiguous => "token_ambiguous",
            SignInError::Invalid(_) => "token_invalid",
            SignInError::Expired => "token_expired",
            SignInError::OtherUser => "token_of_another",
            SignInError::NoKeys => {
                return Self::unavailable("issuer_unavailable", &error.to_string(), 10);
            }
            SignInError::Redis(error) if error.is_permanent() => {
                return Self::redis_unusable(&error.summary());
            }
            SignInError::Redis(_) => return Self::store_unavailable(),
        };
        Self::new(StatusCode::UNAUTHORIZED, code, error.to_string())
    }

    /// Returns the error of a stream whose caller's API key was revoked.
    pub fn key_revoked() -> Self {
        Self::not_signed_in(&SignInError::Invalid("the API key has been revoked"))
    }

    /// Returns the error of a request that a limit refuses.
    pub fn limited(refusal: &LimitRefusal) -> Self {
        let (status, code) = (StatusCode::TOO_MANY_REQUESTS, refusal.kind().code());
        let problem = Self::new(status, code, refusal.to_string());
        let standings = Some(Box::new(Standings(refusal.standings.clone())));
        Self { standings, ..problem }.retry_after(refusal.retry_seconds())
    }

    /// Reports what is left of these limits, from which the refused request took.
    #[must_use]
    pub fn with_standings(self, standings: Vec<Standing>) -> Self {
        let standings = Some(Box::new(Standings(standings))).filter(|it| !it.0.is_empty());
        Self { standings, ..self }
    }

    /// Adds a time to retry to a 503 without one.
    #[must_use]
    pub fn with_wait(self) -> Self {
        match (self.status, self.retry_after) {
            (StatusCode::SERVICE_UNAVAILABLE, None) => self.retry_after(5),
            _ => self,
        }
    }
}

impl From<Vec<FieldError>> for Problem {
    fn from(errors: Vec<FieldError>) -> Self {
        let detail: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        // A client that sends too much can know it by the code, whichever the fields are.
        let is_too_large = errors.iter().any(|error| error.kind == TOO_MANY_VALUES);
        let code = if is_too_large { TOO_MANY_VALUES } else { "validation_failed" };
        Self { errors, ..Self::new(status, code, detail.join("; ")) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemDetails {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: &self.code,
            errors: &self.errors,
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, kind);
        if self.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = match &*self.code {
                // No error: the caller may not know that a token is needed (RFC 6750, section 3).
                "sign_in_required" => "Bearer",
                "token_ambiguous" => "Bearer error=\"invalid_request\"",
                _ => "Bearer error=\"invalid_token\"",
            };
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        let mut problem = self;
        if let Some(standings) = problem.standings.take() {
            response.extensions_mut().insert(*standings);
        }
        // A front with another form of errors writes the response again.
        response.extensions_mut().insert(problem);
        response
    }
}

/// Responds to a path without a route.
pub async fn not_found() -> Problem {
    Problem::not_found()
}

/// Responds to a method that the path does not support.
pub async fn wrong_method() -> Problem {
    let detail = "This path does not support this method; the API is described at /docs.";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_names_the_error_and_the_time_to_retry() {
        let response = Problem::store_unavailable().into_response();
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["retry-after"], "2");
        let body = axum::body::to_bytes(response.into_body(), 4096).await.expect("a body");
        insta::assert_snapshot!(
            String::from_utf8_lossy(&body),
            @r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"The session store is not available; retry after 2 s.","code":"store_unavailable"}"#
        );
    }
}
