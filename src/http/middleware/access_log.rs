//! Each request has a span, a line in the log, and its metrics.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;
use tracing::field::Empty;

use super::request_id::RequestId;
use crate::telemetry::metric;

/// The longest part of a path that may stand in the log; an identifier of a session is longer.
const LOGGED_PART: usize = 24;
/// Digits in such a part, at most: a piece of an identifier has more.
const LOGGED_DIGITS: usize = 4;
/// Parts of a path in the log, at most.
const LOGGED_PARTS: usize = 8;

/// Records a request under the route that it matched.
pub(super) async fn record(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method_label(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let span = {
        let id = request.extensions().get::<RequestId>();
        tracing::info_span!(
            "request",
            request_id = id.and_then(|id| id.0.to_str().ok()).unwrap_or_default(),
            method,
            path = route.map_or_else(|| redacted(request.uri().path()), str::to_owned),
            session = Empty,
            generation = Empty,
        )
    };
    let response = next.run(request).instrument(span.clone()).await;
    let elapsed = started.elapsed().as_secs_f64();
    let status = response.status().as_u16();
    span.in_scope(|| tracing::info!(status, seconds = elapsed, "answered"));
    // A path without a route is no label: clients choose it.
    let route = route.unwrap_or("none").to_owned();
    metrics::counter!(
        metric::HTTP_REQUESTS_TOTAL,
        "method" => method, "route" => route.clone(), "status" => status.to_string(),
    )
    .increment(1);
    metrics::histogram!(metric::HTTP_REQUEST_SECONDS, "method" => method, "route" => route)
        .record(elapsed);
    response
}

/// Only names that are known: a label that clients choose would grow without bound.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

/// A path that no route has, for the log: without the parts that may hold the identifier of a
/// session, which is the only key of an anonymous one.
fn redacted(path: &str) -> String {
    let mut redacted = String::new();
    for (number, part) in path.trim_start_matches('/').split('/').enumerate() {
        if number == LOGGED_PARTS {
            redacted.push_str("/...");
            break;
        }
        let digits = part.bytes().filter(u8::is_ascii_digit).count();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let harmless =
            part.len() <= LOGGED_PART && digits <= LOGGED_DIGITS && part.bytes().all(plain);
        redacted.push('/');
        redacted.push_str(if harmless { part } else { "{redacted}" });
    }
    redacted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_identifier_of_a_session_is_left_in_a_path() {
        let id = "6b1f0c3e-52a4-4c1d-9a57-3f0d84be2c16";
        let simple = id.replace('-', "");
        let encoded = id.replace("6b", "%36%62");
        for id in [id, &*simple, &*encoded, &format!("urn:uuid:{id}"), &id.to_uppercase()] {
            let path = redacted(&format!("/api/v1/chat/session/{id}/messages"));
            assert_eq!(path, "/api/v1/chat/session/{redacted}/messages", "{id}");
        }
        assert_eq!(redacted("/"), "/");
        assert_eq!(redacted("/wp-login.php"), "/wp-login.php");
        assert_eq!(redacted(&"/a".repeat(100)), format!("{}/...", "/a".repeat(8)));
    }
}
