//! Writes an answer to Redis while it grows.
//!
//! The stream from the model never waits for Redis: text that arrives during one call goes with the
//! next. So the first token leaves at once, a quiet system sends token by token, and a loaded one
//! sends fewer, larger pieces.
//!
//! A failover may lose writes that Redis had acknowledged. The writer keeps the whole answer,
//! checks at least once a second that Redis has it, and writes again what is missing.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use super::writer_state::{Fenced, Pause, Reply, Rewind, WriterCall, WriterState};
use crate::lifecycle::spawn_caught;
use crate::retry::Backoff;
use crate::session::model::{Continuation, ContinuedHow, Runner};
use crate::session::store::{TakenBack, Turn, Written};
use crate::session::{Control, Feed, Message, Store, StoreError, Tag};
use crate::telemetry::{APPENDS, metric};

/// How often a writer that has nothing to write checks that the turn is still its own.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How often a writer checks that while its turn waits for a slot and its answer is not started.
const CHECK_WHILE_WAITING: Duration = Duration::from_secs(5);
/// How long a writer tries to write the end of a turn before it leaves the turn to another replica.
const FINISH_LIMIT: Duration = Duration::from_mins(10);

/// Continuations that are listed for one answer, at most.
const CONTINUATIONS: usize = 32;
/// The reason of a continuation whose text another replica wrote.
const REPLICA_GONE: &str = "replica_gone";

/// One answer on its way to Redis.
pub(super) struct Writer {
    store: Store,
    turn: Arc<Turn>,
    /// The feed of the turn's session on this replica, which the turn holds while it runs. The
    /// writer is kept after that, to write again what a failover loses.
    feed: Weak<Feed>,
    state: WriterState,
    /// The continuations of the answer, by all of its writers.
    continued: Vec<Continuation>,
    /// The runner of the text so far; without text, the one that is to write it.
    runner: Option<Runner>,
    /// The reason of the next continuation.
    broken_off_by: &'static str,
    /// Whether any text came since the answer broke off last.
    has_new_text: bool,
    /// When the next call may be made.
    not_before: Instant,
    /// Whether [`Writer::wake`] makes the next call due at once.
    can_wake: bool,
    /// Whether [`Writer::wake`] was called while a call was under way, whose reply may be older.
    woken: bool,
    under_way: Option<UnderWay>,
    /// Pauses after calls that failed.
    backoff: Backoff,
    /// When this replica began to answer the turn.
    begun: Instant,
}

struct UnderWay {
    call: WriterCall,
    made: Instant,
    reply: BoxFuture<'static, Result<Reply, StoreError>>,
}

impl Writer {
    /// Creates the writer of a turn that waits for earlier turns of its session.
    pub(super) fn waiting(store: Store, turn: Arc<Turn>, feed: &Arc<Feed>) -> Self {
        Self::new(store, turn, feed, WriterState::waiting())
    }

    /// Creates a writer that starts the answer, or continues it behind the text that is `stored`.
    pub(super) fn start(store: Store, turn: Arc<Turn>, feed: &Arc<Feed>, stored: String) -> Self {
        Self::new(store, turn, feed, WriterState::after(stored))
    }

    /// Creates the writer of a turn whose whole answer is known, and which it has yet to restore.
    pub(super) fn restoring(store: Store, turn: Arc<Turn>, text: String) -> Self {
        Self::with_feed(store, turn, Weak::new(), WriterState::restoring(text))
    }

    fn new(store: Store, turn: Arc<Turn>, feed: &Arc<Feed>, state: WriterState) -> Self {
        Self::with_feed(store, turn, Arc::downgrade(feed), state)
    }

    fn with_feed(store: Store, turn: Arc<Turn>, feed: Weak<Feed>, state: WriterState) -> Self {
        let is_restart = |continued: &&Continuation| continued.how == ContinuedHow::Restarted;
        let restarts = turn.continued().iter().filter(is_restart).count();
        let state = state.restarted_before(u32::try_from(restarts).unwrap_or(u32::MAX));
        Self {
            store,
            continued: turn.continued().to_vec(),
            runner: turn.runner().cloned(),
            turn,
            feed,
            state,
            broken_off_by: REPLICA_GONE,
            has_new_text: false,
            not_before: Instant::now(),
            can_wake: true,
            woken: false,
            under_way: None,
            backoff: Backoff::redis(),
            begun: Instant::now(),
        }
    }

    /// Returns the time since this replica accepted the turn, or took it over.
    pub(super) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Returns the turn that the writer answers.
    pub(super) fn turn(&self) -> &Arc<Turn> {
        &self.turn
    }

    /// Continues with the same turn as this replica has claimed it, and writes the whole answer
    /// again.
    pub(super) fn take(&mut self, claimed: Arc<Turn>, is_running: bool) {
        self.turn = claimed;
        self.under_way = None;
        self.not_before = Instant::now();
        self.state.take(is_running);
    }

    /// Returns whether the turn has begun, so that no other turn of its session runs.
    pub(super) fn is_running(&self) -> bool {
        self.state.is_running()
    }

