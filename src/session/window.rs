//! Windows: a contiguous part of a session's events and text, and the steps of a reader through it.
//!
//! The same function yields the next [`Step`] after a [`Cursor`] for a live feed, for a read of
//! Redis and for a slow reader. Nothing here waits or does I/O.

mod answer_text;
mod apply;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

pub use self::answer_text::AnswerText;
pub use self::apply::Applied;
use super::cursor::{Cursor, Tag};
use super::event::{Control, Event};
use super::model::GenerationId;
use super::reasoning::Shape;

/// Consecutive events, and the bytes of the answers between them.
#[derive(Clone, Debug)]
pub struct Window {
    /// The number and tag of the last event before the window.
    base: (u64, Tag),
    events: VecDeque<Arc<Event>>,
    answers: Vec<AnswerText>,
    /// The generation that runs at the end of the window.
    running: Option<GenerationId>,
    /// Bytes of the read of Redis that it came from.
    read_bytes: usize,
}

/// The next step of a reader.
#[derive(Clone, Debug, PartialEq)]
pub enum Step<'a> {
    /// A piece of a running or finished answer, or of the reasoning before it.
    Piece {
        /// The generation of the answer.
        generation: GenerationId,
        /// Whether the piece is reasoning.
        is_reasoning: bool,
        /// UTF-8 bytes of the answer, or of the reasoning, before the piece.
        offset: u64,
        /// The text.
        text: &'a str,
        /// The reader's cursor after the step.
        after: Cursor,
    },
    /// A control event.
    Event {
        /// The event.
        event: &'a Arc<Event>,
        /// The whole answer, at the end of a generation; empty where there is none.
        answer: &'a str,
        /// The whole reasoning, at the end of a generation; none where there is none.
        reasoning: Option<&'a str>,
        /// The reader's cursor after the step.
        after: Cursor,
    },
    /// The text that this reader saw after `from` is taken back; with 0 the reasoning, too.
    Restart {
        /// The generation of the answer.
        generation: GenerationId,
        /// UTF-8 bytes of the answer that stay.
        from: u64,
        /// The reader's cursor after the step.
        after: Cursor,
    },
    /// A change that this reader does not need: only its cursor moves.
    Silent {
        /// The reader's cursor after the step.
        after: Cursor,
    },
    /// The window holds nothing more for this reader.
    UpToDate,
    /// The cursor lies before the window: the reader reads Redis.
    Behind,
    /// The cursor is of another history of this session: the reader needs a snapshot.
    Unknown,
}

impl Window {
    /// Creates a window that ends after the event `number` and holds nothing.
    pub fn empty(number: u64, tag: Tag, running: Option<GenerationId>) -> Self {
        let (base, events, answers) = ((number, tag), VecDeque::new(), Vec::new());
        Self { base, events, answers, running, read_bytes: 0 }
    }

    /// Creates a window from a read of Redis: `events` follow `base` without a gap.
    pub fn new(
        base: (u64, Tag),
        events: impl IntoIterator<Item = Event>,
        answers: Vec<AnswerText>,
        running: Option<GenerationId>,
    ) -> Self {
        let events = events.into_iter().map(Arc::new).collect();
        Self { base, events, answers, running, read_bytes: 0 }
    }

    /// Notes the bytes of the read of Redis that the window came from.
    #[must_use]
    pub fn read_in(self, read_bytes: usize) -> Self {
        Self { read_bytes, ..self }
    }

    /// Returns those bytes.
    pub fn read_bytes(&self) -> usize {
        self.read_bytes
    }

    /// Returns the number and tag of the last event.
    pub fn tip(&self) -> (u64, Tag) {
        self.events.back().map_or(self.base, |event| (event.number, event.tag))
    }

    /// Returns the running generation.
    pub fn running(&self) -> Option<GenerationId> {
        self.running
    }

    /// Returns the length of the running answer so far, 0 where none of it is held.
    pub fn running_length(&self) -> u64 {
        self.running.and_then(|id| self.answer(id)).map_or(0, AnswerText::end)
    }

