//! Counts open objects in a gauge.

use metrics::Gauge;

/// Counts one object as open in a gauge until this value is dropped, also where its task ends, is
/// stopped or panics.
pub struct CountedOpen(Gauge);

impl CountedOpen {
    /// Counts one more.
    pub fn new(gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for CountedOpen {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
