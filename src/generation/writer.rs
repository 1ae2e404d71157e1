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
use tokio::time::{Instant, sleep, sleep_until};

use crate::session::store::{Begin, Restored, Turn, Written};
use crate::session::window::floor_char_boundary;
use crate::session::{Control, Message, Store, StoreError, Tag};

/// Bytes of one write, at most.
const WRITE_BYTES: usize = 64 << 10;
/// Bytes of an answer as JSON, at most: with the rest of its event it stays below 512 KiB.
const ANSWER_JSON_BYTES: usize = 500 << 10;
/// Pause after a call that failed.
const RETRY: Duration = Duration::from_millis(200);
/// A writer that has nothing to write looks this often whether it still may.
const LOOK: Duration = Duration::from_secs(1);
/// A turn that had to be accepted again lets earlier ones of its session come back before it.
const COME_BACK: Duration = Duration::from_secs(1);
/// How long after its last acknowledged write a refused writer may ask for its turn: less than its
/// end would be remembered.
pub(super) const RESTORE_WITHIN: Duration = Duration::from_mins(1);
/// How long the end of a turn is tried to be written before it is left to another replica.
const FINISH_LIMIT: Duration = Duration::from_mins(10);

/// Somebody else writes this answer now, or it has ended.
#[derive(Debug)]
pub(super) struct Fenced;

/// One answer on its way to Redis.
pub(super) struct Writer {
    store: Store,
    turn: Arc<Turn>,
    text: String,
    json_bytes: usize,
    /// Bytes that Redis has.
    stored: usize,
    /// Before it the text is of the writers before this one.
    own_from: usize,
    stage: Stage,
    /// Told again as it was told first.
    start: Tag,
    /// The last event of this writer that shaped the answer.
    mark: Tag,
    /// What lies beyond is to be taken back.
    cut: Option<usize>,
    acknowledged: Instant,
    under_way: Option<UnderWay>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Redis says that the turn is not this writer's.
    Refused,
    /// The turn was accepted again, and waits for its place.
    Waiting,
    /// The answer is to be begun.
    Unmarked,
    /// Text can be written.
    Marked,
}

struct UnderWay {
    call: Call,
    reply: BoxFuture<'static, Result<Reply, StoreError>>,
}

#[derive(Clone, Copy)]
enum Call {
    Restore,
    Begin,
    Start,
    Cut(usize, Tag),
    Append(usize),
}

enum Reply {
    Restored(Restored),
    Begin(Begin),
    Written(Written),
}

impl Writer {
    /// Begins with the event that tells of the answer, where none has yet; goes on after what is
    /// stored of it.
    pub(super) fn start(store: Store, turn: Arc<Turn>, stored: String) -> Self {
        let start = Tag::random();
        Self {
            store,
            turn,
            json_bytes: stored.chars().map(json_bytes).sum(),
            stored: stored.len(),
            own_from: stored.len(),
            text: stored,
            stage: Stage::Unmarked,
            start,
            mark: start,
            cut: None,
            acknowledged: Instant::now(),
            under_way: None,
        }
    }

    /// The answer so far, written or not.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Adds text. `false`: the answer is as long as one may be, and what did not fit is left out.
    pub(super) fn push(&mut self, text: &str) -> bool {
        for (at, character) in text.char_indices() {
            let bytes = json_bytes(character);
            if self.json_bytes + bytes > ANSWER_JSON_BYTES {
                self.text.push_str(&text[..at]);
                return false;
            }
            self.json_bytes += bytes;
        }
        self.text.push_str(text);
        true
    }

    /// Takes back what lies beyond `length`: the model, asked to go on, said something else.
    pub(super) fn take_back(&mut self, length: usize) {
        let length = floor_char_boundary(&self.text, length);
        self.text.truncate(length);
        self.json_bytes = self.text.chars().map(json_bytes).sum();
        self.own_from = self.own_from.min(length);
        self.stored = self.stored.min(length);
        self.cut = Some(self.cut.map_or(length, |cut| cut.min(length)));
    }

    /// Whether Redis has everything.
    pub(super) fn is_settled(&self) -> bool {
        self.under_way.is_none() && self.next_call().is_none()
    }

