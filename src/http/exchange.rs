//! One request and its response: it reads the rest of a body that the handler left unread, or closes
//! the connection, and it notices a client that leaves.
//!
//! A connection is kept only where the request was read to its end. A handler may respond before
//! that without further care.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use axum::response::IntoResponse;
use futures_util::future::BoxFuture;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::timeout;
use tower::ServiceExt;

use crate::http::middleware::headers;
use crate::http::peer::{ClientConnection, Http2Connection, LINGER_BYTES, LINGER_GAP};
use crate::http::peer::{LINGER_LIMIT, LastByte, StreamGuard, connection_error};
use crate::http::problem::Problem;
use crate::http::room::{
    self, ConnectionRoom, FREE_BYTES, REPLY_BYTES, RoomPermit, TakenRoom, WholeBodyRoom,
};
use crate::http::stream_limit::{PIECE_BYTES, gave_piece, took_pieces};
use crate::lifecycle::spawn_caught;

/// Bytes of an unread body that are read and dropped so that its connection can be kept.
const DRAINED_BYTES: u64 = 1 << 20;
/// How long the drain may take, while the response waits for it.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// Bytes of a body that a handler may hold, at most; a handler refuses a larger one.
const BODY_BYTES: usize = 512 << 10;
/// How long a request of HTTP/2 waits until earlier replies of its connection were read. A reply that
/// is not read is reset within the read timeout.
const ROOM_LIMIT: Duration = Duration::from_mins(2);

