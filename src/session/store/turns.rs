//! Turns: their acceptance, their restoration after a failover, and their beginning.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::history::parse_message;
use super::transfer::transfer_tag;
use super::{
    Attached, Kept, OwnConversation, Selection, SessionKeys, SessionLimits, Store, StoreError,
    channel, claimed_event, field, json, message, of_writer, optional, unexpected,
};
use crate::redis::{Call, RedisError};
use crate::session::branch::Anchor;
use crate::session::cursor::{Cursor, Tag};
use crate::session::event::{Control, Hint, Queued};
use crate::session::model::{
    Continuation, GenerationId, Message, Owner, Role, Runner, SessionId, TurnSpec, rfc3339,
};
use crate::session::stored_message::{self, json_size, size_before};
use crate::session::title::shortened;
use crate::telemetry::traces::{self, TraceContext};

/// How long an idempotency key is remembered.
const KEY_SECONDS: u64 = 24 * 60 * 60;
const TITLE_CHARACTERS: usize = 80;
/// Bytes of the request of a turn and of its question's header, at most, as they are stored: so that no
/// call that reads or writes them takes Redis long.
pub const REQUEST_BYTES: u64 = 512 << 10;
/// The same with the text of the question.
pub const QUESTION_BYTES: u64 = (1 << 20) + (64 << 10);
/// Bytes of a stored turn and header in addition to what their sizes are taken of, about.
const REST_BYTES: usize = 400;
/// Bytes of the name of an image in a header, about.
const IMAGE_NAME_BYTES: usize = 90;

/// The key by which a repeated request is recognised.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IdempotencyKey {
    /// The client's key, at most 255 bytes.
    pub key: String,
    /// A digest of the request.
    pub body: String,
}

/// A user's message before its acceptance.
#[derive(Clone, Debug)]
pub struct NewTurn {
    /// The request without its text.
    pub spec: TurnSpec,
    /// The user's text.
    pub content: String,
    /// The messages before it, instead of a stored history: the turn begins a new session.
    pub conversation: Option<OwnConversation>,
    /// The parts of the question other than its text.
    pub attached: Attached,
    /// The idempotency key, where the client sent one.
    pub key: Option<IdempotencyKey>,
}

impl NewTurn {
    /// Creates a turn of a user's text, with nothing else.
    pub fn of_text(spec: TurnSpec, content: String) -> Self {
        Self { spec, content, conversation: None, attached: Attached::default(), key: None }
    }

    /// Returns the bytes that the turn takes as it is stored. A text in JSON takes up to six times its
    /// length.
    pub fn stored_size(&self) -> StoredSize {
        let Self { spec, content, conversation, attached, key } = self;
        let turn = StoredTurn {
            spec,
            own_conversation: conversation.is_some(),
            idempotency: key.clone(),
            trace: None,
        };
        let header = attached.question.as_ref().map_or(0, |question| {
            let Message { request, tool_call_id, tool_name, images, before, .. } = &**question;
            json_size(&(request, tool_call_id, tool_name))
                + images.len() * IMAGE_NAME_BYTES
                + size_before(before)
        });
        let request = (json_size(&turn) + header + REST_BYTES) as u64;
        let texts = content.len() + conversation.as_ref().map_or(0, OwnConversation::bytes);
        let images = attached.images.iter().map(|image| image.reference.bytes).sum::<u64>();
        let question = request + content.len() as u64;
        StoredSize { request, question, whole: request + texts as u64 + images }
    }

    /// Returns the bytes of memory that the turn takes from its acceptance to its end, without images,
    /// about: the question is also in the feed of its session; what a front shows again of the request is
    /// in the question, in its header, and with the client that waits.
    pub fn memory(&self) -> usize {
        let Self { spec, content, conversation, attached, .. } = self;
        let question = attached.question.as_ref();
        let request = question.and_then(|question| question.request.as_ref());
        2 * content.len()
            + spec.bytes()
            + conversation.as_ref().map_or(0, OwnConversation::memory)
            + 3 * request.map_or(0, String::len)
            + 3 * question.map_or(0, |question| bytes_before(question))
    }
}

/// The size of a turn as it is stored, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSize {
    /// Bytes of its request without the text, and of the header of its question.
    pub request: u64,
    /// Bytes of these and of the text.
    pub question: u64,
    /// Bytes of everything that it brings.
    pub whole: u64,
}

