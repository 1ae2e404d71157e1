//! Feeds: the events and the text of each session, as they reach one replica.
//!
//! A replica has one feed for a session and owner, however many sockets follow it. Hints from the
//! session's channel grow the feed's window; where they leave a hole, the feed reads Redis. A
//! reader is a cursor over the window, so that a slow reader costs no memory.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::cursor::{Cursor, Tag};
use super::delta::Delta;
use super::event::{Control, Event, Hint, Queued};
use super::model::{GenerationId, Owner, SessionId};
use super::store::{self, ReadFrom, ReadOutcome, Store, StoreError, Turn};
use super::window::{Applied, Window};
use crate::lifecycle::{TaskEnd, catch_panic, spawn_caught};
use crate::redis::{Listener, Redis, RedisError, Subscription, Subscriptions};
use crate::retry::Backoff;
use crate::telemetry::{APPENDS, metric};

/// Time without a hint in a running turn after which the feed reads Redis: hints may be lost.
const QUIET_LIMIT: Duration = Duration::from_secs(1);
/// The same while the turn is known to wait for a slot, where no hints are expected.
const QUIET_LIMIT_WHILE_QUEUED: Duration = Duration::from_secs(5);
/// Time without a hint in a running turn after which the feed requests its queue position.
const REQUEST_AFTER: Duration = Duration::from_millis(250);
/// Pause between two requests of a position that is not known.
const REQUEST_AGAIN: Duration = Duration::from_secs(5);
/// Pause between two requests of a position that is known.
const REFRESH_AGAIN: Duration = Duration::from_mins(1);
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// Time without a hint after which an idle feed keeps only its cursor.
const KEPT_WHEN_IDLE: Duration = Duration::from_secs(10);
const EVENTS_KEPT: usize = 32;
/// Room for sessions that is kept in any case.
const SMALLEST_TABLE: usize = 1024;
/// Closed requests that are kept. The turns of a session may be cancelled together: one that runs,
/// and eight that wait.
const UPSTREAM_CLOSED_KEPT: usize = 9;
/// How long a cursor that Redis does not know may be one that a failover lost: the writer publishes
/// its event again, with the same tag.
pub(super) const GRACE: Duration = Duration::from_secs(3);
/// Feeds that read Redis at the same time, after a lost connection left many of them with a gap.
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

/// The feed of one session on this replica.
pub struct Feed {
    session: SessionId,
    /// Whether the session was anonymous when the feed began, and has become a user's since.
    is_transferred: AtomicBool,
    inner: Weak<FeedsInner>,
    state: Mutex<FeedState>,
    changed: Notify,
    /// Notified of each change but a piece of text, so that a writer is not woken by its own text.
    events_changed: Notify,
    /// Set once the feed is subscribed to its channel and read.
    subscription: tokio::sync::OnceCell<Option<Subscription>>,
    /// Requested reads that have not been served yet.
    pending_reads: AtomicU32,
    /// Open readers of clients.
    readers: AtomicU32,
}

/// The state of a feed.
pub(super) struct FeedState {
    owner: Owner,
    /// Whether the feed stays with a session that becomes a user's: one that was this owner's, or
    /// one whose turn this replica holds. Another one looks like none.
    stays: bool,
    pub(super) window: Window,
    /// Whether Redis has confirmed that the session is this owner's. Before that, hints only cause
    /// a read.
    pub(super) confirmed: bool,
    /// The time of the last hint or read.
    refreshed: Instant,
    /// The last generations whose request to a model host was closed, newest last.
    upstream_closed: VecDeque<GenerationId>,
    /// The queue position that was published last.
    queued: Option<Queued>,
    /// The time at which the position was requested or received last; none where it is requested as
    /// soon as hints stay out.
    position_requested: Option<Instant>,
    /// The number of requests for the position by other feeds.
    position_requests: u64,
    /// The time of the last poll by a client that does not listen.
    polled: Option<Instant>,
    pub(super) newest: Option<Newest>,
    /// The time since which Redis has not known this feed's cursor.
    unknown_since: Option<Instant>,
    /// How often the session's history was found to be another one: it expired, or a failover lost it.
    pub(super) histories: u64,
    /// The time since which Redis had not known the history before the present one.
    pub(super) lost_since: Option<Instant>,
    /// The last append of a writer on this replica: its offset, and when it was made.
    appended: Option<(u64, Instant)>,
    /// Whether hints left a hole that was not read yet.
    has_hole: bool,
    /// The numbers and tags of the ends in the window that a failover lost, as a claim has shown since.
    lost_ends: Vec<(u64, Tag)>,
}

