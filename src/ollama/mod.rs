//! Ollama: a fleet of hosts, their free slots, and the streams of tokens that they send.
//!
//! [`Fleet`] knows the hosts and which models they have, [`Slot`] is the right to one generation on
//! one of them, [`TokenStream`] is that generation. Nothing here retries: before the first token
//! the caller takes another slot, after it the caller continues from what there is.

mod breaker;
mod catalogue;
mod error;
mod fleet;
mod health;
mod host;
mod ndjson;
mod pool;
mod preload;
mod refusal;
mod reply;
mod resolve;
mod stream;
mod tolerant;
mod wire;

pub use breaker::BreakerState;
pub use error::{ModelRefusal, OllamaError};
pub use fleet::{Fleet, FleetConfig, HostConfig, check_hosts};
pub use host::{HostId, HostName};
pub use ndjson::{Decoder, Event, LINE_LIMIT};
pub use pool::{HostState, Slot};
pub use reply::{Done, DoneReason, Model};
pub use stream::TokenStream;
pub use wire::{ChatMessage, ChatRole, ModelRequest, Options, Think, Token, checked_keep_alive};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Every value behind these locks is replaced whole, so a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
