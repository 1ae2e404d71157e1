//! One replica's life: it builds every part from the settings, serves, and drains.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::http::HeaderValue;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::api::bulk_permits::BulkPermits;
use crate::api::message_budget::MessageBudget;
use crate::api::permits::SocketPermits;
use crate::api::{self, ApiSettings, AppState, Shared};
use crate::budget::StorageLimits;
use crate::config::{HostSettings, HttpSettings, RedisSettings, Settings, StorageSettings};
use crate::generation::{self, GenerationSettings, Generations};
use crate::http::connections::AddressConnections;
use crate::http::extract::bearer::ExpectedToken;
use crate::http::extract::caller::{ClientSources, TrustedProxies};
use crate::http::listener::{self, ClientLimits};
use crate::http::middleware::AllowLists;
use crate::http::room::ConnectionRoom;
use crate::lifecycle::{Lifecycle, Phase, TaskEnd, descriptors, spawn_caught};
use crate::limits::RateLimits;
use crate::membership::{MembershipStore, published_address};
use crate::ollama::{Fleet, FleetConfig, HostConfig};
use crate::queue::{Queue, QueueLimits, QueueStore};
use crate::readiness::Readiness;
use crate::redis::{Conditions, Redis, RedisOptions};
use crate::secret::Secret;
use crate::session::store::SessionLimits;
use crate::session::{Feeds, Store};
use crate::sign_in::SignIn;
use crate::source::SourceKey;
use crate::telemetry::LogFilter;
use crate::{source_key, telemetry};

/// How long the handover of turns may take after the drain.
const HANDOVER_LIMIT: Duration = Duration::from_secs(2);
/// Connections of operators at a time, who are few.
const ADMIN_CONNECTIONS: usize = 64;
/// How long connections may take to close at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// One replica.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    /// The listener for operators, and the names that its Host header may have.
    admin: Option<(TcpListener, AllowLists)>,
    pub(crate) state: AppState,
    conditions: Conditions,
    drain_timeout: Duration,
    /// The limit of open file descriptors.
    descriptors: u64,
    /// Connections of one address, at most; 0 for any number.
    address_connections: usize,
}

