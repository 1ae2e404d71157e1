//! Every setting, parsed and checked before anything is opened.

mod url;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::builder::{EnumValueParser, PossibleValue, Resettable, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use reqwest::Url;
use tracing_subscriber::EnvFilter;

use self::url::{http_url, passwords, redis_url};
use crate::http::origin::{self, listed_host, listed_origin};
use crate::model_name::ModelName;
use crate::ollama::{check_hosts, checked_keep_alive};

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
    Health(ServerAddress),
    /// Talks to a running server in this terminal; a lost connection loses nothing
    Chat(ServerAddress),
    /// Prints every setting of serve as a Markdown table
    Settings,
}

impl Cli {
    /// Parses arguments and environment. A variable that is set to nothing, as compose files do it for
    /// `${X:-}`, counts as not set.
    ///
    /// # Errors
    /// Those of clap, help among them.
    pub fn from_arguments(arguments: &[OsString]) -> Result<Self, clap::Error> {
        let blank = |name: &OsStr| {
            std::env::var_os(name).is_some_and(|value| value.to_string_lossy().trim().is_empty())
        };
        let mut command = Self::command().mut_subcommands(|subcommand| {
            subcommand.mut_args(|argument| match argument.get_env() {
                Some(name) if blank(name) => argument.env(Resettable::Reset),
                _ => argument,
            })
        });
        let parsed = command.try_get_matches_from_mut(arguments);
        if parsed.as_ref().is_err_and(|error| error.kind() == ErrorKind::DisplayHelp) {
            // The help names every variable.
            return Self::try_parse_from(arguments);
        }
        let cli = Self::from_arg_matches(&parsed?)?;
        match &cli.command {
            Command::Serve(settings) if settings.ollama_hosts().is_empty() => {
                let text = "--ollama-urls names no host; expected at least one URL";
                Err(command.error(ErrorKind::ValueValidation, text))
            }
            Command::Serve(settings) => match check_hosts(&settings.ollama_hosts()) {
                Ok(()) => Ok(cli),
                Err(wrong) => Err(command.error(ErrorKind::ValueValidation, wrong)),
            },
            _ => Ok(cli),
        }
    }

    /// The passwords among the settings, which no log line or error may hold.
    pub fn secrets(&self) -> Vec<String> {
        match &self.command {
            Command::Serve(settings) => settings.secrets(),
            Command::Migrate { redis } => passwords(&redis.redis_url),
            Command::Health(_) | Command::Chat(_) | Command::Settings => Vec::new(),
        }
    }
}

/// Where a running server is.
#[derive(Clone, Debug, Args)]
pub struct ServerAddress {
    /// The server's address; without it, the one that the server listens on
    #[arg(long, env = "JARVIS_HEALTH_URL", hide_env_values = true, value_parser = http_url)]
    pub url: Option<Url>,

    /// Address and port that the server listens on
    #[arg(long, env = "JARVIS_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:10200")]
    #[arg(value_parser = listen_address)]
    pub listen: SocketAddr,
}

impl ServerAddress {
    /// A URL at which this machine reaches the server; where it listens on all addresses, that is the
    /// loopback one.
    ///
    /// # Errors
    /// Where it listens on a port that is chosen at its start.
    pub fn reachable(&self) -> anyhow::Result<Url> {
        if let Some(url) = &self.url {
            return Ok(url.clone());
        }
        let mut address = self.listen;
        anyhow::ensure!(address.port() != 0, "port 0 is no address; name the server with --url");
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        Ok(format!("http://{address}").parse()?)
    }
}

/// Where Redis is.
#[derive(Clone, Debug, Args)]
pub struct RedisSettings {
    /// Redis: redis://, rediss://, redis-cluster://, redis-sentinel:// or redis+unix://
    #[arg(long, env = "JARVIS_REDIS_URL", hide_env_values = true, value_name = "URL", value_parser = redis_url)]
    #[arg(default_value = "redis://127.0.0.1:6379")]
    pub redis_url: String,

    /// Time limit of one Redis command, in milliseconds
    #[arg(long, env = "JARVIS_REDIS_TIMEOUT_MS", value_name = "MS", default_value_t = 1500)]
    #[arg(value_parser = trimmed(clap::value_parser!(u64).range(50..=60_000)))]
    pub redis_timeout_ms: u64,

