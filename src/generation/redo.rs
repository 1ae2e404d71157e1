//! The redo log: acknowledged writes of the last minute, applied again after a failover.
//!
//! Redis replicates asynchronously: a server that takes over may lack the last writes that were
//! acknowledged. The writer of a running turn repairs its answer itself. The ends of turns, cancels
//! and clears have no writer any more, and are kept here.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use super::Generations;
use super::writer::Writer;
use super::writer_state::Fenced;
use crate::lifecycle::TaskEnd;
use crate::session::store::{Cancellation, Clearing};
use crate::session::{Control, Message, StoreError, Tag};

/// How long an entry is kept: longer than a failover takes.
const KEPT: Duration = Duration::from_mins(1);
/// Bytes of answers and their conversations that are kept, at most. Beyond it the oldest entries
/// go.
const BYTES: usize = 64 << 20;
/// Entries that are kept, at most.
const ENTRIES: usize = 10_000;
/// Time without a disturbance before the entries are applied again.
const CALM: Duration = Duration::from_secs(1);
/// Entries that are applied at the same time.
const AT_ONCE: usize = 16;
/// Time limit for applying one entry.
const LIMIT: Duration = Duration::from_secs(10);

/// A turn whose end was written.
pub(super) struct Finished {
    pub(super) writer: Writer,
    pub(super) header: Message,
    pub(super) events: Vec<(Tag, Control)>,
}

/// An acknowledged write that no other part of the system would apply again.
pub(super) enum RedoEntry {
    Finished(Box<Finished>),
    Cancelled(Cancellation),
    Cleared(Clearing),
}

impl RedoEntry {
    fn bytes(&self) -> usize {
        match self {
            Self::Finished(finished) => finished.writer.bytes(),
            Self::Cancelled(_) | Self::Cleared(_) => 0,
        }
    }

    /// Applies the entry again. Returns `false` where Redis failed.
    async fn apply(&mut self, generations: &Generations) -> bool {
        let applied = match self {
            Self::Finished(finished) => {
                let Finished { writer, header, events } = finished.as_mut();
                match writer.finish(header, events).await {
                    // A fenced turn was cleared since, or is another replica's.
                    Ok(()) | Err(Fenced) => Ok(()),
                }
            }
            Self::Cancelled(cancellation) => generations.store.cancel(cancellation).await.map(drop),
            Self::Cleared(clearing) => generations.store.clear(clearing).await.map(drop),
        };
        !matches!(applied, Err(StoreError::Redis(_) | StoreError::OutOfMemory))
    }
}

/// The entries of the last minute.
#[derive(Default)]
pub(super) struct RedoLog(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    entries: VecDeque<(Instant, RedoEntry)>,
    bytes: usize,
}

impl RedoLog {
    pub(super) fn push(&self, entry: RedoEntry) {
        self.kept().push(Instant::now(), entry);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn push(&mut self, at: Instant, entry: RedoEntry) {
        self.bytes += entry.bytes();
        self.entries.push_back((at, entry));
        while self.bytes > BYTES
            || self.entries.len() > ENTRIES
            || self.entries.front().is_some_and(|(at, _)| at.elapsed() > KEPT)
        {
            let Some((_, entry)) = self.entries.pop_front() else { return };
            self.bytes -= entry.bytes();
        }
    }
}

/// Applies the entries of the last minute again after every disturbance of the connection.
pub(super) async fn watch(generations: Generations) -> TaskEnd {
    let mut disturbances = generations.store.disturbances();
    while disturbances.changed().await.is_ok() {
        loop {
            let count = *disturbances.borrow_and_update();
            sleep(CALM).await;
            if *disturbances.borrow() == count && apply_all(&generations).await {
                break;
            }
        }
    }
    TaskEnd::Done
}

/// Applies all entries again. Returns `false` where one failed.
async fn apply_all(generations: &Generations) -> bool {
    let entries = std::mem::take(&mut *generations.redo.kept()).entries;
    let fresh = entries.into_iter().filter(|(at, _)| at.elapsed() <= KEPT);
    let applied = futures_util::stream::iter(fresh)
        .map(|(at, mut entry)| async move {
            let is_applied = timeout(LIMIT, entry.apply(generations)).await.unwrap_or(false);
            (at, entry, is_applied)
        })
        .buffered(AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    let mut kept = generations.redo.kept();
    let mut all = true;
    for (at, entry, is_applied) in applied {
        all &= is_applied;
        kept.push(at, entry);
    }
    all
}
