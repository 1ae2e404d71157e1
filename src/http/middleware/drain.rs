//! Announces to load balancers that this replica is not serving.

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::lifecycle::{Lifecycle, Phase};

/// The header by which a load balancer requests the status 502 in place of 503 from a replica that
/// starts or drains; its value is `502`. A balancer such as nginx retries by the status alone, and
/// a 503 of a replica that serves (the queue is full) would be the same on every other replica.
const NOT_SERVING_STATUS: HeaderName = HeaderName::from_static("x-jarvis-not-serving");

/// Closes the connection after the response while the replica drains, so that a load balancer does
/// not keep it for the next request. Before and after the replica serves, a 503 becomes a 502 where
/// the balancer requested that.
pub(super) async fn announce_drain(
    State(lifecycle): State<Lifecycle>,
    request: Request,
    next: Next,
) -> Response {
    let retries_502 = request.headers().get(NOT_SERVING_STATUS).is_some_and(|it| it == "502");
    let mut response = next.run(request).await;
    let is_unavailable = response.status() == StatusCode::SERVICE_UNAVAILABLE;
    if retries_502 && is_unavailable && lifecycle.phase() != Phase::Serving {
        *response.status_mut() = StatusCode::BAD_GATEWAY;
    }
    if lifecycle.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