    /// Replicas of Redis that must have an accepted message and a finished answer before it is
    /// acknowledged; 1 for a cluster and behind sentinels, else 0
    #[arg(long, env = "JARVIS_REDIS_ACKNOWLEDGEMENTS", value_name = "N")]
    #[arg(value_parser = trimmed(clap::value_parser!(u8).range(0..=5)))]
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

    /// How long Redis may be unusable before a replica that was ready is not any more, in seconds
    #[arg(long, env = "JARVIS_REDIS_PATIENCE", value_name = "SECONDS", default_value_t = 30)]
    #[arg(value_parser = trimmed(clap::value_parser!(u64).range(1..=3600)))]
    pub redis_patience: u64,

    /// Ollama hosts, separated by commas, as http://a:11434;slots=4; each address of a name is one
    #[arg(
        long,
        env = "JARVIS_OLLAMA_URLS",
        hide_env_values = true,
        value_name = "URLS",
        value_delimiter = ','
    )]
    #[arg(default_value = "http://127.0.0.1:11434", value_parser = ollama_host)]
    pub ollama_urls: Vec<Option<OllamaHost>>,

    /// Generations at a time on one Ollama host, of all replicas together
    #[arg(long, env = "JARVIS_OLLAMA_SLOTS", value_name = "N", default_value_t = 4)]
    #[arg(value_parser = trimmed(clap::value_parser!(u16).range(1..=1024)))]
    pub ollama_slots: u16,

    /// Turns that may wait for a slot, of all replicas together
    #[arg(long, env = "JARVIS_QUEUE_LIMIT", value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..=1_000_000)))]
    pub queue_limit: u32,

    /// Of them, turns of one user, or of one address where nobody is signed in
    #[arg(long, env = "JARVIS_QUEUE_SHARE", value_name = "N", default_value_t = 100)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..=1_000_000)))]
    pub queue_share: u32,

    /// Proxies in front that add to X-Forwarded-For; 0: a client's address is the connection's
    #[arg(long, env = "JARVIS_PROXIES", value_name = "N", default_value_t = 0)]
    #[arg(value_parser = trimmed(clap::value_parser!(u8).range(0..=16)))]
    pub proxies: u8,

    /// Model of a request that names none
    #[arg(long, env = "JARVIS_DEFAULT_MODEL", value_name = "NAME")]
    #[arg(default_value = "tinyllama:latest", value_parser = model_name)]
    pub default_model: String,

    /// Largest context window that is asked for, in tokens, whatever a model allows
    #[arg(long, env = "JARVIS_NUM_CTX", value_name = "TOKENS", default_value_t = 8192)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(256..=1_048_576)))]
    pub num_ctx: u32,

    /// How long Ollama keeps an idle model loaded, as Ollama writes it (5m, 1h30m, 300, 0, -1)
    #[arg(long, env = "JARVIS_KEEP_ALIVE", value_name = "TIME", default_value = "5m")]
    #[arg(value_parser = checked_keep_alive, allow_hyphen_values = true)]
    pub keep_alive: String,

    /// Models that every host that has them loads at the start, separated by commas
    #[arg(long, env = "JARVIS_PRELOAD", value_name = "NAMES", value_delimiter = ',')]
    #[arg(value_parser = or_blank(model_name))]
    pub preload: Vec<String>,

    /// Time limit of connecting to an Ollama host, in seconds
    #[arg(long, env = "JARVIS_CONNECT_TIMEOUT", value_name = "SECONDS", default_value_t = 3)]
    #[arg(value_parser = trimmed(clap::value_parser!(u64).range(1..=300)))]
    pub connect_timeout: u64,

    /// Time limit of the first token, in seconds; loading a model counts
    #[arg(long, env = "JARVIS_FIRST_TOKEN_TIMEOUT", value_name = "SECONDS", default_value_t = 120)]
    #[arg(value_parser = trimmed(clap::value_parser!(u64).range(1..=3600)))]
    pub first_token_timeout: u64,

    /// Time limit between two tokens, in seconds
    #[arg(long, env = "JARVIS_TOKEN_GAP_TIMEOUT", value_name = "SECONDS", default_value_t = 30)]
    #[arg(value_parser = trimmed(clap::value_parser!(u64).range(1..=3600)))]
    pub token_gap_timeout: u64,

    /// How long a turn waits while no Ollama host with its model can be reached, in seconds; an
    /// answer that was begun goes on after it
    #[arg(long, env = "JARVIS_HOST_WAIT_TIMEOUT", value_name = "SECONDS", default_value_t = 120)]
    #[arg(value_parser = trimmed(clap::value_parser!(u64).range(1..=3600)))]
    pub host_wait_timeout: u64,

    /// How long a REST call waits for its whole answer, in seconds; the generation goes on after it
    #[arg(long, env = "JARVIS_REQUEST_TIMEOUT", value_name = "SECONDS", default_value_t = 300)]
    #[arg(value_parser = trimmed(clap::value_parser!(u64).range(1..=86_400)))]
    pub request_timeout: u64,

    /// Web origins beside the server's own that may call it, separated by commas; *: any
    #[arg(long, env = "JARVIS_ALLOWED_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    #[arg(value_parser = or_blank(listed_origin))]
    pub allowed_origins: Vec<String>,

    /// Names that the Host header may have, separated by commas; empty or *: any
    #[arg(long, env = "JARVIS_ALLOWED_HOSTS", value_name = "HOSTS", value_delimiter = ',')]
    #[arg(value_parser = or_blank(listed_host))]
    pub allowed_hosts: Vec<String>,

    /// WebSockets and event streams at a time
    #[arg(long, env = "JARVIS_MAX_SOCKETS", value_name = "N", default_value_t = 19_000)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(1..)))]
    pub max_sockets: u32,

    /// Between two pings of a WebSocket, or comments of an event stream, in seconds
    #[arg(long, env = "JARVIS_HEARTBEAT", value_name = "SECONDS", default_value_t = 20)]
    #[arg(value_parser = trimmed(clap::value_parser!(u64).range(1..=600)))]
    pub heartbeat: u64,

    /// How long a client may take to ask, to read an event, or to answer a ping, in seconds
    #[arg(long, env = "JARVIS_READ_TIMEOUT", value_name = "SECONDS", default_value_t = 90)]
    #[arg(value_parser = trimmed(clap::value_parser!(u64).range(1..=3600)))]
    pub read_timeout: u64,

    /// How long a replica may be silent before the others take its turns over, in milliseconds
    #[arg(long, env = "JARVIS_LEASE_MS", value_name = "MS", default_value_t = 3000)]
    #[arg(value_parser = trimmed(clap::value_parser!(u64).range(300..=60_000)))]
    pub lease_ms: u64,

    /// How long running turns may go on after SIGTERM, in seconds
    #[arg(long, env = "JARVIS_DRAIN_TIMEOUT", value_name = "SECONDS", default_value_t = 20)]
    #[arg(value_parser = trimmed(clap::value_parser!(u64).range(0..=3600)))]
    pub drain_timeout: u64,

    /// Log lines for people (text) or machines (json)
    #[arg(long, env = "JARVIS_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    #[arg(value_parser = trimmed(EnumValueParser::<LogFormat>::new()))]
    pub log_format: LogFormat,

    /// What is logged, as tracing's filter directives
    #[arg(long, env = "JARVIS_LOG", value_name = "FILTER", default_value = "info,fred=error")]
    #[arg(value_parser = log_filter)]
    pub log: String,

    /// OpenTelemetry collector that spans are sent to over HTTP; none: no spans are sent
    #[arg(long, env = "JARVIS_OTLP_URL", hide_env_values = true, value_name = "URL", value_parser = http_url)]
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
        let hosts = self.ollama_urls.iter().flatten().map(|host| crate::ollama::HostConfig {
            url: host.url.clone(),
            slots: usize::from(host.slots.unwrap_or(self.ollama_slots)),
        });
        hosts.collect()
    }

    /// The models to load at the start.
    pub fn preload(&self) -> Vec<String> {
        listed(&self.preload)
    }

    /// The web origins that may call the server; `*` stands for any.
    pub fn allowed_origins(&self) -> Vec<String> {
        listed(&self.allowed_origins)
    }

    /// The names that the Host header may have; none where it may have any.
    pub fn allowed_hosts(&self) -> Vec<String> {
        let hosts = listed(&self.allowed_hosts);
        if hosts.iter().any(|host| host == origin::ANY) { Vec::new() } else { hosts }
    }

    /// The passwords among the settings.
    fn secrets(&self) -> Vec<String> {
        let hosts = self.ollama_urls.iter().flatten().map(|host| host.url.as_str());
        let others = hosts.chain(self.otlp_url.as_ref().map(Url::as_str)).flat_map(passwords);
        passwords(&self.redis.redis_url).into_iter().chain(others).collect()
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
    let text = text.trim();
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected directives, as in info,fred=error".to_owned()),
    }
}

