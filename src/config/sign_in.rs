//! Settings of sign-in: whether it is required, and the keys of tokens.

use std::time::Duration;

use clap::Args;
use clap::builder::EnumValueParser;

use super::values::{seconds, trimmed};
use crate::sign_in::{Secret, SignInMode};

/// Bytes of the secret of tokens, at least: a shorter one can be found by trying (RFC 7518, 3.2).
const SHORTEST_SECRET: usize = 32;
/// Bytes of a file with a secret, at most.
const LARGEST_FILE: u64 = 64 << 10;

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

    /// File with the secret of HS256 tokens, in place of the variable
    #[arg(long, env = "JARVIS_JWT_SECRET_FILE", value_name = "FILE", value_parser = secret_of_file)]
    pub jwt_secret_file: Option<Secret>,
}

impl SignInSettings {
    /// Checks the settings together.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(super) fn check(&self) -> Result<(), String> {
        self.secret.check()
    }
}

impl SecretSettings {
    /// Returns the secret, wherever it comes from.
    pub fn secret(&self) -> Option<&Secret> {
        self.jwt_secret.as_ref().or(self.jwt_secret_file.as_ref())
    }

    /// Returns the secrets that no log line may hold.
    pub(super) fn secrets(&self) -> Vec<String> {
        self.secret().map(|secret| secret.expose().to_owned()).into_iter().collect()
    }

    /// Checks the settings together.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.jwt_secret.is_some() && self.jwt_secret_file.is_some() {
            let both = "JARVIS_JWT_SECRET and JARVIS_JWT_SECRET_FILE are both set; keep one";
            return Err(both.to_owned());
        }
        Ok(())
    }
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

fn secret_of_file(path: &str) -> Result<Secret, String> {
    let path = path.trim();
    let size = std::fs::metadata(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    if size.len() > LARGEST_FILE {
        return Err(format!("{path} is larger than 64 KiB, so it is no secret"));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {path} as text: {error}"))?;
    secret(&text)
}
