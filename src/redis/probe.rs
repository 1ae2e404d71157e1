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
use tokio::time::{sleep, timeout};

use super::condition::{Condition, Probed};
use super::connection::Redis;
use super::error::RedisError;
use super::functions::Call;
use super::{keys, memory, migrations};
use crate::retry::Backoff;
use crate::telemetry::metric;

/// Time between two probes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time between two probes while something is wrong.
const INTERVAL_IN_TROUBLE: Duration = Duration::from_millis(250);
/// Probes from one reading of the memory of Redis to the next.
const PROBES_A_MEMORY: u32 = 5;
/// Time limit of a probe.
const LIMIT: Duration = Duration::from_secs(1);
/// The rest of the keys with which probes are made.
const PROBE: &str = "probe";
/// The commands that need a permission for channels.
const CHANNELS: [&str; 2] = ["SPUBLISH", "SSUBSCRIBE"];

/// Keeps the condition of Redis up to date.
pub struct Conditions {
    redis: Redis,
}

impl Conditions {
    /// Creates the conditions of a Redis, which are unknown until [`Conditions::follow`] runs.
    pub fn of(redis: &Redis) -> Self {
        Self { redis: redis.clone() }
    }

    /// Returns a receiver of the condition.
    pub fn subscribe(&self) -> watch::Receiver<Condition> {
        self.redis.condition().subscribe()
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
        let mut rounds = 0_u32;
        loop {
            if self.redis.is_checked() {
                let probed = timeout(LIMIT, probe(&self.redis)).await;
                self.learn(&probed.unwrap_or_else(|_| Probed::Refused(self.redis.timed_out())));
                if rounds.is_multiple_of(PROBES_A_MEMORY) {
                    memory::record(&self.redis).await;
                }
                rounds = rounds.wrapping_add(1);
            }
            let is_usable = self.redis.condition().borrow().trouble().is_none();
            metrics::gauge!(metric::REDIS_USABLE).set(f64::from(u8::from(is_usable)));
            sleep(if is_usable { INTERVAL } else { INTERVAL_IN_TROUBLE }).await;
        }
    }

    fn learn(&self, probed: &Probed) {
        let next = self.redis.condition().borrow().after(probed);
        let known = self.redis.condition().send_replace(next.clone());
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
    let probed_keys = probed_keys(redis);
    let mut worst = Probed::Usable;
    for probed in join_all(probed_keys.iter().map(|key| probe_one(redis, key))).await {
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
            let open =
                Call::new("jarvis_open_turns_1").key("open", key.to_owned()).arg("from", "0");
            match redis.call_readonly::<Vec<String>>(open).await {
                Ok(_) => Probed::Full,
                Err(error) => Probed::Refused(error),
            }
        }
        Err(error) => Probed::Refused(error),
    }
}

/// Returns a key on each primary, and the key in the hash slot of the queue.
fn probed_keys(redis: &Redis) -> Vec<String> {
    let mut probed = vec![keys::in_queue(PROBE)];
    let bucket = |bucket: u16| keys::in_bucket(bucket, PROBE);
    let Some(cluster) = redis.client().cached_cluster_state() else {
        probed.push(bucket(0));
        return probed;
    };
    let mut seen = Vec::new();
    for key in (0..keys::BUCKETS).map(bucket) {
        let node = cluster.get_server(keys::hash_slot(&key));
        if let Some(node) = node.filter(|node| !seen.contains(node)) {
            seen.push(node);
            probed.push(key);
        }
    }
    probed
}
