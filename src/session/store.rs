//! Sessions in Redis: the keys, and the functions that change them.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use fred::prelude::Value;
use serde::Serialize;
use uuid::Uuid;

use super::cursor::{Cursor, Tag};
use super::event::{Control, Event};
use super::model::{
    FinishReason, GenerationId, Message, Owner, Role, SessionId, SessionInfo, Status, TurnSpec,
    rfc3339,
};
use super::window::{Answer, Window};
use crate::redis::{Redis, RedisError};

/// Bounds of what is stored.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Turns that may wait in one session.
    pub waiting_turns: u32,
    /// Bytes of one session's messages.
    pub session_bytes: u64,
    /// Seconds that an idle anonymous session is kept.
    pub anonymous_idle_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            waiting_turns: 8,
            session_bytes: 64 << 20,
            anonymous_idle_seconds: 30 * 24 * 60 * 60,
        }
    }
}

/// Bytes of messages in one reply, at most, but for one message that is larger alone.
pub const REPLY_BYTES: usize = 1 << 20;
/// Bytes of events and answers in one read, at most, but for one event that is larger alone.
const READ_BYTES: usize = 2 << 20;
/// How long an idempotency key is remembered.
const KEY_SECONDS: u64 = 24 * 60 * 60;
/// How long a deleted session's counters are kept, so that its cursors do not come again.
const TOMBSTONE_SECONDS: u64 = 60 * 60;
const TITLE_CHARACTERS: usize = 80;

/// What went wrong with a session.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is not there, or not the caller's.
    #[error("no such session")]
    Absent,
    /// As many turns wait as may.
    #[error("this session has as many waiting turns as it may have")]
    Busy,
    /// The session holds as much as it may.
    #[error("this session is full; begin a new one or clear it")]
    Full,
    /// The idempotency key was used for another request.
    #[error("this idempotency key was used for another request")]
    KeyReused,
    /// Redis.
    #[error(transparent)]
    Redis(#[from] RedisError),
}

/// A request that is the same request however often it is sent.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// The client's word for it, at most 255 bytes.
    pub key: String,
    /// A digest of what was asked.
    pub body: String,
}

/// A user's message on its way in.
#[derive(Clone, Debug)]
pub struct NewTurn {
    /// What was asked for.
    pub spec: TurnSpec,
    /// The user's text.
    pub content: String,
    /// Where a repeat is to find the first.
    pub key: Option<IdempotencyKey>,
}

/// The right to write one answer. Compared for equality in Redis, never for order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence(pub Uuid);

/// An accepted turn, with all that its writer needs.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Whose.
    pub owner: Owner,
    /// Where.
    pub session: SessionId,
    /// The run.
    pub generation: GenerationId,
    /// The right to write it.
    pub fence: Fence,
    /// What was asked for.
    pub spec: TurnSpec,
}

/// An unfinished turn, as the index of its bucket has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTurn {
    /// Where.
    pub session: SessionId,
    /// The run.
    pub generation: GenerationId,
    /// The replica that has it.
    pub replica: String,
    /// That replica's right to write it.
    pub fence: Fence,
}

/// What a claim came to.
#[derive(Debug)]
pub enum Claim {
    /// The turn is the running one, and ours; so many replicas wrote it, we included.
    Running(Turn, u32),
    /// The turn waits, and is ours.
    Waiting(Turn),
    /// It has ended, or another replica was faster.
    Other,
}

/// The number of buckets, each with an index of its open turns.
pub const BUCKETS: u16 = 256;
const BEATS: &str = "jarvis:{queue}:beats";

/// What became of a [`NewTurn`].
#[derive(Debug)]
pub enum Acceptance {
    /// It is a new turn.
    New {
        /// To run.
        turn: Turn,
        /// Whether it is the session's running turn now, or waits for another.
        began: bool,
        /// The place in the session just before it.
        before: Cursor,
    },
    /// It was accepted before, with the same key.
    Same {
        /// The run that answers it, or has.
        generation: GenerationId,
        /// The place in the session just before it, while that is kept.
        before: Option<Cursor>,
    },
}

