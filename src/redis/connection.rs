//! Clients of Redis, and calls of our functions over them.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use fred::prelude::{
    Builder, Client, ClientLike, ClusterInterface, Config, Error, ErrorKind, EventInterface,
    FromValue, FunctionInterface, ReconnectPolicy, Server, ServerConfig, TcpConfig, Value,
};
use fred::types::{ClusterHash, CustomCommand, RespVersion};
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::{
    DOUBTFUL, RedisError, classify, is_missing_function, is_redirection, is_unavailable,
};
use super::functions::Call;
use super::sentinel::{self, Primary};
use super::watchdog::{self, Disturbances};
use crate::lifecycle::{Lifecycle, TaskEnd};
use crate::retry::Backoff;
use crate::telemetry::metric;

/// How to reach Redis.
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://`, `rediss://`, `redis-cluster://`, `redis-sentinel://` or `redis+unix://`.
    pub url: String,
    /// How long a command may take, reconnection included.
    pub command_timeout: Duration,
    /// Replicas of Redis that are to have what [`Redis::call_replicated`] wrote before it returns.
    pub acknowledgements: u8,
}

impl fmt::Debug for RedisOptions {
    /// Leaves the URL out: it holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("command_timeout", &self.command_timeout)
            .field("acknowledgements", &self.acknowledgements)
            .finish_non_exhaustive()
    }
}

/// Commands in flight and waiting, at most; beyond it a command fails at once.
const COMMAND_BUFFER: usize = 20_000;
/// How long an acknowledgement is waited for, in milliseconds: it narrows the window in which a
/// failover loses a write, no more.
const ACKNOWLEDGEMENT_MILLISECONDS: i64 = 100;
/// Errors and changes that may wait to be noticed; there is no other kind on these clients.
const NOTICES: usize = 256;
/// How long a client that was given up may take to end.
const QUIT_LIMIT: Duration = Duration::from_secs(5);
/// Pauses before a call is made again whose server may not be the primary.
const DOUBTFUL_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(50), Duration::from_millis(100));
/// Pauses before a call is made again whose slot is being moved.
const REDIRECTED_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(10), Duration::from_millis(200));
/// While a slot is being moved, its keys are here, there, or both (TRYAGAIN): attempts over about a
/// second.
const REDIRECTED_ATTEMPTS: u32 = 11;

/// A connection for commands, shared by everybody.
#[derive(Clone)]
pub struct Redis {
    line: Arc<Line>,
    /// WAIT holds up its connection, so that nothing that is in a hurry may share it.
    replicated: Arc<Line>,
    disturbances: Disturbances,
    lifecycle: Lifecycle,
    /// Whether this release may run on what Redis holds, so that its functions may be loaded.
    checked: Arc<AtomicBool>,
    pub(super) options: RedisOptions,
    pub(super) primary: Primary,
}

