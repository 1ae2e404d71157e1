//! Tickets, and what Redis replies about them.

use std::time::Duration;

use super::hosts::HostKey;
use crate::session::GenerationId;

/// Bounds of the queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Tickets that may wait.
    pub waiting: usize,
    /// Tickets of one source that may wait. The next wider network may have twice as many, and so
    /// on.
    pub waiting_of_source: usize,
    /// Tickets of one address that may hold slots. The next wider network may have twice as many, and so
    /// on.
    pub running_of_address: usize,
}

/// The source of a ticket, whose share of the queue is bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TicketSource {
    /// The signed-in user, or the address; empty where no share is bounded.
    pub name: String,
    /// The wider networks around an address, which have shares, rounds and bounds of their own; the
    /// smallest first.
    pub networks: Vec<String>,
}

/// A generation's request for a slot.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The generation. Its position belongs to this identifier, whichever replica holds the ticket.
    pub generation: GenerationId,
    /// The user between whom and all others the slots are shared fairly: the signed-in user, the
    /// address, or the session where neither is known.
    pub user: String,
    /// The source.
    pub source: TicketSource,
    /// Whether the source is an address, whose running tickets are bounded.
    pub is_of_address: bool,
    /// The model, with its model tag.
    pub model: String,
    /// The session, whose prompt a host may have in its cache.
    pub session: String,
    /// Digests of the conversation and of its beginnings, the longest first, where it comes with the
    /// request: a host may have one of them in its cache. The whole is noted for its host.
    pub prefixes: Vec<String>,
    /// Whether the answer has text: the ticket then goes before all others.
    pub has_text: bool,
}

/// The state of a ticket in Redis.
#[derive(Clone, Debug, PartialEq)]
pub enum TicketStatus {
    /// The ticket holds a slot.
    Granted(Grant),
    /// The ticket waits for a slot.
    Waiting(Waiting),
    /// The queue is full; there is room after this time, where that is known.
    Full(Option<Duration>),
    /// The source has as many waiting tickets as it may; there is room after this time.
    Crowded(Option<Duration>),
    /// Redis does not have the ticket, or another replica holds it.
    Gone,
}

/// The right of a ticket to a slot on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The host.
    pub host: HostKey,
    /// The number of this grant over the ticket's life, by which a late notification of an earlier
    /// grant is recognised.
    pub number: u64,
}

/// A position in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The position, from 1.
    pub position: u64,
    /// The estimated time until a grant; none before any turn was measured.
    pub eta: Option<Duration>,
    /// Hosts that have the model and can be reached from here.
    pub hosts: u64,
}

/// The status of a ticket, and the start by which it is ordered.
#[derive(Clone, Debug, PartialEq)]
pub struct TicketReply {
    /// The status.
    pub status: TicketStatus,
    /// The ticket's start, to be sent again if Redis forgets the ticket.
    pub start: Option<String>,
}

/// Why a grant is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// How long the ticket does not get this host.
    pub excluded: Duration,
    /// How long no ticket gets this host, because it is full although its slots are not.
    pub full: Duration,
    /// Whether the answer has text by now.
    pub has_text: bool,
}

/// Whether there is room in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// There is room.
    Some,
    /// There is no room for this time, where that is known.
    NoneFor(Option<Duration>),
}

/// Parses a grant that was published on a replica's channel.
pub(super) fn parse_grant(payload: &str) -> Option<(GenerationId, Grant)> {
    let mut fields = payload.splitn(3, ' ');
    let generation = fields.next()?.parse().ok()?;
    let number = fields.next()?.parse().ok()?;
    Some((generation, Grant { host: HostKey(fields.next()?.to_owned()), number }))
}