impl Server {
    /// Opens everything, without waiting for Redis or Ollama: both may come later. Must be called
    /// inside a Tokio runtime.
    ///
    /// # Errors
    /// Where the port is taken or an address is not usable.
    pub fn bind(
        settings: &Settings,
        metrics: PrometheusHandle,
        log_filter: LogFilter,
    ) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let descriptors = descriptors::raise_limit();
        let listener = listen(settings.http.listen)?;
        let address = listener.local_addr()?;
        let admin = settings.http.admin_listen.map(listen).transpose()?;
        let admin = admin.map(|listener| {
            let hosts = settings.http.admin_hosts();
            (listener, AllowLists { origins: Vec::new(), hosts })
        });
        let lifecycle = Lifecycle::default();
        let redis = Redis::connect_in(&redis_options(&settings.redis), lifecycle.clone())?;
        let replica = uuid::Uuid::new_v4().to_string();
        // Other replicas name it where they take over from it.
        tracing::info!(replica, "replica started");
        let queue_limits = QueueLimits {
            waiting: settings.queue.queue_limit as usize,
            waiting_of_source: settings.queue.queue_share as usize,
            running_of_address: settings.queue.address_turns as usize,
        };
        let queue = QueueStore::new(redis.clone(), replica.clone(), queue_limits);
        let membership =
            MembershipStore::new(redis.clone(), replica.clone()).at(published_address(address));
        let session_limits = SessionLimits {
            anonymous_idle_seconds: settings.storage.anonymous_ttl.as_secs(),
            user_idle_seconds: settings.storage.session_ttl.map_or(0, |ttl| ttl.as_secs()),
            ..SessionLimits::default()
        };
        let store = Store::new(redis.clone(), replica, session_limits);
        let feeds = Feeds::start(&redis, store.clone())?;
        let limits = RateLimits::start(&redis, membership.clone(), settings.limits.clone());
        let fleet = Fleet::new(fleet_config(&settings.hosts))?;
        fleet.follow_names(&lifecycle);
        preload(&settings.hosts, &fleet, &lifecycle);
        let source_key = source_key(&settings.http, &redis);
        let generations = Generations::start(
            store.clone(),
            feeds.clone(),
            fleet.clone(),
            Queue::start(&redis, queue, move || generation::host_reports(&fleet))?,
            membership,
            GenerationSettings {
                num_ctx_cap: settings.hosts.num_ctx,
                host_wait: settings.hosts.host_wait_timeout,
                abandon_after: settings.queue.abandon_after,
                lease: settings.replica.lease_ms,
                storage: storage_limits(&settings.storage),
                limits: limits.clone(),
                source_key: source_key.clone(),
                titles: settings.hosts.titles,
            },
        );
        let conditions = Conditions::of(&redis);
        let readiness = Readiness {
            lifecycle: lifecycle.clone(),
            redis: conditions.subscribe(),
            source_key: source_key.clone(),
            patience: settings.replica.redis_patience,
        };
        let api_settings = api_settings(settings);
        let sources = ClientSources {
            proxies: api_settings.trusted_proxies.clone(),
            key: source_key.clone(),
        };
        let state = AppState {
            readiness,
            store,
            feeds,
            generations,
            settings: Arc::new(api_settings),
            limits,
            room: ConnectionRoom::new(settings.http.unread_mib, sources),
            sign_in: Arc::new(SignIn::start(&settings.sign_in.options(), &redis)?),
            lifecycle,
            sockets: TaskTracker::new(),
            permits: permits(&settings.http, descriptors),
            bulk: BulkPermits::default(),
            unfinished_messages: MessageBudget::default(),
            waiting_messages: MessageBudget::default(),
            source_key,
            metrics,
            log_filter,
        };
        let drain_timeout = settings.replica.drain_timeout;
        let address_connections = settings.http.address_connections as usize;
        Ok(Self {
            listener,
            address,
            admin,
            state,
            conditions,
            drain_timeout,
            descriptors,
            address_connections,
        })
    }

    /// Returns the address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of the listener for operators, where there is one.
    ///
    /// # Errors
    /// The error of the system, which does not report it.
    pub fn admin_address(&self) -> std::io::Result<Option<SocketAddr>> {
        self.admin.as_ref().map(|(listener, _)| listener.local_addr()).transpose()
    }

    /// Returns the life of this process.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.state.lifecycle
    }

    /// Serves until `stop` resolves or an essential task fails, then drains: nothing new is accepted,
    /// running turns may end, and the clients of sockets are asked to reconnect.
    ///
    /// # Errors
    /// [`TaskFailure`](crate::lifecycle::TaskFailure) where an essential task failed. One of them
    /// checks that this release can run on the data that Redis holds.
    pub async fn serve(
        self,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let Self {
            listener,
            admin,
            state,
            conditions,
            drain_timeout,
            descriptors,
            address_connections,
            ..
        } = self;
        let AppState { generations, lifecycle, sockets, .. } = state.clone();
        let shared: Shared = Arc::new(state);
        let upkeep = telemetry::upkeep(shared.metrics.clone());
        lifecycle.spawn("upkeep of metrics", async move {
            upkeep.await;
            TaskEnd::Done
        });
        let limits = ClientLimits {
            read: shared.settings.read_timeout,
            heartbeat: shared.settings.heartbeat,
            connections: descriptors::connections_that_fit(descriptors),
            probes: descriptors::probes_that_fit(descriptors),
            http_2: shared.settings.http_2,
        };
        let room = shared.room.clone();
        let proxies = &shared.settings.trusted_proxies;
        if let Some((listener, lists)) = admin {
            let router = api::admin::router(Arc::clone(&shared), lists);
            let limits = ClientLimits {
                connections: ADMIN_CONNECTIONS,
                probes: ADMIN_CONNECTIONS,
                http_2: false,
                ..limits
            };
            // The scrapers have one address, or a few.
            let of_addresses = AddressConnections::new(ADMIN_CONNECTIONS, proxies.clone());
            let room = room.clone();
            let serving =
                listener::serve(listener, router, room, limits, of_addresses, lifecycle.clone());
            lifecycle.spawn("admin listener", serving);
        }
        let of_addresses = AddressConnections::new(address_connections, proxies.clone());
        let router = api::router(&shared);
        let serving =
            listener::serve(listener, router, room, limits, of_addresses, lifecycle.clone());
        let serving = lifecycle.spawn("http listener", serving);
        let mut condition = conditions.subscribe();
        let usable = async move { condition.wait_for(|now| now.trouble().is_none()).await.is_ok() };
        lifecycle.spawn("redis probe", async move {
            conditions
                .follow()
                .await
                .map_or_else(|refused| TaskEnd::Failed(refused.to_string()), |()| TaskEnd::Done)
        });
        tokio::pin!(usable, stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = lifecycle.failed() => break,
                _ = &mut usable, if lifecycle.phase() == Phase::Starting => {
                    lifecycle.advance(Phase::Serving);
                }
            }
        }
        if let (Phase::Starting, Some(failure)) = (lifecycle.phase(), lifecycle.failure()) {
            // No turn was accepted yet, so there is nothing to drain.
            return Err(failure.into());
        }
        lifecycle.advance(Phase::Draining);
        let handed_over = generations.drain(drain_timeout);
        if tokio::time::timeout(drain_timeout + HANDOVER_LIMIT, handed_over).await.is_err() {
            tracing::warn!(
                "handover of turns timed out; other replicas take them over once the lease has expired"
            );
        }
        lifecycle.advance(Phase::Stopped);
        sockets.close();
        let closed = async {
            sockets.wait().await;
            serving.await
        };
        let _ = tokio::time::timeout(CLOSE_LIMIT, closed).await;
        tracing::info!("stopped");
        lifecycle.failure().map_or(Ok(()), |failure| Err(failure.into()))
    }
}

