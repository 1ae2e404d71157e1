//! What this process does at this moment, in addition to its metrics: the figures that it publishes of itself
//! are made of it.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that any thread may change.
#[derive(Debug)]
pub struct LiveCount(AtomicU64);

impl LiveCount {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts one more.
    pub fn rise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one less, of those that were counted.
    pub(super) fn fall(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counts of this process.
#[derive(Debug)]
pub struct LiveCounts {
    /// Open WebSockets.
    pub websockets: LiveCount,
    /// Open event streams.
    pub event_streams: LiveCount,
    /// Turns that run or wait here.
    pub turns: LiveCount,
    /// Pieces of answers that model hosts have sent, each of which is at least one token.
    pub pieces: LiveCount,
    /// Turns that this replica has taken over.
    pub taken_over: LiveCount,
}

/// The counts of this process.
pub static LIVE: LiveCounts = LiveCounts {
    websockets: LiveCount::new(),
    event_streams: LiveCount::new(),
    turns: LiveCount::new(),
    pieces: LiveCount::new(),
    taken_over: LiveCount::new(),
};
