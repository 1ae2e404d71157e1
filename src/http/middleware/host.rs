//! Checks the Host header against the allow-list.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::AllowLists;
use crate::http::problem::Problem;

/// Refuses a request whose Host is not in a list that is set.
pub(super) async fn check(
    State(lists): State<Arc<AllowLists>>,
    request: Request,
    next: Next,
) -> Response {
    match check_host(&lists.hosts, request.headers(), request.uri()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Checks the Host against the list. Probes and Prometheus use an address, so they always pass.
fn check_host(allowed: &[String], headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let path = uri.path();
    if allowed.is_empty() || path.starts_with("/health") || path == "/metrics" {
        return Ok(());
    }
    let host = host(headers, uri).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let matches =
        |listed: &String| listed.eq_ignore_ascii_case(name) || listed.eq_ignore_ascii_case(host);
    if allowed.iter().any(matches) {
        return Ok(());
    }
    let detail = "this service is not known by this Host; its operator can list it in \
        JARVIS_ALLOWED_HOSTS (--allowed-hosts)";
    Err(Problem::new(StatusCode::FORBIDDEN, "host_not_allowed", detail))
}

/// Returns the host that a request names.
pub(super) fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    match headers.get(header::HOST) {
        Some(host) => host.to_str().ok(),
        None => uri.authority().map(axum::http::uri::Authority::as_str),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_host_is_checked_where_a_list_is_set() {
        let check = |host, path| {
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))]);
            check_host(&["a.example".to_owned()], &headers, &Uri::from_static(path)).is_ok()
        };
        assert!(check("a.example", "/ws"));
        assert!(check("A.example:10200", "/ws"));
        assert!(!check("b.example", "/ws"));
        assert!(check("10.0.0.7:10200", "/health/ready"));
    }
}
