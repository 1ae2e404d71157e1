//! Circuit breakers: one for each host, and one for each model that has failed on it.
//!
//! A failed connection counts for the host's breaker, any other fault for the breaker of the model
//! on that host. Where several models fail on a host one after another, the host's breaker opens,
//! too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::error::Fault;
use super::lock;
use crate::model_name::ModelName;

/// Failures in a row that open a breaker.
const IN_A_ROW: u32 = 3;
/// Latest outcomes from which the failure rate is computed.
const WINDOW: usize = 20;
/// Outcomes without which there is no failure rate.
const MIN_OUTCOMES: usize = 10;
/// The failure rate that opens a breaker.
const FAILURE_RATE: f64 = 0.5;
/// Pause after a breaker has opened. It doubles with each trial that fails, up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A trial without an outcome may be followed by another after this time.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// While a trial of a model runs, its other generations retry after this.
const TRIAL_RETRY: Duration = Duration::from_millis(500);
/// Models that fail one after another, without a success between them, open the host's breaker.
const FAILING_MODELS: usize = 2;
/// Models of one host that have a breaker, at most.
const MODELS: usize = 1024;

/// The state of a breaker, which decides whether generations pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Generations pass.
    Closed,
    /// One generation may pass, as the trial with this number.
    HalfOpen(u64),
    /// No generation passes.
    Open,
}

/// The kind of admission that a generation got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BreakerAdmission {
    /// The breaker is closed.
    Normal,
    /// The generation is the one trial that shows whether the model works again.
    Trial,
}

/// The breaker of one host, and one for each model that has failed on it.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    state: Mutex<BreakerSet>,
}

#[derive(Debug, Default)]
struct BreakerSet {
    host: Breaker,
    models: BTreeMap<ModelName, Breaker>,
    /// Models whose breaker opened since the last success on this host.
    failing: BTreeSet<ModelName>,
}

impl Breakers {
    /// Returns the state of the host's breaker.
    pub(super) fn host(&self) -> BreakerState {
        lock(&self.state).host.state(Instant::now())
    }

    /// Returns the states of the breakers of the models that have failed on this host.
    pub(super) fn models(&self) -> BTreeMap<ModelName, BreakerState> {
        let now = Instant::now();
        let state = lock(&self.state);
        state.models.iter().map(|(model, breaker)| (model.clone(), breaker.state(now))).collect()
    }

    /// Admits a generation of this model, possibly as a trial.
    ///
    /// # Errors
    /// The time after which the caller may retry.
    pub(super) fn admit(&self, model: &ModelName) -> Result<BreakerAdmission, Duration> {
        let mut state = lock(&self.state);
        let admit = |breaker: &mut Breaker| breaker.admit(Instant::now());
        state.models.get_mut(model).map_or(Ok(BreakerAdmission::Normal), admit)
    }

    /// Ends a trial of this model, whatever its outcome.
    pub(super) fn release(&self, model: &ModelName) {
        if let Some(breaker) = lock(&self.state).models.get_mut(model) {
            breaker.admitted = None;
        }
    }

    /// Records that a generation of the model has begun, which closes both breakers.
    pub(super) fn begun(&self, model: &ModelName) {
        let mut state = lock(&self.state);
        if state.host.begun() {
            state.failing.clear();
        }
        if let Some(breaker) = state.models.get_mut(model) {
            breaker.begun();
        }
    }

    /// Records that a generation has ended without a fault.
    pub(super) fn succeeded(&self, model: &ModelName) {
        let mut state = lock(&self.state);
        state.failing.clear();
        state.host.succeeded();
        if let Some(breaker) = state.models.get_mut(model) {
            breaker.succeeded();
        }
    }

    /// Records that a generation, or a request for its model's details, has failed.
    pub(super) fn failed(&self, fault: Fault, model: &ModelName) {
        lock(&self.state).failed(fault, model, Instant::now());
    }

    /// Records that the host does not reply.
    pub(super) fn host_failed(&self) {
        lock(&self.state).host.failed(Instant::now());
    }
}

impl BreakerSet {
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
            _ if self.failing.len() >= FAILING_MODELS => self.host.open(now),
            // The fault is the model's, so the connection to the host works again.
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
    /// The latest outcomes; true is a success.
    outcomes: VecDeque<bool>,
    /// While it is not closed: the time from which trials are admitted, and the pause before it.
    opened: Option<(Instant, Duration)>,
    trials: u64,
    /// The time at which the running trial was admitted.
    admitted: Option<Instant>,
}

impl Breaker {
    fn state(&self, now: Instant) -> BreakerState {
        match self.opened {
            None => BreakerState::Closed,
            Some((from, _)) if now < from => BreakerState::Open,
            Some((from, _)) => BreakerState::HalfOpen(
                self.trials + (now - from).as_secs() / TRIAL_TIMEOUT.as_secs(),
            ),
        }
    }

