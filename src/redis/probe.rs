//! Probes whether a turn could be taken with Redis in its present condition.
//!
//! One task probes Redis once a second, and every health reply reads its last result: so probes
//! from outside cost Redis nothing, and they all agree. A probe calls a function that Redis refuses
//! wherever it would refuse a new turn.

use std::borrow::Cow;
use std::time::Duration;

use fred::prelude::ClusterInterface;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::connection::Redis;
use super::error::RedisError;
use super::functions::Call;
use super::migrations;
use crate::retry::Backoff;

/// Time between two probes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time between two probes while something is wrong.
const INTERVAL_IN_TROUBLE: Duration = Duration::from_millis(250);
/// Time limit of a probe.
const LIMIT: Duration = Duration::from_secs(1);
/// Buckets of sessions; the keys of each bucket lie in one cluster slot.
const BUCKETS: u16 = 256;
/// A key in the cluster slot of the queue.
const QUEUE: &str = "jarvis:{queue}:probe";
/// The commands that need a permission for channels.
const CHANNELS: [&str; 2] = ["SPUBLISH", "SSUBSCRIBE"];

/// The condition of Redis at the last probe.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// A short reason why no turn can be taken; none where a turn can, and before the first probe.
    trouble: Option<Cow<'static, str>>,
    /// Whether full memory is the only reason.
    full: bool,
    /// When a turn could be taken last, apart from full memory.
    usable_at: Option<Instant>,
}

impl Condition {
    /// Returns a short reason why no turn can be taken; none where a turn can.
    pub fn trouble(&self) -> Option<&str> {
        match (&self.trouble, self.usable_at) {
            (None, None) => Some("not reached yet"),
            (trouble, _) => trouble.as_deref(),
        }
    }

    /// Returns whether full memory is the only reason why no turn can be taken.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Returns whether Redis was usable within the last `patience`.
    pub fn is_usable_within(&self, patience: Duration) -> bool {
        self.usable_at.is_some_and(|at| at.elapsed() <= patience)
    }

    /// Returns the condition after one more probe.
    fn after(&self, probed: &Probed) -> Self {
        let now = Instant::now();
        match probed {
            Probed::Usable => Self { trouble: None, full: false, usable_at: Some(now) },
            Probed::Full => Self::full(Some(now)),
            // The functions are missing and do not fit into the memory. A replica that was ready
            // stays ready in that case, too.
            Probed::Refused(RedisError::OutOfMemory) => Self::full(self.usable_at.map(|_| now)),
            Probed::Refused(error) => {
                let trouble = Some(error.summary());
                Self { trouble, full: false, usable_at: self.usable_at }
            }
        }
    }

    fn full(usable_at: Option<Instant>) -> Self {
        Self { trouble: Some(RedisError::OutOfMemory.summary()), full: true, usable_at }
    }
}

/// The result of one probe.
enum Probed {
    /// A turn could be taken.
    Usable,
    /// A turn could be taken if there were memory for it.
    Full,
    /// No turn could be taken.
    Refused(RedisError),
}

/// Keeps the condition of Redis up to date.
pub struct Conditions {
    redis: Redis,
    condition: watch::Sender<Condition>,
}

impl Conditions {
    /// Creates the conditions of a Redis, which are unknown until [`Conditions::follow`] runs.
    pub fn of(redis: &Redis) -> Self {
        Self { redis: redis.clone(), condition: watch::Sender::default() }
    }