impl StoredSize {
    /// Returns whether a call of Redis that reads or writes the turn would take too long.
    pub fn is_too_large(self) -> bool {
        self.request > REQUEST_BYTES || self.question > QUESTION_BYTES
    }
}

/// The right to write one answer. Redis compares it for equality, never for order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence(pub Uuid);

impl Fence {
    /// Creates a fence that no other holder has, with the current time in it.
    pub fn unique() -> Self {
        Self(Uuid::now_v7())
    }

    /// Returns when the fence was created, in milliseconds since 1970.
    pub fn created(self) -> Option<u64> {
        let (seconds, nanoseconds) = self.0.get_timestamp()?.to_unix();
        Some(seconds * 1000 + u64::from(nanoseconds / 1_000_000))
    }
}

/// An accepted turn, with everything that its writer needs.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The owner of the session.
    pub owner: Owner,
    /// The session.
    pub session: SessionId,
    /// The generation that answers the turn.
    pub generation: GenerationId,
    /// The right to write the answer.
    pub fence: Fence,
    /// The request without its text.
    pub spec: TurnSpec,
    /// The epoch of the session to which the turn belongs.
    pub epoch: String,
    /// The writes of the turn's acceptance.
    pub(super) accepted: Arc<Accepted>,
    /// The number of the accepted event; 0 for a claimed turn, where it is unknown and old.
    pub(super) number: u64,
    /// The claim by which this replica got the turn, where it did.
    pub(super) claimed: Option<Claimed>,
    /// The continuations that earlier writers stored.
    pub(super) continued: Vec<Continuation>,
    /// The runner of the text so far, as an earlier writer stored it.
    pub(super) runner: Option<Runner>,
}

impl Turn {
    /// Returns whether `message` is the user's message that the turn answers. A question that was to be
    /// answered once more, and that a failover lost, is stored as a new one.
    pub fn answers(&self, message: &Message) -> bool {
        message.id == self.accepted.question.id || message.id == self.generation.question()
    }

    /// Returns the continuations of the answer that earlier writers stored.
    pub fn continued(&self) -> &[Continuation] {
        &self.continued
    }

    /// Returns the runner of the text that earlier writers stored, where they knew it.
    pub fn runner(&self) -> Option<&Runner> {
        self.runner.as_ref()
    }

    /// Returns whether this replica got the turn by a claim.
    pub fn is_claimed(&self) -> bool {
        self.claimed.is_some()
    }

    /// Returns the user's message that the turn answers.
    pub fn question(&self) -> &Message {
        &self.accepted.question
    }

    /// Returns the place in a trace of the request that the turn came with.
    pub fn trace(&self) -> Option<TraceContext> {
        self.accepted.trace
    }

    /// Returns the fence of the writer whose turn this replica has claimed, where it has.
    pub fn replaced(&self) -> Option<Fence> {
        self.claimed.map(|claimed| claimed.replaced)
    }

    /// Returns the bytes of text that the turn keeps: the question, the request's other texts, and
    /// the conversation that came with it.
    pub fn bytes(&self) -> usize {
        let Accepted { question, header, event, conversation, .. } = &*self.accepted;
        question.content.len()
            + header.len()
            + event.len()
            + conversation.as_ref().map_or(0, OwnConversation::bytes)
            + self.spec.bytes()
    }

    /// Returns the bytes of memory that the turn takes while it waits or runs, about.
    pub fn memory(&self) -> usize {
        let Accepted { question, header, conversation, .. } = &*self.accepted;
        2 * question.content.len()
            + header.len()
            + question.request.as_ref().map_or(0, String::len)
            + bytes_before(question)
            + conversation.as_ref().map_or(0, OwnConversation::memory)
            + self.spec.bytes()
    }

    /// Returns the messages before the question, where the turn brought its own conversation.
    pub fn own_conversation(&self) -> Option<&OwnConversation> {
        self.accepted.conversation.as_ref()
    }
}

/// The writes of a turn's acceptance, so that they can be applied again after a failover lost them.
#[derive(Debug)]
pub(super) struct Accepted {
    /// The user's message.
    pub(super) question: Message,
    /// The user's message without its text, as it is stored.
    pub(super) header: String,
    pub(super) event: String,
    pub(super) tag: Tag,
    pub(super) at: String,
    pub(super) key: Option<IdempotencyKey>,
    pub(super) conversation: Option<OwnConversation>,
    pub(super) trace: Option<TraceContext>,
}

