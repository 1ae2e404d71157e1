//! What can be wrong with Redis, told apart by what an operator has to do about it.

use std::borrow::Cow;

use fred::prelude::{Error, ErrorKind};

use super::layout::MigrationError;

/// What went wrong between this replica and Redis.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// The address cannot be used.
    #[error("the Redis URL is not usable: {0}")]
    Url(String),
    /// Not reachable, not answering in time, or not able to take writes now.
    #[error("Redis is not available: {}", .0.details())]
    Unavailable(Error),
    /// It refuses the user name or the password.
    #[error("Redis refuses the user name or password; correct them in the Redis URL")]
    Credentials,
    /// The sentinels refuse the user name or the password.
    #[error(
        "the sentinels refuse the user name or password; correct sentinelUsername and \
         sentinelPassword in the Redis URL"
    )]
    SentinelCredentials,
    /// It has no database of the number in the URL.
    #[error(
        "Redis has no database of the number in the Redis URL; correct the number, or leave it out \
         for database 0"
    )]
    Database,
    /// It is a replica, which takes no writes.
    #[error("this Redis server is a read-only replica; point the Redis URL to its primary")]
    ReadOnly,
    /// The user may not do what turns need.
    #[error("the Redis user has {}; grant it with ACL SETUSER ({details})", permission(missing))]
    Permission {
        /// Commands in capitals, `channels` or `keys`; empty where Redis did not say.
        missing: String,
        /// What Redis said, or what the functions found.
        details: String,
    },
    /// Its memory is full.
    #[error("the memory of Redis is full; raise its maxmemory or delete data")]
    OutOfMemory,
    /// It replied something that this version does not understand.
    #[error("unexpected reply from Redis: {0}")]
    Unexpected(String),
    /// Its functions are of a release that this one cannot run beside.
    #[error(transparent)]
    Migration(#[from] MigrationError),
}

impl RedisError {
    /// What is wrong in a few words, for a health reply: no host, user or secret.
    pub fn summary(&self) -> Cow<'static, str> {
        let words = match self {
            Self::Url(_) => "unusable address",
            Self::Unavailable(error) => unavailable(error.details()),
            Self::Credentials => "wrong user name or password",
            Self::SentinelCredentials => "wrong user name or password of the sentinels",
            Self::Database => "no database of this number",
            Self::ReadOnly => "read-only replica",
            Self::Permission { missing, .. } => return Cow::Owned(permission(missing)),
            Self::OutOfMemory => "memory full",
            Self::Unexpected(text) if text.contains(NO_FUNCTION) => "functions not loaded",
            Self::Unexpected(_) => "unexpected reply",
            Self::Migration(_) => "functions of another release",
        };
        Cow::Borrowed(words)
    }
}

/// What the functions reply on a server whose lease is over.
pub(super) const DOUBTFUL: &str = "DOUBTFUL";
const NO_FUNCTION: &str = "Function not found";
const NO_SETNAME: &str = "Failed to set client name";

/// What Redis replies to a number of a database that it does not have; a cluster has one database.
const NO_DATABASE: [&str; 2] =
    ["DB index is out of range", "SELECT is not allowed in cluster mode"];

/// What Redis replies while it takes no writes, and what that means.
const STATES: &[(&str, &str)] = &[
    ("LOADING", "still loading its data"),
    ("MASTERDOWN", "a replica without its primary"),
    ("CLUSTERDOWN", "cluster down"),
    ("NOREPLICAS", "too few replicas"),
    ("TRYAGAIN", "moving data"),
    ("MISCONF", "cannot write to its disk"),
    ("BUSY", "busy with a script"),
    (DOUBTFUL, "no certain primary"),
];

fn unavailable(details: &str) -> &'static str {
    let state = STATES.iter().find(|(word, _)| details.starts_with(word));
    state.map_or("not reachable", |(_, meaning)| meaning)
}

fn permission(missing: &str) -> String {
    if missing.is_empty() {
        return "no permission".to_owned();
    }
    format!("no permission for {missing}")
}

