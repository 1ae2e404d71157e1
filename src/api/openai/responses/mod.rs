//! Responses: answers that are stored, and that clients find again by their id.
//!
//! A response is the one turn of a session that brought its own conversation, or one of the turns of a
//! conversation, which is a session that clients create first. Its id names the session, and in a
//! conversation the generation, too; what it shows of its request is stored with the question. The
//! folder's parts are the request (`request`, `input`, `rules`), the response (`object`, `output`), its
//! events (`events`, `pieces`, `stream`), and the routes (`create`, `in_conversation`, `stored`,
//! with `reading`).

pub(crate) mod create;
mod created;
mod events;
mod in_conversation;
pub(super) mod input;
mod object;
pub(super) mod output;
mod pieces;
mod reading;
mod request;
mod rules;
pub mod schema;
pub(crate) mod stored;
mod stream;

pub use request::ResponseRequest;

use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::conversation_id::parse_simple;
use crate::http::problem::Problem;
use crate::session::{GenerationId, SessionId};

/// How the id of a response begins, before that of its session.
const PREFIX: &str = "resp_";
/// Digits of the identifier of a session or a generation in an id.
const DIGITS: usize = 32;

/// The turn that the id of a response names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseKey {
    /// Its session.
    pub session: SessionId,
    /// Its generation, where the session is a conversation; none where the response is the only turn of
    /// its session.
    pub generation: Option<GenerationId>,
}

impl ResponseKey {
    /// Creates the key of a response that is the only turn of its session.
    pub fn alone(session: SessionId) -> Self {
        Self { session, generation: None }
    }

    /// Returns the id of the response.
    pub fn id(self) -> String {
        let generation = self.generation.map(|it| it.0.simple().to_string());
        format!("{PREFIX}{}{}", self.session.0.simple(), generation.unwrap_or_default())
    }

    /// Reads an id; none where the text is no id of a response.
    pub fn parse(id: &str) -> Option<Self> {
        let text = id.strip_prefix(PREFIX)?;
        let (session, generation) = text.split_at_checked(DIGITS)?;
        let generation = match generation {
            "" => None,
            generation => Some(GenerationId(parse_simple(generation)?)),
        };
        Some(Self { session: SessionId(parse_simple(session)?), generation })
    }
}

/// Returns the error of a response that the caller does not have.
fn not_found() -> Problem {
    let detail = "There is no such response of this caller, or it is no longer kept.";
    Problem::new(StatusCode::NOT_FOUND, "response_not_found", detail)
}

/// The response in the path.
pub struct ResponsePath(ResponseKey);

impl<S: Send + Sync> FromRequestParts<S> for ResponsePath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await.ok();
        let key = id.and_then(|Path(id)| ResponseKey::parse(&id)).ok_or_else(not_found)?;
        tracing::Span::current().record("session", key.session.redacted());
        Ok(Self(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_in_one_way_only() {
        let session = SessionId::random();
        let alone = ResponseKey::alone(session);
        let turn = ResponseKey { generation: Some(GenerationId::random()), ..alone };
        let id = alone.id();
        for key in [alone, turn] {
            assert_eq!(ResponseKey::parse(&key.id()), Some(key));
        }
        for other in [
            "",
            "resp_",
            "nope",
            &id[PREFIX.len()..],
            &id.to_uppercase(),
            &format!("{PREFIX}{}", session.0),
            "resp_00000000000000000000000000000000",
            &id[..id.len() - 1],
            &format!("{id}0"),
            &format!("{id}{}", "0".repeat(DIGITS)),
            &format!("{}字", &id[..id.len() - 1]),
        ] {
            assert_eq!(ResponseKey::parse(other), None, "{other}");
        }
    }
}
