//! The other end of a connection: whether it still sends, whether it is still there, and how the
//! connection is ended without losing the last response.

use std::future::{Future, pending};
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

/// How long a connection lingers after its last response.
pub const LINGER_LIMIT: Duration = Duration::from_secs(30);
/// How long it lingers after the last byte that came.
pub const LINGER_GAP: Duration = Duration::from_secs(5);
/// Bytes that a lingering connection reads and drops, at most.
pub const LINGER_BYTES: usize = 16 << 20;
/// Bytes that are dropped at a time.
const DROPPED_AT_ONCE: usize = 8 << 10;

/// One accepted connection, shared by the reader and writer of its bytes and by its requests.
pub struct Peer {
    stream: TcpStream,
    /// Bytes came that belong to no request that was read whole.
    unread: AtomicBool,
}

impl Peer {
    /// Wraps an accepted connection.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, unread: AtomicBool::new(false) }
    }

    /// Notes that everything that the client sent so far was read, to the end of a request.
    pub fn read_whole(&self) {
        self.unread.store(false, Ordering::Relaxed);
    }

    /// Watches a client whose request was read whole. Cancels `hangup` when the client has sent its
    /// last byte; it may still read then. Resolves when the connection is broken.
    pub async fn watch(&self, hangup: CancellationToken) -> io::Error {
        match self.stream.peek(&mut [0]).await {
            Ok(0) => hangup.cancel(),
            // The next request is there already, and hides an end behind it.
            Ok(_) => {}
            Err(error) => return error,
        }
        match self.stream.ready(Interest::ERROR).await {
            Ok(_) => io::ErrorKind::ConnectionReset.into(),
            Err(error) => error,
        }
    }

    /// Reads what the client sent.
    pub fn poll_read(
        &self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read_buf(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(bytes) => {
                    if bytes > 0 {
                        self.unread.store(true, Ordering::Relaxed);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Writes to the client by `write`, which is called again when there is room.
    pub fn poll_write(
        &self,
        context: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    /// Sends the end of what is written. Where the client's bytes were not all read, what still
    /// comes has to be read and dropped: a connection that is closed on unread bytes is reset, and
    /// the client may lose the response that it was sent.
    fn end_writing(&self) -> io::Result<Option<Linger>> {
        match SockRef::from(&self.stream).shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(None),
            ended => ended?,
        }
        Ok(self.unread.load(Ordering::Relaxed).then(Linger::new))
    }
}

/// The end of a connection.
#[derive(Default)]
pub struct Ending(Option<Linger>, bool);

impl Ending {
    /// Ends what is written, and lingers where the client has not been read to its end.
    pub fn poll(&mut self, peer: &Peer, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.1 {
            self.1 = true;
            self.0 = peer.end_writing()?;
        }
        if let Some(linger) = &mut self.0 {
            ready!(linger.poll(peer, context));
            self.0 = None;
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads and drops what still comes, within bounds.
struct Linger {
    limit: Pin<Box<Sleep>>,
    gap: Pin<Box<Sleep>>,
    bytes: usize,
}

impl Linger {
    fn new() -> Self {
        Self { limit: Box::pin(sleep(LINGER_LIMIT)), gap: Box::pin(sleep(LINGER_GAP)), bytes: 0 }
    }

    fn poll(&mut self, peer: &Peer, context: &mut Context<'_>) -> Poll<()> {
        let mut dropped = [0; DROPPED_AT_ONCE];
        while self.bytes < LINGER_BYTES {
            let mut into = ReadBuf::new(&mut dropped);
            match peer.poll_read(context, &mut into) {
                Poll::Ready(Ok(())) if !into.filled().is_empty() => {
                    self.bytes += into.filled().len();
                    self.gap.as_mut().reset(Instant::now() + LINGER_GAP);
                    if self.limit.as_mut().poll(context).is_ready() {
                        break;
                    }
                }
                Poll::Ready(_) => break,
                Poll::Pending => {
                    if self.limit.as_mut().poll(context).is_pending() {
                        ready!(self.gap.as_mut().poll(context));
                    }
                    break;
                }
            }
        }
        Poll::Ready(())
    }
}

/// Tells a handler that its client has sent its last byte. That client may be gone, or it may wait
/// for the response: nobody can tell before something is written to it.
#[derive(Clone, Default)]
pub struct Hangup(pub CancellationToken);

impl Hangup {
    /// Resolves once the client has sent its last byte.
    pub async fn happened(&self) {
        self.0.cancelled().await;
    }
}

/// Resolves with the error of a connection that breaks, if it is watched at all.
pub async fn broken<W: Future<Output = io::Error> + Unpin>(watch: Option<&mut W>) -> io::Error {
    match watch {
        Some(watch) => watch.await,
        None => pending().await,
    }
}
