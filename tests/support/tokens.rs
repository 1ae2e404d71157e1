//! JSON Web Tokens, made without the library that the service checks them with.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use ring::hmac;
use serde_json::{Value, json};

/// The secret of the service in the tests.
pub const SECRET: &str = "a secret of the tests, 32 bytes or more";

/// Returns seconds since 1970, so many seconds from now.
pub fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs();
    i64::try_from(now).expect("a time") + seconds
}

/// Returns the claims of an access token of this user, which expires in so many seconds.
pub fn claims(user: &str, seconds: i64) -> Value {
    json!({
        "sub": user, "user_id": user, "email": format!("{user}@example.com"),
        "iat": in_seconds(0), "exp": in_seconds(seconds), "type": "access",
    })
}

/// Returns a token of this user, valid for an hour.
pub fn token(user: &str) -> String {
    hs256(SECRET, &claims(user, 3600))
}

/// Returns a token with these claims, signed with HMAC by this secret.
pub fn hs256(secret: &str, claims: &Value) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    signed(&json!({"alg": "HS256", "typ": "JWT"}), claims, |message| {
        hmac::sign(&key, message).as_ref().to_vec()
    })
}

/// Returns a token with this header, these claims and this signature.
pub fn signed(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| base64url(value.to_string().as_bytes());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = base64url(&sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// Returns bytes in base64url without padding.
pub fn base64url(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
