//! A stretch of what happened in a session, and how a reader walks through it.
//!
//! The same walk serves a live feed, a read of what is stored, and a slow reader: whoever has a
//! [`Cursor`] asks for the next [`Step`]. Nothing here waits or does I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use super::cursor::{Cursor, Tag};
use super::event::{Control, Event};
use super::model::GenerationId;

/// Events and the bytes of the answers between them.
#[derive(Clone, Debug)]
pub struct Window {
    /// The number and mark of the last event that lies before the window.
    base: (u64, Tag),
    events: VecDeque<Arc<Event>>,
    answers: Vec<Answer>,
    /// The generation that is running at the end of the window.
    running: Option<GenerationId>,
}

/// Bytes of one answer, from an offset on.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Whose.
    pub generation: GenerationId,
    /// Bytes of the answer before [`Answer::text`].
    pub base: u64,
    /// What is held.
    pub text: String,
}

impl Answer {
    fn end(&self) -> u64 {
        self.base + self.text.len() as u64
    }

    fn cut(&mut self, end: u64) {
        let keep = usize::try_from(end.saturating_sub(self.base)).unwrap_or(usize::MAX);
        if keep < self.text.len() {
            let keep = floor_char_boundary(&self.text, keep);
            self.text.truncate(keep);
        }
    }
}

/// What a reader gets next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step<'a> {
    /// A piece of a running or finished answer.
    Piece {
        /// Whose answer.
        generation: GenerationId,
        /// UTF-8 bytes before it.
        offset: u64,
        /// The text.
        text: &'a str,
        /// Where the reader stands after it.
        after: Cursor,
    },
    /// A control event. For the end of a generation, `answer` is its whole text.
    Event {
        /// What happened.
        event: &'a Arc<Event>,
        /// The whole answer, at the end of a generation; empty where it never had one.
        answer: &'a str,
        /// Where the reader stands after it.
        after: Cursor,
    },
    /// What this reader saw after `from` was taken back.
    Restart {
        /// Whose answer.
        generation: GenerationId,
        /// UTF-8 bytes that stay.
        from: u64,
        /// Where the reader stands after it.
        after: Cursor,
    },
    /// Something that this reader need not be told.
    Silent {
        /// Where the reader stands after it.
        after: Cursor,
    },
    /// Nothing more yet.
    UpToDate,
    /// The reader stands before the window: what it needs is to be read from Redis.
    Behind,
    /// The reader's place is none of this session's: it needs a snapshot.
    Unknown,
}

/// What became of a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The window has grown.
    Grown,
    /// The window had it already.
    Known,
    /// Something before it is missing: read what is stored.
    Hole,
}

impl Window {
    /// A window that ends after event `number` and holds nothing.
    pub fn empty(number: u64, tag: Tag, running: Option<GenerationId>) -> Self {
        Self { base: (number, tag), events: VecDeque::new(), answers: Vec::new(), running }
    }

    /// A window as read from Redis: `events` follow `base` without a gap.
    pub fn new(
        base: (u64, Tag),
        events: impl IntoIterator<Item = Event>,
        answers: Vec<Answer>,
        running: Option<GenerationId>,
    ) -> Self {
        let events = events.into_iter().map(Arc::new).collect();
        Self { base, events, answers, running }
    }

    /// The number and mark of the last event.
    pub fn tip(&self) -> (u64, Tag) {
        self.events.back().map_or(self.base, |event| (event.number, event.tag))
    }

    /// The generation that is running.
    pub fn running(&self) -> Option<GenerationId> {
        self.running
    }

    /// The running generation's bytes so far, 0 where none is held.
    pub fn running_length(&self) -> u64 {
        self.running.and_then(|id| self.answer(id)).map_or(0, Answer::end)
    }

    /// The cursor of a reader who wants nothing of what the window holds.
    pub fn end(&self) -> Cursor {
        let (events, tag) = self.tip();
        Cursor { events, tag, generation: self.running, offset: self.running_length() }
    }

    /// The cursor of a reader who wants all that the window holds.
    pub fn start(&self) -> Cursor {
        let (events, tag) = self.base;
        match self.running.and_then(|id| self.answer(id)) {
            // The running answer began before the window.
            Some(answer) if !self.began_here(answer.generation) => Cursor {
                events,
                tag,
                generation: Some(answer.generation),
                offset: answer.base,
            },
            _ => Cursor { events, tag, generation: None, offset: 0 },
        }
    }

