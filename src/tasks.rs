//! Background tasks without which a replica cannot serve.

use std::sync::{Arc, OnceLock};

use tokio::task::AbortHandle;

/// Starts essential tasks and remembers the first one that died. Clones share that memory.
///
/// A task that returns has done its work, as its owner is gone; one that panics has died.
#[derive(Clone, Debug, Default)]
pub struct EssentialTasks {
    dead: Arc<OnceLock<&'static str>>,
}

impl EssentialTasks {
    /// Starts a task. The name is for logs and health replies. To be called inside a Tokio runtime.
    pub fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        let alarm = Alarm { name, tasks: self.clone() };
        let watched = async move {
            let _alarm = alarm;
            task.await;
        };
        tokio::spawn(watched).abort_handle()
    }

    /// The name of the first task that died.
    pub fn dead(&self) -> Option<&'static str> {
        self.dead.get().copied()
    }
}

/// Reports its task if it is dropped by a panic.
struct Alarm {
    name: &'static str,
    tasks: EssentialTasks,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                task = self.name,
                "an essential task died; this replica takes no more requests: restart it"
            );
            let _ = self.tasks.dead.set(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_remembered_and_one_that_returns_or_is_aborted_is_not() {
        let tasks = EssentialTasks::default();
        let returned = tasks.spawn("returned", async {});
        let aborted = tasks.spawn("aborted", std::future::pending());
        aborted.abort();
        until(|| returned.is_finished() && aborted.is_finished()).await;
        assert_eq!(tasks.dead(), None);
        let died = tasks.clone().spawn("died", async { panic!("on purpose") });
        until(|| died.is_finished()).await;
        assert_eq!(tasks.dead(), Some("died"));
    }

    async fn until(condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the tasks end");
    }
}
