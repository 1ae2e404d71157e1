//! The growth of a window: from the hints of the session's channel, and from reads of Redis.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{AnswerText, Step, Window};
use crate::session::cursor::Tag;
use crate::session::event::{Control, Event};
use crate::session::model::GenerationId;

/// The result of adding a hint or a read to a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The window has grown.
    Grown,
    /// The window had the content already.
    Known,
    /// Content before it is missing, or it is of another history: the feed reads Redis.
    Hole,
}

impl Window {
    /// Adds a published control event, which follows the event with the tag `previous`.
    pub fn push_event(&mut self, previous: Tag, event: Event) -> Applied {
        let (tip, tip_tag) = self.tip();
        if event.number <= tip {
            let known = (event.number, event.tag) == self.base
                || self.events.iter().any(|held| held.tag == event.tag);
            return if known { Applied::Known } else { Applied::Hole };
        }
        // An event that follows another event than the last one held is of another history.
        if event.number != tip + 1 || previous != tip_tag {
            return Applied::Hole;
        }
        if let Some((running, length)) = event.answer_position
            && self.running == Some(running)
            && self.running_length() < length
        {
            return Applied::Hole;
        }
        self.apply(event);
        Applied::Grown
    }

    fn apply(&mut self, event: Event) {
        match (&event.control, event.generation) {
            (Control::Started { .. }, Some(generation)) => {
                // The previous answer stays for readers that are just behind.
                let last = self.answers.len().saturating_sub(1);
                self.answers.drain(..last);
                self.answers.push(AnswerText::new(generation, 0, String::new()));
                self.running = Some(generation);
            }
            (Control::Claimed { from, .. }, Some(generation)) => self.cut(generation, *from),
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

    pub(super) fn cut(&mut self, generation: GenerationId, length: u64) {
        if let Some(answer) = self.answers.iter_mut().find(|a| a.generation == generation) {
            answer.cut(length);
        }
    }

    /// Adds a published piece of an answer, which was written after the event with the number and
    /// tag `after`.
    pub fn push_piece(
        &mut self,
        generation: GenerationId,
        offset: u64,
        after: (u64, Tag),
        text: &str,
    ) -> Applied {
        let tip = self.tip();
        match after.0.cmp(&tip.0) {
            // A later event is held already, and the read that returned it holds this piece, too.
            Ordering::Less => Applied::Known,
            Ordering::Equal if after == tip => self.grow(generation, offset, text),
            // The missing event may have taken text back. An event with this number and another tag
            // is of another history.
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

    /// Adds a read of Redis, as far as it continues at the end of this window. A read that is older
    /// than the last hint adds nothing. After [`Applied::Hole`] only a new window is right: the
    /// read is of another history.
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
                        // Text before the event that Redis no longer has was taken back since.
                        Some(event) => self.apply(Event::clone(event)),
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

    /// Drops the oldest events beyond `max_events`; with 0 also every answer that no reader at the
    /// end needs.
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
}
