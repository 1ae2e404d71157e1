//! What a writer knows of its answer and of what Redis has of it, and what it is to do next.
//!
//! Nothing here waits or does I/O, so that every order of calls, lost replies and failovers can be
//! tried.

use std::time::Duration;

use tokio::time::Instant;

use crate::session::Tag;
use crate::session::reasoning::{Shape, unmarked};
use crate::session::store::{Begin, Restored, Written};
use crate::session::window::floor_char_boundary;

/// Bytes of one write, at most.
const WRITE_BYTES: usize = 64 << 10;
/// Bytes of an answer as JSON, at most: with the rest of its event it stays below 512 KiB.
const ANSWER_JSON_BYTES: usize = 500 << 10;
/// A turn that had to be accepted again lets earlier ones of its session come back before it.
const COME_BACK: Duration = Duration::from_secs(1);
/// A waiting turn asks for its place at least this often, should a hint be lost.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long after its last acknowledged write a refused writer may ask for its turn: less than its
/// end would be remembered.
const RESTORE_WITHIN: Duration = Duration::from_mins(1);

/// Somebody else writes this answer now, or it has ended.
#[derive(Debug)]
pub(super) struct Fenced;

/// How long a writer waits before its next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// The next call may be made at once.
    None,
    /// The next call is made after this time, or as soon as the turn's place may have come free.
    UntilFree(Duration),
    /// The next call is made after this time, and not before.
    Whole(Duration),
}

/// One answer, and how far Redis has it.
pub(super) struct WriterState {
    /// With the thoughts before it.
    text: String,
    shape: Shape,
    json_bytes: usize,
    /// Bytes that Redis has.
    stored: usize,
    /// Before it the text is of the writers before this one.
    own_from: usize,
    /// Whether this writer ever took text back.
    diverged: bool,
    phase: WriterPhase,
    /// TicketReply again as it was told first.
    start: Tag,
    /// The last event of this writer that shaped the answer.
    revision: Tag,
    /// What lies beyond is to be taken back, by an event of this tag.
    cut: Option<(usize, Tag)>,
    acknowledged: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WriterPhase {
    /// Redis says that the turn is not this writer's.
    Refused,
    /// The turn was accepted again, and waits for its place.
    Waiting,
    /// The answer is to be begun.
    Starting,
    /// Text can be written.
    Writing,
}

/// Text to be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) length: usize,
    /// The revision that is there.
    pub(super) revision: Tag,
    /// The revision that it leaves.
    pub(super) tag: Tag,
    /// Whether what lies beyond may have been told and be another text now.
    pub(super) told: bool,
}

/// What is to be asked of Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriterCall {
    Restore,
    Begin,
    /// Leaves this tag as the revision.
    Start(Tag),
    /// Takes back what lies beyond this length.
    Cut(Cut),
    /// Writes the text between these places under this revision; between equal ones it only looks.
    Append(usize, usize, Tag),
}

/// What Redis replied.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    Restored(Restored),
    Begin(Begin),
    Written(Written),
}

impl WriterState {
    /// Of a turn that waits for its place.
    pub(super) fn waiting() -> Self {
        Self { phase: WriterPhase::Waiting, ..Self::after(String::new()) }
    }

    /// Goes on after what the writers before this one left.
    pub(super) fn after(stored: String) -> Self {
        let start = Tag::random();
        Self {
            shape: Shape::of(&stored),
            json_bytes: stored.chars().map(json_bytes).sum(),
            stored: stored.len(),
            own_from: stored.len(),
            diverged: false,
            text: stored,
            phase: WriterPhase::Starting,
            start,
            revision: start,
            cut: None,
            acknowledged: Instant::now(),
        }
    }

