//! The routes about the service itself: probes, metrics, and its description.

pub(crate) mod docs;
pub(crate) mod health;
mod log_level;

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use tower_http::normalize_path::NormalizePath;

use crate::api::state::Shared;
use crate::http::middleware::{self, AllowLists};
use crate::http::problem;

/// Returns the router of the listener for operators (`--admin-listen`). Its requests are neither
/// signed in nor limited: who reaches the port is an operator, and `/metrics` may have a token.
pub fn router(shared: Shared, lists: AllowLists) -> Router {
    let lifecycle = shared.lifecycle.clone();
    let routes = Router::new()
        .route("/metrics", get(health::operator_metrics))
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/health/detailed", get(health::detailed))
        .route(
            "/admin/log-level",
            get(log_level::read).put(log_level::change).delete(log_level::reset),
        )
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::wrong_method)
        .with_state(shared);
    let routes = middleware::admin_stack(routes, Arc::new(lists), lifecycle);
    Router::new().fallback_service(NormalizePath::trim_trailing_slash(routes))
}
