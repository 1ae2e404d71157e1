//! The page: what a browser gets at `/`, and its parts below `/app/`. docs/PAGE.md describes it.

mod files;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use self::files::{Encoding, StaticFile};
use crate::http::problem::Problem;

/// The name of the page itself among its files.
const PAGE: &str = "index.html";
/// A part has the digest of its content in its name, so it never changes.
const FOR_EVER: &str = "public, max-age=31536000, immutable";
/// The caching of a file that may be another one at the next request: it is asked for again, and usually has
/// not changed.
const ASK_AGAIN: &str = "no-cache";

/// Returns whether a request asks for a page rather than for JSON: it names `text/html`, and prefers it.
pub fn wants_page(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut html, mut json) = (0.0, 0.0);
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let preferred = match parts.next() {
            Some(range) if range.eq_ignore_ascii_case("text/html") => &mut html,
            Some(range) if range.eq_ignore_ascii_case("application/json") => &mut json,
            _ => continue,
        };
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
        *preferred = quality.unwrap_or(1.0);
    }
    html > json
}

/// Returns the page.
pub fn page(headers: &HeaderMap) -> Response {
    match files::named(PAGE) {
        Some(page) => respond(page, headers, ASK_AGAIN),
        None => Problem::not_found().into_response(),
    }
}

/// Serves a part of the page.
///
/// While a new release is rolled out, the page of one replica asks another one for parts that have
/// other names there. They are answered by the replica's own parts, which no cache keeps: each part
/// works with every page, because the page itself only names them.
pub async fn part(path: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Response {
    let name = match &path {
        Ok(Path(name)) if name != PAGE => name.as_str(),
        _ => return Problem::not_found().into_response(),
    };
    if let Some(file) = files::named(name) {
        return respond(file, &headers, FOR_EVER);
    }
    match files::of_another_release(name) {
        Some(file) => respond(file, &headers, ASK_AGAIN),
        None => Problem::not_found().into_response(),
    }
}

fn respond(file: &'static StaticFile, headers: &HeaderMap, caching: &'static str) -> Response {
    let encoding = Encoding::accepted(headers);
    let tag = file.tag(encoding);
    let known =
        headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known.flat_map(|value| value.split(',')).any(|known| {
        let known = known.trim();
        known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
    });
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let kind = [(header::CONTENT_TYPE, file.content_type)];
        (kind, file.bytes(encoding)).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, tag);
    }
    if let (Some(name), false) = (encoding.name(), is_known) {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts_page(accept: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        wants_page(&headers)
    }

    #[test]
    fn a_browser_gets_the_page_and_every_other_client_json() {
        assert!(accepts_page("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"));
        assert!(accepts_page("application/json;q=0.5, TEXT/HTML"));
        for accept in
            ["*/*", "application/json", "", "text/html;q=0", "application/json, text/html"]
        {
            assert!(!accepts_page(accept), "{accept}");
        }
        assert!(!wants_page(&HeaderMap::new()));
    }
}