/// Handles one request. The response closes its connection where the request was not read to its
/// end.
///
/// # Errors
/// Where the connection breaks before there is a response.
pub async fn handle(
    router: Router,
    room: ConnectionRoom,
    request: Request<Incoming>,
    address: SocketAddr,
    client: Arc<ClientConnection>,
) -> io::Result<Response<Body>> {
    // A stream of HTTP/2 ends without its connection.
    let has_own_connection = request.version() < Version::HTTP_2;
    let stream = (!has_own_connection).then(|| client.begin_stream());
    let awaits_continue = request.headers().contains_key(header::EXPECT);
    let last_byte = LastByte::default();
    let reserved = match &stream {
        // A handler of these reads no body, whatever is sent.
        Some(_) if is_read_request(&request) => {
            match timeout(ROOM_LIMIT, client.http_2().reserve(REPLY_BYTES)).await {
                Ok(reserved) => reserved,
                Err(_) => return Ok(no_room(request.uri().path())),
            }
        }
        _ => None,
    };
    let path = request.uri().path().to_owned();
    let (mut parts, body) = request.into_parts();
    let has_no_room = Arc::<AtomicBool>::default();
    let http_2 = stream.is_some().then(|| client.http_2());
    let whole = WholeBodyRoom::default();
    parts.extensions.insert(whole.clone());
    let room = BodyRoom::of(&body, &parts.headers, address.ip(), (&room, whole), http_2);
    let (lent, mut body_end) = LentBody::new(body, room, Arc::clone(&has_no_room));
    parts.extensions.insert(ConnectInfo(address));
    parts.extensions.insert(last_byte.clone());
    let request = Request::from_parts(parts, Body::new(lent));

    let mut end = None;
    let mut watch: Option<BoxFuture<'static, io::Error>> = None;
    let mut response = {
        let mut handling = pin!(router.oneshot(request));
        loop {
            tokio::select! {
                biased;
                response = &mut handling => break response.unwrap_or_else(|never| match never {}),
                error = connection_error(watch.as_mut()) => return Err(error),
                received = &mut body_end, if end.is_none() => {
                    let received = received.unwrap_or(BodyEnd::Lost);
                    if let (BodyEnd::Read, true) = (&received, has_own_connection) {
                        let (client, last_byte) = (Arc::clone(&client), last_byte.0.clone());
                        watch = Some(Box::pin(async move { client.watch(last_byte).await }));
                    }
                    end = Some(received);
                }
            }
        }
    };
    if has_no_room.load(Ordering::Relaxed) && response.status().is_client_error() {
        response = headers::secured(&path, room::no_room().into_response());
    }
    // The handler has returned, and has dropped the request.
    let is_read = match end.unwrap_or_else(|| body_end.try_recv().unwrap_or(BodyEnd::Lost)) {
        BodyEnd::Read => true,
        BodyEnd::Unread { mut body, was_polled } => {
            // Reading would make a client that waits for "100 Continue" send an unwanted body.
            let drained = (was_polled || !awaits_continue) && drain(&mut body).await;
            if !drained && !has_own_connection {
                spawn_caught("connection", linger(body));
            }
            drained
        }
        BodyEnd::Lost => false,
    };
    if is_read {
        client.set_request_read();
    } else {
        client.set_unread();
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let taken = response.extensions_mut().remove::<TakenRoom>();
    let beside = match (watch, stream) {
        (Some(watch), _) if is_streamed(&response) => Beside::Watch(watch),
        (_, Some(guard)) => {
            let connection = Arc::clone(client.http_2());
            let size = response.body().size_hint().exact();
            let size = size.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
            let reserved = match (reserved, size) {
                (Some(reserved), Some(size)) => match connection.resize(reserved, size) {
                    Some(reserved) => Some(reserved),
                    None => return Ok(no_room(&path)),
                },
                (None, Some(size)) if size > FREE_BYTES => {
                    match timeout(ROOM_LIMIT, connection.reserve(size)).await {
                        Ok(reserved) => reserved,
                        Err(_) => return Ok(no_room(&path)),
                    }
                }
                _ => None,
            };
            let reserved = (reserved, taken);
            Beside::Stream { rest: Bytes::new(), connection, _reserved: reserved, _guard: guard }
        }
        _ => match taken {
            Some(room) => Beside::Room(room),
            None => return Ok(response),
        },
    };
    Ok(response.map(|body| Body::new(SentBody { body, beside })))
}

fn is_read_request(request: &Request<Incoming>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
}

/// Returns the refusal of a request whose connection has no room for its reply.
fn no_room(path: &str) -> Response<Body> {
    let detail = "This connection has as many bytes under way as it may have; read the replies that it \
        has, and send the request again after 5 s.";
    let refused = Problem::unavailable("too_many_connections", detail, 5);
    headers::secured(path, refused.into_response())
}

fn is_streamed(response: &Response<Body>) -> bool {
    response.status() != StatusCode::SWITCHING_PROTOCOLS
        && response.body().size_hint().exact().is_none()
}

/// Reads and drops a body. Returns whether it ended within the bounds.
async fn drain(body: &mut Incoming) -> bool {
    body.size_hint().lower() <= DRAINED_BYTES
        && timeout(DRAIN_LIMIT, read_out(body, DRAINED_BYTES)).await.unwrap_or(false)
}

/// Reads and drops the rest of a body on an HTTP/2 stream that has its response, because some
/// clients read a response only after they have sent the whole request. An HTTP/1 connection does
/// the same where it is closed.
async fn linger(mut body: Incoming) {
    let _ = timeout(LINGER_LIMIT, read_out(&mut body, LINGER_BYTES as u64)).await;
}

/// Reads and drops a body. Returns whether it ended within `most` bytes and without too long a
/// pause.
async fn read_out(body: &mut Incoming, most: u64) -> bool {
    let mut bytes = 0;
    loop {
        let next = poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
        match timeout(LINGER_GAP, next).await {
            Ok(Some(Ok(frame))) => bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            Ok(None) => return true,
            Ok(Some(Err(_))) | Err(_) => return false,
        }
        if bytes > most {
            return false;
        }
    }
}

/// How the handler left a request's body.
enum BodyEnd {
    /// The body was read to its end.
    Read,
    /// The body was dropped before its end.
    Unread {
        body: Incoming,
        /// Whether the handler began to read it.
        was_polled: bool,
    },
    /// The body broke off, or is still in use.
    Lost,
}

/// A request's body, lent to the handler. It reports its end when it is read or dropped.
struct LentBody {
    body: Option<Incoming>,
    was_polled: bool,
    room: BodyRoom,
    /// Set where the body was not read because there was no room.
    has_no_room: Arc<AtomicBool>,
    end: Option<oneshot::Sender<BodyEnd>>,
}

/// The room for a body, of which a handler may hold all bytes: of the process, and on HTTP/2 of the
/// connection, too.
enum BodyRoom {
    /// The body is read only once there is room; none where there is none in time.
    Waits(BoxFuture<'static, Option<BodyPermits>>),
    Reserved(BodyPermits),
}

/// The room of a body: of the process, with the handler's part in it, and of its connection of HTTP/2.
type BodyPermits = (Option<(RoomPermit, WholeBodyRoom)>, Option<OwnedSemaphorePermit>);

impl BodyRoom {
    /// Returns the room that a body needs before it is read.
    fn of(
        body: &Incoming,
        headers: &HeaderMap,
        peer: IpAddr,
        (room, whole): (&ConnectionRoom, WholeBodyRoom),
        http_2: Option<&Arc<Http2Connection>>,
    ) -> Self {
        let declared = body.size_hint().upper().and_then(|size| usize::try_from(size).ok());
        let bytes = declared.unwrap_or(BODY_BYTES).min(BODY_BYTES);
        if body.is_end_stream() || (http_2.is_none() && bytes <= FREE_BYTES) {
            return Self::Reserved((None, None));
        }
        let network = room.network(peer, headers);
        let (room, of_connection) = (room.clone(), http_2.map(|it| it.reserve(bytes)));
        Self::Waits(Box::pin(async move {
            let of_connection = match of_connection {
                Some(reserved) => reserved.await,
                None => None,
            };
            if bytes <= FREE_BYTES || whole.is_taken() {
                return Some((None, of_connection));
            }
            let taken = room.take(network, bytes).await?;
            Some((Some((taken, whole)), of_connection))
        }))
    }
}

impl LentBody {
    fn new(
        body: Incoming,
        room: BodyRoom,
        has_no_room: Arc<AtomicBool>,
    ) -> (Self, oneshot::Receiver<BodyEnd>) {
        let (end, body_end) = oneshot::channel();
        let mut lent =
            Self { body: Some(body), was_polled: false, room, has_no_room, end: Some(end) };
        lent.report_if_read();
        (lent, body_end)
    }

    fn report_if_read(&mut self) {
        if self.is_end_stream() {
            self.report(BodyEnd::Read);
        }
    }

    fn report(&mut self, body_end: BodyEnd) {
        self.body = None;
        let room = std::mem::replace(&mut self.room, BodyRoom::Reserved((None, None)));
        if let (BodyEnd::Read, BodyRoom::Reserved((Some((taken, whole)), _))) = (&body_end, room) {
            whole.keep(taken);
        }
        if let Some(end) = self.end.take() {
            // The receiver is gone where the connection is.
            let _ = end.send(body_end);
        }
    }
}

impl HttpBody for LentBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.was_polled = true;
        if let BodyRoom::Waits(room) = &mut self.room {
            let Some(permits) = ready!(room.as_mut().poll(context)) else {
                self.has_no_room.store(true, Ordering::Relaxed);
                self.room = BodyRoom::Reserved((None, None));
                let refused = io::Error::from(io::ErrorKind::OutOfMemory);
                return Poll::Ready(Some(Err(axum::Error::new(refused))));
            };
            self.room = BodyRoom::Reserved(permits);
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(_))) => self.report_if_read(),
            Poll::Ready(None) => self.report(BodyEnd::Read),
            Poll::Ready(Some(Err(_))) => self.report(BodyEnd::Lost),
            Poll::Pending => {}
        }
        polled.map_err(axum::Error::new)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for LentBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            self.report(BodyEnd::Unread { body, was_polled: self.was_polled });
        }
    }
}

