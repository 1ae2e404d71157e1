//! The queue in Redis: the functions that change it.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use fred::prelude::Value;
use serde::Serialize;

use super::keys;
use crate::digest::sha256_hex;
use crate::redis::{Call, Redis, RedisError};
use crate::session::GenerationId;

/// Tickets whose status is asked for in one call, so that none blocks Redis for long.
pub(super) const STATUSES_AT_ONCE: usize = 100;

/// The stable name of a model host: what all replicas call it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct HostKey(pub String);

/// Bounds of the queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Tickets that may wait.
    pub waiting: usize,
    /// Tickets of one source that may wait.
    pub waiting_of_source: usize,
}

/// A generation's request for a slot.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The generation. Its position belongs to this identifier, whichever replica holds the ticket.
    pub generation: GenerationId,
    /// The user between whom and all others the slots are shared fairly.
    pub user: String,
    /// The source whose share of the queue is bounded; empty where none is.
    pub source: String,
    /// The model, with its tag.
    pub model: String,
    /// The session, whose prompt a host may have in its cache.
    pub session: String,
    /// Whether the answer has text: the ticket then goes before all others.
    pub has_text: bool,
}

/// What Redis knows of a ticket.
#[derive(Clone, Debug, PartialEq)]
pub enum TicketStatus {
    /// It holds a slot.
    Granted(Grant),
    /// It waits for a slot.
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

/// Whether a replica may use a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostAccess {
    /// Its connections work.
    Open,
    /// Its breaker admits one trial.
    Trial,
    /// Its breaker is open.
    Shut,
}

/// What a replica reports of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostReport {
    /// The host.
    pub name: HostKey,
    /// Concurrent generations, at least 1.
    pub slots: usize,
    /// Whether this replica may use it.
    pub via: HostAccess,
    /// The number of trials so far, so that each trial is a report of its own.
    pub trials: u64,
    /// The models of the host, with their tags, and whether each is loaded.
    pub models: BTreeMap<String, bool>,
}

/// A report, as Redis gets it.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub digest: String,
    json: String,
}

impl Report {
    pub(super) fn of(hosts: &[HostReport]) -> Self {
        let json = serde_json::to_string(hosts).unwrap_or_else(|_| "[]".to_owned());
        let mut digest = sha256_hex(json.as_bytes());
        digest.truncate(16);
        Self { digest, json }
    }
}

/// The state of the queue at a tick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Digest of the report that Redis has of this replica; empty where that was lost.
    pub(super) digest: String,
    /// Tickets in this replica's name.
    pub holdings: usize,
    /// Waiting tickets of all replicas.
    pub waiting: usize,
    /// Every host.
    pub hosts: Vec<HostUse>,
}

/// How much of a host is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostUse {
    /// The host.
    pub name: HostKey,
    /// Concurrent generations that it may have.
    pub slots: u64,
    /// Concurrent generations that it has. More than its slots where a replica that was declared
    /// gone still runs.
    pub used: u64,
}

/// Why a grant is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// How long the ticket does not get this host.
    pub excluded: Duration,
    /// How long no ticket gets this host: it is full, whatever its slots say.
    pub full: Duration,
    /// Whether the answer has text by now.
    pub has_text: bool,
}

/// Whether there is room in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// There is room.
    Some,
    /// There is none for this time, where that is known.
    NoneFor(Option<Duration>),
}

/// The outcome of freeing a replica's holdings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// All are freed.
    All,
    /// The replica is alive: its heartbeat has moved.
    Alive,
}

/// The functions of the queue, called in the name of one replica.
#[derive(Clone)]
pub struct QueueStore {
    redis: Redis,
    replica: String,
    limits: QueueLimits,
}

/// Parses a grant that was published on a replica's channel.
pub(super) fn announced(payload: &str) -> Option<(GenerationId, Grant)> {
    let mut words = payload.splitn(3, ' ');
    let generation = words.next()?.parse().ok()?;
    let number = words.next()?.parse().ok()?;
    Some((generation, Grant { host: HostKey(words.next()?.to_owned()), number }))
}

impl QueueStore {
    /// Creates a queue whose tickets are held in the name of `replica`.
    pub fn new(redis: Redis, replica: String, limits: QueueLimits) -> Self {
        Self { redis, replica, limits }
    }

    /// The replica in whose name tickets are held.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// The bounds.
    pub fn limits(&self) -> QueueLimits {
        self.limits
    }

