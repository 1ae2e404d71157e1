//! Finished messages, and what is told of a session.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Keys, Store, StoreError, field, optional, unexpected};
use crate::session::model::{GenerationId, Message, Owner, Role, SessionId, SessionInfo, rfc3339};
use crate::session::thoughts::Shape;

/// Bytes of messages in one reply, at most, but for one message that is larger alone.
pub const REPLY_BYTES: usize = 1 << 20;

/// Some messages of a session.
#[derive(Clone, Debug)]
pub struct Page {
    /// The session.
    pub info: SessionInfo,
    /// The generation that is running.
    pub running: Option<GenerationId>,
    /// The place of the first one given, 0 the oldest of all.
    pub first: u64,
    /// Oldest first.
    pub messages: Vec<Message>,
}

/// A session and its live state.
#[derive(Clone, Debug)]
pub struct Described {
    /// The session.
    pub info: SessionInfo,
    /// The generation that is running.
    pub running: Option<GenerationId>,
    /// The last generation whose writer closed its request to the model's host after a cancel.
    pub upstream_closed: Option<GenerationId>,
}

impl Store {
    /// Names the session.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn retitle(
        &self,
        owner: &Owner,
        session: SessionId,
        title: &str,
    ) -> Result<(), StoreError> {
        let args = vec![owner.key().into(), title.into(), rfc3339(&Utc::now()).into()];
        let keys = Keys::of(session);
        let reply: String = self.redis.call("jarvis_retitle_1", &keys.all(), args).await?;
        if reply == "ok" { Ok(()) } else { Err(StoreError::Absent) }
    }

    /// The session without its messages.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn describe(
        &self,
        owner: &Owner,
        session: SessionId,
    ) -> Result<Described, StoreError> {
        described(session, &self.session(owner, session, "-").await?)
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
        let reply = self.session(owner, session, &generation.to_string()).await?;
        described(session, &reply)?;
        Ok(field::<u8>(&reply, 8)? == 1)
    }

    async fn session(
        &self,
        owner: &Owner,
        session: SessionId,
        generation: &str,
    ) -> Result<Vec<String>, StoreError> {
        let keys = Keys::of(session);
        let args = vec![owner.key().into(), generation.into()];
        Ok(self.redis.call_readonly("jarvis_session_1", &keys.all(), args).await?)
    }

    /// The messages from place `skip` on, at most `limit` of them and [`REPLY_BYTES`].
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
        let last = skip.saturating_add(limit - 1);
        self.messages(owner, session, &skip.to_string(), &last.to_string(), REPLY_BYTES, false)
            .await
    }

    /// The newest messages, at most `limit` of them (at least 1) and `bytes`, oldest first.
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
        let first = format!("-{}", limit.max(1));
        self.messages(owner, session, &first, "-1", bytes, true).await
    }

    /// The messages just before place `before`, at most `limit` (at least 1) and [`REPLY_BYTES`].
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
        let first = before.saturating_sub(limit.max(1)).to_string();
        let last = (before - 1).to_string();
        self.messages(owner, session, &first, &last, REPLY_BYTES, true).await
    }

    async fn messages(
        &self,
        owner: &Owner,
        session: SessionId,
        first: &str,
        last: &str,
        bytes: usize,
        newest: bool,
    ) -> Result<Page, StoreError> {
        let args = vec![
            owner.key().into(),
            first.into(),
            last.into(),
            bytes.to_string().into(),
            if newest { "1" } else { "0" }.into(),
        ];
        let keys = Keys::of(session);
        let reply: Vec<String> =
            self.redis.call_readonly("jarvis_messages_1", &keys.all(), args).await?;
        let Described { info, running, .. } = described(session, &reply)?;
        let first = field(&reply, 8)?;
        let messages = reply.iter().skip(9).map(|entry| stored_message(entry)).collect();
        Ok(Page { info, running, first, messages: collect(messages)? })
    }

    /// The place and text of the message that a generation made, searched from the newest back.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn find_message(
        &self,
        owner: &Owner,
        session: SessionId,
        wanted: impl Fn(&Message) -> bool,
    ) -> Result<Option<(u64, Message)>, StoreError> {
        let mut page = self.newest(owner, session, 50, REPLY_BYTES).await?;
        loop {
            let found = page.messages.iter().rposition(&wanted);
            if let Some(place) = found {
                let message = page.messages.swap_remove(place);
                return Ok(Some((page.first + place as u64, message)));
            }
            if page.first == 0 || page.messages.is_empty() {
                return Ok(None);
            }
            page = self.page_before(owner, session, page.first, 500).await?;
        }
    }
}

/// A message with nothing in it yet.
pub fn message(role: Role, timestamp: DateTime<Utc>) -> Message {
    Message {
        id: Uuid::new_v4(),
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
    }
}

fn described(session: SessionId, reply: &[String]) -> Result<Described, StoreError> {
    match reply.first().map(String::as_str) {
        Some("ok") => {}
        Some("absent") => return Err(StoreError::Absent),
        _ => return Err(unexpected("session")),
    }
    let info = SessionInfo {
        session_id: session,
        title: field(reply, 1)?,
        model: field(reply, 2)?,
        created_at: field(reply, 3)?,
        updated_at: field(reply, 4)?,
        message_count: field(reply, 5)?,
    };
    Ok(Described { info, running: optional(reply, 6)?, upstream_closed: optional(reply, 7)? })
}

pub(super) fn stored_message(entry: &str) -> Result<Message, StoreError> {
    let (header, content) = entry.split_once('\n').ok_or_else(|| unexpected("message"))?;
    let mut message: Message =
        serde_json::from_str(header).map_err(|_| unexpected("message header"))?;
    match message.role {
        Role::User => content.clone_into(&mut message.content),
        Role::Assistant => {
            let shape = Shape::of(content);
            shape.answer(content).clone_into(&mut message.content);
            message.thinking = shape.thoughts(content).map(str::to_owned);
        }
    }
    Ok(message)
}

fn collect<T>(items: Vec<Result<T, StoreError>>) -> Result<Vec<T>, StoreError> {
    items.into_iter().collect()
}
