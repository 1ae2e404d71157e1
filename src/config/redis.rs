//! Settings of the connection to Redis.

use std::time::Duration;

use clap::Args;

use super::url::{passwords, redis_url};
use super::values::{milliseconds, trimmed};

/// The settings of the connection to Redis.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Redis")]
pub struct RedisSettings {
    /// Redis: redis://, rediss://, redis-cluster://, redis-sentinel:// or redis+unix://
    #[arg(long, env = "JARVIS_REDIS_URL", hide_env_values = true, value_name = "URL", value_parser = redis_url)]
    #[arg(default_value = "redis://127.0.0.1:6379")]
    pub redis_url: String,

    /// Time limit of one Redis command, in milliseconds
    #[arg(long, env = "JARVIS_REDIS_TIMEOUT_MS", value_name = "MS", default_value = "1500")]
    #[arg(value_parser = milliseconds(50..=60_000))]
    pub redis_timeout_ms: Duration,

    /// Redis replicas that must have an accepted message and a finished answer before it is
    /// acknowledged; 1 for a cluster and behind sentinels, else 0
    #[arg(long, env = "JARVIS_REDIS_ACKNOWLEDGEMENTS", value_name = "N")]
    #[arg(value_parser = trimmed(clap::value_parser!(u8).range(0..=5)))]
    pub redis_acknowledgements: Option<u8>,
}

impl RedisSettings {
    /// Returns how many Redis replicas must acknowledge a write, which depends on the kind of
    /// deployment where it is not set.
    pub fn acknowledgements(&self) -> u8 {
        self.redis_acknowledgements.unwrap_or_else(|| {
            let replicated = ["-cluster://", "-sentinel://"];
            u8::from(replicated.iter().any(|kind| self.redis_url.contains(kind)))
        })
    }

    /// Returns the passwords in the URL.
    pub(super) fn passwords(&self) -> Vec<String> {
        passwords(&self.redis_url)
    }
}
