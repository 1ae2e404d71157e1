//! Migrations: the check of the stored data, and the loading of the functions.
//!
//! The layout of the stored data has a number. A release runs on its own layout only, so that data
//! of another one is refused and never read as empty. A file of Lua that was released is never
//! edited: its checksum is recorded where it was applied, and another text is refused.
//! `migrations/README.md` describes how to change a function or the layout.

use std::collections::HashMap;
use std::time::Duration;

use fred::interfaces::{HashesInterface, KeysInterface};
use fred::types::{Expiration, SetOptions};

use super::connection::Redis;
use super::error::RedisError;
use super::functions::LIBRARIES;
use super::keys::{MIGRATIONS as RECORD, MIGRATIONS_LOCK as LOCK};
use super::layout::{LAYOUT, LAYOUT_FIELD, check, checksum, files};
use crate::retry::Backoff;

const LOCK_MILLISECONDS: i64 = 10_000;
/// Pauses of a replica that waits for another one to apply the migrations.
const LOCK_BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(200));

/// Checks the stored data, loads the functions, and records them, one replica at a time. A check
/// that passes counts even where the rest fails.
///
/// # Errors
/// [`RedisError::Migration`] where this release must not run; any other while Redis is unavailable.
pub async fn apply(redis: &Redis) -> Result<(), RedisError> {
    checked_record(redis).await?;
    redis.set_checked();
    let client = redis.client();
    let token = uuid::Uuid::new_v4().to_string();
    let lock = Some(Expiration::PX(LOCK_MILLISECONDS));
    let mut backoff = LOCK_BACKOFF;
    while client
        .set::<Option<String>, _, _>(LOCK, &token, lock.clone(), Some(SetOptions::NX), false)
        .await
        .map_err(|error| redis.explain(error))?
        .is_none()
    {
        let _ = backoff.pause().await;
    }
    let outcome = check_and_load(redis).await;
    // A lock that expired meanwhile may be another replica's. To apply the functions twice is
    // harmless, to release that lock is not.
    if client.get::<Option<String>, _>(LOCK).await.ok().flatten().as_ref() == Some(&token) {
        let _ = client.del::<(), _>(LOCK).await;
    }
    outcome
}

impl Redis {
    /// Loads the functions again where a server lacks one: the server restarted empty, or a release
    /// without that function loaded its own.
    ///
    /// # Errors
    /// The errors of [`apply`].
    pub(super) async fn load_missing(&self) -> Result<(), RedisError> {
        match checked_record(self).await {
            // The record may be on another server than the one that lacks the function.
            Ok(_) | Err(RedisError::Unavailable(_)) => load(self).await,
            Err(error) => Err(error),
        }
    }
}

async fn check_and_load(redis: &Redis) -> Result<(), RedisError> {
    let recorded = checked_record(redis).await?;
    let is_known = |path: &String| path == LAYOUT_FIELD || files().any(|file| file.path == path);
    // An unknown file means that a later release of this layout has loaded its libraries, which
    // have the functions of this release, too. A call of a missing function loads it.
    if recorded.keys().all(is_known) {
        load(redis).await?;
    }
    let mut missing: Vec<(String, String)> = files()
        .filter(|file| !recorded.contains_key(file.path))
        .map(|file| (file.path.to_owned(), checksum(file)))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    missing.push((LAYOUT_FIELD.to_owned(), LAYOUT.to_owned()));
    tracing::info!(files = missing.len() - 1, layout = LAYOUT, "functions applied");
    let record: HashMap<String, String> = missing.into_iter().collect();
    redis.client().hset::<(), _, _>(RECORD, record).await.map_err(|error| redis.explain(error))
}

/// Reads the record, and checks that this release may run beside it.
async fn checked_record(redis: &Redis) -> Result<HashMap<String, String>, RedisError> {
    let recorded = redis.client().hgetall(RECORD).await.map_err(|error| redis.explain(error))?;
    check(&recorded)?;
    Ok(recorded)
}

/// Loads every library on every primary, and replaces its earlier version.
async fn load(redis: &Redis) -> Result<(), RedisError> {
    for library in LIBRARIES {
        redis.load_library(library.code).await?;
    }
    Ok(())
}
