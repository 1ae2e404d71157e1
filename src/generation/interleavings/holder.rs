//! A turn that a replica holds: the real decisions of a writer, one call at a time.

use std::sync::Arc;

use tokio::time::Instant;

use super::Fate;
use crate::generation::writer::make_call;
use crate::generation::writer_state::{Reply, WriterCall, WriterState};
use crate::samples;
use crate::session::reasoning::Shape;
use crate::session::store::{Turn, Written};
use crate::session::{Control, Message, Store, Tag};

/// Characters of an answer.
pub(super) const ANSWER: usize = 40;
/// Characters of an answer that are reasoning, where the model reasons.
const REASONING: usize = 15;

/// The writes of a holder at the end of a turn.
pub(super) type End = (Message, Vec<(Tag, Control)>);

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Holder {
    pub(super) replica: usize,
    pub(super) turn: Arc<Turn>,
    pub(super) state: WriterState,
    /// Every third character that the holder writes.
    letter: char,
    /// Characters of the answer that are reasoning.
    reasoning: usize,
    pub(super) end: End,
    /// Whether Redis acknowledged the end, so that its replica keeps a redo entry.
    pub(super) has_ended: bool,
    /// Claims of the turn for its end since the last failover.
    pub(super) claims: u32,
    /// Whether the holder has learned that the turn is cancelled or another replica's.
    pub(super) stopped: bool,
    /// Whether the holder has tried to end the turn: it generates no more, and makes no check.
    pub(super) ending: bool,
    pub(super) finished: bool,
}

impl Holder {
    pub(super) fn new(
        replica: usize,
        turn: Arc<Turn>,
        state: WriterState,
        letter: char,
        reasons: bool,
    ) -> Self {
        let reasoning = if reasons { REASONING } else { 0 };
        let (header, events) = samples::whole_answer(&turn);
        let events = events.to_vec();
        let (stopped, ending, finished) = (false, false, false);
        let (end, has_ended, claims) = ((header, events), false, 0);
        Self {
            replica,
            turn,
            state,
            letter,
            reasoning,
            end,
            has_ended,
            claims,
            stopped,
            ending,
            finished,
        }
    }

    /// Creates the holder of an end that another replica wrote.
    pub(super) fn of_end(replica: usize, turn: Arc<Turn>, text: String, end: End) -> Self {
        let state = WriterState::restoring(text);
        let holder = Self::new(replica, turn, state, 'x', false);
        Self { end, has_ended: true, ending: true, ..holder }
    }

    /// Continues with the same turn as the holder's replica has claimed it.
    pub(super) fn take(&mut self, claimed: Arc<Turn>, is_running: bool) {
        self.turn = claimed;
        self.state.take(is_running);
        self.stopped = false;
    }

    pub(super) fn generate(&mut self, characters: usize) {
        for _ in 0..characters {
            let position = characters_of(self.state.text());
            if !self.state.is_running() || self.ending || position >= ANSWER {
                return;
            }
            // Digits are the position, so that a piece at a wrong position is noticed.
            let digit = char::from_digit((position % 10) as u32, 10).unwrap_or('?');
            let next = if position.is_multiple_of(3) { self.letter } else { digit }.to_string();
            if position < self.reasoning {
                self.state.push_reasoning(&next);
            } else {
                self.state.push(&next);
            }
        }
    }

    pub(super) fn rewind(&mut self, share: f64) {
        let length = (self.state.text().len() as f64 * share) as usize;
        self.state.rewind(length);
        self.letter = self.letter.to_uppercase().next().unwrap_or(self.letter);
    }

    /// Returns whether Redis has everything, so that the turn can be ended.
    pub(super) fn is_settled(&self) -> bool {
        self.state.is_running() && self.state.next_call().is_none()
    }

    pub(super) async fn write(&mut self, store: &Store, fate: Fate) {
        let call = match self.state.next_call() {
            Some(call) => call,
            None if self.ending => return,
            None => self.state.check(),
        };
        let make = async |call: WriterCall| -> Reply {
            let (store, turn) = (store.clone(), Arc::clone(&self.turn));
            make_call(store, turn, None, call, self.state.text(), None).await.expect("a reply")
        };
        let mut reply = make(call).await;
        match fate {
            Fate::Done => {}
            Fate::ReplyLost => return,
            Fate::Twice => reply = make(call).await,
        }
        self.stopped = self.state.apply(call, Instant::now(), reply).is_err();
    }

    /// Tries to end the turn. Returns whether Redis has its end.
    pub(super) async fn finish(&mut self, store: &Store, fate: Fate) -> bool {
        self.ending = true;
        let (header, events) = &self.end;
        let (length, revision) = (self.state.text().len() as u64, self.state.revision());
        let finish = async || {
            store.finish(&self.turn, revision, length, header, events).await.expect("a reply")
        };
        let mut reply = finish().await;
        match fate {
            Fate::Done => {}
            Fate::ReplyLost => return reply == Written::Ok,
            Fate::Twice => reply = finish().await,
        }
        let check = self.state.check();
        let applied = self.state.apply(check, Instant::now(), Reply::Written(reply));
        self.stopped = applied.is_err();
        self.finished = !self.stopped && reply == Written::Ok;
        self.has_ended |= self.finished;
        self.finished
    }
}

/// Returns the number of characters of reasoning and answer, without the markers.
fn characters_of(text: &str) -> usize {
    parts(text).iter().map(|part| part.chars().count()).sum()
}

/// Returns reasoning and answer.
pub(super) fn parts(text: &str) -> [String; 2] {
    let shape = Shape::of(text);
    [shape.reasoning(text).unwrap_or_default().to_owned(), shape.answer(text).to_owned()]
}
