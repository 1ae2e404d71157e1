//! Settings of the HTTP server: its address, its limits, and the callers that it accepts.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use ipnet::IpNet;

use super::origins::{self, AllowedHosts, listed_host, listed_origin};
use super::secrets::{OfFile, compared_token, of_file};
use super::values::{entries, listen_address, or_blank, seconds, trimmed};
use crate::secret::Secret;

/// The settings of the HTTP server.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpSettings {
    /// Address and port to listen on
    #[arg(long, env = "JARVIS_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:10200")]
    #[arg(value_parser = listen_address)]
    pub listen: SocketAddr,

    /// Address and port of operators: /metrics, /health/detailed and /admin/log-level are only there;
    /// empty: the first two are on the main port, and the third nowhere
    #[arg(long, env = "JARVIS_ADMIN_LISTEN", value_name = "ADDR", value_parser = listen_address)]
    pub admin_listen: Option<SocketAddr>,

    /// Networks of the proxies in front whose X-Forwarded-For is believed, separated by commas, as
    /// 10.0.0.0/8; a proxy on the same machine has to be listed, too; empty: a client's address is the
    /// connection's
    #[arg(long, env = "JARVIS_TRUSTED_PROXIES", value_name = "NETWORKS", value_delimiter = ',')]
    #[arg(value_parser = or_blank(listed_network))]
    pub trusted_proxies: Vec<String>,

    /// The earlier form of --trusted-proxies, which is refused
    #[arg(long, env = "JARVIS_PROXIES", hide = true, value_parser = replaced_proxies)]
    pub proxies: Option<Infallible>,

    /// Web origins in addition to the server's own that may call it, separated by commas; *: any
    #[arg(long, env = "JARVIS_ALLOWED_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    #[arg(value_parser = or_blank(listed_origin))]
    pub allowed_origins: Vec<String>,

    /// Key of the digests of clients' addresses, at least 16 characters, the same for every replica; only
    /// as a variable; where absent, a random one is kept in Redis
    #[arg(long, env = "JARVIS_SOURCE_KEY", hide_env_values = true, value_name = "KEY")]
    #[arg(value_parser = compared_token)]
    pub source_key: Option<Secret>,

    /// File with that key, instead of the variable
    #[arg(long, env = "JARVIS_SOURCE_KEY_FILE", value_name = "FILE")]
    #[arg(value_parser = of_file(compared_token))]
    pub source_key_file: Option<OfFile<Secret>>,

    /// Names that the Host header may have, separated by commas; *: any; empty: any, but on a loopback
    /// address only localhost and IP addresses
    #[arg(long, env = "JARVIS_ALLOWED_HOSTS", value_name = "HOSTS", value_delimiter = ',')]
    #[arg(value_parser = or_blank(listed_host))]
    pub allowed_hosts: Vec<String>,

    /// Whether clients may use HTTP/2, without TLS and by prior knowledge; WebSockets need HTTP/1.1
    #[arg(long = "http2", env = "JARVIS_HTTP2", value_name = "BOOL", default_value = "false")]
    #[arg(value_parser = trimmed(BoolishValueParser::new()), action = clap::ArgAction::Set)]
    #[arg(num_args = 0..=1, default_missing_value = "true")]
    pub http_2: bool,

    /// Token that /metrics needs, at least 16 characters; only as a variable, because arguments are
    /// public
    #[arg(long, env = "JARVIS_METRICS_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    #[arg(value_parser = compared_token)]
    pub metrics_token: Option<Secret>,

    /// File with the token that /metrics needs, instead of the variable
    #[arg(long, env = "JARVIS_METRICS_TOKEN_FILE", value_name = "FILE")]
    #[arg(value_parser = of_file(compared_token))]
    pub metrics_token_file: Option<OfFile<Secret>>,

    /// WebSockets, event streams and streamed turns at a time, at most
    #[arg(long, env = "JARVIS_MAX_SOCKETS", value_name = "N", default_value_t = 19_000)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..)))]
    pub max_sockets: u32,

    /// WebSockets, event streams and streamed turns of one address at one replica, at most; an IPv6 /56
    /// may have twice as many, a /48 four times. Loopback addresses have no such limit; 0: any number
    #[arg(long, env = "JARVIS_ADDRESS_SOCKETS", value_name = "N", default_value_t = 200)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32)))]
    pub address_sockets: u32,

    /// Connections of one address at one replica, at most; an IPv6 /56 may have twice as many, a /48
    /// four times. Further ones are closed at once. Loopback addresses and trusted proxies have no
    /// such limit; 0: any number
    #[arg(long, env = "JARVIS_ADDRESS_CONNECTIONS", value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32)))]
    pub address_connections: u32,

    /// Bytes of unfinished bodies and of replies that are not read yet, of all connections, in MiB;
    /// beyond it a request waits 5 s, and is 503
    #[arg(long, env = "JARVIS_UNREAD_MIB", value_name = "MIB", default_value_t = 128)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(8..=65_536)))]
    pub unread_mib: u32,

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
    /// Checks settings together that are valid each.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.admin_listen == Some(self.listen) && self.listen.port() != 0 {
            return Err("--admin-listen is the address of --listen; give operators a port of \
                        their own"
                .to_owned());
        }
        Ok(())
    }

    /// Returns the names that the Host header of an operator's request may have.
    pub fn admin_hosts(&self) -> AllowedHosts {
        match self.admin_listen {
            Some(address) if address.ip().to_canonical().is_loopback() => AllowedHosts::Loopback,
            _ => AllowedHosts::Any,
        }
    }

    /// Returns the web origins that may call the server; `*` stands for any.
    pub fn allowed_origins(&self) -> Vec<String> {
        entries(&self.allowed_origins)
    }

    /// Returns the networks of the proxies whose X-Forwarded-For is believed.
    pub fn trusted_proxies(&self) -> Vec<IpNet> {
        self.trusted_proxies.iter().filter_map(|network| network.parse().ok()).collect()
    }

    /// Returns the names that the Host header may have.
    pub fn allowed_hosts(&self) -> AllowedHosts {
        let hosts = entries(&self.allowed_hosts);
        if hosts.iter().any(|host| host == origins::ANY) {
            AllowedHosts::Any
        } else if !hosts.is_empty() {
            AllowedHosts::Listed(hosts)
        } else if self.listen.ip().to_canonical().is_loopback() {
            AllowedHosts::Loopback
        } else {
            AllowedHosts::Any
        }
    }

    /// Returns the key of the digests of clients' addresses, wherever it comes from.
    pub fn source_key(&self) -> Option<&Secret> {
        self.source_key.as_ref().or(self.source_key_file.as_ref().map(|file| &file.value))
    }

    /// Returns the secrets that no log line may hold.
    pub(super) fn secrets(&self) -> Vec<String> {
        let secrets = [self.metrics_token(), self.source_key()];
        secrets.into_iter().flatten().map(|secret| secret.expose().to_owned()).collect()
    }

    /// Returns the files that secrets were read from.
    pub(super) fn secret_files(&self) -> impl Iterator<Item = &Path> {
        let files = [&self.metrics_token_file, &self.source_key_file];
        files.into_iter().flatten().map(OfFile::path)
    }

    /// Returns the token that `/metrics` needs, wherever it comes from.
    pub fn metrics_token(&self) -> Option<&Secret> {
        self.metrics_token.as_ref().or(self.metrics_token_file.as_ref().map(|file| &file.value))
    }
}

/// Parses a network, or an address, which is a network of its own.
fn listed_network(text: &str) -> Result<String, String> {
    let text = text.trim();
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network: IpNet = network
        .map_err(|_| "expected a network or an address, as 10.0.0.0/8, fd00::/8 or 192.0.2.1")?;
    Ok(network.trunc().to_string())
}

/// Refuses the number of proxies that earlier releases took: what a client writes into
/// X-Forwarded-For could be taken for a proxy's entry.
fn replaced_proxies(_: &str) -> Result<Infallible, String> {
    let hint = "this setting is gone; name the networks of your proxies in --trusted-proxies or \
        JARVIS_TRUSTED_PROXIES, as 10.0.0.0/8";
    Err(hint.to_owned())
}
