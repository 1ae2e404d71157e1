//! One request and its response: a body that the handler did not read is read here or the
//! connection is ended properly, and a client that goes away is noticed.
//!
//! A connection is kept only when the request was read to its end. A handler that answers before
//! that, whatever its reason, needs to know nothing of it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Request, Response, StatusCode, Version, header};
use futures_util::future::BoxFuture;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tower::ServiceExt;

use crate::http::peer::{Hangup, LINGER_BYTES, LINGER_GAP, LINGER_LIMIT, OpenStream, Peer, broken};
use crate::http::stream_limit::set_waits_for_room;

/// Bytes of an unread body that are read and dropped so that its connection can be kept.
const DRAINED_BYTES: u64 = 1 << 20;
/// How long that may take; a response waits for it.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Answers one request. The response closes its connection where the request was not read whole.
///
/// # Errors
/// Where the connection breaks before there is a response.
pub async fn answer(
    router: Router,
    request: Request<Incoming>,
    address: SocketAddr,
    peer: Arc<Peer>,
) -> io::Result<Response<Body>> {
    // A stream of HTTP/2 has an end of its own.
    let own_connection = request.version() < Version::HTTP_2;
    let open = (!own_connection).then(|| peer.begin_stream());
    let awaits_continue = request.headers().contains_key(header::EXPECT);
    let hangup = Hangup::default();
    let (mut parts, body) = request.into_parts();
    let (lent, mut returned) = LentBody::new(body);
    parts.extensions.insert(ConnectInfo(address));
    parts.extensions.insert(hangup.clone());
    let request = Request::from_parts(parts, Body::new(lent));

    let mut rest = None;
    let mut watch: Option<BoxFuture<'static, io::Error>> = None;
    let mut response = {
        let mut answering = pin!(router.oneshot(request));
        loop {
            tokio::select! {
                biased;
                response = &mut answering => break response.unwrap_or_else(|never| match never {}),
                error = broken(watch.as_mut()) => return Err(error),
                came_back = &mut returned, if rest.is_none() => {
                    let came_back = came_back.unwrap_or(Lent::Lost);
                    if let (Lent::Whole, true) = (&came_back, own_connection) {
                        let (peer, hangup) = (Arc::clone(&peer), hangup.0.clone());
                        watch = Some(Box::pin(async move { peer.watch(hangup).await }));
                    }
                    rest = Some(came_back);
                }
            }
        }
    };
    // The handler is done, and has dropped the request.
    let whole = match rest.unwrap_or_else(|| returned.try_recv().unwrap_or(Lent::Lost)) {
        Lent::Whole => true,
        Lent::Unread { mut body, was_asked_for } => {
            // Reading would ask a client that waits for "100 Continue" to send what is not wanted.
            let drained = (was_asked_for || !awaits_continue) && drain(&mut body).await;
            if !drained && !own_connection {
                tokio::spawn(linger(body));
            }
            drained
        }
        Lent::Lost => false,
    };
    if whole {
        peer.read_whole();
    } else {
        peer.leave_unread();
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(match (watch, open) {
        (Some(watch), _) if is_streamed(&response) => {
            response.map(|body| Body::new(WatchedBody { body, watch }))
        }
        (_, Some(open)) => response.map(|body| Body::new(StreamBody { body, _open: open })),
        _ => response,
    })
}

fn is_streamed(response: &Response<Body>) -> bool {
    response.status() != StatusCode::SWITCHING_PROTOCOLS
        && response.body().size_hint().exact().is_none()
}

/// Reads and drops a body, if it ends within the bounds.
async fn drain(body: &mut Incoming) -> bool {
    body.size_hint().lower() <= DRAINED_BYTES
        && timeout(DRAIN_LIMIT, read_out(body, DRAINED_BYTES)).await.unwrap_or(false)
}

/// Reads and drops what still comes on a stream of HTTP/2 that has its response: there are clients
/// that read none before they have sent their whole request. What a connection of HTTP/1 has left
/// is read where it ends.
async fn linger(mut body: Incoming) {
    let _ = timeout(LINGER_LIMIT, read_out(&mut body, LINGER_BYTES as u64)).await;
}

/// Reads and drops a body. Says whether it ended before so many bytes came, and without a pause
/// that is too long.
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

/// What became of a request's body.
enum Lent {
    /// It was read to its end.
    Whole,
    /// It was dropped before its end.
    Unread {
        body: Incoming,
        /// Somebody has begun to read it.
        was_asked_for: bool,
    },
    /// It broke off, or somebody still has it.
    Lost,
}

/// A request's body, which comes back when it was read or is dropped.
struct LentBody {
    body: Option<Incoming>,
    was_asked_for: bool,
    back: Option<oneshot::Sender<Lent>>,
}

impl LentBody {
    fn new(body: Incoming) -> (Self, oneshot::Receiver<Lent>) {
        let (back, returned) = oneshot::channel();
        let mut lent = Self { body: Some(body), was_asked_for: false, back: Some(back) };
        lent.give_back_if_ended();
        (lent, returned)
    }

    fn give_back_if_ended(&mut self) {
        if self.is_end_stream() {
            self.end(Lent::Whole);
        }
    }

    fn end(&mut self, lent: Lent) {
        self.body = None;
        if let Some(back) = self.back.take() {
            // Nobody waits for it where the connection is gone.
            let _ = back.send(lent);
        }
    }
}

impl HttpBody for LentBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.was_asked_for = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(_))) => self.give_back_if_ended(),
            Poll::Ready(None) => self.end(Lent::Whole),
            Poll::Ready(Some(Err(_))) => self.end(Lent::Lost),
            Poll::Pending => {}
        }
        polled
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
            self.end(Lent::Unread { body, was_asked_for: self.was_asked_for });
        }
    }
}

/// A response over HTTP/2, which counts as open until it was handed over.
struct StreamBody {
    body: Body,
    _open: OpenStream,
}

impl HttpBody for StreamBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        set_waits_for_room(matches!(polled, Poll::Ready(Some(Ok(_)))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response that ends when its client is gone, though nothing is written to it.
struct WatchedBody {
    body: Body,
    watch: BoxFuture<'static, io::Error>,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_pending()
            && let Poll::Ready(error) = self.watch.as_mut().poll(context)
        {
            return Poll::Ready(Some(Err(axum::Error::new(error))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<S: Sync> FromRequestParts<S> for Hangup {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}