    /// Returns whether this writer has started the answer.
    pub(super) fn has_started(&self) -> bool {
        self.state.has_started()
    }

    /// Makes the next call due at once, because the turns before this one may have ended.
    pub(super) fn wake(&mut self) {
        if self.under_way.is_some() {
            self.woken = true;
        } else if self.can_wake {
            self.not_before = Instant::now();
        }
    }

    fn pause(&mut self, pause: Pause) {
        let woken = std::mem::take(&mut self.woken);
        let length = match pause {
            Pause::None => return,
            Pause::UntilWoken(_) if woken => Duration::ZERO,
            Pause::UntilWoken(length) | Pause::Full(length) => length,
        };
        self.not_before = Instant::now() + length;
        self.can_wake = !matches!(pause, Pause::Full(_));
    }

    /// Returns the answer so far with the reasoning before it, stored or not.
    pub(super) fn text(&self) -> &str {
        self.state.text()
    }

    /// Returns the bytes of text that the writer keeps: the answer, and all that came with the turn.
    pub(super) fn bytes(&self) -> usize {
        self.state.kept_bytes() + self.turn.bytes()
    }

    /// Appends to the answer. Returns `false` where the answer has its greatest length, and leaves
    /// out the text beyond it.
    pub(super) fn push(&mut self, answer: &str) -> bool {
        self.has_new_text |= !answer.is_empty();
        self.state.push(answer)
    }

    /// Appends to the reasoning, unless the answer has begun. Returns `false` as [`Writer::push`].
    pub(super) fn push_reasoning(&mut self, reasoning: &str) -> bool {
        self.has_new_text |= !reasoning.is_empty();
        self.state.push_reasoning(reasoning)
    }

    /// Removes the text beyond `length`: the answer continues differently from there.
    pub(super) fn rewind(&mut self, length: usize) {
        self.state.rewind(length);
    }

    /// Notes the error code of an attempt that failed, as the reason of the next continuation. An
    /// attempt that brought no text changes nothing.
    pub(super) fn note_broken_off(&mut self, code: &'static str) {
        if std::mem::take(&mut self.has_new_text) {
            self.broken_off_by = code;
        }
    }

    /// Returns the runner of the text so far, where it is known.
    pub(super) fn runner(&self) -> Option<&Runner> {
        self.runner.as_ref()
    }

    /// Notes the runner that is to write the answer. Where the answer has text, it counts from
    /// [`Writer::note_continued`] on.
    pub(super) fn note_runner(&mut self, runner: Option<&Runner>) {
        if self.text().is_empty() && self.runner.as_ref() != runner {
            self.runner = runner.cloned();
            // The call that starts the answer carries the runner.
            if !self.state.start_again() {
                self.store_continued();
            }
        }
    }

    /// Adds a continuation by this runner, and stores it for the writer that may take the turn
    /// over. If storing fails, the continuation is missing in the list of that writer, and nowhere
    /// else.
    pub(super) fn note_continued(&mut self, how: ContinuedHow, runner: Option<&Runner>) {
        let why = self.broken_off_by;
        metrics::counter!(metric::CONTINUATIONS_TOTAL, "how" => how.as_str(), "why" => why)
            .increment(1);
        self.runner = runner.cloned();
        if self.continued.len() >= CONTINUATIONS {
            return;
        }
        self.continued.push(Continuation { how, why: why.to_owned() });
        self.store_continued();
    }

    /// Notes that the model did not repeat its text where its last continuation was counted, so
    /// that this continuation is not exact.
    pub(super) fn note_divergence(&mut self) {
        if let Some(last) = self.continued.last_mut()
            && last.how == ContinuedHow::Exact
        {
            last.how = ContinuedHow::Approximate;
            self.store_continued();
        }
    }

    fn store_continued(&self) {
        let (store, turn) = (self.store.clone(), Arc::clone(&self.turn));
        let (continued, runner) = (self.continued.clone(), self.runner.clone());
        spawn_caught("writer", async move {
            if let Err(error) = store.note_continued(&turn, &continued, runner.as_ref()).await {
                tracing::debug!(%error, "continuation not stored");
            }
        });
    }

    /// Returns the continuations of the answer, at most 32.
    pub(super) fn continued(&self) -> &[Continuation] {
        &self.continued
    }

    /// Returns whether Redis has everything.
    pub(super) fn is_settled(&self) -> bool {
        self.under_way.is_none() && self.state.next_call().is_none()
    }

