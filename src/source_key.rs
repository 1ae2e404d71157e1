//! The key of the digests of addresses, the same on every replica.
//!
//! Limits by address hold over all replicas, so all of them need one key, and none of them should need
//! a setting for it: the first replica makes a random one and keeps it in Redis, beside the digests
//! that it makes. Logs and whatever else leaves Redis then reveal nothing of an address. Against somebody
//! who reads Redis only a key outside it helps, which `JARVIS_SOURCE_KEY` sets.

use std::time::Duration;

use tokio::time::sleep;

use crate::digest::hex;
use crate::redis::{Redis, RedisError, keys};
use crate::retry::Backoff;
use crate::source::{KEY_BYTES, SourceKey};

/// Time between two checks: a Redis that lost its data has no key, or another one.
const CHECK_EVERY: Duration = Duration::from_mins(1);

/// Keeps this key the one that Redis holds. Never returns.
pub(crate) async fn follow(redis: Redis, key: SourceKey) {
    let mut held = hex(&rand::random::<[u8; KEY_BYTES]>());
    let mut disturbances = redis.disturbances();
    loop {
        disturbances.mark_unchanged();
        let mut backoff = Backoff::redis();
        while let Err(error) = agree(&redis, &key, &mut held).await {
            tracing::debug!(%error, "key of addresses not read; trying again");
            let _ = backoff.pause().await;
        }
        tokio::select! {
            () = sleep(CHECK_EVERY) => {}
            changed = disturbances.changed() => {
                if changed.is_err() {
                    sleep(CHECK_EVERY).await;
                }
            }
        }
    }
}

/// Stores the key that is held where Redis has none, and takes the one that Redis has.
async fn agree(redis: &Redis, key: &SourceKey, held: &mut String) -> Result<(), RedisError> {
    let stored = redis.get_or_set(keys::SOURCE_KEY, held).await?;
    if stored != *held || !key.is_agreed() {
        key.agree(stored.as_bytes());
        *held = stored;
    }
    Ok(())
}
