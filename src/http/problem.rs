//! Errors as RFC 9457 tells them, and the extractors whose refusals are such errors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::body::HttpBody;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::Shared;
use crate::follow::FollowError;
use crate::generation::SubmitError;
use crate::http::codes::is_listed;
use crate::http::fields::{FieldError, NIL};
use crate::http::object::{NotAnObject, Object, without_mark};
use crate::session::model::Failure;
use crate::session::{SessionId, StoreError};

/// How long a request's body may take to arrive.
const BODY_LIMIT: Duration = Duration::from_secs(30);
/// How long the store may take before a client is told to come back.
const STORE_LIMIT: Duration = Duration::from_millis(2500);

/// What went wrong, as a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// Stable, `snake_case`.
    pub code: Cow<'static, str>,
    /// For people.
    pub detail: String,
    /// The fields that are not as they should be.
    pub errors: Vec<FieldError>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Seconds to wait first.
    pub retry_after: Option<u64>,
}

/// An error as it is sent: `application/problem+json`.
#[derive(Serialize, ToSchema)]
pub struct ProblemDetails<'a> {
    /// Always `about:blank`: what tells errors apart is `code`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// For people.
    detail: &'a str,
    /// Stable, `snake_case`.
    code: &'a str,
    /// The fields that are not as they should be.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
}

impl Problem {
    /// An error that stays one however often it is tried.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        debug_assert!(is_listed(code), "{code} is not in the list of codes");
        Self {
            status,
            code: Cow::Borrowed(code),
            detail: detail.into(),
            errors: Vec::new(),
            retryable: false,
            retry_after: None,
        }
    }

    /// Worth another try, after so many seconds.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retryable: true, retry_after: Some(seconds), ..self }
    }

    /// A 503.
    pub fn unavailable(code: &'static str, detail: &str, retry_after: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(retry_after)
    }

    /// Redis does not answer, or not as it should.
    pub fn store_unavailable() -> Self {
        let detail = "The session store is not available; retry after 2 s.";
        Self::unavailable("store_unavailable", detail, 2)
    }

    /// The memory of Redis is full.
    pub fn store_full() -> Self {
        let detail = "The session store is full; delete sessions that are no longer needed, or retry \
                      after 10 s.";
        Self::unavailable("store_full", detail, 10)
    }

    /// No turn can be taken with Redis as it is; why, in a few words.
    pub fn redis_unusable(trouble: &str) -> Self {
        let detail = format!("No turn can be taken, as Redis is not usable: {trouble}.");
        Self::unavailable("store_unavailable", &detail, 2)
    }

    /// This replica is on its way out.
    pub fn draining() -> Self {
        Self::unavailable("draining", "This replica is being replaced; send the request again.", 1)
    }

    /// No such generation, or nothing is kept of it.
    pub fn generation_not_found() -> Self {
        let detail = "This session has no such generation, or its answer is not kept any more.";
        Self::new(StatusCode::NOT_FOUND, "generation_not_found", detail)
    }

    /// There is nothing at the path.
    pub fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "There is nothing at this path; the API is described at /docs.",
        )
    }

    /// Something that should not happen happened.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Something failed in this service; its operator finds the cause in the log by the request's X-Request-ID.",
        )
    }

    fn invalid_json(detail: String) -> Self {
        let error = FieldError { loc: vec!["body".to_owned()], msg: detail, kind: "json_invalid" };
        Self { code: Cow::Borrowed("json_invalid"), ..Self::from(vec![error]) }
    }
}

impl From<Vec<FieldError>> for Problem {
    fn from(errors: Vec<FieldError>) -> Self {
        let detail: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self { errors, ..Self::new(status, "validation_failed", detail.join("; ")) }
    }
}

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
            StoreError::OutOfMemory => {
                tracing::warn!("the session store is full");
                Self::store_full()
            }
            StoreError::Redis(error) => {
                tracing::warn!(%error, "a call of the session store failed");
                Self::store_unavailable()
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
            SubmitError::QueueFull(failure) => failure.into(),
            SubmitError::Draining => Self::draining(),
            SubmitError::Internal => Self::internal(),
            SubmitError::Upstream { code, .. } => Self::new(upstream_status(code), code, detail),
        }
        .with_wait()
    }
}

