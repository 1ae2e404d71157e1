//! The counters of all sessions of a run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::checker::Flaw;

/// The flaws that are kept with their text, at most.
const FLAWS_KEPT: usize = 100;
/// The recoveries that are kept with their parts.
const SLOWEST_KEPT: usize = 12;
/// The shortest pause that is kept: hosts write more often, and a takeover takes longer.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// The pauses that are kept, at most.
const PAUSES_KEPT: usize = 1_000_000;
/// The longest time that a histogram distinguishes: ten minutes, in microseconds.
const LONGEST: u64 = 600_000_000;

/// Counters that only grow, but for that of the running turns.
#[derive(Debug, Default)]
pub struct Counters {
    /// Conversations that began.
    pub conversations: AtomicU64,
    /// Turns that run now.
    pub running: AtomicU64,
    /// Turns that began.
    pub turns: AtomicU64,
    /// Those of them that regenerate an answer or edit a question.
    pub branched: AtomicU64,
    /// Turns whose answer came to its end.
    pub complete: AtomicU64,
    /// Turns that ended with an error event.
    pub failed: AtomicU64,
    /// Bytes that never came.
    pub lost: AtomicU64,
    /// Bytes that came twice.
    pub doubled: AtomicU64,
    /// Events that came where none of their type may come.
    pub reordered: AtomicU64,
    /// Answers that differ from the script.
    pub wrong: AtomicU64,
    /// Accepted turns, or ends, that the service has lost.
    pub forgotten: AtomicU64,
    /// Turns without an end within the limit.
    pub unfinished: AtomicU64,
    /// Restarts that took text back.
    pub restarts: AtomicU64,
    /// Connections that could not be resumed and got a snapshot.
    pub unrecovered: AtomicU64,
    /// Connections after the first of their session.
    pub reconnects: AtomicU64,
    /// Messages that were sent again with their own identifier.
    pub resends: AtomicU64,
    /// Conversations whose stored history was compared.
    pub histories: AtomicU64,
    /// Streams of responses that had ended, which were compared with what was streamed before.
    pub replays: AtomicU64,
    /// Responses that were streamed again after every one of their events.
    pub whole_replays: AtomicU64,
    /// Responses that were to be streamed again.
    pub replayed_responses: AtomicU64,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A flaw, with its time and origin.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Found {
    /// The seconds since the beginning.
    pub at: f64,
    /// The client's protocol.
    pub client: &'static str,
    /// The session.
    pub session: String,
    /// The generation, where it is known.
    pub generation: Option<String>,
    /// The broken promise.
    pub flaw: String,
}

/// A recovery: the time from a lost connection to the next character, by its parts.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Recovery {
    /// The seconds from the beginning of the run to the loss.
    pub at: f64,
    /// The client's protocol.
    pub client: &'static str,
    /// The session.
    pub session: String,
    /// The generation, where it is known.
    pub generation: Option<String>,
    /// The attempts to connect.
    pub attempts: u32,
    /// The seconds until the client was connected again.
    pub connected: f64,
    /// The seconds from there to the next character.
    pub character: f64,
}

impl Recovery {
    /// Returns the seconds from the loss to the next character.
    pub fn seconds(&self) -> f64 {
        self.connected + self.character
    }
}

/// A time without a character on a connection that stayed.
#[derive(Clone, Debug)]
pub struct Pause {
    /// The generation.
    pub generation: String,
    /// The last character before it.
    pub from: tokio::time::Instant,
    /// The first character after it.
    pub until: tokio::time::Instant,
}

/// Times and texts, which need more than a counter.
#[derive(Debug)]
pub struct Measured {
    /// The times from a message to the first character.
    pub first_token: Histogram<u64>,
    /// The times between one piece of an answer and the next, outages included.
    pub gap: Histogram<u64>,
    /// The times from a lost connection to the next new character.
    pub recovery: Histogram<u64>,
    /// The slowest of them.
    pub slowest: Vec<Recovery>,
    /// The times from a lost connection of a plain request to its whole answer.
    pub whole_answer: Histogram<u64>,
    /// The same where the replica had announced the end with a retry time.
    pub announced_recovery: Histogram<u64>,
    /// The longer times without a character on a connection that stayed.
    pub pauses: Vec<Pause>,
    /// Errors by code.
    pub errors: BTreeMap<String, u64>,
    /// The first flaws.
    pub flaws: Vec<Found>,
    /// The gaps of the present part of the run.
    part_gap: Histogram<u64>,
    /// The errors when the present part of the run began.
    errors_before: BTreeMap<String, u64>,
}

