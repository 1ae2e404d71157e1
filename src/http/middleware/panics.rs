//! A panic in the handling of a request ends that request, and nothing else.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::problem::Problem;
use crate::lifecycle::catch_panic;

/// Responds with `internal` to a request whose handling panicked. It is inside the layer that logs
/// and counts requests, so that such a response is counted, too. tower-http's layer would neither
/// log nor count the panic in the form of all others.
pub async fn catch(request: Request, next: Next) -> Response {
    let handled = catch_panic("request", next.run(request)).await;
    handled.unwrap_or_else(|_| Problem::internal().into_response())
}
