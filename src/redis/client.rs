//! Clients of Redis: how they are configured, and how one that no longer replies is replaced.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use fred::prelude::{
    Builder, Client, ClientLike, ClusterInterface, Config, Error, EventInterface, ReconnectPolicy,
    Server, ServerConfig, TcpConfig,
};
use fred::types::RespVersion;
use fred::types::config::TlsConnector;
use tokio::time::Instant;

use super::error::{RedisError, classify, is_moved, is_unavailable};
use super::sentinel::Primary;
use super::watchdog::{self, Disturbances};
use crate::lifecycle::{Lifecycle, TaskEnd, spawn_caught};
use crate::telemetry::metric;
use crate::tls::TlsOptions;

/// The options of the connections to Redis.
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://`, `rediss://`, `redis-cluster://`, `redis-sentinel://` or `redis+unix://`.
    pub url: String,
    /// The certificates of `rediss://` and its like.
    pub tls: TlsOptions,
    /// Time limit of a command, reconnection included.
    pub command_timeout: Duration,
    /// Redis replicas that should acknowledge a write of [`super::Redis::call_replicated`] before
    /// the call returns.
    pub acknowledgements: u8,
}

impl fmt::Debug for RedisOptions {
    /// Leaves out the URL, because it holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("command_timeout", &self.command_timeout)
            .field("acknowledgements", &self.acknowledgements)
            .finish_non_exhaustive()
    }
}

/// Commands in flight and waiting, at most. Beyond it a command fails at once.
const COMMAND_BUFFER: usize = 20_000;
/// Events that a client for commands buffers of each kind: errors, reconnections, cluster changes.
const EVENTS: usize = 256;
/// How long a client that was replaced may take to end.
const QUIT_LIMIT: Duration = Duration::from_secs(5);
/// Time between two log messages about connection errors.
const LOG_EVERY: Duration = Duration::from_secs(3);

/// A client that is replaced when it no longer replies.
pub(super) struct ManagedClient {
    client: RwLock<Client>,
    /// The last connection error; none while the client is connected.
    connection_error: Mutex<Option<Error>>,
    primary: Primary,
}

