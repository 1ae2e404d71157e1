//! The way to Redis: connections, subscriptions, functions, migrations. What is stored there is the business
//! of [`crate::session`].

pub mod connection;
mod error;
pub mod functions;
pub mod layout;
pub mod migrations;
mod probe;
mod sentinel;
pub mod subscriptions;
mod watchdog;

pub use connection::{Redis, RedisOptions};
pub use error::RedisError;
pub use functions::Call;
pub use probe::{Condition, Conditions};
pub use subscriptions::{Listener, Subscriptions};
