//! The headers by which browsers treat every response, errors included.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

/// The policy of a response that is no page.
const CLOSED_POLICY: &str =
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The policy of the page at `/docs`: its own scripts, styles in its elements, and pictures in its styles.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; font-src 'self' data:; connect-src 'self'; base-uri 'self'; \
    form-action 'none'; frame-ancestors 'none'";
/// The policy of the page at `/`: its own files, and this service's API. No text becomes HTML or a script
/// anywhere in it (Trusted Types), and nothing is loaded from another place. The images of a user's own
/// files have addresses within the tab (`blob:`).
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// The headers of every response.
const ALWAYS: [(HeaderName, &str); 3] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
];

/// Adds the headers to the response of every request.
pub(super) async fn secure(request: Request, next: Next) -> Response {
    let kind = PathKind::of(request.uri().path());
    let mut response = next.run(request).await;
    add(kind, &mut response);
    response
}

/// Adds the headers to a response that passed no middleware.
pub fn secured(path: &str, mut response: Response) -> Response {
    add(PathKind::of(path), &mut response);
    response
}

/// The kind of content at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PathKind {
    /// The page that displays the API's description, and its files.
    Docs,
    /// The page, to a browser, and what the service is, to a program.
    Root,
    /// The service's own content, which is the same for every caller.
    Public,
    /// Everything else, which may belong to a caller.
    Callers,
}

impl PathKind {
    fn of(path: &str) -> Self {
        match path.trim_end_matches('/') {
            "" => Self::Root,
            "/docs" => Self::Docs,
            path if path.starts_with("/docs/") => Self::Docs,
            "/openapi.json" => Self::Public,
            path if path.starts_with("/app/") => Self::Public,
            _ => Self::Callers,
        }
    }
}

fn add(kind: PathKind, response: &mut Response) {
    // It is no document, and no cache stores it.
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    let is_success = response.status().is_success();
    // A browser takes over the headers of "not modified" for the page that it has.
    let is_page = response.status() == StatusCode::NOT_MODIFIED;
    let headers = response.headers_mut();
    for (name, value) in ALWAYS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let policy = match kind {
        PathKind::Docs => DOCS_POLICY,
        PathKind::Root if is_page || is_page_type(headers) => PAGE_POLICY,
        _ => CLOSED_POLICY,
    };
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    // An event stream has its own rule, and so have the page and its parts.
    if (matches!(kind, PathKind::Callers | PathKind::Root) || !is_success)
        && !headers.contains_key(header::CACHE_CONTROL)
    {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if !varies_by_origin(headers) {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
}

fn is_page_type(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"))
}

fn varies_by_origin(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::VARY).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|name| name.trim().eq_ignore_ascii_case("origin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_pages_have_policies_of_their_own_and_what_is_public_may_be_cached() {
        for (path, kind) in [
            ("/docs", PathKind::Docs),
            ("/docs/", PathKind::Docs),
            ("/docs/swagger-ui.css", PathKind::Docs),
            ("/openapi.json", PathKind::Public),
            ("/docsx", PathKind::Callers),
            ("/", PathKind::Root),
            ("/app/main-0123456789ab.js", PathKind::Public),
            ("/appx", PathKind::Callers),
            ("/api/v1/chat/sessions/x", PathKind::Callers),
        ] {
            assert_eq!(PathKind::of(path), kind, "{path}");
        }
    }
}
