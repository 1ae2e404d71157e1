//! Numbered libraries of Redis Functions, embedded in the binary.
//!
//! A function's own name carries its version, so that replicas of two releases call theirs side by
//! side. A migration that was released is never edited: its checksum is recorded where it was
//! applied, and another text under the same number is refused.

use std::collections::HashMap;
use std::time::Duration;

use fred::interfaces::{HashesInterface, KeysInterface};
use fred::types::{Expiration, SetOptions};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::connection::Redis;
use super::error::RedisError;

/// One library.
#[derive(Debug)]
pub struct Migration {
    /// Its place in the order.
    pub number: u32,
    /// Its file's name.
    pub name: &'static str,
    /// Lua.
    pub code: &'static str,
}

macro_rules! migration {
    ($number:literal, $digits:literal, $name:literal) => {
        Migration {
            number: $number,
            name: $name,
            code: concat!(
                "#!lua name=jarvis_",
                $digits,
                "\n",
                include_str!("../../migrations/register.lua"),
                include_str!(concat!("../../migrations/", $name)),
            ),
        }
    };
}

/// All of them, oldest first.
pub const MIGRATIONS: &[Migration] = &[
    migration!(1, "0001", "0001_session.lua"),
    migration!(2, "0002", "0002_takeover.lua"),
    migration!(3, "0003", "0003_queue.lua"),
    migration!(4, "0004", "0004_probe.lua"),
];

const RECORD: &str = "jarvis:{migrations}:applied";
const LOCK: &str = "jarvis:{migrations}:lock";
const LOCK_MILLISECONDS: i64 = 10_000;
const OLDEST: &str = "Oldest supported binary: ";

/// Why this binary must not run on this Redis.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// A released file was edited.
    #[error(
        "the migration {name} of this release differs from the one that was applied to Redis; start a release with the applied one"
    )]
    Edited {
        /// The file's name.
        name: String,
    },
    /// A later release has moved on.
    #[error(
        "the migration {name} in Redis needs at least version {oldest}, and this is {current}; start a newer release"
    )]
    TooOld {
        /// The file's name.
        name: String,
        /// The oldest version that may run.
        oldest: String,
        /// This version.
        current: &'static str,
    },
}

#[derive(Serialize, Deserialize)]
struct Applied {
    name: String,
    sha256: String,
    oldest: String,
}

impl Migration {
    fn record(&self) -> Applied {
        let oldest = self
            .code
            .lines()
            .find_map(|line| line.split_once(OLDEST))
            .map_or_else(|| "0.0.0".to_owned(), |(_, version)| version.trim().to_owned());
        let digest = Sha256::digest(self.code.as_bytes());
        let sha256 = digest.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        Applied { name: self.name.to_owned(), sha256, oldest }
    }
}

/// Checks what was applied, applies what is missing, and records it, alone. What is checked without
/// an objection counts as such even where the rest fails.
///
/// # Errors
/// [`RedisError::Migration`] where this binary must not run; any other while Redis is away.
pub async fn apply(redis: &Redis) -> Result<(), RedisError> {
    recorded(redis).await?;
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
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let outcome = check_and_record(redis).await;
    // A lock that expired meanwhile may be another's: applying twice is harmless, releasing is not.
    if client.get::<Option<String>, _>(LOCK).await.ok().flatten().as_ref() == Some(&token) {
        let _ = client.del::<(), _>(LOCK).await;
    }
    outcome
}

/// What is recorded as applied, each of which this release may run beside.
async fn recorded(redis: &Redis) -> Result<HashMap<String, String>, RedisError> {
    let recorded: HashMap<String, String> =
        redis.client().hgetall(RECORD).await.map_err(|error| redis.explain(error))?;
    for (number, json) in &recorded {
        let applied: Applied =
            serde_json::from_str(json).map_err(|e| RedisError::Unexpected(e.to_string()))?;
        check(number, &applied)?;
    }
    Ok(recorded)
}

async fn check_and_record(redis: &Redis) -> Result<(), RedisError> {
    let client = redis.client();
    let recorded = recorded(redis).await?;
    load(redis).await?;
    for migration in MIGRATIONS {
        let json = serde_json::to_string(&migration.record())
            .map_err(|e| RedisError::Unexpected(e.to_string()))?;
        if !recorded.contains_key(&migration.number.to_string()) {
            client
                .hset::<(), _, _>(RECORD, (migration.number.to_string(), json))
                .await
                .map_err(|error| redis.explain(error))?;
            tracing::info!(migration = migration.name, "applied");
        }
    }
    Ok(())
}

fn check(number: &str, applied: &Applied) -> Result<(), MigrationError> {
    let ours = MIGRATIONS.iter().find(|migration| migration.number.to_string() == number);
    match ours {
        Some(migration) if migration.record().sha256 != applied.sha256 => {
            Err(MigrationError::Edited { name: applied.name.clone() })
        }
        None if version(env!("CARGO_PKG_VERSION")) < version(&applied.oldest) => {
            Err(MigrationError::TooOld {
                name: applied.name.clone(),
                oldest: applied.oldest.clone(),
                current: env!("CARGO_PKG_VERSION"),
            })
        }
        _ => Ok(()),
    }
}

fn version(text: &str) -> Vec<u64> {
    text.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// Loads every library on every primary; harmless where it is there already.
///
/// # Errors
/// Any [`RedisError`].
pub async fn load(redis: &Redis) -> Result<(), RedisError> {
    for migration in MIGRATIONS {
        redis.load_library(migration.code).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(sha256: &str, oldest: &str) -> Applied {
        Applied { name: "x.lua".into(), sha256: sha256.into(), oldest: oldest.into() }
    }

    #[test]
    fn an_edited_migration_is_refused() {
        let refused = check("1", &applied("other", "0.1.0"));
        assert!(matches!(refused, Err(MigrationError::Edited { .. })));
        let same = MIGRATIONS[0].record();
        assert!(check("1", &same).is_ok());
    }

    #[test]
    fn a_later_migration_refuses_only_binaries_that_are_too_old_for_it() {
        assert!(check("999", &applied("x", "0.0.9")).is_ok());
        let refused = check("999", &applied("x", "99.0.0"));
        assert!(matches!(refused, Err(MigrationError::TooOld { .. })));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version("0.10.0") > version("0.9.9"));
    }
}
