//! The counters that several modules share.

use metrics::Gauge;

use super::live::LiveCount;
use super::metric;

/// Counts one object as open in a gauge until this value is dropped, also where its task ends, is
/// stopped or panics.
pub struct CountedOpen {
    gauge: Gauge,
    live: Option<&'static LiveCount>,
}

impl CountedOpen {
    /// Counts one more.
    pub fn new(gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self { gauge, live: None }
    }

    /// Counts one more, in a count of this process, too.
    pub fn live(gauge: Gauge, count: &'static LiveCount) -> Self {
        count.rise();
        gauge.increment(1.0);
        Self { gauge, live: Some(count) }
    }
}

impl Drop for CountedOpen {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
        if let Some(count) = self.live {
            count.fall();
        }
    }
}

/// Counts a client that did not read in time, of the protocol `http` or `websocket`.
pub fn count_slow_reader(protocol: &'static str) {
    metrics::counter!(metric::SLOW_READERS_TOTAL, "protocol" => protocol).increment(1);
}

/// Counts a client that came back with a cursor, over the protocol `sse` or `websocket`, by what it
/// got: `recovered`, `snapshot` or `complete`.
pub fn count_resume(protocol: &'static str, result: &'static str) {
    metrics::counter!(metric::RESUMES_TOTAL, "protocol" => protocol, "result" => result)
        .increment(1);
}

/// Counts a WebSocket that ends with this close code. A code that only clients choose is counted as
/// `other`.
pub fn count_close(code: u16) {
    let text = code.to_string();
    let known = metric::CLOSE_CODES.iter().find(|known| **known == text);
    let code = known.copied().unwrap_or("other");
    metrics::counter!(metric::WEBSOCKETS_CLOSED_TOTAL, "code" => code).increment(1);
}
