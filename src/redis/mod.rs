//! The way to Redis: connections, subscriptions, migrations. What is stored there is the business
//! of [`crate::session`].

pub mod connection;
mod error;
pub mod migrations;
mod probe;
mod sentinel;
pub mod subscriptions;
mod watchdog;

pub use connection::{Redis, RedisOptions};
pub use error::RedisError;
pub use probe::{Condition, Conditions};
pub use subscriptions::{Listener, Subscriptions};
