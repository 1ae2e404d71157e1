//! The state that all handlers share.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRef;
use axum::http::StatusCode;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::task::TaskTracker;

use crate::api::bulk_permits::BulkPermits;
use crate::api::message_budget::MessageBudget;
use crate::api::permits::{NoPermit, SocketPermit, SocketPermits};
use crate::api::problems::in_time;
use crate::follow::Follow;
use crate::generation::{Generations, ModelInfo, SubmitError, Submitted};
use crate::http::extract::bearer::ExpectedToken;
use crate::http::extract::body::BodyLimit;
use crate::http::extract::caller::TrustedProxies;
use crate::http::middleware::AllowLists;
use crate::http::problem::Problem;
use crate::http::rate_limit::Standings;
use crate::http::room::{ConnectionRoom, OutputRoom};
use crate::lifecycle::Lifecycle;
use crate::limits::{LimitRefusal, RateLimits, Standing, Subject};
use crate::readiness::Readiness;
use crate::session::{Feeds, Owner, SessionId, Store};
use crate::sign_in::SignIn;
use crate::source::{Source, SourceKey};
use crate::telemetry::LogFilter;

/// The state that all handlers share.
#[derive(Clone)]
pub struct AppState {
    /// The sessions in Redis.
    pub store: Store,
    /// The live events of sessions.
    pub feeds: Feeds,
    /// The runner of turns.
    pub generations: Generations,
    /// The settings of the fronts.
    pub settings: Arc<ApiSettings>,
    /// The limits of callers.
    pub limits: RateLimits,
    /// The room for unfinished bodies and unread replies.
    pub room: ConnectionRoom,
    /// The check of tokens.
    pub sign_in: Arc<SignIn>,
    /// Whether this replica accepts turns.
    pub readiness: Readiness,
    /// The life of this process: it refuses new work while it drains, and ends all waits once it has
    /// stopped.
    pub lifecycle: Lifecycle,
    /// The open WebSockets and event streams.
    pub sockets: TaskTracker,
    /// The bounds of their number.
    pub permits: SocketPermits,
    /// The bounds of exports and imports that run at a time.
    pub bulk: BulkPermits,
    /// The budget of WebSocket messages that have not arrived whole.
    pub unfinished_messages: MessageBudget,
    /// The budget of WebSocket messages that wait for others of their sockets. It is another one: a socket
    /// whose message cannot arrive is closed, and one whose request cannot wait gets an error.
    pub waiting_messages: MessageBudget,
    /// The key of the digests of clients' addresses.
    pub source_key: SourceKey,
    /// The renderer of the metrics.
    pub metrics: PrometheusHandle,
    /// The filter of log lines.
    pub log_filter: LogFilter,
}

/// The state, as handlers extract it.
pub type Shared = Arc<AppState>;

/// The settings of the fronts.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// The model of a request without one.
    pub default_model: String,
    /// The web origins that may call the service, and the names of its hosts.
    pub allow_lists: Arc<AllowLists>,
    /// Bytes of a request's body, at most.
    pub max_body_bytes: usize,
    /// Bytes of a client's WebSocket message, at most.
    pub max_frame_bytes: usize,
    /// How long a REST call waits for its whole answer.
    pub request_timeout: Duration,
    /// The interval of WebSocket pings, and of comments in an event stream.
    pub heartbeat: Duration,
    /// How long a client may take to send a request, to read an event, or to answer a ping. It is
    /// longer than load balancers keep an idle connection, so that they close it first.
    pub read_timeout: Duration,
    /// Whether clients may use HTTP/2.
    pub http_2: bool,
    /// Whether operators have a listener of their own.
    pub has_admin_listener: bool,
    /// The token that `/metrics` needs; none where anybody may read it.
    pub metrics_token: Option<ExpectedToken>,
    /// How long a WebSocket or an event stream stays open after its token has expired.
    pub auth_grace: Duration,
    /// The networks of the proxies in front whose X-Forwarded-For is believed.
    pub trusted_proxies: TrustedProxies,
}

