//! The native front: jarvis's own protocol over REST, event streams and WebSockets.

pub(crate) mod chat;
pub(crate) mod event_stream;
pub mod input;
pub(crate) mod models;
pub(crate) mod schema;
pub(crate) mod sessions;
mod sign_in;
pub(crate) mod turns;
pub(crate) mod websocket;
pub mod wire;
