//! The rule by which traces are sampled. The decision is made once, where a request arrives.
//!
//! A client's flag is a wish: without a bound, any client could have all of its requests recorded.
//! The share is decided by a random number and not by the trace's identifier, which the client
//! chooses.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::TraceContext;
use crate::config::TraceSampling;

/// The time in which the traces are counted that clients force.
const WINDOW: Duration = Duration::from_secs(1);

/// Decides about each trace.
#[derive(Debug)]
pub(super) struct Sampler {
    sampling: TraceSampling,
    /// The beginning of the window, and the traces in it that clients forced.
    forced: Mutex<(Instant, u32)>,
}

impl Sampler {
    pub(super) fn new(sampling: TraceSampling) -> Self {
        Self { sampling, forced: Mutex::new((Instant::now(), 0)) }
    }

    /// Returns whether the trace of a request is sampled, with the context that its client sent.
    pub(super) fn samples(&self, client: Option<&TraceContext>) -> bool {
        let TraceSampling { share, follows_client, .. } = self.sampling;
        let is_in_share = || share > 0.0 && rand::random::<f64>() < share;
        match client.filter(|_| follows_client) {
            None => is_in_share(),
            Some(client) => {
                client.is_sampled() && (is_in_share() || self.may_force(Instant::now()))
            }
        }
    }

    /// Takes one of the traces that clients may force.
    fn may_force(&self, now: Instant) -> bool {
        let mut forced = self.forced.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(forced.0) >= WINDOW {
            *forced = (now, 0);
        }
        let may = forced.1 < self.sampling.client_traces;
        forced.1 += u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how many of a thousand traces are sampled, with this flag of their client.
    fn sampled(sampling: TraceSampling, flag: Option<bool>) -> usize {
        let sampler = Sampler::new(sampling);
        let client = flag.map(TraceContext::root);
        (0..1000).filter(|_| sampler.samples(client.as_ref())).count()
    }

    #[test]
    fn a_clients_flag_turns_sampling_off_and_forces_only_a_few_traces_a_second() {
        let with =
            |share, client_traces| TraceSampling { share, client_traces, follows_client: true };
        for (sampling, none, off, on) in [
            (with(1.0, 1), 1000..=1000, 0, 1000..=1000),
            // A slow machine may take more than a second.
            (with(0.0, 3), 0..=0, 0, 3..=30),
            (with(0.0, 0), 0..=0, 0, 0..=0),
            (with(0.1, 0), 30..=200, 0, 30..=200),
        ] {
            assert!(none.contains(&sampled(sampling, None)), "{sampling:?}");
            assert_eq!(sampled(sampling, Some(false)), off, "{sampling:?}");
            assert!(on.contains(&sampled(sampling, Some(true))), "{sampling:?}");
        }
        let ignores = TraceSampling { share: 1.0, follows_client: false, client_traces: 9 };
        assert_eq!(sampled(ignores, Some(false)), 1000);
        assert_eq!(sampled(TraceSampling { share: 0.0, ..ignores }, Some(true)), 0);
    }

    #[test]
    fn the_traces_that_clients_force_are_counted_by_the_second() {
        let sampler =
            Sampler::new(TraceSampling { share: 0.0, client_traces: 2, follows_client: true });
        let now = Instant::now();
        let forced = |at: Duration| (0..9).filter(|_| sampler.may_force(now + at)).count();
        assert_eq!(forced(Duration::from_millis(900)), 2);
        assert_eq!(forced(Duration::from_millis(950)), 0);
        assert_eq!(forced(Duration::from_millis(1900)), 2);
    }
}
