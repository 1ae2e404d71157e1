//! Every setting, parsed and checked before anything is opened. One file a group.

mod address;
mod client;
mod hosts;
mod http;
mod keep_alive;
mod limits;
pub mod origins;
mod otel;
mod queue;
mod redis;
mod replica;
pub mod secrets;
mod sign_in;
mod storage;
mod telemetry;
mod url;
mod values;

pub use address::ServerAddress;
pub use client::ClientSettings;
pub use hosts::{HostSettings, OllamaHost, Titles, check_hosts};
pub use http::HttpSettings;
pub use limits::LimitSettings;
use otel::OtelVariables;
pub use otel::{Batches, Collector, Protocol, TraceSampling};
pub use queue::QueueSettings;
pub use redis::RedisSettings;
pub use replica::ReplicaSettings;
pub use sign_in::{IssuerOptions, SecretSettings, SignInMode, SignInOptions, SignInSettings};
pub use storage::StorageSettings;
pub use telemetry::{LogFormat, TelemetrySettings, log_filter};

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use uuid::Uuid;

/// A chat service in front of Ollama whose answers survive the replica that writes them.
#[derive(Debug, Parser)]
#[command(name = "jarvis", version, about, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands of the binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves REST, server-sent events and WebSockets until SIGTERM or Ctrl-C, then drains
    Serve(Box<Settings>),
    /// Loads this release's Redis Functions and records them (serve does so by itself)
    Migrate {
        /// The connection to Redis
        #[command(flatten)]
        redis: RedisSettings,
    },
    /// Checks whether a running server is ready; the exit code is 0 if it is, else 1
    Health(ServerAddress),
    /// Chats with a running server in this terminal; a lost connection loses nothing
    Chat {
        /// The server, and the caller
        #[command(flatten)]
        client: ClientSettings,
        /// The session to go on with; a new one where absent
        #[arg(long, value_name = "ID")]
        session: Option<Uuid>,
        /// The model; the server's default where absent
        #[arg(long, value_name = "NAME")]
        model: Option<String>,
        /// One question; what is piped in follows it. Without one, a conversation of lines
        question: Option<String>,
    },
    /// Lists the caller's sessions, the one that was used last first
    Sessions {
        /// The server, and the caller
        #[command(flatten)]
        client: ClientSettings,
        /// Sessions to list, at most
        #[arg(long, value_name = "N", default_value_t = 20)]
        #[arg(value_parser = clap::value_parser!(u16).range(1..=500))]
        limit: u16,
        /// Words: only sessions whose title or messages have all of them
        words: Vec<String>,
    },
    /// Shows the whole fleet in this terminal, live: replicas, hosts, queue and Redis. It only reads
    Top {
        /// The connection to Redis
        #[command(flatten)]
        redis: RedisSettings,
        /// Seconds between two looks
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = values::seconds(1..=60))]
        interval: Duration,
        /// Prints the fleet once as plain text, as it does where the output is no terminal
        #[arg(long)]
        once: bool,
    },
    /// Makes, lists and revokes API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Prints a token (HS256) that signs a user in until it expires
    Token {
        /// The subject of the token
        #[arg(long, value_name = "NAME", value_parser = values::user_name)]
        user: String,
        /// How long the token is valid, as in 90s, 15m, 8h or 30d
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = values::lifetime)]
        ttl: Duration,
        /// The secret of the token
        #[command(flatten)]
        secret: SecretSettings,
    },
    /// Prints every setting of serve as Markdown tables
    Settings,
}

/// The subcommands of `jarvis key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Makes a key, and prints it: it cannot be shown again
    Create {
        /// The user that the key signs in
        #[arg(long, value_name = "NAME", value_parser = values::user_name)]
        user: String,
        /// The connection to Redis
        #[command(flatten)]
        redis: RedisSettings,
    },
    /// Prints of each key its identifier, when it was made and last used, and its user
    List {
        /// The connection to Redis
        #[command(flatten)]
        redis: RedisSettings,
    },
    /// Revokes a key: it ends on every replica within 5 s, open WebSockets included
    Revoke {
        /// The identifier of the key, as list prints it
        id: String,
        /// The connection to Redis
        #[command(flatten)]
        redis: RedisSettings,
    },
}

impl KeyCommand {
    /// Returns the connection to Redis.
    pub fn redis(&self) -> &RedisSettings {
        match self {
            Self::Create { redis, .. } | Self::List { redis } | Self::Revoke { redis, .. } => redis,
        }
    }
}

/// Lets no variable count that is set to nothing, in a subcommand and those below it.
fn without_blanks(command: clap::Command) -> clap::Command {
    let is_blank = |name: &OsStr| {
        std::env::var_os(name).is_some_and(|value| value.to_string_lossy().trim().is_empty())
    };
    command.mut_subcommands(without_blanks).mut_args(|argument| match argument.get_env() {
        Some(name) if is_blank(name) => argument.env(Resettable::Reset),
        _ => argument,
    })
}

