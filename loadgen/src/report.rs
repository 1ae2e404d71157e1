//! The figures of a run, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::tally::{Found, Recovery, Tally};

/// A distribution of times, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Times {
    /// The number of times.
    pub count: u64,
    /// The median.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The longest time.
    pub max: f64,
}

impl Times {
    /// Reads the figures of a histogram of microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            max: histogram.max() as f64 / 1000.0,
        }
    }

    /// Formats one line of a table.
    pub fn row(&self, name: &str) -> String {
        if self.count == 0 {
            return format!("  {name:<34} none");
        }
        let Self { count, p50, p95, p99, max } = self;
        format!(
            "  {name:<34} p50 {p50:>8.1}   p95 {p95:>8.1}   p99 {p99:>8.1}   max {max:>8.1} ms   ({count})"
        )
    }
}

/// The flaws of a run, and its figures.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "named as in tally::Counters, which says what each is")]
pub struct Report {
    pub seed: u64,
    pub seconds: f64,
    pub sessions: usize,
    pub conversations: u64,
    pub turns: u64,
    pub branched: u64,
    pub complete: u64,
    pub failed: u64,
    pub lost_bytes: u64,
    pub doubled_bytes: u64,
    pub reordered: u64,
    pub wrong: u64,
    pub forgotten: u64,
    pub unfinished: u64,
    pub restarts: u64,
    pub unrecovered: u64,
    pub reconnects: u64,
    pub resends: u64,
    pub histories: u64,
    pub replays: u64,
    pub whole_replays: u64,
    /// The longest time in which no client at all got a character, in milliseconds.
    pub silence_ms: u64,
    pub errors: BTreeMap<String, u64>,
    pub first_token_ms: Times,
    pub gap_ms: Times,
    pub recovery_ms: Times,
    pub slowest_recoveries: Vec<Recovery>,
    pub whole_answer_ms: Times,
    pub announced_recovery_ms: Times,
    pub flaws: Vec<Found>,
    /// The reasons why the run failed, in words; empty for a good one.
    pub broken: Vec<String>,
}

impl Report {
    /// Creates the report of a tally; more than `failed_percent` of turns that ended with an error
    /// fail the run.
    pub fn of(tally: &Tally, seed: u64, sessions: usize, failed_percent: f64) -> Self {
        let c = &tally.counters;
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let measured = tally.measured();
        let mut report = Self {
            seed,
            seconds: tally.began.elapsed().as_secs_f64(),
            sessions,
            conversations: get(&c.conversations),
            turns: get(&c.turns),
            branched: get(&c.branched),
            complete: get(&c.complete),
            failed: get(&c.failed),
            lost_bytes: get(&c.lost),
            doubled_bytes: get(&c.doubled),
            reordered: get(&c.reordered),
            wrong: get(&c.wrong),
            forgotten: get(&c.forgotten),
            unfinished: get(&c.unfinished),
            restarts: get(&c.restarts),
            unrecovered: get(&c.unrecovered),
            reconnects: get(&c.reconnects),
            resends: get(&c.resends),
            histories: get(&c.histories),
            replays: get(&c.replays),
            whole_replays: get(&c.whole_replays),
            silence_ms: tally.longest_silence().as_millis() as u64,
            errors: measured.errors.clone(),
            first_token_ms: Times::of(&measured.first_token),
            gap_ms: Times::of(&measured.gap),
            recovery_ms: Times::of(&measured.recovery),
            slowest_recoveries: measured.slowest.clone(),
            whole_answer_ms: Times::of(&measured.whole_answer),
            announced_recovery_ms: Times::of(&measured.announced_recovery),
            flaws: measured.flaws.clone(),
            broken: Vec::new(),
        };
        report.broken = report.judge(failed_percent);
        report
    }

    fn judge(&self, failed_percent: f64) -> Vec<String> {
        let promises = [
            (self.lost_bytes, "bytes lost"),
            (self.doubled_bytes, "bytes doubled"),
            (self.reordered, "events out of order"),
            (self.wrong, "wrong answers"),
            (self.forgotten, "turns forgotten"),
            (self.unfinished, "turns unfinished"),
        ];
        let mut broken: Vec<String> = promises
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        let most = self.turns as f64 * failed_percent / 100.0;
        if self.failed as f64 > most {
            broken.push(format!(
                "{} of {} turns ended with an error; {failed_percent} % may",
                self.failed, self.turns
            ));
        }
        if self.complete == 0 {
            broken.push("no turn was completed".to_owned());
        }
        broken
    }

    /// Fails a run whose responses were not streamed again and compared.
    pub fn require_replays(&mut self) {
        for (count, what) in [
            (self.replays, "no response was streamed again"),
            (self.whole_replays, "no response was streamed again after every event"),
        ] {
            if count == 0 {
                self.broken.push(what.to_owned());
            }
        }
    }

