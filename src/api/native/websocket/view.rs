//! How one socket sees its session: which answers it wants in one piece, and the cursor of what it
//! was sent.
//!
//! A socket that asked with `stream:false` gets the end of that answer as one `response`; the
//! session's other sockets see the stream. Text that is withheld from a socket does not move the
//! socket's cursor, so that it can resume without a hole.

use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::api::native::wire::{self, Native};
use crate::session::{Change, Control, Cursor, Delta, GenerationId};

/// One socket's view of its session.
pub struct View {
    /// The client has everything up to here. The reader may be ahead by what is withheld.
    sent: Cursor,
    /// Generations whose answers this socket wants in one piece.
    whole: Vec<GenerationId>,
    /// The generation that this socket sees as a stream now.
    streaming: Option<GenerationId>,
    /// The running one of `whole`, and the bytes of it that this socket was sent all the same.
    withheld: Option<(GenerationId, u64)>,
    /// The generation that this socket cancelled, and whether the model's host was told.
    cancelled: Option<(GenerationId, bool)>,
}

impl View {
    /// The view of a socket that has everything up to a cursor.
    pub fn new(sent: Cursor) -> Self {
        Self { sent, whole: Vec::new(), streaming: None, withheld: None, cancelled: None }
    }

    /// The client has everything up to here.
    pub fn sent(&self) -> Cursor {
        self.sent
    }

    /// The generation that this socket sees as a stream now.
    pub fn streaming(&self) -> Option<GenerationId> {
        self.streaming
    }

    /// From now on the answer of this generation is wanted in one piece.
    pub fn want_whole(&mut self, generation: GenerationId) {
        if self.whole.contains(&generation) {
            return;
        }
        self.whole.push(generation);
        if self.sent.generation == Some(generation) {
            self.withheld = Some((generation, self.sent.offset));
        }
    }

    /// This socket cancelled a generation.
    pub fn cancelled(&mut self, generation: GenerationId, upstream_closed: bool) {
        self.cancelled = Some((generation, upstream_closed));
    }

    /// The socket was sent a snapshot, in which `running` is the generation that runs.
    pub fn reset(&mut self, sent: Cursor, running: Option<GenerationId>) {
        self.sent = sent;
        (self.streaming, self.withheld) = (None, None);
        match running {
            Some(generation) if self.whole.contains(&generation) => {
                self.withheld = Some((generation, sent.offset));
            }
            running => self.streaming = running,
        }
    }

    /// The delta as this socket is to see it; none where it is withheld.
    pub fn of(&mut self, delta: &Delta) -> Option<Utf8Bytes> {
        if let Change::QueuePosition(_) = delta.change {
            return Some(delta.encoded::<Native>());
        }
        let whole = delta.generation.filter(|generation| self.whole.contains(generation));
        self.follow(delta, whole);
        let seen = self.sent.offset;
        self.sent = self.cursor_after(delta);
        if whole.is_some() { self.of_whole(delta, seen) } else { Some(self.encode(delta)) }
    }

    /// Keeps account of what runs.
    fn follow(&mut self, delta: &Delta, whole: Option<GenerationId>) {
        let Some(event) = delta.event() else { return };
        if event.control.is_terminal() {
            self.whole.retain(|generation| Some(*generation) != whole);
            self.streaming = self.streaming.filter(|_| self.streaming != delta.generation);
            self.withheld = self.withheld.filter(|(held, _)| Some(*held) != delta.generation);
        } else if let Control::Started { .. } = event.control {
            match whole {
                Some(generation) => self.withheld = Some((generation, 0)),
                None => self.streaming = delta.generation,
            }
        }
    }

    /// The cursor after a delta, without the bytes that are withheld.
    fn cursor_after(&mut self, delta: &Delta) -> Cursor {
        match self.withheld {
            Some((generation, sent)) if delta.after.generation == Some(generation) => {
                let sent = sent.min(delta.after.offset);
                self.withheld = Some((generation, sent));
                Cursor { offset: sent, ..delta.after }
            }
            _ => delta.after,
        }
    }

    /// A delta of a generation whose answer is wanted in one piece; `seen` bytes of it were sent.
    fn of_whole(&mut self, delta: &Delta, seen: u64) -> Option<Utf8Bytes> {
        match &delta.change {
            Change::Text { .. } | Change::Reasoning { .. } => None,
            // Text that was sent before it was wanted in one piece may be taken back.
            Change::Restart { .. } => (self.sent.offset < seen).then(|| self.encode(delta)),
            Change::Event { event, answer, reasoning } => match event.control {
                Control::Started { .. } | Control::Done {} => None,
                Control::Ended { .. } => {
                    wire::response(event, answer, reasoning.as_deref(), self.sent)
                }
                _ => Some(self.encode(delta)),
            },
            Change::QueuePosition(_) => Some(delta.encoded::<Native>()),
        }
    }

    fn encode(&mut self, delta: &Delta) -> Utf8Bytes {
        let ends_by_cancel =
            delta.event().is_some_and(|event| event.control == Control::Cancelled {});
        let cancelled = self.cancelled.filter(|_| ends_by_cancel);
        if let Some((_, closed)) = cancelled.filter(|(id, _)| delta.generation == Some(*id)) {
            self.cancelled = None;
            return wire::encode_at(delta, self.sent, Some(closed));
        }
        if self.sent == delta.after {
            return delta.encoded::<Native>();
        }
        wire::encode_at(delta, self.sent, None)
    }
}
