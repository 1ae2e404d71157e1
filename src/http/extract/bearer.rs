//! A token that this service compares with the one of a request.

use std::fmt;

use axum::http::{HeaderMap, header};
use ring::digest::SHA256_OUTPUT_LEN;
use ring::hmac;

use crate::secret::Secret;
use crate::sign_in::SignInError;

/// A token that a request must send, as `Authorization: Bearer <token>`.
#[derive(Clone)]
pub struct ExpectedToken {
    /// A random key. Two digests by it take as long to compare whatever the tokens have in common.
    key: hmac::Key,
    digest: hmac::Tag,
}

impl ExpectedToken {
    /// Keeps the digest of a token.
    pub fn new(token: &Secret) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; SHA256_OUTPUT_LEN]>());
        let digest = hmac::sign(&key, token.expose().as_bytes());
        Self { key, digest }
    }

    /// Checks that the headers of a request have the token, once.
    ///
    /// # Errors
    /// Why they have not.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), SignInError> {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let given = match (given.next(), given.next()) {
            (None, _) => return Err(SignInError::Required),
            (Some(_), Some(_)) => return Err(SignInError::Ambiguous),
            (Some(given), None) => given.to_str().ok().and_then(bearer),
        };
        let Some(given) = given else {
            return Err(SignInError::Invalid("the Authorization header is not `Bearer <token>`"));
        };
        hmac::verify(&self.key, given.as_bytes(), self.digest.as_ref())
            .map_err(|_| SignInError::Invalid("it is another one"))
    }
}

impl fmt::Debug for ExpectedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Returns the token of an Authorization header.
pub fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.contains(char::is_whitespace)).then_some(token)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_whole_token_and_one_header_pass() {
        let expected = ExpectedToken::new(&Secret::new("0123456789abcdef"));
        let check = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
            }
            expected.check(&headers).is_ok()
        };
        assert!(check(&["Bearer 0123456789abcdef"]));
        assert!(check(&["bearer  0123456789abcdef"]));
        for wrong in ["Bearer 0123456789abcde", "Bearer 0123456789abcdeg", "0123456789abcdef", ""] {
            assert!(!check(&[wrong]), "{wrong}");
        }
        assert!(!check(&[]));
        assert!(!check(&["Bearer 0123456789abcdef", "Bearer 0123456789abcdef"]));
        assert_eq!(format!("{expected:?}"), "***");
    }
}
