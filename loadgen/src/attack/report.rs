//! The result of a run: one table, and what was not met.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::report::{Report, Times};
use crate::tally::Honest;

/// By less than this factor may grow: the gap between tokens at p50, from the baseline to an attack; the
/// resident memory of a replica, from just before an attack to its peak, and from the baseline to
/// after the rest that follows an attack.
const MOST: f64 = 1.5;

/// The memory of the fleet at one time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Memory {
    /// The resident memory of each replica, in MiB.
    pub replicas_mib: Vec<f64>,
    /// The memory that Redis uses, in MiB.
    pub redis_mib: f64,
}

impl Memory {
    /// Returns the larger of each figure.
    #[must_use]
    pub fn max(&self, other: &Self) -> Self {
        let pairs = self.replicas_mib.iter().zip(&other.replicas_mib);
        Self {
            replicas_mib: pairs.map(|(one, other)| one.max(*other)).collect(),
            redis_mib: self.redis_mib.max(other.redis_mib),
        }
    }

    /// Returns the largest factor by which the memory of a replica has grown beyond so many MiB.
    fn factor_since(&self, before: &Self, kept_mib: f64) -> f64 {
        let pairs = self.replicas_mib.iter().zip(&before.replicas_mib);
        pairs.map(|(now, before)| (now - kept_mib) / before.max(1.0)).fold(0.0, f64::max)
    }

    /// Returns the memory of the largest replica.
    fn largest(&self) -> f64 {
        self.replicas_mib.iter().copied().fold(0.0, f64::max)
    }
}

/// The effects of one attack on the honest sessions and on the servers.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The attack.
    pub attack: &'static str,
    /// The gap between tokens of the honest sessions, in milliseconds.
    pub gap_ms: Times,
    /// The errors that honest sessions got, in and after the attack, by code.
    pub errors: BTreeMap<String, u64>,
    /// Before the attack.
    pub before: Memory,
    /// The most in the attack.
    pub peak: Memory,
    /// After the rest that follows the attack.
    pub after: Memory,
    /// The replies that the attackers got, with their number.
    pub seen: BTreeMap<String, u64>,
    /// The MiB that a replica may keep of the attack for a minute, beside [`MOST`].
    pub kept_mib: f64,
}

impl Row {
    /// Creates a row.
    pub fn new(
        attack: &'static str,
        honest: &Honest,
        [before, peak, after]: [Memory; 3],
        seen: BTreeMap<String, u64>,
    ) -> Self {
        let (gap_ms, errors) = (Times::of(&honest.gap), honest.errors.clone());
        Self { attack, gap_ms, errors, before, peak, after, seen, kept_mib: 0.0 }
    }

    /// Sets what a replica may keep of the attack for a minute.
    #[must_use]
    pub fn keeping(self, kept_mib: f64) -> Self {
        Self { kept_mib, ..self }
    }
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct AttackReport {
    /// The honest sessions over the whole run.
    pub honest: Report,
    /// The baseline, and each attack.
    pub rows: Vec<Row>,
    /// The budget of all anonymous sessions, in MiB.
    pub anonymous_mib: u32,
}

impl AttackReport {
    /// Creates the report of these rows, of which the first is the baseline. An aim that was not met is
    /// added to what was broken for the honest sessions.
    pub fn of(honest: Report, rows: Vec<Row>, anonymous_mib: u32) -> Self {
        let mut report = Self { honest, rows, anonymous_mib };
        let not_met = report.not_met();
        report.honest.broken.extend(not_met);
        report
    }

    fn not_met(&self) -> Vec<String> {
        let Some((baseline, attacks)) = self.rows.split_first() else {
            return vec!["nothing was measured".to_owned()];
        };
        let mut not_met = Vec::new();
        if baseline.gap_ms.count == 0 {
            not_met.push("the baseline has no gap between tokens".to_owned());
        }
        for row in &self.rows {
            if !row.errors.is_empty() {
                not_met.push(format!("{}: honest sessions got {:?}", row.attack, row.errors));
            }
        }
        for row in attacks {
            let attack = row.attack;
            let factor = row.gap_ms.p50 / baseline.gap_ms.p50;
            if row.gap_ms.count == 0 || factor >= MOST {
                not_met.push(format!("{attack}: the gap at p50 is {factor:.2} × the baseline"));
            }
            let grown = row.peak.factor_since(&row.before, row.kept_mib);
            if grown >= MOST {
                let beside = if row.kept_mib > 0.0 { "beside what is kept " } else { "" };
                not_met.push(format!(
                    "{attack}: a replica's memory grew to {grown:.2} × {beside}in the attack"
                ));
            }
            let left = row.after.factor_since(&baseline.before, 0.0);
            if left >= MOST {
                not_met.push(format!(
                    "{attack}: a replica's memory is {left:.2} × the baseline after it"
                ));
            }
            for (memory, when) in [(&row.peak, "in the attack"), (&row.after, "after it")] {
                let grown = memory.redis_mib - baseline.before.redis_mib;
                if grown >= f64::from(self.anonymous_mib) {
                    not_met.push(format!(
                        "{attack}: Redis grew by {grown:.0} MiB {when}; the budget is {} MiB",
                        self.anonymous_mib
                    ));
                }
            }
            if row.seen.is_empty() {
                not_met.push(format!("{attack}: the attackers did nothing"));
            }
        }
        not_met
    }