pub(super) fn is_missing_function(error: &Error) -> bool {
    error.details().contains(NO_FUNCTION)
}

pub(super) fn is_redirection(error: &Error) -> bool {
    let details = error.details();
    details.starts_with("TRYAGAIN") || details.starts_with("Too many redirections")
}

pub(super) fn is_unavailable(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::IO
            | ErrorKind::Timeout
            | ErrorKind::Canceled
            | ErrorKind::Backpressure
            | ErrorKind::Cluster
            | ErrorKind::Sentinel
            | ErrorKind::Routing
            | ErrorKind::Auth
            | ErrorKind::Tls
    ) || error.details().starts_with("Too many failed")
        || error.details().starts_with("READONLY")
        || STATES.iter().any(|(word, _)| error.details().starts_with(word))
}

pub(super) fn refuses_credentials(error: &Error) -> bool {
    ["WRONGPASS", "NOAUTH"].iter().any(|word| error.details().starts_with(word))
}

pub(super) fn classify(error: Error) -> RedisError {
    let details = error.details();
    if details.contains("OOM ") {
        RedisError::OutOfMemory
    } else if refuses_credentials(&error) {
        RedisError::Credentials
    } else if NO_DATABASE.iter().any(|words| details.contains(words)) {
        RedisError::Database
    } else if details.starts_with("READONLY") {
        RedisError::ReadOnly
    } else if let Some(missing) = missing_permission(details) {
        RedisError::Permission { missing, details: details.to_owned() }
    } else if is_unavailable(&error) {
        RedisError::Unavailable(error)
    } else {
        RedisError::Unexpected(details.to_owned())
    }
}

/// What the user may not do, if that is what Redis says: of a command by itself, or of one in a
/// function, where Redis 7.0 and later releases have other words.
fn missing_permission(details: &str) -> Option<String> {
    if details.starts_with(NO_SETNAME) {
        return Some("CLIENT SETNAME".to_owned());
    }
    let refused = details.starts_with("NOPERM")
        || details.contains("The user executing the script can't")
        || details.contains("ACL failure in script");
    if !refused {
        return None;
    }
    if details.contains("channel") {
        return Some("channels".to_owned());
    }
    if details.contains("run the '") {
        let command = details.split("run the '").nth(1).and_then(|rest| rest.split('\'').next());
        return Some(command.unwrap_or_default().replace('|', " ").to_uppercase());
    }
    Some(if details.contains("key") { "keys".to_owned() } else { String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_refuses_is_named_without_users() {
        for (details, summary) in [
            (
                "NOPERM this user has no permissions to run the 'fcall' command",
                "no permission for FCALL",
            ),
            (
                "NOPERM User ann has no permissions to run the 'function|load' command",
                "no permission for FUNCTION LOAD",
            ),
            (
                "NOPERM this user has no permissions to access one of the channels used as arguments",
                "no permission for channels",
            ),
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                "no permission for keys",
            ),
            (
                "ERR The user executing the script can't publish to the channel mentioned in the command script: a",
                "no permission for channels",
            ),
            (
                "ERR The user executing the script can't run this command or subcommand script: a",
                "no permission",
            ),
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                "wrong user name or password",
            ),
            ("NOAUTH Authentication required.", "wrong user name or password"),
            ("ERR DB index is out of range", "no database of this number"),
            ("ERR SELECT is not allowed in cluster mode", "no database of this number"),
            ("READONLY You can't write against a read only replica.", "read-only replica"),
            ("OOM command not allowed when used memory > 'maxmemory'.", "memory full"),
            ("LOADING Redis is loading the dataset in memory", "still loading its data"),
            ("ERR Function not found", "functions not loaded"),
            ("ERR of a kind that nobody has seen", "unexpected reply"),
        ] {
            let error = classify(Error::new(ErrorKind::Unknown, details.to_owned()));
            assert_eq!(error.summary(), summary, "{details}");
        }
        let lost = classify(Error::new(ErrorKind::IO, "10.0.0.7:6379 refused"));
        assert_eq!(lost.summary(), "not reachable");
    }
}
