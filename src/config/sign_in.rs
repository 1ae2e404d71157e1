//! Settings of sign-in: whether it is required, and the keys of tokens.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use clap::builder::EnumValueParser;
use reqwest::Url;
use url::Host;

use super::secrets::{OfFile, of_file};
use super::url::{http_url, passwords};
use super::values::{seconds, trimmed};
use crate::owner::User;
use crate::secret::Secret;

/// Bytes of the secret of tokens, at least: a shorter one can be found by trying (RFC 7518, 3.2).
const SHORTEST_SECRET: usize = 32;
/// Bytes of an issuer's or an audience's name, at most: an owner is stored with each session.
const LONGEST_CLAIM: usize = 255;

/// Whether callers have to sign in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SignInMode {
    /// A caller without a token is anonymous.
    #[default]
    Optional,
    /// A caller without a token is refused.
    Required,
}

/// The options of sign-in.
#[derive(Clone, Debug, Default)]
pub struct SignInOptions {
    /// Whether callers have to sign in.
    pub mode: SignInMode,
    /// The secret of the service's own tokens; without it there are none.
    pub secret: Option<Secret>,
    /// The outside issuer; without it there is none.
    pub issuer: Option<IssuerOptions>,
    /// The audience that a token of the service's own must name, where it names some.
    pub audience: Option<String>,
}

/// The outside issuer, as it is configured.
#[derive(Clone, Debug)]
pub struct IssuerOptions {
    /// The address of its key set: `https`, or `http` on loopback.
    pub jwks_url: Url,
    /// The claim `iss` of its tokens.
    pub issuer: String,
    /// The claim `aud` that its tokens must have for this service.
    pub audience: String,
}

/// The settings of sign-in.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sign-in")]
pub struct SignInSettings {
    /// Whether callers have to sign in: optional (without a token a caller is anonymous) or required
    #[arg(long, env = "JARVIS_AUTH", value_name = "MODE", default_value = "optional")]
    #[arg(value_parser = trimmed(EnumValueParser::<SignInMode>::new()))]
    pub auth: SignInMode,

    /// The secret of the service's own tokens
    #[command(flatten)]
    pub secret: SecretSettings,

    /// Address of the key set (JWKS) of an outside issuer: https, or http on loopback
    #[arg(long, env = "JARVIS_JWKS_URL", hide_env_values = true, value_name = "URL")]
    #[arg(value_parser = jwks_url)]
    pub jwks_url: Option<Url>,

    /// File with the address of the key set, instead of the variable
    #[arg(long, env = "JARVIS_JWKS_URL_FILE", value_name = "FILE", value_parser = of_file(jwks_url))]
    pub jwks_url_file: Option<OfFile<Url>>,

    /// Issuer of the tokens that are signed by a key of that set: their claim iss
    #[arg(long, env = "JARVIS_JWT_ISSUER", value_name = "NAME", value_parser = issuer_name)]
    pub jwt_issuer: Option<String>,

    /// Audience that tokens must name for this service: their claim aud
    #[arg(long, env = "JARVIS_JWT_AUDIENCE", value_name = "NAME", value_parser = claim)]
    pub jwt_audience: Option<String>,

    /// How long a WebSocket or an event stream stays open after its token has expired, in seconds
    #[arg(long, env = "JARVIS_AUTH_GRACE", value_name = "SECONDS", default_value = "30")]
    #[arg(value_parser = seconds(0..=3600))]
    pub auth_grace: Duration,
}

/// The secret of the service's own tokens.
#[derive(Clone, Debug, Args)]
pub struct SecretSettings {
    /// Secret of HS256 tokens, at least 32 bytes; only as a variable, because arguments are public
    #[arg(long, env = "JARVIS_JWT_SECRET", hide_env_values = true, value_name = "SECRET")]
    #[arg(value_parser = secret)]
    pub jwt_secret: Option<Secret>,

    /// File with the secret of HS256 tokens, instead of the variable
    #[arg(long, env = "JARVIS_JWT_SECRET_FILE", value_name = "FILE", value_parser = of_file(secret))]
    pub jwt_secret_file: Option<OfFile<Secret>>,
}

