//! Reconciles this replica's tickets with Redis every second: reports the hosts, learns the status
//! of the tickets, restores slots that Redis forgot and releases tickets that this replica does not
//! hold.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use super::QueueInner;
use super::hosts::Report;
use super::store::Tick;
use super::ticket::{TicketReply, TicketStatus};
use crate::lifecycle::TaskEnd;
use crate::redis::RedisError;
use crate::session::GenerationId;
use crate::telemetry::{GaugedHosts, metric};

/// Time between two rounds; a position is published at most as often.
const EVERY: Duration = Duration::from_secs(1);
/// The hosts of the slots' gauges.
static GAUGED: GaugedHosts = GaugedHosts::none();
/// Time limit of one round.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn run(inner: Arc<QueueInner>) -> TaskEnd {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unheld_before = HashSet::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = inner.reconcile_now.notified() => {}
        }
        match timeout(LIMIT, round(&inner, &mut unheld_before)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "queue reconciliation failed; retrying"),
            Err(_) => tracing::debug!("queue reconciliation timed out; retrying"),
        }
    }
}

async fn round(
    inner: &Arc<QueueInner>,
    unheld_before: &mut HashSet<GenerationId>,
) -> Result<(), RedisError> {
    if inner.leaving.load(Ordering::Relaxed) {
        return Ok(());
    }
    let hosts = (inner.hosts)();
    let report = Report::of(&hosts);
    let mut tick = inner.store.tick().await?;
    // A running generation's slot is restored before another ticket can get it.
    let held = reconcile_all(inner, |status| matches!(status, TicketStatus::Granted(_))).await?;
    if tick.digest != report.digest {
        inner.store.send(&report).await?;
        *inner.reported() = hosts;
        tick = inner.store.tick().await?;
    }
    set_gauges(inner, &tick);
    let waiting = reconcile_all(inner, |status| matches!(status, TicketStatus::Waiting(_))).await?;
    if tick.holdings == held + waiting {
        unheld_before.clear();
        return Ok(());
    }
    let found = inner.store.holdings().await?;
    let unheld: HashSet<_> = {
        let tickets = inner.tickets();
        found.into_iter().filter(|generation| !tickets.contains_key(generation)).collect()
    };
    // Only on the second sight, because a dropped handle may be releasing its ticket just now.
    for generation in unheld.intersection(unheld_before) {
        tracing::debug!(%generation, "releasing a ticket that this replica does not hold");
        inner.store.release(*generation).await?;
    }
    *unheld_before = unheld;
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
    for gone in GAUGED.replace(tick.hosts.iter().map(|host| host.name.0.as_str())) {
        metrics::gauge!(metric::SLOTS_USED, "host" => gone.clone()).set(0.0);
        metrics::gauge!(metric::SLOTS, "host" => gone.clone()).set(0.0);
        metrics::gauge!(metric::SLOTS_OVER, "host" => gone).set(0.0);
    }
    for host in &tick.hosts {
        let name = host.name.0.clone();
        metrics::gauge!(metric::SLOTS_USED, "host" => name.clone()).set(host.used as f64);
        metrics::gauge!(metric::SLOTS, "host" => name.clone()).set(host.slots as f64);
        let over = host.used.saturating_sub(host.slots);
        metrics::gauge!(metric::SLOTS_OVER, "host" => name).set(over as f64);
    }
}

/// Reconciles the tickets whose status is `wanted`. Returns the number of them.
async fn reconcile_all(
    inner: &Arc<QueueInner>,
    wanted: impl Fn(&TicketStatus) -> bool,
) -> Result<usize, RedisError> {
    let pending: Vec<(GenerationId, u64, u64)> = {
        let tickets = inner.tickets();
        let wanted = tickets.iter().filter(|(_, local)| wanted(&local.status.borrow()));
        wanted.map(|(id, local)| (*id, local.calls, local.grants)).collect()
    };
    let ids: Vec<_> = pending.iter().map(|(id, ..)| *id).collect();
    let reply = inner.store.statuses(&ids).await?;
    for ((generation, calls, grants), reply) in pending.iter().zip(reply) {
        reconcile(inner, *generation, *calls, *grants, reply).await?;
    }
    Ok(ids.len())
}

/// Reconciles one ticket: compares the reply of Redis with the status that this replica knows.
async fn reconcile(
    inner: &QueueInner,
    generation: GenerationId,
    calls: u64,
    grants: u64,
    reply: TicketReply,
) -> Result<(), RedisError> {
    let (held, ticket, start) = {
        let mut tickets = inner.tickets();
        let Some(local) = tickets.get_mut(&generation) else { return Ok(()) };
        if local.under_way || local.calls != calls || local.grants != grants {
            return Ok(());
        }
        let here = local.status.borrow().clone();
        match (here, reply.status) {
            (TicketStatus::Granted(here), TicketStatus::Granted(there)) if here == there => {
                return Ok(());
            }
            (TicketStatus::Granted(here), _) => {
                (Some(here), local.ticket.clone(), local.start.clone().unwrap_or_default())
            }
            (TicketStatus::Waiting(_), TicketStatus::Gone) => {
                (None, local.ticket.clone(), local.start.clone().unwrap_or_default())
            }
            (TicketStatus::Waiting(_), status) => {
                local.learn(TicketReply { status, start: reply.start }, grants);
                return Ok(());
            }
            _ => return Ok(()),
        }
    };
    let Some(held) = held else {
        let reply = inner.store.join(&ticket, Some(&start)).await?;
        if let Some(local) = inner.tickets().get_mut(&generation) {
            local.learn(reply, grants);
        }
        return Ok(());
    };
    tracing::warn!(%generation, "redis forgot a slot; restoring it");
    if let Some(number) = inner.store.restore(&ticket, &held.host, &start).await?
        && let Some(local) = inner.tickets().get_mut(&generation)
        && local.calls == calls
    {
        local.grants = number;
        local.set(TicketStatus::Granted(super::Grant { host: held.host, number }));
    }
    Ok(())
}
