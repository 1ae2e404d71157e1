//! Heartbeats in Redis.

use std::collections::HashMap;

use crate::redis::{Call, Redis, RedisError};

/// A hash: replica → the counter that it renews, -1 once it has signed off. The hash lies in the
/// cluster slot of the queue, because a replica's tickets are freed only while its heartbeat stands
/// still.
pub const HEARTBEATS: &str = "jarvis:{queue}:heartbeats";
/// The counter of a replica that has signed off.
pub(super) const SIGNED_OFF: i64 = -1;

/// Every replica's heartbeat by its name.
pub type Heartbeats = HashMap<String, i64>;

/// The heartbeats in Redis, in the name of one replica. Cloning is cheap.
#[derive(Clone)]
pub struct MembershipStore {
    redis: Redis,
    replica: String,
}

impl MembershipStore {
    /// Creates a store that renews the heartbeat of `replica`.
    pub fn new(redis: Redis, replica: String) -> Self {
        Self { redis, replica }
    }

    /// Returns this replica's name, which is random at each start.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Renews this replica's heartbeat, and returns the heartbeats of all replicas.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn heartbeat(&self) -> Result<Heartbeats, RedisError> {
        let call = call("jarvis_heartbeat_1").arg("replica", self.replica.as_str());
        self.redis.call(call).await
    }

    /// Signs this replica off, so that the others take over its holdings at once.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn sign_off(&self) -> Result<(), RedisError> {
        let call = call("jarvis_sign_off_1").arg("replica", self.replica.as_str());
        self.redis.call(call).await
    }

    /// Removes a replica whose heartbeat stopped at `counter`, unless the heartbeat has moved
    /// since.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn remove_replica(&self, replica: &str, counter: i64) -> Result<(), RedisError> {
        let call = call("jarvis_remove_replica_1").arg("replica", replica);
        self.redis.call(call.text("counter", counter)).await
    }
}

fn call(function: &'static str) -> Call {
    Call::new(function).key("heartbeats", HEARTBEATS.to_owned())
}