/// Whether a waiting turn's time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It is the running turn.
    Began,
    /// Another one still runs, or waits before it.
    Waiting,
    /// It was cancelled, or another replica has it.
    Gone,
}

/// What Redis said to a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Stored.
    Ok,
    /// Somebody else has the fence, or the generation has ended: stop.
    Fenced,
    /// Redis has only this many bytes of the answer: write again from there.
    Hole(u64),
}

/// What a cancel met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// The running generation.
    Running(GenerationId),
    /// A turn that waited.
    Waiting(GenerationId),
    /// Nothing that could be cancelled.
    Nothing,
}

/// What a read found.
#[derive(Debug)]
pub enum Read {
    /// All from the cursor on, or as much of it as fits one read.
    Window {
        /// What was read.
        window: Window,
        /// Whether there is more.
        more: bool,
    },
    /// The cursor is of another history, or what follows it is no longer kept.
    Unknown,
    /// No such session of this owner.
    Absent,
}

/// Where to read from.
#[derive(Clone, Copy, Debug)]
pub enum From {
    /// From a cursor; `held` bytes of its generation's answer are held already.
    Cursor(Cursor, u64),
    /// From where the running turn began, else from the end.
    RunningTurn,
}

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

/// The sessions in Redis.
#[derive(Clone)]
pub struct Store {
    redis: Redis,
    replica: String,
    limits: Limits,
}

struct Keys([String; 6]);

impl Keys {
    fn of(session: SessionId) -> Self {
        let base = channel(session);
        let bucket = bucket(session);
        Self([
            base.clone(),
            format!("{base}:messages"),
            format!("{base}:waiting"),
            format!("{base}:events"),
            format!("{base}:answer"),
            format!("jarvis:{{b{bucket}}}:open"),
        ])
    }

    fn all(&self) -> [&str; 6] {
        self.0.each_ref().map(String::as_str)
    }
}

/// All keys of a bucket lie in one slot, so that a function may touch a session and its bucket's
/// index in one step.
fn bucket(session: SessionId) -> u8 {
    session.0.as_bytes().iter().fold(0, |sum, byte| sum ^ byte)
}

/// The name of a session's hash and of its channel.
pub(super) fn channel(session: SessionId) -> String {
    format!("jarvis:{{b{}}}:s:{session}", bucket(session))
}

/// The session that a channel belongs to.
pub(super) fn session_of(channel: &str) -> Option<SessionId> {
    channel.rsplit(':').next()?.parse().ok()
}

impl Store {
    /// A store whose turns are held in the name of `replica`.
    pub fn new(redis: Redis, replica: String, limits: Limits) -> Self {
        Self { redis, replica, limits }
    }

