//! What happens in a session, as it reaches one replica.
//!
//! There is one feed for a session and owner, however many sockets of it this replica has. Hints
//! from the channel grow its window; where they leave a hole, it reads Redis. A reader is a cursor
//! over the window, so a slow one costs no memory.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::cursor::{Cursor, Tag};
use super::delta::Delta;
use super::event::{Control, Hint, Queued};
use super::model::{GenerationId, Owner, SessionId};
use super::store::{self, ReadFrom, ReadOutcome, Store, StoreError};
use super::window::{Applied, Window};
use crate::lifecycle::{TaskEnd, catch_panic};
use crate::redis::{Listener, Redis, RedisError, Subscriptions};
use crate::retry::Backoff;

/// A running turn that is silent for so long may be one whose hints were lost.
const SILENCE: Duration = Duration::from_secs(1);
/// One that is known to wait for a slot is silent by itself.
const SILENCE_WHILE_WAITING: Duration = Duration::from_secs(5);
/// A running turn that is silent for so long may be one that waits, of which this feed was not told.
const REQUEST_AFTER: Duration = Duration::from_millis(250);
/// Pause before its position is requested again, where it is not known and where it is.
const REQUEST_AGAIN: Duration = Duration::from_secs(5);
const REQUEST_ANYWAY: Duration = Duration::from_mins(1);
const SWEEP: Duration = Duration::from_millis(250);
/// After so long without anything new, a feed keeps no more than its place.
const KEPT_WHEN_IDLE: Duration = Duration::from_secs(10);
const EVENTS_KEPT: usize = 32;
/// A session's turns may be cancelled together: one that runs, and eight that wait.
const CLOSED_KEPT: usize = 9;
/// Pause before Redis is asked again after it failed.
/// How long a place that Redis does not know may be one that a failover took: its writer tells it
/// again, with the same marks.
const GRACE: Duration = Duration::from_secs(3);
/// Feeds that read at the same time after a gap that concerns all.
const READS_AT_ONCE: usize = 64;

/// All feeds of this replica.
#[derive(Clone)]
pub struct Feeds {
    inner: Arc<FeedsInner>,
}

struct FeedsInner {
    store: Store,
    subscriptions: OnceLock<Subscriptions>,
    feeds: Mutex<HashMap<SessionId, Vec<Weak<Feed>>>>,
    reads: tokio::sync::Semaphore,
}

/// One session's feed on this replica.
pub struct Feed {
    session: SessionId,
    owner: Owner,
    inner: Weak<FeedsInner>,
    state: Mutex<FeedState>,
    changed: Notify,
    subscribed: tokio::sync::OnceCell<()>,
    /// Reads that were asked for and not yet made.
    wishes: AtomicU32,
}

/// What a feed knows of its session.
pub(super) struct FeedState {
    pub(super) window: Window,
    /// Redis has said that this session is this owner's. Until then no hint is believed.
    pub(super) confirmed: bool,
    heard: Instant,
    /// The last that were told of, newest last.
    upstream_closed: VecDeque<GenerationId>,
    /// The queue position that was published last.
    queued: Option<Queued>,
    /// When the position was requested or heard last; none where it is to be requested at the next
    /// silence.
    position_requested: Option<Instant>,
    /// How often other feeds requested it.
    position_requests: u64,
    pub(super) newest: Option<Newest>,
    /// Since when Redis has not known this feed's place.
    unknown_since: Option<Instant>,
}

impl FeedState {
    /// The queue position of the turn that waits, unless it has gone on since that was published.
    pub(super) fn position(&self) -> Option<Queued> {
        let queued = self.queued?;
        let waits = match queued.answer {
            Some(bytes) => {
                self.window.running() == Some(queued.generation)
                    && self.window.running_length() == bytes
            }
            None => !self.window.events().any(|event| {
                event.generation == Some(queued.generation)
                    && !matches!(
                        event.control,
                        Control::Accepted { .. } | Control::Claimed { from: 0 }
                    )
            }),
        };
        waits.then_some(queued)
    }

    /// Forgets the position of a turn whose answer has begun, as the event that says so is not kept
    /// for ever.
    fn forget_position(&mut self) {
        if self.confirmed && self.queued.is_some_and(|queued| queued.answer.is_none()) {
            self.queued = self.position();
        }
    }
}

/// Whether a read has brought a feed to where Redis is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reached {
    Yes,
    /// To be tried again after a pause.
    Later,
}

/// The newest delta, shared by the readers that stand just before it.
pub(super) struct Newest {
    pub(super) from: Cursor,
    pub(super) delta: Arc<Delta>,
}

