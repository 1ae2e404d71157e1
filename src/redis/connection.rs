//! Calls of functions and other commands of Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fred::prelude::{
    Client, ClientLike, ClusterInterface, Error, ErrorKind, FromValue, FunctionInterface,
    KeysInterface, SetOptions, Value,
};
use fred::types::{ClusterHash, CustomCommand};
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::{ManagedClient, RedisOptions, config};
use super::condition::{Condition, refused_for};
use super::error::{DOUBTFUL, RedisError, is_missing_function, is_redirection, is_unavailable};
use super::functions::Call;
use super::keys;
use super::replication::Replication;
use super::sentinel::{self, Primary};
use super::watchdog::Disturbances;
use crate::lifecycle::Lifecycle;
use crate::retry::Backoff;
use crate::telemetry::{metric, record_redis_command};

/// Time limit of an acknowledgement in milliseconds.
const ACKNOWLEDGEMENT_MILLISECONDS: i64 = 100;
/// Pauses before a call is repeated whose server may not be the primary.
const DOUBTFUL_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(50), Duration::from_millis(100));
/// Pauses before a call is repeated whose hash slot is being moved.
const REDIRECTED_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(10), Duration::from_millis(200));
/// Attempts over about a second, while a hash slot is being moved and its keys are on either
/// node or split between both (TRYAGAIN).
const REDIRECTED_ATTEMPTS: u32 = 11;

/// The connection for commands. Cloning is cheap, and clones share everything.
#[derive(Clone)]
pub struct Redis {
    main: Arc<ManagedClient>,
    /// The client of calls that end with WAIT, which blocks its connection.
    replicated: Arc<ManagedClient>,
    replication: Arc<Replication>,
    disturbances: Disturbances,
    lifecycle: Lifecycle,
    /// Whether this release may run on the stored data, so that its functions may be loaded.
    checked: Arc<AtomicBool>,
    /// The condition at the last probe.
    condition: Arc<watch::Sender<Condition>>,
    /// Bytes that all primaries together may use; 0 where that is unknown, or one has no limit.
    memory_limit: Arc<AtomicU64>,
    pub(super) options: RedisOptions,
    pub(super) primary: Primary,
}

