//! Connections: their buffers are bounded, and their clients have to write and to read in time.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Sleep, sleep};
use tokio_util::task::TaskTracker;

use crate::http::exchange;
use crate::http::peer::{Ending, Peer};
use crate::http::stream_limit::StreamExecutor;
use crate::lifecycle::{Lifecycle, Phase, TaskEnd, catch_panic};
use crate::telemetry::metric;

/// What the kernel keeps of each direction of a connection; it takes twice that for its own needs.
/// Left to itself it goes up to megabytes, which is memory of the machine for each slow reader.
const KERNEL_BUFFER: u32 = 64 << 10;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Bytes that HTTP/1 reads or writes ahead; the head of a request has to fit.
const HTTP_BUFFER: usize = 64 << 10;
/// The first bytes of a client that speaks HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a WebSocket has beyond the limit to be told that it is too slow, and a connection of HTTP/2
/// to end after it was told to.
const GRACE: Duration = Duration::from_secs(5);

/// Listens on an address.
///
/// # Errors
/// Where it is taken, or not of this machine.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Connections inherit them.
    socket.set_send_buffer_size(KERNEL_BUFFER)?;
    socket.set_recv_buffer_size(KERNEL_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimits {
    /// For the head of a request, to make room for the next byte, to answer a ping of HTTP/2, and
    /// between two requests.
    pub read: Duration,
    /// Between two pings of HTTP/2.
    pub heartbeat: Duration,
}

/// Serves until the process has stopped, and then until all requests are answered.
pub async fn serve(
    mut listener: TcpListener,
    router: Router,
    limits: TimeLimits,
    lifecycle: Lifecycle,
) -> TaskEnd {
    let protocol = protocol(limits);
    let read_timeout = limits.read;
    let connections = TaskTracker::new();
    loop {
        let (stream, address) = tokio::select! {
            // axum's accept waits where there are no descriptors left.
            accepted = Listener::accept(&mut listener) => accepted,
            () = lifecycle.reached(Phase::Stopped) => break,
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "Nagle's algorithm stays on");
        }
        let limit = read_timeout + GRACE;
        let deadline = Box::pin(sleep(limit));
        let opening = Some(Opening { deadline, bytes: 0, is_http_2: true });
        let peer = Arc::new(Peer::new(stream));
        let ending = Ending::default();
        let io = Connection { peer: Arc::clone(&peer), limit, opening, stalled: None, ending };
        let io = TokioIo::new(io);
        let router = router.clone();
        let client = Arc::clone(&peer);
        let service = service_fn(move |request| {
            exchange::answer(router.clone(), request, address, Arc::clone(&client))
        });
        let connection = protocol.serve_connection_with_upgrades(io, service).into_owned();
        let lifecycle = lifecycle.clone();
        // A panic while a body is streamed comes out here, and drops all that the connection has.
        connections.spawn(catch_panic("connection", async move {
            let mut connection = pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => return,
                () = peer.idle(read_timeout) => connection.as_mut().graceful_shutdown(),
                () = lifecycle.reached(Phase::Stopped) => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                _ = connection => {}
                // A client that neither asks nor lets go.
                () = peer.idle(GRACE) => {}
            }
        }));
    }
    connections.close();
    connections.wait().await;
    TaskEnd::Done
}

fn protocol(limits: TimeLimits) -> Builder<StreamExecutor> {
    let mut protocol = Builder::new(StreamExecutor(limits.read));
    protocol
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.read)
        // A client that has sent its last byte may wait for its response: exchange.rs tells it from
        // one that is gone.
        .half_close(true)
        .max_buf_size(HTTP_BUFFER);
    protocol
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.heartbeat)
        .keep_alive_timeout(limits.read);
    protocol
}

/// A connection that fails when it could not write, or had nothing to read at first, for too long.
pub struct Connection {
    peer: Arc<Peer>,
    limit: Duration,
    opening: Option<Opening>,
    /// Ends the wait for room, while there is none.
    stalled: Option<Pin<Box<Sleep>>>,
    ending: Ending,
}

/// The wait for the first bytes, for which HTTP itself has no limit.
struct Opening {
    deadline: Pin<Box<Sleep>>,
    bytes: usize,
    /// What came so far is the beginning of HTTP/2.
    is_http_2: bool,
}

impl Connection {
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stalled.as_mut().poll(context));
        too_slow("http");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Counts a client that did not read.
pub fn too_slow(protocol: &'static str) {
    metrics::counter!(metric::SLOW_READERS_TOTAL, "protocol" => protocol).increment(1);
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = self.peer.poll_read(context, into);
        if let Some(opening) = &mut self.opening {
            if read.is_pending() {
                ready!(opening.deadline.as_mut().poll(context));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let (came, expected) = (&into.filled()[before..], &PREFACE[opening.bytes..]);
            let compared = came.len().min(expected.len());
            opening.is_http_2 &= came[..compared] == expected[..compared];
            opening.bytes += compared;
            if !opening.is_http_2 {
                // HTTP/1 has a limit for the head of a request.
                self.opening = None;
            } else if opening.bytes == PREFACE.len() {
                self.peer.begin_http_2();
                self.opening = None;
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.peer.poll_write(context, |stream| stream.try_write(bytes));
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.peer.poll_write(context, |stream| stream.try_write_vectored(buffers));
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { peer, ending, .. } = &mut *self;
        ending.poll(peer, context)
    }
}
