//! Finished messages, and the description of a session.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{SessionKeys, Store, StoreError, field, optional, unexpected};
use crate::session::branch::Siblings;
use crate::session::model::{GenerationId, Message, Owner, Role, SessionId, SessionInfo};
use crate::session::stored_message;

/// The largest size of the messages in one reply, in bytes. Only a single larger message exceeds
/// it.
pub const REPLY_BYTES: usize = 1 << 20;

/// A page of a session's messages.
#[derive(Clone, Debug)]
pub struct Page {
    /// The session.
    pub info: SessionInfo,
    /// The running generation.
    pub running: Option<GenerationId>,
    /// The position of the page's first message in the history, 0 the oldest.
    pub first: u64,
    /// The messages, oldest first.
    pub messages: Vec<Message>,
}

/// A session and its live state.
#[derive(Clone, Debug)]
pub struct Described {
    /// The session.
    pub info: SessionInfo,
    /// The running generation.
    pub running: Option<GenerationId>,
    /// The last generation whose writer closed its request to the model host after a cancel.
    pub upstream_closed: Option<GenerationId>,
}

/// A message that was found by its id.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The position of the message in the history, 0 the oldest; none where another branch is selected.
    pub position: Option<u64>,
    /// The message.
    pub message: Message,
}

/// The first turn of a session, which brought its own conversation.
#[derive(Clone, Debug)]
pub struct AnsweredTurn {
    /// The generation that answers it.
    pub generation: GenerationId,
    /// The number of messages that it brought. They are the first ones of the session.
    pub brought: u64,
    /// The message that it answers.
    pub question: Message,
    /// The answer, once it has ended.
    pub answer: Option<Message>,
}

