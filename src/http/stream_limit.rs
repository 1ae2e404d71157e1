//! A time limit for HTTP/2 clients that make no room on a stream. Each stream has its own window, so
//! the connection below continues, and its limit does not apply.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::time::{Sleep, sleep};

use crate::http::listener::count_slow_reader;

tokio::task_local! {
    /// Whether the body of this task's response handed over bytes, and was not polled since.
    static WAITS_FOR_ROOM: Cell<bool>;
}

/// Records whether the body of this task's response waits for room.
pub fn set_waits_for_room(waits: bool) {
    // Only the tasks of HTTP/2 have this limit.
    let _ = WAITS_FOR_ROOM.try_with(|waits_for_room| waits_for_room.set(waits));
}

/// Runs each stream of a connection in its own task, and resets a stream that waits for room longer
/// than the limit.
#[derive(Clone, Copy)]
pub struct StreamExecutor(pub Duration);

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(WAITS_FOR_ROOM.scope(Cell::new(false), limited(stream, self.0)));
    }
}

/// Polls a stream to its end, or until it has waited for room for `limit`. Dropping an unfinished
/// stream resets it.
async fn limited(stream: impl Future, limit: Duration) {
    let mut stream = pin!(stream);
    let mut stalled: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|context| {
        if stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if !WAITS_FOR_ROOM.with(Cell::get) {
            stalled = None;
            return Poll::Pending;
        }
        let stalled = stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stalled.as_mut().poll(context));
        count_slow_reader("http");
        Poll::Ready(())
    })
    .await;
}