/// A list's entries, without blanks around them and without empty ones.
fn listed(entries: &[String]) -> Vec<String> {
    let entries = entries.iter().map(|entry| entry.trim());
    entries.filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}

/// None for an empty entry of the list.
fn ollama_host(text: &str) -> Result<Option<OllamaHost>, String> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let (url, slots) = match text.split_once(';') {
        Some((url, slots)) => (url, Some(slots)),
        None => (text, None),
    };
    let slots = slots.map(|slots| {
        let number = slots.split_once('=').filter(|(name, _)| name.trim() == "slots");
        let number = number.and_then(|(_, number)| number.trim().parse().ok());
        number
            .filter(|number| (1..=1024).contains(number))
            .ok_or_else(|| "expected ;slots=N, from 1 to 1024, after the URL".to_owned())
    });
    Ok(Some(OllamaHost { url: http_url(url)?, slots: slots.transpose()? }))
}

/// As it is spelled, but for blanks around it.
fn model_name(text: &str) -> Result<String, String> {
    ModelName::parse(text).map_err(|error| error.to_string())?;
    Ok(text.trim().to_owned())
}

/// A parser of the entries of a list, of which some may be blank.
fn or_blank(
    parse: fn(&str) -> Result<String, String>,
) -> impl Fn(&str) -> Result<String, String> + Clone {
    move |text| if text.trim().is_empty() { Ok(String::new()) } else { parse(text) }
}