    /// The events held, oldest first.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        self.events.iter()
    }

    /// The answer of a generation, where any of it is held.
    pub fn answer(&self, generation: GenerationId) -> Option<&Answer> {
        self.answers.iter().find(|answer| answer.generation == generation)
    }

    /// The next step of a reader at `cursor`; pieces of at most `max_piece` bytes (at least 4).
    pub fn next(&self, cursor: &Cursor, max_piece: usize) -> Step<'_> {
        self.walk(cursor, max_piece, true)
    }

    fn walk(&self, cursor: &Cursor, max_piece: usize, whole_answers: bool) -> Step<'_> {
        let (base, base_tag) = self.base;
        if cursor.events < base {
            return Step::Behind;
        }
        if cursor.events > self.tip().0 {
            // The reader read Redis itself, and was faster than the hints.
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
        match self.piece_before(event, cursor, max_piece) {
            Step::UpToDate => {}
            step => return step,
        }
        match event {
            Some(event) => self.step_over(event, cursor, whole_answers),
            None => Step::UpToDate,
        }
    }

    fn piece_before(
        &self,
        event: Option<&Arc<Event>>,
        cursor: &Cursor,
        max_piece: usize,
    ) -> Step<'_> {
        let Some(generation) = cursor.generation else { return Step::UpToDate };
        let held = self.answer(generation);
        let until = match event {
            Some(event) => match event.place {
                Some((running, length)) if running == generation => length,
                _ => return Step::UpToDate,
            },
            None if self.running == Some(generation) => held.map_or(0, Answer::end),
            None => return Step::UpToDate,
        };
        if cursor.offset >= until {
            return Step::UpToDate;
        }
        let Some(answer) = held else { return Step::Behind };
        if cursor.offset < answer.base {
            return Step::Behind;
        }
        // After a claim that took text back, less is held than the event's place says.
        let until = until.min(answer.end());
        let from = (cursor.offset - answer.base) as usize;
        let to = (until.saturating_sub(answer.base)) as usize;
        if from >= to {
            return Step::UpToDate;
        }
        if !answer.text.is_char_boundary(from) {
            return Step::Unknown;
        }
        let to = floor_char_boundary(&answer.text, to.min(from.saturating_add(max_piece)));
        Step::Piece {
            generation,
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
        match &event.control {
            Control::Started { .. } => {
                after.generation = about;
                after.offset = 0;
            }
            Control::Claimed { from } => {
                return match about {
                    Some(generation) if about == cursor.generation && cursor.offset > *from => {
                        after.offset = *from;
                        Step::Restart { generation, from: *from, after }
                    }
                    _ => Step::Silent { after },
                };
            }
            control if whole_answers && control.is_terminal() => {
                let answer = about.and_then(|id| self.answer(id));
                return match answer {
                    Some(answer) if answer.base > 0 => Step::Behind,
                    Some(answer) => Step::Event { event, answer: &answer.text, after },
                    None if cursor.generation == about && cursor.offset > 0 => Step::Behind,
                    None => Step::Event { event, answer: "", after },
                };
            }
            _ => {}
        }
        Step::Event { event, answer: "", after }
    }

    /// Takes in a control event that was announced.
    pub fn push_event(&mut self, event: Event) -> Applied {
        let (tip, _) = self.tip();
        if event.number <= tip {
            let known = (event.number, event.tag) == self.base
                || self.events.iter().any(|held| held.tag == event.tag);
            return if known { Applied::Known } else { Applied::Hole };
        }
        if event.number != tip + 1 {
            return Applied::Hole;
        }
        if let Some((running, length)) = event.place
            && self.running == Some(running)
            && self.running_length() < length
        {
            return Applied::Hole;
        }
        match (&event.control, event.generation) {
            (Control::Started { .. }, Some(generation)) => {
                // The answer before this one stays for readers who are just behind.
                let last = self.answers.len().saturating_sub(1);
                self.answers.drain(..last);
                self.answers.push(Answer { generation, base: 0, text: String::new() });
                self.running = Some(generation);
            }
            (Control::Claimed { from }, Some(generation)) => {
                if let Some(answer) = self.answers.iter_mut().find(|a| a.generation == generation) {
                    answer.cut(*from);
                }
            }
            (control, about) if control.is_terminal() && about == self.running => {
                self.running = None;
            }
            _ => {}
        }
        self.events.push_back(Arc::new(event));
        Applied::Grown
    }

    /// Takes in a piece of an answer that was announced.
    pub fn push_piece(&mut self, generation: GenerationId, offset: u64, text: &str) -> Applied {
        let known = self.running == Some(generation);
        let answer = self.answers.iter_mut().find(|answer| answer.generation == generation);
        let Some(answer) = answer.filter(|_| known) else { return Applied::Hole };
        let end = answer.end();
        if offset > end {
            return Applied::Hole;
        }
        match text.get((end - offset) as usize..) {
            None | Some("") => Applied::Known,
            Some(fresh) => {
                answer.text.push_str(fresh);
                Applied::Grown
            }
        }
    }

    /// Takes in what was read from Redis, as far as it goes on where this window ends. What was
    /// read before a hint was taken in adds nothing. [`Applied::Hole`]: it is of another history,
    /// and only a whole new window will do.
    pub fn absorb(&mut self, read: &Self) -> Applied {
        let mut applied = Applied::Known;
        let mut cursor = self.end();
        loop {
            let grown = match read.walk(&cursor, usize::MAX, false) {
                Step::Piece { generation, offset, text, after } => {
                    cursor = after;
                    self.push_piece(generation, offset, text)
                }
                Step::Event { after, .. }
                | Step::Restart { after, .. }
                | Step::Silent { after } => {
                    cursor = after;
                    match read.events.iter().find(|event| event.number == after.events) {
                        Some(event) => self.push_event(Event::clone(event)),
                        None => Applied::Hole,
                    }
                }
                Step::UpToDate => return applied,
                Step::Behind | Step::Unknown => return Applied::Hole,
            };
            match grown {
                Applied::Hole => return Applied::Hole,
                Applied::Grown => applied = Applied::Grown,
                Applied::Known => {}
            }
        }
    }

    /// Forgets what no reader at the end needs, down to at most `max_events` events.
    pub fn trim(&mut self, max_events: usize) {
        while self.events.len() > max_events {
            if let Some(event) = self.events.pop_front() {
                self.base = (event.number, event.tag);
            }
        }
        if max_events == 0 {
            self.answers.retain(|answer| self.running == Some(answer.generation));
            self.answers.shrink_to_fit();
            self.events.shrink_to_fit();
        }
    }

    fn began_here(&self, generation: GenerationId) -> bool {
        self.events.iter().any(|event| {
            event.generation == Some(generation) && matches!(event.control, Control::Started { .. })
        })
    }
}

/// The last place at or before `at` where a character of `text` begins.
pub fn floor_char_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
