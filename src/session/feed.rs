//! What happens in a session, as it reaches one replica.
//!
//! There is one feed for a session and owner, however many sockets of it this replica has. Hints
//! from the channel grow its window; where they leave a hole, it reads Redis. A reader is a cursor
//! over the window, so a slow one costs no memory.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use axum::extract::ws::Utf8Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::cursor::{Cursor, Tag};
use super::event::{Control, Event, Hint, Queued};
use super::model::{GenerationId, Owner, SessionId};
use super::store::{self, ReadFrom, ReadOutcome, Store, StoreError};
use super::window::{Applied, Step, Window};
use crate::redis::{Listener, Redis, RedisError, Subscriptions};

/// How a step is written on the wire. The result is shared by all readers that stand at the same
/// place.
pub type Encode = fn(SessionId, &Step<'_>) -> Utf8Bytes;

/// A running turn that is silent for so long may be one whose hints were lost.
const SILENCE: Duration = Duration::from_secs(1);
const SWEEP: Duration = Duration::from_millis(250);
/// After so long without anything new, a feed keeps no more than its place.
const KEPT_WHEN_IDLE: Duration = Duration::from_secs(10);
const EVENTS_KEPT: usize = 32;
/// A session's turns may be cancelled together: one that runs, and eight that wait.
const CLOSED_KEPT: usize = 9;
/// Bytes of an answer in one piece to a reader who has to catch up.
const PIECE_BYTES: usize = 16 << 10;
/// Pause before Redis is asked again after it failed.
const RETRY: Duration = Duration::from_millis(500);
/// How long a place that Redis does not know may be one that a failover took: its writer tells it
/// again, with the same marks.
const GRACE: Duration = Duration::from_secs(3);
/// Feeds that read at the same time after a gap that concerns all.
const READS_AT_ONCE: usize = 64;

/// All feeds of this replica.
#[derive(Clone)]
pub struct Feeds {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    encode: Encode,
    subscriptions: OnceLock<Subscriptions>,
    feeds: Mutex<HashMap<SessionId, Vec<Weak<Feed>>>>,
    reads: tokio::sync::Semaphore,
}

/// One session's feed on this replica.
pub struct Feed {
    session: SessionId,
    owner: Owner,
    inner: Weak<Inner>,
    state: Mutex<State>,
    changed: Notify,
    subscribed: tokio::sync::OnceCell<()>,
    /// Reads that were asked for and not yet made.
    wishes: AtomicU32,
}

struct State {
    window: Window,
    /// Redis has said that this session is this owner's. Until then no hint is believed.
    confirmed: bool,
    heard: Instant,
    /// The last that were told of, newest last.
    upstream_closed: VecDeque<GenerationId>,
    queued: Option<Queued>,
    encoded: Option<Encoded>,
    /// Since when Redis has not known this feed's place.
    unknown_since: Option<Instant>,
}

/// Whether a read has brought a feed to where Redis is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reached {
    Yes,
    /// To be tried again after a pause.
    Later,
}

/// The newest frame, for the readers that stand just before it.
struct Encoded {
    from: Cursor,
    frame: Frame,
}

/// One event on its way to a client.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The event as the wire has it, shared.
    pub json: Utf8Bytes,
    /// The cursor that it carries.
    pub after: Cursor,
    /// The generation that it belongs to.
    pub generation: Option<GenerationId>,
    /// What it is.
    pub kind: FrameKind,
    /// The whole answer, with the end of the generation that the reader wants it of.
    pub answer: Option<String>,
}

/// What a frame holds.
#[derive(Clone, Debug)]
pub enum FrameKind {
    /// A piece of an answer.
    Piece,
    /// A control event.
    Control(Arc<Event>),
    /// Text that was seen is taken back.
    Restart,
    /// A place in the queue; carries no cursor.
    Queued,
}

/// What a reader gets.
#[derive(Debug)]
pub enum Delivered {
    /// The next event.
    Frame(Frame),
    /// The reader's place is none of this session's, or no longer kept: give it a snapshot.
    Lost,
}

