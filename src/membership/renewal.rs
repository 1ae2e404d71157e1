//! When this replica renewed its heartbeat, and when it was late.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The renewals of this replica's heartbeat. Clones share them.
#[derive(Clone)]
pub struct Renewal {
    lease: Duration,
    last: Arc<Mutex<Last>>,
}

struct Last {
    /// When the last heartbeat was sent that Redis acknowledged. Redis had it no earlier.
    sent: Instant,
    /// When a heartbeat was acknowledged for the last time after the lease was over.
    late: Option<Instant>,
}

impl Renewal {
    /// Begins with a heartbeat that is renewed now.
    pub fn new(lease: Duration) -> Self {
        Self { lease, last: Arc::new(Mutex::new(Last { sent: Instant::now(), late: None })) }
    }

    /// Notes that Redis has acknowledged the heartbeat that was sent at `sent`.
    pub(super) fn note(&self, sent: Instant) {
        self.last().note(sent, Instant::now(), self.lease);
    }

    /// Returns whether the other replicas may have taken this one for gone at some time after
    /// `since`.
    pub fn was_late_since(&self, since: Instant) -> bool {
        self.last().was_late_since(since, Instant::now(), self.lease)
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Last {
    fn note(&mut self, sent: Instant, now: Instant, lease: Duration) {
        // A replica that was paused reads the acknowledgement late: that heartbeat was in time, and
        // the next one was not.
        if now.duration_since(self.sent) > lease {
            self.late = Some(now);
        }
        self.sent = sent;
    }

    fn was_late_since(&self, since: Instant, now: Instant, lease: Duration) -> bool {
        now.duration_since(self.sent) > lease || self.late.is_some_and(|late| late >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(1);
    const PAUSE: Duration = Duration::from_millis(1_001);
    const TICK: Duration = Duration::from_millis(100);

    fn at(now: Instant) -> Last {
        Last { sent: now, late: None }
    }

    #[test]
    fn a_heartbeat_in_time_is_not_late() {
        let began = Instant::now();
        let (mut last, mut now) = (at(began), began);
        for _ in 0..50 {
            last.note(now, now + TICK, LEASE);
            now += TICK;
        }
        assert!(!last.was_late_since(began, now + LEASE - TICK, LEASE));
    }

    #[test]
    fn a_pause_is_late_before_and_after_the_next_heartbeat_for_what_ran_in_it() {
        let began = Instant::now();
        let (mut last, resumed) = (at(began), began + PAUSE);
        assert!(last.was_late_since(began, resumed, LEASE), "no heartbeat yet");
        last.note(resumed, resumed + TICK, LEASE);
        let now = resumed + TICK * 2;
        assert!(last.was_late_since(began, now, LEASE), "the heartbeat was late");
        assert!(!last.was_late_since(now, now, LEASE), "what begins after it");
    }

    #[test]
    fn a_heartbeat_whose_acknowledgement_is_read_after_the_pause_is_late() {
        let began = Instant::now();
        let (mut last, resumed) = (at(began), began + PAUSE);
        last.note(began + TICK, resumed, LEASE);
        last.note(resumed, resumed + TICK, LEASE);
        assert!(last.was_late_since(began, resumed + TICK, LEASE));
    }
}
