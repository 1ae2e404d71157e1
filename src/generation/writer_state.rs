//! The state of a writer: its answer, how much of it Redis has, and the next call.
//!
//! Nothing here waits or does I/O, so that a test can try every order of calls, lost replies and
//! failovers.

use std::time::Duration;

use tokio::time::Instant;

use crate::session::Tag;
use crate::session::reasoning::{Shape, without_end_markers};
use crate::session::store::{Begin, Restored, Written};

/// Bytes of one write, at most.
const WRITE_BYTES: usize = 64 << 10;
/// Bytes of an answer as JSON, at most: with the rest of its event it stays below 512 KiB.
const ANSWER_JSON_BYTES: usize = 500 << 10;
/// The pause of a turn that was accepted again, so that earlier turns of its session are restored
/// before it. It is no retry, and needs no jitter: each writer is refused, and restores its turn, at a
/// time of its own, and a shorter pause would leave the earlier turns less time.
const RESTORED_PAUSE: Duration = Duration::from_secs(1);
/// A waiting turn tries to begin at least this often, in case a hint is lost. The turns that wait were
/// accepted at different times, and a hint wakes those of one session only, eight at most: so the calls
/// are spread without jitter.
const BEGIN_AGAIN: Duration = Duration::from_secs(1);
/// How long after its last acknowledged write a refused writer may restore its turn: shorter than
/// Redis keeps what ended the turn.
const RESTORE_WITHIN: Duration = Duration::from_mins(1);

/// The writer has lost its turn: another writer has it, or the turn has ended.
#[derive(Debug)]
pub(super) struct Fenced;

/// How long a writer waits before its next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// The next call may be made at once.
    None,
    /// The next call is made after this time, or when [`super::writer::Writer::wake`] is called.
    UntilWoken(Duration),
    /// The next call is made after this time, and not before.
    Full(Duration),
}

/// One answer, and how much of it Redis has.
pub(super) struct WriterState {
    /// The answer with the reasoning before it.
    text: String,
    shape: Shape,
    json_bytes: usize,
    /// Bytes that Redis has.
    stored: usize,
    /// Bytes at the beginning of the text that earlier writers left.
    inherited: usize,
    /// Whether this writer ever rewound the answer, so that readers may hold other text.
    has_rewound: bool,
    /// How often the answer has started again, after it had text.
    restarts: u32,
    phase: WriterPhase,
    /// The tag of the event that starts the answer; a repeat of the call carries the same one.
    start: Tag,
    /// The tag of this writer's last event that shaped the answer.
    revision: Tag,
    /// The length to which Redis is to rewind the answer, and the tag of the event that does so.
    rewind: Option<(usize, Tag)>,
    /// When the last call was made that Redis acknowledged.
    acknowledged: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WriterPhase {
    /// Redis refused a write, because the turn is not this writer's there.
    Refused,
    /// Other turns of the session come first.
    Waiting,
    /// The turn has begun, and the answer is not started yet.
    Starting,
    /// The answer is started, and text can be written.
    Writing,
}

/// A rewind of the answer in Redis to a shorter text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rewind {
    /// Bytes that stay.
    pub(super) length: usize,
    /// The revision before the rewind.
    pub(super) revision: Tag,
    /// The revision after the rewind.
    pub(super) tag: Tag,
    /// Whether readers may hold text beyond the length even where Redis has none, so that the
    /// rewind is published in any case.
    pub(super) published: bool,
    /// How often the answer has started again by now.
    pub(super) restarts: u32,
}

/// The next call of Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriterCall {
    Restore,
    Begin,
    /// Starts the answer; the tag becomes the revision.
    Start(Tag),
    Rewind(Rewind),
    /// Appends the text between these offsets under this revision. Between equal offsets it only
    /// checks that the turn is this writer's.
    Append(usize, usize, Tag),
}

/// The reply of Redis to a [`WriterCall`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    Restored(Restored),
    Begin(Begin),
    Written(Written),
}

impl WriterState {
    /// Sets how often earlier writers started the answer again.
    pub(super) fn restarted_before(self, restarts: u32) -> Self {
        Self { restarts, ..self }
    }

    /// Creates the state of a turn that waits for earlier turns of its session.
    pub(super) fn waiting() -> Self {
        Self { phase: WriterPhase::Waiting, ..Self::after(String::new()) }
    }