impl Feeds {
    /// Starts following Redis.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn start(redis: &Redis, store: Store, encode: Encode) -> Result<Self, RedisError> {
        let inner = Arc::new(Inner {
            store,
            encode,
            subscriptions: OnceLock::new(),
            feeds: Mutex::default(),
            reads: tokio::sync::Semaphore::new(READS_AT_ONCE),
        });
        let listener: Arc<dyn Listener> = Arc::clone(&inner) as _;
        let _ = inner.subscriptions.set(Subscriptions::start(redis, &listener)?);
        tokio::spawn(sweep(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// The feed of a session, followed and read.
    ///
    /// # Errors
    /// [`StoreError::Absent`] where it is somebody else's; [`StoreError::Redis`].
    pub async fn join(&self, owner: &Owner, session: SessionId) -> Result<Arc<Feed>, StoreError> {
        let feed = self.inner.feed(owner, session);
        feed.subscribed
            .get_or_try_init(|| async {
                if let Some(subscriptions) = self.inner.subscriptions.get() {
                    subscriptions.subscribe(&store::channel(session)).await?;
                }
                // Subscribed first, so that nothing falls between what is read and what follows.
                feed.read(&self.inner.store).await.map(drop)
            })
            .await?;
        Ok(feed)
    }

    /// A reader from `cursor` on; without one from where the running turn began, else from now on.
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
        let store = self.inner.store.clone();
        let start = match cursor {
            Some(cursor) => cursor,
            None => match store.read(owner, session, ReadFrom::RunningTurn).await? {
                ReadOutcome::Window { window, .. } => window.start(),
                ReadOutcome::Absent | ReadOutcome::Behind | ReadOutcome::Unknown => Cursor::START,
            },
        };
        let mut reader = Reader {
            feed,
            store,
            cursor: start,
            catching_up: None,
            lost: false,
            unknown_since: None,
            whole: None,
            queued: None,
            encode: self.inner.encode,
        };
        reader.locate().await?;
        Ok(reader)
    }
}

impl Inner {
    fn feeds(&self) -> MutexGuard<'_, HashMap<SessionId, Vec<Weak<Feed>>>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feed(self: &Arc<Self>, owner: &Owner, session: SessionId) -> Arc<Feed> {
        // Declared first and so dropped last: the end of a feed takes the lock.
        let held: Vec<Arc<Feed>>;
        let mut feeds = self.feeds();
        let of_session = feeds.entry(session).or_default();
        held = of_session.iter().filter_map(Weak::upgrade).collect();
        if let Some(feed) = held.iter().find(|feed| feed.owner == *owner) {
            return Arc::clone(feed);
        }
        let feed = Arc::new(Feed {
            session,
            owner: owner.clone(),
            inner: Arc::downgrade(self),
            state: Mutex::new(State {
                window: Window::empty(0, Tag::START, None),
                confirmed: false,
                heard: Instant::now(),
                upstream_closed: VecDeque::new(),
                queued: None,
                encoded: None,
                unknown_since: None,
            }),
            changed: Notify::new(),
            subscribed: tokio::sync::OnceCell::new(),
            wishes: AtomicU32::new(0),
        });
        of_session.push(Arc::downgrade(&feed));
        feed
    }

    fn live(&self) -> Vec<Arc<Feed>> {
        self.feeds().values().flatten().filter_map(Weak::upgrade).collect()
    }
}

impl Listener for Inner {
    fn message(&self, channel: &str, payload: &str) {
        let Some(session) = store::session_of(channel) else { return };
        let feeds: Vec<_> = match self.feeds().get(&session) {
            Some(feeds) => feeds.iter().filter_map(Weak::upgrade).collect(),
            None => return,
        };
        for feed in feeds {
            feed.hear(payload);
        }
    }

    fn gap(&self) {
        for feed in self.live() {
            feed.read_soon();
        }
    }
}

