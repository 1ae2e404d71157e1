//! jarvis: a chat service in front of Ollama whose answers survive the replica that writes them.
//!
//! [`Server`] owns a replica's life: start, serve, drain. ARCHITECTURE.md describes how the parts
//! work together.

// The unit tests share files with the integration tests, which name the crate.
#[cfg(test)]
extern crate self as jarvis;

pub mod api;
mod blocking;
pub mod budget;
mod byte_room;
pub mod config;
pub mod digest;
pub mod follow;
pub mod generation;
pub mod http;
mod json_schema;
pub mod lifecycle;
pub mod limits;
pub mod membership;
pub mod model_name;
pub mod ollama;
pub mod owner;
pub mod queue;
mod raw_fields;
pub mod readiness;
pub mod redis;
pub mod retry;
pub mod secret;
pub mod server;
pub mod session;
pub mod sign_in;
pub mod source;
mod source_key;
pub mod telemetry;
pub mod tls;
pub mod web;

#[cfg(test)]
#[path = "../tests/support/decoded.rs"]
mod decoded;
#[cfg(test)]
#[path = "../tests/support/samples.rs"]
mod samples;

pub use server::Server;