    /// Creates the state of a writer that continues the text which earlier writers left.
    pub(super) fn after(stored: String) -> Self {
        let start = Tag::random();
        Self {
            shape: Shape::of(&stored),
            json_bytes: stored.chars().map(json_bytes).sum(),
            stored: stored.len(),
            inherited: stored.len(),
            has_rewound: false,
            restarts: 0,
            text: stored,
            phase: WriterPhase::Starting,
            start,
            revision: start,
            rewind: None,
            acknowledged: Instant::now(),
        }
    }

    /// Creates the state of a writer that knows the whole answer, and has yet to restore the turn.
    pub(super) fn restoring(text: String) -> Self {
        Self { phase: WriterPhase::Refused, stored: 0, inherited: 0, ..Self::after(text) }
    }

    /// Begins again with the turn as this replica has claimed it: Redis may have any text.
    pub(super) fn take(&mut self, is_running: bool) {
        self.acknowledged = Instant::now();
        self.inherited = 0;
        if is_running {
            self.write_again();
        } else {
            self.phase = WriterPhase::Waiting;
        }
    }

    /// Returns the answer so far with the reasoning before it, stored or not.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the bytes of memory that the text takes.
    pub(super) fn kept_bytes(&self) -> usize {
        self.text.capacity()
    }

