//! A turn waits for its slot, and its session is notified of its queue position.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Generations;
use super::failures::{failure, no_host, queue_full, too_long};
use super::stop::{Stopped, cancelled};
use crate::ollama::OllamaError;
use crate::queue::{Lease, TicketStatus, Waiting};
use crate::retry::Backoff;
use crate::session::Feed;
use crate::session::event::Queued;
use crate::session::model::Failure;
use crate::session::store::Turn;
use crate::telemetry::metric;

/// While no host can serve a turn, this often somebody looks whether one ever will.
const LOOK_FOR_HOSTS: Duration = Duration::from_secs(10);
/// Before a turn is given up the queue is asked again, and once more after this: a replica that was
/// stopped, or that had no Redis, has not seen what happened meanwhile.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// A session is notified at most this often: each time that the queue has looked, which is once a
/// second, so that what is published was true a moment ago.
const NOTIFY_EVERY: Duration = Duration::from_millis(950);
/// News that came too early is published by itself after this, where no later look has brought more.
const NOTIFY_AT_LAST: Duration = Duration::from_secs(2);
/// The clients of an answer that waits in its middle, for its turn and not for a host, are not
/// notified before this: it goes before all others.
const NEXT_IN_TURN: Duration = Duration::from_secs(5);
/// A time that has changed by no more than this share of the published one is not published again.
const WORTH_NOTIFYING: f64 = 0.1;
/// How long a turn waits, at most.
const LONGEST: Duration = Duration::from_hours(1);

/// How a turn waits.
#[derive(Clone, Copy)]
pub(super) struct Wait {
    /// Whether there is text, so that the turn goes first.
    pub has_text: bool,
    /// Bytes of the answer and the thoughts before it; none while it has not begun.
    pub answer: Option<u64>,
    /// The session is not notified before this.
    pub notify_from: Instant,
    /// When a host that did not suit may be asked for again.
    pub again_at: Option<Instant>,
}

/// Waits until the lease holds a slot. `Err`: the turn ends with this.
pub(super) async fn wait_for_slot(
    generations: &Generations,
    turn: &Turn,
    feed: &Arc<Feed>,
    lease: &mut Lease,
    wait: Wait,
) -> Result<Result<(), Failure>, Stopped> {
    let began = Instant::now();
    let mut joins = true;
    let mut again_at = wait.again_at;
    let mut hosts = Hosts::default();
    let mut last_look = None;
    let mut backoff = Backoff::redis();
    let mut notifier = Notifier { from: wait.notify_from, last: None };
    let mut notify_at = None;
    let mut requests = feed.position_requests();
    loop {
        let joined = std::mem::replace(&mut joins, false);
        let status = if joined {
            match lease.join(wait.has_text).await {
                Ok(status) => {
                    backoff.reset();
                    status
                }
                Err(error) => {
                    tracing::warn!(%error, "joining the queue waits for redis");
                    joins = true;
                    tokio::select! {
                        _ = backoff.pause() => continue,
                        () = cancelled(feed, turn) => return Err(Stopped),
                    }
                }
            }
        } else {
            lease.status()
        };
        match status {
            TicketStatus::Granted(_) => {
                let waited = began.elapsed().as_secs_f64();
                metrics::histogram!(metric::QUEUE_WAIT_SECONDS).record(waited);
                return Ok(Ok(()));
            }
            TicketStatus::Waiting(waiting) => {
                let queued = queued(turn, waiting, wait.answer);
                let now = Instant::now();
                let next_in_turn = wait.answer.is_some() && waiting.hosts > 0;
                notifier.from = wait.notify_from;
                notifier.from += if next_in_turn { NEXT_IN_TURN } else { Duration::ZERO };
                notify_at = notifier.due(queued, now).filter(|due| *due > now);
                if notify_at.is_none() && notifier.publishes(queued, now) {
                    publish(generations, turn, queued).await;
                }
                hosts.seen(waiting.hosts);
            }
            TicketStatus::Full(after) | TicketStatus::Crowded(after) => {
                return Ok(Err(queue_full(after)));
            }
            // It was taken over.
            TicketStatus::Gone if joined => return Err(Stopped),
            TicketStatus::Gone => joins = true,
        }
        let end = hosts.next_look(generations.host_wait).unwrap_or(began + LONGEST);
        let now = Instant::now();
        if now < end {
            last_look = None;
        } else if joined && now >= *last_look.get_or_insert(now + LAST_LOOK) {
            let failure = match hosts.none_since {
                Some(since) => {
                    let is_over = now >= since + generations.host_wait;
                    without_host(generations, turn, is_over).await
                }
                None => Some(too_long()),
            };
            if let Some(failure) = failure {
                return Ok(Err(failure));
            }
            hosts.looks += 1;
            last_look = None;
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
            () = sleep_until(last_look.unwrap_or(end)) => joins = true,
            () = position_requested(feed, requests) => {
                requests = feed.position_requests();
                // As it was published: whoever has it already is not sent it twice.
                if let Some((_, queued)) = notifier.last {
                    publish(generations, turn, queued).await;
                }
            }
            () = cancelled(feed, turn) => return Err(Stopped),
        }
    }
}

