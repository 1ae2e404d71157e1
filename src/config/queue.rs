//! Bounds of the queue.

use clap::Args;

use super::values::trimmed;

/// The bounds of the queue.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Queue")]
pub struct QueueSettings {
    /// Turns that may wait for a slot, of all replicas together
    #[arg(long, env = "JARVIS_QUEUE_LIMIT", value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..=1_000_000)))]
    pub queue_limit: u32,

    /// Waiting turns of one user, or of one address where no user is signed in, at most
    #[arg(long, env = "JARVIS_QUEUE_SHARE", value_name = "N", default_value_t = 100)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..=1_000_000)))]
    pub queue_share: u32,
}