impl From<FollowError> for Problem {
    fn from(error: FollowError) -> Self {
        match error {
            FollowError::UnknownGeneration => Self::generation_not_found(),
            FollowError::Store(error) => error.into(),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        debug_assert!(is_listed(&failure.code), "{} is not in the list of codes", failure.code);
        let errors = match &*failure.code {
            "model_too_large" => {
                vec![FieldError::new("body", "model", "model_too_large", &*failure.message)]
            }
            "model_unsupported" => {
                vec![FieldError::new("body", "model", "model_unsupported", &*failure.message)]
            }
            _ => Vec::new(),
        };
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

impl Problem {
    /// A 503 always says when to come back.
    fn with_wait(self) -> Self {
        match (self.status, self.retry_after) {
            (StatusCode::SERVICE_UNAVAILABLE, None) => self.retry_after(5),
            _ => self,
        }
    }
}

fn upstream_status(code: &str) -> StatusCode {
    match code {
        "model_not_found" => StatusCode::NOT_FOUND,
        // Another model has to be chosen: the same request fails however often it is sent.
        "model_too_large" | "model_unsupported" => StatusCode::UNPROCESSABLE_ENTITY,
        "context_too_long" => StatusCode::PAYLOAD_TOO_LARGE,
        "no_model_host" | "model_unavailable" | "upstream_busy" | "queue_full"
        | "queue_timeout" => StatusCode::SERVICE_UNAVAILABLE,
        "upstream_timeout" => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
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
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// What the store says, if it says it in time. The call is boxed: it is large, and would be part of
/// whatever waits for it.
///
/// # Errors
/// The store's, or [`Problem::store_unavailable`].
pub async fn in_time<T, E: Into<Problem>>(
    reply: impl Future<Output = Result<T, E>> + Send,
) -> Result<T, Problem> {
    match tokio::time::timeout(STORE_LIMIT, Box::pin(reply)).await {
        Ok(reply) => reply.map_err(Into::into),
        Err(_) => Err(Problem::store_unavailable()),
    }
}

/// Marks a response to a request that met no route, whose path is therefore no metric's label.
#[derive(Clone, Copy)]
pub struct NoRoute;

/// Answers for paths that there are not.
pub async fn not_found() -> Response {
    let mut response = Problem::not_found().into_response();
    response.extensions_mut().insert(NoRoute);
    response
}

/// Answers for methods that a path does not have.
pub async fn wrong_method() -> Problem {
    let detail = "This path does not take this method; the API is described at /docs.";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

/// A body that is a JSON object, whatever its Content-Type; no body is an empty one.
pub struct JsonBody(pub Object);

impl FromRequest<Shared> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Problem> {
        check_encoding(request.headers())?;
        let read = read_body(request, shared.settings.max_body_bytes);
        let body = tokio::time::timeout(BODY_LIMIT, read).await.map_err(|_| {
            let detail = "the body did not arrive in time";
            Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
        })??;
        if without_mark(&body).is_empty() {
            return Ok(Self(Object::default()));
        }
        match Object::parse(&body) {
            Ok(object) => Ok(Self(object)),
            Err(NotAnObject::OtherJson) => {
                let error = FieldError {
                    loc: vec!["body".to_owned()],
                    msg: "must be an object".to_owned(),
                    kind: "dict_type",
                };
                Err(vec![error].into())
            }
            Err(NotAnObject::Invalid(error)) => Err(Problem::invalid_json(not_json(&error))),
        }
    }
}

/// What is compressed is not read: a few bytes of it may be gigabytes of text.
fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let codings = codings.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let plain = |coding: &[u8]| {
        let coding = coding.trim_ascii();
        coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
    };
    if codings.into_iter().all(plain) {
        return Ok(());
    }
    let detail = "the body is compressed; send JSON in UTF-8 as it is, without a Content-Encoding \
        or with identity";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoding_not_supported", detail))
}

/// A body of at most `limit` bytes. What is left of a larger one is exchange.rs's to deal with.
async fn read_body(request: Request, limit: usize) -> Result<Vec<u8>, Problem> {
    let large = || {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let detail = format!("the body is larger than {limit} bytes; send less");
        Problem::new(status, "body_too_large", detail)
    };
    if request.body().size_hint().lower() > limit as u64 {
        return Err(large());
    }
    let mut chunks = request.into_body().into_data_stream();
    let mut body = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| {
            Problem::new(StatusCode::BAD_REQUEST, "body_unreadable", "the body broke off")
        })?;
        if body.len() + chunk.len() > limit {
            return Err(large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Where a text stops being JSON.
pub fn not_json(error: &serde_json::Error) -> String {
    format!("not valid JSON, at line {} column {}", error.line(), error.column())
}

/// The query's fields; of one that is given twice, the last.
pub struct QueryFields(pub Object);

impl<S: Send + Sync> FromRequestParts<S> for QueryFields {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(fields): Query<HashMap<String, String>> =
            Query::from_request_parts(parts, state).await.map_err(|_| {
                let error = FieldError {
                    loc: vec!["query".to_owned()],
                    msg: "cannot be read".to_owned(),
                    kind: "query_parsing",
                };
                Problem::from(vec![error])
            })?;
        let fields = fields.into_iter().map(|(name, value)| (name, Value::String(value)));
        Ok(Self(fields.collect::<Map<_, _>>().into()))
    }
}

/// The session that the path names.
pub struct SessionPath(pub SessionId);

impl<S: Send + Sync> FromRequestParts<S> for SessionPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await.ok();
        let session: Option<SessionId> = id.and_then(|Path(id)| id.parse().ok());
        let refused =
            |kind, msg| Problem::from(vec![FieldError::new("path", "session_id", kind, msg)]);
        let session = session.ok_or_else(|| refused("uuid_parsing", "must be a UUID"))?;
        if session.0.is_nil() {
            return Err(refused(NIL.0, NIL.1));
        }
        tracing::Span::current().record("session", session.redacted());
        Ok(Self(session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_says_what_and_when_to_come_back() {
        let response = Problem::store_unavailable().into_response();
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["retry-after"], "2");
        let body = axum::body::to_bytes(response.into_body(), 4096).await.expect("a body");
        insta::assert_snapshot!(
            String::from_utf8_lossy(&body),
            @r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"The session store is not available; retry after 2 s.","code":"store_unavailable"}"#
        );
    }

    #[test]
    fn a_failure_without_a_wait_gets_one_where_the_status_asks_for_it() {
        let failure = Failure {
            code: "no_model_host".to_owned(),
            message: "No model host can be reached; retry after 5 s.".to_owned(),
            retryable: true,
            retry_after: None,
        };
        assert_eq!(Problem::from(failure).retry_after, Some(5));
    }
}
