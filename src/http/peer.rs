//! The connection to one client: whether the client still sends, whether it is still connected, and
//! how the connection is closed without losing the last response.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::http::connections::CountedConnection;
use crate::http::room::{kib, resize};
use crate::lifecycle::spawn_on_drop;

/// How long a connection lingers after its last response.
pub const LINGER_LIMIT: Duration = Duration::from_secs(30);
/// How long a connection of HTTP/1 lingers after the last byte that it received.
pub const LINGER_GAP: Duration = Duration::from_secs(5);
/// Bytes that a lingering connection reads and drops, at most.
pub const LINGER_BYTES: usize = 16 << 20;
/// The count of streams of an HTTP/2 connection without a running request.
const IDLE: usize = 1;
/// KiB of bodies and replies that the requests of one HTTP/2 connection may hold together.
const CONNECTION_KIB: u32 = 4 << 10;
/// Bytes that are read and dropped at once.
const DROP_BUFFER: usize = 8 << 10;

/// One accepted connection, shared by the reader and writer of its bytes and by its requests.
pub struct ClientConnection {
    stream: TcpStream,
    /// Counts the connection for as long as anything holds it.
    _counted: TaskTrackerToken,
    /// Counts the connection for its address, as long.
    _of_address: CountedConnection,
    /// Whether bytes arrived that belong to no request that was read to its end.
    unread: AtomicBool,
    /// Whether the last request was read to its end. Bytes of the next request may have arrived with
    /// it, which shows only when the parser reads again.
    request_read: AtomicBool,
    /// Whether a response was given to a request that will not be read to its end.
    refused_unread: AtomicBool,
    /// Running requests of HTTP/2, and one more once HTTP/2 has begun.
    streams: AtomicUsize,
    /// The state that the requests of HTTP/2 share, once it has begun.
    http_2: OnceLock<Arc<Http2Connection>>,
    /// Whether bytes wait for the client to make room.
    is_blocked: AtomicBool,
    /// Whether the orderly close has begun, which has its own limits.
    is_closing: AtomicBool,
    /// Wakes the one task that waits for the connection to be idle.
    activity: Notify,
}

impl ClientConnection {
    /// Wraps an accepted connection, which is counted by a token and for its address.
    pub fn new(
        stream: TcpStream,
        counted: TaskTrackerToken,
        of_address: CountedConnection,
    ) -> Self {
        Self {
            stream,
            _counted: counted,
            _of_address: of_address,
            unread: AtomicBool::new(false),
            request_read: AtomicBool::new(false),
            refused_unread: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
            http_2: OnceLock::new(),
            is_blocked: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            activity: Notify::new(),
        }
    }

    /// Resolves once the client has sent something, or is gone.
    pub async fn first_byte(&self) {
        let _ = self.stream.peek(&mut [0]).await;
    }

    /// Records that a request was read to its end. Bytes that were read with it may belong to the
    /// next one.
    pub fn set_request_read(&self) {
        self.request_read.store(true, Ordering::Relaxed);
    }

    /// Records that a request will not be read to its end.
    pub fn set_unread(&self) {
        self.request_read.store(false, Ordering::Relaxed);
        self.unread.store(true, Ordering::Relaxed);
        self.refused_unread.store(true, Ordering::Relaxed);
    }

    /// Closes a connection in the background that is dropped without a close after a request that
    /// will not be read: hyper drops one whose request offered an upgrade that was refused.
    pub fn close_dropped(self: &Arc<Self>) {
        if self.refused_unread.load(Ordering::Relaxed) {
            let client = Arc::clone(self);
            spawn_on_drop("connection", async move {
                let mut close = OrderlyClose::default();
                let _ = poll_fn(|context| close.poll(&client, context)).await;
            });
        }
    }

    /// Records that the client uses HTTP/2, and returns what its requests share.
    pub fn begin_http_2(&self) -> Arc<Http2Connection> {
        self.streams.store(IDLE, Ordering::Relaxed);
        self.activity.notify_one();
        Arc::clone(self.http_2())
    }