impl Redis {
    /// As [`Redis::connect_in`], with a life of its own.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn connect(options: &RedisOptions) -> Result<Self, RedisError> {
        Self::connect_in(options, Lifecycle::default())
    }

    /// Makes the connection, without waiting for it: it comes up when Redis does. Its tasks, and
    /// those of everything that works over it, are essential for the process.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn connect_in(options: &RedisOptions, lifecycle: Lifecycle) -> Result<Self, RedisError> {
        let disturbances = Disturbances::new();
        let primary = sentinel::follow(&config(options)?, &lifecycle);
        let line = Line::open(options, &primary, &disturbances, &lifecycle)?;
        let replicated = if options.acknowledgements > 0 {
            Line::open(options, &primary, &disturbances, &lifecycle)?
        } else {
            Arc::clone(&line)
        };
        Ok(Self {
            line,
            replicated,
            disturbances,
            lifecycle,
            checked: Arc::default(),
            options: options.clone(),
            primary,
        })
    }

    /// Returns the life of this process, which supervises the tasks of everything over Redis.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    /// Whether the migrations were checked and this release may run here.
    pub(super) fn is_checked(&self) -> bool {
        self.checked.load(Ordering::Relaxed)
    }

    pub(super) fn set_checked(&self) {
        self.checked.store(true, Ordering::Relaxed);
    }

    /// Changes whenever a write that was acknowledged may have been lost.
    pub fn disturbances(&self) -> watch::Receiver<u64> {
        self.disturbances.subscribe()
    }

    /// Calls a function that may write.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub async fn call<R: FromValue>(&self, call: Call) -> Result<R, RedisError> {
        self.sure(&self.line, "FCALL", call).await
    }

    /// As [`Redis::call`], and then waits shortly for the replicas of Redis to have it.
    ///
    /// # Errors
    /// Any [`RedisError`]. That replicas are late is none.
    pub async fn call_replicated<R: FromValue>(&self, call: Call) -> Result<R, RedisError> {
        let node = node_of(call.slot());
        let reply = self.sure(&self.replicated, "FCALL", call).await?;
        let acknowledgements = i64::from(self.options.acknowledgements);
        if acknowledgements > 0 {
            let wait = CustomCommand::new_static("WAIT", node, false);
            let args = vec![acknowledgements, ACKNOWLEDGEMENT_MILLISECONDS];
            let acknowledged = self.replicated.client().custom::<i64, _>(wait, args).await;
            if !acknowledged.is_ok_and(|count| count >= acknowledgements) {
                metrics::counter!(metric::REDIS_UNACKNOWLEDGED_TOTAL).increment(1);
            }
        }
        Ok(reply)
    }

    /// Calls a function that only reads.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub async fn call_readonly<R: FromValue>(&self, call: Call) -> Result<R, RedisError> {
        self.sure(&self.line, "FCALL_RO", call).await
    }

    /// Tells whoever follows a channel. Nothing is stored.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub async fn publish(&self, channel: &str, payload: String) -> Result<(), RedisError> {
        let slot = fred::util::redis_keyslot(channel.as_bytes());
        let command = CustomCommand::new_static("SPUBLISH", node_of(Some(slot)), false);
        let words: Vec<Value> = vec![channel.into(), payload.into()];
        let published = self.client().custom::<i64, _>(command, words).await;
        self.watch(&published);
        published.map(drop).map_err(|error| self.line.explain(error))
    }

    /// Calls a function on a server that is sure to be the primary.
    async fn sure<R: FromValue>(
        &self,
        line: &Line,
        command: &'static str,
        call: Call,
    ) -> Result<R, RedisError> {
        let deadline = Instant::now() + self.options.command_timeout;
        let node = node_of(call.slot());
        let mut words = call.into_words();
        let mut backoff = DOUBTFUL_BACKOFF.until(deadline);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(last) = words.last_mut() {
                *last = Value::from_static_str(self.primary.lease(left).await?);
            }
            match self.function(line, command, node.clone(), &words).await {
                Err(RedisError::Unavailable(error)) if error.details().starts_with(DOUBTFUL) => {
                    if !backoff.pause().await {
                        return Err(RedisError::Unavailable(error));
                    }
                }
                done => return done,
            }
        }
    }

    async fn function<R: FromValue>(
        &self,
        line: &Line,
        command: &'static str,
        node: ClusterHash,
        words: &[Value],
    ) -> Result<R, RedisError> {
        let (mut attempt, mut backoff) = (0, REDIRECTED_BACKOFF);
        loop {
            attempt += 1;
            // fred counts FCALL itself among the blocking commands, which have no time limit; and of
            // a custom command it minds no other hash than a slot.
            let call = CustomCommand::new_static(command, node.clone(), false);
            let reply = line.client().custom::<R, Value>(call, words.to_vec()).await;
            self.watch(&reply);
            let error = match reply {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if is_missing_function(&error) && attempt == 1 && self.is_checked() {
                // Boxed: it happens once, and would be a part of the future of every call.
                Box::pin(self.load_missing()).await?;
            } else if is_redirection(&error) && attempt < REDIRECTED_ATTEMPTS {
                let _ = backoff.pause().await;
            } else {
                return Err(line.explain(error));
            }
        }
    }

    /// What an error of a command means.
    pub(super) fn explain(&self, error: Error) -> RedisError {
        self.line.explain(error)
    }

    /// What it means that Redis did not reply in time.
    pub(super) fn timed_out(&self) -> RedisError {
        self.explain(Error::new(ErrorKind::Timeout, "no reply in time"))
    }

    /// The client, for what is not a call of a function.
    pub(super) fn client(&self) -> Client {
        self.line.client()
    }

    /// Loads a library of functions on every primary, in place of its earlier self.
    pub(super) async fn load_library(&self, code: &str) -> Result<(), RedisError> {
        let client = self.client();
        let loaded = if client.is_clustered() {
            client.function_load_cluster::<(), _>(true, code).await
        } else {
            client.function_load::<(), _>(true, code).await
        };
        loaded.map_err(|error| self.explain(error))
    }

    fn watch<T>(&self, reply: &Result<T, Error>) {
        let Err(error) = reply else { return };
        let kind = match error.kind() {
            ErrorKind::Timeout => "timeout",
            _ if is_unavailable(error) => "unavailable",
            _ => "refused",
        };
        tracing::debug!(kind, error = error.details(), "Redis");
        if kind != "refused" {
            self.disturbances.note();
        }
        metrics::counter!(metric::REDIS_ERRORS_TOTAL, "kind" => kind).increment(1);
    }

    /// Learns anew which node has which slot.
    pub(super) async fn refresh_cluster(client: &Client) {
        if client.is_clustered() {
            let _ = client.sync_cluster().await;
        }
    }
}

