//! JSON Web Tokens: their claims, and the checks that all of them pass.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

use super::error::SignInError;
use crate::secret::Secret;

/// The difference that is allowed between the clocks of an issuer and of a replica, in seconds.
pub const LEEWAY: u64 = 5;
/// The type of a token that signs a caller in.
const ACCESS: &str = "access";
/// The latest expiry that is kept apart from others: the year 9999.
const LATEST: f64 = 253_402_300_799.0;

/// The claims that are read. `exp` and `nbf` are checked by the library.
#[derive(Deserialize)]
pub struct Claims {
    /// The user, as its issuer names it.
    pub sub: String,
    exp: f64,
    #[serde(default)]
    iss: Option<serde_json::Value>,
    /// The kind of the token, in tokens of the service's own secret.
    #[serde(default, rename = "type")]
    kind: Option<String>,
    /// The kind of the token, as some outside issuers name it.
    #[serde(default)]
    typ: Option<String>,
}

impl Claims {
    /// Returns when the token expires.
    pub fn expires(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs_f64(self.exp.clamp(0.0, LATEST))
    }

    /// Checks that the token names this issuer, and no other: the library takes a list, too.
    ///
    /// # Errors
    /// Where the token names another issuer, or none.
    pub fn check_issuer(&self, name: &str) -> Result<(), SignInError> {
        match &self.iss {
            Some(issuer) if issuer.as_str() == Some(name) => Ok(()),
            _ => Err(SignInError::Invalid("the token is of another issuer")),
        }
    }

    /// Checks that this is an access token, where the token names its kind.
    ///
    /// # Errors
    /// Where the token is of another kind.
    pub fn check_kind(&self) -> Result<(), SignInError> {
        let is_access = self.kind.as_deref().is_none_or(|kind| kind == ACCESS);
        let is_other =
            |typ: &str| ["refresh", "id", "logout"].iter().any(|it| typ.eq_ignore_ascii_case(it));
        if !is_access || self.typ.as_deref().is_some_and(is_other) {
            return Err(SignInError::Invalid("the token is no access token"));
        }
        Ok(())
    }
}

/// The key of the service's own tokens.
pub struct LocalKey {
    key: DecodingKey,
    validation: Validation,
}

impl LocalKey {
    /// Creates the key from the secret. A token that names audiences must name this one.
    pub fn new(secret: &Secret, audience: Option<&str>) -> Self {
        super::crypto::install();
        let mut validation = validation(Algorithm::HS256);
        if let Some(audience) = audience {
            validation.set_audience(&[audience]);
        }
        Self { key: DecodingKey::from_secret(secret.expose().as_bytes()), validation }
    }

    /// Returns the claims of a token.
    ///
    /// # Errors
    /// Where the token is not one of this key, or not valid now.
    pub fn verify(&self, token: &str) -> Result<Claims, SignInError> {
        let claims = verify(token, &self.key, &self.validation)?;
        if claims.kind.is_none() {
            return Err(SignInError::Invalid("the token has no claim `type` of \"access\""));
        }
        claims.check_kind()?;
        Ok(claims)
    }
}

/// Returns the checks of tokens of a key: the key has one algorithm, whatever a token's header
/// claims.
pub(super) fn validation(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_required_spec_claims(&["exp", "sub"]);
    validation
}

/// Verifies a token's signature and times, and returns its claims.
pub(super) fn verify(
    token: &str,
    key: &DecodingKey,
    validation: &Validation,
) -> Result<Claims, SignInError> {
    let token = decode::<Claims>(token, key, validation).map_err(|error| match error.kind() {
        ErrorKind::ExpiredSignature => SignInError::Expired,
        ErrorKind::ImmatureSignature => SignInError::Invalid("the token is not valid yet"),
        ErrorKind::InvalidIssuer => SignInError::Invalid("the token is of another issuer"),
        ErrorKind::InvalidAudience => SignInError::Invalid("the token is for another audience"),
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => {
            SignInError::Invalid("the token lacks a claim that is required")
        }
        _ => SignInError::Invalid("the token's signature or form is not valid"),
    })?;
    if token.header.crit.is_some() {
        return Err(SignInError::Invalid("the token has critical header fields"));
    }
    Ok(token.claims)
}

/// The claims of a token of the service's own, as the clients of the original know them.
#[derive(Serialize)]
struct OwnClaims<'a> {
    sub: &'a str,
    user_id: &'a str,
    exp: u64,
    iat: u64,
    #[serde(rename = "type")]
    kind: &'static str,
}

/// Makes a token that signs `user` in for this long.
///
/// # Errors
/// Where the clock is before 1970.
pub fn issue(secret: &Secret, user: &str, ttl: Duration) -> anyhow::Result<String> {
    super::crypto::install();
    let iat = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let exp = iat + ttl.as_secs();
    let claims = OwnClaims { sub: user, user_id: user, exp, iat, kind: ACCESS };
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    Ok(encode(&Header::new(Algorithm::HS256), &claims, &key)?)
}
