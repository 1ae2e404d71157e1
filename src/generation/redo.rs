//! The redo log: acknowledged writes of the last minute, applied again after a failover.
//!
//! Redis replicates asynchronously: a server that takes over may lack the last writes that were
//! acknowledged. The writer of a running turn repairs its answer itself. The ends of turns, cancels,
//! clears and deleted responses have no writer any more, and are kept here. A copy of each may be in a
//! second replica ([`super::copies`]), which applies it on behalf of this one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, interval, sleep, timeout};

use super::Generations;
use super::deletion::DeletedSessions;
use super::turn_spans;
use super::turn_state::TurnState;
use super::writer::Writer;
use crate::lifecycle::TaskEnd;
use crate::session::store::{
    Cancellation, Claim, ClaimAttempt, Clearing, Restored, Selection, Transfer, Turn, Update,
};
use crate::session::stored_message::json_size;
use crate::session::{Control, GenerationId, Message, Owner, SessionId, StoreError, Tag};

/// How long an entry is kept: longer than a failover takes.
pub(super) const KEPT: Duration = Duration::from_mins(1);
/// Bytes that are kept, at most. Beyond it the oldest entries go.
const BYTES: usize = 64 << 20;
/// Bytes of an entry in addition to its texts: the greater part is the state of a writer.
const ENTRY_BYTES: usize = 2 << 10;
/// Time between two removals of entries that are too old.
const EXPIRE_EVERY: Duration = Duration::from_secs(5);
/// Entries that are kept, at most.
const ENTRIES: usize = 10_000;
/// Time without a disturbance before the entries are applied again.
const CALM: Duration = Duration::from_secs(1);
/// Entries that are applied at the same time.
const AT_ONCE: usize = 16;
/// Time limit for applying one entry.
const LIMIT: Duration = Duration::from_secs(10);
/// Claims of a turn by one application of its end, at most: another replica may hold the same end.
const CLAIMS: u32 = 3;

/// A turn whose end was written.
pub(super) struct Finished {
    pub(super) writer: Writer,
    pub(super) header: Message,
    pub(super) events: Vec<(Tag, Control)>,
}

/// A turn whose request is no longer shown by its front, with the session and its owner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HiddenRequest {
    pub(super) owner: Owner,
    pub(super) session: SessionId,
    pub(super) generation: GenerationId,
}

/// An acknowledged write that no other part of the system would apply again.
pub(super) enum RedoEntry {
    /// A turn of a replica that is gone, which this replica restores once.
    Accepted(Arc<Turn>),
    Finished(Box<Finished>),
    Cancelled(Cancellation),
    Cleared(Clearing),
    Selected(Selection),
    Hidden(HiddenRequest),
    Updated(Update),
    Transferred(Transfer),
    Deleted(DeletedSessions),
}

impl From<DeletedSessions> for RedoEntry {
    fn from(deleted: DeletedSessions) -> Self {
        Self::Deleted(deleted)
    }
}

impl RedoEntry {
    /// Returns the bytes of memory that the entry keeps.
    fn bytes(&self) -> usize {
        ENTRY_BYTES
            + match self {
                Self::Finished(finished) => {
                    let Finished { writer, header, events } = finished.as_ref();
                    let events = events.iter().map(|(_, control)| json_size(control));
                    writer.bytes() + json_size(header) + events.sum::<usize>()
                }
                Self::Accepted(turn) => turn.bytes(),
                Self::Cancelled(cancellation) => cancellation.bytes(),
                Self::Cleared(clearing) => clearing.bytes(),
                Self::Selected(selection) => selection.bytes(),
                Self::Hidden(hidden) => hidden.owner.key().len(),
                Self::Updated(update) => update.bytes(),
                Self::Transferred(transfer) => transfer.bytes(),
                Self::Deleted(deleted) => deleted.bytes(),
            }
    }