/// A client that is replaced when it answers no more.
struct Line {
    client: RwLock<Client>,
    /// Why it could not connect last; none once it has.
    refusal: Mutex<Option<Error>>,
    primary: Primary,
}

impl Line {
    fn open(
        options: &RedisOptions,
        primary: &Primary,
        disturbances: &Disturbances,
        lifecycle: &Lifecycle,
    ) -> Result<Arc<Self>, RedisError> {
        let client = RwLock::new(connect(options, &[], NOTICES)?);
        let line = Arc::new(Self { client, refusal: Mutex::default(), primary: primary.clone() });
        let (watched, options) = (Arc::downgrade(&line), options.clone());
        let (mut primary, disturbances) = (primary.clone(), disturbances.clone());
        lifecycle.spawn("redis connection", async move {
            while let Some(client) = watched.upgrade().map(|line| line.client()) {
                let note = |error| {
                    if let Some(line) = watched.upgrade() {
                        *lock(&line.refusal) = error;
                    }
                };
                tokio::select! {
                    () = watchdog::until_given_up(&client, &mut primary, &disturbances) => {}
                    () = report_errors(&client, note) => {}
                }
                let Some(line) = watched.upgrade() else { break };
                match successor(&options, client, NOTICES) {
                    Ok(next) => {
                        *line.client.write().unwrap_or_else(PoisonError::into_inner) = next;
                    }
                    Err(error) => return TaskEnd::CannotGoOn(error.to_string()),
                }
            }
            TaskEnd::Done
        });
        Ok(line)
    }

