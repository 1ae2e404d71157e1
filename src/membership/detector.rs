//! Failure detection, from heartbeats and connections.
//!
//! A replica is gone in either of two cases, both on this replica's clock, so that clocks of two
//! machines are never compared:
//!
//! - Its heartbeat was unchanged for a replica lease, over a connection of this replica that was
//!   healthy throughout. The time of a call that Redis was slow to reply to does not count.
//! - Its connections were lost, and its heartbeat was unchanged for [`Timing::still`]. A process
//!   that is killed loses its connections at once, which the server shows: the replica's own channel
//!   has no subscriber any more. This counts only where this replica saw the subscription on the
//!   same server before, and where the server still counts this replica's own: after a failover or
//!   a restart of Redis all subscriptions are missing, and no replica is suspected for that. Nor is
//!   one for a replica lease after Redis was in doubt: connections are made again at different
//!   times then, and more than once.
//!
//! Nothing here waits or does I/O.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::store::{SIGNED_OFF, Sighting, Watched};

/// Replicas that one replica watches, so that a few deaths at the same time are all noticed soon.
const WATCHED: usize = 8;

/// A heartbeat that takes so many times [`Timing::still`] casts doubt on Redis: a loaded machine is
/// late by less, and the other replicas' calls fail only later.
const STILLS_IN_DOUBT: u32 = 2;
/// How long a lost connection proves nothing after Redis was in doubt: all replicas have connected
/// again by then. A shorter replica lease decides sooner.
const DOUBT: Duration = Duration::from_secs(3);

/// A replica that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoneReplica {
    /// The name of the replica.
    pub name: String,
    /// The counter at which its heartbeat stopped; none where it had no heartbeat.
    pub counter: Option<i64>,
    /// How it was noticed.
    pub reason: GoneReason,
}

/// How it was noticed that a replica is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneReason {
    /// It signed off.
    SignedOff,
    /// Its connections were lost, and its heartbeat stood still.
    ConnectionLost,
    /// Its heartbeat stood still for a replica lease.
    LeaseOver,
}

impl GoneReason {
    /// Returns the label of this reason in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SignedOff => "signed_off",
            Self::ConnectionLost => "connection_lost",
            Self::LeaseOver => "lease_over",
        }
    }
}

/// The times after which a replica is gone.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The replica lease.
    pub lease: Duration,
    /// How long the heartbeat of a replica that has lost its connections may stand still.
    pub still: Duration,
}

/// Another replica, as it was observed.
struct Observation {
    /// The counter; none where the replica holds turns and has no heartbeat.
    counter: Option<i64>,
    /// When the counter was first observed.
    since: Instant,
    subscription: OwnSubscription,
}

impl Observation {
    fn new(counter: Option<i64>, since: Instant) -> Self {
        Self { counter, since, subscription: OwnSubscription::Unknown }
    }

    fn gone(&self, timing: Timing, in_doubt: bool, now: Instant) -> Option<GoneReason> {
        let lost = match self.subscription {
            OwnSubscription::Lost(lost) if !in_doubt => Some(lost.max(self.since)),
            _ => None,
        };
        if self.counter == Some(SIGNED_OFF) {
            Some(GoneReason::SignedOff)
        } else if lost.is_some_and(|lost| now - lost >= timing.still) {
            Some(GoneReason::ConnectionLost)
        } else {
            (now - self.since >= timing.lease).then_some(GoneReason::LeaseOver)
        }
    }
}

/// A replica's subscription to its channel, on the server that replies now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OwnSubscription {
    /// It was not seen on this server.
    Unknown,
    /// It was there at the last look.
    Seen,
    /// It was there, and is missing since.
    Lost(Instant),
}

/// Finds the replicas that are gone.
pub struct Detector {
    /// The name of the replica that observes.
    observer: String,
    timing: Timing,
    observations: HashMap<String, Observation>,
    /// The server that replied last.
    server: Option<i64>,
    /// When heartbeats were last observed.
    last: Option<Instant>,
    /// When Redis was last in doubt: it did not reply in time, or another server replied.
    doubted: Option<Instant>,
}

impl Detector {
    /// Creates the detector of the replica `observer`, which is never suspected itself.
    pub fn new(observer: String, timing: Timing) -> Self {
        let observations = HashMap::new();
        Self { observer, timing, observations, server: None, last: None, doubted: None }
    }