/// Listens on an address.
///
/// # Errors
/// Where the port is taken.
fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    listener::bind(address).with_context(|| format!("cannot listen on {address}"))
}

/// Returns the options of a connection to Redis.
pub fn redis_options(settings: &RedisSettings) -> RedisOptions {
    RedisOptions {
        url: settings.url().to_owned(),
        tls: settings.tls(),
        command_timeout: settings.redis_timeout_ms,
        acknowledgements: settings.acknowledgements(),
    }
}

fn fleet_config(settings: &HostSettings) -> FleetConfig {
    let hosts = settings.hosts();
    let hosts = hosts.map(|(url, slots)| HostConfig { url: url.clone(), slots: slots.into() });
    FleetConfig {
        hosts: hosts.collect(),
        connect_timeout: settings.connect_timeout,
        first_token_timeout: settings.first_token_timeout,
        token_gap_timeout: settings.token_gap_timeout,
        keep_alive: settings.keep_alive.clone(),
        authorization: settings.token().and_then(authorization),
        tls: settings.tls(),
    }
}

fn storage_limits(settings: &StorageSettings) -> StorageLimits {
    StorageLimits {
        caller_sessions: settings.caller_sessions.into(),
        caller_bytes: u64::from(settings.caller_mib) << 20,
        anonymous_bytes: u64::from(settings.anonymous_mib) << 20,
        ..StorageLimits::default()
    }
}

fn api_settings(settings: &Settings) -> ApiSettings {
    let http = &settings.http;
    ApiSettings {
        default_model: settings.hosts.default_model.clone(),
        allow_lists: Arc::new(AllowLists {
            origins: http.allowed_origins(),
            hosts: http.allowed_hosts(),
        }),
        request_timeout: http.request_timeout,
        heartbeat: http.heartbeat,
        read_timeout: http.read_timeout,
        http_2: http.http_2,
        has_admin_listener: http.admin_listen.is_some(),
        metrics_token: http.metrics_token().map(ExpectedToken::new),
        auth_grace: settings.sign_in.auth_grace,
        trusted_proxies: TrustedProxies(http.trusted_proxies().into()),
        ..ApiSettings::default()
    }
}

/// Returns the key of the digests of addresses: the one that is set, or the one that all replicas share
/// in Redis.
fn source_key(settings: &HttpSettings, redis: &Redis) -> SourceKey {
    if let Some(key) = settings.source_key() {
        return SourceKey::new(key.expose().as_bytes());
    }
    let key = SourceKey::not_agreed();
    let following = source_key::follow(redis.clone(), key.clone());
    redis.lifecycle().spawn("key of addresses", async move {
        following.await;
        TaskEnd::Done
    });
    key
}

/// Returns the header with the token of the model hosts.
fn authorization(token: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Returns the permits of sockets, as many as are set and fit into the limit of descriptors.
fn permits(settings: &HttpSettings, descriptors: u64) -> SocketPermits {
    let limit = descriptors::sockets_that_fit(settings.max_sockets, descriptors);
    SocketPermits::new(limit, settings.address_sockets as usize)
}

/// Loads models on the hosts in the background, until the process drains.
fn preload(settings: &HostSettings, fleet: &Fleet, lifecycle: &Lifecycle) {
    let (models, num_ctx) = (settings.preload(), settings.num_ctx);
    if models.is_empty() {
        return;
    }
    let (fleet, draining) = (fleet.clone(), lifecycle.clone());
    spawn_caught("preload", async move {
        tokio::select! {
            () = fleet.preload(&models, num_ctx) => {}
            () = draining.reached(Phase::Draining) => {}
        }
    });
}
