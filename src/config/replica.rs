//! When a replica counts as ready, as gone, and as drained.

use std::time::Duration;

use clap::Args;

use super::values::{milliseconds, seconds};

/// The time limits of a replica's life.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Replica")]
pub struct ReplicaSettings {
    /// How long Redis may be unusable before a ready replica becomes unready, in seconds
    #[arg(long, env = "JARVIS_REDIS_PATIENCE", value_name = "SECONDS", default_value = "30")]
    #[arg(value_parser = seconds(1..=3600))]
    pub redis_patience: Duration,

    /// Replica lease: how long a replica may miss heartbeats before others take its turns over, in
    /// milliseconds
    #[arg(long, env = "JARVIS_LEASE_MS", value_name = "MS", default_value = "3000")]
    #[arg(value_parser = milliseconds(300..=60_000))]
    pub lease_ms: Duration,

    /// How long running turns may continue after SIGTERM, in seconds
    #[arg(long, env = "JARVIS_DRAIN_TIMEOUT", value_name = "SECONDS", default_value = "20")]
    #[arg(value_parser = seconds(0..=3600))]
    pub drain_timeout: Duration,
}
