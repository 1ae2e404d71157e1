//! What every request passes, whichever front it is for.

mod access_log;
mod drain;
mod host;
mod origin;
pub mod panics;
mod request_id;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};

use crate::lifecycle::Lifecycle;

/// The web pages and the names by which the service may be called.
#[derive(Clone, Debug, Default)]
pub struct AllowLists {
    /// Web origins beside the service's own, as [`super::origin::listed_origin`] reads them.
    pub origins: Vec<String>,
    /// Names that the Host header may have, as [`super::origin::listed_host`] reads them; empty: any.
    pub hosts: Vec<String>,
}

/// Wraps the routes. A request passes the layers from the last one to the first.
pub fn stack(routes: Router, lists: Arc<AllowLists>, lifecycle: Lifecycle) -> Router {
    routes
        .layer(from_fn(panics::catch))
        .layer(from_fn_with_state(Arc::clone(&lists), origin::check))
        .layer(from_fn_with_state(lists, host::check))
        .layer(from_fn(access_log::record))
        .layer(from_fn_with_state(lifecycle, drain::close_connections))
        .layer(from_fn(request_id::assign))
}
