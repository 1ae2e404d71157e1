//! Writes an answer to Redis while it grows.
//!
//! The stream from the model never waits for Redis: while one call is under way, text gathers, and
//! the next carries all of it. So the first token leaves at once, a quiet system sends token by
//! token, and a loaded one sends fewer, larger pieces.
//!
//! A failover may take back what Redis had acknowledged. The writer keeps the whole answer, looks
//! at least once a second whether all is well, and tells again what is missing.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use super::writer_state::{Cut, Fenced, Pause, Reply, WriterCall, WriterState};
use crate::retry::Backoff;
use crate::session::model::{Continuation, ContinuedHow};
use crate::session::store::{OwnConversation, Turn, Written};
use crate::session::{Control, Message, Store, StoreError, Tag};

/// A writer that has nothing to write looks this often whether it still may.
const LOOK: Duration = Duration::from_secs(1);
/// One whose answer has not begun, as its turn waits for a slot, looks less often.
const LOOK_WHILE_WAITING: Duration = Duration::from_secs(5);
/// How long the end of a turn is tried to be written before it is left to another replica.
const FINISH_LIMIT: Duration = Duration::from_mins(10);

/// Continuations that are listed of one answer, at most.
const CONTINUATIONS: usize = 32;
/// Why an answer has to be continued whose text is of another replica.
const REPLICA_GONE: &str = "replica_gone";

/// One answer on its way to Redis.
pub(super) struct Writer {
    store: Store,
    turn: Arc<Turn>,
    state: WriterState,
    /// Each time that the answer went on after it had broken off, over all of its writers.
    continued: Vec<Continuation>,
    /// Why the next continuation is needed.
    broken_off_by: &'static str,
    /// Whether any text came since the answer broke off last.
    has_new_text: bool,
    /// No call is made before this.
    not_before: Instant,
    /// Whether [`Writer::wake`] makes the next call due at once.
    can_wake: bool,
    /// Whether [`Writer::wake`] was called while a call was under way, whose reply may be older.
    woken: bool,
    under_way: Option<UnderWay>,
    /// Pauses after calls that failed.
    backoff: Backoff,
}

struct UnderWay {
    call: WriterCall,
    made: Instant,
    reply: BoxFuture<'static, Result<Reply, StoreError>>,
}

impl Writer {
    /// Waits for the place of a turn that others of its session come before.
    pub(super) fn waiting(store: Store, turn: Arc<Turn>) -> Self {
        Self::new(store, turn, WriterState::waiting())
    }

    /// Begins with the event that tells of the answer, where none has yet; goes on after what is
    /// stored of it.
    pub(super) fn start(store: Store, turn: Arc<Turn>, stored: String) -> Self {
        Self::new(store, turn, WriterState::after(stored))
    }

    fn new(store: Store, turn: Arc<Turn>, state: WriterState) -> Self {
        Self {
            store,
            continued: turn.continued().to_vec(),
            turn,
            state,
            broken_off_by: REPLICA_GONE,
            has_new_text: false,
            not_before: Instant::now(),
            can_wake: true,
            woken: false,
            under_way: None,
            backoff: Backoff::redis(),
        }
    }

    /// Whether the turn has its place.
    pub(super) fn is_running(&self) -> bool {
        self.state.is_running()
    }

    /// Whether this writer has published that the answer begins.
    pub(super) fn has_begun(&self) -> bool {
        self.state.has_begun()
    }

