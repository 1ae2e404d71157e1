//! Settings of the subcommands that are clients of a running server.

use clap::Args;

use super::ServerAddress;
use super::secrets::{OfFile, of_file};
use super::sign_in;
use crate::secret::Secret;

/// The server, and the caller.
#[derive(Clone, Debug, Args)]
pub struct ClientSettings {
    /// The server
    #[command(flatten)]
    pub server: ServerAddress,

    /// Token or API key of the caller; only as a variable, because arguments are public
    #[arg(long, env = "JARVIS_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    #[arg(value_parser = sign_in::token)]
    pub token: Option<Secret>,

    /// File with the token or API key of the caller, instead of the variable
    #[arg(long, env = "JARVIS_TOKEN_FILE", value_name = "FILE")]
    #[arg(value_parser = of_file(sign_in::token))]
    pub token_file: Option<OfFile<Secret>>,
}

impl ClientSettings {
    /// Returns the token or API key of the caller; an anonymous one has none.
    pub fn token(&self) -> Option<&Secret> {
        self.token.as_ref().or(self.token_file.as_ref().map(|file| &file.value))
    }

    /// Returns the secrets that no log line may hold.
    pub(super) fn secrets(&self) -> Vec<String> {
        self.token().map(|token| token.expose().to_owned()).into_iter().collect()
    }
}
