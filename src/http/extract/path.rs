//! Extracts fields of the path.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use crate::http::extract::fields::{FieldError, NIL};
use crate::http::problem::Problem;
use crate::session::SessionId;

/// Returns the field of the path with this name, decoded; none where the path has none.
pub async fn path_field<S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
    name: &str,
) -> Option<String> {
    let fields = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await.ok();
    let mut fields = fields.into_iter().flat_map(|Path(fields)| fields);
    fields.find(|(field, _)| field == name).map(|(_, value)| value)
}

/// The session in the path.
pub struct SessionPath(pub SessionId);

impl<S: Send + Sync> FromRequestParts<S> for SessionPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = path_field(parts, state, "session_id").await;
        let session: Option<SessionId> = id.and_then(|id| id.parse().ok());
        let refused =
            |kind, msg| Problem::from(vec![FieldError::new("path", "session_id", kind, msg)]);
        let session = session.ok_or_else(|| refused("uuid_parsing", "must be a UUID"))?;
        if session.0.is_nil() {
            return Err(refused(NIL.0, NIL.1));
        }
        tracing::Span::current().record("session", session.redacted());
        Ok(Self(session))
    }
}
