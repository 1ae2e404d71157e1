//! A place in what happens in a session.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::model::GenerationId;

/// The mark of one control event.
///
/// Numbers alone come again after a failover that lost the last writes. Whoever writes an event
/// chooses its tag at random. Redis stores in its place the sum of that tag and of those of all events
/// before it: where number and stored tag are equal, so are all events up to there, in whichever
/// order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u64);

impl Tag {
    /// The mark of the beginning, before any event.
    pub const START: Self = Self(0);

    /// A new mark, never [`Tag::START`].
    pub fn random() -> Self {
        Self(rand::random_range(1..=u64::MAX))
    }

    /// Of the event that accepts a generation: the same, whoever proposes it.
    pub fn of_acceptance(generation: GenerationId) -> Self {
        let (high, low) = generation.0.as_u64_pair();
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
        // `from_str_radix` would take a sign, and there is one way only to write a cursor.
        if text.is_empty() || text.len() > 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(CursorError);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| CursorError)
    }
}

/// Everything up to here was seen. Opaque to clients, and the same from any replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Control events seen in the session's life.
    pub events: u64,
    /// The mark of the last one.
    pub tag: Tag,
    /// The generation that [`Cursor::offset`] counts in.
    pub generation: Option<GenerationId>,
    /// Bytes of that generation's answer that were seen.
    pub offset: u64,
}

impl Cursor {
    /// Before anything happened.
    pub const START: Self = Self { events: 0, tag: Tag::START, generation: None, offset: 0 };
}

/// What was given as a cursor is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this service")]
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
    // Redis counts in doubles inside Lua: beyond 2^53 a number is no longer the same number.
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