    /// Joins the queue, or takes a slot where one is free. A repeat returns the status; after a
    /// takeover the ticket keeps its position. `start` is the ticket's start, where Redis forgot it.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn join(
        &self,
        ticket: &Ticket,
        start: Option<&str>,
    ) -> Result<TicketReply, RedisError> {
        let call = self
            .call("jarvis_queue_join_1", ticket.generation)
            .arg("user", ticket.user.as_str())
            .arg("source", ticket.source.as_str())
            .arg("model", ticket.model.as_str())
            .arg("session", ticket.session.as_str())
            .flag("has_text", ticket.has_text)
            .arg("start", start.unwrap_or_default())
            .text("waiting_limit", self.limits.waiting)
            .text("source_limit", self.limits.waiting_of_source);
        ticket_reply(&self.redis.call(call).await?)
    }

    /// Returns a granted slot and keeps the position. The reply may be another grant.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn give_back(
        &self,
        generation: GenerationId,
        grant: &Grant,
        why: Returned,
    ) -> Result<TicketReply, RedisError> {
        let call = self
            .call("jarvis_queue_give_back_1", generation)
            .arg("host", grant.host.0.as_str())
            .text("grant", grant.number)
            .flag("has_text", why.has_text)
            .text("excluded_ms", why.excluded.as_millis())
            .text("full_ms", why.full.as_millis());
        ticket_reply(&self.redis.call(call).await?)
    }

    /// Releases the slot or the position.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn release(&self, generation: GenerationId) -> Result<(), RedisError> {
        let call = self.call("jarvis_queue_release_1", generation);
        self.redis.call::<String>(call).await.map(drop)
    }

    /// Restores a slot that is in use and that Redis forgot, beyond its host's slots if need be.
    /// Returns the grant's number; none where another replica holds the ticket.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn restore(
        &self,
        ticket: &Ticket,
        host: &HostKey,
        start: &str,
    ) -> Result<Option<u64>, RedisError> {
        let call = self
            .call("jarvis_queue_restore_1", ticket.generation)
            .arg("host", host.0.as_str())
            .arg("user", ticket.user.as_str())
            .arg("source", ticket.source.as_str())
            .arg("model", ticket.model.as_str())
            .arg("session", ticket.session.as_str())
            .arg("start", start);
        let reply: String = self.redis.call(call).await?;
        Ok(reply.parse().ok())
    }

    /// Reports the hosts as this replica sees them; replaces its earlier report.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn report(&self, hosts: &[HostReport]) -> Result<(), RedisError> {
        self.send(&Report::of(hosts)).await
    }

    pub(super) async fn send(&self, report: &Report) -> Result<(), RedisError> {
        let call = self
            .call_of_replica("jarvis_queue_report_1")
            .arg("digest", report.digest.as_str())
            .arg("hosts", report.json.as_str());
        self.redis.call::<String>(call).await.map(drop)
    }

    /// Grants slots that the passing of time made free, and returns the state of the queue.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn tick(&self) -> Result<Tick, RedisError> {
        let reply: Vec<String> =
            self.redis.call(self.call_of_replica("jarvis_queue_tick_1")).await?;
        let number = |text: &String| text.parse().map_err(|_| unexpected("tick"));
        let [digest, holdings, waiting, hosts @ ..] = reply.as_slice() else {
            return Err(unexpected("tick"));
        };
        let hosts = hosts.chunks_exact(3).map(|host| {
            let (slots, used) = (number(&host[1])?, number(&host[2])?);
            Ok(HostUse { name: HostKey(host[0].clone()), slots, used })
        });
        Ok(Tick {
            digest: digest.clone(),
            holdings: number(holdings)? as usize,
            waiting: number(waiting)? as usize,
            hosts: hosts.collect::<Result<_, RedisError>>()?,
        })
    }

    /// The status of tickets, in their order.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn statuses(&self, tickets: &[GenerationId]) -> Result<Vec<TicketReply>, RedisError> {
        let mut all = Vec::with_capacity(tickets.len());
        for chunk in tickets.chunks(STATUSES_AT_ONCE) {
            let generations = chunk.iter().map(|ticket| ticket.to_string().into());
            let call =
                self.call_of_replica("jarvis_queue_statuses_1").rest("generations", generations);
            let reply: Vec<Value> = self.redis.call_readonly(call).await?;
            if reply.len() != chunk.len() {
                return Err(unexpected("statuses"));
            }
            for value in &reply {
                all.push(ticket_reply(value)?);
            }
        }
        Ok(all)
    }

    /// Whether there is room for a ticket of this model.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn room(&self, model: &str) -> Result<Room, RedisError> {
        let call = self
            .call_of_replica("jarvis_queue_room_1")
            .arg("model", model)
            .text("waiting_limit", self.limits.waiting);
        let reply: Vec<String> = self.redis.call(call).await?;
        match reply.as_slice() {
            [word] if word == "room" => Ok(Room::Some),
            [word, after] if word == "full" => {
                Ok(Room::NoneFor(after.parse().ok().map(Duration::from_millis)))
            }
            _ => Err(unexpected("room")),
        }
    }

    /// The generations in this replica's name.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn holdings(&self) -> Result<HashSet<GenerationId>, RedisError> {
        let mut all = HashSet::new();
        let mut from = "0".to_owned();
        loop {
            let call = self.call_of_replica("jarvis_queue_holdings_1").arg("from", from.as_str());
            let reply: Vec<String> = self.redis.call_readonly(call).await?;
            let [next, some @ ..] = reply.as_slice() else { return Err(unexpected("holdings")) };
            for id in some {
                all.insert(id.parse().map_err(|_| unexpected("holdings"))?);
            }
            if next == "0" {
                return Ok(all);
            }
            next.clone_into(&mut from);
        }
    }

    /// Frees everything in the name of a replica whose heartbeat stopped at `counter`, or that has
    /// none. Its tickets keep their positions for ten minutes, for the replica that takes the turns
    /// over.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn free(&self, replica: &str, counter: Option<i64>) -> Result<Freed, RedisError> {
        let counter = counter.map(|counter| counter.to_string()).unwrap_or_default();
        self.free_as(&counter, replica).await
    }

    async fn free_as(&self, counter: &str, replica: &str) -> Result<Freed, RedisError> {
        loop {
            let call = keys::call("jarvis_queue_free_1")
                .key("heartbeats", keys::HEARTBEATS.to_owned())
                .arg("replica", replica)
                .arg("counter", counter);
            let reply: String = self.redis.call(call).await?;
            match reply.as_str() {
                "ok" => return Ok(Freed::All),
                "more" => {}
                "alive" => return Ok(Freed::Alive),
                _ => return Err(unexpected("free")),
            }
        }
    }

    /// Frees everything in the name of this replica. Positions are kept for ten minutes.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn sign_off(&self) -> Result<(), RedisError> {
        self.free_as("self", &self.replica).await.map(drop)
    }

    /// A call about a ticket of this replica.
    fn call(&self, function: &'static str, generation: GenerationId) -> Call {
        let call = keys::call(function).text("generation", generation);
        call.arg("replica", self.replica.as_str())
    }

    /// A call about this replica.
    fn call_of_replica(&self, function: &'static str) -> Call {
        keys::call(function).arg("replica", self.replica.as_str())
    }
}