    /// Returns whether the turn has begun, so that no other turn of its session runs.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, WriterPhase::Starting | WriterPhase::Writing)
    }

    /// Returns whether the answer is started, so that only text is left to be written.
    pub(super) fn has_started(&self) -> bool {
        self.phase == WriterPhase::Writing
    }

    /// Returns when the last call was made that Redis acknowledged.
    pub(super) fn acknowledged(&self) -> Instant {
        self.acknowledged
    }

    /// Returns the revision under which the answer ends.
    pub(super) fn revision(&self) -> Tag {
        self.revision
    }

    /// Appends to the answer. Returns `false` where the answer has its greatest length, and leaves
    /// out the text beyond it.
    pub(super) fn push(&mut self, answer: &str) -> bool {
        let marker = self.shape.before_answer(&self.text, answer);
        answer.is_empty() || (self.add(marker) && self.add(answer))
    }

    /// Appends to the reasoning, unless the answer has begun. Returns `false` as
    /// [`WriterState::push`].
    pub(super) fn push_reasoning(&mut self, reasoning: &str) -> bool {
        match self.shape.before_reasoning(&self.text) {
            Some(marker) if !reasoning.is_empty() => {
                self.add(marker) && without_end_markers(reasoning).all(|part| self.add(part))
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

    /// Has the answer started, once more under the same tag where it is started: only what the call
    /// carries beside it has changed. Returns `false` where it must not start again: after a rewind
    /// the tag of the start would be an old revision, under which Redis may hold what was taken
    /// back.
    pub(super) fn start_again(&mut self) -> bool {
        if self.phase == WriterPhase::Writing {
            if self.has_rewound {
                return false;
            }
            self.phase = WriterPhase::Starting;
        }
        true
    }

    /// Removes the text beyond `length`: the answer continues differently from there.
    pub(super) fn rewind(&mut self, length: usize) {
        let length = self.text.floor_char_boundary(length);
        if length < self.text.len() {
            self.restarts += 1;
        }
        self.text.truncate(length);
        self.shape = Shape::of(&self.text);
        self.json_bytes = self.text.chars().map(json_bytes).sum();
        self.inherited = self.inherited.min(length);
        self.has_rewound = true;
        self.stored = self.stored.min(length);
        if self.rewind.is_none_or(|(pending, _)| length < pending) {
            self.rewind = Some((length, Tag::random()));
        }
    }

    /// Returns the next call; none where Redis has everything.
    pub(super) fn next_call(&self) -> Option<WriterCall> {
        match self.phase {
            WriterPhase::Refused => Some(WriterCall::Restore),
            WriterPhase::Waiting => Some(WriterCall::Begin),
            WriterPhase::Starting => Some(WriterCall::Start(self.start)),
            WriterPhase::Writing => match self.rewind {
                Some((length, tag)) => {
                    let Self { revision, has_rewound: published, restarts, .. } = *self;
                    Some(WriterCall::Rewind(Rewind { length, revision, tag, published, restarts }))
                }
                None if self.stored < self.text.len() => {
                    let longest = self.text.len().min(self.stored + WRITE_BYTES);
                    let end = self.text.floor_char_boundary(longest);
                    Some(WriterCall::Append(self.stored, end, self.revision))
                }
                None => None,
            },
        }
    }

    /// Returns a call that only checks that the turn is this writer's and that Redis has its text.
    pub(super) fn check(&self) -> WriterCall {
        WriterCall::Append(self.stored, self.stored, self.revision)
    }

    /// Applies the reply of Redis to a call that was made at `made`. That time counts, because a
    /// replica that was paused reads the reply late. Returns how long the writer waits before its
    /// next call.
    pub(super) fn apply(
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
                    WriterCall::Rewind(Rewind { length, tag, .. }) => {
                        self.revision = tag;
                        self.stored = length;
                        // A later rewind to a shorter text is still pending.
                        self.rewind = self.rewind.filter(|(pending, _)| *pending < length);
                    }
                    WriterCall::Append(_, end, _) => self.stored = end,
                    WriterCall::Restore | WriterCall::Begin => {}
                }
            }
            Reply::Written(Written::Hole(stored)) => {
                let stored = usize::try_from(stored).unwrap_or(usize::MAX);
                self.stored = self.text.floor_char_boundary(stored);
            }
            Reply::Written(Written::Outdated) => self.write_again(),
            Reply::Restored(Restored::Claimed) => {
                // The inherited text in Redis may differ, too: an earlier writer may have rewound
                // the answer, and the failover lost that rewind together with the claim.
                self.inherited = 0;
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
                return Ok(Pause::Full(RESTORED_PAUSE));
            }
            Reply::Begin(Begin::Began) => {
                self.acknowledged = made;
                self.phase = WriterPhase::Starting;
                self.stored = 0;
                // The turn may have been accepted again, and readers may hold text from before a
                // rewind.
                self.rewind = self.has_rewound.then(|| (0, Tag::random()));
            }
            Reply::Begin(Begin::Waiting) => {
                self.acknowledged = made;
                return Ok(Pause::UntilWoken(BEGIN_AGAIN));
            }
        }
        Ok(Pause::None)
    }

    /// Writes everything behind the inherited text again, because Redis may have other text there.
    fn write_again(&mut self) {
        tracing::warn!(from = self.inherited, "redis lost a part of an answer; writing it again");
        self.phase = WriterPhase::Starting;
        self.stored = self.inherited;
        self.rewind = Some((self.inherited, Tag::random()));
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
    fn a_writer_whose_claim_was_lost_writes_the_inherited_text_again_too() {
        // The writer before it had rewound the answer and written other text: the failover lost
        // both together with the claim.
        let mut state = WriterState::after("another beginning".to_owned());
        let now = Instant::now();
        let mut apply = |call, reply| {
            state.apply(call, now, reply).expect("the turn is this writer's");
            state.next_call().expect("another call")
        };
        let start = apply(WriterCall::Restore, Reply::Restored(Restored::Claimed));
        assert!(matches!(start, WriterCall::Start(_)));
        let rewind = apply(start, Reply::Written(Written::Ok));
        let WriterCall::Rewind(Rewind { length: 0, tag, .. }) = rewind else {
            panic!("not {rewind:?}")
        };
        let append = apply(rewind, Reply::Written(Written::Ok));
        assert_eq!(append, WriterCall::Append(0, "another beginning".len(), tag));
    }

    #[test]
    fn reasoning_and_answer_together_are_as_long_as_one_answer_may_be() {
        let half = "\n".repeat(ANSWER_JSON_BYTES / 4 - 6);
        let mut state = WriterState::after(String::new());
        assert!(state.push_reasoning(&half) && state.push(&half));
        assert!(!state.push(&"x".repeat(13)), "two markers and twelve characters fit");
        assert_eq!(state.json_bytes, ANSWER_JSON_BYTES);
        assert!(state.text().ends_with("\nxxxxxxxxxxxx"));
        // A rewind makes room again.
        state.rewind(half.len());
        assert!(state.push_reasoning("more") && state.push("answer"));
        assert!(
            state.push_reasoning("late"),
            "reasoning behind the answer's beginning is left out"
        );
        assert!(state.text().ends_with("\nmore\u{3}answer"));
    }

    #[test]
    fn an_answer_that_was_taken_back_does_not_start_again_under_its_old_revision() {
        let mut state = WriterState::after("text".to_owned());
        state.phase = WriterPhase::Writing;
        assert!(state.start_again());
        assert_eq!(state.next_call(), Some(WriterCall::Start(state.start)));
        state.phase = WriterPhase::Writing;
        state.rewind(0);
        assert!(!state.start_again());
        assert!(matches!(state.next_call(), Some(WriterCall::Rewind(_))));
    }
}
