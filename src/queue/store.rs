//! The queue in Redis: the functions that change it.

use std::collections::HashSet;
use std::time::Duration;

use fred::prelude::Value;

use super::hosts::{HostKey, HostReport, HostUse, Report};
use super::ticket::{
    Grant, QueueLimits, Returned, Room, Ticket, TicketReply, TicketSource, TicketStatus, Waiting,
};
use crate::redis::{Call, Redis, RedisError, keys};
use crate::session::GenerationId;

/// Tickets whose status is read in one call, so that no call blocks Redis for long.
pub(super) const STATUSES_AT_ONCE: usize = 100;

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

/// The outcome of freeing a replica's holdings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// Everything is freed.
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

impl QueueStore {
    /// Creates a queue whose tickets are held in the name of `replica`.
    pub fn new(redis: Redis, replica: String, limits: QueueLimits) -> Self {
        Self { redis, replica, limits }
    }

    /// Returns the replica in whose name tickets are held.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Returns the bounds of the queue.
    pub fn limits(&self) -> QueueLimits {
        self.limits
    }

    /// Joins the queue, or takes a slot where one is free. A repeat returns the status; after a
    /// takeover the ticket keeps its position. `start` is the ticket's start, where Redis forgot
    /// it.
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
            .arg("source", ticket.source.name.as_str())
            .arg("networks", ticket.source.networks.join(" "))
            .text("running_limit", self.running_limit(ticket))
            .arg("model", ticket.model.as_str())
            .arg("session", ticket.session.as_str())
            .arg("prefixes", ticket.prefixes.join(" "))
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
            .arg("source", ticket.source.name.as_str())
            .arg("networks", ticket.source.networks.join(" "))
            .text("running_limit", self.running_limit(ticket))
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

    /// Returns the status of each ticket, in the order of the list.
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

    /// Returns whether there is room for a ticket of this model and this source.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn room(&self, model: &str, source: &TicketSource) -> Result<Room, RedisError> {
        let call = self
            .call_of_replica("jarvis_queue_room_1")
            .arg("model", model)
            .arg("source", source.name.as_str())
            .arg("networks", source.networks.join(" "))
            .text("waiting_limit", self.limits.waiting)
            .text("source_limit", self.limits.waiting_of_source);
        let reply: Vec<String> = self.redis.call(call).await?;
        match reply.as_slice() {
            [kind] if kind == "room" => Ok(Room::Some),
            [kind, after] if kind == "full" => {
                Ok(Room::NoneFor(after.parse().ok().map(Duration::from_millis)))
            }
            _ => Err(unexpected("room")),
        }
    }

    /// Returns the generations whose tickets are in this replica's name.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn holdings(&self) -> Result<HashSet<GenerationId>, RedisError> {
        let mut all = HashSet::new();
        let mut from = "0".to_owned();
        loop {
            let call = self.call_of_replica("jarvis_queue_holdings_1").arg("from", from.as_str());
            let reply: Vec<String> = self.redis.call_readonly(call).await?;
            let [next, ids @ ..] = reply.as_slice() else { return Err(unexpected("holdings")) };
            for id in ids {
                all.insert(id.parse().map_err(|_| unexpected("holdings"))?);
            }
            if next == "0" {
                return Ok(all);
            }
            next.clone_into(&mut from);
        }
    }

    /// Frees everything in the name of a replica whose heartbeat stopped at `counter`; without a
    /// counter, of one that has no heartbeat. Its tickets keep their positions for ten minutes, for
    /// the replica that takes the turns over.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn free(&self, replica: &str, counter: Option<i64>) -> Result<Freed, RedisError> {
        let counter = counter.map(|counter| counter.to_string()).unwrap_or_default();
        self.free_as(&counter, replica).await
    }

    async fn free_as(&self, counter: &str, replica: &str) -> Result<Freed, RedisError> {
        loop {
            let call = queue_call("jarvis_queue_free_1")
                .key("heartbeats", keys::heartbeats())
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

    /// Frees everything in the name of this replica. The positions are kept for ten minutes.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn sign_off(&self) -> Result<(), RedisError> {
        self.free_as("self", &self.replica).await.map(drop)
    }

    /// Returns how many tickets of the ticket's source may hold slots; 0 where there is no bound. The
    /// function doubles it for each wider network.
    fn running_limit(&self, ticket: &Ticket) -> usize {
        if ticket.is_of_address { self.limits.running_of_address } else { 0 }
    }

    /// Creates a call about a ticket of this replica.
    fn call(&self, function: &'static str, generation: GenerationId) -> Call {
        let call = queue_call(function).text("generation", generation);
        call.arg("replica", self.replica.as_str())
    }

    /// Creates a call about this replica.
    fn call_of_replica(&self, function: &'static str) -> Call {
        queue_call(function).arg("replica", self.replica.as_str())
    }
}

/// Creates a call of a function of the queue, which makes the rest of each key
/// (`migrations/functions/include/queue/keys.lua`).
fn queue_call(function: &'static str) -> Call {
    Call::new(function).key("queue", keys::QUEUE.to_owned())
}

fn ticket_reply(value: &Value) -> Result<TicketReply, RedisError> {
    let Value::Array(fields) = value else { return Err(unexpected("ticket reply")) };
    let text = |at: usize| fields.get(at).and_then(Value::as_string);
    let number = |at: usize| fields.get(at).and_then(Value::as_i64);
    let count = |at: usize| {
        number(at).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| unexpected("ticket reply"))
    };
    let time =
        |at: usize| number(at).and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
    let kind = text(0).unwrap_or_default();
    let (status, start) = match kind.as_str() {
        "granted" => {
            let host = HostKey(text(1).ok_or_else(|| unexpected("ticket reply"))?);
            (TicketStatus::Granted(Grant { host, number: count(2)? }), text(3))
        }
        "waiting" => {
            let waiting = Waiting { position: count(1)?, eta: time(2), hosts: count(4)? };
            (TicketStatus::Waiting(waiting), text(3))
        }
        "full" => (TicketStatus::Full(time(1)), None),
        "crowded" => (TicketStatus::Crowded(time(1)), None),
        "gone" => (TicketStatus::Gone, None),
        _ => return Err(unexpected("ticket reply")),
    };
    Ok(TicketReply { status, start })
}

fn unexpected(what: &str) -> RedisError {
    RedisError::Unexpected(format!("the queue's {what} has an unknown form"))
}
