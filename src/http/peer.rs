//! The other end of a connection: whether it still sends, whether it is still there, and how the
//! connection is ended without losing the last response.

use std::future::{Future, pending};
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long a connection lingers after its last response.
pub const LINGER_LIMIT: Duration = Duration::from_secs(30);
/// How long it lingers after the last byte that came.
pub const LINGER_GAP: Duration = Duration::from_secs(5);
/// Bytes that a lingering connection reads and drops, at most.
pub const LINGER_BYTES: usize = 16 << 20;
/// The count of streams where HTTP/2 has begun and no request is being answered.
const IDLE: usize = 1;
/// Bytes that are dropped at a time.
const DROPPED_AT_ONCE: usize = 8 << 10;

/// One accepted connection, shared by the reader and writer of its bytes and by its requests.
pub struct Peer {
    stream: TcpStream,
    /// Bytes came that belong to no request that was read whole.
    unread: AtomicBool,
    /// The last request was read whole. Whether bytes of a next one came with it is not known
    /// before more is wanted.
    whole: AtomicBool,
    /// Requests of HTTP/2 that are being answered, and one more once HTTP/2 has begun.
    streams: AtomicUsize,
    /// Wakes the one task that waits for the connection to be idle.
    streams_changed: Notify,
}

impl Peer {
    /// Wraps an accepted connection.
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            unread: AtomicBool::new(false),
            whole: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
            streams_changed: Notify::new(),
        }
    }

    /// Notes that a request was read to its end. What was read with it may belong to the next one.
    pub fn read_whole(&self) {
        self.whole.store(true, Ordering::Relaxed);
    }

    /// Notes that a request will not be read to its end.
    pub fn leave_unread(&self) {
        self.whole.store(false, Ordering::Relaxed);
        self.unread.store(true, Ordering::Relaxed);
    }

    /// Notes that the client speaks HTTP/2.
    pub fn begin_http_2(&self) {
        self.streams.store(IDLE, Ordering::Relaxed);
        self.streams_changed.notify_one();
    }

    /// Counts a request of HTTP/2 until what is returned is dropped.
    pub fn begin_stream(self: &Arc<Self>) -> OpenStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.streams_changed.notify_one();
        OpenStream(Arc::clone(self))
    }

    /// Resolves when the client speaks HTTP/2, and no request of it was being answered for so long.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let changed = self.streams_changed.notified();
            if self.streams.load(Ordering::Relaxed) != IDLE {
                changed.await;
            } else if timeout(limit, changed).await.is_err() {
                return;
            }
        }
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
            if self.stream.poll_read_ready(context)?.is_pending() {
                // What came was not enough for a next request, so there is none.
                if self.whole.swap(false, Ordering::Relaxed) {
                    self.unread.store(false, Ordering::Relaxed);
                }
                return Poll::Pending;
            }
            match self.stream.try_read_buf(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(bytes) => {
                    self.whole.store(false, Ordering::Relaxed);
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

/// A request of HTTP/2 that is being answered, until its response was handed over.
pub struct OpenStream(Arc<Peer>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        self.0.streams_changed.notify_one();
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
