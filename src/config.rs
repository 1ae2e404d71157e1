//! Every setting, parsed and checked before anything is opened.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use reqwest::Url;
use tracing_subscriber::EnvFilter;

use crate::model_name::ModelName;

/// A chat service in front of Ollama whose answers survive the replica that writes them.
#[derive(Debug, Parser)]
#[command(name = "jarvis", version, about, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves REST, server-sent events and WebSockets until SIGTERM or Ctrl-C, then drains
    Serve(Box<Settings>),
    /// Loads this release's Redis Functions and records them (serve does so by itself)
    Migrate {
        /// Where Redis is
        #[command(flatten)]
        redis: RedisSettings,
    },
    /// Asks a running server whether it is ready; exit code 0 if it is, else 1
    Health {
        /// The server's address
        #[arg(long, env = "JARVIS_HEALTH_URL", default_value = "http://127.0.0.1:10200")]
        url: Url,
    },
    /// Prints every setting of serve as a Markdown table
    Settings,
}

/// Where Redis is.
#[derive(Clone, Debug, Args)]
pub struct RedisSettings {
    /// Redis: redis://, rediss://, redis-cluster://, redis-sentinel:// or redis+unix://
    #[arg(long, env = "JARVIS_REDIS_URL", value_name = "URL", value_parser = redis_url)]
    #[arg(default_value = "redis://127.0.0.1:6379")]
    pub redis_url: String,

    /// Time limit of one Redis command, in milliseconds
    #[arg(long, env = "JARVIS_REDIS_TIMEOUT_MS", value_name = "MS", default_value_t = 1500)]
    #[arg(value_parser = clap::value_parser!(u64).range(50..=60_000))]
    pub redis_timeout_ms: u64,

    /// Replicas of Redis that must have an accepted message and a finished answer before it is
    /// acknowledged; 1 for a cluster and behind sentinels, else 0
    #[arg(long, env = "JARVIS_REDIS_ACKNOWLEDGEMENTS", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=5))]
    pub redis_acknowledgements: Option<u8>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The settings of `jarvis serve`.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Address and port to listen on
    #[arg(long, env = "JARVIS_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:10200")]
    #[arg(value_parser = listen_address)]
    pub listen: SocketAddr,

    /// Where Redis is
    #[command(flatten)]
    pub redis: RedisSettings,

    /// Ollama hosts, separated by commas, as http://a:11434;slots=4; each address of a name is one
    #[arg(long, env = "JARVIS_OLLAMA_URLS", value_name = "URLS", value_delimiter = ',')]
    #[arg(default_value = "http://127.0.0.1:11434", value_parser = ollama_host)]
    pub ollama_urls: Vec<OllamaHost>,

    /// Generations at a time on one Ollama host, of all replicas together
    #[arg(long, env = "JARVIS_OLLAMA_SLOTS", value_name = "N", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub ollama_slots: u16,

    /// Turns that may wait for a slot, of all replicas together
    #[arg(long, env = "JARVIS_QUEUE_LIMIT", value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub queue_limit: u32,

    /// Of them, turns of one user, or of one address where nobody is signed in
    #[arg(long, env = "JARVIS_QUEUE_SHARE", value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub queue_share: u32,

    /// Proxies in front that add to X-Forwarded-For; 0: a client's address is the connection's
    #[arg(long, env = "JARVIS_PROXIES", value_name = "N", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=16))]
    pub proxies: u8,

    /// Model of a request that names none
    #[arg(long, env = "JARVIS_DEFAULT_MODEL", value_name = "NAME")]
    #[arg(default_value = "tinyllama:latest", value_parser = model_name)]
    pub default_model: String,

    /// Largest context window that is asked for, in tokens, whatever a model allows
    #[arg(long, env = "JARVIS_NUM_CTX", value_name = "TOKENS", default_value_t = 8192)]
    #[arg(value_parser = clap::value_parser!(u32).range(256..=1_048_576))]
    pub num_ctx: u32,