impl Cli {
    /// Parses arguments and environment. A variable that is set to nothing, as `${X:-}` in a compose
    /// file sets it, counts as not set.
    ///
    /// # Errors
    /// The errors of clap, which include the request for help.
    pub fn from_arguments(arguments: &[OsString]) -> Result<Self, clap::Error> {
        let mut command = without_blanks(Self::command());
        let parsed = command.try_get_matches_from_mut(arguments);
        if parsed.as_ref().is_err_and(|error| error.kind() == ErrorKind::DisplayHelp) {
            // The help lists the variables that are reset above, too.
            return Self::try_parse_from(arguments);
        }
        let parsed = parsed?;
        let mut cli = Self::from_arg_matches(&parsed)?;
        if let Command::Serve(settings) = &mut cli.command {
            let read = OtelVariables::read(|name| std::env::var(name).ok());
            let refused = |wrong| command.error(ErrorKind::ValueValidation, wrong);
            settings.telemetry.otel = read.map_err(refused)?;
        }
        match cli.check().and_then(|()| secrets::check_sources(&parsed)) {
            Ok(()) => Ok(cli),
            Err(wrong) => Err(command.error(ErrorKind::ValueValidation, wrong)),
        }
    }

    /// Checks settings together that are valid each.
    fn check(&self) -> Result<(), String> {
        match &self.command {
            Command::Serve(settings) => {
                settings.http.check()?;
                settings.hosts.check()?;
                settings.redis.check()?;
                settings.telemetry.check()?;
                settings.sign_in.check()
            }
            Command::Migrate { redis } | Command::Top { redis, .. } => redis.check(),
            Command::Key(command) => command.redis().check(),
            _ => Ok(()),
        }
    }

    /// Returns the passwords among the settings, which no log line or error may hold.
    pub fn secrets(&self) -> Vec<String> {
        match &self.command {
            Command::Serve(settings) => settings.secrets(),
            Command::Migrate { redis } | Command::Top { redis, .. } => redis.passwords(),
            Command::Token { secret, .. } => secret.secrets(),
            Command::Key(command) => command.redis().passwords(),
            Command::Chat { client, .. } | Command::Sessions { client, .. } => client.secrets(),
            Command::Health(_) | Command::Settings => Vec::new(),
        }
    }
}

/// The settings of `jarvis serve`.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// The HTTP server
    #[command(flatten)]
    pub http: HttpSettings,

    /// Sign-in
    #[command(flatten)]
    pub sign_in: SignInSettings,

    /// The connection to Redis
    #[command(flatten)]
    pub redis: RedisSettings,

    /// The Ollama hosts
    #[command(flatten)]
    pub hosts: HostSettings,

    /// The queue
    #[command(flatten)]
    pub queue: QueueSettings,

    /// Storage settings
    #[command(flatten)]
    pub storage: StorageSettings,

    /// The limits of callers
    #[command(flatten)]
    pub limits: LimitSettings,

    /// The replica's life
    #[command(flatten)]
    pub replica: ReplicaSettings,

    /// Logs and spans
    #[command(flatten)]
    pub telemetry: TelemetrySettings,
}

impl Settings {
    /// Returns the passwords among the settings.
    fn secrets(&self) -> Vec<String> {
        [
            self.redis.passwords(),
            self.hosts.secrets(),
            self.telemetry.passwords(),
            self.sign_in.secrets(),
            self.http.secrets(),
        ]
        .concat()
    }

    /// Returns the files that secrets were read from.
    pub fn secret_files(&self) -> Vec<&Path> {
        let of_urls = self.redis.secret_files().chain(self.hosts.secret_files());
        let of_callers = self.sign_in.secret_files().chain(self.http.secret_files());
        of_urls.chain(of_callers).chain(self.telemetry.secret_files()).collect()
    }
}

