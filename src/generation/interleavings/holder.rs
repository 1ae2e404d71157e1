//! A turn in the hands of a replica: the real decisions of a writer, one call at a time.

use std::sync::Arc;

use chrono::Utc;
use tokio::time::Instant;

use super::Fate;
use crate::generation::writer::make;
use crate::generation::writer_state::{Reply, WriterCall, WriterState};
use crate::session::model::{ContextReport, rfc3339};
use crate::session::reasoning::Shape;
use crate::session::store::{Turn, Written, message};
use crate::session::{Control, FinishReason, Message, Role, Status, Store, Tag, Usage};

/// Characters of an answer.
pub(super) const ANSWER: usize = 40;
/// Characters of them that are reasoning, where the model thinks.
const REASONING: usize = 15;

pub(super) struct Holder {
    pub(super) replica: usize,
    pub(super) turn: Arc<Turn>,
    pub(super) state: WriterState,
    /// Every third character that it writes.
    letter: char,
    /// Characters of its answer that are reasoning.
    reasoning: usize,
    end: (Message, Vec<(Tag, Control)>),
    /// It has learned that the turn is cancelled or another's.
    pub(super) stopped: bool,
    /// It has tried to end the turn: it generates no more, and does not look in between.
    pub(super) ending: bool,
    pub(super) finished: bool,
}

impl Holder {
    pub(super) fn new(
        replica: usize,
        turn: Arc<Turn>,
        state: WriterState,
        letter: char,
        thinks: bool,
    ) -> Self {
        let reasoning = if thinks { REASONING } else { 0 };
        let now = Utc::now();
        let header = Message {
            generation_id: Some(turn.generation),
            model: Some(turn.spec.model.clone()),
            status: Some(Status::Complete),
            ..message(Role::Assistant, now)
        };
        let ended = Control::Ended {
            timestamp: rfc3339(&now),
            model: turn.spec.model.clone(),
            finish_reason: FinishReason::Stop,
            usage: Usage::default(),
            context: ContextReport::default(),
            continued: Vec::new(),
        };
        let events = vec![(Tag::random(), Control::Done {}), (Tag::random(), ended)];
        let (stopped, ending, finished) = (false, false, false);
        let end = (header, events);
        Self { replica, turn, state, letter, reasoning, end, stopped, ending, finished }
    }

    pub(super) fn generate(&mut self, characters: usize) {
        for _ in 0..characters {
            let position = characters_of(self.state.text());
            if !self.state.is_running() || self.ending || position >= ANSWER {
                return;
            }
            // Digits tell the position, so that a piece at a wrong one shows.
            let digit = char::from_digit((position % 10) as u32, 10).unwrap_or('?');
            let next = if position.is_multiple_of(3) { self.letter } else { digit }.to_string();
            if position < self.reasoning {
                self.state.push_reasoning(&next);
            } else {
                self.state.push(&next);
            }
        }
    }

    pub(super) fn take_back(&mut self, share: f64) {
        let length = (self.state.text().len() as f64 * share) as usize;
        self.state.take_back(length);
        self.letter = self.letter.to_uppercase().next().unwrap_or(self.letter);
    }

    /// Whether Redis has everything, so that the turn can be ended.
    pub(super) fn is_settled(&self) -> bool {
        self.state.is_running() && self.state.next_call().is_none()
    }

    pub(super) async fn write(&mut self, store: &Store, fate: Fate) {
        let call = match self.state.next_call() {
            Some(call) => call,
            None if self.ending => return,
            None => self.state.look(),
        };
        let ask = async |call: WriterCall| -> Reply {
            let (store, turn) = (store.clone(), Arc::clone(&self.turn));
            make(store, turn, call, self.state.text()).await.expect("a reply")
        };
        let mut reply = ask(call).await;
        match fate {
            Fate::Done => {}
            Fate::ReplyLost => return,
            Fate::Twice => reply = ask(call).await,
        }
        self.stopped = self.state.take_in(call, Instant::now(), reply).is_err();
    }

    /// Tries to end the turn. `true`: Redis has its end.
    pub(super) async fn finish(&mut self, store: &Store, fate: Fate) -> bool {
        self.ending = true;
        let (header, events) = &self.end;
        let (length, revision) = (self.state.text().len() as u64, self.state.revision());
        let ask = async || {
            store.finish(&self.turn, revision, length, header, events).await.expect("a reply")
        };
        let mut reply = ask().await;
        match fate {
            Fate::Done => {}
            Fate::ReplyLost => return reply == Written::Ok,
            Fate::Twice => reply = ask().await,
        }
        let look = self.state.look();
        let taken = self.state.take_in(look, Instant::now(), Reply::Written(reply));
        self.stopped = taken.is_err();
        self.finished = !self.stopped && reply == Written::Ok;
        self.finished
    }
}

/// Of reasoning and answer, without what stands around them.
fn characters_of(text: &str) -> usize {
    parts(text).iter().map(|part| part.chars().count()).sum()
}

/// Reasoning and answer.
pub(super) fn parts(text: &str) -> [String; 2] {
    let shape = Shape::of(text);
    [shape.thoughts(text).unwrap_or_default().to_owned(), shape.answer(text).to_owned()]
}
