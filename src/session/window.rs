//! A stretch of what happened in a session, and how a reader walks through it.
//!
//! The same walk serves a live feed, a read of what is stored, and a slow reader: whoever has a
//! [`Cursor`] asks for the next [`Step`]. Nothing here waits or does I/O.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use super::cursor::{Cursor, Tag};
use super::event::{Control, Event};
use super::model::GenerationId;
use super::reasoning::Shape;

/// Events and the bytes of the answers between them.
#[derive(Clone, Debug)]
pub struct Window {
    /// The number and mark of the last event that lies before the window.
    base: (u64, Tag),
    events: VecDeque<Arc<Event>>,
    answers: Vec<AnswerText>,
    /// The generation that is running at the end of the window.
    running: Option<GenerationId>,
}

/// Bytes of one answer and the thoughts before it, from an offset on.
#[derive(Clone, Debug)]
pub struct AnswerText {
    /// Whose.
    pub generation: GenerationId,
    /// Bytes before [`AnswerText::text`].
    pub base: u64,
    /// What is held.
    pub text: String,
    /// Known only where the beginning is held.
    shape: Shape,
}

impl AnswerText {
    /// Bytes of an answer from offset `base` on.
    pub fn new(generation: GenerationId, base: u64, text: String) -> Self {
        let shape = Shape::of(&text);
        Self { generation, base, text, shape }
    }

    /// The answer without the thoughts, where the beginning is held.
    pub fn answer(&self) -> &str {
        self.shape.answer(&self.text)
    }

    /// The thoughts before it, where there are any and the beginning is held.
    pub fn thoughts(&self) -> Option<&str> {
        self.shape.thoughts(&self.text)
    }

    fn end(&self) -> u64 {
        self.base + self.text.len() as u64
    }

    fn cut(&mut self, end: u64) {
        let keep = usize::try_from(end.saturating_sub(self.base)).unwrap_or(usize::MAX);
        if keep < self.text.len() {
            let keep = floor_char_boundary(&self.text, keep);
            self.text.truncate(keep);
            self.shape = Shape::of(&self.text);
        }
    }

    fn grow(&mut self, fresh: &str) {
        let known = self.text.len();
        self.text.push_str(fresh);
        self.shape = self.shape.grown(&self.text, known);
    }
}

