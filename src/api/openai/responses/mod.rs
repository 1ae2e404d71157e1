//! Responses: answers that are stored, and that clients find again by their id.
//!
//! A response is the one turn of a session that brought its own conversation. Its id names that
//! session, and what it shows of its request is stored with the question. The folder's parts are the
//! request (`request`, `input`, `rules`), the response (`object`), its events (`events`, `pieces`,
//! `stream`), and the routes (`create`, `stored`).

pub(crate) mod create;
mod events;
mod input;
mod object;
mod pieces;
mod request;
mod rules;
pub mod schema;
pub(crate) mod stored;
mod stream;

pub use request::ResponseRequest;

use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;
use uuid::Uuid;

use crate::http::problem::Problem;
use crate::session::SessionId;

/// How the id of a response begins, before that of its session.
const PREFIX: &str = "resp_";

/// Returns the id of the response of a session.
fn response_id(session: SessionId) -> String {
    format!("{PREFIX}{}", session.0.simple())
}

/// Returns the session of a response; none where the text is no id of one.
fn parse_id(id: &str) -> Option<SessionId> {
    let text = id.strip_prefix(PREFIX)?;
    let session = Uuid::try_parse(text).ok().filter(|session| !session.is_nil())?;
    (session.simple().to_string() == text).then_some(SessionId(session))
}

/// Returns the error of a response that the caller does not have.
fn not_found() -> Problem {
    let detail = "There is no such response of this caller, or it is no longer kept.";
    Problem::new(StatusCode::NOT_FOUND, "response_not_found", detail)
}

/// The session of the response in the path.
pub struct ResponsePath(SessionId);

impl<S: Send + Sync> FromRequestParts<S> for ResponsePath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await.ok();
        let session = id.and_then(|Path(id)| parse_id(&id)).ok_or_else(not_found)?;
        tracing::Span::current().record("session", session.redacted());
        Ok(Self(session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_in_one_way_only() {
        let session = SessionId::random();
        let id = response_id(session);
        assert_eq!(parse_id(&id), Some(session));
        for other in [
            "",
            "resp_",
            "nope",
            &id[PREFIX.len()..],
            &id.to_uppercase(),
            &format!("{PREFIX}{}", session.0),
            "resp_00000000000000000000000000000000",
        ] {
            assert_eq!(parse_id(other), None, "{other}");
        }
    }
}
