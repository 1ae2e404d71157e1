//! Ollama: a fleet of hosts, their slots, and the streams of tokens that they send.
//!
//! [`Fleet`] knows the hosts and their models, [`Slot`] is the right to one generation on one host,
//! and [`TokenStream`] is that generation. This module retries nothing: before the first token the
//! caller takes another slot, and after it the caller continues behind the stored text.

mod breaker;
mod catalogue;
mod embedding;
mod error;
mod fleet;
mod health;
mod host;
mod ndjson;
mod parallel;
mod pool;
mod preload;
mod refusal;
mod reply;
mod resolve;
mod stream;
mod tolerant;
mod wire;

pub use breaker::BreakerState;
pub use embedding::{EmbedKind, EmbedRequest, Vectors};
pub use error::{ModelRefusal, OllamaError};
pub use fleet::{Fleet, FleetConfig, HostConfig};
pub use host::{HostId, HostName};
pub use ndjson::{Decoder, LINE_LIMIT, StreamEvent};
pub use pool::{HostState, Slot};
pub use reply::{Done, DoneReason, LoadedModel, Model, ModelDetails, ReplyCall};
pub use stream::TokenStream;
pub use wire::{
    CalledFunction, ChatMessage, ChatRole, ModelRequest, Options, RawJson, RequestedCall, Think,
    Token,
};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex. Every value behind these locks is replaced whole, so a panic of another holder
/// leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
