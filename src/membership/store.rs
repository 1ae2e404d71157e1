//! Heartbeats in Redis.

use std::collections::HashMap;

use crate::redis::{Redis, RedisError};

/// One hash for all replicas: name → counter.
const HEARTBEATS: &str = "jarvis:{queue}:beats";
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
        self.redis.call("jarvis_beat_1", &[HEARTBEATS], vec![self.replica.as_str().into()]).await
    }

    /// Gives up everything that is held in this replica's name, at once.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn sign_off(&self) -> Result<(), RedisError> {
        let args = vec![self.replica.as_str().into()];
        self.redis.call("jarvis_sign_off_1", &[HEARTBEATS], args).await
    }

    /// Removes a replica whose heartbeat stopped at `counter`, unless it has moved since.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn remove_replica(&self, replica: &str, counter: i64) -> Result<(), RedisError> {
        let args = vec![replica.into(), counter.to_string().into()];
        self.redis.call("jarvis_bury_1", &[HEARTBEATS], args).await
    }
}
