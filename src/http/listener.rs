//! Accepts connections, with bounded buffers and time limits for their clients.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use axum::response::IntoResponse;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::http::connections::AddressConnections;
use crate::http::exchange;
use crate::http::frames::FrameBudget;
use crate::http::middleware::headers;
use crate::http::peer::{ClientConnection, OrderlyClose};
use crate::http::problem::Problem;
use crate::http::room::ConnectionRoom;
use crate::http::stream_limit::{PIECE_BYTES, StreamExecutor};
use crate::lifecycle::{Lifecycle, Phase, TaskEnd, spawn_caught};
use crate::telemetry::{count_slow_reader, metric};

/// Bytes of the kernel's buffer for each direction of a connection, which the kernel doubles. Its
/// default grows to megabytes for each slow reader.
const KERNEL_BUFFER: u32 = 64 << 10;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Bytes that HTTP/1 reads or writes ahead; the head of a request must fit.
const HTTP_BUFFER: usize = 64 << 10;
/// Bytes that a stream of HTTP/2 writes ahead. The reply to a ping comes behind them and behind the
/// kernel's buffer, so a slow client must read all of them within the limit.
const STREAM_BUFFER: usize = 2 * PIECE_BYTES;
/// The beginning of the paths of health probes.
const PROBES: &str = "/health";
/// Time limit of a connection that is opened when all others are in use.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// How long such a connection may send nothing: a probe sends its request at once, and silent
/// connections must not take the room of probes.
const SILENCE_LIMIT: Duration = Duration::from_millis(100);
/// The first bytes of a client that uses HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The reply to a client of HTTP/2 where HTTP/2 is off: an empty SETTINGS frame, and GOAWAY with the code
/// HTTP_1_1_REQUIRED (RFC 9113, section 7).
const HTTP_2_REFUSAL: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0d";
/// Streams of a connection of HTTP/2 at a time.
const STREAMS: u32 = 16;
/// Bytes of a body that a client may send ahead on one stream of HTTP/2.
const STREAM_WINDOW: u32 = 64 << 10;
/// Bytes that a client may send ahead on all streams. A stream whose body is not read yet takes no
/// room of another.
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// Bytes of the head of a request of HTTP/2.
const HTTP_2_HEAD: u32 = 16 << 10;
/// Streams that a client has reset and that wait to be dropped. A client with more is cut off.
const RESET_STREAMS: usize = 16;
/// The time beyond the limit in which a slow WebSocket gets its close frame.
const GRACE: Duration = Duration::from_secs(5);

/// Listens on an address.
///
/// # Errors
/// Where the address is in use, or does not belong to this machine.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit the sizes.
    socket.set_send_buffer_size(KERNEL_BUFFER)?;
    socket.set_recv_buffer_size(KERNEL_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The limits of clients.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// The limit for the head of a request, for making room for the next byte, for the reply to an
    /// HTTP/2 ping, and for the time between two requests.
    pub read: Duration,
    /// The interval of HTTP/2 pings.
    pub heartbeat: Duration,
    /// Connections at a time. On further ones only health probes are answered.
    pub connections: usize,
    /// Connections of health probes in addition to those.
    pub probes: usize,
    /// Whether clients may use HTTP/2.
    pub http_2: bool,
}

impl ClientLimits {
    /// Returns how long a connection of HTTP/2 may be idle before GOAWAY, and how long it may take to
    /// end after it: together the limit for a client that sends nothing.
    fn idle(self) -> (Duration, Duration) {
        let end = (self.read / 4).min(GRACE);
        (self.read.saturating_sub(end), end)
    }
}