impl Accepted {
    /// Returns the writes of an acceptance as the stored question and request show them. The
    /// question is its header, a line break, and its text.
    ///
    /// # Errors
    /// [`StoreError::Redis`] where the question cannot be read.
    pub(super) fn of_stored(
        generation: GenerationId,
        question: &str,
        spec: &TurnSpec,
        conversation: Option<OwnConversation>,
        key: Option<IdempotencyKey>,
        trace: Option<TraceContext>,
    ) -> Result<Self, StoreError> {
        let message = parse_message(question)?;
        let at = rfc3339(&message.timestamp);
        Ok(Self {
            header: question.lines().next().unwrap_or_default().to_owned(),
            event: accepted_event(&at, spec),
            question: message,
            tag: Tag::of_acceptance(generation),
            at,
            key,
            conversation,
            trace,
        })
    }
}

/// A turn as it is stored: everything that another replica needs to run it, except its messages.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredTurn<Spec = TurnSpec> {
    #[serde(flatten)]
    pub(super) spec: Spec,
    /// Whether the turn brought its own conversation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) own_conversation: bool,
    /// The turn's idempotency key, so that a replica that claims the turn can restore it, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) idempotency: Option<IdempotencyKey>,
    /// The place in a trace of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) trace: Option<TraceContext>,
}

/// The writes of a claim, so that they can be applied again after a failover lost them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claimed {
    /// The fence of the previous holder.
    pub(super) replaced: Fence,
    /// The tag of the claim's event.
    pub(super) tag: Tag,
}

/// A user's message with everything that its acceptance writes, so that a repeated proposal writes
/// the same.
#[derive(Debug)]
pub struct Proposal {
    owner: Owner,
    session: SessionId,
    spec: TurnSpec,
    generation: GenerationId,
    fence: Fence,
    accepted: Arc<Accepted>,
}

impl Proposal {
    /// Creates the proposal of a turn at the current time, in the trace of the current request.
    pub fn new(owner: &Owner, session: SessionId, new: &NewTurn) -> Self {
        let now = Utc::now();
        let generation = match &new.key {
            Some(key) => generation_of(session, key, now),
            None => GenerationId::random(),
        };
        let regenerated = new.spec.anchor.and_then(Anchor::regenerated);
        let stored = new.attached.question.as_ref().filter(|_| regenerated.is_some());
        let question = Message {
            // A question that is answered once more stays the same message.
            id: stored.map_or_else(|| generation.question(), |question| question.id),
            user_id: Some(owner.user_id().to_owned()),
            timestamp: now,
            ..match &new.attached.question {
                Some(question) => Message::clone(question),
                None => message(Role::User, now),
            }
        };
        let at = rfc3339(&now);
        let accepted = Accepted {
            header: stored_message::header(&question),
            question: Message { content: new.content.clone(), ..question },
            event: accepted_event(&at, &new.spec),
            tag: Tag::of_acceptance(generation),
            at,
            key: new.key.clone(),
            conversation: new.conversation.clone(),
            trace: traces::current(),
        };
        Self {
            owner: owner.clone(),
            session,
            spec: new.spec.clone(),
            generation,
            fence: Fence::unique(),
            accepted: Arc::new(accepted),
        }
    }

    /// Returns the generation that is to answer the turn.
    pub fn generation(&self) -> GenerationId {
        self.generation
    }

    /// Returns whether the turn has an idempotency key, by which a repeat finds it.
    pub fn has_key(&self) -> bool {
        self.accepted.key.is_some()
    }
}

/// The result of a [`Proposal`].
#[derive(Debug)]
pub enum Acceptance {
    /// The turn is new.
    New {
        /// The turn to run.
        turn: Arc<Turn>,
        /// Whether it is the session's running turn already, or waits for another.
        began: bool,
        /// The cursor just before the turn.
        before: Cursor,
        /// Whether the turn created the session, which may have been deleted before.
        created: bool,
    },
    /// The turn was accepted before, with the same key.
    Same {
        /// The generation that answers it.
        generation: GenerationId,
        /// The cursor just before the turn, while that is kept.
        before: Option<Cursor>,
    },
}

