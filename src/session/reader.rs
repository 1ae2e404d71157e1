//! Readers: cursors over a feed, which yield one delta after another.
//!
//! A slow reader costs a cursor, not memory: it reads the changes that it missed from the feed's
//! window, or from Redis.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::cursor::Cursor;
use super::delta::{Change, Delta};
use super::event::Queued;
use super::feed::{Feed, FeedState, Feeds, GRACE, Newest};
use super::model::{GenerationId, Owner, SessionId};
use super::store::{ReadFrom, ReadOutcome, StoreError};
use super::window::{Step, Window};
use crate::byte_room::{ClientRoom, RoomPermit};
use crate::retry::Backoff;

/// The largest piece of text for a reader that catches up, in bytes.
const PIECE_BYTES: usize = 16 << 10;
/// Bytes of a window that take no room.
const FREE_BYTES: usize = 16 << 10;
/// How long a reader waits for room for a window, after one for which there was none.
const ROOM_LIMIT: Duration = Duration::from_secs(5);

/// The next item of a reader.
#[derive(Debug)]
pub enum Delivered {
    /// The next change.
    Delta(Arc<Delta>),
    /// The reader's cursor belongs to another history of this session, or to a part of it that is
    /// no longer kept: the client needs a snapshot.
    Lost,
    /// The session has become a user's, and this reader's caller is anonymous: to it there is no
    /// such session any more.
    Transferred,
}

/// A cursor over a feed.
pub struct Reader {
    feed: Arc<Feed>,
    feeds: Feeds,
    cursor: Cursor,
    /// Whether the reader's caller is anonymous.
    is_anonymous: bool,
    /// The window that a reader behind the feed's window read from Redis.
    catching_up: Option<Box<HeldWindow>>,
    /// The room of such windows; none where they take none.
    room: Option<ClientRoom>,
    /// Bytes of the last such window, where there was no room for it.
    unpaid: usize,
    lost: bool,
    /// The number of the feed's history that the cursor was known in last.
    history: u64,
    /// Attempts to read Redis; boxed, because an idle socket makes none.
    attempts: Option<Box<ReadAttempts>>,
    /// The queue position that was delivered last.
    queued: Option<Queued>,
}

/// A window that a reader holds.
struct HeldWindow {
    window: Window,
    _room: Option<RoomPermit>,
    /// Whether the reader gives it back after one step, and reads it again: it has no room, and the client
    /// may take as long as it likes for what it is sent.
    is_for_one_step: bool,
}

/// Attempts to read Redis that have not succeeded yet.
struct ReadAttempts {
    /// The time since which Redis has not known this reader's cursor.
    unknown_since: Option<Instant>,
    /// The pauses between two reads of Redis.
    backoff: Backoff,
    /// Room that is waited for: a wait that is interrupted keeps its place.
    awaited: Option<BoxFuture<'static, Option<RoomPermit>>>,
}

impl ReadAttempts {
    fn new() -> Self {
        Self { unknown_since: None, backoff: Backoff::redis(), awaited: None }
    }
}

/// The result of one step over the windows.
enum Advance {
    /// The reader yields this delta.
    Delta(Arc<Delta>),
    /// The cursor moved over a change that this reader does not need.
    Moved,
    /// The windows hold nothing more.
    Nothing,
    /// The next step needs a read of Redis.
    Redis,
}

impl Feeds {
    /// Opens a reader at `cursor`. Without one it begins with the running turn, or with the next
    /// change where none runs.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn reader(
        &self,
        owner: &Owner,
        session: SessionId,
        cursor: Option<Cursor>,
    ) -> Result<Reader, StoreError> {
        let feed = self.join(owner, session).await?;
        let start = match cursor {
            Some(cursor) => cursor,
            None => match self.store().read(owner, session, ReadFrom::RunningTurn).await? {
                ReadOutcome::Window { window, .. } => window.start(),
                ReadOutcome::Absent | ReadOutcome::Behind | ReadOutcome::Unknown => Cursor::START,
            },
        };
        Reader::open(feed, self.clone(), start, *owner == Owner::Anonymous).await
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.feed.end_reading();
    }
}