    /// Whether Redis answers.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn ping(&self) -> Result<(), RedisError> {
        self.redis.ping().await
    }

    /// Takes in a user's message as a turn of the session, which is created where it is not known.
    ///
    /// # Errors
    /// Any [`StoreError`]. After [`StoreError::Redis`] the message may have been accepted.
    pub async fn accept(
        &self,
        owner: &Owner,
        session: SessionId,
        new: &NewTurn,
    ) -> Result<Acceptance, StoreError> {
        let now = Utc::now();
        let turn = Turn {
            owner: owner.clone(),
            session,
            generation: GenerationId::random(),
            fence: Fence(Uuid::new_v4()),
            spec: new.spec.clone(),
        };
        let header = json(&Message {
            user_id: Some(owner.user_id().to_owned()),
            ..message(Role::User, now)
        });
        let accepted = Control::Accepted {
            message: new.content.clone(),
            timestamp: rfc3339(&now),
            message_id: new.spec.message_id.clone(),
        };
        let idle = self.idle_seconds(owner);
        let args: Vec<Value> = vec![
            owner.key().into(),
            turn.generation.to_string().into(),
            turn.fence.0.to_string().into(),
            self.replica.as_str().into(),
            json(&turn.spec).into(),
            header.into(),
            new.content.as_str().into(),
            Tag::random().to_string().into(),
            json(&accepted).into(),
            title(&new.content).into(),
            new.spec.model.as_str().into(),
            rfc3339(&now).into(),
            idle.to_string().into(),
            self.limits.waiting_turns.to_string().into(),
            self.limits.session_bytes.to_string().into(),
            new.key.as_ref().map_or("", |key| key.body.as_str()).into(),
            KEY_SECONDS.to_string().into(),
        ];
        let keys = Keys::of(session);
        let key = new.key.as_ref().map(|key| format!("{}:key:{}", keys.0[0], key.key));
        let mut names: Vec<&str> = keys.all().to_vec();
        names.extend(key.as_deref());
        let reply: Vec<String> = self.redis.call("jarvis_accept_1", &names, args).await?;
        let before = || {
            let events = reply.get(1)?.parse().ok()?;
            let tag = reply.get(2)?.parse().ok()?;
            Some(Cursor { events, tag, generation: None, offset: 0 })
        };
        match reply.first().map(String::as_str) {
            Some(kind @ ("began" | "waiting")) => Ok(Acceptance::New {
                turn,
                began: kind == "began",
                before: before().unwrap_or(Cursor::START),
            }),
            Some("same") => Ok(Acceptance::Same {
                generation: field(&reply, 1)?,
                before: reply.get(2).and_then(|events| events.parse().ok()).and_then(|events| {
                    let tag = reply.get(3)?.parse().ok()?;
                    Some(Cursor { events, tag, generation: None, offset: 0 })
                }),
            }),
            Some("absent") => Err(StoreError::Absent),
            Some("busy") => Err(StoreError::Busy),
            Some("full") => Err(StoreError::Full),
            Some("other_body") => Err(StoreError::KeyReused),
            _ => Err(unexpected("accept")),
        }
    }

    /// Makes a waiting turn the running one, if its time has come.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn begin(&self, turn: &Turn) -> Result<Begin, StoreError> {
        let reply: String = self.write("jarvis_begin_1", turn, Vec::new()).await?;
        match reply.as_str() {
            "began" => Ok(Begin::Began),
            "waiting" => Ok(Begin::Waiting),
            "gone" => Ok(Begin::Gone),
            _ => Err(unexpected("begin")),
        }
    }

    /// Tells that the answer begins. `tag` makes a repeat harmless.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn start(&self, turn: &Turn, tag: Tag) -> Result<Written, StoreError> {
        let started = json(&Control::Started { model: turn.spec.model.clone() });
        let args = vec![tag.to_string().into(), started.into()];
        let reply: String = self.write("jarvis_start_1", turn, args).await?;
        written(&[reply])
    }

    /// Writes bytes of the answer at their offset, and announces them.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn append(
        &self,
        turn: &Turn,
        offset: u64,
        text: &str,
    ) -> Result<Written, StoreError> {
        let args = vec![offset.to_string().into(), text.into()];
        let reply: Vec<String> = self.write("jarvis_append_1", turn, args).await?;
        written(&reply)
    }

    /// Ends the generation: its answer of `length` bytes becomes a message, with `header`'s fields.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn finish(
        &self,
        turn: &Turn,
        length: u64,
        header: &Message,
        events: &[(Tag, Control)],
    ) -> Result<Written, StoreError> {
        let mut args: Vec<Value> = vec![
            length.to_string().into(),
            json(header).into(),
            rfc3339(&header.timestamp).into(),
            self.idle_seconds(&turn.owner).to_string().into(),
        ];
        for (tag, event) in events {
            args.extend([tag.to_string().into(), event.kind().into(), json(event).into()]);
        }
        let reply: Vec<String> = self.write("jarvis_finish_1", turn, args).await?;
        written(&reply)
    }

    /// Stops a generation: the one named, else the running one, else the oldest that waits.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn cancel(
        &self,
        owner: &Owner,
        session: SessionId,
        generation: Option<GenerationId>,
    ) -> Result<Cancelled, StoreError> {
        // The function knows these three, and they stand where no JSON string has capitals.
        let header = json(&Message {
            status: Some(Status::Cancelled),
            finish_reason: Some(FinishReason::Cancelled),
            ..message(Role::Assistant, Utc::now())
        })
        .replacen(
            '{',
            r#"{"generation_id":"GENERATION","model":MODEL,"writers":WRITERS,"#,
            1,
        );
        let args = vec![
            owner.key().into(),
            generation.map_or_else(|| "-".to_owned(), |id| id.to_string()).into(),
            header.into(),
            Tag::random().to_string().into(),
            json(&Control::Cancelled {}).into(),
        ];
        let keys = Keys::of(session);
        let reply: Vec<String> = self.redis.call("jarvis_cancel_1", &keys.all(), args).await?;
        match reply.first().map(String::as_str) {
            Some("absent") => Err(StoreError::Absent),
            Some("none") => Ok(Cancelled::Nothing),
            Some("cancelled") if reply.get(2).is_some_and(|state| state == "running") => {
                Ok(Cancelled::Running(field(&reply, 1)?))
            }
            Some("cancelled") => Ok(Cancelled::Waiting(field(&reply, 1)?)),
            _ => Err(unexpected("cancel")),
        }
    }

    /// Tells whoever cancelled that the request to the model's host is closed.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn upstream_closed(&self, turn: &Turn) -> Result<(), StoreError> {
        let keys = Keys::of(turn.session);
        let args = vec![turn.generation.to_string().into()];
        Ok(self.redis.call("jarvis_closed_1", &keys.all(), args).await?)
    }

    /// Empties the session's history, cancelling its turns; with `delete` the session goes too.
    /// Gives the number of messages that were in it.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn clear(
        &self,
        owner: &Owner,
        session: SessionId,
        delete: bool,
    ) -> Result<u64, StoreError> {
        let mut args: Vec<Value> = vec![
            owner.key().into(),
            if delete { "1" } else { "0" }.into(),
            Tag::random().to_string().into(),
            json(&Control::Cleared {}).into(),
            json(&Control::Cancelled {}).into(),
            rfc3339(&Utc::now()).into(),
            TOMBSTONE_SECONDS.to_string().into(),
        ];
        let turns = self.limits.waiting_turns + 1;
        args.extend((0..turns).map(|_| Value::from(Tag::random().to_string())));
        let keys = Keys::of(session);
        let count: i64 = self.redis.call("jarvis_clear_1", &keys.all(), args).await?;
        u64::try_from(count).map_err(|_| StoreError::Absent)
    }

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
        let keys = Keys::of(session);
        let args = vec![owner.key().into()];
        let reply: Vec<String> =
            self.redis.call_readonly("jarvis_session_1", &keys.all(), args).await?;
        described(session, &reply)
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

    /// What happened in the session.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn read(
        &self,
        owner: &Owner,
        session: SessionId,
        from: From,
    ) -> Result<Read, StoreError> {
        let (events, tag, generation, held) = match from {
            From::Cursor(cursor, held) => {
                (cursor.events, cursor.tag.to_string(), cursor.generation, held)
            }
            From::RunningTurn => (0, "-".to_owned(), None, 0),
        };
        let args = vec![
            owner.key().into(),
            events.to_string().into(),
            tag.into(),
            generation.map_or_else(|| "-".to_owned(), |id| id.to_string()).into(),
            held.to_string().into(),
            READ_BYTES.to_string().into(),
        ];
        let keys = Keys::of(session);
        let reply: Vec<String> =
            self.redis.call_readonly("jarvis_read_1", &keys.all(), args).await?;
        match reply.first().map(String::as_str) {
            Some("ok") => window(reply),
            Some("unknown") => Ok(Read::Unknown),
            Some("absent") => Ok(Read::Absent),
            _ => Err(unexpected("read")),
        }
    }

    /// Renews this replica's heartbeat and gives everybody's.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn beat(&self) -> Result<HashMap<String, i64>, StoreError> {
        Ok(self.redis.call("jarvis_beat_1", &[BEATS], vec![self.replica.as_str().into()]).await?)
    }

    /// Gives up whatever is held in this replica's name, at once.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn sign_off(&self) -> Result<(), StoreError> {
        let args = vec![self.replica.as_str().into()];
        Ok(self.redis.call("jarvis_sign_off_1", &[BEATS], args).await?)
    }

    /// Forgets a replica whose heartbeat stopped at `counter`, unless it has moved since.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn bury(&self, replica: &str, counter: i64) -> Result<(), StoreError> {
        let args = vec![replica.into(), counter.to_string().into()];
        Ok(self.redis.call("jarvis_bury_1", &[BEATS], args).await?)
    }

    /// The name that this replica's turns are held in.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// The open turns of one bucket, below [`BUCKETS`].
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn open_turns(&self, bucket: u16) -> Result<Vec<OpenTurn>, StoreError> {
        let key = format!("jarvis:{{b{bucket}}}:open");
        let open: HashMap<String, String> =
            self.redis.call_readonly("jarvis_open_1", &[&key], Vec::new()).await?;
        open.iter()
            .map(|(turn, holder)| {
                let (session, generation) = turn.split_once(' ')?;
                let (replica, fence) = holder.split_once(' ')?;
                Some(OpenTurn {
                    session: session.parse().ok()?,
                    generation: generation.parse().ok()?,
                    replica: replica.to_owned(),
                    fence: Fence(fence.parse().ok()?),
                })
            })
            .map(|turn| turn.ok_or_else(|| unexpected("open turn")))
            .collect()
    }

    /// Takes a turn from the replica that has it, if it still has it by the same fence.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn claim(&self, open: &OpenTurn) -> Result<Claim, StoreError> {
        let fence = Fence(Uuid::new_v4());
        let event = json(&Control::Claimed { from: 0 }).replace(":0", ":LENGTH");
        let args = vec![
            "-".into(),
            open.generation.to_string().into(),
            open.fence.0.to_string().into(),
            fence.0.to_string().into(),
            self.replica.as_str().into(),
            Tag::random().to_string().into(),
            event.into(),
        ];
        let keys = Keys::of(open.session);
        let reply: Vec<String> = self.redis.call("jarvis_claim_1", &keys.all(), args).await?;
        let turn = |owner: usize| -> Result<Turn, StoreError> {
            let spec = reply.get(1).and_then(|json| serde_json::from_str(json).ok());
            Ok(Turn {
                owner: Owner::from_key(&field::<String>(&reply, owner)?),
                session: open.session,
                generation: open.generation,
                fence,
                spec: spec.ok_or_else(|| unexpected("turn"))?,
            })
        };
        match reply.first().map(String::as_str) {
            Some("running") => Ok(Claim::Running(turn(5)?, field(&reply, 3)?)),
            Some("waiting") => Ok(Claim::Waiting(turn(2)?)),
            Some("other") => Ok(Claim::Other),
            _ => Err(unexpected("claim")),
        }
    }

    /// Takes back what lies beyond `length` bytes of the answer.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn rewind(&self, turn: &Turn, length: u64, tag: Tag) -> Result<Written, StoreError> {
        let event = json(&Control::Claimed { from: length });
        let args = vec![length.to_string().into(), tag.to_string().into(), event.into()];
        let reply: String = self.write("jarvis_rewind_1", turn, args).await?;
        written(&[reply])
    }

    /// The answer of the running turn, as far as it is stored.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn answer_so_far(&self, turn: &Turn) -> Result<String, StoreError> {
        match self.read(&turn.owner, turn.session, From::RunningTurn).await? {
            Read::Window { window, .. } => Ok(window
                .answer(turn.generation)
                .map(|answer| answer.text.clone())
                .unwrap_or_default()),
            Read::Unknown | Read::Absent => Ok(String::new()),
        }
    }

    async fn write<R: fred::types::FromValue>(
        &self,
        function: &'static str,
        turn: &Turn,
        rest: Vec<Value>,
    ) -> Result<R, StoreError> {
        let mut args: Vec<Value> = vec![
            turn.owner.key().into(),
            turn.generation.to_string().into(),
            turn.fence.0.to_string().into(),
        ];
        args.extend(rest);
        let keys = Keys::of(turn.session);
        Ok(self.redis.call(function, &keys.all(), args).await?)
    }

    fn idle_seconds(&self, owner: &Owner) -> u64 {
        match owner {
            Owner::Anonymous => self.limits.anonymous_idle_seconds,
            Owner::User(_) => 0,
        }
    }
}