    fn admit(&mut self, now: Instant) -> Result<BreakerAdmission, Duration> {
        match self.opened {
            None => Ok(BreakerAdmission::Normal),
            Some((from, _)) if now < from => Err(from - now),
            Some(_) if self.admitted.is_some_and(|at| now < at + TRIAL_TIMEOUT) => Err(TRIAL_RETRY),
            Some(_) => {
                self.admitted = Some(now);
                Ok(BreakerAdmission::Trial)
            }
        }
    }

    /// Closes the breaker, and returns whether it was open or half open.
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
        self.record(true);
    }

    fn failed(&mut self, now: Instant) {
        self.in_a_row += 1;
        self.record(false);
        if self.opened.is_some() || self.in_a_row >= IN_A_ROW || self.fails_often() {
            self.open(now);
        }
    }

    fn open(&mut self, now: Instant) {
        let pause = match self.opened {
            // The fault is of a generation that began before the breaker opened.
            Some((from, _)) if now < from => return,
            Some((_, pause)) => (pause * 2).min(LONGEST_PAUSE),
            None => PAUSE,
        };
        self.trials += 1;
        self.admitted = None;
        self.opened = Some((now + pause, pause));
    }

    fn record(&mut self, success: bool) {
        if self.outcomes.len() == WINDOW {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back(success);
    }

    fn fails_often(&self) -> bool {
        let (outcomes, failed) =
            (self.outcomes.len(), self.outcomes.iter().filter(|success| !**success).count());
        outcomes >= MIN_OUTCOMES && failed as f64 >= FAILURE_RATE * outcomes as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ModelName {
        ModelName::parse(name).expect("a name")
    }

    fn fail(state: &mut BreakerSet, fault: Fault, model: &str, now: Instant) {
        for _ in 0..IN_A_ROW {
            state.failed(fault, &name(model), now);
        }
    }

    #[test]
    fn failures_in_a_row_open_a_breaker_and_a_trial_that_begins_closes_it() {
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
        now += TRIAL_TIMEOUT;
        assert_eq!(breaker.state(now), BreakerState::HalfOpen(3), "the second had no outcome");
        breaker.begun();
        assert_eq!(breaker.state(now), BreakerState::Closed);
        breaker.failed(now);
        assert_eq!(breaker.state(now), BreakerState::Closed);
    }

    #[test]
    fn one_trial_at_a_time_is_admitted() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        assert_eq!(breaker.admit(now), Ok(BreakerAdmission::Normal));
        breaker.open(now);
        assert_eq!(breaker.admit(now), Err(PAUSE));
        now += PAUSE;
        assert_eq!(breaker.admit(now), Ok(BreakerAdmission::Trial));
        assert_eq!(breaker.admit(now), Err(TRIAL_RETRY));
        now += TRIAL_TIMEOUT;
        assert_eq!(breaker.admit(now), Ok(BreakerAdmission::Trial), "the first had no outcome");
        breaker.begun();
        assert_eq!(breaker.admit(now), Ok(BreakerAdmission::Normal));
        assert_eq!(breaker.admit(now), Ok(BreakerAdmission::Normal));
    }

    #[test]
    fn a_failure_rate_of_a_half_opens_a_breaker() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..MIN_OUTCOMES / 2 {
            assert_eq!(breaker.state(now), BreakerState::Closed);
            breaker.succeeded();
            breaker.failed(now);
        }
        assert_eq!(breaker.state(now), BreakerState::Open);
    }

    #[test]
    fn a_model_that_fails_opens_its_breaker_and_not_the_one_of_its_host() {
        let (mut state, now) = (BreakerSet::default(), Instant::now());
        for _ in 0..10 {
            fail(&mut state, Fault::Model, "broken", now);
        }
        assert_eq!(state.host.state(now), BreakerState::Closed);
        let opened: Vec<_> = state.models.keys().map(ModelName::as_str).collect();
        assert_eq!(opened, ["broken:latest"]);
        assert_eq!(state.models[&name("broken")].state(now), BreakerState::Open);
    }

    #[test]
    fn several_failing_models_open_the_breaker_of_their_host_unless_another_succeeds_between_them()
    {
        let (breakers, now) = (Breakers::default(), Instant::now());
        fail(&mut lock(&breakers.state), Fault::Model, "a", now);
        breakers.succeeded(&name("c"));
        fail(&mut lock(&breakers.state), Fault::Model, "b", now);
        assert_eq!(lock(&breakers.state).host.state(now), BreakerState::Closed);
        fail(&mut lock(&breakers.state), Fault::Model, "a", now);
        assert_eq!(lock(&breakers.state).host.state(now), BreakerState::Open);
    }

    #[test]
    fn failed_connections_open_the_breaker_of_a_host_until_one_works() {
        let (mut state, mut now) = (BreakerSet::default(), Instant::now());
        fail(&mut state, Fault::Host, "a", now);
        assert_eq!(state.host.state(now), BreakerState::Open);
        assert!(state.models.is_empty());
        now += PAUSE;
        state.failed(Fault::Model, &name("a"), now);
        assert_eq!(state.host.state(now), BreakerState::Closed, "the host replied");
    }
}
