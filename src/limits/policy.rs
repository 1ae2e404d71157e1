//! The limits, and the state of a limit.

use std::time::Duration;

use crate::config::LimitSettings;
use crate::session::Owner;
use crate::source::Source;
use crate::telemetry::metric;

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

/// A limit of what one caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LimitKind {
    /// Requests a minute of a user.
    UserRequests,
    /// Turns a minute of a user.
    UserTurns,
    /// Tokens a day of a user.
    UserTokens,
    /// Open sockets of a user.
    UserSockets,
    /// Requests a minute with an API key.
    KeyRequests,
    /// Turns a minute with an API key.
    KeyTurns,
    /// Requests a minute from an address.
    AddressRequests,
    /// Turns a minute from an address.
    AddressTurns,
    /// Sessions a day that an address begins.
    AddressSessions,
    /// Open sockets of an address, at one replica.
    AddressSockets,
}

impl LimitKind {
    /// Returns the name in headers, in replies, and as a label of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserRequests => "user-requests",
            Self::UserTurns => "user-turns",
            Self::UserTokens => "user-tokens",
            Self::UserSockets => "user-sockets",
            Self::KeyRequests => "key-requests",
            Self::KeyTurns => "key-turns",
            Self::AddressRequests => "address-requests",
            Self::AddressTurns => "address-turns",
            Self::AddressSessions => "address-sessions",
            Self::AddressSockets => "address-sockets",
        }
    }

    /// Returns what is counted.
    pub fn unit(self) -> &'static str {
        match self {
            Self::UserRequests | Self::KeyRequests | Self::AddressRequests => "requests",
            Self::UserTurns | Self::KeyTurns | Self::AddressTurns => "turns",
            Self::UserTokens => "tokens",
            Self::AddressSessions => "sessions",
            Self::UserSockets | Self::AddressSockets => "sockets",
        }
    }

    /// Returns the time in which all of the limit comes back; none for what is open at a time.
    pub fn window(self) -> Option<Duration> {
        match self {
            Self::UserTokens | Self::AddressSessions => Some(DAY),
            Self::UserSockets | Self::AddressSockets => None,
            _ => Some(MINUTE),
        }
    }

    /// Returns the code of a refusal by this limit.
    pub fn code(self) -> &'static str {
        if self.window() == Some(DAY) { "quota_exceeded" } else { "rate_limited" }
    }

    /// Returns whether each request counts, whatever it is for.
    pub(super) fn is_of_requests(self) -> bool {
        self.unit() == "requests"
    }

    fn subject(self) -> &'static str {
        match self {
            Self::UserRequests | Self::UserTurns | Self::UserTokens | Self::UserSockets => "user",
            Self::KeyRequests | Self::KeyTurns => "API key",
            Self::AddressRequests
            | Self::AddressTurns
            | Self::AddressSessions
            | Self::AddressSockets => "address",
        }
    }
}

/// Returns the quota of a limit; 0 where there is none. The limit of sockets of an address is
/// elsewhere: each replica has its own count of them.
pub(super) fn quota(settings: &LimitSettings, kind: LimitKind) -> u64 {
    u64::from(match kind {
        LimitKind::UserRequests => settings.user_requests_per_minute,
        LimitKind::UserTurns => settings.user_turns_per_minute,
        LimitKind::UserTokens => settings.user_tokens_per_day,
        LimitKind::UserSockets => settings.user_sockets,
        LimitKind::KeyRequests => settings.key_requests_per_minute,
        LimitKind::KeyTurns => settings.key_turns_per_minute,
        LimitKind::AddressRequests => settings.address_requests_per_minute,
        LimitKind::AddressTurns => settings.address_turns_per_minute,
        LimitKind::AddressSessions => settings.address_sessions_per_day,
        LimitKind::AddressSockets => 0,
    })
}

/// The subject whose limits a request counts for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The caller.
    pub owner: Owner,
    /// The identifier of the API key that the caller signed in by.
    pub key: Option<String>,
    /// The caller's network.
    pub source: Source,
}

/// The kind of a request, which decides the limits that it counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Any request.
    Plain,
    /// A request that begins a turn.
    Turn,
    /// A handshake, or the request of an event stream without an end.
    Socket,
}

/// How much of a limit is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The limit.
    pub kind: LimitKind,
    /// All of it.
    pub quota: u64,
    /// The part of the quota that is in use; more than the quota where more tokens were used than were left.
    pub used: u64,
    /// The time until all of it is back; zero for what is open at a time.
    pub reset: Duration,
}

impl Standing {
    /// Returns what is left.
    pub fn remaining(&self) -> u64 {
        self.quota.saturating_sub(self.used)
    }

    /// Returns the standing after so much of it was given back.
    #[must_use]
    pub(super) fn given_back(self, count: u64) -> Self {
        let interval = interval_us(self.kind, self.quota);
        let reset = self.reset.saturating_sub(Duration::from_micros(interval * count));
        Self { used: self.used.saturating_sub(count), reset, ..self }
    }
}

/// A refusal by a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.detail())]
pub struct LimitRefusal {
    /// The state of each limit; first the one that refuses.
    pub standings: Vec<Standing>,
    /// The time until the same request is not refused, if the caller does nothing else.
    pub retry_after: Duration,
}

impl LimitRefusal {
    /// Returns the limit that refuses.
    pub fn kind(&self) -> LimitKind {
        self.standings.first().map_or(LimitKind::UserRequests, |standing| standing.kind)
    }

    /// Returns the seconds until the same request is not refused, at least 1.
    pub fn retry_seconds(&self) -> u64 {
        self.retry_after.as_micros().div_ceil(1_000_000).max(1).try_into().unwrap_or(u64::MAX)
    }

    /// Counts the refusal.
    pub fn count(&self) {
        let limit = self.kind().name();
        metrics::counter!(metric::LIMIT_REFUSALS_TOTAL, "limit" => limit).increment(1);
    }

    fn detail(&self) -> String {
        let (kind, seconds) = (self.kind(), self.retry_seconds());
        let quota = self.standings.first().map_or(0, |standing| standing.quota);
        let (unit, subject) = (kind.unit(), kind.subject());
        let window = match kind.window() {
            Some(DAY) => " in a day",
            Some(_) => " in a minute",
            None => " at a time",
        };
        format!("This {subject} may have {quota} {unit}{window}; retry after {seconds} s.")
    }
}

/// Returns the microseconds in which one unit of a limit comes back: rounded up, so that never more
/// than the quota does in one window.
pub(super) fn interval_us(kind: LimitKind, quota: u64) -> u64 {
    let window = kind.window().map_or(0, |window| window.as_micros());
    u64::try_from(window).unwrap_or(u64::MAX).div_ceil(quota.max(1)).max(1)
}
