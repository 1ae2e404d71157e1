//! Settings of the HTTP server: its address, its limits, and the callers that it accepts.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::origins::{self, listed_host, listed_origin};
use super::values::{entries, listen_address, or_blank, seconds, trimmed};

/// The settings of the HTTP server.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpSettings {
    /// Address and port to listen on
    #[arg(long, env = "JARVIS_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:10200")]
    #[arg(value_parser = listen_address)]
    pub listen: SocketAddr,

    /// Proxies in front that add to X-Forwarded-For; 0: a client's address is the connection's
    #[arg(long, env = "JARVIS_PROXIES", value_name = "N", default_value_t = 0)]
    #[arg(value_parser = trimmed(clap::value_parser!(u8).range(0..=16)))]
    pub proxies: u8,

    /// Web origins beside the server's own that may call it, separated by commas; *: any
    #[arg(long, env = "JARVIS_ALLOWED_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    #[arg(value_parser = or_blank(listed_origin))]
    pub allowed_origins: Vec<String>,

    /// Names that the Host header may have, separated by commas; empty or *: any
    #[arg(long, env = "JARVIS_ALLOWED_HOSTS", value_name = "HOSTS", value_delimiter = ',')]
    #[arg(value_parser = or_blank(listed_host))]
    pub allowed_hosts: Vec<String>,

    /// WebSockets and event streams at a time, at most
    #[arg(long, env = "JARVIS_MAX_SOCKETS", value_name = "N", default_value_t = 19_000)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..)))]
    pub max_sockets: u32,

    /// Interval of WebSocket pings, and of comments in an event stream, in seconds
    #[arg(long, env = "JARVIS_HEARTBEAT", value_name = "SECONDS", default_value = "20")]
    #[arg(value_parser = seconds(1..=600))]
    pub heartbeat: Duration,

    /// How long a client may take to send the head of a request, to read an event, or to answer a
    /// ping, in seconds
    #[arg(long, env = "JARVIS_READ_TIMEOUT", value_name = "SECONDS", default_value = "90")]
    #[arg(value_parser = seconds(1..=3600))]
    pub read_timeout: Duration,

    /// How long a REST call waits for its whole answer, in seconds; the generation continues after it
    #[arg(long, env = "JARVIS_REQUEST_TIMEOUT", value_name = "SECONDS", default_value = "300")]
    #[arg(value_parser = seconds(1..=86_400))]
    pub request_timeout: Duration,
}

impl HttpSettings {
    /// Returns the web origins that may call the server; `*` stands for any.
    pub fn allowed_origins(&self) -> Vec<String> {
        entries(&self.allowed_origins)
    }

    /// Returns the names that the Host header may have; an empty list allows any.
    pub fn allowed_hosts(&self) -> Vec<String> {
        let hosts = entries(&self.allowed_hosts);
        if hosts.iter().any(|host| host == origins::ANY) { Vec::new() } else { hosts }
    }
}
