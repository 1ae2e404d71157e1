//! A turn waits for its slot, and its session is notified of its queue position.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Generations;
use super::abandonment::Abandonment;
use super::capacity;
use super::failures::{abandoned, failure, no_host, queue_full, refused, too_long};
use super::stop::cancelled;
use crate::ollama::OllamaError;
use crate::queue::{Lease, TicketStatus, Waiting};
use crate::retry::Backoff;
use crate::session::event::Queued;
use crate::session::model::Failure;
use crate::session::store::Turn;
use crate::session::{Feed, Owner};
use crate::telemetry::metric;

/// While no host can serve a turn, the time between two checks whether a host ever will.
const CHECK_HOSTS_EVERY: Duration = Duration::from_secs(10);
/// Before a turn fails, it joins the queue again, and once more after this time: a replica that was
/// stopped, or that had no Redis, has missed what happened meanwhile.
const LAST_CHECK: Duration = Duration::from_secs(2);
/// A session is notified at most this often. The queue reconciles once a second, so that a
/// published position was true a moment ago.
const NOTIFY_EVERY: Duration = Duration::from_millis(950);
/// A change that came too soon after the last notification is published after this time.
const NOTIFY_AT_LAST: Duration = Duration::from_secs(2);
/// How long the clients of an answer with text that waits for a slot are not notified: its ticket
/// goes before all others.
const NEXT_IN_QUEUE: Duration = Duration::from_secs(5);
/// An estimated time is published again where it has changed by more than this share of the last.
const WORTH_NOTIFYING: f64 = 0.1;
/// How long a turn waits, at most.
const LONGEST: Duration = Duration::from_hours(1);

/// How long a turn waits while Redis refuses what turns need, for a reason that only an operator
/// can end: as long as a change of its users may take.
const REFUSED_LIMIT: Duration = Duration::from_secs(10);

/// How a turn waits.
#[derive(Clone, Copy)]
pub(super) struct WaitOptions {
    /// Whether the answer has text, so that its ticket goes first.
    pub has_text: bool,
    /// Bytes of the answer with the reasoning before it; none while the answer is not started.
    pub answer: Option<u64>,
    /// The earliest time of a notification.
    pub notify_from: Instant,
    /// When a host that was excluded is available again.
    pub again_at: Option<Instant>,
}

/// The end of waiting for a slot.
pub(super) enum SlotWait {
    /// The ticket holds a slot.
    Granted,
    /// The turn ends with this failure.
    Failed(Failure),
    /// The turn was cancelled, or is another replica's.
    Stopped,
}