    /// Returns a receiver of the condition.
    pub fn subscribe(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    /// Applies the migrations as soon as Redis can take them, and probes Redis without end.
    ///
    /// # Errors
    /// [`RedisError::Migration`]: this release must not run on what Redis holds.
    pub async fn follow(self) -> Result<(), RedisError> {
        tokio::select! {
            refused = self.migrate() => refused,
            () = self.probe() => Ok(()),
        }
    }

    /// Applies the migrations. Returns only where this release must not run.
    async fn migrate(&self) -> Result<(), RedisError> {
        let (mut last, mut backoff) = (Cow::Borrowed(""), Backoff::redis());
        loop {
            match migrations::apply(&self.redis).await {
                Ok(()) => break,
                Err(error @ RedisError::Migration(_)) => return Err(error),
                Err(error) => {
                    if !self.redis.is_checked() {
                        self.learn(&Probed::Refused(error));
                    } else if error.summary() != last {
                        last = error.summary();
                        tracing::warn!(%error, "functions not loaded into redis; trying again");
                    }
                    let _ = backoff.pause().await;
                }
            }
        }
        std::future::pending().await
    }

    async fn probe(&self) {
        loop {
            if self.redis.is_checked() {
                let probed = timeout(LIMIT, probe(&self.redis)).await;
                self.learn(&probed.unwrap_or_else(|_| Probed::Refused(self.redis.timed_out())));
            }
            let is_usable = self.condition.borrow().trouble().is_none();
            sleep(if is_usable { INTERVAL } else { INTERVAL_IN_TROUBLE }).await;
        }
    }

    fn learn(&self, probed: &Probed) {
        let next = self.condition.borrow().after(probed);
        let known = self.condition.send_replace(next.clone());
        match (known.trouble(), next.trouble(), probed) {
            (Some(_), None, _) => tracing::info!("redis is ready"),
            (before, after, Probed::Refused(error)) if before != after => {
                tracing::error!(%error, "redis takes no turns");
            }
            (before, after, Probed::Full) if before != after => {
                tracing::error!(error = %RedisError::OutOfMemory, "redis is full");
            }
            _ => {}
        }
    }
}

/// Probes every primary at once. The worst result counts.
async fn probe(redis: &Redis) -> Probed {
    let keys = keys(redis);
    let mut worst = Probed::Usable;
    for probed in join_all(keys.iter().map(|key| probe_one(redis, key))).await {
        match (&worst, &probed) {
            (_, Probed::Usable) | (Probed::Full, Probed::Full) | (Probed::Refused(_), _) => {}
            _ => worst = probed,
        }
    }
    worst
}

async fn probe_one(redis: &Redis, key: &str) -> Probed {
    let denied: Result<Vec<String>, _> =
        redis.call(Call::new("jarvis_probe_1").key("any", key.to_owned())).await;
    match denied {
        Ok(denied) if denied.is_empty() => Probed::Usable,
        Ok(denied) => {
            let missing = if denied.iter().all(|command| CHANNELS.contains(&command.as_str())) {
                "channels".to_owned()
            } else {
                denied.join(", ")
            };
            let details = format!("{} on {key}", denied.join(", "));
            Probed::Refused(RedisError::Permission { missing, details })
        }
        // Redis is either too full to run the function, or too full to load it. A function that
        // only reads shows which.
        Err(RedisError::OutOfMemory) => {
            let open = Call::new("jarvis_open_turns_1").key("open", key.to_owned());
            match redis.call_readonly::<Vec<String>>(open).await {
                Ok(_) => Probed::Full,
                Err(error) => Probed::Refused(error),
            }
        }
        Err(error) => Probed::Refused(error),
    }
}

/// Returns a key on each primary, and the key in the cluster slot of the queue.
fn keys(redis: &Redis) -> Vec<String> {
    let mut keys = vec![QUEUE.to_owned()];
    let bucket = |bucket: u16| format!("jarvis:{{b{bucket}}}:probe");
    let Some(cluster) = redis.client().cached_cluster_state() else {
        keys.push(bucket(0));
        return keys;
    };
    let mut seen = Vec::new();
    for key in (0..BUCKETS).map(bucket) {
        let node = cluster.get_server(fred::util::redis_keyslot(key.as_bytes()));
        if let Some(node) = node.filter(|node| !seen.contains(node)) {
            seen.push(node);
            keys.push(key);
        }
    }
    keys
}
