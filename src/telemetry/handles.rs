//! Handles of the metrics that are recorded often: an append or a call of Redis must not look a
//! metric up by its name.

use std::collections::HashMap;
use std::sync::{LazyLock, PoisonError, RwLock};
use std::time::Duration;

use metrics::{Counter, Histogram};

use super::metric;

/// The metrics of the appends of all writers.
pub struct AppendMetrics {
    seconds: Histogram,
    bytes: Histogram,
    hint_lag: Histogram,
}

/// The metrics of the appends of all writers.
pub static APPENDS: LazyLock<AppendMetrics> = LazyLock::new(|| AppendMetrics {
    seconds: metrics::histogram!(metric::APPEND_SECONDS),
    bytes: metrics::histogram!(metric::APPEND_BYTES),
    hint_lag: metrics::histogram!(metric::HINT_LAG_SECONDS),
});

impl AppendMetrics {
    /// Records an append of so many bytes that Redis has acknowledged.
    pub fn acknowledged(&self, bytes: usize, took: Duration) {
        self.seconds.record(took);
        self.bytes.record(bytes as f64);
    }

    /// Records the time from an append to its delivery to the readers on this replica.
    pub fn delivered(&self, took: Duration) {
        self.hint_lag.record(took);
    }
}

/// The metrics of commands of Redis.
struct RedisMetrics {
    seconds: Histogram,
    /// By the name of the command or the function, of which there are as many as the code has.
    commands: RwLock<HashMap<&'static str, Counter>>,
}

static REDIS: LazyLock<RedisMetrics> = LazyLock::new(|| RedisMetrics {
    seconds: metrics::histogram!(metric::REDIS_COMMAND_SECONDS),
    commands: RwLock::default(),
});

/// Records one command of Redis, or one call of a function, whatever came of it.
pub fn record_redis_command(command: &'static str, took: Duration) {
    REDIS.seconds.record(took);
    {
        let commands = REDIS.commands.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = commands.get(command) {
            return counter.increment(1);
        }
    }
    let counter = metrics::counter!(metric::REDIS_COMMANDS_TOTAL, "command" => command);
    counter.increment(1);
    REDIS.commands.write().unwrap_or_else(PoisonError::into_inner).insert(command, counter);
}
