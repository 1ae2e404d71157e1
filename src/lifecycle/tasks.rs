//! Supervised background tasks.

use tokio::task::JoinHandle;

use super::failure::TaskFailure;
use super::panic::catch_panic;
use super::phase::Lifecycle;

/// How a supervised task ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskEnd {
    /// The task's work is done: the process stops, or the object that the task served is gone.
    Done,
    /// The task cannot continue, for this reason.
    Failed(String),
}

impl Lifecycle {
    /// Starts a task without which the process cannot serve. If the task panics or fails, that is
    /// logged with its name, `/health/ready` fails, and the process drains and ends. Aborting the
    /// task is no failure. Panics outside a Tokio runtime.
    pub fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = TaskEnd> + Send + 'static,
    ) -> JoinHandle<()> {
        let lifecycle = self.clone();
        tokio::spawn(async move {
            let reason = match catch_panic(name, task).await {
                Ok(TaskEnd::Done) => return tracing::debug!(task = name, "task done"),
                Ok(TaskEnd::Failed(reason)) => reason,
                Err(panicked) => format!("panic: {}", panicked.message),
            };
            tracing::error!(task = name, reason, "essential task failed");
            lifecycle.note_failure(TaskFailure { task: name, reason });
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_or_fails_is_a_failure_and_one_that_is_done_or_aborted_is_not() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn("done", async { TaskEnd::Done }).await.expect("an end");
        let aborted = lifecycle.spawn("aborted", std::future::pending());
        aborted.abort();
        assert!(aborted.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(lifecycle.failure(), None);
        let stuck = async { TaskEnd::Failed("no address".to_owned()) };
        lifecycle.spawn("stuck", stuck).await.expect("an end");
        let failure = TaskFailure { task: "stuck", reason: "no address".to_owned() };
        assert_eq!(lifecycle.failure(), Some(failure.clone()));
        // The first failure is the one that is reported.
        lifecycle.spawn("late", async { panic!("on purpose") }).await.expect("an end");
        assert_eq!(lifecycle.failure(), Some(failure));
        let lifecycle = Lifecycle::default();
        lifecycle.spawn("died", async { panic!("on purpose") }).await.expect("an end");
        lifecycle.failed().await;
        let reason = "panic: on purpose".to_owned();
        assert_eq!(lifecycle.failure(), Some(TaskFailure { task: "died", reason }));
    }
}
