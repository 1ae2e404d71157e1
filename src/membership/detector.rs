//! Failure detection, from heartbeats alone.
//!
//! A replica is gone when this replica has seen its heartbeat unchanged for a replica lease, on
//! this replica's clock, over a connection that was healthy throughout. Clocks of two machines are
//! never compared. Nothing here waits or does I/O.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::store::{Heartbeats, SIGNED_OFF};

/// A replica that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoneReplica {
    /// The name of the replica.
    pub name: String,
    /// The counter at which its heartbeat stopped; none where it had no heartbeat.
    pub counter: Option<i64>,
}

/// The heartbeat of another replica, as it was observed.
struct Observation {
    /// The counter; none where the replica holds turns and has no heartbeat.
    counter: Option<i64>,
    /// When the counter was first observed.
    since: Instant,
}

/// Finds the replicas whose heartbeats stand still.
pub struct Detector {
    /// The name of the replica that observes.
    observer: String,
    lease: Duration,
    observations: HashMap<String, Observation>,
    /// When heartbeats were last observed.
    last: Option<Instant>,
}

impl Detector {
    /// Creates the detector of the replica `observer`, which is never suspected itself.
    pub fn new(observer: String, lease: Duration) -> Self {
        Self { observer, lease, observations: HashMap::new(), last: None }
    }

    /// Forgets all observations, because Redis did not reply: a replica that could not see the
    /// heartbeats suspects no replica for another replica lease.
    pub fn reset(&mut self) {
        self.observations.clear();
    }

    /// Observes the heartbeats of all replicas, and returns the replicas that are gone. A heartbeat
    /// that is missing counts as unchanged.
    pub fn observe(&mut self, heartbeats: &Heartbeats, now: Instant) -> Vec<GoneReplica> {
        if self.last.is_some_and(|last| now - last > self.lease) {
            self.reset();
        }
        self.last = Some(now);
        for (name, counter) in heartbeats.iter().filter(|(name, _)| **name != self.observer) {
            let counter = Some(*counter);
            let known = self.observations.get(name).is_some_and(|seen| seen.counter == counter);
            if !known {
                self.observations.insert(name.clone(), Observation { counter, since: now });
            }
        }
        let gone = self
            .observations
            .iter()
            .filter(|(_, seen)| seen.counter == Some(SIGNED_OFF) || now - seen.since >= self.lease);
        gone.map(|(name, seen)| GoneReplica { name: name.clone(), counter: seen.counter }).collect()
    }

    /// Suspects a replica that holds turns and has no heartbeat: it is gone after a replica lease.
    pub fn suspect(&mut self, name: String, now: Instant) {
        if name != self.observer {
            self.observations.entry(name).or_insert(Observation { counter: None, since: now });
        }
    }

    /// Forgets a replica whose turns were all taken over.
    pub fn forget(&mut self, name: &str) {
        self.observations.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);
    const TICK: Duration = Duration::from_millis(300);

    fn heartbeats(of: &[(&str, i64)]) -> Heartbeats {
        of.iter().map(|(name, counter)| ((*name).to_owned(), *counter)).collect()
    }

    fn detector() -> (Detector, Instant) {
        (Detector::new("observer".to_owned(), LEASE), Instant::now())
    }

    /// Observes the same heartbeats for a while. Returns after how long the replica `other` was
    /// gone.
    fn watch(detector: &mut Detector, of: &[(&str, i64)], start: Instant) -> Option<Duration> {
        (0..=20u32).map(|tick| TICK * tick).find(|elapsed| {
            let found = detector.observe(&heartbeats(of), start + *elapsed);
            found.iter().any(|gone| gone.name == "other")
        })
    }

    #[test]
    fn a_replica_whose_heartbeat_stands_still_for_a_lease_is_gone() {
        let (mut detector, start) = detector();
        let after = watch(&mut detector, &[("observer", 1), ("other", 7)], start);
        assert_eq!(after, Some(LEASE));
    }

    #[test]
    fn a_replica_whose_heartbeat_moves_is_not_gone() {
        let (mut detector, start) = detector();
        for tick in 0..100 {
            let moved = heartbeats(&[("other", i64::from(tick))]);
            assert_eq!(detector.observe(&moved, start + TICK * tick as u32), []);
        }
    }

    #[test]
    fn a_replica_that_signed_off_is_gone_at_once() {
        let (mut detector, start) = detector();
        let gone = detector.observe(&heartbeats(&[("other", SIGNED_OFF)]), start);
        assert_eq!(gone, [GoneReplica { name: "other".to_owned(), counter: Some(SIGNED_OFF) }]);
        detector.forget("other");
        assert_eq!(detector.observe(&heartbeats(&[]), start + TICK), []);
    }

    #[test]
    fn a_detector_that_observed_nothing_for_a_while_suspects_no_replica_for_another_lease() {
        let (mut detector, start) = detector();
        detector.observe(&heartbeats(&[("other", 7)]), start);
        let late = start + LEASE * 2;
        assert_eq!(watch(&mut detector, &[("other", 7)], late), Some(LEASE));
        detector.reset();
        assert_eq!(watch(&mut detector, &[("other", 7)], late + LEASE * 3), Some(LEASE));
    }

    #[test]
    fn a_heartbeat_that_vanished_counts_as_unchanged() {
        let (mut detector, start) = detector();
        detector.observe(&heartbeats(&[("other", 7)]), start);
        assert_eq!(watch(&mut detector, &[], start), Some(LEASE));
    }

    #[test]
    fn a_replica_that_holds_turns_without_a_heartbeat_is_gone_after_a_lease() {
        let (mut detector, start) = detector();
        detector.suspect("other".to_owned(), start);
        detector.suspect("observer".to_owned(), start);
        assert_eq!(watch(&mut detector, &[], start), Some(LEASE));
        let gone = detector.observe(&heartbeats(&[]), start + LEASE);
        assert_eq!(gone, [GoneReplica { name: "other".to_owned(), counter: None }]);
    }
}
