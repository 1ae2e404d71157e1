//! The edge: REST, server-sent events and WebSockets. It knows nothing of models' hosts, nor of
//! the keys in Redis.

mod chat;
pub mod codes;
mod docs;
mod exchange;
pub mod fields;
mod guard;
mod health;
pub mod input;
mod lax;
pub mod listener;
pub mod object;
mod peer;
pub mod problem;
mod schema;
mod sessions;
mod sse;
mod turns;
mod websocket;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::normalize_path::NormalizePath;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::generation::Generations;
use crate::readiness::Readiness;
use crate::session::{Feeds, Store};

/// What the handlers work with.
#[derive(Clone)]
pub struct AppState {
    /// The sessions in Redis.
    pub store: Store,
    /// What happens in them, live.
    pub feeds: Feeds,
    /// Runs turns.
    pub generations: Generations,
    /// The edge's settings.
    pub settings: Arc<EdgeSettings>,
    /// Whether a turn can be taken here.
    pub readiness: Readiness,
    /// Cancelled when this replica takes nothing new.
    pub drain: CancellationToken,
    /// Cancelled when its turns have ended or are handed over: nobody is to wait here any longer.
    pub leave: CancellationToken,
    /// Open WebSockets and event streams.
    pub sockets: TaskTracker,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
}

type Shared = Arc<AppState>;

/// The edge's settings.
#[derive(Clone, Debug)]
pub struct EdgeSettings {
    /// Model of a request that names none.
    pub default_model: String,
    /// Web origins beside the server's own that may call it.
    pub allowed_origins: Vec<String>,
    /// Names that the Host header may have; empty: any.
    pub allowed_hosts: Vec<String>,
    /// Bytes of a request's body, at most.
    pub max_body_bytes: usize,
    /// Bytes of a client's WebSocket message, at most.
    pub max_frame_bytes: usize,
    /// How long a REST call waits for its whole answer.
    pub request_timeout: Duration,
    /// Between two pings of a WebSocket, or comments of an event stream.
    pub heartbeat: Duration,
    /// How long a client may take to ask, to read an event, or to answer a ping. Longer than load
    /// balancers keep an idle connection: they are to be those who close it.
    pub read_timeout: Duration,
    /// WebSockets and event streams at a time.
    pub max_sockets: usize,
    /// Proxies in front that add to X-Forwarded-For.
    pub proxies: usize,
}

/// The longest message with every character escaped as a pair of surrogates is 384 KiB.
const LARGEST_REQUEST: usize = 512 << 10;

impl Default for EdgeSettings {
    fn default() -> Self {
        Self {
            default_model: "tinyllama:latest".to_owned(),
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            max_body_bytes: LARGEST_REQUEST,
            max_frame_bytes: LARGEST_REQUEST,
            request_timeout: Duration::from_mins(5),
            heartbeat: Duration::from_secs(20),
            read_timeout: Duration::from_secs(90),
            max_sockets: 19_000,
            proxies: 0,
        }
    }
}

impl AppState {
    /// Room for one more WebSocket or event stream.
    fn admit(&self) -> Result<(), problem::Problem> {
        if self.drain.is_cancelled() {
            return Err(problem::Problem::draining());
        }
        if self.sockets.len() >= self.settings.max_sockets {
            let detail = "This replica has as many connections as it may have; retry after 5 s.";
            return Err(problem::Problem::unavailable("too_many_connections", detail, 5));
        }
        Ok(())
    }
}

/// All routes. Each answers with and without a trailing slash.
pub fn router(state: AppState) -> Router {
    let shared: Shared = Arc::new(state);
    let (routes, openapi) = OpenApiRouter::with_openapi(docs::ApiDoc::openapi())
        .routes(routes!(chat::send))
        .routes(routes!(sessions::read, sessions::rename, sessions::delete))
        .routes(routes!(sessions::cancel))
        .routes(routes!(sse::events))
        .routes(routes!(health::chat_models))
        .routes(routes!(health::models))
        .routes(routes!(health::chat_health))
        .routes(routes!(health::health))
        .routes(routes!(health::detailed))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
        .routes(routes!(health::root))
        .routes(routes!(websocket::upgrade))
        .split_for_parts();
    let openapi = Arc::new(openapi);
    let routes = routes
        .route("/api/v1/chat/message", post(chat::send))
        .route("/api/v1/chat/send", post(chat::send))
        .route("/api/v1/chat/ws", get(websocket::upgrade))
        .route("/openapi.json", get(async move || Json(Arc::clone(&openapi))))
        .route("/docs", get(docs::index))
        .route("/docs/{file}", get(docs::file))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::wrong_method)
        .layer(from_fn_with_state(Arc::clone(&shared), guard::observe))
        .with_state(shared);
    // A layer of the router would run after the path was looked up.
    Router::new().fallback_service(NormalizePath::trim_trailing_slash(routes))
}