/// The body of a response, with what its connection needs until the body was handed over.
struct SentBody {
    body: Body,
    beside: Beside,
}

enum Beside {
    /// HTTP/1: the bytes of a large reply keep their room until they were written.
    Room(TakenRoom),
    /// HTTP/1: the body ends when its client is gone, even where nothing is written.
    Watch(BoxFuture<'static, io::Error>),
    /// HTTP/2: the stream counts as open, and takes the body in pieces.
    Stream {
        /// The rest of the last frame.
        rest: Bytes,
        connection: Arc<Http2Connection>,
        /// The room of a reply whose size is known, until it was handed over: of the connection, and
        /// of the process.
        _reserved: (Option<OwnedSemaphorePermit>, Option<TakenRoom>),
        _guard: StreamGuard,
    },
}

impl HttpBody for SentBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, beside } = &mut *self;
        match beside {
            Beside::Room(room) => {
                let frame = ready!(Pin::new(body).poll_frame(context));
                let hold = |frame: Frame<Bytes>| frame.map_data(|data| room.hold(data));
                Poll::Ready(frame.map(|frame| frame.map(hold)))
            }
            Beside::Watch(watch) => {
                let polled = Pin::new(body).poll_frame(context);
                if polled.is_ready() {
                    return polled;
                }
                watch.as_mut().poll(context).map(|error| Some(Err(axum::Error::new(error))))
            }
            Beside::Stream { rest, connection, .. } => {
                if rest.is_empty() {
                    took_pieces();
                    match ready!(Pin::new(body).poll_frame(context))
                        .map(|frame| frame.map(Frame::into_data))
                    {
                        Some(Ok(Ok(data))) => *rest = data,
                        Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                        Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                        None => return Poll::Ready(None),
                    }
                }
                gave_piece();
                connection.count_piece();
                let piece = rest.split_to(rest.len().min(PIECE_BYTES));
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_rest_empty = match &self.beside {
            Beside::Room(_) | Beside::Watch(_) => true,
            Beside::Stream { rest, .. } => rest.is_empty(),
        };
        is_rest_empty && self.body.is_end_stream()
    }

    /// Returns the size of the whole body: hyper asks before the first frame.
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<S: Sync> FromRequestParts<S> for LastByte {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}
