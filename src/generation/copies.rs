//! Copies of accepted turns and redo entries, in a second replica.
//!
//! A failover may lose writes that Redis acknowledged, and the replica that would restore it may be dead.
//! So each replica sends a copy of what it would restore to its backup, which is one of the replicas
//! that watch its connections. When the sender is gone, the backup restores in its place. While
//! Redis replicas acknowledge the writes, no copy is sent: they are the second copy then.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Generations;
use super::deletion::DeletedSessions;
use super::redo::{self, Finished, HiddenRequest, KEPT, RedoEntry};
use super::writer::Writer;
use crate::lifecycle::{TaskEnd, catch_panic};
use crate::redis::Listener;
use crate::retry::Backoff;
use crate::session::store::{Cancellation, Clearing, Selection, Transfer, TurnCopy, Update};
use crate::session::{Control, Message, Store, StoreError, Tag};
use crate::telemetry::{CountedOpen, metric};

/// Bytes of one copy, at most. A larger one is not sent.
const COPY_BYTES: usize = 256 << 10;
/// Copies that wait to be sent, at most.
const WAITING: usize = 256;
/// Attempts to send a copy, and the pauses between them: the backup may have died just now, and others
/// have lost theirs with it.
const ATTEMPTS: u32 = 4;
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(1));
/// Bytes of copies that are kept for other replicas, at most. Beyond it the oldest go.
const BYTES: usize = 64 << 20;
/// Copies that are kept for other replicas, at most.
const COPIES: usize = 10_000;

/// A turn or a redo entry, as one replica sends it to another.
#[derive(Serialize, Deserialize)]
enum Copy {
    Accepted(TurnCopy),
    Finished { turn: TurnCopy, text: String, header: Box<Message>, events: Vec<(Tag, Control)> },
    Cancelled(Cancellation),
    Cleared(Clearing),
    Selected(Selection),
    Hidden(HiddenRequest),
    Updated(Update),
    Transferred(Transfer),
    Deleted(DeletedSessions),
}

impl Copy {
    fn of(entry: &RedoEntry) -> Self {
        match entry {
            RedoEntry::Accepted(turn) => Self::Accepted(TurnCopy::of(turn)),
            RedoEntry::Finished(finished) => Self::Finished {
                turn: TurnCopy::of(finished.writer.turn()),
                text: finished.writer.text().to_owned(),
                header: Box::new(finished.header.clone()),
                events: finished.events.clone(),
            },
            RedoEntry::Cancelled(cancellation) => Self::Cancelled(cancellation.clone()),
            RedoEntry::Cleared(clearing) => Self::Cleared(clearing.clone()),
            RedoEntry::Selected(selection) => Self::Selected(selection.clone()),
            RedoEntry::Hidden(hidden) => Self::Hidden(hidden.clone()),
            RedoEntry::Updated(update) => Self::Updated(update.clone()),
            RedoEntry::Transferred(transfer) => Self::Transferred(transfer.clone()),
            RedoEntry::Deleted(deleted) => Self::Deleted(deleted.clone()),
        }
    }

    /// Returns the entry for the replica that restores it on behalf of its sender.
    fn restore(self, store: &Store) -> Result<RedoEntry, StoreError> {
        Ok(match self {
            Self::Accepted(turn) => RedoEntry::Accepted(Arc::new(turn.restore()?)),
            Self::Finished { turn, text, header, events } => {
                let writer = Writer::restoring(store.clone(), Arc::new(turn.restore()?), text);
                RedoEntry::Finished(Box::new(Finished { writer, header: *header, events }))
            }
            Self::Cancelled(cancellation) => RedoEntry::Cancelled(cancellation),
            Self::Cleared(clearing) => RedoEntry::Cleared(clearing),
            Self::Selected(selection) => RedoEntry::Selected(selection),
            Self::Hidden(hidden) => RedoEntry::Hidden(hidden),
            Self::Updated(update) => RedoEntry::Updated(update),
            Self::Transferred(transfer) => RedoEntry::Transferred(transfer),
            Self::Deleted(deleted) => RedoEntry::Deleted(deleted),
        })
    }
}