    /// Returns the replicas whose connections are to be looked at: the next ones in the order of
    /// the names, so that each replica is watched by equally many others.
    pub fn watched(&self) -> Vec<String> {
        let mut others: Vec<&String> = self
            .observations
            .iter()
            .filter(|(_, seen)| seen.counter.is_some())
            .map(|(name, _)| name)
            .collect();
        others.sort_unstable();
        let next = others.partition_point(|name| **name < self.observer);
        others.rotate_left(next);
        others.into_iter().take(WATCHED).cloned().collect()
    }

    /// Returns a replica that watches the observer's connections: the one before it in the order of
    /// the names.
    pub fn watcher(&self) -> Option<String> {
        let alive = |seen: &Observation| seen.counter.is_some_and(|at| at != SIGNED_OFF);
        let others =
            || self.observations.iter().filter(|(_, seen)| alive(seen)).map(|(name, _)| name);
        let before = others().filter(|name| **name < self.observer).max();
        before.or_else(|| others().max()).cloned()
    }

    /// Forgets all observations, because Redis did not reply: a replica that could not see the
    /// heartbeats suspects no replica for another replica lease.
    pub fn reset(&mut self, now: Instant) {
        self.observations.clear();
        self.server = None;
        self.doubted = Some(now);
    }

    /// Observes the heartbeats of all replicas or of the watched ones, and returns those of them
    /// that are gone. A heartbeat that is missing counts as unchanged.
    pub fn observe(&mut self, sighting: &Sighting, now: Instant) -> Vec<GoneReplica> {
        let pause = self.last.map_or(Duration::ZERO, |last| now - last);
        self.last = Some(now);
        if pause > self.timing.lease {
            self.reset(now);
        }
        let is_same = self.server == Some(sighting.server) && sighting.sees_observer;
        let is_slow = sighting.took >= self.timing.still * STILLS_IN_DOUBT;
        if is_slow || self.server.is_some() && !is_same {
            self.doubted = Some(now);
        }
        if is_slow {
            // Meanwhile no replica could renew its heartbeat.
            for seen in self.observations.values_mut() {
                seen.since = now.min(seen.since + sighting.took);
            }
        }
        let in_doubt =
            self.doubted.is_some_and(|doubted| now - doubted < DOUBT.min(self.timing.lease));
        self.server = Some(sighting.server);
        for seen in self.observations.values_mut() {
            match seen.subscription {
                _ if !is_same => seen.subscription = OwnSubscription::Unknown,
                // Events in the pause were not seen.
                OwnSubscription::Lost(_) if pause >= self.timing.still => {
                    seen.subscription = OwnSubscription::Lost(now);
                }
                _ => {}
            }
        }
        for (name, counter) in sighting.all.iter().flatten() {
            self.see_counter(name, *counter, now);
        }
        for (name, watched) in &sighting.watched {
            self.see_watched(name, *watched, now);
        }
        let looked_at = self.observations.iter().filter(|(name, _)| {
            sighting.all.is_some() || sighting.watched.iter().any(|(watched, _)| watched == *name)
        });
        let timing = self.timing;
        let gone = looked_at.filter_map(|(name, seen)| {
            let reason = seen.gone(timing, in_doubt, now)?;
            Some(GoneReplica { name: name.clone(), counter: seen.counter, reason })
        });
        gone.collect()
    }

    fn see_counter(&mut self, name: &str, counter: i64, now: Instant) {
        match self.observations.get_mut(name) {
            _ if name == self.observer => {}
            Some(seen) if seen.counter == Some(counter) => {}
            Some(seen) => (seen.counter, seen.since) = (Some(counter), now),
            None => {
                self.observations.insert(name.to_owned(), Observation::new(Some(counter), now));
            }
        }
    }

    fn see_watched(&mut self, name: &str, watched: Watched, now: Instant) {
        if let Some(counter) = watched.counter {
            self.see_counter(name, counter, now);
        }
        if let Some(seen) = self.observations.get_mut(name) {
            seen.subscription = match (watched.is_subscribed, seen.subscription) {
                (Some(true), _) => OwnSubscription::Seen,
                (Some(false), OwnSubscription::Seen) => OwnSubscription::Lost(now),
                (Some(false), known) => known,
                (None, _) => OwnSubscription::Unknown,
            };
        }
    }

