//! Bounds the log lines that any client can cause, so that none fills a disk. The number of lines of
//! turns is bounded by the slots that turns run in.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Event, Metadata, callsite};
use tracing_subscriber::layer::{Context, Filter};

/// Lines of one kind a second, at most.
const LINES: u32 = 50;
/// The time in which they are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// The modules in which a request alone causes a line.
const MODULES: [&str; 3] = ["jarvis::http", "jarvis::api", "jarvis::follow"];

/// The counts of this process.
static COUNTS: LazyLock<LineCounts> = LazyLock::new(LineCounts::default);

/// Passes a bounded number of lines of one kind a second, of those that requests cause. A kind is a
/// place in the code.
pub(super) struct LineLimit;

impl<S> Filter<S> for LineLimit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        let is_bounded = MODULES.iter().any(|module| metadata.target().starts_with(module));
        !is_bounded || COUNTS.passes(metadata, Instant::now())
    }
}

/// Logs how many lines of each kind were suppressed since the last call.
pub(super) fn report_suppressed() {
    for (kind, lines) in COUNTS.take_suppressed() {
        tracing::warn!(kind, lines, "log lines suppressed");
    }
}

/// The lines of each kind: as many entries as there are places in the code that log.
#[derive(Default)]
struct LineCounts(Mutex<HashMap<callsite::Identifier, LineKind>>);

struct LineKind {
    name: &'static str,
    since: Instant,
    lines: u32,
    suppressed: u64,
}

impl LineCounts {
    fn kinds(&self) -> MutexGuard<'_, HashMap<callsite::Identifier, LineKind>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn passes(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        let mut kinds = self.kinds();
        let kind = kinds.entry(metadata.callsite()).or_insert_with(|| LineKind {
            name: metadata.name(),
            since: now,
            lines: 0,
            suppressed: 0,
        });
        if now.saturating_duration_since(kind.since) >= WINDOW {
            (kind.since, kind.lines) = (now, 0);
        }
        let passes = kind.lines < LINES;
        if passes {
            kind.lines += 1;
        } else {
            kind.suppressed += 1;
        }
        passes
    }

    fn take_suppressed(&self) -> Vec<(&'static str, u64)> {
        let mut kinds = self.kinds();
        let suppressed = kinds.values_mut().filter(|kind| kind.suppressed > 0);
        suppressed.map(|kind| (kind.name, std::mem::take(&mut kind.suppressed))).collect()
    }
}