/// A copy that waits to be sent, until it was sent or given up.
pub(super) struct Outgoing {
    json: String,
    _waiting: CountedOpen,
}

/// The copies that this replica sends, and those that it keeps.
pub(super) struct Copies {
    outbox: mpsc::Sender<Outgoing>,
    /// The backup of this replica.
    backup: Mutex<Option<String>>,
    kept: Mutex<KeptCopies>,
}

#[derive(Default)]
struct KeptCopies {
    copies: VecDeque<KeptCopy>,
    bytes: usize,
}

struct KeptCopy {
    at: Instant,
    sender: String,
    /// The copy as it came: most of them are never read.
    json: String,
}

impl Copies {
    /// Creates the copies of a replica, with the queue of those that are to be sent.
    pub(super) fn new() -> (Self, mpsc::Receiver<Outgoing>) {
        let (outbox, waiting) = mpsc::channel(WAITING);
        metrics::gauge!(metric::REDO_COPIES_WAITING).set(0.0);
        let copies = Self { outbox, backup: Mutex::default(), kept: Mutex::default() };
        (copies, waiting)
    }

    /// Sends a copy of the entry to the backup, in the background. Does nothing without a backup, and
    /// while Redis replicas acknowledge the writes.
    pub(super) fn send(&self, store: &Store, entry: &RedoEntry) {
        if store.is_replicated() || self.backup().is_none() {
            return;
        }
        let json = serde_json::to_string(&Copy::of(entry)).unwrap_or_default();
        let is_too_large = json.len() > COPY_BYTES;
        let waiting = CountedOpen::new(metrics::gauge!(metric::REDO_COPIES_WAITING));
        if is_too_large || self.outbox.try_send(Outgoing { json, _waiting: waiting }).is_err() {
            count("dropped");
        }
    }

    /// Notes the backup of this replica.
    pub(super) fn set_backup(&self, backup: Option<String>) {
        *self.backup.lock().unwrap_or_else(PoisonError::into_inner) = backup;
    }

    fn backup(&self) -> Option<String> {
        self.backup.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the replicas of which this one keeps copies.
    pub(super) fn senders(&self) -> HashSet<String> {
        self.kept().copies.iter().map(|copy| copy.sender.clone()).collect()
    }

    /// Removes the copies that are too old.
    pub(super) fn expire(&self) {
        self.kept().expire();
    }

    /// Takes the copies of a replica that is gone, oldest first.
    fn take(&self, sender: &str) -> VecDeque<KeptCopy> {
        let mut kept = self.kept();
        let all = std::mem::take(&mut kept.copies);
        let (taken, left) = all.into_iter().partition(|copy| copy.sender == sender);
        kept.copies = left;
        kept.bytes = kept.copies.iter().map(KeptCopy::bytes).sum();
        taken
    }

    fn kept(&self) -> MutexGuard<'_, KeptCopies> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeptCopies {
    fn push(&mut self, copy: KeptCopy) {
        self.bytes += copy.bytes();
        self.copies.push_back(copy);
        self.expire();
    }

    /// Removes the copies that are too old, and the oldest of those that are too many or too large.
    fn expire(&mut self) {
        while self.bytes > BYTES
            || self.copies.len() > COPIES
            || self.copies.front().is_some_and(|copy| copy.at.elapsed() > KEPT)
        {
            let Some(copy) = self.copies.pop_front() else { return };
            self.bytes -= copy.bytes();
        }
        if self.copies.is_empty() {
            self.copies = VecDeque::new();
        }
    }
}

impl KeptCopy {
    fn bytes(&self) -> usize {
        self.sender.len() + self.json.len()
    }
}

impl Listener for Copies {
    fn message(&self, _channel: &str, payload: &str) {
        let Some((sender, json)) = payload.split_once('\n') else { return };
        let (sender, json) = (sender.to_owned(), json.to_owned());
        let copy = KeptCopy { at: Instant::now(), sender, json };
        self.kept().push(copy);
    }