/// A parser that skips blanks around a value, as compose files and editors leave them.
fn trimmed<P: TypedValueParser>(parser: P) -> Trimmed<P> {
    Trimmed(parser)
}

#[derive(Clone)]
struct Trimmed<P>(P);

impl<P: TypedValueParser> TypedValueParser for Trimmed<P> {
    type Value = P::Value;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<P::Value, clap::Error> {
        let value = value.to_str().map_or(value, |text| OsStr::new(text.trim()));
        self.0.parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_say_how_many_slots_it_has() {
        let host = ollama_host("http://a:11434;slots=2").expect("a host").expect("an entry");
        assert_eq!((host.url.as_str(), host.slots), ("http://a:11434/", Some(2)));
        let host = ollama_host(" https://b/x").expect("a host").expect("an entry");
        assert_eq!(host.slots, None);
        for wrong in ["http://a;slots=0", "http://a;slots=", "http://a;size=2", "a;slots=2"] {
            assert!(ollama_host(wrong).is_err(), "{wrong}");
        }
    }

    fn settings(flags: &[&str]) -> Result<Settings, String> {
        let arguments = ["jarvis", "serve"].iter().chain(flags).map(OsString::from);
        let arguments: Vec<_> = arguments.collect();
        match Cli::from_arguments(&arguments).map_err(|error| error.to_string())?.command {
            Command::Serve(settings) => Ok(*settings),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn lists_are_trimmed_and_their_empty_entries_dropped() {
        let list = " a.example ,, b.example,";
        let urls = " http://a:1 , ,http://b:2;slots=3 ,";
        let settings = settings(&[
            "--preload",
            list,
            "--allowed-origins",
            " https://a.example:443 ,, http://B.example/,",
            "--allowed-hosts",
            list,
            "--ollama-urls",
            urls,
        ]);
        let settings = settings.expect("settings");
        let expected = ["a.example", "b.example"];
        assert_eq!(settings.preload(), expected);
        assert_eq!(settings.allowed_origins(), ["https://a.example", "http://b.example"]);
        assert_eq!(settings.allowed_hosts(), expected);
        let hosts: Vec<_> =
            settings.ollama_hosts().iter().map(|host| host.url.to_string()).collect();
        assert_eq!(hosts, ["http://a:1/", "http://b:2/"]);
    }

    #[test]
    fn a_list_of_no_ollama_host_is_refused() {
        let error = settings(&["--ollama-urls", " , "]).expect_err("no host");
        assert!(error.contains("names no host"), "{error}");
    }

    #[test]
    fn a_setting_that_would_leave_a_dead_service_or_never_match_is_refused() {
        for (flag, wrong, part) in [
            ("--allowed-origins", "garbage", "https://app.example"),
            ("--allowed-origins", "https://a.example,b.example", "https://app.example"),
            ("--allowed-origins", "https://a.example/path", "ends after its host"),
            ("--allowed-hosts", "http://a.example", "chat.example"),
            ("--keep-alive", "banana", "5m"),
            ("--keep-alive", "5 minutes", "5m"),
            ("--max-sockets", "0", "0"),
            ("--ollama-slots", "0", "0"),
            ("--queue-limit", "0", "0"),
            ("--queue-share", "0", "0"),
            ("--heartbeat", "0", "0"),
            ("--read-timeout", "0", "0"),
            ("--num-ctx", "0", "0"),
            ("--ollama-urls", "http://h:1,http://h:1/", "name each host once"),
            ("--ollama-urls", "http://h:1/?x=1", "leave out"),
            ("--ollama-urls", "http://h:1/#x", "leave out"),
        ] {
            let error = settings(&[flag, wrong]).expect_err(wrong);
            assert!(error.contains(part), "{flag} {wrong}: {error}");
        }
    }

    #[test]
    fn blanks_around_the_value_of_any_setting_are_skipped() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").expect("serve");
        let mut tried = 0;
        for argument in serve.get_arguments().filter(|argument| argument.get_env().is_some()) {
            let flag = format!("--{}", argument.get_long().expect("a flag"));
            let value = match (&*flag, argument.get_default_values().first()) {
                ("--redis-acknowledgements", _) => "1".to_owned(),
                ("--preload", _) => "tinyllama".to_owned(),
                ("--allowed-origins", _) => "https://a.example".to_owned(),
                ("--allowed-hosts", _) => "a.example".to_owned(),
                ("--otlp-url", _) => "http://h:4318".to_owned(),
                (_, value) => value.expect("a default").to_string_lossy().into_owned(),
            };
            let plain = settings(&[&flag, &value]).expect(&flag);
            let blanks = settings(&[&flag, &format!(" \t{value} \n")]).expect(&flag);
            assert_eq!(format!("{plain:?}"), format!("{blanks:?}"), "{flag}");
            tried += 1;
        }
        assert!(tried > 25, "{tried}");
        let host = ollama_host(" http://a ; slots = 4 ").expect("a host").expect("an entry");
        assert_eq!(host.slots, Some(4));
    }

    #[test]
    fn a_star_stands_for_any_host_and_any_origin() {
        let settings = settings(&["--allowed-hosts", "a, *", "--allowed-origins", " * "]);
        let settings = settings.expect("settings");
        assert!(settings.allowed_hosts().is_empty());
        assert_eq!(settings.allowed_origins(), ["*"]);
    }

    #[test]
    fn the_default_model_is_trimmed_and_has_no_blank_in_it() {
        let settings_of = |name| settings(&["--default-model", name]);
        assert_eq!(settings_of("  qwen3:4b ").expect("settings").default_model, "qwen3:4b");
        for wrong in ["", "  ", "tiny llama", "a\tb"] {
            assert!(settings_of(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_server_is_asked_where_it_listens_or_where_it_is_said_to_be() {
        let reachable = |listen: &str, url: Option<&str>| {
            let url = url.map(|url| url.parse().expect("a URL"));
            let address = ServerAddress { url, listen: listen.parse().expect("an address") };
            address.reachable().map(|url| url.to_string()).ok()
        };
        for (listen, url) in [
            ("127.0.0.1:1234", Some("http://127.0.0.1:1234/")),
            ("0.0.0.0:10200", Some("http://127.0.0.1:10200/")),
            ("[::]:10200", Some("http://[::1]:10200/")),
            ("[::1]:80", Some("http://[::1]/")),
            ("10.1.2.3:9", Some("http://10.1.2.3:9/")),
            ("127.0.0.1:0", None),
        ] {
            assert_eq!(reachable(listen, None).as_deref(), url, "{listen}");
        }
        let named = reachable("127.0.0.1:1", Some("http://a.example:2"));
        assert_eq!(named.as_deref(), Some("http://a.example:2/"));
    }
}
