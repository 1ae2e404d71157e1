//! The middleware stack of every request, whichever front serves it.

mod access_log;
mod drain;
pub mod headers;
mod host;
mod limits;
mod origin;
pub mod panics;
mod public;
mod request_id;
mod room;
mod sign_in;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use tower::ServiceBuilder;

use crate::config::origins::AllowedHosts;
use crate::http::room::ConnectionRoom;
use crate::lifecycle::Lifecycle;
use crate::limits::RequestKind;
use crate::sign_in::SignIn;

pub use limits::{LimitLayer, LimitedCaller, OpenedSocket};
pub use public::is_public;
use room::RoomLayer;
use sign_in::SignInLayer;
pub use sign_in::{identify, refuse};

/// The web origins that may call the service, and the names of its hosts.
#[derive(Clone, Debug, Default)]
pub struct AllowLists {
    /// The web origins in addition to the service's own, in the form of
    /// [`crate::config::origins::listed_origin`].
    pub origins: Vec<String>,
    /// The names that the Host header may have.
    pub hosts: AllowedHosts,
}

/// The rules of the fronts for the layers: only a front knows its routes.
#[derive(Clone, Copy)]
pub struct FrontRules {
    /// Returns what a request to this method and path is.
    pub kind: fn(&Method, &str) -> RequestKind,
    /// Returns whether clients of the front at this path send a key also where none is needed.
    pub sends_placeholder_key: fn(&str) -> bool,
    /// Writes a response in the dialect of the front at this path: its errors, its header fields.
    pub dialect: fn(&str, Response) -> Response,
}

/// Wraps the routes of the listener for operators, as [`stack`] does those of callers, without
/// sign-in and limits.
pub fn admin_stack(routes: Router, lists: Arc<AllowLists>, lifecycle: Lifecycle) -> Router {
    outer(routes.layer(from_fn(panics::catch)), lists, lifecycle, |_, response| response)
}

/// Wraps the routes. A request passes the layers from the first one to the last, those of [`outer`]
/// first.
pub fn stack(
    routes: Router,
    lists: Arc<AllowLists>,
    sign_in: Arc<SignIn>,
    limits: LimitLayer,
    room: ConnectionRoom,
    lifecycle: Lifecycle,
) -> Router {
    let rules = limits.rules;
    let room = RoomLayer { room, kind: rules.kind };
    let sign_in = SignInLayer { sign_in, limits: limits.clone() };
    let inner = routes.layer(
        ServiceBuilder::new()
            .layer(from_fn_with_state(sign_in, sign_in::check))
            .layer(from_fn_with_state(limits, limits::check))
            .layer(from_fn_with_state(room, room::reserve))
            .layer(from_fn(panics::catch)),
    );
    outer(inner, lists, lifecycle, rules.dialect)
}

/// Returns the layers that every request passes first.
fn outer(
    inner: Router,
    lists: Arc<AllowLists>,
    lifecycle: Lifecycle,
    dialect: fn(&str, Response) -> Response,
) -> Router {
    inner.layer(
        ServiceBuilder::new()
            .layer(from_fn(headers::secure))
            .layer(from_fn(request_id::assign))
            .layer(from_fn_with_state(lifecycle, drain::announce_drain))
            .layer(from_fn(access_log::record))
            .layer(from_fn_with_state(dialect, translate))
            .layer(from_fn_with_state(Arc::clone(&lists), host::check))
            .layer(from_fn_with_state(lists, origin::check)),
    )
}

/// Has the front at the path of a request write the response in its dialect.
async fn translate(
    State(dialect): State<fn(&str, Response) -> Response>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    dialect(&path, next.run(request).await)
}
