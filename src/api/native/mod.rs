//! The native front: jarvis's own protocol over REST, event streams and WebSockets.

pub(crate) mod chat;
pub(crate) mod event_stream;
pub(crate) mod export;
pub(crate) mod import;
mod import_lines;
pub mod input;
pub(crate) mod models;
pub(crate) mod ownership;
pub(crate) mod schema;
pub(crate) mod sessions;
mod sign_in;
pub(crate) mod turns;
pub(crate) mod websocket;
pub mod wire;
