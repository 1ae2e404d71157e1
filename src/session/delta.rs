//! Deltas: a reader yields each change of a session as a delta, with the cursor after it.
//!
//! Nothing here knows a wire format. A front encodes a delta, and the delta caches the encoding:
//! readers at the same cursor share one delta, so that it is encoded once for each front and
//! replica, however many sockets the session has.

use std::any::{Any, TypeId};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::cursor::Cursor;
use super::event::{Event, Queued};
use super::model::{GenerationId, SessionId};

/// One change of a session.
#[derive(Debug)]
pub struct Delta {
    /// The session that changed.
    pub session: SessionId,
    /// The generation that the change belongs to; none for a change of the session.
    pub generation: Option<GenerationId>,
    /// The cursor of a reader that has this delta and everything before it.
    pub after: Cursor,
    /// The change.
    pub change: Change,
    encodings: Encodings,
}

/// A change of a session.
#[derive(Clone, Debug)]
pub enum Change {
    /// The answer grew.
    Text {
        /// UTF-8 bytes of the answer before `text`.
        offset: u64,
        /// The added text, never empty.
        text: String,
    },
    /// The reasoning before the answer grew.
    Reasoning {
        /// UTF-8 bytes of the reasoning before `text`.
        offset: u64,
        /// The added text, never empty.
        text: String,
    },
    /// A control event happened.
    Event {
        /// The event.
        event: Arc<Event>,
        /// The whole answer where the event ends a generation; otherwise empty.
        answer: String,
        /// The whole reasoning where the event ends a generation that has any; otherwise none.
        reasoning: Option<String>,
    },
    /// Text that this reader has seen is taken back; with `from` 0 the reasoning, too.
    Restart {
        /// UTF-8 bytes of the answer that stay.
        from: u64,
    },
    /// The queue position of a waiting turn changed. It is not logged, and moves no cursor.
    QueuePosition(Queued),
}

impl Delta {
    /// Creates a delta that no front has encoded yet.
    pub fn new(
        session: SessionId,
        generation: Option<GenerationId>,
        after: Cursor,
        change: Change,
    ) -> Self {
        Self { session, generation, after, change, encodings: Encodings::default() }
    }

    /// Returns the control event, where the change is one.
    pub fn event(&self) -> Option<&Arc<Event>> {
        match &self.change {
            Change::Event { event, .. } => Some(event),
            _ => None,
        }
    }

    /// Returns whether the generation has ended with this delta.
    pub fn is_terminal(&self) -> bool {
        self.event().is_some_and(|event| event.control.is_terminal())
    }

    /// Returns the delta in the format of the front `F`. The first call encodes it; later calls
    /// share the result.
    pub fn encoded<F: Front>(&self) -> F::Encoded {
        self.encodings.of::<F>(self)
    }
}

/// The wire format of a front: how its deltas are encoded.
pub trait Front: 'static {
    /// An encoded delta. Cloning it must be cheap: every socket gets a clone.
    type Encoded: Clone + Send + 'static;

    /// Encodes a delta.
    fn encode(delta: &Delta) -> Self::Encoded;
}

/// The encodings of one delta, one for each front that sent it.
#[derive(Default)]
struct Encodings(Mutex<Vec<(TypeId, Box<dyn Any + Send>)>>);

impl Encodings {
    fn of<F: Front>(&self, delta: &Delta) -> F::Encoded {
        // The lock is held while encoding, so that two sockets do not both encode.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let front = TypeId::of::<F>();
        let found = known.iter().find(|(id, _)| *id == front);
        if let Some(encoded) = found.and_then(|(_, any)| any.downcast_ref::<F::Encoded>()) {
            return encoded.clone();
        }
        let encoded = F::encode(delta);
        known.push((front, Box::new(encoded.clone())));
        encoded
    }
}

impl fmt::Debug for Encodings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encodings")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static ENCODED: AtomicUsize = AtomicUsize::new(0);

    struct Plain;
    struct Loud;

    impl Front for Plain {
        type Encoded = Arc<str>;

        fn encode(delta: &Delta) -> Arc<str> {
            ENCODED.fetch_add(1, Ordering::Relaxed);
            match &delta.change {
                Change::Text { text, .. } => text.as_str().into(),
                _ => "".into(),
            }
        }
    }

    impl Front for Loud {
        type Encoded = String;

        fn encode(delta: &Delta) -> String {
            Plain::encode(delta).to_uppercase()
        }
    }

    #[test]
    fn a_delta_is_encoded_once_for_each_front() {
        let change = Change::Text { offset: 0, text: "hello".to_owned() };
        let delta = Delta::new(SessionId::random(), None, Cursor::START, change);
        let first = delta.encoded::<Plain>();
        assert!(Arc::ptr_eq(&first, &delta.encoded::<Plain>()));
        assert_eq!(ENCODED.load(Ordering::Relaxed), 1);
        assert_eq!(delta.encoded::<Loud>(), "HELLO");
        assert_eq!(delta.encoded::<Loud>(), "HELLO");
        assert_eq!(ENCODED.load(Ordering::Relaxed), 2);
    }
}
