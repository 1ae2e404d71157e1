//! The attacks: what each sends, and from which addresses.

use clap::ValueEnum;
use futures_util::future::join_all;

use super::Attack;
use super::connections::{self, Connections};
use super::floods::{self, Flood, FloodPlan};
use super::target::{Addresses, Target};
use super::unread;

/// The addresses of a flood from many addresses. Each may send 120 turns a minute.
const MANY: usize = 500;

/// The addresses that leave replies unread: each may take a quarter of the room for them.
const UNREAD_SHARES: usize = 3;
/// The MiB of that room.
const UNREAD_MIB: f64 = 128.0;

/// The second byte of the first addresses of attacks, and how many attacks have addresses behind it.
const FIRST_BLOCK: u8 = 64;
const BLOCK: u8 = 16;

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
    /// Sockets that are established, and then misbehave within what keeps them open
    GarbageSockets,
    /// Pages, event streams and histories that three addresses ask for and do not read
    Unread,
    /// One address that opens sockets in a loop
    Sockets,
    /// One address that fills its share of the queue
    Queue,
    /// Refused requests, new sessions and large bodies at once, a third of the rate each
    Floods,
    /// Slow connections, garbage, sockets and the queue at once
    Everything,
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
            Self::GarbageSockets => "established sockets misbehave",
            Self::Unread => "replies that nobody reads",
            Self::Sockets => "one address opens sockets",
            Self::Queue => "one address fills the queue",
            Self::Floods => "all floods at once",
            Self::Everything => "slow, garbage, sockets, queue at once",
        }
    }

    /// Returns the MiB that a replica may keep of what this sends for a minute after it, beside the
    /// factor that memory may grow by: images, redo entries and copies, which a failover of Redis may
    /// need, have 64 MiB each; replies that are not read have their shares of a room.
    pub fn kept_mib(self) -> f64 {
        match self {
            Self::Large | Self::Floods => 3.0 * 64.0,
            Self::Unread => UNREAD_MIB * UNREAD_SHARES as f64 / 4.0,
            _ => 0.0,
        }
    }

    /// Returns the attacks that run at once in this one.
    fn parts(self) -> &'static [Self] {
        match self {
            Self::Floods => &[Self::Refused, Self::Sessions, Self::Large],
            Self::Everything => &[
                Self::SlowHttp1,
                Self::SlowHttp2,
                Self::Garbage,
                Self::GarbageSockets,
                Self::Sockets,
                Self::Queue,
            ],
            _ => &[],
        }
    }

    fn holds_connections(self) -> bool {
        matches!(self, Self::SlowHttp1 | Self::SlowHttp2 | Self::Garbage | Self::GarbageSockets)
    }

    fn is_flood(self) -> bool {
        matches!(self, Self::Refused | Self::Sessions | Self::Large | Self::Queue)
    }

    /// Attacks until the time is over.
    pub async fn run(self, target: &Target, attack: &Attack) {
        let parts = self.parts();
        if parts.is_empty() {
            return self.run_from(FIRST_BLOCK, target, attack).await;
        }
        // The parts claim other addresses than the attacks alone, and than those of another one.
        let block = FIRST_BLOCK + BLOCK * (1 + u8::from(self == Self::Everything));
        // As many requests and connections together as one of the parts has alone.
        let holders = parts.iter().filter(|part| part.holds_connections()).count().max(1);
        let floods = parts.iter().filter(|part| part.is_flood()).count().max(1);
        let attack = Attack {
            per_minute: attack.per_minute / u32::try_from(floods).unwrap_or(1),
            connections: attack.connections / holders,
            ..attack.clone()
        };
        join_all(parts.iter().map(|part| part.run_from(block, target, &attack))).await;
    }

    /// Attacks from the addresses of this block.
    async fn run_from(self, block: u8, target: &Target, attack: &Attack) {
        let addresses = |count| Addresses { attack: block + self as u8, count };
        let flood = |flood, count| {
            let plan =
                FloodPlan { flood, per_minute: attack.per_minute, addresses: addresses(count) };
            floods::run(target, plan)
        };
        let connections = attack.connections;
        let hold =
            |kind| connections::run(target, kind, connections, addresses(MANY), attack.load.seed);
        match self {
            Self::Refused => flood(Flood::Refused, MANY).await,
            Self::RefusedOne => flood(Flood::Refused, 1).await,
            Self::Sessions => flood(Flood::Sessions, MANY).await,
            Self::SessionsOne => flood(Flood::Sessions, 1).await,
            Self::Large => flood(Flood::Large, MANY).await,
            Self::SlowHttp1 => hold(Connections::SlowHttp1).await,
            Self::SlowHttp2 => hold(Connections::SlowHttp2).await,
            Self::Garbage => hold(Connections::Garbage).await,
            Self::GarbageSockets => hold(Connections::GarbageSockets).await,
            Self::Unread => unread::run(target, connections, addresses(UNREAD_SHARES)).await,
            Self::Sockets => connections::open_in_a_loop(target, addresses(1)).await,
            Self::Queue => flood(Flood::Queue, 1).await,
            Self::Floods | Self::Everything => {}
        }
    }
}