/// What a reader gets next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step<'a> {
    /// A piece of a running or finished answer, or of the thoughts before it.
    Piece {
        /// Whose answer.
        generation: GenerationId,
        /// Whether it is of the thoughts.
        thought: bool,
        /// UTF-8 bytes of the answer, or of the thoughts, before it.
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
        /// The whole reasoning before that answer; none where there is none.
        reasoning: Option<&'a str>,
        /// Where the reader stands after it.
        after: Cursor,
    },
    /// What this reader saw after `from` was taken back, and the thoughts too where that is 0.
    Restart {
        /// Whose answer.
        generation: GenerationId,
        /// UTF-8 bytes of the answer that stay.
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
        answers: Vec<AnswerText>,
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
        self.running.and_then(|id| self.answer(id)).map_or(0, AnswerText::end)
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
            Some(answer) if !self.began_here(answer.generation) => {
                Cursor { events, tag, generation: Some(answer.generation), offset: answer.base }
            }
            _ => Cursor { events, tag, generation: None, offset: 0 },
        }
    }

    /// The events held, oldest first.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        self.events.iter()
    }

    /// The answer of a generation, where any of it is held.
    pub fn answer(&self, generation: GenerationId) -> Option<&AnswerText> {
        self.answers.iter().find(|answer| answer.generation == generation)
    }

    /// The next step of a reader at `cursor`; pieces of at most `max_piece` bytes (at least 4).
    pub fn next(&self, cursor: &Cursor, max_piece: usize) -> Step<'_> {
        match self.walk(cursor, max_piece, true) {
            Step::Piece { generation, text, after, .. } => {
                self.part_of_piece(cursor, generation, text.len(), after)
            }
            Step::Restart { generation, from, after } => self.restart(generation, from, after),
            step => step,
        }
    }

    /// The first part of a piece that is all thoughts or all answer.
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
                thought: part.thought,
                offset: part.offset as u64,
                text: part.text,
                after: Cursor { offset: part.end as u64, ..after },
            },
            None => Step::Silent { after },
        }
    }

    /// A restart as bytes of the answer. Where the thoughts are concerned, all begins anew.
    fn restart(&self, generation: GenerationId, from: u64, after: Cursor) -> Step<'_> {
        // Beyond what a later claim keeps, the text held is not the one that was seen.
        let later = self.events.iter().filter(|event| event.number > after.events);
        let kept = later.filter_map(|event| claimed_from(event, generation)).fold(from, u64::min);
        let begins_anew =
            Step::Restart { generation, from: 0, after: Cursor { offset: 0, ..after } };
        let held = match self.answer(generation) {
            Some(answer) if answer.base == 0 => answer,
            _ if kept == 0 => return begins_anew,
            // Whether what stays is reasoning or answer is known only where its beginning is held.
            _ => return Step::Behind,
        };
        // Redis may have less than what stays, until its writer has written that again: what it has
        // not shown yet is published anew.
        let kept = kept.min(held.end());
        let answer_from = match held.shape {
            Shape::Plain => 0,
            Shape::Answering(from) if from as u64 <= kept => from as u64,
            Shape::Thinking | Shape::Answering(_) => return begins_anew,
        };
        let from = kept - answer_from;
        let offset = if from == 0 { 0 } else { kept };
        Step::Restart { generation, from, after: Cursor { offset, ..after } }
    }

    /// Steps as they are stored: offsets count thoughts and answer together.
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
            Some(event) => match event.place {
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
        // What a later claim takes back is not given first, and may not even be there any more.
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
        let to = floor_char_boundary(&answer.text, to.min(from.saturating_add(max_piece)));
        Step::Piece {
            generation,
            thought: false,
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
            // A failover took text that had been told, and the answer ended without it; or a clear
            // took it afterwards.
            let after = Cursor { offset: length, ..*cursor };
            return Step::Restart { generation, from: length, after };
        }
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
                    Some(held) => {
                        let (answer, reasoning) = (held.answer(), held.thoughts());
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

    /// Takes in a control event that was announced, and follows on the event of tag `previous`.
    pub fn push_event(&mut self, previous: Tag, event: Event) -> Applied {
        let (tip, tip_tag) = self.tip();
        if event.number <= tip {
            let known = (event.number, event.tag) == self.base
                || self.events.iter().any(|held| held.tag == event.tag);
            return if known { Applied::Known } else { Applied::Hole };
        }
        // With another event before it, it is of another history.
        if event.number != tip + 1 || previous != tip_tag {
            return Applied::Hole;
        }
        if let Some((running, length)) = event.place
            && self.running == Some(running)
            && self.running_length() < length
        {
            return Applied::Hole;
        }
        self.take(event);
        Applied::Grown
    }

    fn take(&mut self, event: Event) {
        match (&event.control, event.generation) {
            (Control::Started { .. }, Some(generation)) => {
                // The answer before this one stays for readers who are just behind.
                let last = self.answers.len().saturating_sub(1);
                self.answers.drain(..last);
                self.answers.push(AnswerText::new(generation, 0, String::new()));
                self.running = Some(generation);
            }
            (Control::Claimed { from }, Some(generation)) => self.cut(generation, *from),
            (control, about) if control.is_terminal() && about == self.running => {
                self.running = None;
                if let Some((generation, length)) = event.final_length() {
                    self.cut(generation, length);
                }
            }
            _ => {}
        }
        self.events.push_back(Arc::new(event));
    }

    fn cut(&mut self, generation: GenerationId, length: u64) {
        if let Some(answer) = self.answers.iter_mut().find(|a| a.generation == generation) {
            answer.cut(length);
        }
    }

    /// Takes in a piece of an answer that was announced, written after the event of this number
    /// and tag.
    pub fn push_piece(
        &mut self,
        generation: GenerationId,
        offset: u64,
        after: (u64, Tag),
        text: &str,
    ) -> Applied {
        let tip = self.tip();
        match after.0.cmp(&tip.0) {
            // It came later, and what was read with it holds this piece.
            Ordering::Less => Applied::Known,
            Ordering::Equal if after == tip => self.grow(generation, offset, text),
            // The event that is missing may have taken text back, and one of this number and another
            // tag is of another history.
            Ordering::Equal | Ordering::Greater => Applied::Hole,
        }
    }

    fn grow(&mut self, generation: GenerationId, offset: u64, text: &str) -> Applied {
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
                answer.grow(fresh);
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
                Step::Piece { generation, offset, text, after, .. } => {
                    cursor = after;
                    self.grow(generation, offset, text)
                }
                Step::Restart { generation, from, after } if after.events == cursor.events => {
                    cursor = after;
                    self.cut(generation, from);
                    Applied::Grown
                }
                Step::Event { after, .. }
                | Step::Restart { after, .. }
                | Step::Silent { after } => {
                    cursor = after;
                    match read.events.iter().find(|event| event.number == after.events) {
                        // Text at its place that Redis no longer has was taken back since.
                        Some(event) => self.take(Event::clone(event)),
                        None => return Applied::Hole,
                    }
                    Applied::Grown
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

fn claimed_from(event: &Event, generation: GenerationId) -> Option<u64> {
    match event.control {
        Control::Claimed { from } if event.generation == Some(generation) => Some(from),
        _ => None,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::session::model::Failure;

    /// What may happen in a session, as the store would write it.
    #[derive(Clone, Debug)]
    enum Happens {
        Begin,
        /// Of the thoughts, while there is nothing of the answer.
        Thought(String),
        Piece(String),
        /// Another writer goes on from this share of the text.
        Claim(f64),
        Message,
        End,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            2 => Just(Happens::Begin),
            4 => "[a-zé三🏳️‍🌈 ]{1,12}".prop_map(Happens::Thought),
            8 => "[a-zé三🏳️‍🌈 ]{1,12}".prop_map(Happens::Piece),
            1 => (0.0..=1.0f64).prop_map(Happens::Claim),
            1 => Just(Happens::Message),
            2 => Just(Happens::End),
        ]
    }

    /// The session itself: everything that ever happened, as Redis would hold it.
    struct Session {
        log: Window,
        ended: Vec<AnswerText>,
    }

    impl Session {
        fn new() -> Self {
            Self { log: Window::empty(0, Tag::START, None), ended: Vec::new() }
        }

        fn event(&self, generation: Option<GenerationId>, control: Control) -> Event {
            Event {
                number: self.log.tip().0 + 1,
                tag: Tag::random(),
                place: self.log.running().map(|id| (id, self.log.running_length())),
                generation,
                control,
            }
        }

        /// The hint that would announce it.
        fn apply(&mut self, what: &Happens) -> Option<Announced> {
            let running = self.log.running();
            let event = match (what, running) {
                (Happens::Begin, None) => {
                    let id = GenerationId::random();
                    self.ended.extend(self.log.answers.clone());
                    let started = Control::Started { model: "m".to_owned() };
                    self.event(Some(id), started)
                }
                (Happens::Thought(text) | Happens::Piece(text), Some(id)) => {
                    let held = self.log.answer(id).expect("held");
                    let mark = match what {
                        Happens::Thought(_) => held.shape.before_reasoning(&held.text)?,
                        _ => held.shape.before_answer(&held.text, text),
                    };
                    let text = format!("{mark}{text}");
                    let offset = self.log.running_length();
                    let after = self.log.tip();
                    assert_eq!(self.log.push_piece(id, offset, after, &text), Applied::Grown);
                    return Some(Announced::Piece(id, offset, after, text));
                }
                (Happens::Claim(share), Some(id)) => {
                    let text = &self.log.answer(id).expect("held").text;
                    let at = (text.len() as f64 * share) as usize;
                    let from = floor_char_boundary(text, at) as u64;
                    let mut event = self.event(Some(id), Control::Claimed { from });
                    event.place = Some((id, from));
                    event
                }
                (Happens::Message, _) => {
                    let accepted = Control::Accepted {
                        message: "q".to_owned(),
                        timestamp: String::new(),
                        message_id: None,
                    };
                    self.event(None, accepted)
                }
                (Happens::End, Some(id)) => {
                    let failed = Failure {
                        code: "c".to_owned(),
                        message: String::new(),
                        retryable: false,
                        retry_after: None,
                    };
                    self.event(Some(id), Control::Failed(failed))
                }
                _ => return None,
            };
            let previous = self.log.tip().1;
            assert_eq!(self.log.push_event(previous, event.clone()), Applied::Grown);
            Some(Announced::Event(previous, event))
        }

        /// What a read from Redis gives: nothing is trimmed there.
        fn read(&self) -> Window {
            let mut all = self.log.clone();
            for answer in &self.ended {
                if all.answer(answer.generation).is_none() {
                    all.answers.push(answer.clone());
                }
            }
            all
        }
    }

    enum Announced {
        Event(Tag, Event),
        Piece(GenerationId, u64, (u64, Tag), String),
    }

    /// A client: it concatenates, and takes back what it is told to.
    struct Client {
        cursor: Cursor,
        thoughts: String,
        text: String,
        events: Vec<u64>,
        answers: Vec<(GenerationId, [String; 2])>,
    }

    impl Client {
        fn new() -> Self {
            Self {
                cursor: Cursor::START,
                thoughts: String::new(),
                text: String::new(),
                events: Vec::new(),
                answers: Vec::new(),
            }
        }

        fn take_back(&mut self, from: usize) {
            self.text.truncate(from);
            if from == 0 {
                self.thoughts.clear();
            }
        }

        /// `false`: Redis is to be read.
        fn follow(&mut self, window: &Window, max_piece: usize) -> bool {
            loop {
                let after = match window.next(&self.cursor, max_piece) {
                    Step::Piece { thought, offset, text, after, .. } => {
                        let seen = if thought { &mut self.thoughts } else { &mut self.text };
                        assert_eq!(offset, seen.len() as u64, "a hole or a double");
                        assert!(!text.is_empty(), "a piece of nothing");
                        seen.push_str(text);
                        after
                    }
                    Step::Event { event, answer, after, .. } => {
                        self.events.push(event.number);
                        if matches!(event.control, Control::Started { .. }) {
                            self.take_back(0);
                        }
                        if event.control.is_terminal() {
                            assert_eq!(self.text, answer, "not the answer that was given");
                            let seen = [self.thoughts.clone(), self.text.clone()];
                            self.answers.extend(event.generation.map(|id| (id, seen)));
                        }
                        after
                    }
                    Step::Restart { from, after, .. } => {
                        self.events.push(after.events);
                        let held = self.text.len() as u64;
                        assert!(from <= held, "takes back what was never told");
                        self.take_back(from as usize);
                        after
                    }
                    Step::Silent { after } => {
                        if after.events > self.cursor.events {
                            self.events.push(after.events);
                        }
                        after
                    }
                    Step::UpToDate => return true,
                    Step::Behind => return false,
                    Step::Unknown => panic!("a true cursor is not known"),
                };
                self.cursor = after;
            }
        }
    }

    #[test]
    fn a_reader_that_missed_two_claims_takes_back_what_the_later_leaves() {
        let (mut session, mut client) = (Session::new(), Client::new());
        let piece = |text: &str| Happens::Piece(text.to_owned());
        let thought = |text: &str| Happens::Thought(text.to_owned());
        for what in [Happens::Begin, thought("a long thought"), piece("an answer")] {
            session.apply(&what);
        }
        assert!(client.follow(&session.read(), 1000));
        // First in the answer, then in the thoughts; and it goes another way.
        for what in [Happens::Claim(0.9), Happens::Claim(0.1), piece("another answer")] {
            session.apply(&what);
        }
        let step = session.log.next(&client.cursor, 1000);
        assert!(matches!(step, Step::Restart { from: 0, after: Cursor { offset: 0, .. }, .. }));
        assert!(client.follow(&session.read(), 1000));
        assert_eq!((client.thoughts.as_str(), client.text.as_str()), ("a", "another answer"));
    }

    #[test]
    fn a_reader_that_missed_a_claim_within_reasoning_that_is_no_longer_held_reads_redis() {
        let (mut session, mut client) = (Session::new(), Client::new());
        for what in [Happens::Begin, Happens::Thought("a long thought".to_owned())] {
            session.apply(&what);
        }
        assert!(client.follow(&session.read(), 1000));
        for what in [Happens::Claim(0.5), Happens::End, Happens::Begin, Happens::End] {
            session.apply(&what);
        }
        session.apply(&Happens::Begin);
        assert_eq!(session.log.next(&client.cursor, 1000), Step::Behind);
        assert!(client.follow(&session.read(), 1000));
        assert_eq!(client.answers[0].1, ["a long", ""].map(str::to_owned));
    }

    #[test]
    fn a_reader_beyond_what_redis_holds_of_a_claim_goes_back_to_what_is_there() {
        let (mut session, mut client) = (Session::new(), Client::new());
        for what in [Happens::Begin, Happens::Thought("two".to_owned())] {
            session.apply(&what);
        }
        assert!(client.follow(&session.read(), 1000));
        assert_eq!(client.thoughts, "two");
        // A failover took the text; its writer takes back all but the first byte of it, before it
        // has written that byte again.
        let running = session.log.running().expect("a running generation");
        session.log.cut(running, 0);
        let mut claimed = session.event(Some(running), Control::Claimed { from: 1 });
        claimed.place = Some((running, 0));
        let previous = session.log.tip().1;
        assert_eq!(session.log.push_event(previous, claimed), Applied::Grown);
        assert!(client.follow(&session.read(), 1000));
        assert_eq!(client.thoughts, "");
        for what in [Happens::Thought("three".to_owned()), Happens::Piece("answer".to_owned())] {
            session.apply(&what);
        }
        assert!(client.follow(&session.read(), 1000));
        assert_eq!((client.thoughts.as_str(), client.text.as_str()), ("three", "answer"));
    }

    #[test]
    fn a_hint_that_follows_on_another_event_than_the_last_one_held_is_a_hole() {
        let mut session = Session::new();
        session.apply(&Happens::Begin);
        let mut feed = session.read();
        let running = feed.running().expect("a running generation");
        let (number, tag) = feed.tip();
        let other = Tag(tag.0 ^ 1);
        let message = session.apply(&Happens::Message);
        let Some(Announced::Event(previous, event)) = message else { panic!("no event") };
        // A failover took the last event held, and another has its number.
        assert_eq!(feed.push_event(other, event.clone()), Applied::Hole);
        assert_eq!(feed.push_piece(running, 0, (number, other), "text"), Applied::Hole);
        assert_eq!(feed.push_piece(running, 0, (number, tag), "text"), Applied::Grown);
        assert_eq!(feed.push_event(previous, event), Applied::Grown);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Readers of any pace, hints that are lost, windows that are trimmed: each client gets
        /// every event once, in order, and each answer with its thoughts as they are stored.
        #[test]
        fn every_reader_gets_every_event_once_and_thoughts_and_answer_as_they_are_stored(
            history in proptest::collection::vec((happens(), any::<bool>(), any::<bool>()), 1..80),
            max_piece in 4usize..32,
            kept in 1usize..6,
        ) {
            let mut session = Session::new();
            let mut feed = Window::empty(0, Tag::START, None);
            let mut client = Client::new();
            for (what, hint_is_lost, client_reads) in &history {
                let announced = session.apply(what);
                let heard = match announced {
                    Some(Announced::Event(previous, event)) if !hint_is_lost => {
                        feed.push_event(previous, event)
                    }
                    Some(Announced::Piece(id, offset, after, text)) if !hint_is_lost => {
                        feed.push_piece(id, offset, after, &text)
                    }
                    _ => Applied::Known,
                };
                if heard == Applied::Hole {
                    prop_assert_ne!(feed.absorb(&session.read()), Applied::Hole);
                }
                feed.trim(kept);
                if *client_reads && !client.follow(&feed, max_piece) {
                    prop_assert!(client.follow(&session.read(), max_piece));
                }
            }
            prop_assert_ne!(feed.absorb(&session.read()), Applied::Hole);
            if !client.follow(&feed, max_piece) {
                prop_assert!(client.follow(&session.read(), max_piece));
            }
            let all: Vec<u64> = (1..=session.log.tip().0).collect();
            prop_assert_eq!(client.events, all);
            let all = session.read();
            let stored = |generation| {
                let held = all.answer(generation).expect("held");
                let thoughts = held.shape.thoughts(&held.text).unwrap_or_default();
                [thoughts.to_owned(), held.answer().to_owned()]
            };
            for (generation, seen) in client.answers {
                prop_assert_eq!(seen, stored(generation));
            }
            if let Some(running) = session.log.running() {
                prop_assert_eq!([client.thoughts, client.text], stored(running));
            }
        }
    }
}
