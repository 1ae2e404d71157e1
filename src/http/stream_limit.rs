//! A time limit for HTTP/2 clients that make too little room on a stream. Each stream has its own
//! flow control, so the connection below continues, and its limit does not apply. A client must take
//! one piece of a response, of up to [`PIECE_BYTES`], within the limit.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::time::{Sleep, sleep};

use crate::lifecycle::spawn_caught;
use crate::telemetry::count_slow_reader;

/// Bytes of a response that a stream takes at once: what one frame of HTTP/2 carries, unless the
/// client allows more.
pub const PIECE_BYTES: usize = 16 << 10;

tokio::task_local! {
    static HAND_OVER: HandOver;
}

/// How far the body of a task's response was handed over to its stream.
#[derive(Default)]
struct HandOver {
    /// Pieces that the body gave so far.
    pieces: Cell<u64>,
    /// Whether the last piece may wait for room: the body was not polled since.
    is_waiting: Cell<bool>,
}

/// Records that the body of this task's response gave a piece.
pub fn gave_piece() {
    // Only the tasks of HTTP/2 have this limit.
    let _ = HAND_OVER.try_with(|hand_over| {
        hand_over.pieces.set(hand_over.pieces.get() + 1);
        hand_over.is_waiting.set(true);
    });
}

/// Records that the stream took all pieces of this task's response, and asked for more.
pub fn took_pieces() {
    let _ = HAND_OVER.try_with(|hand_over| hand_over.is_waiting.set(false));
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
        spawn_caught("connection", HAND_OVER.scope(HandOver::default(), limited(stream, self.0)));
    }
}

/// Polls a stream to its end, or until a piece has waited for room for `limit`. Dropping an
/// unfinished stream resets it.
async fn limited(stream: impl Future, limit: Duration) {
    let mut stream = pin!(stream);
    let mut stalled: Option<Pin<Box<Sleep>>> = None;
    let mut pieces = 0;
    poll_fn(|context| {
        if stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let (given, is_waiting) =
            HAND_OVER.with(|hand_over| (hand_over.pieces.get(), hand_over.is_waiting.get()));
        if given != pieces || !is_waiting {
            pieces = given;
            stalled = None;
        }
        if !is_waiting {
            return Poll::Pending;
        }
        let stalled = stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stalled.as_mut().poll(context));
        count_slow_reader("http");
        Poll::Ready(())
    })
    .await;
}
