//! Turns: taken in, found again, begun.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    OwnConversation, SessionKeys, SessionLimits, Store, StoreError, channel, claimed_event, field,
    json, message, of_writer, unexpected,
};
use crate::redis::{Call, RedisError};
use crate::session::cursor::{Cursor, Tag};
use crate::session::event::{Control, Hint, Queued};
use crate::session::model::{
    Continuation, GenerationId, Message, Owner, Role, SessionId, TurnSpec, rfc3339,
};

/// How long an idempotency key is remembered.
const KEY_SECONDS: u64 = 24 * 60 * 60;
const TITLE_CHARACTERS: usize = 80;

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
    /// What was said before it, in place of a stored history: the turn begins a session of its own.
    pub conversation: Option<OwnConversation>,
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
    /// Which life of the session it belongs to: clear and delete begin another.
    pub epoch: String,
    /// What was written when it was accepted.
    pub(super) accepted: Arc<Accepted>,
    /// The number of that event; 0 where it is not known, and surely old.
    pub(super) number: u64,
    /// How the fence came from another holder, where it did.
    pub(super) claimed: Option<Claimed>,
    /// The continuations that earlier holders noted.
    pub(super) continued: Vec<Continuation>,
}

impl Turn {
    /// Whether this is the user's message that the turn answers.
    pub fn answers(&self, message: &Message) -> bool {
        message.id == self.accepted.question.id
    }

    /// The continuations of its answer that earlier holders noted.
    pub fn continued(&self) -> &[Continuation] {
        &self.continued
    }

    /// The user's message that the turn answers.
    pub fn question(&self) -> &Message {
        &self.accepted.question
    }

    /// What was said before the question, where the turn brought it with it.
    pub fn own_conversation(&self) -> Option<&OwnConversation> {
        self.accepted.conversation.as_ref()
    }
}

/// What was written when a turn was accepted, so that it can be done again where a failover undid
/// it.
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
}

/// A turn as it is stored: what another replica needs to run it, beside its messages.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredTurn<Spec = TurnSpec> {
    #[serde(flatten)]
    pub(super) spec: Spec,
    /// Whether it brought its own conversation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) own_conversation: bool,
}

/// A claim, for the same purpose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claimed {
    /// The fence of the holder before.
    pub(super) replaced: Fence,
    /// Of the claim's event.
    pub(super) tag: Tag,
}

/// A user's message with all that its acceptance writes, so that it is the same however often it is
/// proposed.
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
    /// Of what `owner` says now.
    pub fn new(owner: &Owner, session: SessionId, new: &NewTurn) -> Self {
        let now = Utc::now();
        let question =
            Message { user_id: Some(owner.user_id().to_owned()), ..message(Role::User, now) };
        let at = rfc3339(&now);
        let generation = match &new.key {
            Some(key) => generation_of(session, key, now),
            None => GenerationId::random(),
        };
        let accepted = Accepted {
            header: json(&question),
            question: Message { content: new.content.clone(), ..question },
            event: accepted_event(&new.content, &at, &new.spec, new.conversation.as_ref()),
            tag: Tag::of_acceptance(generation),
            at,
            key: new.key.clone(),
            conversation: new.conversation.clone(),
        };
        Self {
            owner: owner.clone(),
            session,
            spec: new.spec.clone(),
            generation,
            fence: Fence(Uuid::new_v4()),
            accepted: Arc::new(accepted),
        }
    }

    /// Whether somebody who proposes it anew finds this one.
    pub fn has_key(&self) -> bool {
        self.accepted.key.is_some()
    }
}

/// What became of a [`Proposal`].
#[derive(Debug)]
pub enum Acceptance {
    /// It is a new turn.
    New {
        /// To run.
        turn: Arc<Turn>,
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
    /// It was cancelled, or another replica has it, or a failover took it: [`Store::restore`] tells.
    Gone,
}

/// Whose a turn is that Redis refused its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The holder's, and runs.
    Kept,
    /// The holder's again, and runs: the holder before may have written since.
    Claimed,
    /// The holder's, and waits: it is to begin, again.
    Waiting,
    /// It has ended, or is another's.
    Gone,
}

