//! Limits of what one caller may do.

use clap::Args;

use super::values::trimmed;

/// The limits of users, API keys and addresses, of all replicas together; 0 stands for none.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitSettings {
    /// Requests a minute of one user; 0: any number
    #[arg(long, env = "JARVIS_USER_REQUESTS_PER_MINUTE", value_name = "N", default_value_t = 600)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(..=1_000_000)))]
    pub user_requests_per_minute: u32,

    /// Turns a minute of one user; 0: any number
    #[arg(long, env = "JARVIS_USER_TURNS_PER_MINUTE", value_name = "N", default_value_t = 60)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(..=1_000_000)))]
    pub user_turns_per_minute: u32,

    /// Tokens a day of one user, of prompts and answers together; 0: any number
    #[arg(long, env = "JARVIS_USER_TOKENS_PER_DAY", value_name = "N", default_value_t = 5_000_000)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(..=1_000_000_000)))]
    pub user_tokens_per_day: u32,

    /// WebSockets, event streams and streamed turns that one user has open at a time; 0: any number
    #[arg(long, env = "JARVIS_USER_SOCKETS", value_name = "N", default_value_t = 100)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(..=1000)))]
    pub user_sockets: u32,

    /// Requests a minute with one API key; 0: any number
    #[arg(long, env = "JARVIS_KEY_REQUESTS_PER_MINUTE", value_name = "N", default_value_t = 600)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(..=1_000_000)))]
    pub key_requests_per_minute: u32,

    /// Turns a minute with one API key; 0: any number
    #[arg(long, env = "JARVIS_KEY_TURNS_PER_MINUTE", value_name = "N", default_value_t = 60)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(..=1_000_000)))]
    pub key_turns_per_minute: u32,

    /// Requests a minute from one address; an IPv6 /56 may have twice as many, a /48 four times.
    /// Loopback addresses have no such limit; 0: any number
    #[arg(long, env = "JARVIS_ADDRESS_REQUESTS_PER_MINUTE", value_name = "N")]
    #[arg(default_value_t = 1200)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(..=1_000_000)))]
    pub address_requests_per_minute: u32,

    /// Turns a minute from one address; an IPv6 /56 may have twice as many, a /48 four times.
    /// Loopback addresses have no such limit; 0: any number
    #[arg(long, env = "JARVIS_ADDRESS_TURNS_PER_MINUTE", value_name = "N", default_value_t = 120)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(..=1_000_000)))]
    pub address_turns_per_minute: u32,

    /// Sessions a day that one address begins; an IPv6 /56 may have twice as many, a /48 four times.
    /// Loopback addresses have no such limit; 0: any number
    #[arg(long, env = "JARVIS_ADDRESS_SESSIONS_PER_DAY", value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(..=1_000_000)))]
    pub address_sessions_per_day: u32,
}
