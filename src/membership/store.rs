//! Heartbeats in Redis.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use fred::prelude::Value;

use super::figures::ReplicaFigures;
use crate::redis::{Call, Redis, RedisError, keys};

/// The counter of a replica that has signed off.
pub(super) const SIGNED_OFF: i64 = -1;

/// Every replica's heartbeat by its name.
pub type Heartbeats = HashMap<String, i64>;

/// The state of the other replicas that one heartbeat shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// The server that replied, by a number that is another one after each of its starts.
    pub server: i64,
    /// Whether this server counts the observer's own subscription to its channel.
    pub sees_observer: bool,
    /// The number of replicas that have a heartbeat.
    pub replicas: usize,
    /// The time from the call to its reply.
    pub took: Duration,
    /// The heartbeats of all replicas, where all were read.
    pub all: Option<Heartbeats>,
    /// The watched replicas by name.
    pub watched: Vec<(String, Watched)>,
}

/// One watched replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Its counter; none where it has no heartbeat.
    pub counter: Option<i64>,
    /// Whether it is subscribed to its channel; none where that is unknown.
    pub is_subscribed: Option<bool>,
}

/// The heartbeats in Redis, in the name of one replica. Cloning is cheap.
#[derive(Clone)]
pub struct MembershipStore {
    redis: Redis,
    replica: String,
    address: String,
}

impl MembershipStore {
    /// Creates a store that renews the heartbeat of `replica`.
    pub fn new(redis: Redis, replica: String) -> Self {
        Self { redis, replica, address: String::new() }
    }

    /// Publishes this address as that at which the replica listens.
    #[must_use]
    pub fn at(self, address: String) -> Self {
        Self { address, ..self }
    }

    /// Returns the address at which this replica listens, as it is published.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Returns this replica's name, which is random at each start.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Renews this replica's heartbeat, publishes its figures where they are due, and reads the heartbeats
    /// of the watched replicas or of all.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn heartbeat(
        &self,
        all: bool,
        watched: Vec<String>,
        figures: Option<&ReplicaFigures>,
    ) -> Result<Sighting, RedisError> {
        let call = Call::new("jarvis_heartbeat_1")
            .key("queue", keys::QUEUE.to_owned())
            .key("heartbeats", keys::heartbeats())
            .key("figures", keys::figures())
            .arg("replica", self.replica.as_str())
            .arg("figures", figures.map(ReplicaFigures::encode).unwrap_or_default())
            .flag("all", all)
            .rest("watched", watched.iter().map(|name| name.as_str().into()));
        let made = Instant::now();
        let reply: Value = self.redis.call(call).await?;
        let sighting = sighting(reply, all, watched)
            .ok_or_else(|| RedisError::Unexpected("heartbeat".to_owned()))?;
        Ok(Sighting { took: made.elapsed(), ..sighting })
    }

    /// Returns which of these replicas have a heartbeat, and have not signed off.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn living(&self, replicas: Vec<String>) -> Result<HashSet<String>, RedisError> {
        let replicas = replicas.into_iter().map(Value::from);
        let living: Vec<String> =
            self.redis.call_readonly(call("jarvis_living_1").rest("replicas", replicas)).await?;
        Ok(living.into_iter().collect())
    }

    /// Signs this replica off, so that the others take over its holdings at once.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn sign_off(&self) -> Result<(), RedisError> {
        let call = call("jarvis_sign_off_1").arg("replica", self.replica.as_str());
        self.redis.call(call).await
    }

    /// Removes a replica whose heartbeat stopped at `counter`, unless the heartbeat has moved since. Notes
    /// for a while the `reason`, a word, and that this replica took over so many `turns`.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn remove_replica(
        &self,
        replica: &str,
        counter: i64,
        reason: &str,
        turns: usize,
    ) -> Result<(), RedisError> {
        let call = call("jarvis_remove_replica_1")
            .key("figures", keys::figures())
            .key("gone", keys::gone())
            .arg("replica", replica)
            .text("counter", counter)
            .arg("reason", reason)
            .text("turns", turns);
        self.redis.call(call).await
    }
}

fn call(function: &'static str) -> Call {
    Call::new(function).key("heartbeats", keys::heartbeats())
}

fn sighting(reply: Value, all: bool, names: Vec<String>) -> Option<Sighting> {
    let [server, subscribers, replicas, counters, watched]: [Value; 5] =
        reply.into_array().try_into().ok()?;
    let watched = names.into_iter().zip(watched.into_array()).map(|(name, of)| {
        let [counter, subscribers]: [Value; 2] = of.into_array().try_into().ok()?;
        let is_subscribed = subscribers.as_i64().filter(|count| *count >= 0).map(|count| count > 0);
        Some((name, Watched { counter: counter.as_i64(), is_subscribed }))
    });
    Some(Sighting {
        server: server.as_i64()?,
        sees_observer: subscribers.as_i64()? > 0,
        replicas: usize::try_from(replicas.as_i64()?).ok()?,
        took: Duration::ZERO,
        all: if all { Some(counters.convert().ok()?) } else { None },
        watched: watched.collect::<Option<_>>()?,
    })
}
