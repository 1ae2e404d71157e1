//! The error responses that several handlers share, for the API's description.
#![allow(dead_code, reason = "only their descriptions are used")]

use utoipa::IntoResponses;

use crate::http::problem::ProblemDetails;

/// The response where the caller has no such session.
#[derive(IntoResponses)]
#[response(
    status = 404,
    description = "The caller has no such session",
    content_type = "application/problem+json"
)]
pub struct SessionNotFound(ProblemDetails<'static>);

/// The response to a request with invalid fields.
#[derive(IntoResponses)]
#[response(
    status = 422,
    description = "A field is not valid; `errors` names each",
    content_type = "application/problem+json"
)]
pub struct InvalidFields(ProblemDetails<'static>);

/// The response of a replica that cannot serve the request now.
#[derive(IntoResponses)]
#[response(
    status = 503,
    description = "The replica cannot serve this now; see `code` and Retry-After",
    content_type = "application/problem+json"
)]
pub struct Unavailable(ProblemDetails<'static>);

/// The response to a client whose address has its largest number of sockets and streams.
#[derive(IntoResponses)]
#[response(
    status = 429,
    description = "This address has as many open sockets and streams as it may have; see Retry-After",
    content_type = "application/problem+json"
)]
pub struct TooManyConnections(ProblemDetails<'static>);

/// The response to a caller that may store nothing more.
#[derive(IntoResponses)]
#[response(
    status = 429,
    description = "As much is stored for this caller as there may be; see `code` and Retry-After",
    content_type = "application/problem+json"
)]
pub struct OverBudgetReply(ProblemDetails<'static>);

/// The responses to a turn that has no answer.
#[derive(IntoResponses)]
pub enum TurnFailed {
    /// The body, the message or the context is too long.
    #[response(status = 413, description = "Too long", content_type = "application/problem+json")]
    TooLong(ProblemDetails<'static>),
    /// The host ended its answer before the end, or has none.
    #[response(
        status = 502,
        description = "The answer broke off",
        content_type = "application/problem+json"
    )]
    BrokeOff(ProblemDetails<'static>),
    /// The answer did not end within its time.
    #[response(
        status = 504,
        description = "Out of time",
        content_type = "application/problem+json"
    )]
    OutOfTime(ProblemDetails<'static>),
}
