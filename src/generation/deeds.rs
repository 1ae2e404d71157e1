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
use super::draft::Fenced;
use super::writer::Writer;
use crate::session::store::{Cancellation, Clearing};
use crate::session::{Control, Message, StoreError, Tag};

/// How long a deed is kept: longer than a failover takes.
const KEPT: Duration = Duration::from_mins(1);
/// Bytes of answers and their conversations that are kept, at most; beyond it the oldest go first.
const BYTES: usize = 64 << 20;
/// Deeds that are kept, at most.
const DEEDS: usize = 10_000;
/// After a disturbance, how long none must follow before deeds are done again.
const CALM: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 16;
/// How long one deed may take to be done again.
const LIMIT: Duration = Duration::from_secs(10);

/// An answer that was written to its end.
pub(super) struct Finished {
    pub(super) writer: Writer,
    pub(super) header: Message,
    pub(super) events: Vec<(Tag, Control)>,
}

/// Something that was acknowledged and that nobody else would do again.
pub(super) enum Deed {
    Finished(Box<Finished>),
    Cancelled(Cancellation),
    Cleared(Clearing),
}

impl Deed {
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

/// The deeds of the last minute.
#[derive(Default)]
pub(super) struct Deeds(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    deeds: VecDeque<(Instant, Deed)>,
    bytes: usize,
}

impl Deeds {
    pub(super) fn note(&self, deed: Deed) {
        self.kept().push(Instant::now(), deed);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn push(&mut self, at: Instant, deed: Deed) {
        self.bytes += deed.bytes();
        self.deeds.push_back((at, deed));
        while self.bytes > BYTES
            || self.deeds.len() > DEEDS
            || self.deeds.front().is_some_and(|(at, _)| at.elapsed() > KEPT)
        {
            let Some((_, deed)) = self.deeds.pop_front() else { return };
            self.bytes -= deed.bytes();
        }
    }
}

/// Does the deeds of the last minute again after every disturbance.
pub(super) async fn watch(generations: Generations) {
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
}

/// `false`: not all could be done.
async fn again(generations: &Generations) -> bool {
    let deeds = std::mem::take(&mut *generations.deeds.kept()).deeds;
    let fresh = deeds.into_iter().filter(|(at, _)| at.elapsed() <= KEPT);
    let done = futures_util::stream::iter(fresh)
        .map(|(at, mut deed)| async move {
            let done = timeout(LIMIT, deed.again(generations)).await.unwrap_or(false);
            (at, deed, done)
        })
        .buffered(AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    let mut kept = generations.deeds.kept();
    let mut all = true;
    for (at, deed, done) in done {
        all &= done;
        kept.push(at, deed);
    }
    all
}
