//! Panics that end one piece of work and nothing around it.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::telemetry::metric;

/// A panic that was caught, logged and counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panicked {
    /// The text of the panic.
    pub message: String,
}

/// Runs a future, and returns a panic in it as an error. The panic is logged, and counted under
/// `part`. The caller drops everything that the future shared, or can bear it half changed.
pub fn catch_panic<F: Future>(
    part: &'static str,
    future: F,
) -> impl Future<Output = Result<F::Output, Panicked>> {
    // Not an async function: that would keep room for the future twice.
    AssertUnwindSafe(future).catch_unwind().map(move |done| {
        done.map_err(|payload| {
            let message = message(&*payload);
            tracing::error!(part, message, "panic caught");
            metrics::counter!(metric::PANICS_TOTAL, "part" => part).increment(1);
            Panicked { message }
        })
    })
}

/// Starts a task for a piece of work that ends, as [`catch_panic`] runs it. Panics outside a Tokio
/// runtime.
pub fn spawn_caught<F>(part: &'static str, future: F) -> JoinHandle<Result<F::Output, Panicked>>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(catch_panic(part, future))
}

/// Starts a task for what a dropped value leaves to be done, as [`catch_panic`] runs it. Without a
/// runtime the process is ending, and nothing is done: other replicas clean up after it.
pub fn spawn_on_drop<F>(part: &'static str, future: F)
where
    F: Future<Output: Send> + Send + 'static,
{
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(catch_panic(part, future));
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_returned_with_its_text_and_a_result_is_passed_on() {
        assert_eq!(catch_panic("test", async { 7 }).await, Ok(7));
        let number = 7;
        let caught = catch_panic("test", async { panic!("number {number}") }).await;
        assert_eq!(caught, Err::<(), _>(Panicked { message: "number 7".to_owned() }));
        let spawned = spawn_caught("test", async { panic!("number 7") }).await;
        assert_eq!(spawned.expect("the task ends"), caught);
    }
}
