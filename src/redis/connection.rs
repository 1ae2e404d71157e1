//! Clients of Redis, and calls of our functions over them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fred::prelude::{
    Builder, Client, ClientLike, ClusterInterface, Config, Error, ErrorKind, EventInterface,
    FromValue, FunctionInterface, Options, ReconnectPolicy, Server, TcpConfig, Value,
};
use fred::types::{ClusterHash, CustomCommand, RespVersion};

use super::migrations;

/// How to reach Redis.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// `redis://`, `rediss://`, `redis-cluster://`, `redis-sentinel://` or `redis+unix://`.
    pub url: String,
    /// How long a command may take, reconnection included.
    pub command_timeout: Duration,
}

/// What went wrong between us and Redis.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// The address cannot be used.
    #[error("the Redis URL is not usable: {0}")]
    Url(String),
    /// Not reachable, not answering in time, or not able to take writes now.
    #[error("Redis is not available")]
    Unavailable(#[source] Error),
    /// Its memory is full.
    #[error("Redis has no memory left")]
    OutOfMemory,
    /// It answered something that this version does not understand.
    #[error("unexpected answer from Redis: {0}")]
    Unexpected(String),
    /// Its functions are of a release that this one cannot run beside.
    #[error(transparent)]
    Migration(#[from] migrations::MigrationError),
}

/// Commands in flight and waiting, at most; beyond it a command fails at once.
const COMMAND_BUFFER: usize = 20_000;
/// Time-outs in a row after which the connection is taken for dead.
const TIMEOUTS_BEFORE_RECONNECT: u32 = 3;
/// A slot that is being moved answers TRYAGAIN for some of its keys for as long as the move takes.
const TRYAGAIN_ATTEMPTS: u32 = 10;

/// A connection for commands, shared by everybody.
#[derive(Clone)]
pub struct Redis {
    client: Client,
    timeouts_in_a_row: Arc<AtomicU32>,
}

impl Redis {
    /// Makes the connection, without waiting for it: it comes up when Redis does.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn connect(options: &RedisOptions) -> Result<Self, RedisError> {
        let client = builder(options)?
            .build()
            .map_err(|error| RedisError::Url(error.details().to_owned()))?;
        report_errors(&client);
        client.connect();
        Ok(Self { client, timeouts_in_a_row: Arc::default() })
    }

    /// Whether Redis answers.
    ///
    /// # Errors
    /// [`RedisError::Unavailable`].
    pub async fn ping(&self) -> Result<(), RedisError> {
        let pong = self.client.with_options(&Options { fail_fast: true, ..Options::default() });
        let answered = pong.ping::<()>(None).await;
        self.watch(&answered);
        answered.map_err(classify)
    }

    /// Calls a function that may write. The first key decides the node.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub async fn call<R: FromValue>(
        &self,
        function: &'static str,
        keys: &[&str],
        args: Vec<Value>,
    ) -> Result<R, RedisError> {
        self.function("FCALL", function, keys, args).await
    }

    /// Calls a function that only reads.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub async fn call_readonly<R: FromValue>(
        &self,
        function: &'static str,
        keys: &[&str],
        args: Vec<Value>,
    ) -> Result<R, RedisError> {
        self.function("FCALL_RO", function, keys, args).await
    }

    async fn function<R: FromValue>(
        &self,
        command: &'static str,
        function: &'static str,
        keys: &[&str],
        args: Vec<Value>,
    ) -> Result<R, RedisError> {
        let mut line: Vec<Value> = Vec::with_capacity(2 + keys.len() + args.len());
        line.push(Value::from_static_str(function));
        line.push(Value::Integer(i64::try_from(keys.len()).unwrap_or(i64::MAX)));
        line.extend(keys.iter().map(|key| Value::from(*key)));
        line.extend(args);
        let mut attempt = 0;
        loop {
            attempt += 1;
            // fred counts FCALL itself among the blocking commands, which have no time limit.
            let call = CustomCommand::new_static(command, ClusterHash::Offset(2), false);
            let reply = self.client.custom::<R, Value>(call, line.clone()).await;
            self.watch(&reply);
            let error = match reply {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if error.details().contains("Function not found") && attempt == 1 {
                // A node that came back empty.
                migrations::load(self).await?;
            } else if error.details().starts_with("TRYAGAIN") && attempt < TRYAGAIN_ATTEMPTS {
                tokio::time::sleep(Duration::from_millis(20 * u64::from(attempt))).await;
            } else {
                return Err(classify(error));
            }
        }
    }

    /// The client, for what is not a call of a function.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Loads a library of functions on every primary, in place of its earlier self.
    pub(super) async fn load_library(&self, code: &str) -> Result<(), RedisError> {
        let loaded = if self.client.is_clustered() {
            self.client.function_load_cluster::<(), _>(true, code).await
        } else {
            self.client.function_load::<(), _>(true, code).await
        };
        loaded.map_err(classify)
    }

    /// A server that is stopped, not gone, leaves its connections open: only time tells.
    fn watch<T>(&self, reply: &Result<T, Error>) {
        match reply {
            Err(error) if *error.kind() == ErrorKind::Timeout => {
                metrics::counter!("jarvis_redis_errors_total", "kind" => "timeout").increment(1);
                let timeouts = self.timeouts_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
                if timeouts.is_multiple_of(TIMEOUTS_BEFORE_RECONNECT) {
                    let client = self.client.clone();
                    tokio::spawn(async move {
                        let _ = client.force_reconnection().await;
                    });
                }
            }
            Err(error) => {
                let kind = if is_unavailable(error) { "unavailable" } else { "refused" };
                metrics::counter!("jarvis_redis_errors_total", "kind" => kind).increment(1);
            }
            Ok(_) => self.timeouts_in_a_row.store(0, Ordering::Relaxed),
        }
    }

    /// Learns anew which node has which slot.
    pub(super) async fn refresh_cluster(client: &Client) {
        if client.is_clustered() {
            let _ = client.sync_cluster().await;
        }
    }
}

