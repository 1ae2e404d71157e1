//! Settings of the connection to Redis.

use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::secrets::{OfFile, of_file};
use super::url::{passwords, redis_url};
use super::values::{milliseconds, trimmed};
use crate::tls::{Authorities, ClientIdentity, ClientKey, TlsOptions};

/// The settings of the connection to Redis.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Redis")]
pub struct RedisSettings {
    /// Redis: redis://, rediss://, redis-cluster://, redis-sentinel:// or redis+unix://
    #[arg(long, env = "JARVIS_REDIS_URL", hide_env_values = true, value_name = "URL", value_parser = redis_url)]
    #[arg(default_value = "redis://127.0.0.1:6379")]
    pub redis_url: String,

    /// File with the URL of Redis, instead of the variable
    #[arg(long, env = "JARVIS_REDIS_URL_FILE", value_name = "FILE", value_parser = of_file(redis_url))]
    pub redis_url_file: Option<OfFile<String>>,

    /// File with the certificates (PEM) of the authorities that Redis's certificate may be of, instead
    /// of the system's
    #[arg(long, env = "JARVIS_REDIS_CA_FILE", value_name = "FILE")]
    #[arg(value_parser = of_file(Authorities::parse))]
    pub redis_ca_file: Option<OfFile<Authorities>>,

    /// File with the certificate (PEM) that is shown to Redis
    #[arg(long, env = "JARVIS_REDIS_CERT_FILE", value_name = "FILE")]
    #[arg(value_parser = of_file(Authorities::parse))]
    pub redis_cert_file: Option<OfFile<Authorities>>,

    /// File with the private key (PEM) of that certificate
    #[arg(long, env = "JARVIS_REDIS_KEY_FILE", value_name = "FILE")]
    #[arg(value_parser = of_file(ClientKey::parse))]
    pub redis_key_file: Option<OfFile<ClientKey>>,

    /// Time limit of one Redis command, in milliseconds
    #[arg(long, env = "JARVIS_REDIS_TIMEOUT_MS", value_name = "MS", default_value = "1500")]
    #[arg(value_parser = milliseconds(50..=60_000))]
    pub redis_timeout_ms: Duration,

    /// Redis replicas that must have an accepted message and a finished answer before it is
    /// acknowledged; 1 for a cluster and behind sentinels, else 0
    #[arg(long, env = "JARVIS_REDIS_ACKNOWLEDGEMENTS", value_name = "N")]
    #[arg(value_parser = trimmed(clap::value_parser!(u8).range(0..=5)))]
    pub redis_acknowledgements: Option<u8>,
}

impl RedisSettings {
    /// Returns the URL of Redis, wherever it comes from.
    pub fn url(&self) -> &str {
        self.redis_url_file.as_ref().map_or(&self.redis_url, |file| &file.value)
    }

    /// Returns the certificates of connections by TLS.
    pub fn tls(&self) -> TlsOptions {
        let identity = match (&self.redis_cert_file, &self.redis_key_file) {
            (Some(chain), Some(key)) => {
                Some(ClientIdentity { chain: chain.value.clone(), key: key.value.clone() })
            }
            _ => None,
        };
        let authorities = self.redis_ca_file.as_ref().map(|file| file.value.clone());
        TlsOptions { authorities, identity }
    }

    /// Checks the settings together.
    ///
    /// # Errors
    /// The fault, and the remedy.
    pub(super) fn check(&self) -> Result<(), String> {
        let (has_certificate, has_key) =
            (self.redis_cert_file.is_some(), self.redis_key_file.is_some());
        if has_certificate != has_key {
            let one = "JARVIS_REDIS_CERT_FILE and JARVIS_REDIS_KEY_FILE belong together; set both";
            return Err(one.to_owned());
        }
        if !self.url().starts_with("rediss") {
            if self.redis_ca_file.is_some() || has_certificate {
                return Err(
                    "a certificate for Redis needs TLS: write rediss:// in its URL".to_owned()
                );
            }
            return Ok(());
        }
        self.tls().client_config().map(drop).map_err(|error| format!("Redis over TLS: {error}"))
    }

    /// Returns the files that secrets were read from.
    pub(super) fn secret_files(&self) -> impl Iterator<Item = &Path> {
        let of_url = self.redis_url_file.iter().map(OfFile::path);
        of_url.chain(self.redis_key_file.iter().map(OfFile::path))
    }

    /// Returns how many Redis replicas must acknowledge a write, which depends on the kind of
    /// deployment where it is not set.
    pub fn acknowledgements(&self) -> u8 {
        self.redis_acknowledgements.unwrap_or_else(|| {
            let replicated = ["-cluster://", "-sentinel://"];
            u8::from(replicated.iter().any(|kind| self.url().contains(kind)))
        })
    }

    /// Returns the passwords in the URL.
    pub(super) fn passwords(&self) -> Vec<String> {
        passwords(self.url())
    }
}