async fn sweep(inner: Weak<Inner>) {
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        for feed in inner.live() {
            feed.sweep();
        }
    }
}

impl Feed {
    /// Resolves when something is new. Make it before looking, so that nothing is missed.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Whether this generation has ended, as far as this feed has seen.
    pub fn has_ended(&self, generation: GenerationId) -> bool {
        let state = self.state();
        // Asked at every piece of it.
        state.window.running() != Some(generation)
            && state
                .window
                .events()
                .rev()
                .any(|event| event.generation == Some(generation) && event.control.is_terminal())
    }

    /// Whether the writer has told that its request to the model's host is closed.
    pub fn upstream_is_closed(&self, generation: GenerationId) -> bool {
        self.state().upstream_closed.contains(&generation)
    }

    /// Whether some generation runs, as far as this feed has seen.
    pub fn is_running(&self) -> bool {
        self.state().window.running().is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(self: &Arc<Self>, payload: &str) {
        let Ok(hint) = Hint::parse(payload) else {
            return self.read_soon();
        };
        let mut state = self.state();
        if let Hint::Queued(queued) = hint {
            // It comes again only when it changes, and often before the session is confirmed.
            state.queued = Some(queued);
        }
        if !state.confirmed {
            if let Hint::Queued(queued) = hint {
                state.queued = Some(queued);
            }
            drop(state);
            return self.read_soon();
        }
        state.heard = Instant::now();
        let applied = match hint {
            Hint::Event(event) => state.window.push_event(event),
            Hint::Piece { generation, offset, after, text } => {
                state.window.push_piece(generation, offset, after, text)
            }
            Hint::UpstreamClosed(generation) => {
                if state.upstream_closed.len() >= CLOSED_KEPT {
                    state.upstream_closed.pop_front();
                }
                state.upstream_closed.push_back(generation);
                Applied::Grown
            }
            Hint::Queued(_) => Applied::Grown,
        };
        state.window.trim(EVENTS_KEPT);
        drop(state);
        match applied {
            Applied::Grown => self.changed.notify_waiters(),
            Applied::Known => {}
            Applied::Hole => self.read_soon(),
        }
    }

    fn sweep(self: &Arc<Self>) {
        let mut state = self.state();
        let silent = state.heard.elapsed();
        if state.window.running().is_some() {
            if silent >= SILENCE {
                drop(state);
                self.read_soon();
            }
        } else if silent >= KEPT_WHEN_IDLE {
            state.window.trim(0);
            state.encoded = None;
            state.upstream_closed = VecDeque::new();
        }
    }

    /// Reads Redis in the background; a wish that comes while a read is under way is not lost.
    fn read_soon(self: &Arc<Self>) {
        if self.wishes.fetch_add(1, Ordering::SeqCst) > 0 {
            return;
        }
        let feed = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let served = feed.wishes.load(Ordering::SeqCst);
                let Some(inner) = feed.inner.upgrade() else { return };
                let permit = inner.reads.acquire().await;
                let read = feed.read(&inner.store).await;
                drop(permit);
                drop(inner);
                if Arc::strong_count(&feed) == 1 {
                    return;
                }
                if !matches!(read, Ok(Reached::Yes)) {
                    tokio::time::sleep(RETRY).await;
                } else if feed.wishes.fetch_sub(served, Ordering::SeqCst) == served {
                    return;
                }
            }
        });
    }

    async fn read(&self, store: &Store) -> Result<Reached, StoreError> {
        loop {
            let (confirmed, end) = {
                let mut state = self.state();
                state.heard = Instant::now();
                (state.confirmed, state.window.end())
            };
            let from =
                if confirmed { ReadFrom::Cursor(end, end.offset) } else { ReadFrom::RunningTurn };
            let more = match store.read(&self.owner, self.session, from).await? {
                ReadOutcome::Absent => false,
                ReadOutcome::Window { window, more } => {
                    let mut state = self.state();
                    let applied = if confirmed {
                        state.window.absorb(&window)
                    } else {
                        state.confirmed = true;
                        state.window = window;
                        Applied::Grown
                    };
                    drop(state);
                    if applied != Applied::Known {
                        self.changed.notify_waiters();
                    }
                    if applied == Applied::Hole {
                        self.forget();
                    }
                    more || applied == Applied::Hole
                }
                ReadOutcome::Unknown if confirmed && self.may_come_back() => {
                    return Ok(Reached::Later);
                }
                ReadOutcome::Unknown | ReadOutcome::Behind => {
                    // What this feed knows is not what Redis holds: begin anew from there.
                    let again = confirmed;
                    self.forget();
                    self.changed.notify_waiters();
                    again
                }
            };
            self.state().unknown_since = None;
            if !more {
                return Ok(Reached::Yes);
            }
        }
    }

    fn may_come_back(&self) -> bool {
        let since = *self.state().unknown_since.get_or_insert_with(Instant::now);
        since.elapsed() < GRACE
    }

    fn forget(&self) {
        let mut state = self.state();
        state.confirmed = false;
        state.encoded = None;
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        let mut feeds = inner.feeds();
        if let Some(of_session) = feeds.get_mut(&self.session) {
            of_session.retain(|feed| feed.strong_count() > 0);
            if of_session.is_empty() {
                feeds.remove(&self.session);
                // Under the lock, so that a join that makes the next feed subscribes after it.
                if let Some(subscriptions) = inner.subscriptions.get() {
                    subscriptions.unsubscribe(&store::channel(self.session));
                }
            }
        }
    }
}

