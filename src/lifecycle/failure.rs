//! The failure of an essential task.

use std::fmt;

/// An essential task that failed. Without it the process cannot serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFailure {
    /// The name of the task.
    pub task: &'static str,
    /// The reason of the failure.
    pub reason: String,
}

impl fmt::Display for TaskFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The essential task \"{}\" failed: {}", self.task, self.reason)
    }
}

impl std::error::Error for TaskFailure {}