    /// Returns the generation of a turn, or of an end that a writer wrote.
    pub(super) fn generation(&self) -> Option<GenerationId> {
        match self {
            Self::Accepted(turn) => Some(turn.generation),
            Self::Finished(finished) => Some(finished.writer.turn().generation),
            Self::Cancelled(_)
            | Self::Cleared(_)
            | Self::Selected(_)
            | Self::Hidden(_)
            | Self::Updated(_)
            | Self::Transferred(_)
            | Self::Deleted(_) => None,
        }
    }

    /// Applies the entry again. Returns `false` where Redis failed.
    async fn apply(&mut self, generations: &Generations) -> bool {
        let applied = match self {
            Self::Accepted(turn) => restore(generations, turn).await,
            Self::Finished(finished) => finished.write(generations).await,
            Self::Cancelled(cancellation) => generations.store.cancel(cancellation).await.map(drop),
            Self::Cleared(clearing) => generations.store.clear(clearing).await.map(drop),
            Self::Selected(selection) => generations.store.select(selection).await.map(drop),
            Self::Hidden(hidden) => {
                let HiddenRequest { owner, session, generation } = hidden;
                generations.store.hide_request(owner, *session, *generation).await.map(drop)
            }
            Self::Updated(update) => generations.store.update(update).await,
            Self::Transferred(transfer) => generations.apply_transfer(transfer).await,
            Self::Deleted(deleted) => deleted.apply(&generations.store).await,
        };
        !matches!(applied, Err(StoreError::Redis(_) | StoreError::OutOfMemory))
    }
}

impl Finished {
    /// Writes the end, unless the turn has ended. The clients have got this end. So where a failover
    /// lost it and another replica has taken the turn over since, the turn is claimed back.
    async fn write(&mut self, generations: &Generations) -> Result<(), StoreError> {
        let store = &generations.store;
        for _ in 0..CLAIMS {
            if let Ok(()) = self.writer.finish(&self.header, &self.events).await {
                return Ok(());
            }
            let Some(open) = store.open_turn(self.writer.turn()).await? else { return Ok(()) };
            let (turn, state) = match store.claim(&ClaimAttempt::new(open)).await? {
                Claim::Running(turn, writers) => (turn, TurnState::Running { writers }),
                Claim::Waiting(turn) => (turn, TurnState::Waiting),
                Claim::Other => continue,
            };
            if turn.epoch != self.writer.turn().epoch {
                // The history was cleared, and the client has sent the same request once more.
                generations.run_again(turn, state);
                return Ok(());
            }
            let is_running = matches!(state, TurnState::Running { .. });
            self.writer.take(turn, is_running);
        }
        Ok(())
    }
}

/// Restores a turn of a replica that is gone, and runs it here, if a failover lost it. A turn that
/// Redis has is claimed as every other one is: Redis knows more of it than its copy.
async fn restore(generations: &Generations, turn: &Arc<Turn>) -> Result<(), StoreError> {
    if generations.store.open_turn(turn).await?.is_some() {
        return Ok(());
    }
    let state = match generations.store.restore(turn).await? {
        Restored::Gone => return Ok(()),
        Restored::Waiting => TurnState::Waiting,
        Restored::Kept | Restored::Claimed => TurnState::Running { writers: 2 },
    };
    tracing::info!(generation = %turn.generation, "turn restored from a copy");
    turn_spans::end_lost_writer(turn, 2, None);
    generations.run_again(Arc::clone(turn), state);
    Ok(())
}

/// The entries of the last minute.
#[derive(Default)]
pub(super) struct RedoLog(Mutex<KeptEntries>);

#[derive(Default)]
struct KeptEntries {
    entries: VecDeque<KeptEntry>,
    bytes: usize,
}

struct KeptEntry {
    at: Instant,
    bytes: usize,
    write: RedoEntry,
}

impl RedoLog {
    pub(super) fn push(&self, entry: RedoEntry) {
        self.kept().push(Instant::now(), entry);
    }

