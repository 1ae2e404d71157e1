//! Heartbeats in Redis.

use std::collections::HashMap;

use crate::redis::{Call, Redis, RedisError};

/// A hash: replica → the counter that it renews, -1 once it has signed off. It lies in the slot of
/// the queue, because what a replica holds there is freed only while its heartbeat stands still.
pub const HEARTBEATS: &str = "jarvis:{queue}:heartbeats";
/// The counter of a replica that has given everything up.
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
    /// Heartbeats in the name of `replica`.
    pub fn new(redis: Redis, replica: String) -> Self {
        Self { redis, replica }
    }

    /// This replica's name, random at each start.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Renews this replica's heartbeat, and gives everybody's.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn heartbeat(&self) -> Result<Heartbeats, RedisError> {
        let call = call("jarvis_heartbeat_1").arg("replica", self.replica.as_str());
        self.redis.call(call).await
    }

    /// Gives up everything that is held in this replica's name, at once.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn sign_off(&self) -> Result<(), RedisError> {
        let call = call("jarvis_sign_off_1").arg("replica", self.replica.as_str());
        self.redis.call(call).await
    }

    /// Removes a replica whose heartbeat stopped at `counter`, unless it has moved since.
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
