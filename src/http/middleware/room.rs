//! Reserves room for the reply to a request, before the reply is made.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::public::is_public;
use crate::http::room::{ConnectionRoom, HandedRoom, REPLY_BYTES, TakenRoom, large_size, no_room};
use crate::limits::RequestKind;

/// The one reply that is large, belongs to no caller, and is made for each request.
const METRICS: &str = "/metrics";

/// The state of this layer.
#[derive(Clone)]
pub(super) struct RoomLayer {
    /// The room of the process.
    pub room: ConnectionRoom,
    /// Returns the kind of a request to this method and path.
    pub kind: fn(&Method, &str) -> RequestKind,
}

/// Reserves room for the largest page before a request that only reads is handled, and takes what its reply
/// needs beyond that once it is made; for every other reply it takes room for its real size. A small reply, a
/// stream and a file of `/docs` hold none.
pub(super) async fn reserve(
    State(RoomLayer { room, kind }): State<RoomLayer>,
    mut request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    if is_public(path) && path != METRICS {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    let network = peer.and_then(|peer| room.network(peer, request.headers()));
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    let reserved = HandedRoom::default();
    if is_read && kind(method, path) != RequestKind::Socket {
        match room.take(network, REPLY_BYTES).await {
            None => return no_room().into_response(),
            room => reserved.put(room),
        }
    }
    request.extensions_mut().insert(reserved.clone());
    let mut response = next.run(request).await;
    let reserved = reserved.take();
    let Some(size) = large_size(&response) else { return response };
    if response.extensions().get::<TakenRoom>().is_some() {
        // The handler took it before it made the reply.
        return response;
    }
    let reserved = match reserved {
        Some(reserved) => reserved.resize(size),
        None => room.take(network, size).await,
    };
    let Some(reserved) = reserved else { return no_room().into_response() };
    response.extensions_mut().insert(TakenRoom::new(reserved));
    response
}
