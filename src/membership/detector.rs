//! Failure detection, from heartbeats alone.
//!
//! A replica is gone when this one has seen its heartbeat unchanged for the length of a lease, on
//! its own clock, over a connection that was healthy throughout. No clock is compared with
//! another's. Nothing here waits or does I/O.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::store::{Heartbeats, SIGNED_OFF};

/// A replica that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoneReplica {
    /// Its name.
    pub name: String,
    /// Where its heartbeat stopped; none where it had none.
    pub counter: Option<i64>,
}

/// What was observed of another replica.
struct Observation {
    /// None: the replica holds something, and has no heartbeat.
    counter: Option<i64>,
    /// Since when the counter has not changed.
    since: Instant,
}

/// Suspects the replicas whose heartbeats stand still.
pub struct Detector {
    own: String,
    lease: Duration,
    observations: HashMap<String, Observation>,
    last: Option<Instant>,
}

impl Detector {
    /// A detector of the replica `own`, which is never suspected.
    pub fn new(own: String, lease: Duration) -> Self {
        Self { own, lease, observations: HashMap::new(), last: None }
    }

    /// Redis did not answer: a replica that cannot see suspects nobody.
    pub fn blind(&mut self) {
        self.observations.clear();
    }

    /// Takes in everybody's heartbeats, and gives the replicas that are gone. A heartbeat that is
    /// missing counts as unchanged.
    pub fn observe(&mut self, heartbeats: &Heartbeats, now: Instant) -> Vec<GoneReplica> {
        if self.last.is_some_and(|last| now - last > self.lease) {
            self.blind();
        }
        self.last = Some(now);
        for (name, counter) in heartbeats.iter().filter(|(name, _)| **name != self.own) {
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

    /// Suspects a replica that holds something and has no heartbeat: it is gone after a lease.
    pub fn suspect(&mut self, name: String, now: Instant) {
        if name != self.own {
            self.observations.entry(name).or_insert(Observation { counter: None, since: now });
        }
    }

    /// Everything of a replica was taken over.
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
        (Detector::new("own".to_owned(), LEASE), Instant::now())
    }

    /// Observes the same heartbeats for a while; gives after how long somebody was gone.
    fn watch(detector: &mut Detector, of: &[(&str, i64)], start: Instant) -> Option<Duration> {
        (0..=20u32).map(|tick| TICK * tick).find(|elapsed| {
            let found = detector.observe(&heartbeats(of), start + *elapsed);
            found.iter().any(|gone| gone.name == "other")
        })
    }

    #[test]
    fn a_heartbeat_that_stands_still_for_a_lease_is_of_a_replica_that_is_gone() {
        let (mut detector, start) = detector();
        let after = watch(&mut detector, &[("own", 1), ("other", 7)], start);
        assert_eq!(after, Some(LEASE));
    }

    #[test]
    fn a_heartbeat_that_moves_is_of_one_that_lives() {
        let (mut detector, start) = detector();
        for tick in 0..100 {
            let beats = heartbeats(&[("other", i64::from(tick))]);
            assert_eq!(detector.observe(&beats, start + TICK * tick as u32), []);
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
    fn who_could_not_see_for_a_while_suspects_nobody_for_another_lease() {
        let (mut detector, start) = detector();
        detector.observe(&heartbeats(&[("other", 7)]), start);
        let late = start + LEASE * 2;
        assert_eq!(watch(&mut detector, &[("other", 7)], late), Some(LEASE));
        detector.blind();
        assert_eq!(watch(&mut detector, &[("other", 7)], late + LEASE * 3), Some(LEASE));
    }

    #[test]
    fn a_heartbeat_that_vanished_counts_as_unchanged() {
        let (mut detector, start) = detector();
        detector.observe(&heartbeats(&[("other", 7)]), start);
        assert_eq!(watch(&mut detector, &[], start), Some(LEASE));
    }

    #[test]
    fn who_holds_something_without_a_heartbeat_is_gone_after_a_lease() {
        let (mut detector, start) = detector();
        detector.suspect("other".to_owned(), start);
        detector.suspect("own".to_owned(), start);
        assert_eq!(watch(&mut detector, &[], start), Some(LEASE));
        let gone = detector.observe(&heartbeats(&[]), start + LEASE);
        assert_eq!(gone, [GoneReplica { name: "other".to_owned(), counter: None }]);
    }
}
