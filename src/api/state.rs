//! What every handler of every front works with.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRef;
use axum::http::StatusCode;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::task::TaskTracker;

use crate::generation::{Generations, ModelInfo};
use crate::http::extract::body::BodyLimit;
use crate::http::extract::caller::TrustedProxies;
use crate::http::middleware::AllowLists;
use crate::http::problem::Problem;
use crate::lifecycle::Lifecycle;
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
    /// What the fronts are configured with.
    pub settings: Arc<ApiSettings>,
    /// Whether a turn can be taken here.
    pub readiness: Readiness,
    /// The life of this process: new work is refused while it drains, and nothing waits once it has
    /// stopped.
    pub lifecycle: Lifecycle,
    /// Open WebSockets and event streams.
    pub sockets: TaskTracker,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
}

/// The state, as handlers get it.
pub type Shared = Arc<AppState>;

/// What the fronts are configured with.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// Model of a request that names none.
    pub default_model: String,
    /// The web pages and the names by which the service may be called.
    pub allow_lists: Arc<AllowLists>,
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
            allow_lists: Arc::default(),
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
    /// Checks that there is room for one more WebSocket or event stream.
    ///
    /// # Errors
    /// A 503 while this replica drains, and where it has as many as it may have.
    pub fn admit(&self) -> Result<(), Problem> {
        if self.lifecycle.is_draining() {
            return Err(Problem::draining());
        }
        if self.sockets.len() >= self.settings.max_sockets {
            let detail = "This replica has as many connections as it may have; retry after 5 s.";
            return Err(Problem::unavailable("too_many_connections", detail, 5));
        }
        Ok(())
    }
}

impl AppState {
    /// The models of all hosts, by name.
    ///
    /// # Errors
    /// A 503 where no host can be asked: whatever the reason, there is nothing to choose from now.
    pub async fn models(&self) -> Result<Vec<ModelInfo>, Problem> {
        self.generations.models().await.map_err(|error| {
            let problem = Problem::from(error);
            Problem { status: StatusCode::SERVICE_UNAVAILABLE, ..problem }.retry_after(5)
        })
    }
}

impl FromRef<Shared> for BodyLimit {
    fn from_ref(shared: &Shared) -> Self {
        Self(shared.settings.max_body_bytes)
    }
}

impl FromRef<Shared> for TrustedProxies {
    fn from_ref(shared: &Shared) -> Self {
        Self(shared.settings.proxies)
    }
}