impl Reader {
    /// Opens a reader at `cursor`.
    ///
    /// # Errors
    /// [`StoreError`] where the cursor is not in the feed's window and Redis does not answer.
    async fn open(
        feed: Arc<Feed>,
        feeds: Feeds,
        cursor: Cursor,
        is_anonymous: bool,
    ) -> Result<Self, StoreError> {
        feed.begin_reading();
        let history = feed.state().histories;
        let mut reader = Self {
            feed,
            feeds,
            cursor,
            is_anonymous,
            catching_up: None,
            room: None,
            unpaid: 0,
            lost: false,
            history,
            attempts: None,
            queued: None,
        };
        if !reader.is_in_window() {
            reader.catch_up(Duration::ZERO).await?;
        }
        Ok(reader)
    }

    /// Returns the cursor after the last delta that was delivered.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Returns whether the reader can deliver every change since the cursor that it began with.
    pub fn is_recovered(&self) -> bool {
        !self.lost
    }

    /// Continues from another cursor, such as a snapshot's.
    pub fn move_to(&mut self, cursor: Cursor) {
        self.cursor = cursor;
        self.catching_up = None;
        self.lost = false;
        self.history = self.feed.state().histories;
    }

    /// Takes room for what it reads of Redis from now on, and for what it has read, until that was
    /// delivered.
    pub fn charge(&mut self, room: ClientRoom) {
        self.room = Some(room);
        if let Some(held) = self.catching_up.take() {
            self.catching_up = Some(self.held(held.window, None));
        }
    }

    /// Takes room as another reader of the same client does.
    pub fn charge_as(&mut self, other: &Self) {
        if let Some(room) = &other.room {
            self.charge(ClientRoom::clone(room));
        }
    }

    /// Returns a window with its room, where there is any at once.
    fn held(&mut self, window: Window, room: Option<RoomPermit>) -> Box<HeldWindow> {
        let bytes = window.read_bytes();
        let (room, has_room) = match self.room.as_ref().filter(|_| bytes > FREE_BYTES) {
            None => (None, true),
            Some(of_client) => {
                let room = room.map_or_else(|| of_client.try_take(bytes), |it| it.resize(bytes));
                let has_room = room.is_some();
                (room, has_room)
            }
        };
        self.unpaid = if has_room { 0 } else { bytes };
        Box::new(HeldWindow { window, _room: room, is_for_one_step: !has_room })
    }

    /// Waits for the next change. Cancel-safe.
    pub async fn next(&mut self) -> Delivered {
        let feed = Arc::clone(&self.feed);
        loop {
            let changed = feed.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_anonymous && feed.is_transferred() {
                return Delivered::Transferred;
            }
            if self.lost {
                return Delivered::Lost;
            }
            match self.advance() {
                Advance::Delta(delta) => {
                    // The windows serve the cursor: what was attempted before, and waited for, is past.
                    self.attempts = None;
                    return Delivered::Delta(delta);
                }
                Advance::Moved | Advance::Nothing => changed.await,
                Advance::Redis => {
                    // Boxed: the future is large and rare, and every idle socket would reserve it.
                    Box::pin(self.attempt_catch_up()).await;
                }
            }
        }
    }

    /// Catches up, or pauses where Redis does not reply.
    async fn attempt_catch_up(&mut self) {
        if let Err(error) = self.catch_up(GRACE).await {
            tracing::debug!(%error, "reader waiting for redis");
            let attempts = self.attempts.get_or_insert_with(|| Box::new(ReadAttempts::new()));
            let _ = attempts.backoff.pause().await;
        }
    }

    fn is_in_window(&self) -> bool {
        let state = self.feed.state();
        match state.window.next(&self.cursor, PIECE_BYTES) {
            Step::Behind | Step::Unknown => false,
            Step::UpToDate => self.cursor == state.window.end(),
            _ => true,
        }
    }

