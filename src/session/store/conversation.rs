//! Conversations that turns bring with them.

use std::sync::Arc;

use fred::prelude::Value;

use super::StoreError;
use super::history::parse_stored_message;
use crate::session::model::{Message, ToolCall};
use crate::session::stored_message::{self, escaped_size};

/// The messages before a turn's question, which the turn brings instead of a stored history. They
/// become the first messages of a new session, which is not listed and expires an hour after its
/// last turn.
///
/// Only role, content, id, time, and what belongs to tools are used of each message.
#[derive(Clone, Debug, Default)]
pub struct OwnConversation {
    messages: Arc<[Message]>,
    bytes: usize,
    has_images: bool,
}

/// Bytes that each message counts in addition to its text and what belongs to tools: more than it takes, as a
/// thousand messages of a mebibyte would take Redis longer than a call may.
const MESSAGE_BYTES: usize = 512;
// So the bytes of a conversation are also those of its memory.
const _: () = assert!(size_of::<Message>() <= MESSAGE_BYTES);

/// The error for a conversation with more messages or bytes than a turn may bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "The conversation has {messages} messages and {bytes} bytes; a turn may bring at most \
     {max_messages} messages and {max_bytes} bytes.",
    max_messages = OwnConversation::MESSAGES,
    max_bytes = OwnConversation::BYTES
)]
pub struct ConversationTooLarge {
    /// The number of its messages.
    pub messages: usize,
    /// The bytes of all of them, as they count.
    pub bytes: usize,
}

impl OwnConversation {
    /// The largest number of messages.
    pub const MESSAGES: usize = 1_000;
    /// The largest number of calls of tools in one message.
    pub const CALLS: usize = 128;
    /// The largest number of bytes of all messages together, without their question.
    pub const BYTES: usize = 1 << 20;

    /// Creates a conversation of these messages, oldest first; there may be none.
    ///
    /// # Errors
    /// [`ConversationTooLarge`].
    pub fn new(messages: Vec<Message>) -> Result<Self, ConversationTooLarge> {
        let conversation = Self::of(messages);
        let (messages, bytes) = (conversation.messages.len(), conversation.bytes);
        if messages > Self::MESSAGES || bytes > Self::BYTES {
            return Err(ConversationTooLarge { messages, bytes });
        }
        Ok(conversation)
    }

    /// Describes the bound of the bytes of all messages, for an error.
    pub fn bound_of_bytes() -> String {
        format!("{} bytes together, and each counts {MESSAGE_BYTES} more", Self::BYTES)
    }

    fn of(messages: Vec<Message>) -> Self {
        let bytes = messages.iter().map(Self::bytes_of).sum();
        let has_images = messages.iter().any(|message| !message.images.is_empty());
        Self { messages: messages.into(), bytes, has_images }
    }

    /// Returns the messages, oldest first.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Returns whether one of the messages has an image.
    pub(super) fn has_images(&self) -> bool {
        self.has_images
    }

    /// Returns the bytes of all messages together, as they count, which is more than they take as they
    /// are stored.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the bytes of memory that all messages take together, without images, about.
    pub(super) fn memory(&self) -> usize {
        let calls: usize = self.messages.iter().map(|message| message.tool_calls.len()).sum();
        self.bytes + calls * size_of::<ToolCall>()
    }

    /// Returns the bytes that a message counts: those of its text, of what belongs to tools as JSON, where
    /// a control character takes six bytes, and 512 for the message itself.
    pub fn bytes_of(message: &Message) -> usize {
        let calls = message.tool_calls.iter();
        let calls = calls.flat_map(|call| [&call.id, &call.name, &call.arguments]);
        let result = [&message.tool_call_id, &message.tool_name].into_iter().flatten();
        let of_tools: usize = calls.chain(result).map(|text| escaped_size(text)).sum();
        MESSAGE_BYTES + message.content.len() + of_tools
    }

    /// Returns the messages as they are stored at the beginning of a session: the parent of each is the
    /// one before it, whose number is that of the messages up to it.
    pub(super) fn entries(&self) -> impl Iterator<Item = Value> {
        self.messages.iter().enumerate().map(|(parent, message)| {
            let header = stored_message::header(message);
            let before = stored_message::before_content(message);
            format!("{parent} {header}\n{before}{}", message.content).into()
        })
    }

    /// Parses messages as they are stored.
    pub(super) fn parse<'a>(entries: impl Iterator<Item = &'a String>) -> Result<Self, StoreError> {
        let messages: Result<_, _> = entries.map(|entry| parse_stored_message(entry)).collect();
        messages.map(Self::of)
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::message;
    use super::*;
    use crate::session::model::Role;

    fn text_message(role: Role, content: &str) -> Message {
        Message { content: content.to_owned(), ..message(role, chrono::Utc::now()) }
    }

    #[test]
    fn a_conversation_is_bounded_by_messages_and_by_bytes() {
        let short = vec![text_message(Role::User, "x"); OwnConversation::MESSAGES];
        assert!(OwnConversation::new(short.clone()).is_ok());
        let result = Message {
            tool_name: Some("n".repeat(OwnConversation::BYTES / 2 - 511)),
            ..text_message(Role::Tool, "")
        };
        OwnConversation::new(vec![result.clone(); 2]).expect_err("each result repeats the name");
        let escaped = Message { content: String::new(), ..result.clone() };
        let quotes = Some("\"".repeat((OwnConversation::BYTES - MESSAGE_BYTES) / 2));
        assert!(
            OwnConversation::new(vec![Message { tool_name: quotes, ..escaped.clone() }]).is_ok()
        );
        let control = Some("\u{1}".repeat((OwnConversation::BYTES - MESSAGE_BYTES) / 6 + 1));
        let refused = OwnConversation::new(vec![Message { tool_name: control, ..escaped }]);
        assert!(refused.is_err(), "as it is stored");
        let many = [short, vec![text_message(Role::User, "x")]].concat();
        let refused = OwnConversation::new(many).expect_err("one too many");
        assert_eq!(refused, ConversationTooLarge { messages: 1_001, bytes: 1_001 * 513 });
        let long = vec![text_message(Role::Tool, &"x".repeat(OwnConversation::BYTES - 511))];
        assert!(OwnConversation::new(long).is_err());
        assert!(OwnConversation::new(Vec::new()).is_ok());
    }

    #[test]
    fn a_conversation_reads_back_as_it_was_written() {
        let roles = [Role::System, Role::User, Role::Assistant, Role::Tool];
        let contents = ["", "two\nlines", "\u{2}not reasoning\u{3}", "plain"];
        let messages: Vec<Message> = roles
            .iter()
            .flat_map(|role| contents.iter().map(|content| text_message(*role, content)))
            .collect();
        let own = OwnConversation::new(messages.clone()).expect("not too large");
        let entries: Vec<String> = own.entries().filter_map(|entry| entry.as_string()).collect();
        let read = OwnConversation::parse(entries.iter()).expect("readable");
        let plain = |message: &Message| (message.id, message.role, message.content.clone());
        let (read, written) = (read.messages().iter().map(plain), messages.iter().map(plain));
        assert_eq!(read.collect::<Vec<_>>(), written.collect::<Vec<_>>());
        assert!(own.messages().iter().all(|message| message.thinking.is_none()));
    }
}
