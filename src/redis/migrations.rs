//! What Redis holds, and whether this release may run on it.
//!
//! The layout of the stored data has a number. A release runs on its own layout only, so that data
//! of another one is refused and never read as empty. A file of Lua that was released is never
//! edited: its checksum is recorded where it was applied, and another text is refused.
//! `migrations/README.md` tells how a function or the layout is changed.

use std::collections::HashMap;
use std::time::Duration;

use fred::interfaces::{HashesInterface, KeysInterface};
use fred::types::{Expiration, SetOptions};
use sha2::{Digest, Sha256};

use super::connection::Redis;
use super::error::RedisError;
use super::functions::{LIBRARIES, SourceFile};

/// The layout of the data that this release reads and writes.
pub const LAYOUT: &str = "2";
/// The layout of a record that names none.
const FIRST_LAYOUT: &str = "1";
/// A hash: the layout, and the checksum of each file of Lua that was applied, by its path.
const RECORD: &str = "jarvis:{migrations}:applied";
const LAYOUT_FIELD: &str = "layout";
const LOCK: &str = "jarvis:{migrations}:lock";
const LOCK_MILLISECONDS: i64 = 10_000;
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// Why this release must not run on this Redis.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// A released file was edited.
    #[error(
        "The function file {path} differs from the one that was applied to this Redis. Restore it \
         and put the change into a new version beside it (migrations/README.md); in development, \
         empty this Redis (make purge, for that of make run)."
    )]
    Edited {
        /// The file's path.
        path: String,
    },
    /// The data is of an earlier layout.
    #[error(
        "This Redis holds data of layout {found}, and jarvis {} reads layout {LAYOUT}. Layout \
         {found} was never released and is not converted: empty this Redis (make purge, for that \
         of make run), or set JARVIS_REDIS_URL to another one.",
        env!("CARGO_PKG_VERSION")
    )]
    Earlier {
        /// The layout of the data.
        found: String,
    },
    /// The data is of the layout of a later release.
    #[error(
        "This Redis holds data of layout {found}, and jarvis {} reads layout {LAYOUT}. Start a \
         later release, or set JARVIS_REDIS_URL to another Redis.",
        env!("CARGO_PKG_VERSION")
    )]
    Later {
        /// The layout of the data.
        found: String,
    },
}

/// Checks what Redis holds, loads the functions, and records them, one replica at a time. What is
/// checked without an objection counts as such even where the rest fails.
///
/// # Errors
/// [`RedisError::Migration`] where this release must not run; any other while Redis is away.
pub async fn apply(redis: &Redis) -> Result<(), RedisError> {
    checked_record(redis).await?;
    redis.set_checked();
    let client = redis.client();
    let token = uuid::Uuid::new_v4().to_string();
    let lock = Some(Expiration::PX(LOCK_MILLISECONDS));
    while client
        .set::<Option<String>, _, _>(LOCK, &token, lock.clone(), Some(SetOptions::NX), false)
        .await
        .map_err(|error| redis.explain(error))?
        .is_none()
    {
        tokio::time::sleep(LOCK_RETRY).await;
    }
    let outcome = check_and_load(redis).await;
    // A lock that expired meanwhile may be another's: applying twice is harmless, releasing is not.
    if client.get::<Option<String>, _>(LOCK).await.ok().flatten().as_ref() == Some(&token) {
        let _ = client.del::<(), _>(LOCK).await;
    }
    outcome
}

/// Loads the functions anew where a server does not have one: it came back empty, or a release that
/// does not have that function loaded its own.
///
/// # Errors
/// As [`apply`].
pub async fn load_missing(redis: &Redis) -> Result<(), RedisError> {
    match checked_record(redis).await {
        // The record may lie on another server than the functions that are missing.
        Ok(_) | Err(RedisError::Unavailable(_)) => load(redis).await,
        Err(error) => Err(error),
    }
}

async fn check_and_load(redis: &Redis) -> Result<(), RedisError> {
    let recorded = checked_record(redis).await?;
    let is_ours = |path: &String| path == LAYOUT_FIELD || files().any(|file| file.path == path);
    // A later release of this layout has loaded its libraries, which hold the functions of this
    // release, too. Where they do not, a call finds out.
    if recorded.keys().all(is_ours) {
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

/// What is recorded, where this release may run beside it.
async fn checked_record(redis: &Redis) -> Result<HashMap<String, String>, RedisError> {
    let recorded = redis.client().hgetall(RECORD).await.map_err(|error| redis.explain(error))?;
    check(&recorded)?;
    Ok(recorded)
}

fn check(recorded: &HashMap<String, String>) -> Result<(), MigrationError> {
    if recorded.is_empty() {
        return Ok(());
    }
    let found = recorded.get(LAYOUT_FIELD).map_or(FIRST_LAYOUT, String::as_str).to_owned();
    let number = |layout: &str| layout.parse::<u64>().unwrap_or(u64::MAX);
    match number(&found).cmp(&number(LAYOUT)) {
        std::cmp::Ordering::Less => return Err(MigrationError::Earlier { found }),
        std::cmp::Ordering::Greater => return Err(MigrationError::Later { found }),
        std::cmp::Ordering::Equal => {}
    }
    let edited = files()
        .find(|file| recorded.get(file.path).is_some_and(|recorded| *recorded != checksum(file)));
    edited.map_or(Ok(()), |file| Err(MigrationError::Edited { path: file.path.to_owned() }))
}

fn files() -> impl Iterator<Item = &'static SourceFile> {
    LIBRARIES.iter().flat_map(|library| library.includes.iter().chain(library.commands))
}

fn checksum(file: &SourceFile) -> String {
    let digest = Sha256::digest(file.text.as_bytes());
    digest.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// Loads every library on every primary, in place of its earlier self.
async fn load(redis: &Redis) -> Result<(), RedisError> {
    for library in LIBRARIES {
        redis.load_library(library.code).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fields: &[(&str, &str)]) -> HashMap<String, String> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_edited_function_is_refused() {
        let file = files().next().expect("a file");
        let refused = check(&record(&[("layout", LAYOUT), (file.path, "other")]));
        assert!(matches!(refused, Err(MigrationError::Edited { path }) if path == file.path));
        let same = checksum(file);
        assert!(check(&record(&[("layout", LAYOUT), (file.path, &same)])).is_ok());
    }

    #[test]
    fn functions_of_a_later_release_are_no_reason_to_refuse_and_its_layout_is() {
        let beside = record(&[("layout", LAYOUT), ("session/append_2.lua", "x")]);
        assert!(check(&beside).is_ok());
        for layout in ["3", "10", "unreadable"] {
            let refused = check(&record(&[("layout", layout)]));
            assert!(matches!(refused, Err(MigrationError::Later { .. })), "{layout}");
        }
    }

    #[test]
    fn a_record_of_the_layout_before_is_refused_and_says_what_to_do() {
        let first = r#"{"name":"0001_session.lua","sha256":"x","oldest":"0.1.0"}"#;
        let refused = check(&record(&[("1", first)])).expect_err("another layout");
        assert!(refused.to_string().contains("make purge"), "{refused}");
    }
}
