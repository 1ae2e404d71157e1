//! What is known of a host's health without asking it.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::lock;

/// The last good and the last bad word of a host.
#[derive(Debug, Default)]
pub(super) struct Health {
    seen: Mutex<Observation>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Observation {
    well: Option<Instant>,
    failed: Option<Instant>,
}

impl Health {
    /// The host answered as it should.
    pub(super) fn well(&self) {
        lock(&self.seen).well = Some(Instant::now());
    }

    /// The host did not answer, or broke off.
    pub(super) fn failed(&self) {
        lock(&self.seen).failed = Some(Instant::now());
    }

    /// The last word, if it is not older than `age`: true for a good one.
    pub(super) fn within(&self, age: Duration) -> Option<bool> {
        let Observation { well, failed } = *lock(&self.seen);
        let last = well.max(failed)?;
        (last.elapsed() <= age).then_some(well > failed)
    }

    /// When the host last failed, if it did after `since`.
    pub(super) fn failed_since(&self, since: Instant) -> bool {
        lock(&self.seen).failed.is_some_and(|failed| failed > since)
    }
}