/// The reply to a holder that tries to begin its waiting turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The turn is the running one.
    Began,
    /// Another turn still runs, or waits before it.
    Waiting,
    /// The turn was cancelled, or another replica holds it, or a failover lost it:
    /// [`Store::restore`] returns which.
    Gone,
}

/// The state of a turn after a refused write, with the writes that a failover lost applied again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The turn is the holder's, and runs.
    Kept,
    /// The turn is the holder's again, and runs. The previous holder may have written meanwhile.
    Claimed,
    /// The turn is the holder's, and waits: the holder begins it again.
    Waiting,
    /// The turn has ended, or another replica holds it.
    Gone,
}

impl Store {
    /// Accepts a user's message as a turn of the session, which is created where it does not exist.
    /// A repeat changes nothing.
    ///
    /// # Errors
    /// Any [`StoreError`]. After [`StoreError::Redis`] the message may have been accepted.
    pub async fn accept(&self, proposal: &Proposal) -> Result<Acceptance, StoreError> {
        let Proposal { owner, session, spec, generation, fence, accepted } = proposal;
        let call = SessionKeys::of(*session)
            .call("jarvis_accept_1")
            .arg("owner", owner.key())
            .text("generation", *generation)
            .text("fence", fence.0);
        let call = self
            .acceptance(call, owner, spec, accepted)
            .text("waiting_limit", self.limits.waiting_turns)
            .text("bytes_limit", self.limits.session_bytes);
        let call = key_arguments(call, accepted);
        let reply: Vec<String> =
            self.redis.call_replicated(conversation_arguments(call, accepted)).await?;
        let before = |at: usize| {
            let events = reply.get(at)?.parse().ok()?;
            let tag = reply.get(at + 1)?.parse().ok()?;
            Some(Cursor { events, tag, generation: None, offset: 0 })
        };
        match reply.first().map(String::as_str) {
            Some(kind @ ("began" | "waiting")) => {
                let before = before(1).unwrap_or(Cursor::START);
                let behind = optional(&reply, 5)?.map(Anchor::Behind);
                let turn = Turn {
                    owner: owner.clone(),
                    session: *session,
                    generation: *generation,
                    fence: *fence,
                    spec: TurnSpec { anchor: spec.anchor.or(behind), ..spec.clone() },
                    epoch: field(&reply, 3)?,
                    accepted: Arc::clone(accepted),
                    number: before.events + 1,
                    claimed: None,
                    continued: Vec::new(),
                    runner: None,
                };
                let (began, created) = (kind == "began", field::<u8>(&reply, 4)? == 1);
                Ok(Acceptance::New { turn: Arc::new(turn), began, before, created })
            }
            Some("same") => {
                Ok(Acceptance::Same { generation: field(&reply, 1)?, before: before(2) })
            }
            Some("absent") => Err(StoreError::Absent),
            Some("occupied") => Err(StoreError::Occupied),
            Some("images") => Err(StoreError::ImagesAbsent),
            Some("message") => Err(StoreError::MessageAbsent),
            Some("role") => {
                Err(spec.anchor.map_or_else(|| unexpected("accept"), StoreError::wrong_role))
            }
            Some("siblings") => Err(StoreError::TooManySiblings),
            Some("running") => Err(StoreError::ANSWER_RUNS),
            Some("busy") => Err(StoreError::Busy),
            Some("full") => Err(StoreError::Full),
            Some("other_body") => Err(StoreError::KeyReused),
            _ => Err(unexpected("accept")),
        }
    }

