//! When a host, or one model on it, is left alone, and when it may be tried again.
//!
//! A failure is charged to whom it belongs: one of the connection to the host, any other to the
//! model on that host. Where a host fails several models one after another, it is the host's, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::error::Fault;
use super::lock;
use crate::model_name::ModelName;

/// Failures in a row that open a breaker.
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
/// While a trial of a model is under way, its other generations come back after this.
const TRIAL_AGAIN: Duration = Duration::from_millis(500);
/// Models that fail one after another, with nothing that ends well between them, for which the host
/// is to blame.
const SEVERAL: usize = 2;
/// Models of one host that have a breaker, at most.
const MODELS: usize = 1024;

/// Whether generations may go somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// They may.
    Closed,
    /// One may try; trials are counted.
    HalfOpen(u64),
    /// None may.
    Open,
}

/// How a generation was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// As any other.
    Free,
    /// As the only one, to see whether the model is well again.
    Trial,
}

/// The breakers of one host: its own, and one for each model that has failed there.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    host: Breaker,
    models: BTreeMap<ModelName, Breaker>,
    /// Models whose breaker opened since something last ended well on this host.
    failing: BTreeSet<ModelName>,
}

impl Breakers {
    /// Whether generations may go to the host.
    pub(super) fn host(&self) -> BreakerState {
        lock(&self.state).host.state(Instant::now())
    }

    /// The breakers of the models that have failed on this host.
    pub(super) fn models(&self) -> BTreeMap<ModelName, BreakerState> {
        let now = Instant::now();
        let state = lock(&self.state);
        state.models.iter().map(|(model, breaker)| (model.clone(), breaker.state(now))).collect()
    }

    /// Lets a generation of this model begin now; it may be a trial.
    ///
    /// # Errors
    /// When to come back.
    pub(super) fn admit(&self, model: &ModelName) -> Result<Admission, Duration> {
        let mut state = lock(&self.state);
        let admit = |breaker: &mut Breaker| breaker.admit(Instant::now());
        state.models.get_mut(model).map_or(Ok(Admission::Free), admit)
    }

    /// A trial of this model is over, whatever it told.
    pub(super) fn release(&self, model: &ModelName) {
        if let Some(breaker) = lock(&self.state).models.get_mut(model) {
            breaker.admitted = None;
        }
    }

    /// The host answers, and the model as it should: a trial that comes so far has succeeded.
    pub(super) fn begun(&self, model: &ModelName) {
        let mut state = lock(&self.state);
        if state.host.begun() {
            state.failing.clear();
        }
        if let Some(breaker) = state.models.get_mut(model) {
            breaker.begun();
        }
    }

    /// A generation has ended well.
    pub(super) fn succeeded(&self, model: &ModelName) {
        let mut state = lock(&self.state);
        state.failing.clear();
        state.host.succeeded();
        if let Some(breaker) = state.models.get_mut(model) {
            breaker.succeeded();
        }
    }

    /// A generation, or a question about its model, has failed.
    pub(super) fn failed(&self, fault: Fault, model: &ModelName) {
        lock(&self.state).failed(fault, model, Instant::now());
    }

    /// The host does not answer.
    pub(super) fn host_failed(&self) {
        lock(&self.state).host.failed(Instant::now());
    }
}

impl State {
    fn failed(&mut self, fault: Fault, model: &ModelName, now: Instant) {
        if fault == Fault::Host {
            self.host.failed(now);
            return;
        }
        if self.models.len() >= MODELS && !self.models.contains_key(model) {
            self.models.retain(|_, breaker| breaker.state(now) != BreakerState::Closed);
            if self.models.len() >= MODELS {
                return;
            }
        }
        let breaker = self.models.entry(model.clone()).or_default();
        breaker.failed(now);
        if breaker.state(now) == BreakerState::Open {
            self.failing.insert(model.clone());
        }
        match self.host.state(now) {
            _ if self.failing.len() >= SEVERAL => self.host.open(now),
            // Its connection holds: what it was closed for is over.
            BreakerState::HalfOpen(_) => {
                self.host.begun();
            }
            BreakerState::Closed | BreakerState::Open => {}
        }
    }
}

/// One breaker: closed, then open for a pause, then half open until a trial has succeeded.
#[derive(Debug, Default)]
struct Breaker {
    in_a_row: u32,
    outcomes: VecDeque<bool>,
    /// Since it opened: when trials begin, and the pause that led to it.
    opened: Option<(Instant, Duration)>,
    trials: u64,
    /// When the last trial was admitted.
    admitted: Option<Instant>,
}

impl Breaker {
    fn state(&self, now: Instant) -> BreakerState {
        match self.opened {
            None => BreakerState::Closed,
            Some((from, _)) if now < from => BreakerState::Open,
            Some((from, _)) => {
                BreakerState::HalfOpen(self.trials + (now - from).as_secs() / TRIAL.as_secs())
            }
        }
    }

