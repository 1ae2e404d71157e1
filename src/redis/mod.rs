//! The way to Redis: connections, subscriptions, functions, migrations. What is stored there is the business
//! of [`crate::session`].

pub mod connection;
pub mod functions;
pub mod migrations;
mod sentinel;
pub mod subscriptions;
mod watchdog;

pub use connection::{Redis, RedisError, RedisOptions};
pub use functions::Call;
pub use subscriptions::{Listener, Subscriptions};