    /// Returns the turn that was accepted before with the same key, and the cursor just before it
    /// while that is kept. Accepts nothing.
    ///
    /// # Errors
    /// As [`Store::accept`], but for [`StoreError::Busy`].
    pub async fn find(
        &self,
        owner: &Owner,
        session: SessionId,
        new: &NewTurn,
    ) -> Result<Option<(GenerationId, Option<Cursor>)>, StoreError> {
        if new.key.is_none() {
            return Ok(None);
        }
        // A store without room for waiting turns accepts no new turn.
        let limits = SessionLimits { waiting_turns: 0, ..self.limits.clone() };
        let without_room = Self { limits, ..self.clone() };
        match without_room.accept(&Proposal::new(owner, session, new)).await {
            Ok(Acceptance::Same { generation, before }) => Ok(Some((generation, before))),
            // No turn goes beside that message any more.
            Err(
                StoreError::Busy
                | StoreError::MessageAbsent
                | StoreError::WrongRole(_)
                | StoreError::TooManySiblings
                | StoreError::TurnRuns(_),
            )
            | Ok(Acceptance::New { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the state of a turn whose write Redis refused. The claim or the acceptance is
    /// applied again where a failover lost it. Call it only within a minute of the last
    /// acknowledged write: the end of a generation is remembered for three.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn restore(&self, turn: &Turn) -> Result<Restored, StoreError> {
        self.restore_for(&turn.owner, turn).await
    }

    /// Restores a turn as [`Store::restore`], whose session has become this owner's as far as its
    /// holder knows.
    ///
    /// # Errors
    /// As [`Store::restore`].
    pub async fn restore_for(&self, owner: &Owner, turn: &Turn) -> Result<Restored, StoreError> {
        let accepted = &turn.accepted;
        let claim = turn.claimed;
        let replaced = claim.map_or_else(|| "-".to_owned(), |claim| claim.replaced.0.to_string());
        let keys = SessionKeys::of(turn.session);
        let call = keys
            .call("jarvis_restore_1")
            .arg("owner", owner.key())
            .text("generation", turn.generation)
            .text("fence", turn.fence.0);
        let call = self.acceptance(call, owner, &turn.spec, accepted);
        let call = key_arguments(call, accepted)
            .arg("epoch", turn.epoch.as_str())
            .arg("replaced_fence", replaced)
            .text("claim_tag", claim.map_or(Tag::START, |claim| claim.tag))
            .arg("claim_event", claimed_event())
            .text("event_number", turn.number)
            .arg("transfer_tag", transfer_tag(owner, turn.session));
        let reply: String =
            self.redis.call_replicated(conversation_arguments(call, accepted)).await?;
        match reply.as_str() {
            "kept" => Ok(Restored::Kept),
            "claimed" => Ok(Restored::Claimed),
            "waiting" => Ok(Restored::Waiting),
            "gone" => Ok(Restored::Gone),
            _ => Err(unexpected("restore")),
        }
    }

    /// Publishes the queue position of a turn on the session's channel, and stores nothing. Returns
    /// the number of replicas that are subscribed to the session.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn publish_queued(
        &self,
        session: SessionId,
        queued: Queued,
    ) -> Result<u64, RedisError> {
        self.redis.publish(&channel(session), queued.payload()).await
    }

    /// Counts the replicas that are subscribed to a session: they have a client that listens, or a
    /// turn of the session. None where Redis does not report it.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn listeners(&self, session: SessionId) -> Result<Option<u64>, RedisError> {
        let call = SessionKeys::of(session).call_with("jarvis_listeners_1", &["session"]);
        Ok(u64::try_from(self.redis.call::<i64>(call).await?).ok())
    }

    /// Requests that the replica with this session's waiting turn publish its position again.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn request_position(&self, session: SessionId) -> Result<(), RedisError> {
        let payload = Hint::POSITION_REQUESTED.to_owned();
        self.redis.publish(&channel(session), payload).await.map(drop)
    }

