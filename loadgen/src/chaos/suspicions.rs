//! Counts the replicas that others took for gone, from the logs, and those of them that were alive.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

/// The time after a pause in which a replica may still be taken for gone: its connections are old, and
/// Redis may be failing over while it connects again.
const RESUMED: TimeDelta = TimeDelta::seconds(3);

/// When replicas ended and were paused, by their names.
#[derive(Debug, Default)]
pub struct Lives {
    of: Mutex<HashMap<String, Life>>,
}

#[derive(Debug, Default)]
struct Life {
    ended: Option<DateTime<Utc>>,
    pauses: Vec<(DateTime<Utc>, DateTime<Utc>)>,
}

impl Lives {
    /// Records that a replica ends now.
    pub fn end(&self, name: String) {
        self.of().entry(name).or_default().ended = Some(Utc::now());
    }

    /// Records that a replica was paused until now.
    pub fn paused(&self, name: String, from: DateTime<Utc>) {
        self.of().entry(name).or_default().pauses.push((from, Utc::now()));
    }

    /// Returns whether a replica was running at a time.
    fn was_running(&self, name: &str, at: DateTime<Utc>) -> bool {
        self.of().get(name).is_none_or(|life| {
            let was_paused = |(from, to): &(_, DateTime<Utc>)| *from <= at && at <= *to + RESUMED;
            life.ended.is_none_or(|ended| at < ended) && !life.pauses.iter().any(was_paused)
        })
    }

    fn of(&self) -> MutexGuard<'_, HashMap<String, Life>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The suspicions of all replicas.
#[derive(Debug, Default, Serialize)]
pub struct Suspicions {
    /// Their number by the reason.
    pub by_reason: BTreeMap<String, usize>,
    /// Those against a replica that was running, in words.
    pub wrong: Vec<String>,
}

/// A line of a replica's log, as far as it is about a suspicion.
#[derive(Deserialize)]
struct Line {
    timestamp: DateTime<Utc>,
    message: String,
    replica: String,
    reason: String,
}

impl Suspicions {
    /// Reads the suspicions from the logs of the replicas.
    ///
    /// # Errors
    /// Fails where a log cannot be read.
    pub fn read<'p>(logs: impl Iterator<Item = &'p Path>, lives: &Lives) -> std::io::Result<Self> {
        let mut suspicions = Self::default();
        for log in logs {
            for line in std::fs::read_to_string(log)?.lines() {
                suspicions.count(line, lives);
            }
        }
        Ok(suspicions)
    }

    fn count(&mut self, line: &str, lives: &Lives) {
        let Ok(line) = serde_json::from_str::<Line>(line) else { return };
        if !line.message.starts_with("replica gone") {
            return;
        }
        if line.reason != "signed_off" && lives.was_running(&line.replica, line.timestamp) {
            let Line { timestamp, replica, reason, .. } = &line;
            self.wrong.push(format!("{replica} was running at {timestamp} ({reason})"));
        }
        *self.by_reason.entry(line.reason).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(at: DateTime<Utc>, reason: &str) -> String {
        let at = at.to_rfc3339();
        format!(
            r#"{{"timestamp":"{at}","level":"INFO","message":"replica gone without turns","replica":"r","reason":"{reason}","target":"t"}}"#
        )
    }

    #[test]
    fn a_suspicion_is_wrong_where_its_replica_was_running() {
        let now = Utc::now();
        let (lives, mut seen) = (Lives::default(), Suspicions::default());
        seen.count(&gone(now, "signed_off"), &lives);
        seen.count("listening on http://127.0.0.1:1", &lives);
        assert_eq!(seen.wrong.len(), 0);
        seen.count(&gone(now, "connection_lost"), &lives);
        assert_eq!(seen.wrong.len(), 1);
        lives.paused("r".to_owned(), now - TimeDelta::seconds(2));
        seen.count(&gone(now - TimeDelta::seconds(1), "lease_over"), &lives);
        assert_eq!(seen.wrong.len(), 1);
        seen.count(&gone(now - TimeDelta::seconds(9), "lease_over"), &lives);
        assert_eq!(seen.wrong.len(), 2);
        lives.end("r".to_owned());
        seen.count(&gone(now + TimeDelta::seconds(9), "connection_lost"), &lives);
        assert_eq!(seen.wrong.len(), 2);
        let counts: Vec<usize> = seen.by_reason.into_values().collect();
        assert_eq!(counts, [2, 2, 1]);
    }
}
