//! Settings of the Ollama hosts, and of the models on them.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use clap::builder::EnumValueParser;
use reqwest::Url;

use super::keep_alive::checked_keep_alive;
use super::secrets::{OfFile, of_file};
use super::sign_in::token;
use super::url::{http_url, passwords};
use super::values::{entries, model_name, or_blank, seconds, trimmed};
use crate::secret::Secret;
use crate::tls::{Authorities, TlsOptions};

/// The writer of the titles of sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Titles {
    /// Nobody: the beginning of the first question is the title.
    #[default]
    Question,
    /// The model, after the first answer.
    Model,
}

/// The settings of the Ollama hosts, and of the models on them.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Ollama")]
pub struct HostSettings {
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

    /// File with the Ollama hosts, separated by commas or lines, instead of the variable
    #[arg(long, env = "JARVIS_OLLAMA_URLS_FILE", value_name = "FILE")]
    #[arg(value_parser = of_file(ollama_hosts))]
    pub ollama_urls_file: Option<OfFile<Vec<OllamaHost>>>,

    /// Token that every Ollama host gets, as `Authorization: Bearer`; only as a variable, because
    /// arguments are public
    #[arg(long, env = "JARVIS_OLLAMA_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    #[arg(value_parser = token)]
    pub ollama_token: Option<Secret>,

    /// File with the token of the Ollama hosts, instead of the variable
    #[arg(long, env = "JARVIS_OLLAMA_TOKEN_FILE", value_name = "FILE", value_parser = of_file(token))]
    pub ollama_token_file: Option<OfFile<Secret>>,

    /// File with the certificates (PEM) of the authorities that an Ollama host's certificate may be of,
    /// instead of the system's
    #[arg(long, env = "JARVIS_OLLAMA_CA_FILE", value_name = "FILE")]
    #[arg(value_parser = of_file(Authorities::parse))]
    pub ollama_ca_file: Option<OfFile<Authorities>>,

    /// Concurrent generations on one Ollama host, of all replicas together
    #[arg(long, env = "JARVIS_OLLAMA_SLOTS", value_name = "N", default_value_t = 4)]
    #[arg(value_parser = trimmed(clap::value_parser!(u16).range(1..=1024)))]
    pub ollama_slots: u16,

    /// Model of a request without one
    #[arg(long, env = "JARVIS_DEFAULT_MODEL", value_name = "NAME")]
    #[arg(default_value = "tinyllama:latest", value_parser = model_name)]
    pub default_model: String,

    /// Writer of the title of a session: question (its beginning is the title), or model (after the first
    /// answer, where a slot is free and nothing waits; its tokens count for the user)
    #[arg(long, env = "JARVIS_TITLES", value_name = "WHO", default_value = "question")]
    #[arg(value_parser = trimmed(EnumValueParser::<Titles>::new()))]
    pub titles: Titles,

    /// Models that every host that has them loads at the start, separated by commas
    #[arg(long, env = "JARVIS_PRELOAD", value_name = "NAMES", value_delimiter = ',')]
    #[arg(value_parser = or_blank(model_name))]
    pub preload: Vec<String>,

    /// Largest context window that is requested, in tokens, whatever a model allows
    #[arg(long, env = "JARVIS_NUM_CTX", value_name = "TOKENS", default_value_t = 8192)]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(256..=1_048_576)))]
    pub num_ctx: u32,

    /// How long Ollama keeps an idle model loaded, as Ollama writes it (5m, 1h30m, 300, 0, -1)
    #[arg(long, env = "JARVIS_KEEP_ALIVE", value_name = "TIME", default_value = "5m")]
    #[arg(value_parser = checked_keep_alive, allow_hyphen_values = true)]
    pub keep_alive: String,

    /// Time limit of connecting to an Ollama host, in seconds
    #[arg(long, env = "JARVIS_CONNECT_TIMEOUT", value_name = "SECONDS", default_value = "3")]
    #[arg(value_parser = seconds(1..=300))]
    pub connect_timeout: Duration,

    /// Time limit of the first token, in seconds; loading a model counts
    #[arg(long, env = "JARVIS_FIRST_TOKEN_TIMEOUT", value_name = "SECONDS", default_value = "120")]
    #[arg(value_parser = seconds(1..=3600))]
    pub first_token_timeout: Duration,

    /// Time limit between two tokens, in seconds
    #[arg(long, env = "JARVIS_TOKEN_GAP_TIMEOUT", value_name = "SECONDS", default_value = "30")]
    #[arg(value_parser = seconds(1..=3600))]
    pub token_gap_timeout: Duration,

