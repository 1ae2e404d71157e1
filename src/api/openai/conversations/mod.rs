//! Conversations: sessions that clients create first, and in which responses are turns.
//!
//! A conversation is a session as the native front has it: its turns run one after another, it is listed for
//! its user, and it is on its owner's budget. The folder's parts are the conversation itself (`object`), its
//! items (`items`), and the bodies of requests about both (`body`).

mod body;
pub(crate) mod items;
pub(crate) mod object;
pub mod schema;

pub use body::ConversationRequest;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::conversation_id::{conversation_not_found, of_conversation, parse_conversation_id};
use crate::http::extract::path::path_field;
use crate::http::problem::Problem;
use crate::session::SessionId;

/// The session of the conversation in the path.
pub struct ConversationPath(pub SessionId);

impl<S: Send + Sync> FromRequestParts<S> for ConversationPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = path_field(parts, state, NAME).await;
        let session = id.and_then(|id| parse_conversation_id(&id));
        let session = session.ok_or_else(conversation_not_found)?;
        tracing::Span::current().record("session", session.redacted());
        Ok(Self(session))
    }
}

/// The parameter of the path with the id of a conversation.
const NAME: &str = "conversation_id";

/// Returns the error of items that may have been added: an SDK must not repeat the request by itself, as that
/// would add them twice.
fn without_retry(problem: Problem) -> Problem {
    if problem.code != "store_unavailable" {
        return problem;
    }
    let detail = "Redis did not reply in time, and the items may have been added; list the items of the \
        conversation before you add them again.";
    Problem { retryable: false, detail: detail.to_owned(), ..problem }
}
