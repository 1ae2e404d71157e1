//! JSON Web Tokens, made without the library that the service checks them with.

use std::time::{SystemTime, UNIX_EPOCH};

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

/// Returns bytes in base64url without padding (RFC 4648, section 5).
pub fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for index in 0..=chunk.len() {
            let letter = bits >> (18 - 6 * index) & 63;
            text.push(char::from(LETTERS[letter as usize]));
        }
    }
    text
}