impl Feeds {
    /// Starts following Redis.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn start(redis: &Redis, store: Store) -> Result<Self, RedisError> {
        let inner = Arc::new(FeedsInner {
            store,
            subscriptions: OnceLock::new(),
            feeds: Mutex::default(),
            reads: tokio::sync::Semaphore::new(READS_AT_ONCE),
        });
        let listener: Arc<dyn Listener> = Arc::clone(&inner) as _;
        let _ = inner.subscriptions.set(Subscriptions::start(redis, &listener)?);
        redis.lifecycle().spawn("feeds", sweep(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    pub(super) fn store(&self) -> &Store {
        &self.inner.store
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
}

impl FeedsInner {
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
            state: Mutex::new(FeedState {
                window: Window::empty(0, Tag::START, None),
                confirmed: false,
                heard: Instant::now(),
                upstream_closed: VecDeque::new(),
                queued: None,
                position_requested: None,
                position_requests: 0,
                newest: None,
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

impl Listener for FeedsInner {
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
            feed.state().position_requested = None;
            feed.read_soon();
        }
    }
}

async fn sweep(inner: Weak<FeedsInner>) -> TaskEnd {
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(inner) = inner.upgrade() else { return TaskEnd::Done };
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

    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(super) fn session(&self) -> SessionId {
        self.session
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

    /// Whether the answer of this generation has begun, as far as this feed has seen.
    pub fn has_begun(&self, generation: GenerationId) -> bool {
        self.state().window.events().any(|event| {
            event.generation == Some(generation) && matches!(event.control, Control::Started { .. })
        })
    }

    /// How often other feeds of this session have asked for the queue position of its turn.
    pub fn position_requests(&self) -> u64 {
        self.state().position_requests
    }

    pub(super) fn state(&self) -> MutexGuard<'_, FeedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(self: &Arc<Self>, payload: &str) {
        let Ok(hint) = Hint::parse(payload) else {
            return self.read_soon();
        };
        let mut state = self.state();
        match hint {
            Hint::PositionRequested => {
                state.position_requests += 1;
                drop(state);
                return self.changed.notify_waiters();
            }
            // It comes again only when it changes, and often before the session is confirmed.
            Hint::Queued(queued) => {
                state.queued = Some(queued);
                state.position_requested = Some(Instant::now());
            }
            _ => {}
        }
        if !state.confirmed {
            drop(state);
            return self.read_soon();
        }
        state.heard = Instant::now();
        let applied = match hint {
            Hint::Event { previous, event } => state.window.push_event(previous, event),
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
            Hint::Queued(_) | Hint::PositionRequested => Applied::Grown,
        };
        state.forget_position();
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
            let (again, allowed) = match state.position() {
                Some(_) => (REQUEST_ANYWAY, SILENCE_WHILE_WAITING),
                None => (REQUEST_AGAIN, SILENCE),
            };
            let requests = silent >= REQUEST_AFTER
                && state.position_requested.is_none_or(|at| at.elapsed() >= again);
            if requests {
                state.position_requested = Some(Instant::now());
            }
            drop(state);
            if requests {
                self.request_position();
            }
            if silent >= allowed {
                self.read_soon();
            }
        } else if silent >= KEPT_WHEN_IDLE {
            state.window.trim(0);
            state.newest = None;
            state.upstream_closed = VecDeque::new();
        }
    }

    fn request_position(self: &Arc<Self>) {
        let (feed, session) = (self.inner.clone(), self.session);
        tokio::spawn(async move {
            let Some(inner) = feed.upgrade() else { return };
            if let Err(error) = inner.store.request_position(session).await {
                tracing::debug!(%error, "queue position not requested");
            }
        });
    }

    /// Reads Redis in the background; a wish that comes while a read is under way is not lost.
    fn read_soon(self: &Arc<Self>) {
        if self.wishes.fetch_add(1, Ordering::SeqCst) > 0 {
            return;
        }
        let feed = Arc::clone(self);
        tokio::spawn(async move {
            let read = catch_panic("feed", Self::serve_pending_reads(&feed)).await;
            if read.is_err() {
                // The next wish begins another task.
                feed.wishes.store(0, Ordering::SeqCst);
            }
        });
    }

    /// Reads until no read is pending. The only holder of a feed reads no more.
    async fn serve_pending_reads(feed: &Arc<Self>) {
        let mut backoff = Backoff::redis();
        loop {
            let served = feed.wishes.load(Ordering::SeqCst);
            let Some(inner) = feed.inner.upgrade() else { return };
            let permit = inner.reads.acquire().await;
            let read = feed.read(&inner.store).await;
            drop(permit);
            drop(inner);
            if Arc::strong_count(feed) == 1 {
                return;
            }
            if !matches!(read, Ok(Reached::Yes)) {
                let _ = backoff.pause().await;
            } else if feed.wishes.fetch_sub(served, Ordering::SeqCst) == served {
                return;
            }
        }
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
                    state.forget_position();
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
        state.position_requested = None;
        state.newest = None;
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
