//! The errors of Redis, classified by what an operator has to do about them.

use std::borrow::Cow;

use fred::prelude::{Error, ErrorKind};

use super::layout::MigrationError;

/// An error of Redis, or of the connection to it.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// The URL cannot be used.
    #[error("the Redis URL is not usable: {0}")]
    Url(String),
    /// Redis is not reachable, does not reply in time, or takes no writes now.
    #[error("Redis is not available: {}", .0.details())]
    Unavailable(Error),
    /// Redis refuses the user name or the password.
    #[error("Redis refuses the user name or password; correct them in the Redis URL")]
    Credentials,
    /// The sentinels refuse the user name or the password.
    #[error(
        "the sentinels refuse the user name or password; correct sentinelUsername and \
         sentinelPassword in the Redis URL"
    )]
    SentinelCredentials,
    /// A server that the URL names as a sentinel is not a sentinel.
    #[error(
        "a server that the Redis URL names as a sentinel is not a sentinel; name the sentinels in the \
         URL (port 26379 as a rule), or use redis:// for a Redis without sentinels"
    )]
    NotASentinel,
    /// The sentinels monitor no primary of the name in the URL.
    #[error(
        "the sentinels monitor no primary of the name in the Redis URL; correct sentinelServiceName \
         to the name in their `sentinel monitor`"
    )]
    UnknownService,
    /// The URL is that of a cluster, and the server belongs to none.
    #[error("this Redis is no cluster; use redis:// instead of redis-cluster:// in the Redis URL")]
    NotACluster,
    /// The URL is that of one server, and the server belongs to a cluster.
    #[error("this Redis is a cluster; use redis-cluster:// instead of redis:// in the Redis URL")]
    IsACluster,
    /// The server lacks a command, as a sentinel does.
    #[error(
        "this server has no command {0}; if it is a sentinel, use redis-sentinel:// in the Redis \
         URL, and if the command was renamed, restore its name"
    )]
    UnknownCommand(String),
    /// Redis has no database of the number in the URL.
    #[error(
        "Redis has no database of the number in the Redis URL; correct the number, or leave it out \
         for database 0"
    )]
    Database,
    /// The server is a Redis replica, which takes no writes.
    #[error("this Redis server is a read-only replica; point the Redis URL to its primary")]
    ReadOnly,
    /// The user lacks a permission that turns need.
    #[error("the Redis user has {}; grant it with ACL SETUSER ({details})", permission(missing))]
    Permission {
        /// Commands in capitals, `channels` or `keys`; empty where Redis did not name them.
        missing: String,
        /// The error of Redis, or the result of the probe.
        details: String,
    },
    /// The memory of Redis is full.
    #[error("the memory of Redis is full; raise its maxmemory or delete data")]
    OutOfMemory,
    /// Redis replied in a form that this release does not know.
    #[error("unexpected reply from Redis: {0}")]
    Unexpected(String),
    /// This release must not run on the stored data.
    #[error(transparent)]
    Migration(#[from] MigrationError),
}

impl RedisError {
    /// Returns a short description for a health reply, without a host, user or secret.
    pub fn summary(&self) -> Cow<'static, str> {
        let summary = match self {
            Self::Url(_) => "unusable address",
            Self::Unavailable(error) => unavailable(error.details()),
            Self::Credentials => "wrong user name or password",
            Self::SentinelCredentials => "wrong user name or password of the sentinels",
            Self::NotASentinel => {
                "the server given as a sentinel is not a sentinel: name the sentinels in the Redis URL"
            }
            Self::UnknownService => {
                "the sentinels know no primary of this name: correct sentinelServiceName"
            }
            Self::NotACluster => "no cluster: use redis:// in the Redis URL",
            Self::IsACluster => "a cluster: use redis-cluster:// in the Redis URL",
            Self::UnknownCommand(command) => return Cow::Owned(format!("no command {command}")),
            Self::Database => "no database of this number",
            Self::ReadOnly => "read-only replica",
            Self::Permission { missing, .. } => return Cow::Owned(permission(missing)),
            Self::OutOfMemory => "memory full",
            Self::Unexpected(text) if text.contains(NO_FUNCTION) => "functions not loaded",
            Self::Unexpected(_) => "unexpected reply",
            Self::Migration(_) => "functions of another release",
        };
        Cow::Borrowed(summary)
    }

    /// Returns whether every attempt fails in the same way until an operator corrects the Redis URL
    /// or the server.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Url(_)
            | Self::Credentials
            | Self::SentinelCredentials
            | Self::NotASentinel
            | Self::UnknownService
            | Self::NotACluster
            | Self::IsACluster
            | Self::UnknownCommand(_)
            | Self::Database
            | Self::Permission { .. }
            | Self::Migration(_) => true,
            // A server is read-only for a while when another one became the primary.
            Self::Unavailable(_) | Self::ReadOnly | Self::OutOfMemory | Self::Unexpected(_) => {
                false
            }
        }
    }
}