/// All counters and times of a run.
#[derive(Debug)]
pub struct Tally {
    /// The beginning.
    pub began: Instant,
    /// The counters.
    pub counters: Counters,
    measured: Mutex<Measured>,
    /// The milliseconds from the beginning to the last character that any client got.
    last_heard: AtomicU64,
    /// The longest time in which no client got a character, in milliseconds.
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
                slowest: Vec::new(),
                whole_answer: times(),
                announced_recovery: times(),
                pauses: Vec::new(),
                errors: BTreeMap::new(),
                flaws: Vec::new(),
                part_gap: times(),
                errors_before: BTreeMap::new(),
            }),
            last_heard: AtomicU64::new(0),
            silence: AtomicU64::new(0),
        }
    }
}

/// Creates a histogram of microseconds up to ten minutes, to three digits.
pub fn times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).unwrap_or_else(|_| unreachable!("bounds are sound"))
}

/// Records a time.
pub fn record(histogram: &mut Histogram<u64>, time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(LONGEST).clamp(1, LONGEST);
    histogram.saturating_record(micros);
}

/// The measurements of honest sessions in one part of a run.
#[derive(Debug)]
pub struct Honest {
    /// The times between one piece of an answer and the next.
    pub gap: Histogram<u64>,
    /// The errors by code, those of turns and of connections, and flaws.
    pub errors: BTreeMap<String, u64>,
    /// The errors of the run when the part began.
    before: BTreeMap<String, u64>,
}

impl Default for Honest {
    fn default() -> Self {
        Self { gap: times(), errors: BTreeMap::new(), before: BTreeMap::new() }
    }
}

impl Honest {
    /// Counts the errors from the beginning of the part until now.
    pub fn count_errors(&mut self, tally: &Tally) {
        self.errors = tally.all_errors();
        for (code, before) in &self.before {
            if let Some(count) = self.errors.get_mut(code) {
                *count = count.saturating_sub(*before);
            }
        }
        self.errors.retain(|_, count| *count > 0);
    }
}

impl Measured {
    /// Records the time between one piece of an answer and the next.
    pub fn gap(&mut self, gap: Duration) {
        record(&mut self.gap, gap);
        record(&mut self.part_gap, gap);
    }

    /// Keeps a longer time without a character on a connection that stayed.
    pub fn paused(&mut self, pause: Pause) {
        if pause.until - pause.from >= SHORTEST_PAUSE && self.pauses.len() < PAUSES_KEPT {
            self.pauses.push(pause);
        }
    }

    /// Records a recovery.
    pub fn recovered(&mut self, recovery: Recovery) {
        record(&mut self.recovery, Duration::from_secs_f64(recovery.seconds()));
        let at = self.slowest.partition_point(|other| other.seconds() > recovery.seconds());
        self.slowest.insert(at, recovery);
        self.slowest.truncate(SLOWEST_KEPT);
    }
}

impl Tally {
    /// Returns the times and texts.
    pub fn measured(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that some client got a character.
    pub fn heard(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let before = self.last_heard.fetch_max(now, Ordering::Relaxed);
        if before > 0 {
            self.silence.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
        }
    }

    /// Returns the longest time in which no client got a character.
    pub fn longest_silence(&self) -> Duration {
        Duration::from_millis(self.silence.load(Ordering::Relaxed))
    }

    /// Ends a part of the run and begins another. Returns the gaps since the last call.
    pub fn take_honest(&self) -> Honest {
        let mut measured = self.measured();
        let gap = std::mem::replace(&mut measured.part_gap, times());
        let before = std::mem::take(&mut measured.errors_before);
        drop(measured);
        let now = self.all_errors();
        self.measured().errors_before = now;
        Honest { gap, errors: BTreeMap::new(), before }
    }

    /// Returns the errors by code, with the flaws and the lost connections.
    fn all_errors(&self) -> BTreeMap<String, u64> {
        let mut errors = self.measured().errors.clone();
        let c = &self.counters;
        for (counter, name) in [
            (&c.lost, "bytes lost"),
            (&c.doubled, "bytes doubled"),
            (&c.reordered, "events out of order"),
            (&c.wrong, "wrong answers"),
            (&c.forgotten, "turns forgotten"),
            (&c.unfinished, "turns unfinished"),
            (&c.reconnects, "reconnects"),
        ] {
            errors.insert(name.to_owned(), counter.load(Ordering::Relaxed));
        }
        errors
    }

    /// Records an error event, or a failure of a connection.
    pub fn error(&self, code: &str) {
        let mut measured = self.measured();
        if let Some(count) = measured.errors.get_mut(code) {
            *count += 1;
        } else {
            measured.errors.insert(code.to_owned(), 1);
        }
    }

    /// Records a broken promise.
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