impl FeedState {
    /// Returns the numbers and tags of the ends of a generation that the window has.
    fn ends_of(&self, generation: GenerationId) -> impl Iterator<Item = (u64, Tag)> {
        let events = self.window.events().rev();
        events
            .filter(move |event| {
                event.generation == Some(generation) && event.control.is_terminal()
            })
            .map(|event| (event.number, event.tag))
    }

    /// Returns the queue position of the waiting turn, unless its answer has grown since that was
    /// published. The position of a turn that this feed does not know stays with the feed: the turn
    /// is about to be known, or it has ended before the window, and a replica that was paused
    /// meanwhile has published the position.
    pub(super) fn position(&self) -> Option<Queued> {
        self.queued.filter(|queued| self.knows(queued.generation) && self.waits(queued))
    }

    fn knows(&self, generation: GenerationId) -> bool {
        let is_accepted = |event: &Arc<Event>| {
            event.generation == Some(generation)
                && matches!(event.control, Control::Accepted { .. })
        };
        self.window.running() == Some(generation) || self.window.events().any(is_accepted)
    }

    fn waits(&self, queued: &Queued) -> bool {
        match queued.answer {
            Some(bytes) => {
                self.window.running() == Some(queued.generation)
                    && self.window.running_length() == bytes
            }
            None => !self.window.events().any(|event| {
                event.generation == Some(queued.generation)
                    && !matches!(
                        event.control,
                        Control::Accepted { .. } | Control::Claimed { from: 0, .. }
                    )
            }),
        }
    }

    /// Drops the position of a turn whose answer has begun, because the event of that beginning is
    /// not kept forever.
    fn forget_position(&mut self) {
        if self.confirmed && self.queued.is_some_and(|queued| queued.answer.is_none()) {
            self.queued = self.queued.filter(|queued| self.waits(queued));
        }
    }
}

/// The result of a feed's read of Redis.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadProgress {
    /// The feed has everything that Redis holds.
    CaughtUp,
    /// Redis does not know the feed's cursor yet: the feed reads again after a pause.
    RetryLater,
}

/// The newest delta, shared by all readers at the cursor before it.
pub(super) struct Newest {
    pub(super) from: Cursor,
    pub(super) delta: Arc<Delta>,
}

impl Feeds {
    /// Starts the task that keeps the feeds up to date.
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

    /// Returns the feed of a session, subscribed to its channel and read.
    ///
    /// # Errors
    /// [`StoreError::Absent`] where the session is another owner's; [`StoreError::Redis`].
    pub async fn join(&self, owner: &Owner, session: SessionId) -> Result<Arc<Feed>, StoreError> {
        // Boxed, because the compiler bounds how deep futures lie in each other.
        Box::pin(self.open(self.inner.feed(owner, session))).await
    }

    /// Returns the feed of a turn that this replica holds. Where the session has become a user's
    /// since the turn was accepted, it is the feed of that user.
    ///
    /// # Errors
    /// As [`Feeds::join`].
    pub async fn join_of_turn(&self, turn: &Turn) -> Result<Arc<Feed>, StoreError> {
        let feed = self.inner.feed(&turn.owner, turn.session);
        feed.state().stays = true;
        self.open(feed).await
    }