/// A place in a feed, that moves on.
pub struct Reader {
    feed: Arc<Feed>,
    store: Store,
    cursor: Cursor,
    /// Read from Redis by a reader that stands before the feed's window.
    catching_up: Option<Window>,
    lost: bool,
    /// Since when Redis has not known this reader's place.
    unknown_since: Option<Instant>,
    whole: Option<GenerationId>,
    /// The place in the queue that was delivered last.
    queued: Option<Queued>,
    encode: Encode,
}

impl Reader {
    /// Everything up to here was delivered.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Whether everything since the cursor that it began with can be delivered.
    pub fn is_recovered(&self) -> bool {
        !self.lost
    }

    /// The feed behind it.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Goes on from another place, such as a snapshot's.
    pub fn move_to(&mut self, cursor: Cursor) {
        self.cursor = cursor;
        self.catching_up = None;
        self.lost = false;
    }

    /// Wants the whole answer of this generation with its end.
    pub fn want_answer(&mut self, generation: GenerationId) {
        self.whole = Some(generation);
    }

    async fn locate(&mut self) -> Result<(), StoreError> {
        let step = {
            let state = self.feed.state();
            match state.window.next(&self.cursor, PIECE_BYTES) {
                Step::Behind | Step::Unknown => false,
                Step::UpToDate => self.cursor == state.window.end(),
                _ => true,
            }
        };
        if !step {
            self.catch_up(Duration::ZERO).await?;
        }
        Ok(())
    }

    /// A place that Redis does not know is lost after `grace`.
    async fn catch_up(&mut self, grace: Duration) -> Result<(), StoreError> {
        let from = ReadFrom::Cursor(self.cursor, 0);
        match self.store.read(&self.feed.owner, self.feed.session, from).await? {
            ReadOutcome::Window { window, .. } => {
                self.lost =
                    matches!(window.next(&self.cursor, PIECE_BYTES), Step::Behind | Step::Unknown);
                self.catching_up = Some(window);
            }
            ReadOutcome::Behind => self.lost = true,
            ReadOutcome::Absent if self.cursor == Cursor::START => {}
            ReadOutcome::Absent | ReadOutcome::Unknown => {
                let since = *self.unknown_since.get_or_insert_with(Instant::now);
                self.lost = since.elapsed() >= grace;
                if !self.lost {
                    tokio::time::sleep(RETRY).await;
                }
                return Ok(());
            }
        }
        self.unknown_since = None;
        Ok(())
    }