impl SignInSettings {
    /// Checks the settings together.
    ///
    /// # Errors
    /// The fault, and the remedy.
    pub(super) fn check(&self) -> Result<(), String> {
        let named = |name: &str| {
            Err(format!(
                "{name} is missing: an outside issuer needs \
            JARVIS_JWKS_URL, JARVIS_JWT_ISSUER and JARVIS_JWT_AUDIENCE"
            ))
        };
        match (self.key_set(), &self.jwt_issuer, &self.jwt_audience) {
            (Some(_), None, _) => named("JARVIS_JWT_ISSUER"),
            (Some(_), Some(_), None) => named("JARVIS_JWT_AUDIENCE"),
            (None, Some(_), _) => named("JARVIS_JWKS_URL"),
            _ => Ok(()),
        }
    }

    fn key_set(&self) -> Option<&Url> {
        self.jwks_url.as_ref().or(self.jwks_url_file.as_ref().map(|file| &file.value))
    }

    /// Returns the files that secrets were read from.
    pub(super) fn secret_files(&self) -> impl Iterator<Item = &Path> {
        let of_secret = self.secret.jwt_secret_file.iter().map(OfFile::path);
        of_secret.chain(self.jwks_url_file.iter().map(OfFile::path))
    }

    /// Returns what sign-in needs to know.
    pub fn options(&self) -> SignInOptions {
        let issuer = match (self.key_set(), &self.jwt_issuer, &self.jwt_audience) {
            (Some(url), Some(issuer), Some(audience)) => Some(IssuerOptions {
                jwks_url: url.clone(),
                issuer: issuer.clone(),
                audience: audience.clone(),
            }),
            _ => None,
        };
        SignInOptions {
            mode: self.auth,
            secret: self.secret.secret().cloned(),
            issuer,
            audience: self.jwt_audience.clone(),
        }
    }

    /// Returns the secrets that no log line may hold.
    pub(super) fn secrets(&self) -> Vec<String> {
        let of_url = self.key_set().into_iter().flat_map(|url| passwords(url.as_str()));
        of_url.chain(self.secret.secrets()).collect()
    }
}

impl SecretSettings {
    /// Returns the secret, wherever it comes from.
    pub fn secret(&self) -> Option<&Secret> {
        self.jwt_secret.as_ref().or(self.jwt_secret_file.as_ref().map(|file| &file.value))
    }

    /// Returns the secrets that no log line may hold.
    pub(super) fn secrets(&self) -> Vec<String> {
        self.secret().map(|secret| secret.expose().to_owned()).into_iter().collect()
    }
}

/// Parses the address of a key set: who can change the keys on their way can sign anybody in.
fn jwks_url(text: &str) -> Result<Url, String> {
    let url = http_url(text)?;
    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if url.scheme() == "https" || is_loopback {
        return Ok(url);
    }
    Err("the key set needs https://; http:// is taken on loopback only".to_owned())
}

/// Parses the name of an outside issuer.
fn issuer_name(text: &str) -> Result<String, String> {
    let name = claim(text)?;
    if name == User::LOCAL {
        return Err("`local` is the issuer of the service's own tokens".to_owned());
    }
    Ok(name)
}

fn claim(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.len() > LONGEST_CLAIM || text.chars().any(char::is_control) {
        return Err(format!("expected 1 to {LONGEST_CLAIM} bytes without control characters"));
    }
    Ok(text.to_owned())
}

/// Parses a token, or an API key.
pub(super) fn token(text: &str) -> Result<Secret, String> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a token is one word of visible ASCII characters".to_owned());
    }
    Ok(Secret::new(text))
}

/// Parses the secret of tokens. The error does not quote it.
fn secret(text: &str) -> Result<Secret, String> {
    let text = text.trim();
    if text.len() < SHORTEST_SECRET {
        return Err(format!(
            "the secret has {} bytes and needs at least {SHORTEST_SECRET}; make one with `openssl \
             rand -hex 32`",
            text.len()
        ));
    }
    Ok(Secret::new(text))
}
