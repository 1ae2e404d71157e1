//! The life of a process: its phase, its essential tasks, and panics that end one task alone.
//!
//! This module uses only `telemetry` of the crate, so that every module above may use it.

pub mod descriptors;
mod failure;
mod panic;
mod phase;
mod tasks;

pub use self::failure::TaskFailure;
pub use self::panic::{Panicked, catch_panic, spawn_caught, spawn_on_drop};
pub use self::phase::{Lifecycle, Phase};
pub use self::tasks::TaskEnd;
