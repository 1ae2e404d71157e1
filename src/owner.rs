//! The owner of a session: a signed-in user, or every caller that knows the session's identifier.

use serde::{Deserialize, Serialize};

/// A signed-in user: a subject is unique only at its issuer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    issuer: String,
    subject: String,
}

impl User {
    /// The issuer of the service's own tokens and API keys.
    pub const LOCAL: &'static str = "local";
    /// Bytes of a subject, at most.
    pub const LONGEST_SUBJECT: usize = 255;

    /// Creates a user. Returns none where the subject is empty, longer than
    /// [`User::LONGEST_SUBJECT`], or holds a control character.
    pub fn new(issuer: &str, subject: &str) -> Option<Self> {
        let usable = (1..=Self::LONGEST_SUBJECT).contains(&subject.len())
            && !subject.chars().any(char::is_control);
        usable.then(|| Self { issuer: issuer.to_owned(), subject: subject.to_owned() })
    }

    /// Creates a user of the service's own tokens and API keys, as [`User::new`] does.
    pub fn local(subject: &str) -> Option<Self> {
        Self::new(Self::LOCAL, subject)
    }
}

/// The owner of a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Owner {
    /// Every caller that knows the session's identifier.
    Anonymous,
    /// One signed-in user.
    User(User),
}

impl From<String> for Owner {
    fn from(key: String) -> Self {
        Self::from_key(&key)
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.key()
    }
}

impl Owner {
    /// Returns the owner as Redis stores and compares it: without blanks, and different for any two
    /// users.
    pub fn key(&self) -> String {
        match self {
            Self::Anonymous => "anonymous".to_owned(),
            Self::User(User { issuer, subject }) => {
                format!("user:{}:{}", urlencoding::encode(issuer), urlencoding::encode(subject))
            }
        }
    }

    /// Returns the owner with this [`Owner::key`].
    pub fn from_key(key: &str) -> Self {
        let Some(user) = key.strip_prefix("user:") else { return Self::Anonymous };
        let (issuer, subject) = user.split_once(':').unwrap_or((user, ""));
        let decoded =
            |text: &str| urlencoding::decode(text).map_or_else(|_| text.to_owned(), Into::into);
        Self::User(User { issuer: decoded(issuer), subject: decoded(subject) })
    }

    /// Returns the `user_id` of this owner's messages.
    pub fn user_id(&self) -> &str {
        match self {
            Self::Anonymous => "anonymous",
            Self::User(user) => &user.subject,
        }
    }
}