impl ManagedClient {
    /// Creates the client, and starts the task that watches and replaces it.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub(super) fn open(
        options: &RedisOptions,
        primary: &Primary,
        disturbances: &Disturbances,
        lifecycle: &Lifecycle,
    ) -> Result<Arc<Self>, RedisError> {
        let managed = Arc::new(Self {
            client: RwLock::new(connect(options, &[], EVENTS)?),
            connection_error: Mutex::default(),
            primary: primary.clone(),
        });
        let (watched, options) = (Arc::downgrade(&managed), options.clone());
        let (mut primary, disturbances) = (primary.clone(), disturbances.clone());
        lifecycle.spawn("redis connection", async move {
            while let Some(client) = watched.upgrade().map(|managed| managed.client()) {
                let note = |error| {
                    if let Some(managed) = watched.upgrade() {
                        *lock(&managed.connection_error) = error;
                    }
                };
                tokio::select! {
                    () = watchdog::until_unresponsive(&client, &mut primary, &disturbances) => {}
                    () = report_errors(&client, note) => {}
                }
                let Some(managed) = watched.upgrade() else { break };
                match replace(&options, client, EVENTS) {
                    Ok(next) => {
                        *managed.client.write().unwrap_or_else(PoisonError::into_inner) = next;
                    }
                    Err(error) => return TaskEnd::Failed(error.to_string()),
                }
            }
            TaskEnd::Done
        });
        Ok(managed)
    }

    /// Returns the present client.
    pub(super) fn client(&self) -> Client {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Classifies an error of a command. Without a connection, the connection error counts.
    pub(super) fn explain(&self, error: Error) -> RedisError {
        let is_disconnected = is_unavailable(&error) && !self.client().is_connected();
        let connection_error = lock(&self.connection_error).clone();
        if is_unavailable(&error)
            && let Some(fault) = self.primary.fault()
        {
            return fault;
        }
        let known = connection_error.filter(|_| is_disconnected).map(classify);
        if let Some(known) = known.filter(RedisError::is_permanent) {
            return known;
        }
        if is_moved(&error) && !self.client().is_clustered() {
            return RedisError::IsACluster;
        }
        classify(error)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Creates a client that replaces one that no longer replies, with the cluster nodes that the old one
/// knew. Ends the old client without waiting for it.
///
/// # Errors
/// [`RedisError::Url`].
pub(super) fn replace(
    options: &RedisOptions,
    old: Client,
    events: usize,
) -> Result<Client, RedisError> {
    // The log reports a lost connection elsewhere, once.
    if old.is_connected() {
        tracing::warn!("redis client does not reply; replacing it");
    }
    metrics::counter!(metric::REDIS_CLIENTS_REPLACED_TOTAL).increment(1);
    let nodes = old.cached_cluster_state().map(|state| state.unique_primary_nodes());
    let next = connect(options, &nodes.unwrap_or_default(), events);
    spawn_caught("redis", async move {
        let _ = tokio::time::timeout(QUIT_LIMIT, old.quit()).await;
    });
    next
}

/// Creates a client, which connects by itself. `nodes` are nodes of the cluster in addition to
/// those of the URL, and `events` is the number of events of each kind that the client buffers.
///
/// # Errors
/// [`RedisError::Url`].
pub(super) fn connect(
    options: &RedisOptions,
    nodes: &[Server],
    events: usize,
) -> Result<Client, RedisError> {
    let client = builder(options, nodes, events)?
        .build()
        .map_err(|error| RedisError::Url(error.details().to_owned()))?;
    client.connect();
    Ok(client)
}

/// Parses the URL.
///
/// # Errors
/// [`RedisError::Url`].
pub(super) fn config(options: &RedisOptions) -> Result<Config, RedisError> {
    let parsed = Config::from_url(&options.url);
    let mut config = parsed.map_err(|error| RedisError::Url(error.details().to_owned()))?;
    if config.tls.is_some() {
        let tls = options.tls.client_config();
        let tls = tls.map_err(|error| RedisError::Url(error.to_string()))?;
        config.tls = Some(TlsConnector::from(tls).into());
    }
    Ok(config)
}

fn builder(options: &RedisOptions, nodes: &[Server], events: usize) -> Result<Builder, RedisError> {
    let mut config = config(options)?;
    config.username = config.username.map(|name| quote_for_hello(&name));
    config.password = config.password.map(|password| quote_for_hello(&password));
    if let ServerConfig::Clustered { hosts, .. } = &mut config.server {
        hosts.extend_from_slice(nodes);
    }
    config.version = RespVersion::RESP3;
    config.fail_fast = false;
    let mut builder = Builder::from_config(config);
    let timeout = options.command_timeout;
    builder
        .with_connection_config(|connection| {
            // Shorter, so that a stopped server does not delay the connection to its successor.
            connection.connection_timeout = timeout / 2;
            connection.internal_command_timeout = timeout / 2;
            connection.max_command_attempts = 2;
            // Where a hash slot moves, fred sends ASKING on a shared connection, and takes the
            // next reply for its own: from then on every call gets the reply of another. After
            // MOVED it reads the hash slots again before the command fails, and the call is
            // repeated by `Redis::call_on_primary`.
            connection.max_redirections = 0;
            connection.max_command_buffer_len = COMMAND_BUFFER;
            connection.auto_client_setname = true;
            connection.unresponsive.max_timeout = Some(timeout * 2);
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = timeout;
            performance.broadcast_channel_capacity = events;
        })
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 500, 2));
    Ok(builder)
}

/// Quotes a user name or password for fred, whose HELLO is one line of words: a blank would begin
/// another word. Redis parses a word in quotes, in which every byte may be escaped.
fn quote_for_hello(text: &str) -> String {
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=@#%".contains(&byte)) {
        return text.to_owned();
    }
    let escaped = text.bytes().map(|byte| format!("\\x{byte:02x}"));
    format!("\"{}\"", escaped.collect::<String>())
}

/// Logs connection errors, one every few seconds and not one for every attempt. Calls `note` with
/// the last error, and with none when the client has connected.
async fn report_errors(client: &Client, note: impl Fn(Option<Error>)) {
    use tokio::sync::broadcast::error::RecvError;
    let (mut errors, mut connections) = (client.error_rx(), client.reconnect_rx());
    let mut last = None::<Instant>;
    let mut is_lost = false;
    loop {
        let (error, server): (Error, Option<Server>) = tokio::select! {
            error = errors.recv() => match error {
                Ok(error) => error,
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            },
            connected = connections.recv() => {
                if matches!(connected, Err(RecvError::Closed)) {
                    return;
                }
                note(None);
                if std::mem::take(&mut is_lost) {
                    metrics::counter!(metric::REDIS_RECONNECTS_TOTAL).increment(1);
                }
                continue;
            }
        };
        note(Some(error.clone()));
        is_lost = true;
        if last.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            last = Some(Instant::now());
            let server = server.map(|server| server.to_string());
            match classify(error) {
                RedisError::Unavailable(error) => {
                    let error = error.details();
                    tracing::warn!(server, error, "redis not reachable; trying again");
                }
                error => {
                    tracing::error!(server, %error, "redis refuses the connection; trying again");
                }
            }
        }
    }
}