/// A message with nothing in it yet.
pub fn message(role: Role, timestamp: DateTime<Utc>) -> Message {
    Message {
        id: Uuid::new_v4(),
        role,
        content: String::new(),
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

fn window(reply: Vec<String>) -> Result<Read, StoreError> {
    let base = (field(&reply, 1)?, field(&reply, 2)?);
    let running = optional(&reply, 3)?;
    let more = reply.get(4).is_some_and(|flag| flag == "1");
    let count: usize = field(&reply, 5)?;
    let mut rest = reply.into_iter().skip(6);
    let events = rest
        .by_ref()
        .take(count)
        .map(|entry| Event::parse(&entry).map_err(|_| unexpected("event")))
        .collect::<Result<Vec<_>, _>>()?;
    let mut answers = Vec::new();
    while let (Some(id), Some(from), Some(text)) = (rest.next(), rest.next(), rest.next()) {
        answers.push(Answer {
            generation: id.parse().map_err(|_| unexpected("generation"))?,
            base: from.parse().map_err(|_| unexpected("offset"))?,
            text,
        });
    }
    Ok(Read::Window { window: Window::new(base, events, answers, running), more })
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

fn stored_message(entry: &str) -> Result<Message, StoreError> {
    let (header, content) = entry.split_once('\n').ok_or_else(|| unexpected("message"))?;
    let mut message: Message =
        serde_json::from_str(header).map_err(|_| unexpected("message header"))?;
    content.clone_into(&mut message.content);
    Ok(message)
}

fn collect<T>(items: Vec<Result<T, StoreError>>) -> Result<Vec<T>, StoreError> {
    items.into_iter().collect()
}

fn written(reply: &[String]) -> Result<Written, StoreError> {
    match reply.first().map(String::as_str) {
        Some("ok") => Ok(Written::Ok),
        Some("fenced") => Ok(Written::Fenced),
        Some("hole") => Ok(Written::Hole(field(reply, 1)?)),
        _ => Err(unexpected("write")),
    }
}

fn field<T: std::str::FromStr>(reply: &[String], at: usize) -> Result<T, StoreError> {
    reply.get(at).and_then(|text| text.parse().ok()).ok_or_else(|| unexpected("field"))
}

fn optional<T: std::str::FromStr>(reply: &[String], at: usize) -> Result<Option<T>, StoreError> {
    match reply.get(at).map(String::as_str) {
        None | Some("-") => Ok(None),
        Some(_) => field(reply, at).map(Some),
    }
}

fn unexpected(what: &str) -> StoreError {
    StoreError::Redis(RedisError::Unexpected(format!("unreadable {what}")))
}

fn title(content: &str) -> String {
    let line = content.trim().lines().next().unwrap_or_default();
    line.chars().take(TITLE_CHARACTERS).collect()
}

/// Types of ours have no maps with keys that are not text: writing them as JSON cannot fail.
fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