/// Since when no host can serve a turn.
#[derive(Default)]
struct Hosts {
    none_since: Option<Instant>,
    /// How often somebody looked since then whether one ever will.
    looks: u32,
}

impl Hosts {
    fn seen(&mut self, hosts: u64) {
        if hosts > 0 {
            *self = Self::default();
        } else {
            self.none_since.get_or_insert_with(Instant::now);
        }
    }

    /// When to look next, or to give the turn up after `limit`; none while there is a host.
    fn next_look(&self, limit: Duration) -> Option<Instant> {
        let after = LOOK_FOR_HOSTS * (self.looks + 1);
        Some(self.none_since? + after.min(limit.saturating_sub(LAST_LOOK)))
    }
}

/// Decides when a session is notified of its turn's position.
struct Notifier {
    from: Instant,
    /// What was published last, and when.
    last: Option<(Instant, Queued)>,
}

impl Notifier {
    /// When this is to be published; none where it says nothing new.
    fn due(&self, queued: Queued, now: Instant) -> Option<Instant> {
        match self.last {
            None => Some(self.from),
            Some((_, last)) if !differs(last, queued) => None,
            Some((at, _)) if now >= at + NOTIFY_EVERY => Some(now),
            Some((at, _)) => Some(at + NOTIFY_AT_LAST),
        }
        .map(|due| due.max(now))
    }

    /// Whether this is to be published now, and then notes that it is.
    fn publishes(&mut self, queued: Queued, now: Instant) -> bool {
        let is_due = self.due(queued, now).is_some_and(|due| due <= now);
        if is_due {
            self.last = Some((now, queued));
        }
        is_due
    }
}

/// Whether the position is another, or the time differs by more than a tenth.
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

/// Resolves when somebody who does not know the position has asked for it.
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

/// Why a turn that no host can serve ends now; none where one may come back in time.
async fn without_host(generations: &Generations, turn: &Turn, is_over: bool) -> Option<Failure> {
    let fleet = &generations.fleet;
    if let Err(error @ OllamaError::ModelNotFound { .. }) = fleet.check(&turn.spec.model).await {
        // A host that does not answer may have it.
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
    fn a_turn_without_a_host_is_given_up_after_the_limit_and_looked_after_until_then() {
        let limit = Duration::from_secs(25);
        let mut hosts = Hosts::default();
        assert_eq!(hosts.next_look(limit), None);
        hosts.seen(0);
        let since = hosts.none_since.expect("none");
        let mut looks = Vec::new();
        for _ in 0..3 {
            looks.push(hosts.next_look(limit).expect("a look") - since);
            hosts.looks += 1;
        }
        assert_eq!(looks, [10, 20, 23].map(Duration::from_secs));
        hosts.seen(1);
        assert_eq!(hosts.next_look(limit), None, "there is a host again");
    }
}
