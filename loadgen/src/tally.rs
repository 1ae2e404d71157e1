//! What all sessions count together while they run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::checker::Flaw;

/// Flaws that are kept word by word, at most.
const FLAWS_KEPT: usize = 100;
/// Longest time that is told apart from longer ones: ten minutes, in microseconds.
const LONGEST: u64 = 600_000_000;

/// Figures that only grow, but for those of what is open now.
#[derive(Debug, Default)]
pub struct Counters {
    /// Conversations that were begun.
    pub conversations: AtomicU64,
    /// Turns that run now.
    pub running: AtomicU64,
    /// Turns that were begun.
    pub turns: AtomicU64,
    /// Turns whose answer came to its end.
    pub complete: AtomicU64,
    /// Turns that ended with an error that the client was told.
    pub failed: AtomicU64,
    /// Bytes that never came.
    pub lost: AtomicU64,
    /// Bytes that came twice.
    pub doubled: AtomicU64,
    /// Events that came where none of their type may come.
    pub reordered: AtomicU64,
    /// Answers that are not what the script says.
    pub wrong: AtomicU64,
    /// Accepted turns, or ends, that the service does not know any more.
    pub forgotten: AtomicU64,
    /// Turns without an end within the limit.
    pub unfinished: AtomicU64,
    /// Times that text was taken back to be written anew.
    pub restarts: AtomicU64,
    /// Connections that could not be resumed and got a snapshot.
    pub unrecovered: AtomicU64,
    /// Connections after the first of their session.
    pub reconnects: AtomicU64,
    /// Messages that were sent again with their own identifier.
    pub resends: AtomicU64,
    /// Conversations whose stored history was compared.
    pub histories: AtomicU64,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A flaw, with where and when.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Found {
    /// Seconds since the beginning.
    pub at: f64,
    /// How the client spoke to the service.
    pub client: &'static str,
    /// The conversation.
    pub session: String,
    /// The run that made the answer, where it is known.
    pub generation: Option<String>,
    /// What was wrong.
    pub flaw: String,
}

/// Times and texts, which need more than a counter.
#[derive(Debug)]
pub struct Measured {
    /// From a message sent to the first character.
    pub first_token: Histogram<u64>,
    /// Between one piece of an answer and the next, whatever happened in between.
    pub gap: Histogram<u64>,
    /// From a lost connection to the next new character.
    pub recovery: Histogram<u64>,
    /// The same where the replica had said when to come back.
    pub told_recovery: Histogram<u64>,
    /// Errors by code.
    pub errors: BTreeMap<String, u64>,
    /// The first flaws.
    pub flaws: Vec<Found>,
}

/// All figures of a run.
#[derive(Debug)]
pub struct Tally {
    /// When it began.
    pub began: Instant,
    /// The counters.
    pub counters: Counters,
    measured: Mutex<Measured>,
    /// Milliseconds from the beginning to the last character that any client got.
    last_heard: AtomicU64,
    /// The longest time in which no client got any, in milliseconds.
    silence: AtomicU64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            counters: Counters::default(),
            measured: Mutex::new(Measured {
                first_token: times(),
                gap: times(),
                recovery: times(),
                told_recovery: times(),
                errors: BTreeMap::new(),
                flaws: Vec::new(),
            }),
            last_heard: AtomicU64::new(0),
            silence: AtomicU64::new(0),
        }
    }
}

/// A histogram of microseconds up to ten minutes, to three digits.
pub fn times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).unwrap_or_else(|_| unreachable!("bounds are sound"))
}

/// Writes a time down.
pub fn record(histogram: &mut Histogram<u64>, time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(LONGEST).clamp(1, LONGEST);
    histogram.saturating_record(micros);
}

impl Tally {
    /// Times and texts.
    pub fn measured(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Some client got a character.
    pub fn heard(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let before = self.last_heard.fetch_max(now, Ordering::Relaxed);
        if before > 0 {
            self.silence.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
        }
    }

    /// The longest time in which no client got a character.
    pub fn longest_silence(&self) -> Duration {
        Duration::from_millis(self.silence.load(Ordering::Relaxed))
    }

    /// An error that a client was told, or that befell its connection.
    pub fn error(&self, code: &str) {
        let mut measured = self.measured();
        if let Some(count) = measured.errors.get_mut(code) {
            *count += 1;
        } else {
            measured.errors.insert(code.to_owned(), 1);
        }
    }

    /// A broken promise.
    pub fn flaw(&self, client: &'static str, session: &str, generation: Option<&str>, flaw: &Flaw) {
        let counters = &self.counters;
        let (counter, by) = match flaw {
            Flaw::Lost(bytes) => (&counters.lost, *bytes as u64),
            Flaw::Doubled(bytes) => (&counters.doubled, *bytes as u64),
            Flaw::Reordered(_) => (&counters.reordered, 1),
            Flaw::Wrong(_) => (&counters.wrong, 1),
            Flaw::Forgotten(_) => (&counters.forgotten, 1),
            Flaw::Unfinished(_) => (&counters.unfinished, 1),
        };
        counter.fetch_add(by, Ordering::Relaxed);
        let mut measured = self.measured();
        if measured.flaws.len() < FLAWS_KEPT {
            measured.flaws.push(Found {
                at: self.began.elapsed().as_secs_f64(),
                client,
                session: session.to_owned(),
                generation: generation.map(str::to_owned),
                flaw: flaw.to_string(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_to_three_digits_up_to_ten_minutes() {
        let mut histogram = times();
        record(&mut histogram, Duration::from_micros(1234));
        record(&mut histogram, Duration::from_hours(1));
        assert_eq!(histogram.value_at_quantile(0.5), 1234);
        assert!(histogram.max() >= LONGEST && histogram.max() < LONGEST + LONGEST / 500);
    }
}
