//! What is known of the fleet: the last look, and what only several looks show.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::sample::FleetSample;

/// Looks whose tokens a second are kept.
const HISTORY: usize = 24;

/// The fleet, as far as it is known.
#[derive(Default)]
pub(super) struct KnownFleet {
    pub(super) look: Option<FleetSample>,
    /// The tokens a second of all replicas at the last looks, the oldest first.
    pub(super) tokens: VecDeque<f64>,
    /// Why the last look failed, and since when looks fail.
    pub(super) trouble: Option<Trouble>,
    /// The counter of each replica's heartbeat, and when it last moved.
    heartbeats: HashMap<String, (i64, Instant)>,
    /// When the last look was taken.
    at: Option<Instant>,
}

/// Why there is no new look.
pub(super) struct Trouble {
    pub(super) text: String,
    pub(super) since: Instant,
}

impl KnownFleet {
    /// Learns from a look, or that there was none.
    pub(super) fn apply(&mut self, look: Result<FleetSample, String>, now: Instant) {
        let look = match look {
            Ok(look) => look,
            Err(text) => {
                let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
                self.trouble = Some(Trouble { text, since });
                return;
            }
        };
        self.trouble = None;
        self.at = Some(now);
        let replicas = &look.overview.replicas.first;
        let last = std::mem::take(&mut self.heartbeats);
        for replica in replicas {
            let Some(counter) = replica.counter else { continue };
            let moved = match last.get(&replica.name) {
                Some((before, moved)) if *before == counter => *moved,
                Some(_) => now,
                // At the first sight only Redis knows how old it is.
                None => now.checked_sub(replica.age.unwrap_or_default()).unwrap_or(now),
            };
            self.heartbeats.insert(replica.name.clone(), (counter, moved));
        }
        let figures = replicas.iter().filter_map(|replica| replica.figures.as_ref());
        self.tokens.push_back(figures.map(|figures| figures.tokens).sum());
        if self.tokens.len() > HISTORY {
            self.tokens.pop_front();
        }
        self.look = Some(look);
    }

    /// Returns how long before the last look a replica's heartbeat was seen to move; none where it has
    /// none.
    pub(super) fn heartbeat_age(&self, replica: &str) -> Option<Duration> {
        let (_, moved) = self.heartbeats.get(replica)?;
        Some(self.at?.saturating_duration_since(*moved))
    }
}

#[cfg(test)]
mod tests {
    use jarvis::queue::{Capped, Overview, ReplicaOverview};

    use super::*;

    fn look(counter: i64, age: u64) -> FleetSample {
        let replica = ReplicaOverview {
            name: "r".to_owned(),
            counter: Some(counter),
            figures: None,
            age: Some(Duration::from_secs(age)),
        };
        let replicas = Capped { first: vec![replica], total: 1 };
        FleetSample { overview: Overview { replicas, ..Overview::default() }, servers: Vec::new() }
    }

    #[test]
    fn the_age_of_a_heartbeat_is_the_time_since_it_moved_and_at_first_sight_that_of_its_figures() {
        let (mut fleet, start) = (KnownFleet::default(), Instant::now());
        let at = |second: u64| start + Duration::from_secs(second);
        let age = |fleet: &KnownFleet| fleet.heartbeat_age("r").map(|age| age.as_secs());
        fleet.apply(Ok(look(7, 1)), at(0));
        assert_eq!(age(&fleet), Some(1));
        fleet.apply(Ok(look(9, 1)), at(1));
        assert_eq!(age(&fleet), Some(0));
        fleet.apply(Ok(look(9, 5)), at(4));
        assert_eq!(age(&fleet), Some(3), "a heartbeat that stands still grows old");
    }

    #[test]
    fn a_look_that_failed_leaves_the_last_one_and_says_since_when() {
        let (mut fleet, start) = (KnownFleet::default(), Instant::now());
        fleet.apply(Ok(look(7, 0)), start);
        for second in 1..4 {
            fleet.apply(Err("away".to_owned()), start + Duration::from_secs(second));
        }
        let trouble = fleet.trouble.as_ref().expect("trouble");
        assert_eq!(trouble.since, start + Duration::from_secs(1));
        assert!(fleet.look.is_some());
        fleet.apply(Ok(look(8, 0)), start + Duration::from_secs(5));
        assert!(fleet.trouble.is_none());
    }
}
