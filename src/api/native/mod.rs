//! The native front: jarvis's own protocol over REST, event streams and WebSockets.

mod answer_rules;
pub(crate) mod branches;
pub(crate) mod chat;
pub(crate) mod event_stream;
pub(crate) mod export;
pub(crate) mod images;
pub(crate) mod import;
pub mod import_lines;
pub mod input;
pub(crate) mod list;
pub(crate) mod models;
pub(crate) mod ownership;
pub(crate) mod schema;
mod search;
pub(crate) mod sessions;
mod sign_in;
pub(crate) mod turns;
pub(crate) mod usage;
pub(crate) mod websocket;
pub mod wire;

use axum::http::Method;

use crate::limits::RequestKind;

/// Returns what a request to this method and path is, for the limits of its caller.
pub fn request_kind(method: &Method, path: &str) -> RequestKind {
    let is_stream = || path.starts_with("/api/v1/chat/sessions/") && path.ends_with("/events");
    match (method, path.trim_end_matches('/')) {
        (&Method::POST, "/api/v1/chat" | "/api/v1/chat/message" | "/api/v1/chat/send") => {
            RequestKind::Turn
        }
        (&Method::POST, path) if branches::starts_a_turn(path) => RequestKind::Turn,
        (&Method::GET, "/ws" | "/api/v1/chat/ws") => RequestKind::Socket,
        (&Method::GET, _) if is_stream() => RequestKind::Socket,
        _ => RequestKind::Plain,
    }
}
