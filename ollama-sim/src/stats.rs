//! The statistics of one server.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The reply of `GET /sim/stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Generations that hold a slot now.
    pub running: u64,
    /// Requests that wait for a slot now.
    pub queued: u64,
    /// The most generations that ran at once.
    pub peak_running: u64,
    /// Generations that got a slot.
    pub started: u64,
    /// Generations that came to their end.
    pub completed: u64,
    /// Generations, running or waiting, whose client went away.
    pub client_gone: u64,
    /// Generations that ended with a fault.
    pub faulted: u64,
    /// Requests refused because the queue was full.
    pub refused: u64,
    /// Models loaded into memory, the reloads among them.
    #[serde(default)]
    pub loads: u64,
    /// Models loaded again for another num_ctx.
    pub reloads: u64,
    /// Models taken out of memory because a request said so.
    #[serde(default)]
    pub unloads: u64,
    /// Tokens generated.
    pub tokens: u64,
}

/// The counters behind the statistics.
#[derive(Debug, Default)]
pub struct Counters {
    running: AtomicU64,
    peak_running: AtomicU64,
    started: AtomicU64,
    /// See [`Stats`].
    pub(crate) queued: AtomicU64,
    pub(crate) completed: AtomicU64,
    pub(crate) client_gone: AtomicU64,
    pub(crate) faulted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) loads: AtomicU64,
    pub(crate) reloads: AtomicU64,
    pub(crate) unloads: AtomicU64,
    pub(crate) tokens: AtomicU64,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// Returns the statistics now.
    pub fn read(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            running: get(&self.running),
            queued: get(&self.queued),
            peak_running: get(&self.peak_running),
            started: get(&self.started),
            completed: get(&self.completed),
            client_gone: get(&self.client_gone),
            faulted: get(&self.faulted),
            refused: get(&self.refused),
            loads: get(&self.loads),
            reloads: get(&self.reloads),
            unloads: get(&self.unloads),
            tokens: get(&self.tokens),
        }
    }

    pub(crate) fn start(&self) {
        count(&self.started);
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak_running.fetch_max(running, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }
}