    /// Does nothing: a copy that was lost is in one place only.
    fn gap(&self) {}
}

/// Receives the copies of others, and sends those of this replica, one at a time and in order.
pub(super) async fn exchange(
    store: Store,
    copies: Arc<Copies>,
    mut waiting: mpsc::Receiver<Outgoing>,
) -> TaskEnd {
    let listener: Arc<dyn Listener> = Arc::clone(&copies) as _;
    let _subscriptions = match store.receive_copies(&listener).await {
        Ok(subscriptions) => subscriptions,
        Err(error) => return TaskEnd::Failed(error.to_string()),
    };
    while let Some(copy) = waiting.recv().await {
        let payload = format!("{}\n{}", store.replica(), copy.json);
        let (mut outcome, mut backoff) = ("unheard", BACKOFF);
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                let _ = backoff.pause().await;
            }
            let Some(backup) = copies.backup() else { break };
            if store.send_copy(&backup, payload.clone()).await.unwrap_or(false) {
                outcome = "sent";
                break;
            }
        }
        count(outcome);
    }
    TaskEnd::Done
}

/// The turns and redo entries that a replica restores on behalf of one that is gone.
pub(super) struct RestoredCopies {
    /// Ends, cancels and clears.
    ends: Vec<(Instant, RedoEntry)>,
    /// Turns without an end.
    turns: Vec<(KeptCopy, RedoEntry)>,
}

impl RestoredCopies {
    /// Takes the copies of a replica that is gone. A turn that has ended is restored by its end.
    pub(super) fn of(generations: &Generations, gone: &str) -> Self {
        let (mut ends, mut turns) = (Vec::new(), Vec::new());
        let copies = generations.copies.take(gone);
        for copy in copies.into_iter().filter(|copy| copy.at.elapsed() <= KEPT) {
            let read = serde_json::from_str::<Copy>(&copy.json).map_err(|error| error.to_string());
            let restored = read.and_then(|read| {
                read.restore(&generations.store).map_err(|error| error.to_string())
            });
            match restored {
                Ok(entry @ RedoEntry::Accepted(_)) => turns.push((copy, entry)),
                Ok(entry) => ends.push((copy.at, entry)),
                Err(error) => tracing::warn!(%error, "unreadable copy of another replica"),
            }
        }
        let ended: HashSet<_> = ends.iter().filter_map(|(_, entry)| entry.generation()).collect();
        turns.retain(|(_, entry)| entry.generation().is_none_or(|id| !ended.contains(&id)));
        if !(ends.is_empty() && turns.is_empty()) {
            tracing::info!(from = gone, ends = ends.len(), turns = turns.len(), "copies restored");
        }
        Self { ends, turns }
    }

    /// Applies ends, cancels and clears, in the background.
    pub(super) fn apply_ends(&mut self, generations: &Generations) {
        let ends = std::mem::take(&mut self.ends);
        let running = generations.clone();
        generations
            .tasks
            .spawn(catch_panic("copies", async move { redo::apply(&running, ends).await }));
    }

    /// Restores the turns that Redis does not have, in the background. Those that it has were
    /// claimed before.
    pub(super) fn restore_turns(self, generations: &Generations) {
        let turns: Vec<_> = self.turns.into_iter().map(|(copy, entry)| (copy.at, entry)).collect();
        let running = generations.clone();
        generations
            .tasks
            .spawn(catch_panic("copies", async move { redo::apply(&running, turns).await }));
    }

    /// Keeps the turns for another attempt, because the claims of those that Redis has failed.
    pub(super) fn put_back(self, generations: &Generations) {
        let mut kept = generations.copies.kept();
        for (copy, _) in self.turns {
            kept.push(copy);
        }
    }
}

fn count(outcome: &'static str) {
    metrics::counter!(metric::REDO_COPIES_TOTAL, "outcome" => outcome).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_removed_by_time_though_no_other_comes() {
        let copies = Copies::new().0;
        copies.message("", "sender\n{}");
        copies.expire();
        assert_eq!(copies.kept().copies.len(), 1);
        for copy in &mut copies.kept().copies {
            copy.at -= KEPT;
        }
        copies.expire();
        let kept = copies.kept();
        assert_eq!((kept.copies.len(), kept.copies.capacity(), kept.bytes), (0, 0, 0));
    }
}