    /// The answer so far and the thoughts before it, written or not.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether the turn has its place.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, WriterPhase::Starting | WriterPhase::Writing)
    }

    /// Whether the answer has begun, so that nothing but text is to be told.
    pub(super) fn has_begun(&self) -> bool {
        self.phase == WriterPhase::Writing
    }

    /// When Redis last said that all is well.
    pub(super) fn acknowledged(&self) -> Instant {
        self.acknowledged
    }

    /// The revision under which the answer ends.
    pub(super) fn revision(&self) -> Tag {
        self.revision
    }

    /// Adds to the answer. `false`: it is as long as one may be, and what did not fit is left out.
    pub(super) fn push(&mut self, answer: &str) -> bool {
        let revision = self.shape.before_answer(&self.text, answer);
        answer.is_empty() || (self.add(revision) && self.add(answer))
    }

    /// Adds to the thoughts, unless the answer has begun. `false` as [`WriterState::push`].
    pub(super) fn push_reasoning(&mut self, thoughts: &str) -> bool {
        match self.shape.before_reasoning(&self.text) {
            Some(revision) if !thoughts.is_empty() => {
                self.add(revision) && unmarked(thoughts).all(|part| self.add(part))
            }
            _ => true,
        }
    }

    fn add(&mut self, text: &str) -> bool {
        let known = self.text.len();
        let fitting = self.fitting(text);
        self.text.push_str(fitting);
        self.shape = self.shape.grown(&self.text, known);
        fitting.len() == text.len()
    }

    fn fitting<'a>(&mut self, text: &'a str) -> &'a str {
        for (at, character) in text.char_indices() {
            let bytes = json_bytes(character);
            if self.json_bytes + bytes > ANSWER_JSON_BYTES {
                return &text[..at];
            }
            self.json_bytes += bytes;
        }
        text
    }

    /// Takes back what lies beyond `length`: from there the answer will be another one.
    pub(super) fn take_back(&mut self, length: usize) {
        let length = floor_char_boundary(&self.text, length);
        self.text.truncate(length);
        self.shape = Shape::of(&self.text);
        self.json_bytes = self.text.chars().map(json_bytes).sum();
        self.own_from = self.own_from.min(length);
        self.diverged = true;
        self.stored = self.stored.min(length);
        if self.cut.is_none_or(|(cut, _)| length < cut) {
            self.cut = Some((length, Tag::random()));
        }
    }

    /// What is to be done next; none where Redis has everything.
    pub(super) fn next_call(&self) -> Option<WriterCall> {
        match self.phase {
            WriterPhase::Refused => Some(WriterCall::Restore),
            WriterPhase::Waiting => Some(WriterCall::Begin),
            WriterPhase::Starting => Some(WriterCall::Start(self.start)),
            WriterPhase::Writing => match self.cut {
                Some((length, tag)) => {
                    let (revision, told) = (self.revision, self.diverged);
                    Some(WriterCall::Cut(Cut { length, revision, tag, told }))
                }
                None if self.stored < self.text.len() => {
                    let longest = self.text.len().min(self.stored + WRITE_BYTES);
                    let end = floor_char_boundary(&self.text, longest);
                    Some(WriterCall::Append(self.stored, end, self.revision))
                }
                None => None,
            },
        }
    }

    /// Looks whether all is well, where there is nothing else to do.
    pub(super) fn look(&self) -> WriterCall {
        WriterCall::Append(self.stored, self.stored, self.revision)
    }

    /// Learns what Redis replied to a call that was made at `made`: the reply may have waited for a
    /// replica that was paused. Returns how long the writer waits before its next call.
    pub(super) fn take_in(
        &mut self,
        call: WriterCall,
        made: Instant,
        reply: Reply,
    ) -> Result<Pause, Fenced> {
        match reply {
            Reply::Written(Written::Ok) => {
                self.acknowledged = made;
                match call {
                    WriterCall::Start(_) => {
                        self.phase = WriterPhase::Writing;
                        self.revision = self.start;
                    }
                    WriterCall::Cut(Cut { length, tag, .. }) => {
                        self.revision = tag;
                        self.stored = length;
                        // Less may be to be kept by now.
                        self.cut = self.cut.filter(|(cut, _)| *cut < length);
                    }
                    WriterCall::Append(_, end, _) => self.stored = end,
                    WriterCall::Restore | WriterCall::Begin => {}
                }
            }
            Reply::Written(Written::Hole(stored)) => {
                let stored = usize::try_from(stored).unwrap_or(usize::MAX);
                self.stored = floor_char_boundary(&self.text, stored);
            }
            Reply::Written(Written::Outdated) => self.write_again(),
            Reply::Restored(Restored::Claimed) => {
                // What the writers before this one left may be another text by now, too: one of them
                // may have taken text back, and the failover took that with the claim.
                self.own_from = 0;
                self.write_again();
            }
            Reply::Written(Written::Fenced) | Reply::Begin(Begin::Gone) => {
                if self.acknowledged.elapsed() > RESTORE_WITHIN {
                    return Err(Fenced);
                }
                self.phase = WriterPhase::Refused;
            }
            Reply::Restored(Restored::Gone) => return Err(Fenced),
            Reply::Restored(Restored::Kept) => self.phase = WriterPhase::Writing,
            Reply::Restored(Restored::Waiting) => {
                self.phase = WriterPhase::Waiting;
                return Ok(Pause::Whole(COME_BACK));
            }
            Reply::Begin(Begin::Began) => {
                self.acknowledged = made;
                self.phase = WriterPhase::Starting;
                self.stored = 0;
                // The turn may have been accepted again, where readers hold what was taken back.
                self.cut = self.diverged.then(|| (0, Tag::random()));
            }
            Reply::Begin(Begin::Waiting) => {
                self.acknowledged = made;
                return Ok(Pause::UntilFree(ASK_AGAIN));
            }
        }
        Ok(Pause::None)
    }

    /// Beyond what the writers before it left, Redis may have what is not this writer's text.
    fn write_again(&mut self) {
        tracing::warn!(
            from = self.own_from,
            "a failover of redis lost a part of an answer; writing it again"
        );
        self.phase = WriterPhase::Starting;
        self.stored = self.own_from;
        self.cut = Some((self.own_from, Tag::random()));
    }
}

