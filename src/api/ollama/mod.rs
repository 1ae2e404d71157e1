//! The Ollama front: programs for one Ollama use the whole fleet unchanged. docs/OLLAMA.md describes
//! it.
//!
//! A request is parsed into a turn that brings its own conversation. The turn is followed as those of
//! every front are, and its typed updates are written as Ollama's lines. A field that would change a model
//! host for others is ignored or refused. Nothing of the dialect is known outside this folder.

pub(crate) mod embeddings;
mod errors;
pub mod fields;
mod lines;
mod messages;
pub(crate) mod models;
mod options;
pub mod request;
mod rules;
mod schema;
mod shapes;
mod stream;
pub(crate) mod turns;

pub use errors::{ERROR_SCHEMA, dialect};
pub use lines::Shape;
pub use schema::{OllamaApiDoc, describe};

use axum::http::Method;

use crate::limits::RequestKind;

/// Returns whether a path is one of this front's: below `/api` and not the native front's.
pub fn serves(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/api") else { return false };
    let is_native = rest == "/v1" || rest.starts_with("/v1/");
    (rest.is_empty() || rest.starts_with('/')) && !is_native
}

/// Returns what a request to this method and path is, for the limits of its caller.
pub fn request_kind(method: &Method, path: &str) -> RequestKind {
    match (method, path.trim_end_matches('/')) {
        (&Method::POST, "/api/chat" | "/api/generate" | "/api/embed" | "/api/embeddings") => {
            RequestKind::Turn
        }
        _ => RequestKind::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_native_front_below_api_is_not_this_one() {
        for path in ["/api", "/api/chat", "/api/tags", "/api/nothing", "/api/v10", "/api/v1x/y"] {
            assert!(serves(path), "{path}");
        }
        for path in ["/api/v1", "/api/v1/chat", "/v1/models", "/apis", "/", "/ws"] {
            assert!(!serves(path), "{path}");
        }
    }
}
