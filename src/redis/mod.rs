//! Redis: clients, calls of functions, subscriptions, migrations, and the probe. The modules above
//! decide what is stored.

mod client;
mod condition;
pub mod connection;
mod error;
pub mod functions;
pub mod keys;
pub mod layout;
mod memory;
pub mod migrations;
mod observer;
mod probe;
mod replication;
mod sentinel;
pub mod subscriptions;
mod watchdog;

pub use client::RedisOptions;
pub use condition::Condition;
pub use connection::Redis;
pub use error::RedisError;
pub use functions::Call;
pub use observer::{Observer, ServerReport};
pub use probe::Conditions;
pub use subscriptions::{Listener, MESSAGES, Subscription, Subscriptions};