    /// Makes one call, or sees the one under way to its end. Pends while there is nothing to write,
    /// for at most a second. Cancel-safe.
    pub(super) async fn progress(&mut self) -> Result<(), Fenced> {
        if self.under_way.is_none() {
            let call = if let Some(call) = self.next_call() {
                call
            } else {
                sleep_until(self.acknowledged + LOOK).await;
                Call::Append(self.stored)
            };
            self.under_way = Some(self.begin(call));
        }
        let Some(under_way) = &mut self.under_way else { return Ok(()) };
        let call = under_way.call;
        let reply = under_way.reply.as_mut().await;
        self.under_way = None;
        match reply {
            Ok(reply) => self.take_in(call, &reply),
            Err(error) => {
                tracing::warn!(%error, "an answer waits for Redis");
                self.pause(call, RETRY);
                Ok(())
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
        let deadline = Instant::now() + FINISH_LIMIT;
        loop {
            while !self.is_settled() {
                self.progress().await?;
            }
            let length = self.text.len() as u64;
            match self.store.finish(&self.turn, self.mark, length, header, events).await {
                Ok(Written::Ok) => {
                    self.acknowledged = Instant::now();
                    return Ok(());
                }
                Ok(written) => self.written(written)?,
                Err(error) if Instant::now() < deadline => {
                    tracing::warn!(%error, "the end of a turn waits for Redis");
                    sleep(RETRY).await;
                }
                Err(error) => {
                    tracing::error!(%error, "the end of a turn could not be written");
                    return Err(Fenced);
                }
            }
        }
    }

    fn next_call(&self) -> Option<Call> {
        match self.stage {
            Stage::Refused => Some(Call::Restore),
            Stage::Waiting => Some(Call::Begin),
            Stage::Unmarked => Some(Call::Start),
            Stage::Marked => match self.cut {
                Some(length) => Some(Call::Cut(length, Tag::random())),
                None if self.stored < self.text.len() => {
                    let longest = self.text.len().min(self.stored + WRITE_BYTES);
                    Some(Call::Append(floor_char_boundary(&self.text, longest)))
                }
                None => None,
            },
        }
    }

    fn begin(&self, call: Call) -> UnderWay {
        let (store, turn) = (self.store.clone(), Arc::clone(&self.turn));
        let (start, mark, offset) = (self.start, self.mark, self.stored as u64);
        let reply: BoxFuture<'static, _> = match call {
            Call::Restore => {
                Box::pin(async move { Ok(Reply::Restored(store.restore(&turn).await?)) })
            }
            Call::Begin => Box::pin(async move { Ok(Reply::Begin(store.begin(&turn).await?)) }),
            Call::Start => {
                Box::pin(async move { Ok(Reply::Written(store.start(&turn, start).await?)) })
            }
            Call::Cut(length, tag) => Box::pin(async move {
                Ok(Reply::Written(store.rewind(&turn, length as u64, tag).await?))
            }),
            Call::Append(end) => {
                let piece = self.text.get(self.stored..end).unwrap_or_default().to_owned();
                Box::pin(async move {
                    Ok(Reply::Written(store.append(&turn, mark, offset, &piece).await?))
                })
            }
        };
        UnderWay { call, reply }
    }

    /// Repeats a call after a pause; text may gather meanwhile, so that what is to be written is
    /// decided after it.
    fn pause(&mut self, call: Call, pause: Duration) {
        let call = match call {
            Call::Append(_) => Call::Append(self.stored),
            call => call,
        };
        let UnderWay { reply, .. } = self.begin(call);
        let reply = Box::pin(async move {
            sleep(pause).await;
            reply.await
        });
        self.under_way = Some(UnderWay { call, reply });
    }

    fn take_in(&mut self, call: Call, reply: &Reply) -> Result<(), Fenced> {
        match reply {
            Reply::Written(Written::Ok) => {
                self.acknowledged = Instant::now();
                match call {
                    Call::Start => {
                        self.stage = Stage::Marked;
                        self.mark = self.start;
                    }
                    Call::Cut(length, tag) => {
                        self.mark = tag;
                        self.stored = length;
                        // Less may be to be kept by now.
                        self.cut = self.cut.filter(|cut| *cut < length);
                    }
                    Call::Append(end) => self.stored = end,
                    Call::Restore | Call::Begin => {}
                }
                Ok(())
            }
            Reply::Written(written) => self.written(*written),
            Reply::Restored(Restored::Gone) => Err(Fenced),
            Reply::Restored(Restored::Kept) => {
                self.stage = Stage::Marked;
                Ok(())
            }
            Reply::Restored(Restored::Claimed) => {
                self.tell_again();
                Ok(())
            }
            Reply::Restored(Restored::Waiting) => {
                self.stage = Stage::Waiting;
                self.pause(Call::Begin, COME_BACK);
                Ok(())
            }
            Reply::Begin(Begin::Began) => {
                self.stage = Stage::Unmarked;
                self.stored = 0;
                self.cut = None;
                Ok(())
            }
            Reply::Begin(Begin::Waiting) => {
                self.acknowledged = Instant::now();
                self.pause(Call::Begin, RETRY);
                Ok(())
            }
            Reply::Begin(Begin::Gone) => self.refused(),
        }
    }

    fn written(&mut self, written: Written) -> Result<(), Fenced> {
        match written {
            Written::Ok => Ok(()),
            Written::Hole(stored) => {
                let stored = usize::try_from(stored).unwrap_or(usize::MAX);
                self.stored = floor_char_boundary(&self.text, stored);
                Ok(())
            }
            Written::Unmarked => {
                self.tell_again();
                Ok(())
            }
            Written::Fenced => self.refused(),
        }
    }

    /// Beyond what the writers before it left, Redis may have what is not this writer's text.
    fn tell_again(&mut self) {
        tracing::warn!(
            from = self.own_from,
            "a failover took a part of an answer; telling it again"
        );
        self.stage = Stage::Unmarked;
        self.stored = self.own_from;
        self.cut = Some(self.own_from);
    }

    fn refused(&mut self) -> Result<(), Fenced> {
        if self.acknowledged.elapsed() > RESTORE_WITHIN {
            return Err(Fenced);
        }
        self.stage = Stage::Refused;
        Ok(())
    }
}

fn json_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        control if control < ' ' => 6,
        other => other.len_utf8(),
    }
}
