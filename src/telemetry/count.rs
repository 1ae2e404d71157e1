//! What several modules count alike.

use metrics::Gauge;

use super::metric;

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

/// Counts a client that did not read in time, of the protocol `http` or `websocket`.
pub fn count_slow_reader(protocol: &'static str) {
    metrics::counter!(metric::SLOW_READERS_TOTAL, "protocol" => protocol).increment(1);
}