    /// How long a turn waits while no Ollama host with its model can be reached, in seconds; an
    /// answer that has begun continues after it
    #[arg(long, env = "JARVIS_HOST_WAIT_TIMEOUT", value_name = "SECONDS", default_value = "120")]
    #[arg(value_parser = seconds(1..=3600))]
    pub host_wait_timeout: Duration,
}

/// An entry of `--ollama-urls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OllamaHost {
    /// The URL of the host.
    pub url: Url,
    /// How many generations the host runs at a time, where the entry sets it.
    pub slots: Option<u16>,
}

impl HostSettings {
    /// Returns the URL of each host, and how many generations it runs at a time.
    pub fn hosts(&self) -> impl Iterator<Item = (&Url, u16)> {
        let of_file = self.ollama_urls_file.iter().flat_map(|file| &file.value);
        let of_variable = self.ollama_urls.iter().flatten();
        let of_variable = of_variable.filter(|_| self.ollama_urls_file.is_none());
        of_file.chain(of_variable).map(|host| (&host.url, host.slots.unwrap_or(self.ollama_slots)))
    }

    /// Returns the token that every host gets, wherever it comes from.
    pub fn token(&self) -> Option<&Secret> {
        self.ollama_token.as_ref().or(self.ollama_token_file.as_ref().map(|file| &file.value))
    }

    /// Returns the certificates of connections by TLS.
    pub fn tls(&self) -> TlsOptions {
        let authorities = self.ollama_ca_file.as_ref().map(|file| file.value.clone());
        TlsOptions { authorities, identity: None }
    }

    /// Returns the files that secrets were read from.
    pub(super) fn secret_files(&self) -> impl Iterator<Item = &Path> {
        let of_urls = self.ollama_urls_file.iter().map(OfFile::path);
        of_urls.chain(self.ollama_token_file.iter().map(OfFile::path))
    }

    /// Returns the models to load at the start.
    pub fn preload(&self) -> Vec<String> {
        entries(&self.preload)
    }

    /// Checks that the URLs name at least one host, and each host once.
    ///
    /// # Errors
    /// The fault, and the remedy.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let urls: Vec<&Url> = self.hosts().map(|(url, _)| url).collect();
        check_hosts(&urls)
    }

    /// Returns the secrets that no log line may hold.
    pub(super) fn secrets(&self) -> Vec<String> {
        let of_urls = self.hosts().flat_map(|(url, _)| passwords(url.as_str()));
        of_urls.chain(self.token().map(|token| token.expose().to_owned())).collect()
    }
}

/// Checks the URLs of all Ollama hosts.
///
/// # Errors
/// The fault, and the remedy.
pub fn check_hosts(urls: &[&Url]) -> Result<(), &'static str> {
    if urls.is_empty() {
        return Err("--ollama-urls names no host; expected at least one URL");
    }
    for (number, url) in urls.iter().enumerate() {
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("an Ollama host is http://host:port or https://host:port");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("the URL of an Ollama host (--ollama-urls) has no query and no fragment; \
                leave out what follows its ? or #");
        }
        if urls[..number].iter().any(|other| is_same_host(other, url)) {
            return Err("two Ollama hosts (--ollama-urls) are the same; name each host once, and \
                set how many generations it runs with ;slots=N");
        }
    }
    Ok(())
}

/// Returns whether two URLs name one host; user names and passwords do not count.
fn is_same_host(one: &Url, other: &Url) -> bool {
    let path = |url: &Url| url.path().trim_end_matches('/').to_owned();
    one.origin() == other.origin() && path(one) == path(other)
}

/// Parses the entries of a file.
///
/// # Errors
/// The fault of the first entry that is not valid.
fn ollama_hosts(text: &str) -> Result<Vec<OllamaHost>, String> {
    let entries = text.split([',', '\n']).map(ollama_host);
    entries.filter_map(Result::transpose).collect()
}

/// Parses an entry of the list; a blank entry names no host.
///
/// # Errors
/// The fault of the URL or of the number of slots.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_may_set_how_many_slots_its_host_has() {
        let host = ollama_host("http://a:11434;slots=2").expect("a host").expect("an entry");
        assert_eq!((host.url.as_str(), host.slots), ("http://a:11434/", Some(2)));
        let host = ollama_host(" https://b/x").expect("a host").expect("an entry");
        assert_eq!(host.slots, None);
        for wrong in ["http://a;slots=0", "http://a;slots=", "http://a;size=2", "a;slots=2"] {
            assert!(ollama_host(wrong).is_err(), "{wrong}");
        }
        let host = ollama_host(" http://a ; slots = 4 ").expect("a host").expect("an entry");
        assert_eq!(host.slots, Some(4));
    }
}