impl SlotWait {
    /// Returns how the wait ended, for the span of it.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Failed(_) => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// Waits until the ticket holds a slot, or the turn fails or stops.
pub(super) async fn wait_for_slot(
    generations: &Generations,
    turn: &Turn,
    feed: &Arc<Feed>,
    lease: &mut Lease,
    options: WaitOptions,
) -> SlotWait {
    let began = Instant::now();
    let mut joins = true;
    let mut again_at = options.again_at;
    let mut hosts = Hosts::default();
    let mut last_check = None;
    let mut backoff = Backoff::redis();
    let mut notifier = Notifier { from: options.notify_from, last: None };
    let mut notify_at = None;
    let mut requests = feed.position_requests();
    let mut owner = feed.owner();
    let mut abandonment = Abandonment::watch(generations, &owner, options.has_text);
    // A refusal is found by the probe of Redis: a ticket that waits makes no calls of its own.
    let refusal = generations.store.refused_for(REFUSED_LIMIT);
    tokio::pin!(refusal);
    loop {
        let joined = std::mem::replace(&mut joins, false);
        let status = if joined {
            match lease.join(options.has_text).await {
                Ok(status) => {
                    backoff.reset();
                    status
                }
                Err(error) => {
                    tracing::warn!(%error, "join of the queue waiting for redis");
                    joins = true;
                    tokio::select! {
                        _ = backoff.pause() => continue,
                        trouble = &mut refusal => return SlotWait::Failed(refused(&trouble)),
                        () = cancelled(feed, turn) => return SlotWait::Stopped,
                    }
                }
            }
        } else {
            lease.status()
        };
        match status {
            TicketStatus::Granted(_) => {
                metrics::histogram!(metric::QUEUE_WAIT_SECONDS).record(began.elapsed());
                return SlotWait::Granted;
            }
            TicketStatus::Waiting(waiting) => {
                let queued = queued(turn, waiting, options.answer);
                let now = Instant::now();
                let is_next = options.answer.is_some() && waiting.hosts > 0;
                let delay = if is_next { NEXT_IN_QUEUE } else { Duration::ZERO };
                notifier.from = options.notify_from + delay;
                notify_at = notifier.due(queued, now).filter(|due| *due > now);
                if notify_at.is_none() && notifier.publishes(queued, now) {
                    publish(generations, turn, queued).await;
                }
                hosts.observe(waiting.hosts);
            }
            TicketStatus::Full(after) | TicketStatus::Crowded(after) => {
                return SlotWait::Failed(queue_full(after));
            }
            // Another replica has taken the turn over.
            TicketStatus::Gone if joined => return SlotWait::Stopped,
            TicketStatus::Gone => joins = true,
        }
        let end = hosts.next_check(generations.host_wait).unwrap_or(began + LONGEST);
        let now = Instant::now();
        if now < end {
            last_check = None;
        } else if joined && now >= *last_check.get_or_insert(now + LAST_CHECK) {
            if let Some(failure) = at_last(generations, turn, &hosts).await {
                return SlotWait::Failed(failure);
            }
            hosts.checks += 1;
            last_check = None;
            continue;
        }
        let again = again_at.unwrap_or(end);
        tokio::select! {
            _ = lease.changed() => {}
            () = std::future::ready(()), if joins => {}
            () = sleep_until(again), if again_at.is_some() => {
                again_at = None;
                joins = true;
            }
            () = sleep_until(notify_at.unwrap_or(end)), if notify_at.is_some() => {}
            () = sleep_until(last_check.unwrap_or(end)) => joins = true,
            () = abandonment.over(generations, turn, feed, notifier.queued()) => {
                return SlotWait::Failed(abandoned());
            }
            () = transferred(feed), if owner == Owner::Anonymous => {
                owner = feed.owner();
                lease.set_user(capacity::ticket(turn, &owner, &generations.source_key));
                abandonment = Abandonment::watch(generations, &owner, options.has_text);
                joins = true;
            }
            () = position_requested(feed, requests) => {
                requests = feed.position_requests();
                // The same event again, which readers that have it skip.
                if let Some(queued) = notifier.queued() {
                    publish(generations, turn, queued).await;
                }
            }
            trouble = &mut refusal => return SlotWait::Failed(refused(&trouble)),
            () = cancelled(feed, turn) => return SlotWait::Stopped,
        }
    }
}

/// How long no host has been able to serve a turn.
#[derive(Default)]
struct Hosts {
    none_since: Option<Instant>,
    /// Checks since then whether a host ever will.
    checks: u32,
}

impl Hosts {
    fn observe(&mut self, hosts: u64) {
        if hosts > 0 {
            *self = Self::default();
        } else {
            self.none_since.get_or_insert_with(Instant::now);
        }
    }

    /// Returns when to check next, or to end the turn after `limit`; none while there is a host.
    fn next_check(&self, limit: Duration) -> Option<Instant> {
        let after = CHECK_HOSTS_EVERY * (self.checks + 1);
        Some(self.none_since? + after.min(limit.saturating_sub(LAST_CHECK)))
    }
}

/// Decides when a session is notified of its turn's position.
struct Notifier {
    from: Instant,
    /// The last notification, and its time.
    last: Option<(Instant, Queued)>,
}

impl Notifier {
    /// Returns the position that was published last.
    fn queued(&self) -> Option<Queued> {
        self.last.map(|(_, queued)| queued)
    }

    /// Returns when the position is to be published; none where it has not changed enough.
    fn due(&self, queued: Queued, now: Instant) -> Option<Instant> {
        match self.last {
            None => Some(self.from),
            Some((_, last)) if !differs(last, queued) => None,
            Some((at, _)) if now >= at + NOTIFY_EVERY => Some(now),
            Some((at, _)) => Some(at + NOTIFY_AT_LAST),
        }
        .map(|due| due.max(now))
    }

