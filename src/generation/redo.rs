//! What this replica did lately, done again where a failover undid it.
//!
//! Redis replicates asynchronously: a server that takes over may lack the last writes that were
//! acknowledged. What runs repairs itself; what has ended is kept here for a minute.

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

/// How long a entry is kept: longer than a failover takes.
const KEPT: Duration = Duration::from_mins(1);
/// Bytes of answers and their conversations that are kept, at most; beyond it the oldest go first.
const BYTES: usize = 64 << 20;
/// RedoLog that are kept, at most.
const ENTRIES: usize = 10_000;
/// After a disturbance, how long none must follow before entries are done again.
const CALM: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 16;
/// How long one entry may take to be done again.
const LIMIT: Duration = Duration::from_secs(10);

/// An answer that was written to its end.
pub(super) struct Finished {
    pub(super) writer: Writer,
    pub(super) header: Message,
    pub(super) events: Vec<(Tag, Control)>,
}

/// Something that was acknowledged and that nobody else would do again.
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

    /// `false`: Redis could not be asked.
    async fn again(&mut self, generations: &Generations) -> bool {
        let done = match self {
            Self::Finished(finished) => {
                let Finished { writer, header, events } = finished.as_mut();
                match writer.finish(header, events).await {
                    // It was cleared since, or is another's.
                    Ok(()) | Err(Fenced) => Ok(()),
                }
            }
            Self::Cancelled(wish) => generations.store.cancel(wish).await.map(drop),
            Self::Cleared(wish) => generations.store.clear(wish).await.map(drop),
        };
        !matches!(done, Err(StoreError::Redis(_) | StoreError::OutOfMemory))
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

/// Does the entries of the last minute again after every disturbance.
pub(super) async fn watch(generations: Generations) -> TaskEnd {
    let mut disturbances = generations.store.disturbances();
    while disturbances.changed().await.is_ok() {
        loop {
            let seen = *disturbances.borrow_and_update();
            sleep(CALM).await;
            if *disturbances.borrow() == seen && again(&generations).await {
                break;
            }
        }
    }
    TaskEnd::Done
}

/// `false`: not all could be done.
async fn again(generations: &Generations) -> bool {
    let entries = std::mem::take(&mut *generations.redo.kept()).entries;
    let fresh = entries.into_iter().filter(|(at, _)| at.elapsed() <= KEPT);
    let done = futures_util::stream::iter(fresh)
        .map(|(at, mut entry)| async move {
            let done = timeout(LIMIT, entry.again(generations)).await.unwrap_or(false);
            (at, entry, done)
        })
        .buffered(AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    let mut kept = generations.redo.kept();
    let mut all = true;
    for (at, entry, done) in done {
        all &= done;
        kept.push(at, entry);
    }
    all
}
