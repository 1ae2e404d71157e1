//! A client that follows the session, reading what is stored.

use std::collections::HashMap;

use crate::session::store::{ReadFrom, ReadOutcome};
use crate::session::window::{Step, Window};
use crate::session::{Control, Cursor, GenerationId, Owner, SessionId, Store};

/// A client: it puts the text together, and takes back what it is told to.
pub(super) struct Client {
    pub(super) cursor: Cursor,
    pub(super) reasoning: String,
    pub(super) text: String,
    /// Reasoning and answer of each generation, as they were delivered at its last end.
    pub(super) ended: HashMap<GenerationId, [String; 2]>,
}

/// What became of a read.
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

    fn take_back(&mut self, from: usize) {
        let delivered = self.text.get(..from);
        assert!(delivered.is_some(), "takes back what was never delivered: {from} {}", self.text);
        self.text.truncate(from);
        if from == 0 {
            self.reasoning.clear();
        }
    }

    /// Reads on from the cursor. `may_end_again`: a failover may have taken the end of a generation.
    pub(super) async fn read(
        &mut self,
        store: &Store,
        session: SessionId,
        may_end_again: bool,
    ) -> Followed {
        loop {
            let from = ReadFrom::Cursor(self.cursor, 0);
            match store.read(&Owner::Anonymous, session, from).await.expect("a read") {
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

    /// Begins anew from a snapshot: from where the running turn began, else from the end.
    pub(super) async fn begin_anew(&mut self, store: &Store, session: SessionId) {
        let read = store.read(&Owner::Anonymous, session, ReadFrom::RunningTurn).await;
        self.cursor = match read.expect("a read") {
            ReadOutcome::Window { window, .. } => window.start(),
            ReadOutcome::Absent | ReadOutcome::Behind | ReadOutcome::Unknown => Cursor::START,
        };
        self.take_back(0);
    }

    fn follow(&mut self, window: &Window, may_end_again: bool) -> Followed {
        loop {
            self.cursor = match window.next(&self.cursor, 5) {
                Step::Piece { thought, offset, text, after, .. } => {
                    let seen = if thought { &mut self.reasoning } else { &mut self.text };
                    assert_eq!(offset, seen.len() as u64, "a hole or a double");
                    seen.push_str(text);
                    after
                }
                Step::Event { event, answer, after, .. } => {
                    match (&event.control, event.generation) {
                        (Control::Started { .. }, _) => self.take_back(0),
                        (control, Some(generation)) if control.is_terminal() => {
                            self.take_end(generation, answer, may_end_again);
                        }
                        _ => {}
                    }
                    after
                }
                Step::Restart { from, after, .. } => {
                    self.take_back(from as usize);
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
            assert_eq!(self.text, answer, "the end gives another answer than the pieces");
            reasoning.clone_from(&self.reasoning);
        }
        let before = self.ended.insert(generation, [reasoning, answer.to_owned()]);
        assert!(before.is_none() || may_end_again, "a generation ended twice");
    }
}