    fn client(&self) -> Client {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What an error of a command means: without a connection it is why there is none.
    fn explain(&self, error: Error) -> RedisError {
        let waited = is_unavailable(&error) && !self.client().is_connected();
        let refusal = lock(&self.refusal).clone().filter(|_| waited).map(classify);
        match refusal {
            _ if is_unavailable(&error) && self.primary.refuses_credentials() => {
                RedisError::SentinelCredentials
            }
            Some(
                known @ (RedisError::Credentials
                | RedisError::Database
                | RedisError::Permission { .. }),
            ) => known,
            _ => classify(error),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client in place of one that was given up, and that knows the nodes which that one knew.
pub(super) fn successor(
    options: &RedisOptions,
    given_up: Client,
    notices: usize,
) -> Result<Client, RedisError> {
    // Of one that has no connection it is said elsewhere, once.
    if given_up.is_connected() {
        tracing::warn!("a redis client does not reply any more and is replaced");
    }
    metrics::counter!(metric::REDIS_CLIENTS_REPLACED_TOTAL).increment(1);
    let known = given_up.cached_cluster_state().map(|state| state.unique_primary_nodes());
    let next = connect(options, &known.unwrap_or_default(), notices);
    tokio::spawn(async move {
        let _ = tokio::time::timeout(QUIT_LIMIT, given_up.quit()).await;
    });
    next
}

/// A client, and `known` nodes of its cluster beside those of the URL. It connects by itself, and has
/// room for so many notices of each kind: messages, errors, changes.
pub(super) fn connect(
    options: &RedisOptions,
    known: &[Server],
    notices: usize,
) -> Result<Client, RedisError> {
    let client = builder(options, known, notices)?
        .build()
        .map_err(|error| RedisError::Url(error.details().to_owned()))?;
    client.connect();
    Ok(client)
}

fn config(options: &RedisOptions) -> Result<Config, RedisError> {
    Config::from_url(&options.url).map_err(|error| RedisError::Url(error.details().to_owned()))
}

fn builder(
    options: &RedisOptions,
    known: &[Server],
    notices: usize,
) -> Result<Builder, RedisError> {
    let mut config = config(options)?;
    config.username = config.username.map(|name| in_hello(&name));
    config.password = config.password.map(|password| in_hello(&password));
    if let ServerConfig::Clustered { hosts, .. } = &mut config.server {
        hosts.extend_from_slice(known);
    }
    config.version = RespVersion::RESP3;
    config.fail_fast = false;
    let mut builder = Builder::from_config(config);
    let timeout = options.command_timeout;
    builder
        .with_connection_config(|connection| {
            // Shorter, so that a server that is stopped does not hold up the way to its successor.
            connection.connection_timeout = timeout / 2;
            connection.internal_command_timeout = timeout / 2;
            connection.max_command_attempts = 2;
            // Where a slot moves, fred sends ASKING on a connection that others use, and takes the
            // next reply for its own: from then on everybody gets somebody else's. After MOVED it
            // learns the cluster anew before it gives up, and the call is made again here.
            connection.max_redirections = 0;
            connection.max_command_buffer_len = COMMAND_BUFFER;
            connection.auto_client_setname = true;
            connection.unresponsive.max_timeout = Some(timeout * 2);
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = timeout;
            performance.broadcast_channel_capacity = notices;
        })
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 500, 2));
    Ok(builder)
}

/// A user name or password as fred can send it: its HELLO is one line of words, so that a blank would
/// begin another word. Redis reads a word in quotes, with every byte escaped.
fn in_hello(word: &str) -> String {
    if word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=@#%".contains(&byte)) {
        return word.to_owned();
    }
    let escaped = word.bytes().map(|byte| format!("\\x{byte:02x}"));
    format!("\"{}\"", escaped.collect::<String>())
}

fn node_of(slot: Option<u16>) -> ClusterHash {
    slot.map_or(ClusterHash::Random, ClusterHash::Custom)
}

/// Logs one line every few seconds while there is no connection, not one for every attempt, and
/// notes why there is none.
async fn report_errors(client: &Client, note: impl Fn(Option<Error>)) {
    use tokio::sync::broadcast::error::RecvError;
    let (mut errors, mut connections) = (client.error_rx(), client.reconnect_rx());
    let quiet = Duration::from_secs(3);
    let mut last = None::<Instant>;
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
                continue;
            }
        };
        note(Some(error.clone()));
        if last.is_none_or(|at| at.elapsed() >= quiet) {
            last = Some(Instant::now());
            let server = server.map(|server| server.to_string());
            match classify(error) {
                RedisError::Unavailable(error) => {
                    let error = error.details();
                    tracing::warn!(server, error, "redis is not reachable; trying again");
                }
                error => {
                    tracing::error!(server, %error, "redis refuses the connection; trying again");
                }
            }
        }
    }
}
