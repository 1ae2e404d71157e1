//! One socket's view of its session: the answers that the socket gets whole, and its cursor.
//!
//! A socket that requested a turn with `stream:false` gets the whole answer as one `response` at its
//! end; the session's other sockets get the stream. Text that is withheld from a socket does not
//! move its cursor, so that the client resumes without a gap.

use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::api::native::wire::{self, Native};
use crate::session::{Change, Control, Cursor, Delta, GenerationId};

/// One socket's view of its session.
pub struct SocketView {
    /// The cursor up to which everything was sent. The reader is ahead by the withheld text.
    sent: Cursor,
    /// Generations whose answers this socket gets whole.
    whole: Vec<GenerationId>,
    /// The running generation that this socket gets as a stream.
    streaming: Option<GenerationId>,
    /// The running generation of `whole`, and the bytes of its answer that were sent before.
    withheld: Option<(GenerationId, u64)>,
    /// The generation that this socket cancelled, and whether the model host has stopped.
    cancelled: Option<(GenerationId, bool)>,
}

impl SocketView {
    /// Creates the view of a socket that has everything up to a cursor.
    pub fn new(sent: Cursor) -> Self {
        Self { sent, whole: Vec::new(), streaming: None, withheld: None, cancelled: None }
    }

    /// Returns the cursor up to which everything was sent.
    pub fn sent(&self) -> Cursor {
        self.sent
    }

    /// Returns the running generation that this socket gets as a stream.
    pub fn streaming(&self) -> Option<GenerationId> {
        self.streaming
    }

    /// Withholds the answer of this generation until its end.
    pub fn withhold(&mut self, generation: GenerationId) {
        if self.whole.contains(&generation) {
            return;
        }
        self.whole.push(generation);
        if self.sent.generation == Some(generation) {
            self.withheld = Some((generation, self.sent.offset));
        }
    }

    /// Records that this socket cancelled a generation.
    pub fn cancelled(&mut self, generation: GenerationId, upstream_closed: bool) {
        self.cancelled = Some((generation, upstream_closed));
    }

    /// Resets the view to a snapshot that was sent, with its running generation.
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

    /// Encodes a delta for this socket; `None` where it is withheld.
    pub fn event(&mut self, delta: &Delta) -> Option<Utf8Bytes> {
        if let Change::QueuePosition(_) = delta.change {
            return Some(delta.encoded::<Native>());
        }
        let whole = delta.generation.filter(|generation| self.whole.contains(generation));
        self.track(delta, whole);
        let sent_before = self.sent.offset;
        self.sent = self.cursor_after(delta);
        if whole.is_some() {
            self.event_of_whole(delta, sent_before)
        } else {
            Some(self.encode(delta))
        }
    }

    /// Tracks the running generation.
    fn track(&mut self, delta: &Delta, whole: Option<GenerationId>) {
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

    /// Returns the cursor after a delta, without the withheld bytes.
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

    /// Encodes a delta of a generation of `whole`, of which `sent_before` bytes were sent.
    fn event_of_whole(&mut self, delta: &Delta, sent_before: u64) -> Option<Utf8Bytes> {
        match &delta.change {
            Change::Text { .. } | Change::Reasoning { .. } => None,
            // A restart may take back text that was sent before the answer was withheld.
            Change::Restart { .. } => (self.sent.offset < sent_before).then(|| self.encode(delta)),
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
