//! The branches of a session: where a turn goes, and the alternatives of a message.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Where a turn goes that does not just follow the selected path. Redis has it as `=`, `+` or `>` and
/// the id of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Anchor {
    /// Beside this answer: its question is answered once more.
    BesideAnswer(Uuid),
    /// Beside this question: another one is asked in its place.
    BesideQuestion(Uuid),
    /// Behind this message. The turn followed it when it was accepted, and a failover may lose that its
    /// branch was selected.
    Behind(Uuid),
}

impl Anchor {
    /// Returns the message that the anchor names.
    pub fn message(self) -> Uuid {
        match self {
            Self::BesideAnswer(id) | Self::BesideQuestion(id) | Self::Behind(id) => id,
        }
    }

    /// Returns the answer whose question the turn answers once more, where it does.
    pub fn regenerated(self) -> Option<Uuid> {
        match self {
            Self::BesideAnswer(answer) => Some(answer),
            Self::BesideQuestion(_) | Self::Behind(_) => None,
        }
    }

    /// Returns the question in whose place the turn asks another one, where it does.
    pub fn edited(self) -> Option<Uuid> {
        match self {
            Self::BesideQuestion(question) => Some(question),
            Self::BesideAnswer(_) | Self::Behind(_) => None,
        }
    }
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BesideAnswer(id) => write!(f, "={id}"),
            Self::BesideQuestion(id) => write!(f, "+{id}"),
            Self::Behind(id) => write!(f, ">{id}"),
        }
    }
}

/// A text that is no anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no anchor of a turn")]
pub struct NoAnchor;

impl FromStr for Anchor {
    type Err = NoAnchor;

    fn from_str(text: &str) -> Result<Self, NoAnchor> {
        let id = text.get(1..).and_then(|id| Uuid::try_parse(id).ok()).ok_or(NoAnchor)?;
        match text.as_bytes()[0] {
            b'=' => Ok(Self::BesideAnswer(id)),
            b'+' => Ok(Self::BesideQuestion(id)),
            b'>' => Ok(Self::Behind(id)),
            _ => Err(NoAnchor),
        }
    }
}

impl TryFrom<String> for Anchor {
    type Error = NoAnchor;

    fn try_from(text: String) -> Result<Self, NoAnchor> {
        text.parse()
    }
}

impl From<Anchor> for String {
    fn from(anchor: Anchor) -> Self {
        anchor.to_string()
    }
}

/// The alternatives of a message: the messages with the same parent, itself included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Siblings {
    /// The position of the message among them, from 0, in the order in which they came.
    pub index: u64,
    /// The number of them, at most 50.
    pub count: u64,
    /// Their identifiers, in this order.
    #[schema(max_items = 50)]
    pub ids: Vec<Uuid>,
}

impl Siblings {
    /// Reads the ids of all children of a message's parent, with a blank between two. Returns none where
    /// the message is not one of several.
    pub(super) fn of(message: Uuid, ids: &str) -> Option<Box<Self>> {
        let ids: Vec<Uuid> = ids.split(' ').filter_map(|id| id.parse().ok()).collect();
        let index = ids.iter().position(|id| *id == message)?;
        (ids.len() > 1)
            .then(|| Box::new(Self { index: index as u64, count: ids.len() as u64, ids }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_reads_back_as_it_was_written() {
        let id = Uuid::new_v4();
        for anchor in [Anchor::BesideAnswer(id), Anchor::BesideQuestion(id), Anchor::Behind(id)] {
            assert_eq!(anchor.to_string().parse(), Ok(anchor));
            let json = serde_json::to_string(&anchor).expect("JSON");
            assert_eq!(serde_json::from_str::<Anchor>(&json).expect("an anchor"), anchor);
        }
        for text in ["", "=", "é", "=x", &id.to_string(), &format!("?{id}")] {
            assert_eq!(text.parse::<Anchor>(), Err(NoAnchor), "{text}");
        }
    }

    #[test]
    fn a_message_without_alternatives_has_no_siblings() {
        let [a, b] = [0; 2].map(|_| Uuid::new_v4());
        assert_eq!(Siblings::of(a, ""), None);
        assert_eq!(Siblings::of(a, &a.to_string()), None);
        let both = Siblings { index: 1, count: 2, ids: vec![a, b] };
        assert_eq!(Siblings::of(b, &format!("{a} {b}")), Some(Box::new(both)));
    }
}