    /// Makes the next call due at once, as the turn's place may have come free.
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
            Pause::UntilFree(_) if woken => Duration::ZERO,
            Pause::UntilFree(length) | Pause::Whole(length) => length,
        };
        self.not_before = Instant::now() + length;
        self.can_wake = !matches!(pause, Pause::Whole(_));
    }

    /// The answer so far and the thoughts before it, written or not.
    pub(super) fn text(&self) -> &str {
        self.state.text()
    }

    /// Bytes of texts that it keeps: the answer, its question, and a conversation of the turn's own.
    pub(super) fn bytes(&self) -> usize {
        let own = self.turn.own_conversation().map_or(0, OwnConversation::bytes);
        self.text().len() + self.turn.question().content.len() + own
    }

    /// How long Redis has said nothing to it.
    pub(super) fn unheard_for(&self) -> Duration {
        self.state.acknowledged().elapsed()
    }

    /// Adds to the answer. `false`: it is as long as one may be, and what did not fit is left out.
    pub(super) fn push(&mut self, answer: &str) -> bool {
        self.has_new_text |= !answer.is_empty();
        self.state.push(answer)
    }

    /// Adds to the thoughts, unless the answer has begun. `false` as [`Writer::push`].
    pub(super) fn push_reasoning(&mut self, thoughts: &str) -> bool {
        self.has_new_text |= !thoughts.is_empty();
        self.state.push_reasoning(thoughts)
    }

    /// Takes back what lies beyond `length`: from there the answer will be another one.
    pub(super) fn take_back(&mut self, length: usize) {
        self.state.take_back(length);
    }

    /// An attempt failed with an error of this code. Where it had brought text, that is what the
    /// answer broke off by; an attempt that brought none changes nothing.
    pub(super) fn broke_off(&mut self, code: &'static str) {
        if std::mem::take(&mut self.has_new_text) {
            self.broken_off_by = code;
        }
    }

    /// Adds a continuation, where there was one, and notes it for the writer that may come after this
    /// one. A note that is lost is missing in the list of that writer, and nowhere else.
    pub(super) fn note_continued(&mut self, how: Option<ContinuedHow>) {
        let Some(how) = how.filter(|_| self.continued.len() < CONTINUATIONS) else { return };
        self.continued.push(Continuation { how, why: self.broken_off_by.to_owned() });
        let (store, turn) = (self.store.clone(), Arc::clone(&self.turn));
        let continued = self.continued.clone();
        tokio::spawn(async move {
            if let Err(error) = store.note_continued(&turn, &continued).await {
                tracing::debug!(%error, "continuation not noted");
            }
        });
    }

    /// Each time that the answer went on after it had broken off, at most 32.
    pub(super) fn continued(&self) -> &[Continuation] {
        &self.continued
    }

    /// Whether Redis has everything.
    pub(super) fn is_settled(&self) -> bool {
        self.under_way.is_none() && self.state.next_call().is_none()
    }

    /// Makes one call, or sees the one under way to its end. Pends while there is nothing to write,
    /// for at most a second. Cancel-safe.
    pub(super) async fn progress(&mut self) -> Result<(), Fenced> {
        if self.under_way.is_none() {
            sleep_until(self.not_before).await;
            let call = if let Some(call) = self.state.next_call() {
                call
            } else {
                sleep_until(self.state.acknowledged() + LOOK).await;
                self.state.look()
            };
            let (store, turn) = (self.store.clone(), Arc::clone(&self.turn));
            let reply = make(store, turn, call, self.state.text());
            self.under_way = Some(UnderWay { call, made: Instant::now(), reply });
        }
        let Some(under_way) = &mut self.under_way else { return Ok(()) };
        let (call, made) = (under_way.call, under_way.made);
        let reply = under_way.reply.as_mut().await;
        self.under_way = None;
        let pause = match reply {
            Ok(reply) => {
                self.backoff.reset();
                self.state.take_in(call, made, reply)?
            }
            Err(error) => {
                tracing::warn!(%error, "writing an answer waits for redis");
                Pause::Whole(self.backoff.next_pause().unwrap_or_default())
            }
        };
        self.pause(pause);
        Ok(())
    }

    /// Keeps the turn's place while nothing is to be written, until it is another's. Cancel-safe.
    pub(super) async fn keep_turn(&mut self) -> Fenced {
        loop {
            let kept = if self.is_running() && !self.state.has_begun() {
                sleep_until(self.state.acknowledged() + LOOK_WHILE_WAITING).await;
                let made = Instant::now();
                match self.store.begin(&self.turn).await {
                    Ok(reply) => {
                        self.backoff.reset();
                        self.state.take_in(WriterCall::Begin, made, Reply::Begin(reply)).map(drop)
                    }
                    Err(error) => {
                        tracing::warn!(%error, "beginning a turn waits for redis");
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

    /// Writes what is left, and the end: the answer becomes a message with `header`'s fields. Done
    /// again, it only makes good what a failover took.
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
                    self.state.take_in(self.state.look(), made, Reply::Written(written))?;
                    if written == Written::Ok {
                        return Ok(());
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "writing the end of a turn waits for redis");
                    if backoff.pause().await {
                        continue;
                    }
                    tracing::error!(%error, "writing the end of a turn failed; another replica will take the turn over");
                    return Err(Fenced);
                }
            }
        }
    }
}

/// Asks Redis for what the state wants.
pub(super) fn make(
    store: Store,
    turn: Arc<Turn>,
    call: WriterCall,
    text: &str,
) -> BoxFuture<'static, Result<Reply, StoreError>> {
    match call {
        WriterCall::Restore => {
            Box::pin(async move { store.restore(&turn).await.map(Reply::Restored) })
        }
        WriterCall::Begin => Box::pin(async move { store.begin(&turn).await.map(Reply::Begin) }),
        WriterCall::Start(tag) => {
            Box::pin(async move { store.start(&turn, tag).await.map(Reply::Written) })
        }
        WriterCall::Cut(Cut { length, revision, tag, told }) => Box::pin(async move {
            store.rewind(&turn, revision, length as u64, tag, told).await.map(Reply::Written)
        }),
        WriterCall::Append(from, to, revision) => {
            let piece = text.get(from..to).unwrap_or_default().to_owned();
            Box::pin(async move {
                store.append(&turn, revision, from as u64, &piece).await.map(Reply::Written)
            })
        }
    }
}
