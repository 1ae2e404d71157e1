//! Secrets among the settings: where they may come from, and who may read their files.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::url::passwords;
use crate::secret::Secret;

/// Bytes of a file with a secret, at most.
const LARGEST_FILE: u64 = 64 << 10;
/// Bytes of a token that is compared, at least.
const SHORTEST_TOKEN: usize = 16;
/// The permission of all users to read a file.
const READABLE_BY_ALL: u32 = 0o004;

/// The settings that are secrets, or may hold one. Each has a second setting that names a file in its
/// place, whose identifier ends with `_file`, but for the address of a server for clients.
const SECRETS: &[SecretSetting] = &[
    SecretSetting { id: "jwks_url", kind: SecretKind::Urls },
    SecretSetting { id: "jwt_secret", kind: SecretKind::Whole },
    SecretSetting { id: "metrics_token", kind: SecretKind::Whole },
    SecretSetting { id: "ollama_token", kind: SecretKind::Whole },
    SecretSetting { id: "ollama_urls", kind: SecretKind::Urls },
    SecretSetting { id: "otlp_url", kind: SecretKind::Urls },
    SecretSetting { id: "redis_url", kind: SecretKind::Urls },
    SecretSetting { id: "source_key", kind: SecretKind::Whole },
    SecretSetting { id: "token", kind: SecretKind::Whole },
    SecretSetting { id: ADDRESS, kind: SecretKind::Urls },
];

/// The identifier of the address of a running server, and its variable.
const ADDRESS: &str = "url";
const ADDRESS_VARIABLE: &str = "JARVIS_HEALTH_URL";

struct SecretSetting {
    /// The identifier of the setting for clap.
    id: &'static str,
    kind: SecretKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SecretKind {
    /// The whole value is secret.
    Whole,
    /// The value is a URL, or some, which may hold a password.
    Urls,
}

/// A value that was read from a file. It does not show the value.
#[derive(Clone)]
pub struct OfFile<T> {
    path: PathBuf,
    /// The value.
    pub value: T,
}

impl<T> fmt::Debug for OfFile<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<T> OfFile<T> {
    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns a parser that reads a file, and parses its text.
pub(super) fn of_file<T>(
    parse: fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<OfFile<T>, String> + Clone {
    move |path| {
        let text = read(path.trim())?;
        Ok(OfFile { path: path.trim().into(), value: parse(&text)? })
    }
}

/// Reads a small file of text.
///
/// # Errors
/// Why it cannot be read. The error does not quote it.
pub(super) fn read(path: &str) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    if size.len() > LARGEST_FILE {
        return Err(format!("{path} is larger than 64 KiB, so it is no secret"));
    }
    std::fs::read_to_string(path).map_err(|error| format!("cannot read {path} as text: {error}"))
}

/// Returns whether the value of an argument, as clap names it (`--redis-url <URL>`), may hold a secret.
/// An error about the argument must not quote its value then.
pub fn may_hold_a_secret(argument: &str) -> bool {
    let flag = argument.split([' ', '=']).next().unwrap_or_default().trim_start_matches("--");
    let id = flag.replace('-', "_");
    SECRETS.iter().any(|secret| secret.id == id.strip_suffix("_file").unwrap_or(&id))
}

/// Returns whether every user of this machine may read the file.
pub fn is_readable_by_all(path: &Path) -> bool {
    let file = std::fs::metadata(path);
    file.is_ok_and(|file| file.permissions().mode() & READABLE_BY_ALL != 0)
}

/// Parses a token that this service compares with those of its callers. The error does not quote it.
pub(super) fn compared_token(text: &str) -> Result<Secret, String> {
    let text = text.trim();
    if text.len() < SHORTEST_TOKEN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "the token needs at least {SHORTEST_TOKEN} visible ASCII characters and no blank; make one \
             with `openssl rand -hex 32`"
        ));
    }
    Ok(Secret::new(text))
}

/// Checks where the secrets come from: none from the arguments, which every user of the machine can
/// read, and none from a variable and a file.
///
/// # Errors
/// The fault, and the remedy.
pub(super) fn check_sources(parsed: &ArgMatches) -> Result<(), String> {
    let mut command = parsed;
    while let Some((_, below)) = command.subcommand() {
        command = below;
    }
    let source = |id: &str| {
        let is_present = command.try_contains_id(id).unwrap_or_default();
        let source = if is_present { command.value_source(id) } else { None };
        source.filter(|source| *source != ValueSource::DefaultValue)
    };
    for SecretSetting { id, kind } in SECRETS {
        let flag = format!("--{}", id.replace('_', "-"));
        let variable = format!("JARVIS_{}", id.to_uppercase());
        if source(id) == Some(ValueSource::CommandLine) {
            let is_secret = *kind == SecretKind::Whole || holds_a_password(command, id);
            if is_secret {
                let with = if *kind == SecretKind::Whole { "" } else { " with a password" };
                let instead = if *id == ADDRESS {
                    ADDRESS_VARIABLE.to_owned()
                } else {
                    format!("{variable} or {flag}-file")
                };
                return Err(format!(
                    "every user of this machine can read arguments, so {flag}{with} is refused; set \
                     {instead}, with a new secret"
                ));
            }
        }
        if source(id).is_some() && source(&format!("{id}_file")).is_some() {
            return Err(format!("{variable} and {variable}_FILE are both set; keep one"));
        }
    }
    Ok(())
}

fn holds_a_password(command: &ArgMatches, id: &str) -> bool {
    let raw = command.get_raw(id).into_iter().flatten();
    raw.map(|value| value.to_string_lossy()).any(|text| !passwords(text.trim()).is_empty())
}