    /// Suspects a replica that holds turns and has no heartbeat: it is gone after a replica lease.
    pub fn suspect(&mut self, name: String, now: Instant) {
        if name != self.observer {
            self.observations.entry(name).or_insert_with(|| Observation::new(None, now));
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

    const STILL: Duration = Duration::from_millis(250);
    const SERVER: i64 = 1;

    /// Returns a sighting of all heartbeats, without connections.
    fn heartbeats(of: &[(&str, i64)]) -> Sighting {
        let all = of.iter().map(|(name, counter)| ((*name).to_owned(), *counter)).collect();
        Sighting {
            server: SERVER,
            sees_observer: true,
            replicas: of.len(),
            took: Duration::ZERO,
            all: Some(all),
            watched: Vec::new(),
        }
    }

    /// Returns a sighting of the replica `other` alone.
    fn other(counter: i64, is_subscribed: bool) -> Sighting {
        let watched = Watched { counter: Some(counter), is_subscribed: Some(is_subscribed) };
        let watched = vec![("other".to_owned(), watched)];
        let took = Duration::ZERO;
        Sighting { server: SERVER, sees_observer: true, replicas: 2, took, all: None, watched }
    }

    fn detector() -> (Detector, Instant) {
        let timing = Timing { lease: LEASE, still: STILL };
        (Detector::new("observer".to_owned(), timing), Instant::now())
    }

    /// Observes each sighting for a while, one after another in steps of 50 ms, and then the last
    /// one until a lease is over. Returns when `other` was gone, in milliseconds, and why.
    fn observe_each(sightings: &[(u64, Sighting)]) -> Option<(u64, GoneReason)> {
        let (mut detector, start) = detector();
        let mut at = 0;
        let (_, last) = sightings.last()?;
        let long = (2 * LEASE.as_millis() as u64, last.clone());
        for (duration, sighting) in sightings.iter().chain([&long]) {
            for _ in (0..*duration).step_by(50) {
                let gone = detector.observe(sighting, start + Duration::from_millis(at));
                if let Some(gone) = gone.first() {
                    return Some((at, gone.reason));
                }
                at += 50;
            }
        }
        None
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
        assert_eq!(gone, [gone_for(Some(SIGNED_OFF), GoneReason::SignedOff)]);
        detector.forget("other");
        assert_eq!(detector.observe(&heartbeats(&[]), start + TICK), []);
    }

    #[test]
    fn a_detector_that_observed_nothing_for_a_while_suspects_no_replica_for_another_lease() {
        let (mut detector, start) = detector();
        detector.observe(&heartbeats(&[("other", 7)]), start);
        let late = start + LEASE * 2;
        assert_eq!(watch(&mut detector, &[("other", 7)], late), Some(LEASE));
        detector.reset(late);
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
        assert_eq!(gone, [gone_for(None, GoneReason::LeaseOver)]);
    }

    fn gone_for(counter: Option<i64>, reason: GoneReason) -> GoneReplica {
        GoneReplica { name: "other".to_owned(), counter, reason }
    }

    #[test]
    fn a_replica_that_lost_its_connections_is_gone_once_its_heartbeat_stood_still() {
        // The heartbeat moves a last time at 100 ms, and the subscription is missing from 150 ms on.
        let seen = [(100, other(1, true)), (50, other(2, true)), (50, other(2, false))];
        assert_eq!(observe_each(&seen), Some((400, GoneReason::ConnectionLost)));
        // The heartbeat moves later than the subscription is lost.
        let seen = [(100, other(1, true)), (200, other(1, false)), (50, other(2, false))];
        assert_eq!(observe_each(&seen), Some((550, GoneReason::ConnectionLost)));
    }

    #[test]
    fn a_replica_that_subscribes_again_or_keeps_its_connections_has_its_whole_lease() {
        let again = [(100, other(1, true)), (200, other(1, false)), (50, other(1, true))];
        assert_eq!(observe_each(&again), Some((3_000, GoneReason::LeaseOver)));
        let paused = [(100, other(1, true))];
        assert_eq!(observe_each(&paused), Some((3_000, GoneReason::LeaseOver)));
    }

    #[test]
    fn a_heartbeat_that_moves_keeps_a_replica_whose_subscription_is_missing() {
        let (mut detector, start) = detector();
        detector.observe(&other(0, true), start);
        for beat in 1..100 {
            let now = start + Duration::from_millis(100) * beat;
            assert_eq!(detector.observe(&other(i64::from(beat), false), now), []);
        }
    }

    #[test]
    fn a_server_that_never_showed_a_subscription_gives_no_reason_for_a_suspicion() {
        let restarted = |sighting| Sighting { server: SERVER + 1, ..sighting };
        let lease_over = Some((3_000, GoneReason::LeaseOver));
        // Never seen at all, and seen before a failover or a restart of the server.
        assert_eq!(observe_each(&[(50, other(1, false))]), lease_over);
        let seen = [(100, other(1, true)), (50, restarted(other(1, false)))];
        assert_eq!(observe_each(&seen), lease_over);
        // A permission is missing.
        let unknown = Sighting {
            watched: vec![("other".to_owned(), Watched { counter: Some(1), is_subscribed: None })],
            ..other(1, true)
        };
        assert_eq!(observe_each(&[(100, other(1, true)), (50, unknown)]), lease_over);
    }

    #[test]
    fn an_observer_whose_own_subscription_is_missing_suspects_no_replica_for_that() {
        let blind = |sighting| Sighting { sees_observer: false, ..sighting };
        let seen = [(100, other(1, true)), (50, blind(other(1, false))), (50, other(1, false))];
        assert_eq!(observe_each(&seen), Some((3_000, GoneReason::LeaseOver)));
    }

    #[test]
    fn a_pause_of_the_observer_does_not_count() {
        let (mut detector, start) = detector();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        detector.observe(&other(1, true), start);
        assert_eq!(detector.observe(&other(1, false), at(100)), []);
        assert_eq!(detector.observe(&other(1, false), at(700)), []);
        assert_eq!(detector.observe(&other(1, false), at(900)), []);
        let found = detector.observe(&other(1, false), at(1_000));
        assert_eq!(found, [gone_for(Some(1), GoneReason::ConnectionLost)]);
    }

    #[test]
    fn for_a_lease_after_redis_was_in_doubt_no_replica_is_suspected_for_its_connections() {
        let restarted = |sighting| Sighting { server: SERVER + 1, ..sighting };
        let blind = |sighting| Sighting { sees_observer: false, ..sighting };
        for doubtful in [restarted(other(2, true)), blind(other(2, true))] {
            // The replica connects, loses its connections again and is late with its heartbeat.
            let again = |counter, is_subscribed| Sighting {
                server: doubtful.server,
                ..other(counter, is_subscribed)
            };
            let seen = [
                (100, other(1, true)),
                (50, doubtful.clone()),
                (850, again(3, true)),
                (50, again(4, true)),
                (50, again(4, false)),
            ];
            let end = observe_each(&seen);
            assert_eq!(end.map(|(_, reason)| reason), Some(GoneReason::ConnectionLost));
            assert!(end.is_some_and(|(at, _)| (3_100..3_200).contains(&at)), "{end:?}");
        }
        // A reply that took long is such a doubt.
        let (mut detector, start) = detector();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        detector.observe(&other(1, true), start);
        let slow = Sighting { took: Duration::from_millis(1_900), ..other(2, true) };
        assert_eq!(detector.observe(&slow, at(1_900)), []);
        for late in (2_000..4_800).step_by(100) {
            assert_eq!(detector.observe(&other(2, false), at(late)), [], "{late}");
        }
    }

    #[test]
    fn the_time_of_a_slow_reply_is_no_part_of_a_lease() {
        let (mut detector, start) = detector();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let still = heartbeats(&[("other", 1)]);
        detector.observe(&still, start);
        let slow = Sighting { took: Duration::from_millis(2_900), ..still.clone() };
        assert_eq!(detector.observe(&slow, at(2_900)), []);
        for early in (3_000..5_900).step_by(100) {
            assert_eq!(detector.observe(&still, at(early)), [], "{early}");
        }
        let gone = detector.observe(&still, at(5_900));
        assert_eq!(gone.first().map(|gone| gone.reason), Some(GoneReason::LeaseOver));
    }

    #[test]
    fn each_replica_is_watched_by_equally_many_others() {
        let names: Vec<String> = (0..20).map(|number| format!("replica-{number:02}")).collect();
        let all: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let mut watchers = HashMap::<String, usize>::new();
        for name in &names {
            let timing = Timing { lease: LEASE, still: STILL };
            let mut detector = Detector::new(name.clone(), timing);
            detector.observe(&heartbeats(&all), Instant::now());
            let watched = detector.watched();
            assert!(!watched.contains(name));
            for name in watched {
                *watchers.entry(name).or_default() += 1;
            }
        }
        assert_eq!(watchers.len(), names.len());
        assert!(watchers.values().all(|count| *count == WATCHED), "{watchers:?}");
    }

    #[test]
    fn a_replica_that_was_not_looked_at_is_not_gone() {
        let (mut detector, start) = detector();
        detector.observe(&heartbeats(&[("other", 7), ("third", 7)]), start);
        let later = start + LEASE;
        let found = detector.observe(&other(7, true), later);
        assert_eq!(found, [gone_for(Some(7), GoneReason::LeaseOver)]);
        assert_eq!(detector.observe(&heartbeats(&[("other", 8), ("third", 8)]), later), []);
    }
}
