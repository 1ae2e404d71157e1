//! Gives each request an identifier, which its client may choose.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES: usize = 128;

/// The identifier of a request, stored in its extensions.
#[derive(Clone)]
pub(super) struct RequestId(pub HeaderValue);

/// Adds the identifier to the request and the response. tower-http's layer would accept any value
/// of a client, and the identifier is logged.
pub(super) async fn assign(mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    let usable = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=REQUEST_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    let random = || HeaderValue::try_from(Uuid::new_v4().to_string()).ok();
    headers
        .get(REQUEST_ID)
        .filter(usable)
        .cloned()
        .or_else(random)
        .unwrap_or_else(|| HeaderValue::from_static("none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_echoed_only_if_it_is_fit_for_a_log_line() {
        let sent = |id| HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_static(id))]);
        assert_eq!(request_id(&sent("abc-1")), "abc-1");
        assert_ne!(request_id(&sent("a b")), "a b");
        assert_eq!(request_id(&HeaderMap::new()).len(), 36);
    }
}
