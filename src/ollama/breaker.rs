//! When a host is let alone, and when it may be tried again.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::lock;

/// Failures in a row that open the breaker.
const IN_A_ROW: u32 = 3;
/// Outcomes that are looked at for the rate, from the newest back, and how many it takes.
const LOOKED_AT: usize = 20;
const ENOUGH: usize = 10;
/// Of them, the share that opens the breaker.
const RATE: f64 = 0.5;
/// Pause after it has opened, doubled with each trial that fails, up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A trial of which nothing was heard for so long may be followed by another.
const TRIAL: Duration = Duration::from_secs(30);

/// Whether generations may go to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// They may.
    Open,
    /// One may; trials are counted.
    Trial(u64),
    /// None may.
    Shut,
}

/// The breaker of one host, by the outcomes of its generations.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_a_row: u32,
    outcomes: VecDeque<bool>,
    /// Since it opened: when trials begin, and the pause that led to it.
    opened: Option<(Instant, Duration)>,
    trials: u64,
}

impl Breaker {
    /// Whether generations may go there now.
    pub(super) fn passage(&self) -> Passage {
        lock(&self.state).passage(Instant::now())
    }

    /// A generation has begun: a trial that comes so far has succeeded.
    pub(super) fn begun(&self) {
        lock(&self.state).begun();
    }

    /// A generation has ended well.
    pub(super) fn succeeded(&self) {
        let mut state = lock(&self.state);
        state.in_a_row = 0;
        state.note(true);
    }

    /// A generation failed by the host's fault.
    pub(super) fn failed(&self) {
        lock(&self.state).failed(Instant::now());
    }
}

impl State {
    fn passage(&self, now: Instant) -> Passage {
        match self.opened {
            None => Passage::Open,
            Some((from, _)) if now < from => Passage::Shut,
            Some((from, _)) => {
                Passage::Trial(self.trials + (now - from).as_secs() / TRIAL.as_secs())
            }
        }
    }

    fn begun(&mut self) {
        if self.opened.take().is_some() {
            self.in_a_row = 0;
            self.outcomes.clear();
        }
    }

    fn failed(&mut self, now: Instant) {
        self.in_a_row += 1;
        self.note(false);
        let pause = match self.opened {
            // One that had begun before.
            Some((from, _)) if now < from => return,
            Some((_, pause)) => (pause * 2).min(LONGEST_PAUSE),
            None if self.in_a_row >= IN_A_ROW || self.fails_often() => PAUSE,
            None => return,
        };
        self.trials += 1;
        self.opened = Some((now + pause, pause));
    }

    fn note(&mut self, well: bool) {
        if self.outcomes.len() == LOOKED_AT {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back(well);
    }

    fn fails_often(&self) -> bool {
        let failed = self.outcomes.iter().filter(|well| !**well).count();
        self.outcomes.len() >= ENOUGH && failed as f64 >= RATE * self.outcomes.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_shut_it_and_a_trial_that_begins_opens_it() {
        let (mut state, mut now) = (State::default(), Instant::now());
        for _ in 0..IN_A_ROW {
            assert_eq!(state.passage(now), Passage::Open);
            state.failed(now);
        }
        assert_eq!(state.passage(now), Passage::Shut);
        now += PAUSE;
        assert_eq!(state.passage(now), Passage::Trial(1));
        state.failed(now);
        now += PAUSE;
        assert_eq!(state.passage(now), Passage::Shut, "a longer pause than the first");
        now += PAUSE;
        assert_eq!(state.passage(now), Passage::Trial(2));
        now += TRIAL;
        assert_eq!(state.passage(now), Passage::Trial(3), "the second was never heard of");
        state.begun();
        assert_eq!(state.passage(now), Passage::Open);
        state.failed(now);
        assert_eq!(state.passage(now), Passage::Open);
    }

    #[test]
    fn a_host_that_fails_every_other_time_is_let_alone_too() {
        let breaker = Breaker::default();
        for _ in 0..ENOUGH / 2 {
            assert_eq!(breaker.passage(), Passage::Open);
            breaker.succeeded();
            breaker.failed();
        }
        assert_eq!(breaker.passage(), Passage::Shut);
    }
}