fn json_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        control if control < ' ' => 6,
        other => other.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_whose_claim_was_lost_writes_the_text_before_it_again_too() {
        // The writer before it had taken text back and written another: both went with the claim.
        let mut state = WriterState::after("another beginning".to_owned());
        let now = Instant::now();
        let mut take = |call, reply| {
            state.take_in(call, now, reply).expect("the turn is this writer's");
            state.next_call().expect("another call")
        };
        let start = take(WriterCall::Restore, Reply::Restored(Restored::Claimed));
        assert!(matches!(start, WriterCall::Start(_)));
        let cut = take(start, Reply::Written(Written::Ok));
        let WriterCall::Cut(Cut { length: 0, tag, .. }) = cut else { panic!("not {cut:?}") };
        let append = take(cut, Reply::Written(Written::Ok));
        assert_eq!(append, WriterCall::Append(0, "another beginning".len(), tag));
    }

    #[test]
    fn thoughts_and_answer_together_are_as_long_as_one_answer_may_be() {
        let half = "\n".repeat(ANSWER_JSON_BYTES / 4 - 6);
        let mut state = WriterState::after(String::new());
        assert!(state.push_reasoning(&half) && state.push(&half));
        assert!(!state.push(&"x".repeat(13)), "two marks and twelve characters fit");
        assert_eq!(state.json_bytes, ANSWER_JSON_BYTES);
        assert!(state.text().ends_with("\nxxxxxxxxxxxx"));
        // What is taken back makes room again.
        state.take_back(half.len());
        assert!(state.push_reasoning("more") && state.push("answer"));
        assert!(state.push_reasoning("late"), "what comes after the answer has begun is left out");
        assert!(state.text().ends_with("\nmore\u{3}answer"));
    }
}