/// A builder with what every client of ours has in common.
pub(super) fn builder(options: &RedisOptions) -> Result<Builder, RedisError> {
    let mut config =
        Config::from_url(&options.url).map_err(|e| RedisError::Url(e.details().to_owned()))?;
    config.version = RespVersion::RESP3;
    config.fail_fast = false;
    let mut builder = Builder::from_config(config);
    let timeout = options.command_timeout;
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = timeout;
            connection.internal_command_timeout = timeout;
            connection.max_command_attempts = 2;
            connection.max_command_buffer_len = COMMAND_BUFFER;
            connection.auto_client_setname = true;
            connection.unresponsive.max_timeout = Some(timeout * 2);
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = timeout;
            // The default of 32 loses most of a burst.
            performance.broadcast_channel_capacity = 65_536;
        })
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 500, 2));
    Ok(builder)
}

fn is_unavailable(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::IO
            | ErrorKind::Timeout
            | ErrorKind::Canceled
            | ErrorKind::Backpressure
            | ErrorKind::Cluster
            | ErrorKind::Sentinel
            | ErrorKind::Routing
            | ErrorKind::Auth
            | ErrorKind::Tls
    ) || [
        "LOADING",
        "READONLY",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "NOREPLICAS",
        "TRYAGAIN",
        "MISCONF",
        "BUSY",
    ]
    .iter()
    .any(|word| error.details().starts_with(word))
}

pub(super) fn classify(error: Error) -> RedisError {
    if error.details().contains("OOM ") {
        RedisError::OutOfMemory
    } else if is_unavailable(&error) {
        RedisError::Unavailable(error)
    } else {
        RedisError::Unexpected(error.details().to_owned())
    }
}

/// One line every few seconds while Redis is away, not one for every attempt.
fn report_errors(client: &Client) {
    let mut errors = client.error_rx();
    tokio::spawn(async move {
        let quiet = Duration::from_secs(3);
        let mut last = None::<tokio::time::Instant>;
        loop {
            let (error, server): (Error, Option<Server>) = match errors.recv().await {
                Ok(error) => error,
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => continue,
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            };
            if last.is_none_or(|at| at.elapsed() >= quiet) {
                last = Some(tokio::time::Instant::now());
                let server = server.map(|server| server.to_string());
                tracing::warn!(
                    server,
                    error = error.details(),
                    "Redis is not reachable; still trying"
                );
            }
        }
    });
}