/// Returns every setting of `jarvis serve` as Markdown: a heading and a table for each group.
pub fn settings_table() -> String {
    let mut table = String::new();
    let mut group = None;
    let command = Cli::command();
    let arguments =
        command.find_subcommand("serve").into_iter().flat_map(clap::Command::get_arguments);
    for argument in arguments {
        let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env()) else {
            continue;
        };
        if argument.is_hide_set() {
            continue;
        }
        if argument.get_help_heading() != group {
            let gap = if group.is_some() { "\n" } else { "" };
            group = argument.get_help_heading();
            let heading = group.unwrap_or("Others");
            let _ = writeln!(table, "{gap}## {heading}\n\n| flag | environment | default | |");
            let _ = writeln!(table, "| --- | --- | --- | --- |");
        }
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

#[cfg(test)]
mod tests {
    use super::origins::AllowedHosts;
    use super::*;

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
            "--trusted-proxies",
            " 10.1.2.3/8 ,, ::1,",
        ]);
        let settings = settings.expect("settings");
        let expected = ["a.example", "b.example"];
        assert_eq!(settings.hosts.preload(), expected);
        assert_eq!(settings.http.allowed_origins(), ["https://a.example", "http://b.example"]);
        let listed = AllowedHosts::Listed(expected.map(str::to_owned).to_vec());
        assert_eq!(settings.http.allowed_hosts(), listed);
        let networks = settings.http.trusted_proxies();
        assert_eq!(networks, ["10.0.0.0/8", "::1/128"].map(|n| n.parse().expect("a network")));
        let hosts: Vec<_> =
            settings.hosts.hosts().map(|(url, slots)| (url.to_string(), slots)).collect();
        assert_eq!(hosts, [("http://a:1/".to_owned(), 4), ("http://b:2/".to_owned(), 3)]);
    }

    #[test]
    fn a_list_of_no_ollama_host_is_refused() {
        let error = settings(&["--ollama-urls", " , "]).expect_err("no host");
        assert!(error.contains("names no host"), "{error}");
    }

    #[test]
    fn a_setting_that_cannot_work_or_never_matches_is_refused() {
        for (flag, wrong, part) in [
            ("--allowed-origins", "garbage", "https://app.example"),
            ("--allowed-origins", "https://a.example,b.example", "https://app.example"),
            ("--allowed-origins", "https://a.example/path", "ends after its host"),
            ("--allowed-hosts", "http://a.example", "chat.example"),
            ("--keep-alive", "banana", "5m"),
            ("--keep-alive", "5 minutes", "5m"),
            ("--trusted-proxies", "1", "10.0.0.0/8"),
            ("--trusted-proxies", "10.0.0.0/33", "10.0.0.0/8"),
            ("--trusted-proxies", "nginx", "10.0.0.0/8"),
            ("--proxies", "1", "JARVIS_TRUSTED_PROXIES"),
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
        let is_shown =
            |argument: &&clap::Arg| argument.get_env().is_some() && !argument.is_hide_set();
        let mut tried = 0;
        for argument in serve.get_arguments().filter(is_shown) {
            let flag = format!("--{}", argument.get_long().expect("a flag"));
            let value = match (&*flag, argument.get_default_values().first()) {
                // Refused as an argument, and tested as a variable and as a file.
                ("--jwt-secret" | "--metrics-token" | "--ollama-token" | "--source-key", _) => {
                    continue;
                }
                (flag, _) if flag.ends_with("-file") => continue,
                ("--redis-acknowledgements", _) => "1".to_owned(),
                ("--preload", _) => "tinyllama".to_owned(),
                ("--session-ttl", _) => "90d".to_owned(),
                ("--allowed-origins", _) => "https://a.example".to_owned(),
                ("--allowed-hosts", _) => "a.example".to_owned(),
                ("--trusted-proxies", _) => "10.0.0.0/8".to_owned(),
                ("--jwks-url", _) => "https://issuer.example/keys".to_owned(),
                ("--jwt-issuer" | "--jwt-audience", _) => "a name".to_owned(),
                ("--admin-listen", _) => "127.0.0.1:1".to_owned(),
                ("--otlp-url", _) => "http://h:4318".to_owned(),
                (_, value) => value.expect("a default").to_string_lossy().into_owned(),
            };
            let with = |value: &str| {
                // The settings of an outside issuer are set together.
                let issuer = ["--jwks-url=https://h", "--jwt-issuer=i", "--jwt-audience=a"];
                let mut flags = vec![&*flag, value];
                if issuer.iter().any(|other| other.starts_with(&*flag)) {
                    flags.extend(issuer.iter().filter(|other| !other.starts_with(&*flag)));
                }
                settings(&flags).expect(&flag)
            };
            let (plain, blanks) = (with(&value), with(&format!(" \t{value} \n")));
            assert_eq!(format!("{plain:?}"), format!("{blanks:?}"), "{flag}");
            tried += 1;
        }
        assert!(tried > 25, "{tried}");
    }

    #[test]
    fn a_star_stands_for_any_host_and_any_origin() {
        let settings = settings(&["--allowed-hosts", "a, *", "--allowed-origins", " * "]);
        let settings = settings.expect("settings");
        assert_eq!(settings.http.allowed_hosts(), AllowedHosts::Any);
        assert_eq!(settings.http.allowed_origins(), ["*"]);
    }

    #[test]
    fn without_a_list_a_listener_on_loopback_has_local_hosts_only() {
        for (listen, hosts) in [
            ("127.0.0.1:1", AllowedHosts::Loopback),
            ("127.9.9.9:1", AllowedHosts::Loopback),
            ("[::1]:1", AllowedHosts::Loopback),
            ("[::ffff:127.0.0.1]:1", AllowedHosts::Loopback),
            ("0.0.0.0:1", AllowedHosts::Any),
            ("[::]:1", AllowedHosts::Any),
            ("10.0.0.1:1", AllowedHosts::Any),
        ] {
            let settings = settings(&["--listen", listen]).expect("settings");
            assert_eq!(settings.http.allowed_hosts(), hosts, "{listen}");
        }
    }

    #[test]
    fn the_default_model_is_trimmed_and_has_no_blank_in_it() {
        let settings_of = |name| settings(&["--default-model", name]);
        assert_eq!(settings_of("  qwen3:4b ").expect("settings").hosts.default_model, "qwen3:4b");
        for wrong in ["", "  ", "tiny llama", "a\tb"] {
            assert!(settings_of(wrong).is_err(), "{wrong:?}");
        }
    }
}