impl Store {
    /// Takes in a user's message as a turn of the session, which is created where it is not known.
    /// Done again, it changes nothing.
    ///
    /// # Errors
    /// Any [`StoreError`]. After [`StoreError::Redis`] the message may have been accepted.
    pub async fn accept(&self, proposal: &Proposal) -> Result<Acceptance, StoreError> {
        let Proposal { owner, session, spec, generation, fence, accepted } = proposal;
        let call = SessionKeys::of(*session)
            .keyed_call("jarvis_accept_1", accepted.key.as_ref())
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
                let turn = Turn {
                    owner: owner.clone(),
                    session: *session,
                    generation: *generation,
                    fence: *fence,
                    spec: spec.clone(),
                    epoch: field(&reply, 3)?,
                    accepted: Arc::clone(accepted),
                    number: before.events + 1,
                    claimed: None,
                    continued: Vec::new(),
                };
                Ok(Acceptance::New { turn: Arc::new(turn), began: kind == "began", before })
            }
            Some("same") => {
                Ok(Acceptance::Same { generation: field(&reply, 1)?, before: before(2) })
            }
            Some("absent") => Err(StoreError::Absent),
            Some("occupied") => Err(StoreError::Occupied),
            Some("busy") => Err(StoreError::Busy),
            Some("full") => Err(StoreError::Full),
            Some("other_body") => Err(StoreError::KeyReused),
            _ => Err(unexpected("accept")),
        }
    }

    /// The turn that was accepted before with the same key, and the place just before it while that
    /// is kept. Takes in nothing.
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
        // Where none may wait, nothing is taken in.
        let limits = SessionLimits { waiting_turns: 0, ..self.limits.clone() };
        let nobody = Self { limits, ..self.clone() };
        match nobody.accept(&Proposal::new(owner, session, new)).await {
            Ok(Acceptance::Same { generation, before }) => Ok(Some((generation, before))),
            Ok(Acceptance::New { .. }) | Err(StoreError::Busy) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks whose a turn is that Redis refused its holder. What a failover undid, be it the claim or
    /// the acceptance, is done again. To be asked only within a minute of the last write that was
    /// acknowledged: an end is remembered for three.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn restore(&self, turn: &Turn) -> Result<Restored, StoreError> {
        let accepted = &turn.accepted;
        let claim = turn.claimed;
        let replaced = claim.map_or_else(|| "-".to_owned(), |claim| claim.replaced.0.to_string());
        let keys = SessionKeys::of(turn.session);
        let call = of_writer(keys.keyed_call("jarvis_restore_1", accepted.key.as_ref()), turn);
        let call = self.acceptance(call, &turn.owner, &turn.spec, accepted);
        let call = key_arguments(call, accepted)
            .arg("epoch", turn.epoch.as_str())
            .arg("replaced_fence", replaced)
            .text("claim_tag", claim.map_or(Tag::START, |claim| claim.tag))
            .arg("claim_event", claimed_event())
            .text("event_number", turn.number);
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

    /// Publishes the queue position of a turn on its session's channel. Nothing is stored.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn publish_queued(
        &self,
        session: SessionId,
        queued: Queued,
    ) -> Result<(), RedisError> {
        self.redis.publish(&channel(session), queued.payload()).await
    }

    /// Asks whichever replica waits for a slot of this session to publish the position again.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn request_position(&self, session: SessionId) -> Result<(), RedisError> {
        self.redis.publish(&channel(session), Hint::POSITION_REQUESTED.to_owned()).await
    }

    /// Makes a waiting turn the running one, if its time has come.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn begin(&self, turn: &Turn) -> Result<Begin, StoreError> {
        let call = of_writer(SessionKeys::of(turn.session).call("jarvis_begin_1"), turn);
        let reply: String = self.redis.call(call).await?;
        match reply.as_str() {
            "began" => Ok(Begin::Began),
            "waiting" => Ok(Begin::Waiting),
            "gone" => Ok(Begin::Gone),
            _ => Err(unexpected("begin")),
        }
    }

    /// The arguments of both functions that can write an acceptance.
    fn acceptance(&self, call: Call, owner: &Owner, spec: &TurnSpec, accepted: &Accepted) -> Call {
        let own_conversation = accepted.conversation.is_some();
        call.arg("replica", self.replica.as_str())
            .arg("turn", json(&StoredTurn { spec, own_conversation }))
            .arg("header", accepted.header.as_str())
            .arg("content", accepted.question.content.as_str())
            .text("tag", accepted.tag)
            .arg("event", accepted.event.as_str())
            .arg("title", title(&accepted.question.content))
            .arg("model", spec.model.as_str())
            .arg("now", accepted.at.as_str())
            .text("idle_seconds", self.idle_seconds(owner, own_conversation))
            .flag("own_conversation", own_conversation)
    }
}

fn key_arguments(call: Call, accepted: &Accepted) -> Call {
    call.arg("request_digest", accepted.key.as_ref().map_or("", |key| key.body.as_str()))
        .text("key_seconds", KEY_SECONDS)
}

fn conversation_arguments(call: Call, accepted: &Accepted) -> Call {
    let entries = accepted.conversation.iter().flat_map(OwnConversation::entries);
    call.rest("conversation", entries)
}

/// The same for everybody who is asked the same with the same key in the same hour, so that a turn
/// that was told, and lost with a failover, is that turn again when its client repeats it elsewhere. A
/// key that has been forgotten after a day begins another.
fn generation_of(session: SessionId, key: &IdempotencyKey, now: DateTime<Utc>) -> GenerationId {
    let hour = now.timestamp() / 3600;
    let name = format!("{hour} {} {}", key.body, key.key);
    GenerationId(Uuid::new_v5(&session.0, name.as_bytes()))
}

/// The event of an acceptance. A conversation that comes with its turn is stored once: its question
/// is not in the event.
pub(super) fn accepted_event(
    content: &str,
    at: &str,
    spec: &TurnSpec,
    conversation: Option<&OwnConversation>,
) -> String {
    let message = if conversation.is_some() { String::new() } else { content.to_owned() };
    json(&Control::Accepted {
        timestamp: at.to_owned(),
        message_id: spec.message_id.clone(),
        message,
    })
}

fn title(content: &str) -> String {
    let line = content.trim().lines().next().unwrap_or_default();
    line.chars().take(TITLE_CHARACTERS).collect()
}