    /// How long Ollama keeps an idle model loaded, as Ollama writes it (5m, 1h, -1)
    #[arg(long, env = "JARVIS_KEEP_ALIVE", value_name = "TIME", default_value = "5m")]
    #[arg(value_parser = not_blank, allow_hyphen_values = true)]
    pub keep_alive: String,

    /// Models that every host that has them loads at the start, separated by commas
    #[arg(long, env = "JARVIS_PRELOAD", value_name = "NAMES", value_delimiter = ',')]
    #[arg(value_parser = model_name_or_blank)]
    pub preload: Vec<String>,

    /// Time limit of connecting to an Ollama host, in seconds
    #[arg(long, env = "JARVIS_CONNECT_TIMEOUT", value_name = "SECONDS", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=300))]
    pub connect_timeout: u64,

    /// Time limit of the first token, in seconds; loading a model counts
    #[arg(long, env = "JARVIS_FIRST_TOKEN_TIMEOUT", value_name = "SECONDS", default_value_t = 120)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub first_token_timeout: u64,

    /// Time limit between two tokens, in seconds
    #[arg(long, env = "JARVIS_TOKEN_GAP_TIMEOUT", value_name = "SECONDS", default_value_t = 30)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub token_gap_timeout: u64,

    /// How long a REST call waits for its whole answer, in seconds; the generation goes on after it
    #[arg(long, env = "JARVIS_REQUEST_TIMEOUT", value_name = "SECONDS", default_value_t = 300)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub request_timeout: u64,

    /// Web origins beside the server's own that may call it, separated by commas
    #[arg(long, env = "JARVIS_ALLOWED_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    pub allowed_origins: Vec<String>,

    /// Names that the Host header may have, separated by commas; empty: any
    #[arg(long, env = "JARVIS_ALLOWED_HOSTS", value_name = "HOSTS", value_delimiter = ',')]
    pub allowed_hosts: Vec<String>,

    /// WebSockets and event streams at a time
    #[arg(long, env = "JARVIS_MAX_SOCKETS", value_name = "N", default_value_t = 19_000)]
    pub max_sockets: usize,

    /// Between two pings of a WebSocket, or comments of an event stream, in seconds
    #[arg(long, env = "JARVIS_HEARTBEAT", value_name = "SECONDS", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=600))]
    pub heartbeat: u64,

    /// How long a client may take to ask, to read an event, or to answer a ping, in seconds
    #[arg(long, env = "JARVIS_READ_TIMEOUT", value_name = "SECONDS", default_value_t = 90)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub read_timeout: u64,

    /// How long a replica may be silent before the others take its turns over, in milliseconds
    #[arg(long, env = "JARVIS_LEASE_MS", value_name = "MS", default_value_t = 3000)]
    #[arg(value_parser = clap::value_parser!(u64).range(300..=60_000))]
    pub lease_ms: u64,

    /// How long running turns may go on after SIGTERM, in seconds
    #[arg(long, env = "JARVIS_DRAIN_TIMEOUT", value_name = "SECONDS", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain_timeout: u64,

    /// Log lines for people (text) or machines (json)
    #[arg(long, env = "JARVIS_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// What is logged, as tracing's filter directives
    #[arg(long, env = "JARVIS_LOG", value_name = "FILTER", default_value = "info,fred=error")]
    #[arg(value_parser = log_filter)]
    pub log: String,

    /// OpenTelemetry collector that spans are sent to over HTTP; none: no spans are sent
    #[arg(long, env = "JARVIS_OTLP_URL", value_name = "URL", value_parser = http_url)]
    pub otlp_url: Option<Url>,
}

/// An Ollama host as it is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OllamaHost {
    /// Where.
    pub url: Url,
    /// Generations at a time, where it says so.
    pub slots: Option<u16>,
}

impl Settings {
    /// The Ollama hosts with their slots.
    pub fn ollama_hosts(&self) -> Vec<crate::ollama::HostConfig> {
        let hosts = self.ollama_urls.iter().map(|host| crate::ollama::HostConfig {
            url: host.url.clone(),
            slots: usize::from(host.slots.unwrap_or(self.ollama_slots)),
        });
        hosts.collect()
    }

