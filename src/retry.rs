//! Retries with pauses that grow and differ, so that many callers do not retry at once.
//!
//! This module uses no other module of the crate, so that every module may use it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The pauses between attempts. They double up to a bound, and of each a random part of up to a
/// half is left out (equal jitter).
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    deadline: Option<Instant>,
    failures: u32,
}

impl Backoff {
    /// Creates a backoff whose pauses grow from `first` to `longest`, without a deadline.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, deadline: None, failures: 0 }
    }

    /// Creates the backoff of a caller that waits for Redis, where a lost connection is restored
    /// within milliseconds and a failover takes seconds.
    pub const fn redis() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_millis(500))
    }

    /// Sets the deadline: the last attempt begins then, at the latest.
    #[must_use]
    pub const fn until(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Starts again with the first pause, after an attempt that succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the pause after one more failure; none after the deadline.
    pub fn next_pause(&mut self) -> Option<Duration> {
        self.next_pause_at(Instant::now())
    }

    fn next_pause_at(&mut self, now: Instant) -> Option<Duration> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(now));
        if left == Some(Duration::ZERO) {
            return None;
        }
        let whole = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        let pause = whole.mul_f64(rand::random_range(0.5..=1.0));
        Some(left.map_or(pause, |left| pause.min(left)))
    }

    /// Waits before the next attempt. Returns `false` at once if there is none after the deadline.
    pub async fn pause(&mut self) -> bool {
        let Some(pause) = self.next_pause() else { return false };
        sleep(pause).await;
        true
    }
}

/// Makes attempts until one succeeds, one fails with an error that `is_retryable` refuses, or the
/// deadline of the backoff is over.
///
/// # Errors
/// The error of the last attempt.
pub async fn retry<T, E, F>(
    mut backoff: Backoff,
    mut attempt: impl FnMut() -> F,
    is_retryable: impl Fn(&E) -> bool,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    loop {
        match attempt().await {
            Err(error) if is_retryable(&error) => {
                if !backoff.pause().await {
                    return Err(error);
                }
            }
            done => return done,
        }
    }
}

/// Makes attempts until one succeeds, however long that takes. Calls `on_error` with each error.
pub async fn retry_until_ok<T, E, F>(
    mut backoff: Backoff,
    mut attempt: impl FnMut() -> F,
    on_error: impl Fn(E),
) -> T
where
    F: Future<Output = Result<T, E>>,
{
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => on_error(error),
        }
        // There is no deadline here.
        let _ = backoff.pause().await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_longest_and_differ_by_up_to_a_half() {
        let mut seen = Vec::new();
        for _ in 0..200 {
            let mut backoff = Backoff::new(FIRST, LONGEST);
            for whole in [100, 200, 400, 800, 1000, 1000].map(Duration::from_millis) {
                let pause = backoff.next_pause().expect("no deadline");
                assert!((whole / 2..=whole).contains(&pause), "{pause:?} of {whole:?}");
                seen.push(pause.div_duration_f64(whole));
            }
            backoff.reset();
            assert!(backoff.next_pause().expect("no deadline") <= FIRST);
        }
        let (least, most) = seen.iter().fold((1.0, 0.0), |(least, most): (f64, f64), share| {
            (least.min(*share), most.max(*share))
        });
        assert!(least < 0.6 && most > 0.9, "no jitter: {least} to {most}");
        let mut backoff = Backoff { failures: u32::MAX, ..Backoff::new(FIRST, LONGEST) };
        assert!(backoff.next_pause().expect("no deadline") <= LONGEST);
    }

    #[tokio::test]
    async fn attempts_continue_until_one_succeeds() {
        let (attempts, failures) = (Cell::new(0), Cell::new(0));
        let attempt = async || {
            attempts.set(attempts.get() + 1);
            if attempts.get() < 5 { Err("not yet") } else { Ok(attempts.get()) }
        };
        let began = Instant::now();
        let backoff = Backoff::new(FIRST / 50, LONGEST / 50);
        let value = retry_until_ok(backoff, attempt, |_| failures.set(failures.get() + 1));
        assert_eq!((value.await, failures.get()), (5, 4));
        // After 2, 4, 8 and 16 ms, or the halves of them.
        assert!(began.elapsed() >= Duration::from_millis(15), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn the_last_attempt_is_made_at_the_deadline_and_its_error_returned() {
        let limit = Duration::from_millis(60);
        let (began, attempts) = (Instant::now(), Cell::new(0));
        let backoff = Backoff::new(FIRST / 5, LONGEST).until(began + limit);
        let attempt = async || {
            attempts.set(attempts.get() + 1);
            Err::<(), _>((attempts.get(), began.elapsed()))
        };
        let (last, at) = retry(backoff, attempt, |_| true).await.expect_err("no success");
        assert!(last == attempts.get() && at >= limit, "{last} of {}, {at:?}", attempts.get());
        assert!((2..=5).contains(&last), "{last} attempts");
    }

    #[test]
    fn no_pause_is_longer_than_the_time_to_the_deadline_and_there_is_none_after_it() {
        let now = Instant::now();
        let left = Duration::from_millis(7);
        let mut backoff = Backoff::new(FIRST, LONGEST).until(now + left);
        assert_eq!(backoff.next_pause_at(now), Some(left));
        assert_eq!(backoff.next_pause_at(now + left), None);
        assert_eq!(backoff.next_pause_at(now + LONGEST), None);
    }

    #[tokio::test]
    async fn an_error_that_is_not_to_be_retried_is_returned_after_one_attempt() {
        let attempts = Cell::new(0);
        let attempt = async || {
            attempts.set(attempts.get() + 1);
            Err::<(), _>("refused")
        };
        let refused = retry(Backoff::redis(), attempt, |error| *error != "refused").await;
        assert_eq!((refused, attempts.get()), (Err("refused"), 1));
    }
}