/// The error of the functions on a server whose primary lease is over.
pub(super) const DOUBTFUL: &str = "DOUBTFUL";
const NO_FUNCTION: &str = "Function not found";
const NO_SETNAME: &str = "Failed to set client name";
const NO_CLUSTER: &str = "cluster support disabled";
const NO_COMMAND: &str = "unknown command ";
/// The errors of a sentinel, and of the client library, for a name that the sentinels do not know.
const NO_SERVICE: [&str; 2] = ["No such master with that name", "Missing primary address"];

/// The errors of Redis for a number of a database that it does not have. A cluster has one
/// database.
const NO_DATABASE: [&str; 2] =
    ["DB index is out of range", "SELECT is not allowed in cluster mode"];

/// The errors of Redis while it takes no writes, with their meanings.
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
    let state = STATES.iter().find(|(code, _)| details.starts_with(code));
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

/// Returns whether another node of a cluster has the slot.
pub(super) fn is_moved(error: &Error) -> bool {
    let details = error.details();
    details.starts_with("MOVED") || details.starts_with("Too many redirections")
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
        || STATES.iter().any(|(code, _)| error.details().starts_with(code))
}

pub(super) fn refuses_credentials(error: &Error) -> bool {
    ["WRONGPASS", "NOAUTH"].iter().any(|code| error.details().starts_with(code))
}

pub(super) fn classify(error: Error) -> RedisError {
    let details = error.details();
    if details.contains("OOM ") {
        RedisError::OutOfMemory
    } else if refuses_credentials(&error) {
        RedisError::Credentials
    } else if NO_DATABASE.iter().any(|text| details.contains(text)) {
        RedisError::Database
    } else if details.starts_with("READONLY") {
        RedisError::ReadOnly
    } else if details.contains(NO_CLUSTER) {
        RedisError::NotACluster
    } else if NO_SERVICE.iter().any(|text| details.contains(text)) {
        RedisError::UnknownService
    } else if let Some(command) = unknown_command(details) {
        match command.as_str() {
            "SENTINEL" => RedisError::NotASentinel,
            _ => RedisError::UnknownCommand(command),
        }
    } else if let Some(missing) = missing_permission(details) {
        RedisError::Permission { missing, details: details.to_owned() }
    } else if is_unavailable(&error) {
        RedisError::Unavailable(error)
    } else {
        RedisError::Unexpected(details.to_owned())
    }
}

/// Returns the command that the server does not know, if that is the error. The rest of the error
/// repeats the arguments, a password among them.
fn unknown_command(details: &str) -> Option<String> {
    let (_, rest) = details.split_once(NO_COMMAND)?;
    let command: String = rest
        .chars()
        .skip_while(|quote| !quote.is_ascii_alphanumeric())
        .take_while(|letter| letter.is_ascii_alphanumeric() || "._|-".contains(*letter))
        .collect();
    Some(command.to_uppercase())
}

/// Returns the permission that the user lacks, if that is the error. Redis has one text for a
/// command by itself, and for a command in a function another one in 7.0 than in later releases.
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
    fn a_refusal_of_redis_is_summarised_without_user_names() {
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
            (
                "ERR This instance has cluster support disabled",
                "no cluster: use redis:// in the Redis URL",
            ),
            (
                "ERR unknown command 'SENTINEL', with args beginning with: 'MASTER' 'm' ",
                "the server given as a sentinel is not a sentinel: name the sentinels in the Redis URL",
            ),
            (
                "ERR unknown command `hello`, with args beginning with: `3` `AUTH` `ann` `Secret` ",
                "no command HELLO",
            ),
            (
                "ERR No such master with that name",
                "the sentinels know no primary of this name: correct sentinelServiceName",
            ),
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