/// Serves until the process has stopped, and then until all requests have their responses.
pub async fn serve(
    mut listener: TcpListener,
    router: Router,
    room: ConnectionRoom,
    limits: ClientLimits,
    of_addresses: AddressConnections,
    lifecycle: Lifecycle,
) -> TaskEnd {
    let protocol = protocol(limits);
    let (idle_limit, end_limit) = limits.idle();
    let connections = TaskTracker::new();
    let probes = Arc::new(Semaphore::new(limits.probes));
    loop {
        let next = async {
            // Each connection of a probe is short, so that there is soon room for the next one.
            let is_full = connections.len() >= limits.connections;
            let probe = if is_full { Arc::clone(&probes).acquire_owned().await.ok() } else { None };
            // axum's `accept` waits while the process has no file descriptor left.
            (probe, Listener::accept(&mut listener).await)
        };
        let (probe, (stream, address)) = tokio::select! {
            accepted = next => accepted,
            () = lifecycle.reached(Phase::Stopped) => break,
        };
        let Some(of_address) = of_addresses.admit(address.ip()) else {
            metrics::counter!(metric::LIMIT_REFUSALS_TOTAL, "limit" => "address-connections")
                .increment(1);
            // A reply would cost more than it gives: a client with so many connections is none that
            // reads it.
            tracing::debug!("connection of an address that has its largest number closed");
            continue;
        };
        if let Some(probe) = probe {
            let client = Arc::new(ClientConnection::new(stream, connections.token(), of_address));
            let answered = answer_probe(Arc::clone(&client), address, router.clone(), room.clone());
            spawn_caught("connection", async move {
                if timeout(SILENCE_LIMIT, client.first_byte()).await.is_ok() {
                    let _ = timeout(PROBE_LIMIT, answered).await;
                }
                drop(probe);
            });
            continue;
        }
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY not set");
        }
        let client = Arc::new(ClientConnection::new(stream, connections.token(), of_address));
        let io = TokioIo::new(TimedStream::new(Arc::clone(&client), limits));
        let (router, room) = (router.clone(), room.clone());
        let shared = Arc::clone(&client);
        let service = service_fn(move |request| {
            exchange::handle(router.clone(), room.clone(), request, address, Arc::clone(&shared))
        });
        let connection = protocol.serve_connection_with_upgrades(io, service).into_owned();
        let lifecycle = lifecycle.clone();
        // A panic while a body is streamed ends the connection here. The connection counts until its
        // last part is dropped: a WebSocket, or the close of a dropped one, outlives this task.
        spawn_caught("connection", async move {
            let mut connection = pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => return,
                () = client.idle(idle_limit) => connection.as_mut().graceful_shutdown(),
                () = lifecycle.reached(Phase::Stopped) => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                _ = connection => {}
                // The client sends no request, and keeps the connection open.
                () = client.idle(end_limit) => {}
            }
        });
    }
    connections.close();
    connections.wait().await;
    TaskEnd::Done
}

/// Serves one request of a client that connected when all connections were in use: a health probe is
/// answered, and any other request is refused.
async fn answer_probe(
    client: Arc<ClientConnection>,
    address: SocketAddr,
    router: Router,
    room: ConnectionRoom,
) {
    let limits = ClientLimits {
        read: PROBE_LIMIT,
        heartbeat: PROBE_LIMIT,
        connections: 1,
        probes: 1,
        http_2: false,
    };
    let io = TokioIo::new(TimedStream::new(Arc::clone(&client), limits));
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, room, client) = (router.clone(), room.clone(), Arc::clone(&client));
        async move {
            if request.uri().path().starts_with(PROBES) {
                return exchange::handle(router, room, request, address, client).await;
            }
            client.set_unread();
            let detail = "This replica has its largest number of connections; retry after 5 s.";
            let refused = Problem::unavailable("too_many_connections", detail, 5);
            Ok(headers::secured(request.uri().path(), refused.into_response()))
        }
    });
    let mut protocol = hyper::server::conn::http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(PROBE_LIMIT).keep_alive(false);
    let _ = protocol.serve_connection(io, service).await;
}

fn protocol(limits: ClientLimits) -> Builder<StreamExecutor> {
    let mut protocol = Builder::new(StreamExecutor(limits.read));
    protocol
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.read)
        // A client that has sent its last byte may wait for its response. exchange.rs notices one
        // that is gone.
        .half_close(true)
        .max_buf_size(HTTP_BUFFER);
    protocol
        .http2()
        .timer(TokioTimer::new())
        .max_send_buf_size(STREAM_BUFFER)
        .keep_alive_interval(limits.heartbeat)
        .keep_alive_timeout(limits.read)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HTTP_2_HEAD)
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .max_local_error_reset_streams(RESET_STREAMS);
    if limits.http_2 { protocol } else { protocol.http1_only() }
}