    /// Returns the cursor after everything that the window holds.
    pub fn end(&self) -> Cursor {
        let (events, tag) = self.tip();
        Cursor { events, tag, generation: self.running, offset: self.running_length() }
    }

    /// Returns the cursor before everything that the window holds.
    pub fn start(&self) -> Cursor {
        let (events, tag) = self.base;
        match self.running.and_then(|id| self.answer(id)) {
            // The running answer began before the window.
            Some(answer) if !self.began_here(answer.generation) => {
                Cursor { events, tag, generation: Some(answer.generation), offset: answer.base }
            }
            _ => Cursor { events, tag, generation: None, offset: 0 },
        }
    }

    /// Returns the held events, oldest first.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        self.events.iter()
    }

    /// Returns the answer of a generation, where any of it is held.
    pub fn answer(&self, generation: GenerationId) -> Option<&AnswerText> {
        self.answers.iter().find(|answer| answer.generation == generation)
    }

    /// Returns the next step of a reader at `cursor`, with pieces of at most `max_piece` bytes (at
    /// least 4).
    pub fn next(&self, cursor: &Cursor, max_piece: usize) -> Step<'_> {
        match self.walk(cursor, max_piece, true) {
            Step::Piece { generation, text, after, .. } => {
                self.part_of_piece(cursor, generation, text.len(), after)
            }
            Step::Restart { generation, from, after } => self.restart(generation, from, after),
            step => step,
        }
    }

    /// Returns the first part of a piece that is all reasoning or all answer.
    fn part_of_piece(
        &self,
        cursor: &Cursor,
        generation: GenerationId,
        bytes: usize,
        after: Cursor,
    ) -> Step<'_> {
        let Some(answer) = self.answer(generation).filter(|answer| answer.base == 0) else {
            return Step::Behind;
        };
        let from = cursor.offset as usize;
        match answer.shape.part(&answer.text, from, from + bytes) {
            Some(part) => Step::Piece {
                generation,
                is_reasoning: part.is_reasoning,
                offset: part.offset as u64,
                text: part.text,
                after: Cursor { offset: part.end as u64, ..after },
            },
            None => Step::Silent { after },
        }
    }

    /// Returns a restart in bytes of the answer. A restart within the reasoning starts again at 0.
    fn restart(&self, generation: GenerationId, from: u64, after: Cursor) -> Step<'_> {
        // Beyond the length that a later claim keeps, the held text is not the text that was seen.
        let later = self.events.iter().filter(|event| event.number > after.events);
        let kept = later.filter_map(|event| claimed_from(event, generation)).fold(from, u64::min);
        let starts_again =
            Step::Restart { generation, from: 0, after: Cursor { offset: 0, ..after } };
        let held = match self.answer(generation) {
            Some(answer) if answer.base == 0 => answer,
            _ if kept == 0 => return starts_again,
            // The text that stays is known as reasoning or answer only from its beginning.
            _ => return Step::Behind,
        };
        // Redis may hold less than the text that stays until the writer has written it again: the
        // rest is delivered again.
        let kept = kept.min(held.end());
        let answer_from = match held.shape {
            Shape::Plain => 0,
            Shape::Answering(from) if from as u64 <= kept => from as u64,
            Shape::Reasoning | Shape::Answering(_) => return starts_again,
        };
        let from = kept - answer_from;
        let offset = if from == 0 { 0 } else { kept };
        Step::Restart { generation, from, after: Cursor { offset, ..after } }
    }

    /// Returns the next step with stored offsets, which count reasoning and answer together.
    fn walk(&self, cursor: &Cursor, max_piece: usize, whole_answers: bool) -> Step<'_> {
        let (base, base_tag) = self.base;
        if cursor.events < base {
            return Step::Behind;
        }
        if cursor.events > self.tip().0 {
            // The reader read Redis by itself, ahead of the hints.
            return Step::UpToDate;
        }
        let index = usize::try_from(cursor.events - base).unwrap_or(usize::MAX);
        let tag = match index {
            0 => base_tag,
            _ => self.events.get(index - 1).map_or(Tag::START, |event| event.tag),
        };
        if tag != cursor.tag {
            return Step::Unknown;
        }
        let event = self.events.get(index);
        match self.piece_before(index, cursor, max_piece) {
            Step::UpToDate => {}
            step => return step,
        }
        match event {
            Some(event) => self.step_over(event, cursor, whole_answers),
            None => Step::UpToDate,
        }
    }

    fn piece_before(&self, index: usize, cursor: &Cursor, max_piece: usize) -> Step<'_> {
        let Some(generation) = cursor.generation else { return Step::UpToDate };
        let held = self.answer(generation);
        let until = match self.events.get(index) {
            Some(event) => match event.answer_position {
                Some((running, length)) if running == generation => length,
                _ => return Step::UpToDate,
            },
            None if self.running == Some(generation) => held.map_or(0, AnswerText::end),
            None => return Step::UpToDate,
        };
        if cursor.offset >= until {
            return Step::UpToDate;
        }
        let Some(answer) = held else { return Step::Behind };
        if cursor.offset < answer.base {
            return Step::Behind;
        }
        // Text that a later claim takes back is not delivered, and may not be held any more.
        let kept = self.events.range(index..);
        let kept = kept.filter_map(|event| claimed_from(event, generation));
        let until = kept.fold(until.min(answer.end()), u64::min);
        let from = (cursor.offset - answer.base) as usize;
        let to = (until.saturating_sub(answer.base)) as usize;
        if from >= to {
            return Step::UpToDate;
        }
        if !answer.text.is_char_boundary(from) {
            return Step::Unknown;
        }
        let to = answer.text.floor_char_boundary(to.min(from.saturating_add(max_piece)));
        Step::Piece {
            generation,
            is_reasoning: false,
            offset: cursor.offset,
            text: &answer.text[from..to],
            after: Cursor { offset: answer.base + to as u64, ..*cursor },
        }
    }

    fn step_over<'a>(
        &'a self,
        event: &'a Arc<Event>,
        cursor: &Cursor,
        whole_answers: bool,
    ) -> Step<'a> {
        let mut after = Cursor { events: event.number, tag: event.tag, ..*cursor };
        let about = event.generation;
        if let Some((generation, length)) = event.final_length()
            && let length = self.answer(generation).map_or(length, |held| held.end().min(length))
            && cursor.generation == Some(generation)
            && cursor.offset > length
        {
            // A failover lost text that had been delivered, and the answer ended without it; or a
            // clear removed the text afterwards.
            let after = Cursor { offset: length, ..*cursor };
            return Step::Restart { generation, from: length, after };
        }
        match &event.control {
            Control::Started { .. } => {
                after.generation = about;
                after.offset = 0;
            }
            Control::Claimed { from, .. } => {
                return match about {
                    Some(generation) if about == cursor.generation && cursor.offset > *from => {
                        after.offset = *from;
                        Step::Restart { generation, from: *from, after }
                    }
                    _ => Step::Silent { after },
                };
            }
            Control::Transferred { .. } => return Step::Silent { after },
            control if whole_answers && control.is_terminal() => {
                let answer = about.and_then(|id| self.answer(id));
                return match answer {
                    Some(answer) if answer.base > 0 => Step::Behind,
                    Some(held) => {
                        let (answer, reasoning) = (held.answer(), held.reasoning());
                        Step::Event { event, answer, reasoning, after }
                    }
                    None if cursor.generation == about && cursor.offset > 0 => Step::Behind,
                    None => Step::Event { event, answer: "", reasoning: None, after },
                };
            }
            _ => {}
        }
        Step::Event { event, answer: "", reasoning: None, after }
    }

    fn began_here(&self, generation: GenerationId) -> bool {
        self.events.iter().any(|event| {
            event.generation == Some(generation) && matches!(event.control, Control::Started { .. })
        })
    }
}

/// Returns the length that the answer is continued from, where the event claims this generation.
fn claimed_from(event: &Event, generation: GenerationId) -> Option<u64> {
    match event.control {
        Control::Claimed { from, .. } if event.generation == Some(generation) => Some(from),
        _ => None,
    }
}
