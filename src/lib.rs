//! jarvis: a chat service in front of Ollama whose answers survive the replica that writes them.
//!
//! [`Server`] owns a replica's life: start, serve, drain. ARCHITECTURE.md tells how the parts work
//! together.

pub mod api;
pub mod config;
pub mod digest;
pub mod follow;
pub mod generation;
pub mod http;
pub mod lifecycle;
pub mod membership;
pub mod model_name;
pub mod ollama;
pub mod queue;
pub mod readiness;
pub mod redis;
pub mod retry;
pub mod session;
pub mod telemetry;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::api::{ApiSettings, AppState};
use crate::config::Settings;
use crate::generation::{GenerationSettings, Generations};
use crate::http::listener::{self, TimeLimits};
use crate::http::middleware::AllowLists;
use crate::lifecycle::{Lifecycle, Phase, TaskEnd};
use crate::membership::MembershipStore;
use crate::ollama::{Fleet, FleetConfig};
use crate::queue::{Queue, QueueStore};
use crate::readiness::Readiness;
use crate::redis::{Conditions, Redis};
use crate::session::{Feeds, Store};

/// After drain, how long turns may take to be handed over, and connections to close.
const HANDOVER_LIMIT: Duration = Duration::from_secs(2);
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// One replica.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    state: AppState,
    conditions: Conditions,
    drain_timeout: Duration,
}

impl Server {
    /// Opens everything, without waiting for Redis or Ollama: both may come later. To be called
    /// inside a Tokio runtime.
    ///
    /// # Errors
    /// Where the port is taken or an address is not usable.
    pub fn bind(settings: &Settings, metrics: PrometheusHandle) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = listener::bind(settings.listen)
            .with_context(|| format!("cannot listen on {}", settings.listen))?;
        let address = listener.local_addr()?;
        let lifecycle = Lifecycle::default();
        let redis = Redis::connect_in(&settings.redis.options(), lifecycle.clone())?;
        let replica = uuid::Uuid::new_v4().to_string();
        let waiting = settings.queue_limit as usize;
        let limits =
            queue::QueueLimits { waiting, waiting_of_source: settings.queue_share as usize };
        let queue = QueueStore::new(redis.clone(), replica.clone(), limits);
        let membership = MembershipStore::new(redis.clone(), replica.clone());
        let store = Store::new(redis.clone(), replica, session::store::SessionLimits::default());
        let feeds = Feeds::start(&redis, store.clone())?;
        let fleet = Fleet::new(FleetConfig {
            hosts: settings.ollama_hosts(),
            connect_timeout: settings.connect_timeout(),
            first_token_timeout: Duration::from_secs(settings.first_token_timeout),
            token_gap_timeout: Duration::from_secs(settings.token_gap_timeout),
            keep_alive: settings.keep_alive.clone(),
        })?;
        fleet.follow_names(&lifecycle);
        let (preload, num_ctx) = (settings.preload(), settings.num_ctx);
        if !preload.is_empty() {
            let (fleet, draining) = (fleet.clone(), lifecycle.clone());
            lifecycle.spawn_optional("preload", async move {
                tokio::select! {
                    () = fleet.preload(&preload, num_ctx) => {}
                    () = draining.reached(Phase::Draining) => {}
                }
            });
        }
        let generations = Generations::start(
            store.clone(),
            feeds.clone(),
            fleet.clone(),
            Queue::start(&redis, queue, move || generation::host_reports(&fleet))?,
            membership,
            GenerationSettings {
                num_ctx_cap: num_ctx,
                host_wait: Duration::from_secs(settings.host_wait_timeout),
                lease: Duration::from_millis(settings.lease_ms),
            },
        );
        let conditions = Conditions::of(&redis);
        let readiness = Readiness {
            lifecycle: lifecycle.clone(),
            redis: conditions.subscribe(),
            patience: Duration::from_secs(settings.redis_patience),
        };
        let state = AppState {
            readiness,
            store,
            feeds,
            generations,
            settings: Arc::new(ApiSettings {
                default_model: settings.default_model.clone(),
                allow_lists: Arc::new(AllowLists {
                    origins: settings.allowed_origins(),
                    hosts: settings.allowed_hosts(),
                }),
                request_timeout: Duration::from_secs(settings.request_timeout),
                heartbeat: Duration::from_secs(settings.heartbeat),
                read_timeout: Duration::from_secs(settings.read_timeout),
                max_sockets: settings.max_sockets as usize,
                proxies: usize::from(settings.proxies),
                ..ApiSettings::default()
            }),
            lifecycle,
            sockets: TaskTracker::new(),
            metrics,
        };
        let drain_timeout = Duration::from_secs(settings.drain_timeout);
        Ok(Self { listener, address, state, conditions, drain_timeout })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the life of this process.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.state.lifecycle
    }

    /// Serves until `stop` resolves or an essential task fails, then drains: nothing new is taken,
    /// running turns may end, and sockets are told to reconnect.
    ///
    /// # Errors
    /// [`lifecycle::TaskFailure`] where an essential task failed, among them the one that finds that
    /// this release cannot run on what Redis holds.
    pub async fn serve(
        self,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let Self { listener, state, conditions, drain_timeout, .. } = self;
        let AppState { generations, lifecycle, sockets, .. } = state.clone();
        let limits =
            TimeLimits { read: state.settings.read_timeout, heartbeat: state.settings.heartbeat };
        let serving = listener::serve(listener, api::router(state), limits, lifecycle.clone());
        let serving = lifecycle.spawn("http listener", serving);
        let mut condition = conditions.subscribe();
        let usable = async move { condition.wait_for(|now| now.trouble().is_none()).await.is_ok() };
        lifecycle.spawn("redis probe", async move {
            conditions
                .follow()
                .await
                .map_or_else(|refused| TaskEnd::CannotGoOn(refused.to_string()), |()| TaskEnd::Done)
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
                "handing over turns took too long; the other replicas take them over when the lease has run out"
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
