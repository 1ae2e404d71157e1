//! Conversations that clients create first: their metadata, the messages that clients add to them outside
//! of turns, and the questions whose requests a front shows again.

use chrono::{DateTime, Utc};

use super::history::{parse_message, parse_stored_message};
use super::turns::title;
use super::{Kept, SessionKeys, Store, StoreError, field, unexpected};
use crate::redis::Call;
use crate::session::model::{GenerationId, Message, Owner, Role, SessionId, rfc3339};
use crate::session::stored_message;

/// Bytes of the messages that one call adds, at most, as JSON: so that it never takes Redis long, and that
/// each is a line of an export that can be imported. The same is the bound of what the request of one turn
/// brings in a stored history.
pub const ADDED_BYTES: usize = 500 << 10;
/// Bytes of the question of a turn that its request brings into a stored history, at most, with its header:
/// Redis takes six milliseconds for a mebibyte.
pub const BROUGHT_BYTES: u64 = 640 << 10;

/// A conversation that begins without a turn.
#[derive(Clone, Debug)]
pub struct NewConversation {
    /// The identifier of its session, which is random.
    pub session: SessionId,
    /// The model until the first turn.
    pub model: String,
    /// The metadata as JSON.
    pub metadata: String,
    /// When it is created.
    pub created_at: DateTime<Utc>,
    /// Its first messages, with [`Message::is_added`].
    pub messages: Vec<Message>,
}

/// A session as a conversation that clients may add turns to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedConversation {
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// The metadata as JSON; empty where there is none.
    pub metadata: String,
}

/// Returns the bytes that messages take as JSON, which is at least what they take as they are stored.
pub fn json_bytes(messages: &[Message]) -> usize {
    stored_message::size_before(messages)
}

/// Returns a message as it is stored, without the number of its parent.
fn entry(message: &Message) -> String {
    let before = stored_message::before_content(message);
    format!("{}\n{before}{}", stored_message::header(message), message.content)
}

impl Store {
    /// Creates a conversation, which is a session without a turn. A repeat changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Absent`] where the session is another owner's; [`StoreError::Full`],
    /// [`StoreError::OutOfMemory`], [`StoreError::Redis`].
    pub async fn create_conversation(
        &self,
        owner: &Owner,
        new: &NewConversation,
    ) -> Result<(), StoreError> {
        // Without a message of the user it has the title of its first turn.
        let first = new.messages.iter().find(|message| message.role == Role::User);
        let idle_seconds = self.idle_seconds(owner, Kept::AsHistory);
        let call = SessionKeys::of(new.session)
            .call("jarvis_add_messages_1")
            .arg("owner", owner.key())
            .flag("creates", true)
            .arg("title", first.map_or_else(String::new, |first| title(&first.content)))
            .arg("model", new.model.as_str())
            .arg("metadata", new.metadata.as_str())
            .text("idle_seconds", idle_seconds)
            .text("unused_seconds", self.limits.kept_conversation_idle_seconds)
            .arg("now", rfc3339(&new.created_at));
        self.call_add(call, &new.messages).await
    }

    /// Adds messages to a conversation in which no turn runs or waits: at least one. A repeat changes
    /// nothing.
    ///
    /// # Errors
    /// [`StoreError::Absent`], also where the session's first turn brought its own conversation;
    /// [`StoreError::TurnRuns`], [`StoreError::Full`], [`StoreError::OutOfMemory`],
    /// [`StoreError::Redis`].
    pub async fn add_messages(
        &self,
        owner: &Owner,
        session: SessionId,
        messages: &[Message],
    ) -> Result<(), StoreError> {
        let call = SessionKeys::of(session)
            .call("jarvis_add_messages_1")
            .arg("owner", owner.key())
            .flag("creates", false)
            .arg("title", "")
            .arg("model", "")
            .arg("metadata", "")
            .text("idle_seconds", 0)
            .text("unused_seconds", 0)
            .arg("now", rfc3339(&Utc::now()));
        self.call_add(call, messages).await
    }

    /// Ends a call of `add_messages` with what is the same for every call.
    async fn call_add(&self, call: Call, messages: &[Message]) -> Result<(), StoreError> {
        let call = call
            .text("bytes_limit", self.limits.session_bytes)
            .rest("messages", messages.iter().map(|message| entry(message).into()));
        match self.redis.call_replicated::<String>(call).await?.as_str() {
            "ok" => Ok(()),
            "absent" => Err(StoreError::Absent),
            "busy" => Err(StoreError::TurnRuns(
                "A turn of this conversation runs or waits; add the messages when it has ended.",
            )),
            "full" => Err(StoreError::Full),
            _ => Err(unexpected("messages")),
        }
    }

    /// Describes a session as a conversation.
    ///
    /// # Errors
    /// [`StoreError::Absent`], also where the session's first turn brought its own conversation;
    /// [`StoreError::Redis`].
    pub async fn conversation(
        &self,
        owner: &Owner,
        session: SessionId,
    ) -> Result<DescribedConversation, StoreError> {
        let keys = SessionKeys::of(session);
        let call = keys.call_with("jarvis_conversation_1", &["session", "messages"]);
        let call = call.arg("owner", owner.key());
        let reply: Vec<String> = self.redis.call_readonly(call).await?;
        match reply.first().map(String::as_str) {
            Some("ok") => Ok(DescribedConversation {
                created_at: field(&reply, 1)?,
                metadata: field(&reply, 2)?,
            }),
            Some("absent") => Err(StoreError::Absent),
            _ => Err(unexpected("conversation")),
        }
    }

    /// Returns the question of a generation, also of one that waits; none where there is no such question,
    /// or its request was hidden.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn question(
        &self,
        owner: &Owner,
        session: SessionId,
        generation: GenerationId,
    ) -> Result<Option<Message>, StoreError> {
        let keys = SessionKeys::of(session);
        let call = keys
            .call_with("jarvis_question_1", &["session", "messages", "index"])
            .arg("owner", owner.key())
            .text("generation", generation);
        let reply: Vec<String> = self.redis.call_readonly(call).await?;
        match reply.as_slice() {
            [kind, entry] if kind == "stored" => parse_stored_message(entry).map(Some),
            [kind, entry] if kind == "waits" => parse_message(entry).map(Some),
            [kind] if kind == "none" => Ok(None),
            [kind] if kind == "absent" => Err(StoreError::Absent),
            _ => Err(unexpected("question")),
        }
    }

    /// Hides what a front shows again of the request of a turn. The messages stay. Returns whether there is
    /// such a turn.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn hide_request(
        &self,
        owner: &Owner,
        session: SessionId,
        generation: GenerationId,
    ) -> Result<bool, StoreError> {
        let keys = SessionKeys::of(session);
        let call = keys
            .call_with("jarvis_hide_request_1", &["session", "messages", "index"])
            .arg("owner", owner.key())
            .text("generation", generation);
        match self.redis.call_replicated::<String>(call).await?.as_str() {
            "ok" => Ok(true),
            "none" => Ok(false),
            "absent" => Err(StoreError::Absent),
            _ => Err(unexpected("request")),
        }
    }
}
