//! Reconciles this replica's tickets with Redis every second: reports the hosts, learns the status of
//! its tickets, restores what Redis forgot and releases what this replica does not hold.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use super::QueueInner;
use super::store::{Report, Tick, TicketReply, TicketStatus};
use crate::lifecycle::TaskEnd;
use crate::redis::RedisError;
use crate::session::GenerationId;
use crate::telemetry::metric;

/// Time between two rounds; a position is published at most as often.
const EVERY: Duration = Duration::from_secs(1);
/// Time limit of one round.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn keep(inner: Arc<QueueInner>) -> TaskEnd {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut strangers = HashSet::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = inner.look.notified() => {}
        }
        match timeout(LIMIT, round(&inner, &mut strangers)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "queue reconciliation failed; retrying"),
            Err(_) => tracing::debug!("queue reconciliation timed out; retrying"),
        }
    }
}

async fn round(
    inner: &Arc<QueueInner>,
    strangers: &mut HashSet<GenerationId>,
) -> Result<(), RedisError> {
    if inner.leaves.load(Ordering::Relaxed) {
        return Ok(());
    }
    let hosts = (inner.hosts)();
    let report = Report::of(&hosts);
    let mut tick = inner.store.tick().await?;
    // A running generation's slot is restored before another ticket can get it.
    let held = compare_all(inner, |status| matches!(status, TicketStatus::Granted(_))).await?;
    if tick.digest != report.digest {
        inner.store.send(&report).await?;
        *inner.reported() = hosts;
        tick = inner.store.tick().await?;
    }
    set_gauges(inner, &tick);
    let waiting = compare_all(inner, |status| matches!(status, TicketStatus::Waiting(_))).await?;
    if tick.holdings == held + waiting {
        strangers.clear();
        return Ok(());
    }
    let found = inner.store.holdings().await?;
    let unknown: HashSet<_> = {
        let own = inner.tickets();
        found.into_iter().filter(|generation| !own.contains_key(generation)).collect()
    };
    // Twice in a row: a ticket that is just being released is no stranger.
    for generation in unknown.intersection(strangers) {
        tracing::debug!(%generation, "gives up a slot or a status that nobody here holds");
        inner.store.release(*generation).await?;
    }
    *strangers = unknown;
    Ok(())
}

fn set_gauges(inner: &QueueInner, tick: &Tick) {
    inner.waiting.store(tick.waiting, Ordering::Relaxed);
    metrics::gauge!(metric::QUEUE_DEPTH).set(tick.waiting as f64);
    let (used, slots) = tick
        .hosts
        .iter()
        .fold((0, 0), |(used, slots), host| (used + host.used, slots + host.slots));
    let wanted = (tick.waiting as f64 + used as f64) / slots.max(1) as f64;
    metrics::gauge!(metric::TURNS_PER_SLOT).set(wanted);
    for host in &tick.hosts {
        let name = host.name.0.clone();
        metrics::gauge!(metric::SLOTS_USED, "host" => name.clone()).set(host.used as f64);
        metrics::gauge!(metric::SLOTS_TOTAL, "host" => name.clone()).set(host.slots as f64);
        let over = host.used.saturating_sub(host.slots);
        metrics::gauge!(metric::SLOTS_OVER, "host" => name).set(over as f64);
    }
}

/// Compares the status of the tickets that are `wanted`. Returns how many there are.
async fn compare_all(
    inner: &Arc<QueueInner>,
    wanted: impl Fn(&TicketStatus) -> bool,
) -> Result<usize, RedisError> {
    let pending: Vec<(GenerationId, u64, u64)> = {
        let own = inner.tickets();
        let wanted = own.iter().filter(|(_, own)| wanted(&own.status.borrow()));
        wanted.map(|(id, own)| (*id, own.calls, own.grants)).collect()
    };
    let ids: Vec<_> = pending.iter().map(|(id, ..)| *id).collect();
    let reply = inner.store.statuses(&ids).await?;
    for ((generation, calls, grants), reply) in pending.iter().zip(reply) {
        compare(inner, *generation, *calls, *grants, reply).await?;
    }
    Ok(ids.len())
}

/// Reconciles one ticket: what Redis replied, and what this replica knows.
async fn compare(
    inner: &QueueInner,
    generation: GenerationId,
    calls: u64,
    grants: u64,
    reply: TicketReply,
) -> Result<(), RedisError> {
    let (held, ticket, start) = {
        let mut own = inner.tickets();
        let Some(own) = own.get_mut(&generation) else { return Ok(()) };
        if own.under_way || own.calls != calls || own.grants != grants {
            return Ok(());
        }
        let here = own.status.borrow().clone();
        match (here, reply.status) {
            (TicketStatus::Granted(here), TicketStatus::Granted(there)) if here == there => {
                return Ok(());
            }
            (TicketStatus::Granted(here), _) => {
                (Some(here), own.ticket.clone(), own.start.clone().unwrap_or_default())
            }
            (TicketStatus::Waiting(_), TicketStatus::Gone) => {
                (None, own.ticket.clone(), own.start.clone().unwrap_or_default())
            }
            (TicketStatus::Waiting(_), status) => {
                own.learn(TicketReply { status, start: reply.start }, grants);
                return Ok(());
            }
            _ => return Ok(()),
        }
    };
    let Some(held) = held else {
        let reply = inner.store.join(&ticket, Some(&start)).await?;
        if let Some(own) = inner.tickets().get_mut(&generation) {
            own.learn(reply, grants);
        }
        return Ok(());
    };
    tracing::warn!(%generation, "redis forgot a slot; restoring it");
    if let Some(number) = inner.store.restore(&ticket, &held.host, &start).await?
        && let Some(own) = inner.tickets().get_mut(&generation)
        && own.calls == calls
    {
        own.grants = number;
        own.set(TicketStatus::Granted(super::Grant { host: held.host, number }));
    }
    Ok(())
}
