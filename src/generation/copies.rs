//! Copies of accepted turns and redo entries, in a second replica.
//!
//! What Redis acknowledged, a failover may lose, and the replica that would restore it may be dead.
//! So each replica sends a copy of what it would restore to its backup, which is one of the replicas
//! that watch its connections. When the sender is gone, the backup restores in its place. While
//! Redis replicas acknowledge the writes, no copy is sent: they are the second place then.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::Generations;
use super::redo::{self, Finished, KEPT, RedoEntry};
use super::writer::Writer;
use crate::lifecycle::TaskEnd;
use crate::redis::Listener;
use crate::session::store::{Cancellation, Clearing, TurnCopy};
use crate::session::{Control, Message, Store, StoreError, Tag};
use crate::telemetry::metric;

/// Bytes of one copy, at most. A larger one is not sent.
const COPY_BYTES: usize = 256 << 10;
/// Copies that wait to be sent, at most.
const WAITING: usize = 256;
/// Attempts to send a copy, and the pause between them: the backup may have died just now.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
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
        }
    }

    /// Returns the entry for the replica that restores it in the place of its sender.
    fn adopt(self, store: &Store) -> Result<RedoEntry, StoreError> {
        Ok(match self {
            Self::Accepted(turn) => RedoEntry::Accepted(Arc::new(turn.adopt()?)),
            Self::Finished { turn, text, header, events } => {
                let writer = Writer::restoring(store.clone(), Arc::new(turn.adopt()?), text);
                RedoEntry::Finished(Box::new(Finished { writer, header: *header, events }))
            }
            Self::Cancelled(cancellation) => RedoEntry::Cancelled(cancellation),
            Self::Cleared(clearing) => RedoEntry::Cleared(clearing),
        })
    }
}

/// The copies that this replica sends, and those that it keeps.
pub(super) struct Copies {
    outbox: mpsc::Sender<String>,
    /// The backup of this replica.
    backup: watch::Sender<Option<String>>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
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
    pub(super) fn new() -> (Self, mpsc::Receiver<String>) {
        let (outbox, waiting) = mpsc::channel(WAITING);
        let copies = Self { outbox, backup: watch::Sender::new(None), kept: Mutex::default() };
        (copies, waiting)
    }

    /// Sends a copy of the entry to the backup, in the background. Does nothing without a backup, and
    /// while Redis replicas acknowledge the writes.
    pub(super) fn send(&self, store: &Store, entry: &RedoEntry) {
        if store.is_replicated() || self.backup.borrow().is_none() {
            return;
        }
        let json = serde_json::to_string(&Copy::of(entry)).unwrap_or_default();
        if json.len() > COPY_BYTES || self.outbox.try_send(json).is_err() {
            count("dropped");
        }
    }

    /// Notes the backup of this replica.
    pub(super) fn set_backup(&self, backup: Option<String>) {
        self.backup.send_if_modified(|known| {
            let is_new = *known != backup;
            *known = backup;
            is_new
        });
    }

    /// Returns the replicas of which this one keeps copies.
    pub(super) fn senders(&self) -> HashSet<String> {
        self.kept().copies.iter().map(|copy| copy.sender.clone()).collect()
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

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut kept = self.kept();
        kept.bytes += copy.bytes();
        kept.copies.push_back(copy);
        while kept.bytes > BYTES
            || kept.copies.len() > COPIES
            || kept.copies.front().is_some_and(|copy| copy.at.elapsed() > KEPT)
        {
            let Some(copy) = kept.copies.pop_front() else { return };
            kept.bytes -= copy.bytes();
        }
    }

    /// A copy that was lost is in one place only.
    fn gap(&self) {}
}

/// Receives the copies of others, and sends those of this replica, one at a time and in order.
pub(super) async fn exchange(
    store: Store,
    copies: Arc<Copies>,
    mut waiting: mpsc::Receiver<String>,
) -> TaskEnd {
    let listener: Arc<dyn Listener> = Arc::clone(&copies) as _;
    let _subscriptions = match store.receive_copies(&listener).await {
        Ok(subscriptions) => subscriptions,
        Err(error) => return TaskEnd::Failed(error.to_string()),
    };
    while let Some(json) = waiting.recv().await {
        let payload = format!("{}\n{json}", store.replica());
        let mut outcome = "unheard";
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(PAUSE).await;
            }
            let Some(backup) = copies.backup.borrow().clone() else { break };
            if store.send_copy(&backup, payload.clone()).await.unwrap_or(false) {
                outcome = "sent";
                break;
            }
        }
        count(outcome);
    }
    TaskEnd::Done
}

/// Restores in the place of a replica that is gone what only its copies may have: its ends first,
/// and its cancels last.
pub(super) async fn adopt(generations: &Generations, gone: &str) {
    let copies = generations.copies.take(gone);
    let mut entries = Vec::new();
    for KeptCopy { at, json, .. } in copies.into_iter().filter(|copy| copy.at.elapsed() <= KEPT) {
        let read = serde_json::from_str::<Copy>(&json).map_err(|error| error.to_string());
        let adopted =
            read.and_then(|copy| copy.adopt(&generations.store).map_err(|error| error.to_string()));
        match adopted {
            Ok(entry) => entries.push((at, entry)),
            Err(error) => tracing::warn!(%error, "unreadable copy of another replica"),
        }
    }
    if entries.is_empty() {
        return;
    }
    tracing::info!(from = gone, entries = entries.len(), "redo entries adopted");
    for part in in_order(entries) {
        redo::apply(generations, part).await;
    }
}

/// Returns the entries in the order in which they are restored. A turn that has ended is restored
/// by its end.
fn in_order(entries: Vec<(Instant, RedoEntry)>) -> [Vec<(Instant, RedoEntry)>; 2] {
    let ended: HashSet<_> = entries
        .iter()
        .filter_map(|(_, entry)| match entry {
            RedoEntry::Finished(finished) => Some(finished.writer.turn().generation),
            _ => None,
        })
        .collect();
    let is_open = |entry: &RedoEntry| !matches!(entry, RedoEntry::Accepted(turn) if ended.contains(&turn.generation));
    let open = entries.into_iter().filter(|(_, entry)| is_open(entry));
    let (cancels, others) = open.partition(|(_, entry)| matches!(entry, RedoEntry::Cancelled(_)));
    [others, cancels]
}

fn count(outcome: &'static str) {
    metrics::counter!(metric::REDO_COPIES_TOTAL, "outcome" => outcome).increment(1);
}