fn ticket_reply(value: &Value) -> Result<TicketReply, RedisError> {
    let Value::Array(fields) = value else { return Err(unexpected("place")) };
    let text = |at: usize| fields.get(at).and_then(Value::as_string);
    let number = |at: usize| fields.get(at).and_then(Value::as_i64);
    let count = |at: usize| {
        number(at).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| unexpected("place"))
    };
    let time =
        |at: usize| number(at).and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
    let kind = text(0).unwrap_or_default();
    let (status, start) = match kind.as_str() {
        "granted" => {
            let host = HostKey(text(1).ok_or_else(|| unexpected("place"))?);
            (TicketStatus::Granted(Grant { host, number: count(2)? }), text(3))
        }
        "waiting" => {
            let waiting = Waiting { position: count(1)?, eta: time(2), hosts: count(4)? };
            (TicketStatus::Waiting(waiting), text(3))
        }
        "full" => (TicketStatus::Full(time(1)), None),
        "crowded" => (TicketStatus::Crowded(time(1)), None),
        "gone" => (TicketStatus::Gone, None),
        _ => return Err(unexpected("place")),
    };
    Ok(TicketReply { status, start })
}

fn unexpected(what: &str) -> RedisError {
    RedisError::Unexpected(format!("the reply of the queue's {what} has an unknown form"))
}
