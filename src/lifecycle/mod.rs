//! The life of a process: its phase, the tasks that it needs, and panics that stay where they are.
//!
//! This module uses no other module of the crate, so that every module may use it.

mod panic;
mod phase;
mod tasks;

pub use self::panic::{Panicked, catch_panic};
pub use self::phase::{Lifecycle, Phase};
pub use self::tasks::{TaskEnd, TaskFailure};
