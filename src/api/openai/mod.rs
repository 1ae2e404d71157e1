//! The OpenAI front: programs for OpenAI's API use the fleet unchanged. docs/OPENAI.md describes it.
//!
//! A request is parsed strictly into a turn that brings its own conversation. The turn is followed
//! as those of every front are, and its typed updates are written in OpenAI's dialect. Nothing of
//! that dialect is known outside this folder.

mod body;
pub(crate) mod chat;
mod chunks;
mod content;
mod conversation_id;
pub(crate) mod conversations;
pub mod embeddings;
pub mod errors;
mod headers;
mod messages;
mod metadata;
pub(crate) mod models;
mod newest;
mod params;
mod query;
pub mod request;
pub(crate) mod responses;
mod schema;
mod shapes;
mod stream;
mod tools;

pub use conversations::ConversationRequest;
pub use responses::ResponseRequest;

pub use errors::{ERROR_SCHEMA, dialect};
pub use schema::OpenAiApiDoc;
pub use shapes::ErrorReply;

use axum::http::Method;
use serde_json::Value;

use crate::limits::RequestKind;

/// Writes the schemas that a type cannot describe exactly into the API's description.
pub fn describe(document: &mut Value) {
    schema::describe(document);
    responses::schema::describe(document);
    conversations::schema::describe(document);
}

/// Returns whether a path is one of this front's.
pub fn serves(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// Returns whether a path is one of responses.
fn serves_responses(path: &str) -> bool {
    path == "/v1/responses" || path.starts_with("/v1/responses/")
}

/// Returns what a request to this method and path is, for the limits of its caller.
pub fn request_kind(method: &Method, path: &str) -> RequestKind {
    match (method, path.trim_end_matches('/')) {
        (&Method::POST, "/v1/chat/completions" | "/v1/responses" | "/v1/embeddings") => {
            RequestKind::Turn
        }
        _ => RequestKind::Plain,
    }
}