    /// Begins to open the feed of a session, as [`Feeds::join`] does, and returns the feed at once. A caller
    /// that joins the feed waits only until it is open.
    pub fn prepare(&self, owner: &Owner, session: SessionId) -> Arc<Feed> {
        let feed = self.inner.feed(owner, session);
        if !feed.subscription.initialized() {
            let (feeds, prepared) = (self.clone(), Arc::clone(&feed));
            spawn_caught("feed", async move {
                // A caller that joins the feed tries again, and gets the error.
                if let Err(error) = feeds.open(prepared).await {
                    tracing::debug!(%error, "feed not opened yet");
                }
            });
        }
        feed
    }

    async fn open(&self, feed: Arc<Feed>) -> Result<Arc<Feed>, StoreError> {
        let session = feed.session;
        feed.subscription
            .get_or_try_init(|| async {
                let subscription = match self.inner.subscriptions.get() {
                    Some(subscriptions) => {
                        Some(subscriptions.subscribe(&store::channel(session)).await?)
                    }
                    None => None,
                };
                // The subscription comes first, so that no hint falls between it and the read.
                feed.read(&self.inner.store).await.map(|_| subscription)
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
        // Declared first and so dropped last: dropping a feed takes the lock.
        let held: Vec<Arc<Feed>>;
        let mut feeds = self.feeds();
        let of_session = feeds.entry(session).or_default();
        held = of_session.iter().filter_map(Weak::upgrade).collect();
        if let Some(feed) = held.iter().find(|feed| feed.state().owner == *owner) {
            return Arc::clone(feed);
        }
        let feed = Arc::new(Feed {
            session,
            is_transferred: AtomicBool::new(false),
            inner: Arc::downgrade(self),
            state: Mutex::new(FeedState {
                owner: owner.clone(),
                stays: false,
                window: Window::empty(0, Tag::START, None),
                confirmed: false,
                refreshed: Instant::now(),
                upstream_closed: VecDeque::new(),
                queued: None,
                position_requested: None,
                position_requests: 0,
                polled: None,
                newest: None,
                unknown_since: None,
                histories: 0,
                lost_since: None,
                appended: None,
                has_hole: false,
                lost_ends: Vec::new(),
            }),
            changed: Notify::new(),
            events_changed: Notify::new(),
            subscription: tokio::sync::OnceCell::new(),
            pending_reads: AtomicU32::new(0),
            readers: AtomicU32::new(0),
        });
        // A session has one owner, so room for more would mostly be wasted.
        of_session.reserve_exact(1);
        of_session.push(Arc::downgrade(&feed));
        feed
    }

    fn of_session(&self, session: SessionId) -> Vec<Arc<Feed>> {
        let feeds = self.feeds();
        feeds.get(&session).into_iter().flatten().filter_map(Weak::upgrade).collect()
    }

    fn live(&self) -> Vec<Arc<Feed>> {
        self.feeds().values().flatten().filter_map(Weak::upgrade).collect()
    }
}

impl Listener for FeedsInner {
    fn message(&self, channel: &str, payload: &str) {
        let Some(session) = store::session_of(channel) else { return };
        for feed in self.of_session(session) {
            feed.receive(payload);
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
    let mut tick = tokio::time::interval(SWEEP_INTERVAL);
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
    /// Returns a future that resolves at the next change. Callers create it before they look at the
    /// state, so that they miss no change.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Returns a future that resolves at the next change that may be more than a piece of text, to
    /// be created as that of [`Feed::changed`].
    pub fn events_changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.events_changed.notified()
    }

    fn notify_of_change(&self) {
        self.events_changed.notify_waiters();
        self.changed.notify_waiters();
    }

    /// Returns the owner of the session.
    pub fn owner(&self) -> Owner {
        self.state().owner.clone()
    }

    /// Returns whether the session has become a user's since the feed began. Readers of anonymous callers
    /// end then.
    pub fn is_transferred(&self) -> bool {
        self.is_transferred.load(Ordering::Acquire)
    }

    /// Continues as the feed of the user whose the session has become. Returns whether it changed
    /// thereby.
    fn transfer(&self, state: &mut FeedState, owner: Owner) -> bool {
        let changes = state.owner == Owner::Anonymous && owner != Owner::Anonymous;
        if changes {
            state.owner = owner;
            self.is_transferred.store(true, Ordering::Release);
        }
        changes
    }

    pub(super) fn session(&self) -> SessionId {
        self.session
    }

    /// Returns whether this generation has ended, as far as this feed knows.
    pub fn has_ended(&self, generation: GenerationId) -> bool {
        let state = self.state();
        // The cheap check comes first: this is called at every piece of the generation.
        state.window.running() != Some(generation)
            && state.ends_of(generation).any(|end| !state.lost_ends.contains(&end))
    }

    /// Notes that Redis has this generation without an end, as a claim of it shows: ends that this feed
    /// has of it were lost in a failover, and no longer count.
    pub fn note_unended(&self, generation: GenerationId) {
        let mut state = self.state();
        let of_others = state.lost_ends.iter().copied();
        let of_others: Vec<_> =
            of_others.filter(|end| !state.ends_of(generation).any(|lost| lost == *end)).collect();
        state.lost_ends = state.ends_of(generation).chain(of_others).collect();
    }

    /// Returns whether the writer has published that its request to the model host is closed.
    pub fn upstream_is_closed(&self, generation: GenerationId) -> bool {
        self.state().upstream_closed.contains(&generation)
    }

    /// Returns whether a client reads this session at this replica.
    pub fn has_readers(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }

    pub(super) fn begin_reading(&self) {
        self.readers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_reading(&self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns whether a generation runs, as far as this feed knows.
    pub fn is_running(&self) -> bool {
        self.state().window.running().is_some()
    }

    /// Returns whether the answer of this generation has begun, as far as this feed knows.
    pub fn has_begun(&self, generation: GenerationId) -> bool {
        self.state().window.events().any(|event| {
            event.generation == Some(generation) && matches!(event.control, Control::Started { .. })
        })
    }

    /// Returns when a client that does not listen has last asked how the turns of the session stand.
    pub fn polled(&self) -> Option<Instant> {
        self.state().polled
    }

    /// Returns the number of requests of other feeds for the queue position of this session's turn.
    pub fn position_requests(&self) -> u64 {
        self.state().position_requests
    }

    pub(super) fn state(&self) -> MutexGuard<'_, FeedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a published hint, or reads Redis where it does not follow on the window.
    fn receive(self: &Arc<Self>, payload: &str) {
        match Hint::parse(payload) {
            Ok(hint) => self.apply(hint),
            Err(_) => self.read_soon(),
        }
    }

    /// Returns whether hints of the session are expected to arrive: this replica's subscription is
    /// in force, as far as it knows.
    pub fn is_subscribed(&self) -> bool {
        self.subscription.get().and_then(Option::as_ref).is_some_and(Subscription::is_confirmed)
    }

    /// Notes that a writer on this replica appends text at this offset now, to measure the time until
    /// readers get it.
    pub fn note_append(&self, offset: u64) {
        self.state().appended = Some((offset, Instant::now()));
    }

    /// Applies a piece that this replica has stored, which may not be published, or not reach this
    /// replica. A piece that was applied before changes nothing.
    pub fn take_piece(
        self: &Arc<Self>,
        generation: GenerationId,
        offset: u64,
        after: (u64, Tag),
        text: &str,
    ) {
        if self.is_transferred()
            && let Some(inner) = self.inner.upgrade()
        {
            // Clients of the user may have joined before the transfer, by a feed of their own.
            for feed in inner.of_session(self.session) {
                feed.apply(Hint::Piece { generation, offset, after, text });
            }
        } else {
            self.apply(Hint::Piece { generation, offset, after, text });
        }
    }

    fn apply(self: &Arc<Self>, hint: Hint<'_>) {
        let mut state = self.state();
        match hint {
            Hint::PositionRequested => {
                state.position_requests += 1;
                drop(state);
                return self.notify_of_change();
            }
            // Nobody waits for it: a turn that is alone looks at it from time to time.
            Hint::Polled => {
                state.polled = Some(Instant::now());
                return;
            }
            // It is published again only when it changes, often before the session is confirmed.
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
        state.refreshed = Instant::now();
        let transferred = match &hint {
            Hint::Event {
                event: Event { control: Control::Transferred { owner }, .. }, ..
            } => self.transfer(&mut state, owner.clone()),
            _ => false,
        };
        let piece = if let Hint::Piece { offset, .. } = hint { Some(offset) } else { None };
        let applied = match hint {
            // The first event of a session: whether it is still this owner's, Redis knows.
            Hint::Event { event, .. } if event.number == 1 => Applied::Hole,
            Hint::Event { previous, event } => state.window.push_event(previous, event),
            Hint::Piece { generation, offset, after, text } => {
                state.window.push_piece(generation, offset, after, text)
            }
            Hint::UpstreamClosed(generation) => {
                if state.upstream_closed.len() >= UPSTREAM_CLOSED_KEPT {
                    state.upstream_closed.pop_front();
                }
                state.upstream_closed.push_back(generation);
                Applied::Grown
            }
            Hint::Queued(_) | Hint::PositionRequested | Hint::Polled => Applied::Grown,
        };
        state.forget_position();
        state.window.trim(EVENTS_KEPT);
        state.has_hole |= applied == Applied::Hole;
        let appended = state.appended.take_if(|(offset, _)| piece == Some(*offset));
        drop(state);
        if transferred {
            self.notify_of_change();
        }
        match applied {
            Applied::Grown if piece.is_some() => self.changed.notify_waiters(),
            Applied::Grown => self.notify_of_change(),
            Applied::Known => {}
            Applied::Hole => {
                metrics::counter!(metric::FEED_HOLES_TOTAL).increment(1);
                self.read_soon();
            }
        }
        if let (Applied::Grown, Some((_, made))) = (applied, appended) {
            APPENDS.delivered(made.elapsed());
        }
    }

    fn sweep(self: &Arc<Self>) {
        let mut state = self.state();
        let quiet = state.refreshed.elapsed();
        if state.window.running().is_some() {
            let (pause, quiet_limit) = match state.position() {
                Some(_) => (REFRESH_AGAIN, QUIET_LIMIT_WHILE_QUEUED),
                None => (REQUEST_AGAIN, QUIET_LIMIT),
            };
            let request_is_due = quiet >= REQUEST_AFTER
                && state.position_requested.is_none_or(|at| at.elapsed() >= pause);
            if request_is_due {
                state.position_requested = Some(Instant::now());
            }
            drop(state);
            if request_is_due {
                self.request_position();
            }
            if quiet >= quiet_limit {
                self.read_soon();
            }
        } else if quiet >= KEPT_WHEN_IDLE {
            state.window.trim(0);
            state.newest = None;
            state.upstream_closed = VecDeque::new();
        }
    }

    fn request_position(self: &Arc<Self>) {
        let (feeds, session) = (self.inner.clone(), self.session);
        spawn_caught("feed", async move {
            let Some(feeds) = feeds.upgrade() else { return };
            if let Err(error) = feeds.store.request_position(session).await {
                tracing::debug!(%error, "queue position request failed");
            }
        });
    }

    /// Requests a read of Redis in the background. A request during a read causes another read.
    fn read_soon(self: &Arc<Self>) {
        if self.pending_reads.fetch_add(1, Ordering::SeqCst) > 0 {
            return;
        }
        let feed = Arc::clone(self);
        spawn_caught("feed", async move {
            let read = catch_panic("feed", Self::serve_pending_reads(&feed)).await;
            if read.is_err() {
                // The next request starts another task.
                feed.pending_reads.store(0, Ordering::SeqCst);
            }
        });
    }

    /// Reads until no read is pending, or until nothing but this task holds the feed.
    async fn serve_pending_reads(feed: &Arc<Self>) {
        let mut backoff = Backoff::redis();
        loop {
            let served = feed.pending_reads.load(Ordering::SeqCst);
            let Some(inner) = feed.inner.upgrade() else { return };
            let permit = inner.reads.acquire().await;
            let read = feed.read(&inner.store).await;
            drop(permit);
            drop(inner);
            if Arc::strong_count(feed) == 1 {
                return;
            }
            if !matches!(read, Ok(ReadProgress::CaughtUp)) {
                let _ = backoff.pause().await;
            } else if feed.pending_reads.fetch_sub(served, Ordering::SeqCst) == served {
                return;
            }
        }
    }

    async fn read(&self, store: &Store) -> Result<ReadProgress, StoreError> {
        loop {
            let (confirmed, end, owner, stays) = {
                let mut state = self.state();
                state.refreshed = Instant::now();
                (state.confirmed, state.window.end(), state.owner.clone(), state.stays)
            };
            let from =
                if confirmed { ReadFrom::Cursor(end, end.offset) } else { ReadFrom::RunningTurn };
            let more = match store.read(&owner, self.session, from).await? {
                ReadOutcome::Absent => {
                    let is_transferred =
                        stays && owner == Owner::Anonymous && self.find_owner(store).await?;
                    if confirmed && !is_transferred {
                        // Another owner may begin a session of this id next.
                        self.forget();
                    }
                    is_transferred
                }
                ReadOutcome::Window { window, more } => {
                    let mut state = self.state();
                    let applied = if confirmed {
                        state.window.absorb(&window)
                    } else {
                        state.confirmed = true;
                        state.stays = true;
                        state.window = window;
                        state.lost_ends = Vec::new();
                        Applied::Grown
                    };
                    state.forget_position();
                    let is_filled = applied != Applied::Hole && std::mem::take(&mut state.has_hole);
                    drop(state);
                    if is_filled {
                        metrics::counter!(metric::FEED_HOLES_FILLED_TOTAL).increment(1);
                    }
                    if applied != Applied::Known {
                        self.notify_of_change();
                    }
                    if applied == Applied::Hole {
                        self.forget();
                    }
                    more || applied == Applied::Hole
                }
                ReadOutcome::Unknown if confirmed && self.cursor_may_return() => {
                    return Ok(ReadProgress::RetryLater);
                }
                ReadOutcome::Unknown | ReadOutcome::Behind => {
                    // The window and Redis hold different histories: the feed starts again.
                    let again = confirmed;
                    self.forget();
                    self.notify_of_change();
                    again
                }
            };
            self.state().unknown_since = None;
            if !more {
                return Ok(ReadProgress::CaughtUp);
            }
        }
    }

    /// Looks whether the session has become a user's, whose feed this is from then on.
    async fn find_owner(&self, store: &Store) -> Result<bool, StoreError> {
        let Some(measured) = store.measure(self.session).await? else { return Ok(false) };
        let transferred = self.transfer(&mut self.state(), measured.owner);
        if transferred {
            self.notify_of_change();
        }
        Ok(transferred)
    }

    /// Returns whether the writer may still bring back the events up to this feed's cursor.
    fn cursor_may_return(&self) -> bool {
        let since = *self.state().unknown_since.get_or_insert_with(Instant::now);
        since.elapsed() < GRACE
    }

    fn forget(&self) {
        let mut state = self.state();
        state.histories += 1;
        state.lost_since = state.unknown_since;
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
                // A burst of sessions must not keep its room.
                if feeds.capacity() > SMALLEST_TABLE && feeds.len() < feeds.capacity() / 4 {
                    let room = feeds.len() * 2;
                    feeds.shrink_to(room);
                }
                // The lock is held, so that a join that creates the next feed subscribes after
                // this.
                if let Some(subscriptions) = inner.subscriptions.get() {
                    subscriptions.unsubscribe(&store::channel(self.session));
                }
            }
        }
    }
}
