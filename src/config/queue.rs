//! Bounds of the queue.

use std::time::Duration;

use clap::Args;

use super::values::{seconds, trimmed};

/// The bounds of the queue.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Queue")]
pub struct QueueSettings {
    /// Turns that may wait for a slot, of all replicas together
    #[arg(long, env = "JARVIS_QUEUE_LIMIT", value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..=1_000_000)))]
    pub queue_limit: u32,

    /// Waiting turns of one user, or of one address where no user is signed in, at most; an IPv6 /56
    /// may have twice as many, a /48 four times
    #[arg(long, env = "JARVIS_QUEUE_SHARE", value_name = "N", default_value_t = 100)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..=1_000_000)))]
    pub queue_share: u32,

    /// Running turns of one address where no user is signed in, at most; more wait. An IPv6 /56 may have
    /// twice as many, a /48 four times. Loopback addresses have no such limit
    #[arg(long, env = "JARVIS_ADDRESS_TURNS", value_name = "N", default_value_t = 64)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..=1_000_000)))]
    pub address_turns: u32,

    /// How long a turn without a user may wait while nobody listens to its session or retrieves its
    /// response, in seconds, where more than half of the queue is in use
    #[arg(long, env = "JARVIS_ABANDON_AFTER", value_name = "SECONDS", default_value = "300")]
    #[arg(value_parser = seconds(1..=3600))]
    pub abandon_after: Duration,
}