    /// Formats the result as a table.
    pub fn table(&self) -> String {
        let mut table = format!(
            "  {:<34} {:>19} {:>6} {:>7}  {:<20} {:<20}\n",
            "attack", "gap p50 / p99, ms", "× p50", "errors", "replica, MiB", "Redis, MiB"
        );
        let baseline = self.rows.first().map_or(0.0, |row| row.gap_ms.p50);
        for row in &self.rows {
            let Row { gap_ms, before, peak, after, .. } = row;
            let _ = writeln!(
                table,
                "  {:<34} {:>19} {:>6.2} {:>7}  {:<20} {:<20}",
                row.attack,
                format!("{:.1} / {:.1}", gap_ms.p50, gap_ms.p99),
                gap_ms.p50 / baseline,
                row.errors.values().sum::<u64>(),
                format!("{:.0} → {:.0} → {:.0}", before.largest(), peak.largest(), after.largest()),
                format!("{:.0} → {:.0} → {:.0}", before.redis_mib, peak.redis_mib, after.redis_mib)
            );
        }
        let _ =
            writeln!(table, "\n  Memory before, at most in, and after the attack. Attackers saw:");
        for row in self.rows.iter().skip(1) {
            let seen: Vec<String> =
                row.seen.iter().map(|(what, count)| format!("{what}: {count}")).collect();
            let _ = writeln!(table, "  {:<34} {}", row.attack, seen.join(", "));
        }
        let _ = writeln!(table, "\n  Honest sessions over the whole run:");
        table + &self.honest.table()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::{Tally, count, record};

    fn honest(gap_ms: u64) -> Honest {
        let mut honest = Honest::default();
        record(&mut honest.gap, std::time::Duration::from_millis(gap_ms));
        honest
    }

    fn memory(replica: f64, redis_mib: f64) -> Memory {
        Memory { replicas_mib: vec![40.0, replica], redis_mib }
    }

    fn broken(attack: Row) -> Vec<String> {
        let tally = Tally::default();
        count(&tally.counters.turns);
        count(&tally.counters.complete);
        let same = || memory(50.0, 10.0);
        let baseline = Row::new("none", &honest(50), [same(), same(), same()], BTreeMap::default());
        AttackReport::of(Report::of(&tally, 1, 1, 0.0), vec![baseline, attack], 64).honest.broken
    }

    #[test]
    fn each_condition_that_is_not_met_is_named() {
        let seen = BTreeMap::from([("413".to_owned(), 1)]);
        let row = |gap, peak, after| {
            Row::new("a flood", &honest(gap), [memory(50.0, 10.0), peak, after], seen.clone())
        };
        let good = || row(60, memory(70.0, 60.0), memory(60.0, 60.0));
        assert_eq!(broken(good()), Vec::<String>::new());
        let kept = row(50, memory(260.0, 10.0), memory(50.0, 10.0)).keeping(192.0);
        assert_eq!(broken(kept), Vec::<String>::new());
        let mut with_error = good();
        with_error.errors.insert("internal".to_owned(), 1);
        let mut idle = good();
        idle.seen.clear();
        for (bad, named) in [
            (row(80, memory(50.0, 10.0), memory(50.0, 10.0)), "× the baseline"),
            (row(50, memory(75.0, 10.0), memory(50.0, 10.0)), "in the attack"),
            (row(50, memory(50.0, 10.0), memory(75.0, 10.0)), "after it"),
            (row(50, memory(50.0, 75.0), memory(50.0, 10.0)), "Redis grew by 65 MiB"),
            (
                row(50, memory(270.0, 10.0), memory(50.0, 10.0)).keeping(192.0),
                "beside what is kept",
            ),
            (with_error, "internal"),
            (idle, "did nothing"),
        ] {
            let broken = broken(bad);
            assert!(broken.len() == 1 && broken[0].contains(named), "{named}: {broken:?}");
        }
    }
}
