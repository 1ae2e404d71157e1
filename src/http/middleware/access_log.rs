//! Gives each request a span, a line in the log, and its metrics.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;
use tracing::field::Empty;

use super::request_id::RequestId;
use crate::telemetry::metric;
use crate::telemetry::traces::{self, Span, TraceContext};

/// Bytes of a logged path segment, at most. An identifier of a session is longer.
const SEGMENT_BYTES: usize = 24;
/// Digits in a logged path segment, at most. A part of an identifier has more.
const SEGMENT_DIGITS: usize = 4;
/// Segments of a logged path, at most.
const SEGMENTS: usize = 8;

/// Records a request under the route that it matched.
pub(super) async fn record(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method_label(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let is_probe = is_probe(request.uri().path());
    let mut trace = if is_probe {
        Span::default()
    } else {
        let client = TraceContext::of_client(request.headers());
        Span::of_request(client, || format!("{method} {}", route.unwrap_or_default()).into())
    };
    trace.set("http.request.method", method);
    trace.set_text("http.route", route.unwrap_or_default());
    let span = {
        let id = request.extensions().get::<RequestId>();
        // At this level the lines of every other one have its fields.
        tracing::error_span!(
            "request",
            request_id = id.and_then(|id| id.0.to_str().ok()).unwrap_or_default(),
            method,
            path = route.map_or_else(|| redacted(request.uri().path()), str::to_owned),
            session = Empty,
            generation = Empty,
            trace = Empty,
        )
    };
    traces::record_in_log(trace.context(), &span);
    let handled = traces::within(trace.context(), next.run(request));
    let response = handled.instrument(span.clone()).await;
    let elapsed = started.elapsed().as_secs_f64();
    let status = response.status().as_u16();
    trace.set("http.response.status_code", i64::from(status));
    if response.status().is_server_error() {
        trace.fail(response.status().as_str());
    }
    drop(trace);
    span.in_scope(|| {
        if is_probe {
            tracing::debug!(status, seconds = elapsed, "probe handled");
        } else {
            tracing::info!(status, seconds = elapsed, "request handled");
        }
    });
    // Clients choose a path without a route, so it must not become a label.
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

/// Returns whether a path is one that probes and Prometheus request, several times a minute each.
fn is_probe(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    path == "/metrics" || path == "/health" || path.starts_with("/health/")
}

/// Returns the label of a method. A method that clients choose must not become a label.
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

/// Returns a path without a route for the log, without the segments that may hold the identifier of
/// a session. The identifier is the only key to an anonymous session.
fn redacted(path: &str) -> String {
    let mut redacted = String::new();
    for (number, segment) in path.trim_start_matches('/').split('/').enumerate() {
        if number == SEGMENTS {
            redacted.push_str("/...");
            break;
        }
        let digits = segment.bytes().filter(u8::is_ascii_digit).count();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let is_short = segment.len() <= SEGMENT_BYTES && digits <= SEGMENT_DIGITS;
        let is_harmless = is_short && segment.bytes().all(plain);
        redacted.push('/');
        redacted.push_str(if is_harmless { segment } else { "{redacted}" });
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
