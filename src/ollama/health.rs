//! The last success and the last failure of a host.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::lock;

/// When a host last replied, and when it last failed.
#[derive(Debug, Default)]
pub(super) struct HostHealth {
    last: Mutex<LastOutcomes>,
}

#[derive(Clone, Copy, Debug, Default)]
struct LastOutcomes {
    success: Option<Instant>,
    failure: Option<Instant>,
}

impl HostHealth {
    /// Records that the host replied.
    pub(super) fn succeeded(&self) {
        lock(&self.last).success = Some(Instant::now());
    }

    /// Records that the host did not reply, or that its reply broke off.
    pub(super) fn failed(&self) {
        lock(&self.last).failure = Some(Instant::now());
    }

    /// Returns whether the last outcome was a success; `None` where it is older than `age`.
    pub(super) fn within(&self, age: Duration) -> Option<bool> {
        let LastOutcomes { success, failure } = *lock(&self.last);
        let last = success.max(failure)?;
        (last.elapsed() <= age).then_some(success > failure)
    }

    /// Returns whether the host failed after `since`.
    pub(super) fn failed_since(&self, since: Instant) -> bool {
        lock(&self.last).failure.is_some_and(|failure| failure > since)
    }
}
