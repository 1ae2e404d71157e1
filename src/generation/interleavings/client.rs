//! A client that follows the session by reading the stored events and text.

use std::collections::HashMap;

use crate::session::store::{ReadFrom, ReadOutcome};
use crate::session::window::{Step, Window};
use crate::session::{Control, Cursor, GenerationId, Owner, SessionId, Store};

/// A client that puts the text together, and removes text at a rewind.
pub(super) struct Client {
    pub(super) cursor: Cursor,
    pub(super) reasoning: String,
    pub(super) text: String,
    /// Reasoning and answer of each generation, as they were delivered at the generation's last
    /// end.
    pub(super) ended: HashMap<GenerationId, [String; 2]>,
}

/// The outcome of a read.
pub(super) enum Followed {
    UpToDate,
    /// Redis does not know the cursor.
    Lost,
}

impl Client {
    pub(super) fn new() -> Self {
        Self {
            cursor: Cursor::START,
            reasoning: String::new(),
            text: String::new(),
            ended: HashMap::new(),
        }
    }

    fn rewind(&mut self, from: usize) {
        let delivered = self.text.get(..from);
        assert!(delivered.is_some(), "a rewind of undelivered text: {from} {}", self.text);
        self.text.truncate(from);
        if from == 0 {
            self.reasoning.clear();
        }
    }

    /// Reads from the cursor. With `may_end_again` a failover may have lost the end of a
    /// generation.
    pub(super) async fn read(
        &mut self,
        store: &Store,
        owner: &Owner,
        session: SessionId,
        may_end_again: bool,
    ) -> Followed {
        loop {
            let from = ReadFrom::Cursor(self.cursor, 0);
            match store.read(owner, session, from).await.expect("a read") {
                ReadOutcome::Window { window, more } => match self.follow(&window, may_end_again) {
                    Followed::UpToDate if more => {}
                    followed => return followed,
                },
                ReadOutcome::Absent if self.cursor == Cursor::START => return Followed::UpToDate,
                ReadOutcome::Absent | ReadOutcome::Behind | ReadOutcome::Unknown => {
                    return Followed::Lost;
                }
            }
        }
    }

    /// Starts again from a snapshot: from the beginning of the running turn, else from the end.
    pub(super) async fn start_again(&mut self, store: &Store, owner: &Owner, session: SessionId) {
        let read = store.read(owner, session, ReadFrom::RunningTurn).await;
        self.cursor = match read.expect("a read") {
            ReadOutcome::Window { window, .. } => window.start(),
            ReadOutcome::Absent | ReadOutcome::Behind | ReadOutcome::Unknown => Cursor::START,
        };
        self.rewind(0);
    }

    fn follow(&mut self, window: &Window, may_end_again: bool) -> Followed {
        loop {
            self.cursor = match window.next(&self.cursor, 5) {
                Step::Piece { is_reasoning, offset, text, after, .. } => {
                    let known = if is_reasoning { &mut self.reasoning } else { &mut self.text };
                    assert_eq!(offset, known.len() as u64, "a hole or a double");
                    known.push_str(text);
                    after
                }
                Step::Event { event, answer, after, .. } => {
                    match (&event.control, event.generation) {
                        (Control::Started { .. }, _) => self.rewind(0),
                        (control, Some(generation)) if control.is_terminal() => {
                            self.take_end(generation, answer, may_end_again);
                        }
                        _ => {}
                    }
                    after
                }
                Step::Restart { from, after, .. } => {
                    self.rewind(from as usize);
                    after
                }
                Step::Silent { after } => after,
                Step::UpToDate => return Followed::UpToDate,
                Step::Behind | Step::Unknown => return Followed::Lost,
            };
        }
    }

    fn take_end(&mut self, generation: GenerationId, answer: &str, may_end_again: bool) {
        // A turn that waited, or that ended before a snapshot, has no pieces.
        let mut reasoning = String::new();
        if self.cursor.generation == Some(generation) {
            assert_eq!(self.text, answer, "the end has another answer than the pieces");
            reasoning.clone_from(&self.reasoning);
        }
        let before = self.ended.insert(generation, [reasoning, answer.to_owned()]);
        assert!(before.is_none() || may_end_again, "a generation ended twice");
    }
}