impl Store {
    /// Returns the first turn of a session, where it brought its own conversation; none of another
    /// session, and none while a failover keeps that turn from its place.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn own_turn(
        &self,
        owner: &Owner,
        session: SessionId,
    ) -> Result<Option<AnsweredTurn>, StoreError> {
        let reply = self.call_describe(owner, session, "-".to_owned()).await?;
        parse_described(session, &reply)?;
        let Some(brought) = optional::<u64>(&reply, 11)? else { return Ok(None) };
        // One by one: a large question would leave no room for the answer.
        let question = self.page(owner, session, brought, 1).await?.messages.pop();
        let Some(question) = question else { return Ok(None) };
        let generation = GenerationId::of_question(question.id);
        let answer = self.find_answer(owner, session, generation).await?;
        let answer = answer.map(|found| found.message);
        Ok(Some(AnsweredTurn { generation, brought, question, answer }))
    }

    /// Describes the session without its messages.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn describe(
        &self,
        owner: &Owner,
        session: SessionId,
    ) -> Result<Described, StoreError> {
        parse_described(session, &self.call_describe(owner, session, "-".to_owned()).await?)
    }

    /// Describes a session for a list of them; none where the session's first turn brought its own
    /// conversation, because such a session is not listed.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn describe_listed(
        &self,
        owner: &Owner,
        session: SessionId,
    ) -> Result<Option<SessionInfo>, StoreError> {
        let reply = self.call_describe(owner, session, "-".to_owned()).await?;
        let described = parse_described(session, &reply)?;
        Ok(optional::<u64>(&reply, 11)?.is_none().then_some(described.info))
    }

    /// Whether this generation waits or runs in the session.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn is_open(
        &self,
        owner: &Owner,
        session: SessionId,
        generation: GenerationId,
    ) -> Result<bool, StoreError> {
        let reply = self.call_describe(owner, session, generation.to_string()).await?;
        parse_described(session, &reply)?;
        Ok(field::<u8>(&reply, 10)? == 1)
    }

    async fn call_describe(
        &self,
        owner: &Owner,
        session: SessionId,
        generation: String,
    ) -> Result<Vec<String>, StoreError> {
        let call = SessionKeys::of(session)
            .call_with("jarvis_describe_1", &["session", "messages", "path", "open"])
            .arg("owner", owner.key())
            .arg("generation", generation);
        Ok(self.redis.call_readonly(call).await?)
    }

    /// Returns the messages from position `skip` on, at most `limit` of them and [`REPLY_BYTES`].
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn page(
        &self,
        owner: &Owner,
        session: SessionId,
        skip: u64,
        limit: u64,
    ) -> Result<Page, StoreError> {
        if limit == 0 {
            let Described { info, running, .. } = self.describe(owner, session).await?;
            return Ok(Page { info, running, first: skip, messages: Vec::new() });
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let first = i64::try_from(skip).unwrap_or(i64::MAX);
        let last = first.saturating_add(limit - 1);
        let range = PathRange { first, last, newest_first: false };
        self.messages(owner, session, range, REPLY_BYTES).await
    }

    /// Returns the newest messages, oldest first: at most `limit` of them (at least 1) and `bytes`.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn newest(
        &self,
        owner: &Owner,
        session: SessionId,
        limit: u64,
        bytes: usize,
    ) -> Result<Page, StoreError> {
        let limit = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
        let range = PathRange { first: -limit, last: -1, newest_first: true };
        self.messages(owner, session, range, bytes).await
    }

    /// Returns the messages just before position `before`, at most `limit` of them (at least 1) and
    /// [`REPLY_BYTES`].
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn page_before(
        &self,
        owner: &Owner,
        session: SessionId,
        before: u64,
        limit: u64,
    ) -> Result<Page, StoreError> {
        if before == 0 {
            return self.page(owner, session, 0, 0).await;
        }
        let signed = |position: u64| i64::try_from(position).unwrap_or(i64::MAX);
        let first = signed(before.saturating_sub(limit.max(1)));
        let range = PathRange { first, last: signed(before - 1), newest_first: true };
        self.messages(owner, session, range, REPLY_BYTES).await
    }

    /// Reads messages in batches, so that no call blocks Redis for long. If the session is cleared, or
    /// another branch is selected, between two batches, the messages that were read before are returned.
    async fn messages(
        &self,
        owner: &Owner,
        session: SessionId,
        mut range: PathRange,
        bytes: usize,
    ) -> Result<Page, StoreError> {
        let Batch { described, epoch, mut more, mut first, bytes: mut read, mut messages } =
            self.batch(owner, session, &range, bytes, true).await?;
        let Described { info, running, .. } = described;
        if range.first < 0 {
            // An absolute position, so that messages that are added meanwhile do not move it.
            let total = i64::try_from(info.message_count).unwrap_or(i64::MAX);
            range.first = total.saturating_add(range.first).max(0);
        }
        while more {
            let (start, count) = (i64::try_from(first), i64::try_from(messages.len()));
            let (Ok(start), Ok(count)) = (start, count) else { break };
            let rest = if range.newest_first {
                PathRange { last: start - 1, ..range }
            } else {
                PathRange { first: start + count, ..range }
            };
            let left = bytes.saturating_sub(read);
            let batch = match self.batch(owner, session, &rest, left, false).await {
                Ok(batch) if batch.epoch == epoch && !batch.messages.is_empty() => batch,
                Ok(_) | Err(StoreError::Absent) => break,
                Err(error) => return Err(error),
            };
            let (older, newer) = if range.newest_first {
                (batch.messages.last(), messages.first())
            } else {
                (messages.last(), batch.messages.first())
            };
            if !follows(older, newer) {
                break;
            }
            more = batch.more;
            read += batch.bytes;
            if range.newest_first {
                first = batch.first;
                messages.splice(..0, batch.messages);
            } else {
                messages.extend(batch.messages);
            }
        }
        Ok(Page { info, running, first, messages })
    }

    async fn batch(
        &self,
        owner: &Owner,
        session: SessionId,
        range: &PathRange,
        bytes: usize,
        at_least_one: bool,
    ) -> Result<Batch, StoreError> {
        let names = ["session", "messages", "path", "branches"];
        let call = SessionKeys::of(session)
            .call_with("jarvis_messages_1", &names)
            .arg("owner", owner.key())
            .text("first", range.first)
            .text("last", range.last)
            .text("bytes", bytes)
            .flag("newest_first", range.newest_first)
            .flag("at_least_one", at_least_one);
        let reply: Vec<String> = self.redis.call_readonly(call).await?;
        let described = parse_described(session, &reply)?;
        let (epoch, first) = (field(&reply, 8)?, field(&reply, 11)?);
        let more = reply.get(10).is_some_and(|more| more == "more");
        let with_siblings: usize = field(&reply, 13)?;
        let entries = 14 + 2 * with_siblings;
        let siblings = reply.get(14..entries).ok_or_else(|| unexpected("siblings"))?;
        let stored = &reply[entries..];
        let messages = stored.iter().map(|entry| parse_stored_message(entry));
        let mut messages = messages.collect::<Result<Vec<_>, _>>()?;
        for pair in siblings.chunks_exact(2) {
            let at: usize = field(pair, 0)?;
            if let Some(message) = messages.get_mut(at) {
                message.siblings = Siblings::of(message.id, &pair[1]);
            }
        }
        if !reply[12].is_empty() {
            let mut before: Option<Uuid> = optional(&reply, 12)?;
            for message in &mut messages {
                message.parent_id = before.replace(message.id);
            }
        }
        let bytes = stored.iter().map(String::len).sum();
        Ok(Batch { described, epoch, more, first, bytes, messages })
    }

    /// Returns a message, on whichever branch it is, and its position in the history.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn find_message(
        &self,
        owner: &Owner,
        session: SessionId,
        id: Uuid,
    ) -> Result<Option<Found>, StoreError> {
        self.find_by(owner, session, id, false).await
    }

    /// Returns the answer of a generation as [`Store::find_message`] does, if it has ended. It costs Redis
    /// little also where there is none and the session's first turn brought many messages.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn find_answer(
        &self,
        owner: &Owner,
        session: SessionId,
        generation: GenerationId,
    ) -> Result<Option<Found>, StoreError> {
        self.find_by(owner, session, generation.0, true).await
    }

    async fn find_by(
        &self,
        owner: &Owner,
        session: SessionId,
        id: Uuid,
        of_generation: bool,
    ) -> Result<Option<Found>, StoreError> {
        let names = ["session", "messages", "path", "branches", "index"];
        let call = SessionKeys::of(session)
            .call_with("jarvis_message_1", &names)
            .arg("owner", owner.key())
            .text("id", id)
            .flag("of_generation", of_generation);
        let reply: Vec<String> = self.redis.call_readonly(call).await?;
        match reply.as_slice() {
            [status] if status == "absent" => Err(StoreError::Absent),
            [status] if status == "none" => Ok(None),
            [status, _, _, siblings, entry] if status == "ok" => {
                let message = parse_stored_message(entry)?;
                let siblings = Siblings::of(message.id, siblings);
                let message = Message { parent_id: optional(&reply, 2)?, siblings, ..message };
                Ok(Some(Found { position: optional(&reply, 1)?, message }))
            }
            _ => Err(unexpected("message")),
        }
    }
}