    /// Returns the bytes of memory that all entries keep.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.kept().bytes
    }

    fn kept(&self) -> MutexGuard<'_, KeptEntries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeptEntries {
    fn push(&mut self, at: Instant, entry: RedoEntry) {
        // Counted once, as what an entry keeps may change while it is applied.
        let bytes = entry.bytes();
        self.bytes += bytes;
        self.entries.push_back(KeptEntry { at, bytes, write: entry });
        self.expire();
    }

    /// Removes the entries that are too old, and the oldest of those that are too many or too large.
    fn expire(&mut self) {
        while self.bytes > BYTES
            || self.entries.len() > ENTRIES
            || self.entries.front().is_some_and(|entry| entry.at.elapsed() > KEPT)
        {
            let Some(entry) = self.entries.pop_front() else { return };
            self.bytes -= entry.bytes;
        }
        if self.entries.is_empty() {
            self.entries = VecDeque::new();
        }
    }
}

/// Applies the entries of the last minute again after every disturbance of the connection, and
/// removes older ones.
pub(super) async fn watch(generations: Generations) -> TaskEnd {
    let mut disturbances = generations.store.disturbances();
    let mut expiries = interval(EXPIRE_EVERY);
    loop {
        tokio::select! {
            changed = disturbances.changed() => if changed.is_err() {
                return TaskEnd::Done;
            },
            _ = expiries.tick() => {
                generations.redo.kept().expire();
                generations.copies.expire();
                generations.images.expire();
                continue;
            }
        }
        loop {
            let count = *disturbances.borrow_and_update();
            sleep(CALM).await;
            if *disturbances.borrow() == count
                && apply_all(&generations).await
                && generations.put_images_back().await
            {
                break;
            }
        }
    }
}

/// Applies all entries again. Returns `false` where one failed.
async fn apply_all(generations: &Generations) -> bool {
    let entries = std::mem::take(&mut *generations.redo.kept()).entries;
    let entries = entries.into_iter().map(|entry| (entry.at, entry.write));
    apply(generations, entries).await
}

/// Applies these entries, and keeps them. Returns `false` where one failed.
pub(super) async fn apply(
    generations: &Generations,
    entries: impl IntoIterator<Item = (Instant, RedoEntry)>,
) -> bool {
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
        // A turn that was restored has a writer.
        if !(is_applied && matches!(entry, RedoEntry::Accepted(_))) {
            kept.push(at, entry);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::store::SessionChange;

    #[test]
    fn the_oldest_entries_are_removed_where_all_keep_too_many_bytes() {
        let mut kept = KeptEntries::default();
        let session = SessionId::random();
        let cancel = Cancellation::new(&Owner::Anonymous, session, None);
        kept.push(Instant::now(), RedoEntry::Cancelled(cancel));
        for _ in 0..4 {
            let title = Some("x".repeat(BYTES / 4));
            let change = SessionChange { title, ..SessionChange::default() };
            let update = Update::new(&Owner::Anonymous, session, change);
            kept.push(Instant::now(), RedoEntry::Updated(update));
        }
        let are_updates =
            kept.entries.iter().all(|entry| matches!(entry.write, RedoEntry::Updated(_)));
        assert_eq!((kept.entries.len(), are_updates), (3, true));
        assert!((BYTES / 4 * 3..=BYTES).contains(&kept.bytes), "{}", kept.bytes);
    }

    #[test]
    fn entries_are_removed_by_time_though_no_other_is_added() {
        let mut kept = KeptEntries::default();
        let cancel = || {
            let session = SessionId::random();
            RedoEntry::Cancelled(Cancellation::new(&Owner::Anonymous, session, None))
        };
        for _ in 0..2 * ENTRIES {
            kept.push(Instant::now(), cancel());
        }
        assert_eq!(kept.entries.len(), ENTRIES);
        assert!(kept.bytes >= ENTRIES * ENTRY_BYTES, "{}", kept.bytes);
        for entry in &mut kept.entries {
            entry.at -= KEPT;
        }
        kept.expire();
        assert_eq!((kept.entries.len(), kept.entries.capacity(), kept.bytes), (0, 0, 0));
    }
}