    /// Notifies the replica with a turn of this session that a client which does not listen has asked how
    /// the turn stands. Nothing is stored.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn publish_poll(&self, session: SessionId) -> Result<(), RedisError> {
        self.redis.publish(&channel(session), Hint::POLLED.to_owned()).await.map(drop)
    }

    /// Makes a waiting turn the running one, if no turn runs and none waits before it. Where it goes to
    /// another branch, that is selected first.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn begin(&self, turn: &Turn) -> Result<Begin, StoreError> {
        let mut is_selected = false;
        loop {
            let call = of_writer(SessionKeys::of(turn.session).call("jarvis_begin_1"), turn);
            let reply: String = self.redis.call(call).await?;
            match reply.as_str() {
                "began" => return Ok(Begin::Began),
                "elsewhere" if !is_selected => {
                    is_selected = true;
                    self.select_for(turn).await?;
                }
                "waiting" | "elsewhere" => return Ok(Begin::Waiting),
                "gone" => return Ok(Begin::Gone),
                _ => return Err(unexpected("begin")),
            }
        }
    }

    /// Selects the branch to which a waiting turn goes.
    async fn select_for(&self, turn: &Turn) -> Result<(), StoreError> {
        let Some(anchor) = turn.spec.anchor else { return Ok(()) };
        // Boxed, because it is rare.
        match Box::pin(self.select(&mut Selection::of_turn(turn, anchor.message()))).await {
            // The turn has ended or is another replica's, or the session has changed: the next attempt
            // to begin finds out.
            Err(StoreError::Absent | StoreError::MessageAbsent | StoreError::TurnRuns(_)) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Adds the arguments of both functions that can write an acceptance.
    fn acceptance(&self, call: Call, owner: &Owner, spec: &TurnSpec, accepted: &Accepted) -> Call {
        let own_conversation = accepted.conversation.is_some();
        let pictured = accepted.conversation.as_ref().is_some_and(OwnConversation::has_images);
        let kept = match (own_conversation, spec.is_kept) {
            (false, _) => Kept::AsHistory,
            (true, false) => Kept::Briefly,
            (true, true) => Kept::ForClients,
        };
        let brings = match kept {
            Kept::AsHistory => "0",
            Kept::Briefly => "once",
            Kept::ForClients if spec.is_detached => "detached",
            Kept::ForClients => "kept",
        };
        let idle_seconds = match self.idle_seconds(owner, kept) {
            // A client that has chosen a key comes back with it. A proxy's key serves one request.
            brief if kept == Kept::Briefly && accepted.key.is_some() && !spec.needs_listener => {
                brief.max(KEY_SECONDS)
            }
            seconds => seconds,
        };
        call.arg("replica", self.replica.as_str())
            .arg(
                "turn",
                json(&StoredTurn {
                    spec,
                    own_conversation,
                    idempotency: accepted.key.clone(),
                    trace: accepted.trace,
                }),
            )
            .arg("header", accepted.header.as_str())
            .arg("content", accepted.question.content.as_str())
            .text("tag", accepted.tag)
            .arg("event", accepted.event.as_str())
            .arg("title", title(&accepted.question.content))
            .arg("model", spec.model.as_str())
            .arg("now", accepted.at.as_str())
            .text("idle_seconds", idle_seconds)
            .arg("own_conversation", brings)
            .text("pictured", u8::from(pictured))
            .arg("anchor", spec.anchor.map_or_else(String::new, |anchor| anchor.to_string()))
    }
}

/// Returns the bytes of the messages that came before a question with the same request.
fn bytes_before(question: &Message) -> usize {
    question.before.iter().map(OwnConversation::bytes_of).sum()
}

fn key_arguments(call: Call, accepted: &Accepted) -> Call {
    let (key, body) = accepted.key.as_ref().map_or(("", ""), |key| (&key.key, &key.body));
    call.arg("key", key).arg("request_digest", body).text("key_seconds", KEY_SECONDS)
}

fn conversation_arguments(call: Call, accepted: &Accepted) -> Call {
    let entries = accepted.conversation.iter().flat_map(OwnConversation::entries);
    call.rest("conversation", entries)
}

/// Returns the generation of a request with an idempotency key. It is the same on every replica for
/// an hour, so that a turn that a failover lost gets its generation again when the client repeats
/// it. A key that was forgotten after a day gets another one.
fn generation_of(session: SessionId, key: &IdempotencyKey, now: DateTime<Utc>) -> GenerationId {
    let hour = now.timestamp() / 3600;
    let name = format!("{hour} {} {}", key.body, key.key);
    GenerationId(Uuid::new_v5(&session.0, name.as_bytes()))
}

/// Returns the event of an acceptance as it is stored, without the question.
fn accepted_event(at: &str, spec: &TurnSpec) -> String {
    let (timestamp, message_id) = (at.to_owned(), spec.message_id.clone());
    // A turn that follows the path needs no mention.
    let anchor = spec.anchor.filter(|anchor| !matches!(anchor, Anchor::Behind(_)));
    Control::Accepted { timestamp, message_id, message: String::new(), anchor }.stored()
}

/// Returns the title of a session with this first question: its first line, shortened at a word.
pub(super) fn title(content: &str) -> String {
    shortened(content.trim().lines().next().unwrap_or_default(), TITLE_CHARACTERS)
}
