//! Heartbeats of the replicas.

use std::collections::HashMap;

use super::{Store, StoreError};
use crate::redis::Call;

/// A hash: replica → the counter that it renews, -1 once it has signed off. It lies in the slot of
/// the queue, as what a replica holds there is freed only while its heartbeat stands still.
pub const HEARTBEATS: &str = "jarvis:{queue}:heartbeats";

impl Store {
    /// Renews this replica's heartbeat and gives everybody's.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn heartbeat(&self) -> Result<HashMap<String, i64>, StoreError> {
        let call = call("jarvis_heartbeat_1").arg("replica", self.replica.as_str());
        Ok(self.redis.call(call).await?)
    }

    /// Gives up whatever is held in this replica's name, at once.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn sign_off(&self) -> Result<(), StoreError> {
        let call = call("jarvis_sign_off_1").arg("replica", self.replica.as_str());
        Ok(self.redis.call(call).await?)
    }

    /// Forgets a replica whose heartbeat stopped at `counter`, unless it has moved since.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn remove_replica(&self, replica: &str, counter: i64) -> Result<(), StoreError> {
        let call = call("jarvis_remove_replica_1").arg("replica", replica);
        Ok(self.redis.call(call.text("counter", counter)).await?)
    }
}

fn call(function: &'static str) -> Call {
    Call::new(function).key("heartbeats", HEARTBEATS.to_owned())
}
