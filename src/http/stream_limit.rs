//! A time limit for the clients of HTTP/2 that make no room on a stream. Each stream has a window of
//! its own, so the connection below goes on, and does not notice.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::time::{Sleep, sleep};

use crate::http::listener::too_slow;

tokio::task_local! {
    /// Whether the body of this task's response has handed a piece over, and was not asked for more.
    static WAITS_FOR_ROOM: Cell<bool>;
}

/// Notes whether the body of this task's response waits for room.
pub fn set_waits_for_room(waits: bool) {
    // Only the tasks of HTTP/2 have a limit here.
    let _ = WAITS_FOR_ROOM.try_with(|waits_for_room| waits_for_room.set(waits));
}

/// Runs each stream of a connection in a task of its own, and resets a stream that waits for room
/// for longer than the limit.
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

/// Polls a stream to its end, or until it has waited for room for so long. What is dropped
/// unfinished is reset.
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
        too_slow("http");
        Poll::Ready(())
    })
    .await;
}
