//! Checks the token of a request, and adds the caller to it.

use std::sync::Arc;

use axum::extract::{FromRef, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::limits::{LimitLayer, with_headers};
use super::public::is_public;
use crate::config::SignInMode;
use crate::http::extract::bearer::bearer;
use crate::http::extract::caller::TrustedProxies;
use crate::http::problem::Problem;
use crate::limits::RateLimits;
use crate::sign_in::{API_KEY_PREFIX, Identity, SignIn, SignInError};
use crate::source::{Source, SourceKey};

/// The subprotocol by which a browser sends its token: it cannot set a header of a WebSocket.
const BEARER_PROTOCOL: &str = "bearer.";

/// The state of this layer.
#[derive(Clone)]
pub(super) struct SignInLayer {
    /// The check of tokens.
    pub sign_in: Arc<SignIn>,
    /// The limits, from which a failed sign-in takes one request of its address.
    pub limits: LimitLayer,
}

/// Adds the caller's identity to a request with a valid token, and refuses one whose token is not
/// valid. A token is never read from the address, which is logged and stored on its way.
pub(super) async fn check(
    State(SignInLayer { sign_in, limits }): State<SignInLayer>,
    source: Source,
    mut request: Request,
    next: Next,
) -> Response {
    if is_public(request.uri().path()) {
        return next.run(request).await;
    }
    let rules = limits.rules;
    let limits = &limits.limits;
    let sent = match token(request.headers()) {
        sent if sign_in.mode() == SignInMode::Required => sent,
        sent if !(rules.sends_placeholder_key)(request.uri().path()) => sent,
        // Such clients do not start without a key.
        sent => sent.map(|token| token.and_then(without_placeholder)),
    };
    // Boxed: this future exists for as long as the request does, and the calls to Redis are large.
    let identity = match sent {
        Ok(Some(token)) => Box::pin(identify(&sign_in, limits, &source, token)).await.map(Some),
        Ok(None) if sign_in.mode() == SignInMode::Required => {
            Err(Box::pin(refuse(limits, &source, &SignInError::Required)).await)
        }
        Ok(None) => Ok(None),
        Err(error) => Err(Box::pin(refuse(limits, &source, &error)).await),
    };
    match identity {
        Ok(identity) => {
            if let Some(identity) = identity {
                request.extensions_mut().insert(identity);
            }
            next.run(request).await
        }
        Err(problem) => with_headers(problem.into_response(), Vec::new()),
    }
}

/// Returns the caller with this token. A token that is not valid costs one request of the limit of
/// its address. The check of an API key in Redis is paid in advance, so that an address without a
/// request left costs Redis no call.
///
/// # Errors
/// Why the caller is not signed in, or the refusal by the limit.
pub async fn identify(
    sign_in: &SignIn,
    limits: &RateLimits,
    source: &Source,
    token: &str,
) -> Result<Identity, Problem> {
    if !sign_in.asks_redis(token) {
        return match sign_in.identify(token).await {
            Ok(identity) => Ok(identity),
            Err(error) => Err(refuse(limits, source, &error).await),
        };
    }
    let paid = limits.take_request(source).await.map_err(|refusal| Problem::limited(&refusal))?;
    match sign_in.identify(token).await {
        Err(error) if error.is_of_caller() => {
            Err(Problem::not_signed_in(&error).with_standings(paid.standings))
        }
        identified => {
            limits.give_back_request(paid).await;
            identified.map_err(|error| Problem::not_signed_in(&error))
        }
    }
}

/// Returns the refusal of a sign-in that failed, after it took one request from the limit of its
/// address: where none is left, the refusal by the limit.
pub async fn refuse(limits: &RateLimits, source: &Source, error: &SignInError) -> Problem {
    tracing::debug!(%error, "sign-in refused");
    if !error.is_of_caller() {
        return Problem::not_signed_in(error);
    }
    match limits.take_request(source).await {
        Ok(taken) => Problem::not_signed_in(error).with_standings(taken.standings),
        Err(refusal) => Problem::limited(&refusal),
    }
}

impl FromRef<SignInLayer> for TrustedProxies {
    fn from_ref(layer: &SignInLayer) -> Self {
        layer.limits.proxies.clone()
    }
}

impl FromRef<SignInLayer> for SourceKey {
    fn from_ref(layer: &SignInLayer) -> Self {
        layer.limits.source_key.clone()
    }
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

/// Returns a token that may be of this service; none where it has the form of neither a token
/// nor an API key, as a placeholder has.
fn without_placeholder(token: &str) -> Option<&str> {
    let dots = token.bytes().filter(|byte| *byte == b'.').count();
    (token.starts_with(API_KEY_PREFIX) || dots == 2).then_some(token)
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
}