    fn admit(&mut self, now: Instant) -> Result<Admission, Duration> {
        match self.opened {
            None => Ok(Admission::Free),
            Some((from, _)) if now < from => Err(from - now),
            Some(_) if self.admitted.is_some_and(|at| now < at + TRIAL) => Err(TRIAL_AGAIN),
            Some(_) => {
                self.admitted = Some(now);
                Ok(Admission::Trial)
            }
        }
    }

    /// Closes it; gives whether it was not closed.
    fn begun(&mut self) -> bool {
        let was_opened = self.opened.take().is_some();
        if was_opened {
            self.in_a_row = 0;
            self.outcomes.clear();
            self.admitted = None;
        }
        was_opened
    }

    fn succeeded(&mut self) {
        self.in_a_row = 0;
        self.note(true);
    }

    fn failed(&mut self, now: Instant) {
        self.in_a_row += 1;
        self.note(false);
        if self.opened.is_some() || self.in_a_row >= IN_A_ROW || self.fails_often() {
            self.open(now);
        }
    }

    fn open(&mut self, now: Instant) {
        let pause = match self.opened {
            // By what had begun before.
            Some((from, _)) if now < from => return,
            Some((_, pause)) => (pause * 2).min(LONGEST_PAUSE),
            None => PAUSE,
        };
        self.trials += 1;
        self.admitted = None;
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

    fn name(name: &str) -> ModelName {
        ModelName::parse(name).expect("a name")
    }

    fn fail(state: &mut State, fault: Fault, model: &str, now: Instant) {
        for _ in 0..IN_A_ROW {
            state.failed(fault, &name(model), now);
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_trial_that_begins_closes_it() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..IN_A_ROW {
            assert_eq!(breaker.state(now), BreakerState::Closed);
            breaker.failed(now);
        }
        assert_eq!(breaker.state(now), BreakerState::Open);
        now += PAUSE;
        assert_eq!(breaker.state(now), BreakerState::HalfOpen(1));
        breaker.failed(now);
        now += PAUSE;
        assert_eq!(breaker.state(now), BreakerState::Open, "a longer pause than the first");
        now += PAUSE;
        assert_eq!(breaker.state(now), BreakerState::HalfOpen(2));
        now += TRIAL;
        assert_eq!(breaker.state(now), BreakerState::HalfOpen(3), "the second was never heard of");
        breaker.begun();
        assert_eq!(breaker.state(now), BreakerState::Closed);
        breaker.failed(now);
        assert_eq!(breaker.state(now), BreakerState::Closed);
    }

    #[test]
    fn one_trial_at_a_time_is_admitted() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        assert_eq!(breaker.admit(now), Ok(Admission::Free));
        breaker.open(now);
        assert_eq!(breaker.admit(now), Err(PAUSE));
        now += PAUSE;
        assert_eq!(breaker.admit(now), Ok(Admission::Trial));
        assert_eq!(breaker.admit(now), Err(TRIAL_AGAIN));
        now += TRIAL;
        assert_eq!(breaker.admit(now), Ok(Admission::Trial), "the first was never heard of");
        breaker.begun();
        assert_eq!(breaker.admit(now), Ok(Admission::Free));
        assert_eq!(breaker.admit(now), Ok(Admission::Free));
    }

    #[test]
    fn what_fails_every_other_time_is_left_alone_too() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..ENOUGH / 2 {
            assert_eq!(breaker.state(now), BreakerState::Closed);
            breaker.succeeded();
            breaker.failed(now);
        }
        assert_eq!(breaker.state(now), BreakerState::Open);
    }

    #[test]
    fn a_model_that_fails_is_left_alone_and_its_host_is_not() {
        let (mut state, now) = (State::default(), Instant::now());
        for _ in 0..10 {
            fail(&mut state, Fault::Model, "broken", now);
        }
        assert_eq!(state.host.state(now), BreakerState::Closed);
        let opened: Vec<_> = state.models.keys().map(ModelName::as_str).collect();
        assert_eq!(opened, ["broken:latest"]);
        assert_eq!(state.models[&name("broken")].state(now), BreakerState::Open);
    }

    #[test]
    fn a_host_that_fails_several_models_is_left_alone_unless_another_ends_well_between_them() {
        let (breakers, now) = (Breakers::default(), Instant::now());
        fail(&mut lock(&breakers.state), Fault::Model, "a", now);
        breakers.succeeded(&name("c"));
        fail(&mut lock(&breakers.state), Fault::Model, "b", now);
        assert_eq!(lock(&breakers.state).host.state(now), BreakerState::Closed);
        fail(&mut lock(&breakers.state), Fault::Model, "a", now);
        assert_eq!(lock(&breakers.state).host.state(now), BreakerState::Open);
    }

    #[test]
    fn a_host_whose_connections_fail_is_left_alone_until_one_holds() {
        let (mut state, mut now) = (State::default(), Instant::now());
        fail(&mut state, Fault::Host, "a", now);
        assert_eq!(state.host.state(now), BreakerState::Open);
        assert!(state.models.is_empty());
        now += PAUSE;
        state.failed(Fault::Model, &name("a"), now);
        assert_eq!(state.host.state(now), BreakerState::Closed, "it answered");
    }
}