/// A stream of bytes that fails when a write, or the first read, takes longer than the limit, and when
/// a client of HTTP/2 sends too many control frames.
pub struct TimedStream {
    client: Arc<ClientConnection>,
    limits: ClientLimits,
    preface: Option<PrefaceWait>,
    /// The control frames of a client of HTTP/2.
    frames: Option<Box<FrameBudget>>,
    /// The rest of the refusal of HTTP/2, where it is off and the client uses it.
    refusal: &'static [u8],
    /// The deadline of a write that waits for room.
    stalled: Option<Pin<Box<Sleep>>>,
    close: OrderlyClose,
}

/// The wait for the first bytes, for which hyper has no limit.
struct PrefaceWait {
    deadline: Pin<Box<Sleep>>,
    /// Bytes so far, all of them the beginning of HTTP/2's preface. They are held back until it is
    /// certain which protocol the client uses.
    held: usize,
}

/// The protocol that the first bytes show.
enum HttpProtocol {
    /// HTTP/1, or the end of the stream.
    Http1,
    Http2,
}

impl TimedStream {
    fn new(client: Arc<ClientConnection>, limits: ClientLimits) -> Self {
        let preface = Some(PrefaceWait { deadline: Box::pin(sleep(limits.read)), held: 0 });
        let (frames, stalled, close) = (None, None, OrderlyClose::default());
        Self { client, limits, preface, frames, refusal: &[], stalled, close }
    }

    /// Reads the first bytes, and passes them on once they show the protocol.
    fn poll_preface(
        &mut self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(wait) = &mut self.preface else { return Poll::Ready(Ok(())) };
        let protocol = loop {
            let mut bytes = [0; PREFACE.len()];
            let expected = &PREFACE[wait.held..];
            // The bytes that are held back have to fit before these.
            let room = expected.len().min(into.remaining().saturating_sub(wait.held));
            let mut read = ReadBuf::new(&mut bytes[..room]);
            if self.client.poll_read(context, &mut read)?.is_pending() {
                ready!(wait.deadline.as_mut().poll(context));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let received = read.filled();
            if received.is_empty() || !expected.starts_with(received) {
                into.put_slice(&PREFACE[..wait.held]);
                into.put_slice(received);
                // The parser doubles its buffer for a head that it gets in two parts.
                if !received.is_empty() && into.remaining() > 0 {
                    let _ = self.client.poll_read(context, into)?;
                }
                break HttpProtocol::Http1;
            }
            wait.held += received.len();
            if wait.held == PREFACE.len() {
                break HttpProtocol::Http2;
            }
        };
        self.preface = None;
        match protocol {
            HttpProtocol::Http1 => {}
            HttpProtocol::Http2 if self.limits.http_2 => {
                into.put_slice(PREFACE);
                self.frames = Some(Box::new(FrameBudget::new(self.client.begin_http_2())));
            }
            // The bytes that were read look like an end of the stream before the first request.
            HttpProtocol::Http2 => self.refusal = HTTP_2_REFUSAL,
        }
        Poll::Ready(Ok(()))
    }

    fn limit_write<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.limits.read + GRACE;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stalled.as_mut().poll(context));
        count_slow_reader("http");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.preface.is_some() {
            return self.poll_preface(context, into);
        }
        let before = into.filled().len();
        let read = ready!(self.client.poll_read(context, into));
        if let Some(frames) = &mut self.frames
            && !frames.admits(&into.filled()[before..])
        {
            tracing::debug!("too many control frames; connection closed");
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.refusal.is_empty() {
            // hyper answers the end before the first request, in HTTP/1.
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = self.client.poll_write(context, |stream| stream.try_write(bytes));
        self.limit_write(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.refusal.is_empty() {
            return Poll::Ready(Ok(buffers.iter().map(|buffer| buffer.len()).sum()));
        }
        let written = self.client.poll_write(context, |stream| stream.try_write_vectored(buffers));
        self.limit_write(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.refusal.is_empty() {
            let refusal = self.refusal;
            let written =
                ready!(self.client.poll_write(context, |stream| stream.try_write(refusal)))?;
            self.refusal = &refusal[written..];
        }
        let Self { client, close, .. } = &mut *self;
        close.poll(client, context)
    }
}

impl Drop for TimedStream {
    fn drop(&mut self) {
        if !self.close.has_begun() {
            self.client.close_dropped();
        }
    }
}
