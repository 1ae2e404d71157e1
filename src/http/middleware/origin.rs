//! The web origins that may call the service: CORS, and the requests that browsers send without a
//! preflight.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::AllowLists;
use super::host::host;
use crate::config::origins;
use crate::http::problem::Problem;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// The response to a preflight request. tower-http's layer is not used: it answers every OPTIONS
/// request, and one that is no preflight gets a 405 here, as every method that a path lacks.
const PREFLIGHT: &[(HeaderName, &str)] = &[
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PATCH, DELETE"),
    (
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        "authorization, content-type, idempotency-key, last-event-id, x-request-id",
    ),
    (header::ACCESS_CONTROL_MAX_AGE, "600"),
];
const READABLE: &[(HeaderName, &str)] = &[(
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    "ratelimit, ratelimit-policy, retry-after, www-authenticate, x-request-id",
)];

/// Lets the pages of listed origins call, and refuses the requests of other pages that change
/// something. CORS alone does not stop a request without a preflight, such as one with a body without
/// a Content-Type, which is read as JSON.
pub(super) async fn check(
    State(lists): State<Arc<AllowLists>>,
    request: Request,
    next: Next,
) -> Response {
    let (headers, uri) = (request.headers(), request.uri());
    let listed = headers.get(header::ORIGIN).filter(|it| is_listed(&lists.origins, it)).cloned();
    let Some(origin) = listed else {
        if changes_something(request.method(), headers)
            && let Err(problem) = check_origin(headers, uri)
        {
            return problem.into_response();
        }
        return next.run(request).await;
    };
    let preflight = request.method() == Method::OPTIONS
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response =
        if preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    for (name, value) in if preflight { PREFLIGHT } else { READABLE } {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn changes_something(method: &Method, headers: &HeaderMap) -> bool {
    let handshake = headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    handshake || !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Returns whether an origin is in the list.
fn is_listed(allowed: &[String], origin: &HeaderValue) -> bool {
    let named = || {
        let origin = origin.to_str().ok().map(origins::canonical);
        origin.is_some_and(|origin| allowed.iter().any(|allowed| *allowed == origin))
    };
    allowed.iter().any(|allowed| allowed == origins::ANY) || (!allowed.is_empty() && named())
}

/// Checks that a request comes from a page of this service, or from a program. Only a browser sends
/// the origin of a page.
fn check_origin(headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let foreign = match headers.get(header::ORIGIN) {
        Some(origin) => {
            let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            match (origin, host(headers, uri)) {
                (Some((scheme, authority)), Some(host)) => {
                    let port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
                    let bare = |name: &str| name.strip_suffix(port).unwrap_or(name).to_lowercase();
                    bare(authority) != bare(host)
                }
                _ => true,
            }
        }
        None => false,
    };
    let cross_site = headers.get(FETCH_SITE).is_some_and(|site| site == "cross-site");
    if foreign || cross_site {
        let detail = "This origin may not call this service; its operator can list it in \
            JARVIS_ALLOWED_ORIGINS (--allowed-origins).";
        return Err(Problem::new(StatusCode::FORBIDDEN, "origin_not_allowed", detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    fn passes(pairs: &[(&'static str, &'static str)]) -> bool {
        check_origin(&headers(pairs), &Uri::from_static("/")).is_ok()
    }

    #[test]
    fn a_foreign_page_is_refused_and_a_program_is_not() {
        assert!(passes(&[("host", "a.example")]));
        assert!(passes(&[("host", "a.example"), ("origin", "https://a.example")]));
        assert!(passes(&[("host", "A.example:443"), ("origin", "https://a.example")]));
        assert!(passes(&[("host", "127.0.0.1:10200"), ("origin", "http://127.0.0.1:10200")]));
        assert!(!passes(&[("host", "127.0.0.1:10200"), ("origin", "http://127.0.0.1:3000")]));
        assert!(!passes(&[("host", "a.example"), ("origin", "https://b.example")]));
        assert!(!passes(&[("host", "a.example"), ("origin", "null")]));
        assert!(!passes(&[("origin", "https://a.example")]));
        assert!(!passes(&[("host", "a.example"), ("sec-fetch-site", "cross-site")]));
    }

    #[test]
    fn an_origin_is_listed_with_and_without_its_default_port() {
        let listed = |allowed: &str, origin: &'static str| {
            let allowed = origins::listed_origin(allowed).expect("an origin");
            is_listed(&[allowed], &HeaderValue::from_static(origin))
        };
        assert!(listed("https://h:443", "https://h"));
        assert!(listed("https://h", "https://h:443"));
        assert!(listed("http://h:80", "http://h"));
        assert!(listed("HTTPS://H/", "https://h"));
        assert!(listed("*", "null"));
        assert!(!listed("https://h", "http://h"));
        assert!(!listed("https://h", "https://h:444"));
        assert!(!listed("https://h", "https://h.evil.example"));
        assert!(!listed("https://h", "null"));
    }
}
