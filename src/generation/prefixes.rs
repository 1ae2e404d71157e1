//! The search for the host that may have the beginning of a conversation in its prompt cache, where the
//! conversation comes with each request: the queue is given digests of the conversation and of its
//! beginnings.
//!
//! The digests are keyed by the owner, because a caller who finds that a question is answered sooner than
//! another learns that somebody has asked it. A conversation whose owner is not known has none.

use std::mem::replace;

use ring::hmac;

use crate::digest::hex;
use crate::model_name;
use crate::session::store::Turn;
use crate::session::{Message, Owner, Role};
use crate::source::SourceKey;

/// Beginnings of a conversation that the queue looks for, with the whole of it. An earlier request
/// ended where an answer begins, so that these are the last requests of the conversation.
const PREFIXES: usize = 8;
/// Bytes of a digest.
const DIGEST_BYTES: usize = 12;

/// Returns the digests of the conversation that a turn brings with it, and of those of its beginnings
/// that an earlier request may have had as its whole; the longest first. There are none where the
/// conversation is a stored session, or the caller is known neither by name nor by address.
pub(super) fn prefixes(turn: &Turn, owner: &Owner, key: &SourceKey) -> Vec<String> {
    let Some(conversation) = turn.own_conversation() else { return Vec::new() };
    let caller = match owner {
        Owner::User(_) => owner.key(),
        // A user's key never begins so.
        Owner::Anonymous if !turn.spec.source.is_empty() => format!("address {}", turn.spec.source),
        Owner::Anonymous => return Vec::new(),
    };
    let Some(key) = key.agreed() else { return Vec::new() };
    let spec = &turn.spec;
    let begin = [
        "conversation",
        &caller,
        &model_name::canonical(&spec.model),
        spec.system.as_deref().unwrap_or_default(),
        spec.rules.tools.as_deref().unwrap_or_default(),
    ];
    let messages = conversation.messages().iter().chain([turn.question()]);
    of_messages(&key, &begin, messages)
}

/// Returns the digests of these messages after `begin`. Each is made of the one before, so that a
/// long conversation is read once.
fn of_messages<'a>(
    key: &hmac::Key,
    begin: &[&str],
    messages: impl Iterator<Item = &'a Message>,
) -> Vec<String> {
    let mut ends = Vec::new();
    let mut digest = Chain::new(key);
    for part in begin {
        digest.add(part);
    }
    for (at, message) in messages.enumerate() {
        if at > 0 && message.role == Role::Assistant {
            ends.push(digest.next());
        }
        digest.add(match message.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        });
        digest.add(&message.content);
        digest.add(message.tool_name.as_deref().unwrap_or_default());
        for call in &message.tool_calls {
            digest.add(&call.name);
            digest.add(&call.arguments);
        }
    }
    ends.push(digest.next());
    ends.into_iter().rev().take(PREFIXES).collect()
}

/// A digest of parts, each with its length, so that parts cannot run into each other.
struct Chain<'a> {
    key: &'a hmac::Key,
    parts: hmac::Context,
}

impl<'a> Chain<'a> {
    fn new(key: &'a hmac::Key) -> Self {
        Self { key, parts: hmac::Context::with_key(key) }
    }

    fn add(&mut self, part: &str) {
        self.parts.update(&(part.len() as u64).to_le_bytes());
        self.parts.update(part.as_bytes());
    }

    /// Returns the digest so far, with which the next one begins.
    fn next(&mut self) -> String {
        let tag = replace(&mut self.parts, hmac::Context::with_key(self.key)).sign();
        self.parts.update(tag.as_ref());
        hex(&tag.as_ref()[..DIGEST_BYTES])
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;
    use crate::session::store::message;

    fn conversation(texts: &[(Role, &str)]) -> Vec<Message> {
        let text = |(role, text): &(Role, &str)| Message {
            content: (*text).to_owned(),
            ..message(*role, Utc::now())
        };
        texts.iter().map(text).collect()
    }

    fn digests(begin: &[&str], messages: &[Message]) -> Vec<String> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"key");
        of_messages(&key, begin, messages.iter())
    }

    #[test]
    fn a_longer_conversation_has_the_digest_of_each_earlier_request_of_it() {
        let mut messages = conversation(&[(Role::System, "s"), (Role::User, "q0")]);
        let mut earlier: Vec<String> = Vec::new();
        for turn in 0..20 {
            let digests = digests(&["alice"], &messages);
            assert_eq!(digests.len(), PREFIXES.min(turn + 1));
            let wanted: Vec<_> = earlier.iter().rev().take(PREFIXES - 1).cloned().collect();
            assert_eq!(digests[1..], wanted);
            assert_eq!(digests[0].len(), 2 * DIGEST_BYTES);
            earlier.push(digests[0].clone());
            let (answer, question) = (format!("a{turn}"), format!("q{turn}"));
            messages.extend(conversation(&[(Role::Assistant, &answer), (Role::User, &question)]));
        }
    }

    #[test]
    fn another_owner_model_text_or_division_of_texts_has_other_digests() {
        let asked = conversation(&[(Role::User, "ab"), (Role::Assistant, "c"), (Role::User, "d")]);
        let mine = digests(&["alice", "m"], &asked);
        for (begin, texts) in [
            (["bob", "m"], ["ab", "c", "d"]),
            (["alice", "n"], ["ab", "c", "d"]),
            (["alice", "m"], ["a", "bc", "d"]),
            (["alicem", ""], ["ab", "c", "d"]),
        ] {
            let roles = [Role::User, Role::Assistant, Role::User];
            let texts: Vec<_> = roles.into_iter().zip(texts).collect();
            let other = digests(&begin, &conversation(&texts));
            assert!(other.iter().all(|digest| !mine.contains(digest)), "{begin:?} {texts:?}");
        }
    }
}
