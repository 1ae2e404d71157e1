//! The keys of sessions, and the buckets and hash slots in which they lie.

use crate::redis::Call;
pub use crate::redis::keys::BUCKETS;
use crate::redis::keys::in_bucket;
use crate::session::model::SessionId;

/// How long the counters of a deleted session are kept, so that its cursors are not used again.
pub(super) const TOMBSTONE_SECONDS: u64 = 60 * 60;

/// The keys of a session, by the names that its functions declare.
const SESSION_KEYS: [&str; 14] = [
    "session",
    "messages",
    "path",
    "branches",
    "chains",
    "index",
    "waiting",
    "events",
    "answer",
    "images",
    "idempotency",
    "key_order",
    "open",
    "ended",
];

/// Returns the bucket of a session. All keys of a bucket lie in one hash slot, so that a
/// function may touch a session and its bucket's index in one step.
pub fn bucket(session: SessionId) -> u16 {
    session.0.as_bytes().iter().fold(0, |sum, byte| sum ^ u16::from(*byte))
}

/// Returns the key of a bucket's open turns.
pub fn open_turns(bucket: u16) -> String {
    in_bucket(bucket, "open")
}

/// Returns the name of a session's hash and of its channel.
pub fn channel(session: SessionId) -> String {
    in_bucket(bucket(session), &format!("s:{session}"))
}

/// Returns the session of a channel.
pub fn session_of(channel: &str) -> Option<SessionId> {
    channel.rsplit(':').next()?.parse().ok()
}

/// The keys of one session.
pub(super) struct SessionKeys {
    session: SessionId,
    channel: String,
}

impl SessionKeys {
    pub(super) fn of(session: SessionId) -> Self {
        Self { session, channel: channel(session) }
    }

    /// Starts a call of a function that has all keys of the session.
    pub(super) fn call(&self, function: &'static str) -> Call {
        self.call_with(function, &SESSION_KEYS)
    }

    /// Starts a call of a function that has these keys only.
    pub(super) fn call_with(&self, function: &'static str, names: &[&'static str]) -> Call {
        names.iter().fold(Call::new(function), |call, name| call.key(name, self.key(name)))
    }

    fn key(&self, name: &str) -> String {
        match name {
            "session" => self.channel.clone(),
            "open" => open_turns(bucket(self.session)),
            name => format!("{}:{name}", self.channel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::keys::hash_slot;

    #[test]
    fn all_keys_of_a_session_lie_in_one_slot() {
        let keys = SessionKeys::of(SessionId::random());
        let slots = SESSION_KEYS.map(|name| hash_slot(&keys.key(name)));
        assert_eq!(slots, [hash_slot(&keys.channel); 14]);
    }

    #[test]
    fn a_channel_names_its_session() {
        let session = SessionId::random();
        assert_eq!(session_of(&channel(session)), Some(session));
    }
}
