//! What a client is given that cannot be told event by event what it missed.

use axum::extract::ws::Utf8Bytes;

use super::wire;
use crate::session::store::{Page, ReadFrom, ReadOutcome};
use crate::session::{Cursor, GenerationId, Owner, SessionId, Store, StoreError, Window};

/// Messages of it, at most.
const MESSAGES: u64 = 50;
/// Tries to see the messages and the running answer of the same moment.
const TRIES: usize = 4;

/// A session as it stands: a `history` event, and where to go on after it.
pub struct Snapshot {
    /// The event.
    pub json: Utf8Bytes,
    /// What follows it.
    pub cursor: Cursor,
    /// The generation that is being written.
    pub running: Option<GenerationId>,
}

/// Takes a snapshot. Where a whole turn passes while it is taken, that turn may be in it and follow
/// it too; nothing is ever in neither.
///
/// # Errors
/// [`StoreError::Redis`].
pub async fn take(
    store: &Store,
    owner: &Owner,
    session: SessionId,
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
        let page = match store.newest(owner, session, MESSAGES, wire::EVENT_BYTES).await {
            Ok(page) => page,
            Err(StoreError::Absent) => return Ok(empty(window.end())),
            Err(error) => return Err(error),
        };
        if page.running == window.running() || tries == TRIES {
            return Ok(of(&window, &page));
        }
    }
}

fn of(window: &Window, page: &Page) -> Snapshot {
    let running = window.running();
    let answer = running.map(|generation| {
        (generation, window.answer(generation).map_or("", |answer| answer.text.as_str()))
    });
    let (json, shown) = wire::history(&page.messages, page.first > 0, answer);
    // What did not fit follows as pieces.
    let offset = if running.is_some() { shown as u64 } else { 0 };
    Snapshot { json, cursor: Cursor { offset, ..window.end() }, running }
}

fn empty(cursor: Cursor) -> Snapshot {
    Snapshot { json: wire::history(&[], false, None).0, cursor, running: None }
}