    /// Returns whether the position is to be published now, and then counts it as published.
    fn publishes(&mut self, queued: Queued, now: Instant) -> bool {
        let is_due = self.due(queued, now).is_some_and(|due| due <= now);
        if is_due {
            self.last = Some((now, queued));
        }
        is_due
    }
}

/// Returns whether the positions differ, or the estimated times differ by more than a tenth.
fn differs(last: Queued, new: Queued) -> bool {
    let another_time = match (last.eta_seconds, new.eta_seconds) {
        (Some(last), Some(new)) => (new - last).abs() > last * WORTH_NOTIFYING,
        (last, new) => last.is_some() != new.is_some(),
    };
    last.position != new.position || another_time
}

fn queued(turn: &Turn, waiting: Waiting, answer: Option<u64>) -> Queued {
    let eta_seconds = waiting.eta.map(|eta| (eta.as_secs_f64() * 10.0).round() / 10.0);
    Queued { generation: turn.generation, position: waiting.position, eta_seconds, answer }
}

async fn publish(generations: &Generations, turn: &Turn, queued: Queued) {
    if let Err(error) = generations.store.publish_queued(turn.session, queued).await {
        tracing::debug!(%error, "queue position not published");
    }
}

/// Resolves when the session has become a user's.
async fn transferred(feed: &Arc<Feed>) {
    loop {
        let changed = feed.events_changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if feed.is_transferred() {
            return;
        }
        changed.await;
    }
}

/// Resolves when a reader that does not know the position requests it.
async fn position_requested(feed: &Arc<Feed>, known: u64) {
    loop {
        let changed = feed.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if feed.position_requests() != known {
            return;
        }
        changed.await;
    }
}

/// Returns the failure of a turn that has waited for as long as it may; none where it waits on.
async fn at_last(generations: &Generations, turn: &Turn, hosts: &Hosts) -> Option<Failure> {
    let Some(since) = hosts.none_since else { return Some(too_long()) };
    let is_over = Instant::now() >= since + generations.host_wait;
    without_host(generations, turn, is_over).await
}

/// Returns the failure of a turn that no host can serve; none while a host may come back in time.
async fn without_host(generations: &Generations, turn: &Turn, is_over: bool) -> Option<Failure> {
    let fleet = &generations.fleet;
    if let Err(error @ OllamaError::ModelNotFound { .. }) = fleet.check(&turn.spec.model).await {
        // A host that cannot be reached may have the model.
        if fleet.healthy().await >= fleet.hosts().len() {
            return Some(failure(&error));
        }
    }
    is_over.then(no_host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::GenerationId;

    #[test]
    fn a_session_is_notified_of_another_position_or_time_and_not_of_every_second() {
        let generation = GenerationId::random();
        let queued =
            |position, eta_seconds| Queued { generation, position, eta_seconds, answer: None };
        let mut now = Instant::now();
        let mut notifier = Notifier { from: now, last: None };
        let mut published = Vec::new();
        // A hundred seconds at position 3, as the time runs down; then all at once at position 1.
        for second in 0..=100 {
            let eta = f64::from(100 - second);
            if notifier.publishes(queued(3, Some(eta)), now) {
                published.push(eta);
            }
            now += Duration::from_secs(1);
        }
        assert_eq!(published[..4], [100.0, 89.0, 80.0, 71.0]);
        assert!(published.len() < 35, "{published:?}");
        assert!(notifier.publishes(queued(1, Some(0.0)), now));
        let soon = now + Duration::from_millis(10);
        assert!(!notifier.publishes(queued(1, None), soon), "twice within a second");
        assert_eq!(notifier.due(queued(1, None), soon), Some(now + NOTIFY_AT_LAST));
        assert!(notifier.publishes(queued(1, None), now + NOTIFY_EVERY), "the time is unknown now");
        assert_eq!(notifier.due(queued(1, None), now + NOTIFY_EVERY * 9), None);
    }

    #[test]
    fn a_turn_without_a_host_is_checked_every_ten_seconds_and_fails_after_the_limit() {
        let limit = Duration::from_secs(25);
        let mut hosts = Hosts::default();
        assert_eq!(hosts.next_check(limit), None);
        hosts.observe(0);
        let since = hosts.none_since.expect("none");
        let mut checks = Vec::new();
        for _ in 0..3 {
            checks.push(hosts.next_check(limit).expect("a check") - since);
            hosts.checks += 1;
        }
        assert_eq!(checks, [10, 20, 23].map(Duration::from_secs));
        hosts.observe(1);
        assert_eq!(hosts.next_check(limit), None, "there is a host again");
    }
}