/// When an address with its largest number of sockets may try again.
const FULL_ADDRESS_RETRY: Duration = Duration::from_secs(5);
/// Bytes of a request, at most. The longest message has 384 KiB where every character is escaped as
/// a surrogate pair.
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
            http_2: false,
            has_admin_listener: false,
            metrics_token: None,
            auth_grace: Duration::from_secs(30),
            trusted_proxies: TrustedProxies::default(),
        }
    }
}

impl AppState {
    /// Takes the permit for one more WebSocket or event stream of a client.
    ///
    /// # Errors
    /// A 503 while this replica drains, and where it already has `max_sockets` of them; a 429 where
    /// the client's address has as many as it may have.
    pub fn admit(&self, source: &Source) -> Result<SocketPermit, Problem> {
        if self.lifecycle.is_draining() {
            return Err(Problem::draining());
        }
        self.permits.take(source).map_err(|refused| match refused {
            NoPermit::Full => {
                let detail = "This replica has its largest number of connections; retry after 5 s.";
                Problem::unavailable("too_many_connections", detail, 5)
            }
            NoPermit::AddressFull => {
                let detail = "This address has as many open sockets and streams as it may have; \
                    close some, or retry after 5 s.";
                let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail);
                let full = |standing| LimitRefusal {
                    standings: vec![Standing { reset: FULL_ADDRESS_RETRY, ..standing }],
                    retry_after: FULL_ADDRESS_RETRY,
                };
                let refusal = self.permits.standing(source).map(full);
                refusal.as_ref().map(LimitRefusal::count);
                let standings = refusal.map(|it| Box::new(Standings(it.standings)));
                Problem { standings, ..problem.retry_after(FULL_ADDRESS_RETRY.as_secs()) }
            }
        })
    }

    /// Returns the room for what a stream or a socket sends to a client at this source.
    pub fn output_room(&self, source: &Source) -> OutputRoom {
        OutputRoom::new(&self.room, source.widest_network())
    }

    /// Takes the permit for the stream of a turn, where it is streamed: its request was admitted without
    /// one, because that stands in its body.
    ///
    /// # Errors
    /// As [`AppState::admit`], and a 429 where the user has as many sockets and streams as it may have.
    pub async fn admit_stream(
        &self,
        is_streamed: bool,
        subject: &Subject,
    ) -> Result<Option<SocketPermit>, Problem> {
        if !is_streamed {
            return Ok(None);
        }
        let permit = self.admit(&subject.source)?;
        // Boxed, because the call to Redis is large.
        let user = Box::pin(self.limits.open_stream(subject)).await;
        Ok(Some(permit.with(user.map_err(|refusal| Problem::limited(&refusal))?)))
    }

    /// Follows a submitted turn.
    ///
    /// # Errors
    /// A problem for the client.
    pub async fn follow(
        &self,
        owner: &Owner,
        session: SessionId,
        submitted: Submitted,
    ) -> Result<Follow, Problem> {
        let (feeds, store) = (self.feeds.clone(), self.store.clone());
        in_time(Follow::submitted(feeds, store, owner.clone(), session, submitted)).await
    }

    /// Returns the models of all hosts, by name.
    ///
    /// # Errors
    /// A 503 where no host replies, whatever the reason.
    pub async fn models(&self) -> Result<Vec<ModelInfo>, Problem> {
        self.generations.models().await.map_err(without_models)
    }

    /// Returns the models of all hosts, by name, and whether they take images.
    ///
    /// # Errors
    /// As [`AppState::models`].
    pub async fn described_models(&self) -> Result<Vec<ModelInfo>, Problem> {
        self.generations.described_models().await.map_err(without_models)
    }
}

/// Returns the problem of a list of models that no host sent.
fn without_models(error: SubmitError) -> Problem {
    let problem = Problem::from(error);
    Problem { status: StatusCode::SERVICE_UNAVAILABLE, ..problem }.retry_after(5)
}

impl FromRef<Shared> for BodyLimit {
    fn from_ref(shared: &Shared) -> Self {
        Self(shared.settings.max_body_bytes)
    }
}

impl FromRef<Shared> for TrustedProxies {
    fn from_ref(shared: &Shared) -> Self {
        shared.settings.trusted_proxies.clone()
    }
}

impl FromRef<Shared> for SourceKey {
    fn from_ref(shared: &Shared) -> Self {
        shared.source_key.clone()
    }
}