    /// Makes one call, or completes the one under way. Waits while there is nothing to write, for
    /// at most a second. Cancel-safe.
    pub(super) async fn progress(&mut self) -> Result<(), Fenced> {
        if self.under_way.is_none() {
            sleep_until(self.not_before).await;
            let call = if let Some(call) = self.state.next_call() {
                call
            } else {
                sleep_until(self.state.acknowledged() + CHECK_EVERY).await;
                self.state.check()
            };
            let (store, turn) = (self.store.clone(), Arc::clone(&self.turn));
            let (feed, text) = (self.feed.upgrade(), self.state.text());
            let reply = make_call(store, turn, feed, call, text, self.runner.as_ref());
            self.under_way = Some(UnderWay { call, made: Instant::now(), reply });
        }
        let Some(under_way) = &mut self.under_way else { return Ok(()) };
        let (call, made) = (under_way.call, under_way.made);
        let reply = under_way.reply.as_mut().await;
        self.under_way = None;
        let pause = match reply {
            Ok(reply) => {
                self.backoff.reset();
                if let WriterCall::Append(from, to, _) = call
                    && to > from
                {
                    APPENDS.acknowledged(to - from, made.elapsed());
                }
                self.state.apply(call, made, reply)?
            }
            Err(error) => {
                tracing::warn!(%error, "answer waiting for redis");
                Pause::Full(self.backoff.next_pause().unwrap_or_default())
            }
        };
        self.pause(pause);
        Ok(())
    }

    /// Keeps the turn while there is nothing to write. Returns when the writer has lost the turn.
    /// Cancel-safe.
    pub(super) async fn keep_turn(&mut self) -> Fenced {
        loop {
            let kept = if self.is_running() && !self.state.has_started() {
                sleep_until(self.state.acknowledged() + CHECK_WHILE_WAITING).await;
                let made = Instant::now();
                match self.store.begin(&self.turn).await {
                    Ok(reply) => {
                        self.backoff.reset();
                        self.state.apply(WriterCall::Begin, made, Reply::Begin(reply)).map(drop)
                    }
                    Err(error) => {
                        tracing::warn!(%error, "begin of a turn waiting for redis");
                        let _ = self.backoff.pause().await;
                        Ok(())
                    }
                }
            } else {
                self.progress().await
            };
            if let Err(fenced) = kept {
                return fenced;
            }
        }
    }

    /// Writes the rest of the text, and the end: the answer becomes a message with the fields of
    /// `header`. A repeat only restores what a failover lost.
    pub(super) async fn finish(
        &mut self,
        header: &Message,
        events: &[(Tag, Control)],
    ) -> Result<(), Fenced> {
        let mut backoff = Backoff::redis().until(Instant::now() + FINISH_LIMIT);
        loop {
            while !self.is_settled() {
                self.progress().await?;
            }
            let (length, revision) = (self.state.text().len() as u64, self.state.revision());
            let made = Instant::now();
            match self.store.finish(&self.turn, revision, length, header, events).await {
                Ok(written) => {
                    self.state.apply(self.state.check(), made, Reply::Written(written))?;
                    if written == Written::Ok {
                        return Ok(());
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "end of a turn waiting for redis");
                    if backoff.pause().await {
                        continue;
                    }
                    tracing::error!(%error, "end of a turn not written; leaving it to another replica");
                    return Err(Fenced);
                }
            }
        }
    }
}

/// Makes a call of the writer's state. The text reaches this replica's feed from here where the
/// session's channel does not bring it: only this replica waits for it, and so it is not published,
/// or this replica's subscription is lost.
pub(super) fn make_call(
    store: Store,
    turn: Arc<Turn>,
    feed: Option<Arc<Feed>>,
    call: WriterCall,
    text: &str,
    runner: Option<&Runner>,
) -> BoxFuture<'static, Result<Reply, StoreError>> {
    match call {
        WriterCall::Restore => {
            let owner = feed.map_or_else(|| turn.owner.clone(), |feed| feed.owner());
            Box::pin(async move { store.restore_for(&owner, &turn).await.map(Reply::Restored) })
        }
        WriterCall::Begin => Box::pin(async move { store.begin(&turn).await.map(Reply::Begin) }),
        WriterCall::Start(tag) => {
            let runner = runner.cloned();
            Box::pin(
                async move { store.start(&turn, tag, runner.as_ref()).await.map(Reply::Written) },
            )
        }
        WriterCall::Rewind(Rewind { length, revision, tag, published, restarts }) => {
            let taken_back = TakenBack { length: length as u64, restarts };
            Box::pin(async move {
                let rewound = store.rewind(&turn, revision, tag, taken_back, published);
                rewound.await.map(Reply::Written)
            })
        }
        WriterCall::Append(from, to, revision) => {
            let piece = text.get(from..to).unwrap_or_default().to_owned();
            Box::pin(async move {
                let from = from as u64;
                // Where the own subscription may be lost, the one that Redis counts may be another
                // replica's.
                let listens = feed.as_ref().is_some_and(|feed| feed.is_subscribed());
                if let Some(feed) = feed.as_ref().filter(|_| !piece.is_empty()) {
                    feed.note_append(from);
                }
                let appended = store.append(&turn, revision, from, listens, &piece).await?;
                if let (Some(after), Some(feed)) = (appended.after, feed)
                    && !(listens && appended.is_published)
                {
                    feed.take_piece(turn.generation, from, after, &piece);
                }
                Ok(Reply::Written(appended.written))
            })
        }
    }
}
