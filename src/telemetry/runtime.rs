//! The metrics of the process's runtime and of its release.

use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeMetrics};

use super::metric;

/// Samples of the runtime, each compared with the one before it.
pub(super) struct RuntimeSamples {
    runtime: RuntimeMetrics,
    at: Instant,
    busy: Duration,
}

impl RuntimeSamples {
    /// Begins to sample the runtime that this is called in.
    pub(super) fn begin() -> Self {
        let runtime = Handle::current().metrics();
        let busy = busy(&runtime);
        Self { runtime, at: Instant::now(), busy }
    }

    /// Sets the gauges. The share of busy time is that since the last call.
    pub(super) fn record(&mut self) {
        let (at, busy) = (Instant::now(), busy(&self.runtime));
        let workers = self.runtime.num_workers() as f64;
        let passed = at.saturating_duration_since(self.at).as_secs_f64() * workers;
        let worked = busy.saturating_sub(self.busy).as_secs_f64();
        (self.at, self.busy) = (at, busy);
        metrics::gauge!(metric::RUNTIME_WORKERS).set(workers);
        if passed > 0.0 {
            metrics::gauge!(metric::RUNTIME_BUSY_RATIO).set((worked / passed).min(1.0));
        }
        metrics::gauge!(metric::RUNTIME_TASKS).set(self.runtime.num_alive_tasks() as f64);
        let waiting = self.runtime.global_queue_depth();
        metrics::gauge!(metric::RUNTIME_QUEUE_DEPTH).set(waiting as f64);
    }
}

/// Returns the time for which all threads were busy, since the runtime began.
fn busy(runtime: &RuntimeMetrics) -> Duration {
    (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker)).sum()
}

/// Sets the gauge that names the release. The revision is that of the build, where it was given one
/// (`JARVIS_REVISION`).
pub(super) fn record_build() {
    let labels = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("revision", option_env!("JARVIS_REVISION").unwrap_or("unknown")),
    ];
    metrics::gauge!(metric::BUILD_INFO, &labels).set(1.0);
}
