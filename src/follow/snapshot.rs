//! Snapshots of a session, for clients that cannot get the changes that they missed.

use crate::session::store::{Page, ReadFrom, ReadOutcome};
use crate::session::{Cursor, GenerationId, Message, Owner, SessionId, Store, StoreError, Window};

/// The largest number of messages in a snapshot.
const MESSAGES: u64 = 50;
/// Attempts to read the messages and the running answer of the same moment.
const ATTEMPTS: usize = 4;

/// The newest messages of a session, and its running answer so far.
pub struct Snapshot {
    /// The newest messages, oldest first.
    pub messages: Vec<Message>,
    /// Whether the session has older messages.
    pub has_more: bool,
    /// The running generation whose answer has started, with its reasoning and answer so far as they
    /// are stored. The start of any other answer follows the snapshot.
    pub running: Option<(GenerationId, String)>,
    /// The cursor after everything in the snapshot except the running text.
    pub cursor: Cursor,
}

impl Snapshot {
    /// Returns the cursor of a client that received `shown` bytes of the running text.
    pub fn cursor_after(&self, shown: usize) -> Cursor {
        let offset = if self.running.is_some() { shown as u64 } else { 0 };
        Cursor { offset, ..self.cursor }
    }
}

/// Takes a snapshot with at most `bytes` of messages. A turn that begins and ends meanwhile is in
/// the snapshot, or follows it, or both.
///
/// # Errors
/// [`StoreError::Redis`].
pub async fn take(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    bytes: usize,
) -> Result<Snapshot, StoreError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let window = match store.read(owner, session, ReadFrom::RunningTurn).await? {
            ReadOutcome::Window { window, .. } => window,
            ReadOutcome::Absent | ReadOutcome::Behind | ReadOutcome::Unknown => {
                return Ok(empty(Cursor::START));
            }
        };
        let page = match store.newest(owner, session, MESSAGES, bytes).await {
            Ok(page) => page,
            Err(StoreError::Absent) => return Ok(empty(window.end())),
            Err(error) => return Err(error),
        };
        if page.running == window.running() || attempt == ATTEMPTS {
            return Ok(snapshot_of(&window, page));
        }
    }
}

fn snapshot_of(window: &Window, page: Page) -> Snapshot {
    let running = window
        .running()
        .and_then(|generation| Some((generation, window.answer(generation)?.text.clone())));
    Snapshot { has_more: page.first > 0, messages: page.messages, running, cursor: window.end() }
}

fn empty(cursor: Cursor) -> Snapshot {
    Snapshot { messages: Vec::new(), has_more: false, running: None, cursor }
}