    /// Formats the report as a table.
    pub fn table(&self) -> String {
        let mut table = String::new();
        let mut row = |name: &str, value: String| {
            let _ = writeln!(table, "  {name:<34} {value}");
        };
        row("seed", self.seed.to_string());
        row(
            "sessions",
            format!(
                "{} at a time, {} in all, {:.0} s",
                self.sessions, self.conversations, self.seconds
            ),
        );
        row(
            "turns",
            format!(
                "{} ({} regenerate or edit; {} complete, {} failed)",
                self.turns, self.branched, self.complete, self.failed
            ),
        );
        row("bytes lost", self.lost_bytes.to_string());
        row("bytes doubled", self.doubled_bytes.to_string());
        row("events out of order", self.reordered.to_string());
        row("wrong answers", self.wrong.to_string());
        row("turns forgotten", self.forgotten.to_string());
        row("turns unfinished", self.unfinished.to_string());
        row("histories compared", self.histories.to_string());
        row(
            "responses streamed again",
            format!("{} times; {} after every event", self.replays, self.whole_replays),
        );
        row("text taken back", self.restarts.to_string());
        row("resumes with a snapshot", self.unrecovered.to_string());
        row("reconnects", format!("{}, messages sent again: {}", self.reconnects, self.resends));
        row("nobody got a character", format!("for {} ms at most", self.silence_ms));
        let errors: Vec<String> =
            self.errors.iter().map(|(code, count)| format!("{code} {count}")).collect();
        let none = || "none".to_owned();
        row("errors", if errors.is_empty() { none() } else { errors.join(", ") });
        for (name, times) in [
            ("time to first token", &self.first_token_ms),
            ("gap between tokens", &self.gap_ms),
            ("recovery, connection lost", &self.recovery_ms),
            ("recovery, loss announced", &self.announced_recovery_ms),
            ("lost request to whole answer", &self.whole_answer_ms),
        ] {
            let _ = writeln!(table, "{}", times.row(name));
        }
        for found in self.flaws.iter().take(20) {
            let _ = writeln!(
                table,
                "  ! {:>7.2} s  {:<9} session {} generation {}: {}",
                found.at,
                found.client,
                found.session,
                found.generation.as_deref().unwrap_or("?"),
                found.flaw
            );
        }
        let verdict =
            if self.broken.is_empty() { "kept".to_owned() } else { self.broken.join("; ") };
        let _ = writeln!(table, "  {:<34} {verdict}", "promises");
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Flaw;
    use crate::tally::count;

    #[test]
    fn a_run_without_a_flaw_is_good_and_any_flaw_makes_it_bad() {
        let good = || {
            let tally = Tally::default();
            count(&tally.counters.turns);
            count(&tally.counters.complete);
            tally
        };
        assert_eq!(Report::of(&good(), 1, 1, 0.0).broken, Vec::<String>::new());
        for flaw in [
            Flaw::Lost(1),
            Flaw::Doubled(1),
            Flaw::Reordered("x".to_owned()),
            Flaw::Wrong("x".to_owned()),
            Flaw::Forgotten("x".to_owned()),
            Flaw::Unfinished("x".to_owned()),
        ] {
            let tally = good();
            tally.flaw("websocket", "s", None, &flaw);
            let report = Report::of(&tally, 1, 1, 0.0);
            assert_eq!(report.broken.len(), 1, "{flaw:?}");
            assert!(report.table().contains(&flaw.to_string()));
        }
        assert_eq!(Report::of(&Tally::default(), 1, 1, 0.0).broken, ["no turn was completed"]);
    }

    #[test]
    fn a_run_that_has_to_stream_responses_again_fails_unless_it_did_after_every_event_of_one() {
        let tally = Tally::default();
        let broken = || {
            let mut report = Report::of(&tally, 1, 1, 0.0);
            report.broken.clear();
            report.require_replays();
            report.broken
        };
        assert_eq!(broken().len(), 2);
        count(&tally.counters.replays);
        assert_eq!(broken(), ["no response was streamed again after every event"]);
        count(&tally.counters.whole_replays);
        assert_eq!(broken(), Vec::<String>::new());
    }

    #[test]
    fn failed_turns_are_allowed_up_to_the_share_that_was_set() {
        let tally = Tally::default();
        for _ in 0..99 {
            count(&tally.counters.turns);
            count(&tally.counters.complete);
        }
        count(&tally.counters.turns);
        count(&tally.counters.failed);
        assert_eq!(Report::of(&tally, 1, 1, 0.0).broken.len(), 1);
        assert_eq!(Report::of(&tally, 1, 1, 1.0).broken.len(), 0);
    }
}
