//! The body of a streamed answer, with control over what reaches the socket and when.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::error::ApiError;

/// The parts that a generation hands to its response.
#[derive(Debug)]
pub enum Frame {
    /// Bytes of the body.
    Data(Bytes),
    /// A flush: everything so far is sent to the socket before what follows.
    Flush,
    /// The connection is closed without a terminator.
    Abort,
    /// An error; a status if it is the first frame.
    Fail(ApiError),
}

/// A body fed by a generation; a client that is paused does not hold the generation up.
pub struct Frames {
    first: Option<Frame>,
    rest: UnboundedReceiver<Frame>,
    flushed: bool,
}

impl Frames {
    /// Creates a body that starts with a frame that was already taken.
    pub fn new(first: Option<Frame>, rest: UnboundedReceiver<Frame>) -> Self {
        Self { first, rest, flushed: false }
    }
}

impl Stream for Frames {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let frame = match self.first.take() {
            Some(frame) => Some(frame),
            None => match self.rest.poll_recv(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => return Poll::Pending,
            },
        };
        match frame {
            None => Poll::Ready(None),
            Some(Frame::Data(bytes)) => {
                self.flushed = false;
                Poll::Ready(Some(Ok(bytes)))
            }
            // hyper flushes when a body is pending, and only then.
            Some(Frame::Flush) => {
                self.flushed = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Frame::Abort) if !self.flushed => {
                self.flushed = true;
                self.first = Some(Frame::Abort);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Frame::Abort) => Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into()))),
            Some(Frame::Fail(error)) => {
                let line = serde_json::json!({"error": error.to_string()}).to_string() + "\n";
                Poll::Ready(Some(Ok(line.into())))
            }
        }
    }
}
