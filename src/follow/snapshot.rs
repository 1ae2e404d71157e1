//! A session as it stands, for a client that cannot be told change by change what it missed.

use crate::session::store::{Page, ReadFrom, ReadOutcome};
use crate::session::{Cursor, GenerationId, Message, Owner, SessionId, Store, StoreError, Window};

/// Messages of a snapshot, at most.
const MESSAGES: u64 = 50;
/// Tries to see the messages and the running answer of the same moment.
const TRIES: usize = 4;

/// A session as it stands.
pub struct Snapshot {
    /// The newest messages, oldest first.
    pub messages: Vec<Message>,
    /// Whether the session has older messages.
    pub has_more: bool,
    /// The generation that runs, with its text so far: reasoning and answer as they are stored.
    pub running: Option<(GenerationId, String)>,
    /// Behind everything in the snapshot but the running text.
    pub cursor: Cursor,
}

impl Snapshot {
    /// The cursor of a client that was given `shown` bytes of the running text.
    pub fn cursor_after(&self, shown: usize) -> Cursor {
        let offset = if self.running.is_some() { shown as u64 } else { 0 };
        Cursor { offset, ..self.cursor }
    }
}

/// Takes a snapshot with at most `bytes` of messages. Where a whole turn passes while it is taken,
/// that turn may be in the snapshot and follow it, too; it is never in neither.
///
/// # Errors
/// [`StoreError::Redis`].
pub async fn take(
    store: &Store,
    owner: &Owner,
    session: SessionId,
    bytes: usize,
) -> Result<Snapshot, StoreError> {
    let mut tries = 0;
    loop {
        tries += 1;
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
        if page.running == window.running() || tries == TRIES {
            return Ok(of(&window, page));
        }
    }
}

fn of(window: &Window, page: Page) -> Snapshot {
    let running = window.running().map(|generation| {
        let text = window.answer(generation).map_or("", |answer| answer.text.as_str());
        (generation, text.to_owned())
    });
    Snapshot { has_more: page.first > 0, messages: page.messages, running, cursor: window.end() }
}

fn empty(cursor: Cursor) -> Snapshot {
    Snapshot { messages: Vec::new(), has_more: false, running: None, cursor }
}