    /// The models to load at the start.
    pub fn preload(&self) -> Vec<String> {
        let names = self.preload.iter().map(|name| name.trim());
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// The time limit of connecting to an Ollama host.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout)
    }
}

impl RedisSettings {
    /// As the connection takes it.
    pub fn options(&self) -> crate::redis::RedisOptions {
        crate::redis::RedisOptions {
            url: self.redis_url.clone(),
            command_timeout: Duration::from_millis(self.redis_timeout_ms),
            acknowledgements: self.redis_acknowledgements.unwrap_or_else(|| {
                let replicated = ["-cluster://", "-sentinel://"];
                u8::from(replicated.iter().any(|kind| self.redis_url.contains(kind)))
            }),
        }
    }
}

/// Every setting of `jarvis serve`, as a Markdown table.
pub fn settings_table() -> String {
    let mut table = String::from("| flag | environment | default | |\n| --- | --- | --- | --- |\n");
    let command = Cli::command();
    let arguments =
        command.find_subcommand("serve").into_iter().flat_map(clap::Command::get_arguments);
    for argument in arguments {
        let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env()) else {
            continue;
        };
        let default = argument
            .get_default_values()
            .first()
            .map_or(String::new(), |value| format!("`{}`", value.to_string_lossy()));
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(
            table,
            "| `--{flag}` | `{}` | {default} | {help} |",
            variable.to_string_lossy()
        );
    }
    table
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let expected = "expected an IP address and a port, as in 127.0.0.1:10200";
    text.trim().parse().map_err(|_| expected.to_owned())
}

fn log_filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected directives, as in info,fred=error".to_owned()),
    }
}

fn http_url(text: &str) -> Result<Url, String> {
    let expected = "expected http://host:port or https://host:port";
    let url: Url = text.trim().parse().map_err(|_| expected.to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(expected.to_owned());
    }
    Ok(url)
}

fn ollama_host(text: &str) -> Result<OllamaHost, String> {
    let (url, slots) = match text.split_once(';') {
        Some((url, slots)) => (url, Some(slots)),
        None => (text, None),
    };
    let slots = slots.map(|slots| {
        let number = slots.trim().strip_prefix("slots=").and_then(|number| number.parse().ok());
        number
            .filter(|number| (1..=1024).contains(number))
            .ok_or_else(|| "expected ;slots=N, from 1 to 1024, after the URL".to_owned())
    });
    Ok(OllamaHost { url: http_url(url)?, slots: slots.transpose()? })
}

fn redis_url(text: &str) -> Result<String, String> {
    let schemes = [
        "redis://",
        "rediss://",
        "redis-cluster://",
        "rediss-cluster://",
        "redis-sentinel://",
        "rediss-sentinel://",
        "redis+unix://",
    ];
    let known = schemes.iter().any(|scheme| text.starts_with(scheme));
    if !known || fred::prelude::Config::from_url(text).is_err() {
        return Err(
            "expected redis://, rediss://, redis-cluster://, redis-sentinel:// or redis+unix://"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

/// As it is spelled, but for blanks around it.
fn model_name(text: &str) -> Result<String, String> {
    ModelName::parse(text).map_err(|error| error.to_string())?;
    Ok(text.trim().to_owned())
}

fn model_name_or_blank(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Ok(String::new()) } else { model_name(text) }
}

fn not_blank(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("must not be blank".to_owned()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_say_how_many_slots_it_has() {
        let host = ollama_host("http://a:11434;slots=2").expect("a host");
        assert_eq!((host.url.as_str(), host.slots), ("http://a:11434/", Some(2)));
        assert_eq!(ollama_host(" https://b/x").expect("a host").slots, None);
        for wrong in ["http://a;slots=0", "http://a;slots=", "http://a;size=2", "a;slots=2", ""] {
            assert!(ollama_host(wrong).is_err(), "{wrong}");
        }
    }
}