    /// The next event, waiting for it. Cancel-safe.
    pub async fn next(&mut self) -> Delivered {
        let feed = Arc::clone(&self.feed);
        loop {
            let changed = feed.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lost {
                return Delivered::Lost;
            }
            match self.look() {
                Look::Frame(frame) => return Delivered::Frame(frame),
                Look::Moved | Look::Nothing => changed.await,
                Look::Redis => {
                    // Boxed: it is large and rare, and every idle socket would have room for it.
                    if let Err(error) = Box::pin(self.catch_up(GRACE)).await {
                        tracing::debug!(%error, "a reader has to wait for Redis");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    }

    fn look(&mut self) -> Look {
        if let Some(window) = self.catching_up.take() {
            let look = loop {
                match self.step(&window) {
                    Look::Moved => {}
                    look => break look,
                }
            };
            if let Look::Frame(..) = look {
                self.catching_up = Some(window);
                return look;
            }
        }
        let feed = Arc::clone(&self.feed);
        let mut state = feed.state();
        loop {
            if let Some(shared) = &state.encoded
                && shared.from == self.cursor
                && (self.whole.is_none() || shared.frame.generation != self.whole)
            {
                self.cursor = shared.frame.after;
                return Look::Frame(shared.frame.clone());
            }
            let from = self.cursor;
            match self.step(&state.window) {
                Look::Moved => {}
                Look::Frame(frame) => {
                    if frame.after == state.window.end() {
                        let frame = Frame { answer: None, ..frame.clone() };
                        state.encoded = Some(Encoded { from, frame });
                    }
                    return Look::Frame(frame);
                }
                Look::Nothing => return self.look_at_the_queue(&state),
                look @ Look::Redis => return look,
            }
        }
    }

    /// A reader that has everything else learns where a turn stands.
    fn look_at_the_queue(&mut self, state: &State) -> Look {
        let queued = state.queued.filter(|queued| self.queued != Some(*queued));
        let Some(queued) = queued.filter(|_| state.confirmed) else { return Look::Nothing };
        let waits = !state.window.events().any(|event| {
            event.generation == Some(queued.generation)
                && !matches!(event.control, Control::Accepted { .. } | Control::Claimed { from: 0 })
        });
        if !waits {
            return Look::Nothing;
        }
        self.queued = Some(queued);
        Look::Frame(Frame {
            json: (self.encode)(self.feed.session, &Step::Queued(queued)),
            after: self.cursor,
            generation: Some(queued.generation),
            kind: FrameKind::Queued,
            answer: None,
        })
    }

    fn step(&mut self, window: &Window) -> Look {
        let step = window.next(&self.cursor, PIECE_BYTES);
        let (after, generation, kind, answer) = match &step {
            Step::Piece { after, generation, .. } => {
                (*after, Some(*generation), FrameKind::Piece, None)
            }
            Step::Event { event, answer, after } => {
                let whole = event.control.is_terminal()
                    && self.whole.is_some()
                    && event.generation == self.whole;
                let answer = whole.then(|| (*answer).to_owned());
                (*after, event.generation, FrameKind::Control(Arc::clone(event)), answer)
            }
            Step::Restart { after, generation, .. } => {
                (*after, Some(*generation), FrameKind::Restart, None)
            }
            Step::Silent { after } => {
                self.cursor = *after;
                return Look::Moved;
            }
            Step::UpToDate | Step::Queued(_) => return Look::Nothing,
            Step::Behind | Step::Unknown => return Look::Redis,
        };
        let json = (self.encode)(self.feed.session, &step);
        self.cursor = after;
        Look::Frame(Frame { json, after, generation, kind, answer })
    }
}

/// What a reader saw.
enum Look {
    Frame(Frame),
    /// Something that is not told moved the cursor.
    Moved,
    Nothing,
    /// What comes next is in Redis only.
    Redis,
}
