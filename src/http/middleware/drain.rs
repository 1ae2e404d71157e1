//! Announces to load balancers that this replica is not serving.

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::lifecycle::{Lifecycle, Phase};

/// The header by which a load balancer requests another status instead of 503 from a replica that
/// starts or drains. A balancer such as nginx retries by the status alone, and a 503 of a replica that
/// serves (the queue is full) would be the same on every other replica.
const NOT_SERVING_STATUS: HeaderName = HeaderName::from_static("x-jarvis-not-serving");

/// Returns the status that a balancer requests: 502, or 500 where it must not repeat a 502, which is
/// also that of a model host's failure.
fn requested_status(request: &Request) -> Option<StatusCode> {
    match request.headers().get(NOT_SERVING_STATUS)?.to_str() {
        Ok("502") => Some(StatusCode::BAD_GATEWAY),
        Ok("500") => Some(StatusCode::INTERNAL_SERVER_ERROR),
        _ => None,
    }
}

/// Closes the connection after the response while the replica drains, so that a load balancer does
/// not keep it for the next request. Before and after the replica serves, a 503 becomes the status that
/// the balancer requested.
pub(super) async fn announce_drain(
    State(lifecycle): State<Lifecycle>,
    request: Request,
    next: Next,
) -> Response {
    let requested = requested_status(&request);
    let mut response = next.run(request).await;
    let is_unavailable = response.status() == StatusCode::SERVICE_UNAVAILABLE;
    if is_unavailable
        && lifecycle.phase() != Phase::Serving
        && let Some(status) = requested
    {
        *response.status_mut() = status;
    }
    if lifecycle.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