impl Redis {
    /// Connects as [`Redis::connect_in`] does, with a lifecycle of its own.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn connect(options: &RedisOptions) -> Result<Self, RedisError> {
        Self::connect_in(options, Lifecycle::default())
    }

    /// Starts to connect, without waiting for Redis. The tasks of the connection, and those of
    /// everything that uses it, are essential for the process.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn connect_in(options: &RedisOptions, lifecycle: Lifecycle) -> Result<Self, RedisError> {
        let disturbances = Disturbances::new();
        let primary = sentinel::follow(&config(options)?, &lifecycle);
        let main = ManagedClient::open(options, &primary, &disturbances, &lifecycle)?;
        let replicated = if options.acknowledgements > 0 {
            ManagedClient::open(options, &primary, &disturbances, &lifecycle)?
        } else {
            Arc::clone(&main)
        };
        Ok(Self {
            main,
            replicated,
            replication: Arc::default(),
            disturbances,
            lifecycle,
            checked: Arc::default(),
            condition: Arc::default(),
            memory_limit: Arc::default(),
            options: options.clone(),
            primary,
        })
    }

    /// Returns the lifecycle of this process, which supervises the tasks of everything over Redis.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    /// Returns the bytes that all primaries together may use, as `maxmemory` has it; none where one of them
    /// has no limit, or before it is known.
    pub fn memory_limit(&self) -> Option<u64> {
        Some(self.memory_limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// Notes the bytes that all primaries together may use; 0 for no limit.
    pub(super) fn set_memory_limit(&self, bytes: u64) {
        self.memory_limit.store(bytes, Ordering::Relaxed);
    }

    /// Returns whether this release may run on the stored data, as far as that is checked.
    pub(super) fn is_checked(&self) -> bool {
        self.checked.load(Ordering::Relaxed)
    }

    /// Notes that this release may run on the stored data.
    pub(super) fn set_checked(&self) {
        self.checked.store(true, Ordering::Relaxed);
    }

    /// Returns the condition at the last probe.
    pub(super) fn condition(&self) -> &watch::Sender<Condition> {
        &self.condition
    }

    /// Resolves when no turn could be taken for `limit` for reasons that only an operator can end,
    /// with the last reason. Cancel-safe.
    pub async fn refused_for(&self, limit: Duration) -> String {
        refused_for(self.condition.subscribe(), limit).await
    }

    /// Returns a counter that changes whenever an acknowledged write may have been lost.
    pub fn disturbances(&self) -> watch::Receiver<u64> {
        self.disturbances.subscribe()
    }

    /// Calls a function that may write.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub async fn call<R: FromValue>(&self, call: Call) -> Result<R, RedisError> {
        self.call_on_primary(&self.main, "FCALL", call).await
    }

    /// Calls a function as [`Redis::call`] does, and then waits shortly for the acknowledgement of
    /// Redis replicas.
    ///
    /// # Errors
    /// Any [`RedisError`]. A missing acknowledgement is no error.
    pub async fn call_replicated<R: FromValue>(&self, call: Call) -> Result<R, RedisError> {
        let slot = call.slot();
        let reply = self.call_on_primary(&self.replicated, "FCALL", call).await?;
        let acknowledgements = i64::from(self.options.acknowledgements);
        if acknowledgements > 0 {
            let client = self.replicated.client();
            let server = client
                .cached_cluster_state()
                .and_then(|state| state.get_server(slot.unwrap_or_default()).cloned());
            let wait = async || {
                let wait = CustomCommand::new_static("WAIT", node_of(slot), false);
                let args = vec![acknowledgements, ACKNOWLEDGEMENT_MILLISECONDS];
                let made = Instant::now();
                let acknowledged = Box::pin(client.custom::<i64, _>(wait, args)).await;
                record_redis_command("wait", made.elapsed());
                acknowledged.is_ok_and(|count| count >= acknowledgements)
            };
            if !self.replication.acknowledge(server, wait).await {
                metrics::counter!(metric::REDIS_UNACKNOWLEDGED_TOTAL).increment(1);
            }
        }
        Ok(reply)
    }

    /// Returns whether the writes of [`Redis::call_replicated`] in the last ten seconds are known to
    /// be on as many Redis replicas as should acknowledge them, at least one.
    pub fn is_replicated(&self) -> bool {
        self.options.acknowledgements > 0 && self.replication.is_complete()
    }

    /// Calls a function that only reads.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub async fn call_readonly<R: FromValue>(&self, call: Call) -> Result<R, RedisError> {
        self.call_on_primary(&self.main, "FCALL_RO", call).await
    }

    /// Stores a value under a key that has none, and returns the value that the key then has.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub async fn get_or_set(&self, key: &str, value: &str) -> Result<String, RedisError> {
        let client = self.client();
        // Read first: a Redis whose memory is full refuses the write of a key that is there.
        let made = Instant::now();
        let got = client.get::<Option<String>, _>(key).await;
        record_redis_command("get", made.elapsed());
        self.count_error(&got);
        if let Some(stored) = got.map_err(|error| self.explain(error))? {
            return Ok(stored);
        }
        let only_new = Some(SetOptions::NX);
        let made = Instant::now();
        let set = client.set::<Option<String>, _, _>(key, value, None, only_new, false).await;
        record_redis_command("set", made.elapsed());
        self.count_error(&set);
        set.map_err(|error| self.explain(error))?;
        let made = Instant::now();
        let got = client.get::<Option<String>, _>(key).await;
        record_redis_command("get", made.elapsed());
        self.count_error(&got);
        Ok(got.map_err(|error| self.explain(error))?.unwrap_or_else(|| value.to_owned()))
    }

    /// Publishes a payload on a channel, without storing anything. Returns the number of its
    /// subscribers: this replica, where it is subscribed, and others.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub async fn publish(&self, channel: &str, payload: String) -> Result<u64, RedisError> {
        let slot = keys::hash_slot(channel);
        let command = CustomCommand::new_static("SPUBLISH", node_of(Some(slot)), false);
        let arguments: Vec<Value> = vec![channel.into(), payload.into()];
        let made = Instant::now();
        let client = self.client();
        let published = Box::pin(client.custom::<u64, _>(command, arguments)).await;
        record_redis_command("spublish", made.elapsed());
        self.count_error(&published);
        published.map_err(|error| self.main.explain(error))
    }

    /// Calls a function on a server that is certain to be the primary.
    async fn call_on_primary<R: FromValue>(
        &self,
        client: &ManagedClient,
        command: &'static str,
        call: Call,
    ) -> Result<R, RedisError> {
        let deadline = Instant::now() + self.options.command_timeout;
        let (node, function) = (node_of(call.slot()), call.function());
        let mut arguments = call.into_arguments();
        let mut backoff = DOUBTFUL_BACKOFF.until(deadline);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(last) = arguments.last_mut() {
                *last = Value::from_static_str(self.primary.lease_key(left).await?);
            }
            match self.call_node(client, command, function, node.clone(), &arguments).await {
                Err(RedisError::Unavailable(error)) if error.details().starts_with(DOUBTFUL) => {
                    if !backoff.pause().await {
                        return Err(RedisError::Unavailable(error));
                    }
                }
                done => return done,
            }
        }
    }

    /// Calls a function on the node of its hash slot, again where that is being moved or the
    /// function is missing.
    async fn call_node<R: FromValue>(
        &self,
        managed: &ManagedClient,
        command: &'static str,
        function: &'static str,
        node: ClusterHash,
        arguments: &[Value],
    ) -> Result<R, RedisError> {
        let (mut attempt, mut backoff) = (0, REDIRECTED_BACKOFF);
        loop {
            attempt += 1;
            // fred treats its own FCALL as a blocking command without a time limit, and routes a
            // custom command by its hash slot only.
            let call = CustomCommand::new_static(command, node.clone(), false);
            let made = Instant::now();
            // Boxed: fred's future takes 6 KiB, and is a part of every future that calls a function, such
            // as that of a turn, which mostly waits for something else.
            let client = managed.client();
            let reply = Box::pin(client.custom::<R, Value>(call, arguments.to_vec())).await;
            record_redis_command(function, made.elapsed());
            self.count_error(&reply);
            let error = match reply {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if is_missing_function(&error) && attempt == 1 && self.is_checked() {
                // Boxed, because it happens once and would be a part of the future of every call.
                Box::pin(self.load_missing()).await?;
            } else if is_redirection(&error) && attempt < REDIRECTED_ATTEMPTS {
                let _ = backoff.pause().await;
            } else {
                return Err(managed.explain(error));
            }
        }
    }

    /// Classifies an error of a command. Without a connection, the connection error counts.
    pub(super) fn explain(&self, error: Error) -> RedisError {
        self.main.explain(error)
    }

    /// Returns the error of a call that Redis did not reply to in time.
    pub(super) fn timed_out(&self) -> RedisError {
        self.explain(Error::new(ErrorKind::Timeout, "no reply in time"))
    }

    /// Returns the client, for commands that are not calls of functions.
    pub(super) fn client(&self) -> Client {
        self.main.client()
    }

    /// Loads a library of functions on every primary, and replaces its earlier version.
    pub(super) async fn load_library(&self, code: &str) -> Result<(), RedisError> {
        let client = self.client();
        let loaded = if client.is_clustered() {
            client.function_load_cluster::<(), _>(true, code).await
        } else {
            client.function_load::<(), _>(true, code).await
        };
        loaded.map_err(|error| self.explain(error))
    }

    /// Counts an error of a command, and a disturbance where it is one.
    fn count_error<T>(&self, reply: &Result<T, Error>) {
        let Err(error) = reply else { return };
        let kind = match error.kind() {
            ErrorKind::Timeout => "timeout",
            _ if is_unavailable(error) => "unavailable",
            _ => "refused",
        };
        tracing::debug!(kind, error = error.details(), "redis command failed");
        if kind != "refused" {
            self.disturbances.note();
        }
        metrics::counter!(metric::REDIS_ERRORS_TOTAL, "kind" => kind).increment(1);
    }

    /// Reads again which node has which hash slot.
    pub(super) async fn refresh_cluster(client: &Client) {
        if client.is_clustered() {
            let _ = client.sync_cluster().await;
        }
    }
}

fn node_of(slot: Option<u16>) -> ClusterHash {
    slot.map_or(ClusterHash::Random, ClusterHash::Custom)
}
