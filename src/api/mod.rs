//! The fronts, and the one router that serves them. They know nothing of model hosts, nor of the
//! keys in Redis.

pub mod admin;
pub mod native;

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
use crate::http::guard;
use crate::http::problem::{self, Problem};
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
    pub settings: Arc<ApiSettings>,
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

/// The state, as handlers get it.
pub type Shared = Arc<AppState>;

/// The edge's settings.
#[derive(Clone, Debug)]
pub struct ApiSettings {
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

impl Default for ApiSettings {
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
    fn admit(&self) -> Result<(), Problem> {
        if self.drain.is_cancelled() {
            return Err(Problem::draining());
        }
        if self.sockets.len() >= self.settings.max_sockets {
            let detail = "This replica has as many connections as it may have; retry after 5 s.";
            return Err(Problem::unavailable("too_many_connections", detail, 5));
        }
        Ok(())
    }
}

/// All routes. Each answers with and without a trailing slash.
pub fn router(state: AppState) -> Router {
    let shared: Shared = Arc::new(state);
    let (routes, openapi) = OpenApiRouter::with_openapi(admin::docs::ApiDoc::openapi())
        .routes(routes!(native::chat::send))
        .routes(routes!(native::sessions::read, native::sessions::rename, native::sessions::delete))
        .routes(routes!(native::sessions::cancel))
        .routes(routes!(native::event_stream::events))
        .routes(routes!(admin::health::chat_models))
        .routes(routes!(admin::health::models))
        .routes(routes!(admin::health::chat_health))
        .routes(routes!(admin::health::health))
        .routes(routes!(admin::health::detailed))
        .routes(routes!(admin::health::live))
        .routes(routes!(admin::health::ready))
        .routes(routes!(admin::health::metrics))
        .routes(routes!(admin::health::root))
        .routes(routes!(native::websocket::upgrade))
        .split_for_parts();
    let openapi = Arc::new(openapi);
    let routes = routes
        .route("/api/v1/chat/message", post(native::chat::send))
        .route("/api/v1/chat/send", post(native::chat::send))
        .route("/api/v1/chat/ws", get(native::websocket::upgrade))
        .route("/openapi.json", get(async move || Json(Arc::clone(&openapi))))
        .route("/docs", get(admin::docs::index))
        .route("/docs/{file}", get(admin::docs::file))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::wrong_method)
        .layer(from_fn_with_state(Arc::clone(&shared), guard::observe))
        .with_state(shared);
    // A layer of the router would run after the path was looked up.
    Router::new().fallback_service(NormalizePath::trim_trailing_slash(routes))
}