    /// Reads the changes after the cursor from Redis. A cursor that Redis does not know is lost
    /// after `grace`.
    async fn catch_up(&mut self, grace: Duration) -> Result<(), StoreError> {
        let room = match self.room.as_ref().filter(|_| self.unpaid > 0) {
            Some(room) => {
                let attempts = self.attempts.get_or_insert_with(|| Box::new(ReadAttempts::new()));
                let awaited = attempts.awaited.get_or_insert_with(|| {
                    let (room, bytes) = (room.clone(), self.unpaid);
                    async move { room.take(bytes, ROOM_LIMIT).await }.boxed()
                });
                let taken = awaited.await;
                attempts.awaited = None;
                taken
            }
            None => None,
        };
        let from = ReadFrom::Cursor(self.cursor, 0);
        let (history, lost_since) = {
            let state = self.feed.state();
            (state.histories, state.lost_since.filter(|_| state.histories != self.history))
        };
        let owner = if self.is_anonymous { Owner::Anonymous } else { self.feed.owner() };
        match self.feeds.store().read(&owner, self.feed.session(), from).await? {
            ReadOutcome::Window { window, .. } => {
                self.lost =
                    matches!(window.next(&self.cursor, PIECE_BYTES), Step::Behind | Step::Unknown);
                self.catching_up = Some(self.held(window, room));
            }
            ReadOutcome::Behind => self.lost = true,
            ReadOutcome::Absent if self.cursor == Cursor::START => {}
            ReadOutcome::Absent | ReadOutcome::Unknown => {
                let attempts = self.attempts.get_or_insert_with(|| Box::new(ReadAttempts::new()));
                // The feed may have waited for its return already.
                let since = || lost_since.unwrap_or_else(Instant::now);
                let since = *attempts.unknown_since.get_or_insert_with(since);
                self.lost = since.elapsed() >= grace;
                if !self.lost {
                    let _ = attempts.backoff.pause().await;
                }
                return Ok(());
            }
        }
        self.attempts = None;
        self.history = history;
        Ok(())
    }

    fn advance(&mut self) -> Advance {
        if let Some(held) = self.catching_up.take() {
            let advance = loop {
                match self.step(&held.window) {
                    Advance::Moved => {}
                    advance => break advance,
                }
            };
            if let Advance::Delta(..) = advance {
                if !held.is_for_one_step {
                    self.catching_up = Some(held);
                }
                return advance;
            }
        }
        let feed = Arc::clone(&self.feed);
        let mut state = feed.state();
        loop {
            if let Some(newest) = &state.newest
                && newest.from == self.cursor
            {
                self.cursor = newest.delta.after;
                return Advance::Delta(Arc::clone(&newest.delta));
            }
            let from = self.cursor;
            match self.step(&state.window) {
                Advance::Moved => {}
                Advance::Delta(delta) => {
                    if delta.after == state.window.end() {
                        state.newest = Some(Newest { from, delta: Arc::clone(&delta) });
                    }
                    return Advance::Delta(delta);
                }
                // Ahead of the hints, or in a history that is gone: Redis knows.
                Advance::Nothing
                    if state.confirmed
                        && self.history != state.histories
                        && self.cursor.events > state.window.tip().0 =>
                {
                    return Advance::Redis;
                }
                Advance::Nothing => return self.queue_position(&state),
                Advance::Redis => return Advance::Redis,
            }
        }
    }

    /// Yields the queue position of a waiting turn to a reader that has everything else.
    fn queue_position(&mut self, state: &FeedState) -> Advance {
        let queued = state.position().filter(|queued| self.queued != Some(*queued));
        let Some(queued) = queued.filter(|_| state.confirmed) else { return Advance::Nothing };
        self.queued = Some(queued);
        let change = Change::QueuePosition(queued);
        self.delta(Some(queued.generation), self.cursor, change)
    }

    fn step(&mut self, window: &Window) -> Advance {
        let (generation, after, change) = match window.next(&self.cursor, PIECE_BYTES) {
            Step::Piece { generation, is_reasoning, offset, text, after } => {
                let text = text.to_owned();
                let change = if is_reasoning {
                    Change::Reasoning { offset, text }
                } else {
                    Change::Text { offset, text }
                };
                (Some(generation), after, change)
            }
            Step::Event { event, answer, reasoning, after } => {
                let (event, answer) = (Arc::clone(event), answer.to_owned());
                let reasoning = reasoning.map(str::to_owned);
                (event.generation, after, Change::Event { event, answer, reasoning })
            }
            Step::Restart { generation, from, after } => {
                (Some(generation), after, Change::Restart { from })
            }
            Step::Silent { after } => {
                self.cursor = after;
                return Advance::Moved;
            }
            Step::UpToDate => return Advance::Nothing,
            Step::Behind | Step::Unknown => return Advance::Redis,
        };
        self.cursor = after;
        self.delta(generation, after, change)
    }

    fn delta(&self, generation: Option<GenerationId>, after: Cursor, change: Change) -> Advance {
        Advance::Delta(Arc::new(Delta::new(self.feed.session(), generation, after, change)))
    }
}
