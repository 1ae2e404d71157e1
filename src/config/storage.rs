//! Bounds of what is stored.

use std::time::Duration;

use clap::Args;

use super::values::{lifetime, trimmed};

/// The storage budgets.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Storage")]
pub struct StorageSettings {
    /// Stored sessions of one user, or of one address where no user is signed in, at most; an IPv6 /56
    /// may have twice as many, a /48 four times. Loopback addresses have no such limit
    #[arg(long, env = "JARVIS_CALLER_SESSIONS", value_name = "N", default_value_t = 10_000)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..=10_000_000)))]
    pub caller_sessions: u32,

    /// Stored sessions of one user or address, in MiB; an IPv6 /56 may have twice as many, a /48 four
    /// times. Loopback addresses have no such limit
    #[arg(long, env = "JARVIS_CALLER_MIB", value_name = "MIB", default_value_t = 256)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..=1_000_000)))]
    pub caller_mib: u32,

    /// Stored sessions of all callers that are not signed in, in MiB, and at most half of the `maxmemory`
    /// of Redis, in a cluster of its smallest primary. At 75 % of this limit idle sessions are removed; at
    /// 82.5 % the networks that store most begin no turn, and at 90 % no caller without a user does
    #[arg(long, env = "JARVIS_ANONYMOUS_MIB", value_name = "MIB", default_value_t = 1024)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..=10_000_000)))]
    pub anonymous_mib: u32,

    /// How long a session of a signed-in user is kept after its last turn, as in 90d; empty:
    /// forever. A session gets another value with its next turn; one that was claimed or imported has
    /// none until then
    #[arg(long, env = "JARVIS_SESSION_TTL", value_name = "TIME", value_parser = lifetime)]
    pub session_ttl: Option<Duration>,

    /// How long a session is kept whose caller is not signed in, after its last turn
    #[arg(long, env = "JARVIS_ANONYMOUS_TTL", value_name = "TIME", default_value = "30d")]
    #[arg(value_parser = lifetime)]
    pub anonymous_ttl: Duration,
}