/// Returns whether the messages of two batches are of one path, as far as their session has branches.
fn follows(older: Option<&Message>, newer: Option<&Message>) -> bool {
    match newer.and_then(|newer| newer.parent_id) {
        Some(parent) => older.is_some_and(|older| older.id == parent),
        None => true,
    }
}

/// A range of positions on the selected path; negative positions count from the end.
#[derive(Clone, Copy)]
struct PathRange {
    first: i64,
    last: i64,
    newest_first: bool,
}

/// The messages of one call.
struct Batch {
    described: Described,
    epoch: String,
    /// Whether messages of the range are left that may fit.
    more: bool,
    /// The position of the first message.
    first: u64,
    /// The bytes of the messages as they are stored.
    bytes: usize,
    messages: Vec<Message>,
}

/// Creates an empty message.
pub fn message(role: Role, timestamp: DateTime<Utc>) -> Message {
    Message {
        id: Uuid::new_v4(),
        parent_id: None,
        siblings: None,
        role,
        content: String::new(),
        thinking: None,
        timestamp,
        user_id: None,
        generation_id: None,
        model: None,
        status: None,
        finish_reason: None,
        usage: None,
        context: None,
        error: None,
        writers: None,
        continued: Vec::new(),
        tool_calls: Vec::new(),
        images: Vec::new(),
        tool_call_id: None,
        tool_name: None,
        request: None,
        before: Vec::new(),
        is_added: false,
    }
}

fn parse_described(session: SessionId, reply: &[String]) -> Result<Described, StoreError> {
    match reply.first().map(String::as_str) {
        Some("ok") => {}
        Some("absent") => return Err(StoreError::Absent),
        _ => return Err(unexpected("session")),
    }
    let running: Option<GenerationId> = optional(reply, 6)?;
    let has_mark = |mark| reply.get(9).is_some_and(|marks| marks.contains(mark));
    let info = SessionInfo {
        session_id: session,
        title: field(reply, 1)?,
        model: field(reply, 2)?,
        created_at: field(reply, 3)?,
        updated_at: field(reply, 4)?,
        message_count: field(reply, 5)?,
        pinned: has_mark('p'),
        archived: has_mark('a'),
        running: running.is_some(),
    };
    Ok(Described { info, running, upstream_closed: optional(reply, 7)? })
}

/// Parses a stored message, which begins with the number of its parent.
pub(super) fn parse_stored_message(entry: &str) -> Result<Message, StoreError> {
    let (_parent, message) = entry.split_once(' ').ok_or_else(|| unexpected("message"))?;
    parse_message(message)
}

/// Parses a message without the number of its parent.
pub(super) fn parse_message(entry: &str) -> Result<Message, StoreError> {
    stored_message::parse(entry).ok_or_else(|| unexpected("message"))
}
