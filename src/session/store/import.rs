//! Imported sessions: written in batches that nobody sees, and then made visible in one step.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{SessionKeys, Store, StoreError, field, unexpected};
use crate::session::model::{Message, Owner, Role, SessionId, rfc3339};
use crate::session::{reasoning, stored_message};

/// Bytes of the messages of one batch; only a single larger message exceeds it.
const BATCH_BYTES: usize = 256 << 10;
/// Messages of one batch, at most, so that no call blocks Redis for long.
const BATCH_MESSAGES: usize = 50;
/// How long the messages of an import that broke off are kept, for its repeat.
const STAGED_SECONDS: u64 = 600;

/// A session as it is imported, with its messages as they are stored.
#[derive(Debug)]
pub struct ImportedSession {
    /// The new identifier, which follows from owner and content.
    pub session: SessionId,
    /// The title.
    pub title: String,
    /// The model of the last turn.
    pub model: String,
    /// When the session began.
    pub created_at: DateTime<Utc>,
    /// Whether its owner has pinned it.
    pub pinned: bool,
    /// Whether its owner has archived it.
    pub archived: bool,
    /// The messages as [`ImportedSession::entry`] makes them.
    pub entries: Vec<String>,
}

impl ImportedSession {
    /// Returns a message as it is stored; none where its reasoning holds U+0003, which ends it.
    pub fn entry(message: &Message) -> Option<String> {
        let content = match message.role {
            Role::Assistant => reasoning::joined(message.thinking.as_deref(), &message.content)?,
            Role::System | Role::User | Role::Tool => message.content.clone(),
        };
        Some(format!("{}\n{content}", stored_message::header(message)))
    }

    /// Gives each message the id that follows from the session and its position, instead of the one
    /// with which it was made. So a message is in memory once, as it is stored.
    pub fn name_messages(&mut self) {
        for (number, entry) in self.entries.iter_mut().enumerate() {
            let id = Uuid::new_v5(&self.session.0, &number.to_be_bytes());
            // Every entry begins with its header.
            stored_message::replace_id(entry, id);
        }
    }

    /// Returns the messages from this one on that go with one call.
    fn batch(&self, from: usize) -> &[String] {
        let rest = self.entries.get(from..).unwrap_or_default();
        let mut bytes = 0;
        let count = rest.iter().take(BATCH_MESSAGES).take_while(|entry| {
            let is_first = bytes == 0;
            bytes += entry.len();
            is_first || bytes <= BATCH_BYTES
        });
        &rest[..count.count()]
    }
}

/// The result of one step of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportStep {
    /// So many messages are stored, and nobody sees them yet.
    Staged(usize),
    /// The session is there, with all its messages.
    Exists,
}

impl Store {
    /// Stores the next batch of messages, behind the first `from`; without any, it only begins.
    ///
    /// # Errors
    /// [`StoreError::Absent`] where the session is another owner's; [`StoreError::Redis`].
    pub async fn import_messages(
        &self,
        owner: &Owner,
        imported: &ImportedSession,
        from: Option<usize>,
    ) -> Result<ImportStep, StoreError> {
        let batch = from.map_or(&[][..], |from| imported.batch(from));
        let call = SessionKeys::of(imported.session)
            .call("jarvis_import_messages_1")
            .arg("owner", owner.key())
            .text("from", from.unwrap_or_default())
            .text("seconds", STAGED_SECONDS)
            .rest("entries", batch.iter().map(|entry| entry.as_str().into()));
        let reply: Vec<String> = self.redis.call(call).await?;
        match reply.first().map(String::as_str) {
            Some("ok") => Ok(ImportStep::Staged(field(&reply, 1)?)),
            Some("exists") => Ok(ImportStep::Exists),
            Some("absent") => Err(StoreError::Absent),
            _ => Err(unexpected("import")),
        }
    }

    /// Makes a session visible whose messages are all stored.
    ///
    /// # Errors
    /// [`StoreError::Absent`] where no session of this owner is being imported;
    /// [`StoreError::Redis`].
    pub async fn import_commit(
        &self,
        owner: &Owner,
        imported: &ImportedSession,
    ) -> Result<ImportStep, StoreError> {
        let flag = |flag: bool| if flag { "1" } else { "" };
        let call = SessionKeys::of(imported.session)
            .call("jarvis_import_commit_1")
            .arg("owner", owner.key())
            .text("count", imported.entries.len())
            .arg("title", imported.title.as_str())
            .arg("model", imported.model.as_str())
            .arg("created", rfc3339(&imported.created_at))
            .arg("now", rfc3339(&Utc::now()))
            .arg("pinned", flag(imported.pinned))
            .arg("archived", flag(imported.archived));
        let reply: Vec<String> = self.redis.call_replicated(call).await?;
        match reply.first().map(String::as_str) {
            Some("ok") => Ok(ImportStep::Exists),
            Some("incomplete") => Ok(ImportStep::Staged(field(&reply, 1)?)),
            Some("absent") => Err(StoreError::Absent),
            _ => Err(unexpected("import")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::message;
    use super::*;
    use crate::session::model::GenerationId;

    #[test]
    fn a_message_that_is_named_later_is_the_one_that_had_its_id_from_the_beginning() {
        let session = SessionId::random();
        let now = Utc::now();
        let entry = |role, id: Uuid| {
            let generation_id = (role == Role::Assistant).then_some(GenerationId(id));
            let content = "{\"i\":\"no id\"}".to_owned();
            let message = Message { id, content, generation_id, ..message(role, now) };
            ImportedSession::entry(&message).expect("an entry")
        };
        let roles = [Role::User, Role::Assistant, Role::Tool];
        let mut imported = ImportedSession {
            session,
            title: String::new(),
            model: String::new(),
            created_at: now,
            pinned: false,
            archived: false,
            entries: roles.map(|role| entry(role, Uuid::nil())).to_vec(),
        };
        imported.name_messages();
        let id = |number: usize| Uuid::new_v5(&session.0, &number.to_be_bytes());
        let named: Vec<_> =
            roles.iter().enumerate().map(|(number, role)| entry(*role, id(number))).collect();
        assert_eq!(imported.entries, named);
    }
}
