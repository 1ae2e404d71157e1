//! Idempotency keys: how a client repeats a request without a second turn.

use axum::http::HeaderMap;
use utoipa::IntoParams;
use uuid::Uuid;

use crate::http::extract::fields::{FieldError, NIL};
use crate::http::problem::Problem;
use crate::session::{Owner, SessionId};

/// The namespace of the sessions of turns that have an idempotency key and no session.
const KEY_NAMESPACE: Uuid = Uuid::from_u128(0x6b1f_0c3e_52a4_4c1d_9a57_3f0d_84be_2c16);
const KEY_BYTES: usize = 255;

/// The header that makes a request repeatable.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "only its description is used")]
pub struct IdempotencyKeyHeader {
    /// The same key returns the same generation, for 24 hours. A signed-in caller may also send 1 to
    /// 255 visible ASCII characters.
    #[param(rename = "Idempotency-Key", required = false)]
    key: Uuid,
}

/// Returns the idempotency key of a request, where it has one.
///
/// # Errors
/// A 422 where the key is not valid, or can be guessed.
pub fn key(headers: &HeaderMap, owner: &Owner) -> Result<Option<String>, Problem> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let refused = |kind, msg: &str| {
        Problem::from(vec![FieldError::new("header", "Idempotency-Key", kind, msg)])
    };
    let key = key.to_str().unwrap_or_default().trim_matches('"');
    if key.is_empty() || key.len() > KEY_BYTES {
        return Err(refused("string_length", "must be 1 to 255 visible ASCII characters"));
    }
    // A session that is derived from a key must be as hard to guess as a random one.
    match (owner, Uuid::try_parse(key)) {
        (_, Ok(uuid)) if uuid.is_nil() => Err(refused(NIL.0, NIL.1)),
        (_, Ok(uuid)) => Ok(Some(uuid.to_string())),
        (Owner::User(_), Err(_)) => Ok(Some(key.to_owned())),
        (Owner::Anonymous, Err(_)) => Err(refused("uuid_parsing", "must be a UUID")),
    }
}

/// Returns the session of a turn with this key that names none, the same for every repeat. `kind`
/// keeps the sessions of fronts apart whose turns are of different kinds.
pub fn session(owner: &Owner, kind: &str, key: &str) -> SessionId {
    let name = format!("{}\n{kind}{key}", owner.key());
    SessionId(Uuid::new_v5(&KEY_NAMESPACE, name.as_bytes()))
}

/// Returns whether a proxy made the key of this request, for its own retries. The client does not know
/// such a key, and cannot find its turn again: the turn ends soon after the client is gone.
pub fn is_by_proxy(headers: &HeaderMap) -> bool {
    headers.get("x-jarvis-proxy-key").is_some_and(|value| value == "1")
}
