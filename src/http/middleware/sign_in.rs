//! Checks the token of a request, and adds the caller to it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::extract::bearer::bearer;
use crate::http::problem::Problem;
use crate::sign_in::{SignIn, SignInError, SignInMode};

/// The subprotocol by which a browser sends its token: it cannot set a header of a WebSocket.
const BEARER_PROTOCOL: &str = "bearer.";

/// Adds the caller's identity to a request with a valid token, and refuses one whose token is not
/// valid. A token is never read from the address, which is logged and stored on its way.
pub(super) async fn check(
    State(sign_in): State<Arc<SignIn>>,
    mut request: Request,
    next: Next,
) -> Response {
    if is_public(request.uri().path()) {
        return next.run(request).await;
    }
    let identity = match token(request.headers()) {
        Ok(Some(token)) => sign_in.identify(token).await.map(Some),
        Ok(None) if sign_in.mode() == SignInMode::Required => Err(SignInError::Required),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    match identity {
        Ok(identity) => {
            if let Some(identity) = identity {
                request.extensions_mut().insert(identity);
            }
            next.run(request).await
        }
        Err(error) => {
            tracing::debug!(%error, "sign-in refused");
            Problem::not_signed_in(&error).into_response()
        }
    }
}

/// Returns whether a path is open to everybody and has no caller. Its requests' tokens are not read:
/// a probe or a page has to work whatever a browser or a proxy adds.
pub fn is_public(path: &str) -> bool {
    let below = |folder: &str| {
        path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    matches!(path, "" | "/" | "/openapi.json")
        || ["/app", "/docs", "/health", "/metrics"].into_iter().any(below)
}

/// Returns the token of a request.
fn token(headers: &HeaderMap) -> Result<Option<&str>, SignInError> {
    let by_header = headers.get_all(header::AUTHORIZATION).iter();
    let by_header = by_header.map(|value| bearer(value.to_str().unwrap_or_default()));
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let protocols = protocols.filter_map(|value| value.to_str().ok());
    let protocols = protocols.flat_map(|value| value.split(',')).map(str::trim);
    let by_protocol = protocols.filter_map(|protocol| protocol.strip_prefix(BEARER_PROTOCOL));
    let mut tokens = by_header.chain(by_protocol.map(Some));
    match (tokens.next(), tokens.next()) {
        (None, _) => Ok(None),
        (Some(Some(token)), None) if !token.is_empty() => Ok(Some(token)),
        (Some(_), None) => {
            Err(SignInError::Invalid("the Authorization header is not `Bearer <token>`"))
        }
        (Some(_), Some(_)) => Err(SignInError::Ambiguous),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn token_of(pairs: &[(&'static str, &'static str)]) -> Result<Option<String>, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        token(&headers).map(|it| it.map(str::to_owned)).map_err(|error| format!("{error:?}"))
    }

    #[test]
    fn a_token_comes_in_one_header_or_in_one_subprotocol() {
        let some = |token: &str| Ok(Some(token.to_owned()));
        assert_eq!(token_of(&[]), Ok(None));
        assert_eq!(token_of(&[("authorization", "Bearer a.b.c")]), some("a.b.c"));
        assert_eq!(token_of(&[("authorization", "bearer  a.b.c ")]), some("a.b.c"));
        let protocols = ("sec-websocket-protocol", "jarvis.v1, bearer.a.b.c");
        assert_eq!(token_of(&[protocols]), some("a.b.c"));
        assert_eq!(token_of(&[("sec-websocket-protocol", "jarvis.v1")]), Ok(None));
        for two in [
            [("authorization", "Bearer a"), ("authorization", "Bearer a")],
            [("authorization", "Bearer a"), protocols],
            [("sec-websocket-protocol", "bearer.a"), protocols],
            [("authorization", "Bearer a"), ("sec-websocket-protocol", "bearer.")],
        ] {
            assert_eq!(token_of(&two), Err("Ambiguous".to_owned()), "{two:?}");
        }
        for wrong in ["Bearer", "Bearer ", "Basic YTpi", "a.b.c", "", "Bearer a b"] {
            let refused = token_of(&[("authorization", wrong)]);
            assert!(refused.is_err_and(|error| error.starts_with("Invalid")), "{wrong}");
        }
        assert!(token_of(&[("sec-websocket-protocol", "bearer.")]).is_err());
    }

    #[test]
    fn only_pages_probes_and_metrics_are_public() {
        for path in ["/", "/health", "/health/ready", "/docs", "/docs/x.css", "/app/x.js"] {
            assert!(is_public(path), "{path}");
        }
        for path in ["/ws", "/api/v1/chat", "/healthy", "/docsx", "/nothing", "/api/v1/chat/health"]
        {
            assert!(!is_public(path), "{path}");
        }
    }
}
