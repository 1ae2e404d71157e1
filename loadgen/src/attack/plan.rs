//! The attacks: what each sends, and from which addresses.

use clap::ValueEnum;

use super::Attack;
use super::connections::{self, Connections};
use super::floods::{self, Flood, FloodPlan};
use super::target::{Addresses, Target};

/// The addresses of a flood from many addresses. Each may send 120 turns a minute.
const MANY: usize = 500;

/// An attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttackKind {
    /// Requests that are refused with 413 and 503, from many addresses
    Refused,
    /// The same from one address
    RefusedOne,
    /// New anonymous sessions, from many addresses
    Sessions,
    /// The same from one address
    SessionsOne,
    /// The largest bodies over every API, from many addresses
    Large,
    /// Slow heads and bodies over HTTP/1
    SlowHttp1,
    /// The same over HTTP/2
    SlowHttp2,
    /// Garbage, fragments that never end, floods of pings
    Garbage,
    /// One address that opens sockets in a loop
    Sockets,
    /// One address that fills its share of the queue
    Queue,
}

impl AttackKind {
    /// Returns what the attack is, in words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Refused => "refused requests, many addresses",
            Self::RefusedOne => "refused requests, one address",
            Self::Sessions => "new sessions, many addresses",
            Self::SessionsOne => "new sessions, one address",
            Self::Large => "large bodies, many addresses",
            Self::SlowHttp1 => "slow connections, HTTP/1",
            Self::SlowHttp2 => "slow connections, HTTP/2",
            Self::Garbage => "garbage, endless fragments, pings",
            Self::Sockets => "one address opens sockets",
            Self::Queue => "one address fills the queue",
        }
    }

    /// Attacks until the time is over.
    pub async fn run(self, target: &Target, attack: &Attack) {
        let addresses = |count| Addresses { attack: 64 + self as u8, count };
        let flood = |flood, count| {
            let plan =
                FloodPlan { flood, per_minute: attack.per_minute, addresses: addresses(count) };
            floods::run(target, plan)
        };
        let hold = |kind| {
            let (count, seed) = (attack.connections, attack.load.seed);
            connections::run(target, kind, count, addresses(MANY), seed)
        };
        match self {
            Self::Refused => flood(Flood::Refused, MANY).await,
            Self::RefusedOne => flood(Flood::Refused, 1).await,
            Self::Sessions => flood(Flood::Sessions, MANY).await,
            Self::SessionsOne => flood(Flood::Sessions, 1).await,
            Self::Large => flood(Flood::Large, MANY).await,
            Self::SlowHttp1 => hold(Connections::SlowHttp1).await,
            Self::SlowHttp2 => hold(Connections::SlowHttp2).await,
            Self::Garbage => hold(Connections::Garbage).await,
            Self::Sockets => connections::open_in_a_loop(target, addresses(1)).await,
            Self::Queue => flood(Flood::Queue, 1).await,
        }
    }
}
