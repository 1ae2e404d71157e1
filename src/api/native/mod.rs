//! The native front: jarvis's own REST calls, event stream and WebSocket.

pub mod chat;
pub mod event_stream;
pub mod input;
pub mod models;
pub mod schema;
pub mod sessions;
pub mod turns;
pub mod websocket;
pub mod wire;