    /// Returns what the requests of a connection of HTTP/2 share.
    pub fn http_2(&self) -> &Arc<Http2Connection> {
        self.http_2.get_or_init(Arc::default)
    }

    /// Counts a running request of HTTP/2 until the guard is dropped.
    pub fn begin_stream(self: &Arc<Self>) -> StreamGuard {
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.activity.notify_one();
        StreamGuard(Arc::clone(self))
    }

    /// Resolves when the client uses HTTP/2, and for `limit` no request ran and no response waited
    /// for the client to make room. Never resolves once the orderly close has begun.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let activity = self.activity.notified();
            if self.streams.load(Ordering::Relaxed) != IDLE
                || self.is_blocked.load(Ordering::Relaxed)
                || self.is_closing.load(Ordering::Relaxed)
            {
                activity.await;
            } else if timeout(limit, activity).await.is_err() {
                return;
            }
        }
    }

    /// Watches a client whose request was read to its end. Cancels `last_byte` when the client has
    /// sent its last byte; the client may still read then. Resolves when the connection breaks.
    pub async fn watch(&self, last_byte: CancellationToken) -> io::Error {
        match self.stream.peek(&mut [0]).await {
            Ok(0) => last_byte.cancel(),
            // The next request has arrived, and an end behind it does not show.
            Ok(_) => {}
            Err(error) => return error,
        }
        match self.stream.ready(Interest::ERROR).await {
            Ok(_) => io::ErrorKind::ConnectionReset.into(),
            Err(error) => error,
        }
    }

    /// Reads from the client.
    pub fn poll_read(
        &self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.stream.poll_read_ready(context)?.is_pending() {
                // The parser needs more bytes, so none of a next request have arrived.
                if self.request_read.swap(false, Ordering::Relaxed) {
                    self.unread.store(false, Ordering::Relaxed);
                }
                return Poll::Pending;
            }
            match self.stream.try_read_buf(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(bytes) => {
                    self.request_read.store(false, Ordering::Relaxed);
                    if bytes > 0 {
                        self.unread.store(true, Ordering::Relaxed);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Writes to the client by `write`, which is called again when the kernel has room.
    pub fn poll_write(
        &self,
        context: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.stream.poll_write_ready(context)?.is_pending() {
                self.set_blocked(true);
                return Poll::Pending;
            }
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.set_blocked(false);
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn set_blocked(&self, is_blocked: bool) {
        // One task writes, so the flag does not change between the two accesses.
        if self.is_blocked.load(Ordering::Relaxed) != is_blocked {
            self.is_blocked.store(is_blocked, Ordering::Relaxed);
            self.activity.notify_one();
        }
    }

    /// Ends the stream of bytes to the client. Where bytes of the client are unread, the connection
    /// must linger: the kernel resets a connection that is closed on unread bytes, and the client
    /// may lose its last response.
    fn end_writing(&self) -> io::Result<Option<Linger>> {
        self.is_closing.store(true, Ordering::Relaxed);
        self.activity.notify_one();
        match SockRef::from(&self.stream).shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(None),
            ended => ended?,
        }
        // A client of HTTP/2 announces room while it reads its last responses, with pauses of its
        // own; the kernel resets a connection that such bytes reach after its close.
        let is_http_2 = self.streams.load(Ordering::Relaxed) != 0;
        let gap = if is_http_2 { LINGER_LIMIT } else { LINGER_GAP };
        Ok(self.unread.load(Ordering::Relaxed).then(|| Linger::new(gap)))
    }
}

/// The state that the requests of one HTTP/2 connection share.
pub struct Http2Connection {
    /// Pieces of responses that were handed over.
    pieces: AtomicUsize,
    /// Room for bodies and replies, in KiB.
    room: Arc<Semaphore>,
}

impl Default for Http2Connection {
    fn default() -> Self {
        let room = Arc::new(Semaphore::new(CONNECTION_KIB as usize));
        Self { pieces: AtomicUsize::new(0), room }
    }
}

impl Http2Connection {
    /// Counts a piece of a response that was handed over.
    pub fn count_piece(&self) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many pieces were handed over; the count wraps.
    pub fn pieces(&self) -> usize {
        self.pieces.load(Ordering::Relaxed)
    }

    /// Waits for room for so many bytes, in the order of the calls. More than a connection may hold
    /// count as all of it.
    pub fn reserve(
        &self,
        bytes: usize,
    ) -> impl Future<Output = Option<OwnedSemaphorePermit>> + Send + 'static {
        let wanted = u32::try_from(kib(bytes)).unwrap_or(CONNECTION_KIB).min(CONNECTION_KIB);
        let room = Arc::clone(&self.room);
        // The semaphore is never closed.
        async move { room.acquire_many_owned(wanted).await.ok() }
    }

    /// Takes or gives back the difference of a reservation to so many bytes. Returns none where there is
    /// no room for more at once.
    pub fn resize(
        &self,
        reserved: OwnedSemaphorePermit,
        bytes: usize,
    ) -> Option<OwnedSemaphorePermit> {
        resize(reserved, bytes, CONNECTION_KIB)
    }
}

/// Counts a running request of HTTP/2, until its response was handed over.
pub struct StreamGuard(Arc<ClientConnection>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        self.0.activity.notify_one();
    }
}

/// The orderly close of a connection.
#[derive(Default)]
pub struct OrderlyClose {
    is_writing_ended: bool,
    linger: Option<Linger>,
}

impl OrderlyClose {
    /// Returns whether the close has begun.
    pub fn has_begun(&self) -> bool {
        self.is_writing_ended
    }

    /// Ends the stream of bytes to the client, and lingers where bytes of the client are unread.
    pub fn poll(
        &mut self,
        client: &ClientConnection,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_writing_ended {
            self.is_writing_ended = true;
            self.linger = client.end_writing()?;
        }
        if let Some(linger) = &mut self.linger {
            ready!(linger.poll(client, context));
            self.linger = None;
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads and drops the rest of the client's bytes, within bounds.
struct Linger {
    limit: Pin<Box<Sleep>>,
    gap: Duration,
    gap_end: Pin<Box<Sleep>>,
    bytes: usize,
}

impl Linger {
    fn new(gap: Duration) -> Self {
        let (limit, gap_end) = (Box::pin(sleep(LINGER_LIMIT)), Box::pin(sleep(gap)));
        Self { limit, gap, gap_end, bytes: 0 }
    }

    fn poll(&mut self, client: &ClientConnection, context: &mut Context<'_>) -> Poll<()> {
        let mut dropped = [0; DROP_BUFFER];
        while self.bytes < LINGER_BYTES {
            let mut into = ReadBuf::new(&mut dropped);
            match client.poll_read(context, &mut into) {
                Poll::Ready(Ok(())) if !into.filled().is_empty() => {
                    self.bytes += into.filled().len();
                    self.gap_end.as_mut().reset(Instant::now() + self.gap);
                    if self.limit.as_mut().poll(context).is_ready() {
                        break;
                    }
                }
                Poll::Ready(_) => break,
                Poll::Pending => {
                    if self.limit.as_mut().poll(context).is_pending() {
                        ready!(self.gap_end.as_mut().poll(context));
                    }
                    break;
                }
            }
        }
        Poll::Ready(())
    }
}

/// Notifies a handler that its client has sent its last byte. The client may be gone, or it may wait
/// for the response; only a write shows which.
#[derive(Clone, Default)]
pub struct LastByte(pub CancellationToken);

impl LastByte {
    /// Resolves once the client has sent its last byte.
    pub async fn received(&self) {
        self.0.cancelled().await;
    }

    /// Resolves as [`LastByte::received`] does, and never where that was handled already.
    pub async fn received_of(last_byte: Option<Self>) {
        match last_byte {
            Some(last_byte) => last_byte.received().await,
            None => pending().await,
        }
    }
}

/// Resolves with the error of a watched connection that breaks, and never without a watch.
pub async fn connection_error<W: Future<Output = io::Error> + Unpin>(
    watch: Option<&mut W>,
) -> io::Error {
    match watch {
        Some(watch) => watch.await,
        None => pending().await,
    }
}
