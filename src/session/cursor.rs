//! A position in the log of a session, and in the answer that runs there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::model::{GenerationId, Owner, SessionId};

/// The tag of one control event.
///
/// A number alone may be used again after a failover that lost the last writes. The writer of an
/// event chooses its tag at random. Redis stores the sum of that tag and the tags of all events
/// before it: where number and stored tag are equal, all events up to there are the same, in some
/// order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tag(pub u64);

impl Tag {
    /// The tag of the beginning, before any event.
    pub const START: Self = Self(0);

    /// Returns a new random tag, never [`Tag::START`].
    pub fn random() -> Self {
        Self(rand::random_range(1..=u64::MAX))
    }

    /// Returns the tag of the event that accepts a generation. It is the same on every replica.
    pub fn of_acceptance(generation: GenerationId) -> Self {
        let (high, low) = generation.0.as_u64_pair();
        Self((high ^ low).max(1))
    }

    /// Returns the tag of the event that makes an anonymous session this user's. It is the same on
    /// every replica.
    pub fn of_transfer(session: SessionId, owner: &Owner) -> Self {
        let (high, low) = Uuid::new_v5(&session.0, owner.key().as_bytes()).as_u64_pair();
        Self((high ^ low).max(1))
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl FromStr for Tag {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        // `from_str_radix` accepts a sign, and a cursor is written in one way only.
        if text.is_empty() || text.len() > 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(CursorError);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| CursorError)
    }
}

/// The position up to which a client has seen a session. It is opaque to clients, and the same on
/// every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The number of the last control event that was seen.
    pub events: u64,
    /// The tag of that event.
    pub tag: Tag,
    /// The generation that [`Cursor::offset`] counts in.
    pub generation: Option<GenerationId>,
    /// Bytes of that generation's answer that were seen.
    pub offset: u64,
}

impl Cursor {
    /// The cursor before the first event of a session.
    pub const START: Self = Self { events: 0, tag: Tag::START, generation: None, offset: 0 };
}

/// The error for a text that is no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this service; connect without a cursor")]
pub struct CursorError;

const VERSION: &str = "1";

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}-{}-{}-", self.events, self.tag)?;
        match self.generation {
            Some(generation) => write!(f, "{}-{}", generation.0.simple(), self.offset),
            None => f.write_str("0-0"),
        }
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        if text.len() > 128 {
            return Err(CursorError);
        }
        let mut parts = text.split('-');
        let mut part = || parts.next().ok_or(CursorError);
        if part()? != VERSION {
            return Err(CursorError);
        }
        let events = number(part()?)?;
        let tag = part()?.parse()?;
        let generation = match part()? {
            "0" => None,
            id => Some(GenerationId(Uuid::try_parse(id).map_err(|_| CursorError)?)),
        };
        let offset = number(part()?)?;
        if parts.next().is_some() || (generation.is_none() && offset != 0) {
            return Err(CursorError);
        }
        Ok(Self { events, tag, generation, offset })
    }
}

fn number(text: &str) -> Result<u64, CursorError> {
    // Lua in Redis counts in doubles, which are exact below 2^53 only.
    match text.parse::<u64>() {
        Ok(number) if number < 1 << 53 && !text.starts_with('+') => Ok(number),
        _ => Err(CursorError),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_reads_back_as_it_was_written(
            events in 0u64..1 << 53,
            tag in any::<u64>(),
            generation in proptest::option::of(any::<u128>()),
            offset in 0u64..1 << 53,
        ) {
            let generation = generation.map(|id| GenerationId(Uuid::from_u128(id)));
            let offset = if generation.is_some() { offset } else { 0 };
            let cursor = Cursor { events, tag: Tag(tag), generation, offset };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn any_text_is_a_cursor_or_an_error_and_never_a_panic(text in ".{0,200}") {
            let _ = text.parse::<Cursor>();
        }
    }
}
