//! Copies of turns and redo entries, which one replica keeps for another.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::turns::{Accepted, Claimed, Fence, IdempotencyKey, Turn};
use super::{OwnConversation, Store, StoreError};
use crate::redis::{Listener, RedisError, Subscriptions, keys};
use crate::session::cursor::Tag;
use crate::session::model::{Continuation, GenerationId, Owner, Runner, SessionId, TurnSpec};
use crate::telemetry::traces::TraceContext;

/// Copies that may wait for the replica that keeps them. Copies beyond that are lost.
const MESSAGES: usize = 256;

/// A turn with everything that another replica needs to restore it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TurnCopy {
    owner: Owner,
    session: SessionId,
    /// The turn's generation.
    pub generation: GenerationId,
    fence: Fence,
    spec: TurnSpec,
    epoch: String,
    /// Header and text of the question, as Redis stores them.
    question: String,
    key: Option<IdempotencyKey>,
    conversation: Option<Vec<String>>,
    number: u64,
    continued: Vec<Continuation>,
    runner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace: Option<TraceContext>,
}

impl TurnCopy {
    /// Copies a turn.
    pub fn of(turn: &Turn) -> Self {
        let accepted = &turn.accepted;
        let entries = |conversation: &OwnConversation| {
            conversation.entries().filter_map(|entry| entry.as_string()).collect()
        };
        Self {
            owner: turn.owner.clone(),
            session: turn.session,
            generation: turn.generation,
            fence: turn.fence,
            spec: turn.spec.clone(),
            epoch: turn.epoch.clone(),
            question: format!("{}\n{}", accepted.header, accepted.question.content),
            key: accepted.key.clone(),
            conversation: accepted.conversation.as_ref().map(entries),
            number: turn.number,
            continued: turn.continued.clone(),
            runner: turn.runner.as_ref().map(|runner| runner.as_str().to_owned()),
            trace: accepted.trace,
        }
    }

    /// Returns the turn for another holder, which has yet to restore it. The holder has a fence of
    /// its own, and replaces the fence of the copied turn as a claim does: so there are never two
    /// writers, even where the first one lives.
    ///
    /// # Errors
    /// [`StoreError::Redis`] where the copy cannot be read.
    pub fn restore(self) -> Result<Turn, StoreError> {
        let conversation =
            self.conversation.map(|entries| OwnConversation::parse(entries.iter())).transpose()?;
        let accepted = Accepted::of_stored(
            self.generation,
            &self.question,
            &self.spec,
            conversation,
            self.key,
            self.trace,
        )?;
        Ok(Turn {
            owner: self.owner,
            session: self.session,
            generation: self.generation,
            fence: Fence::unique(),
            spec: self.spec,
            epoch: self.epoch,
            accepted: Arc::new(accepted),
            number: self.number,
            claimed: Some(Claimed { replaced: self.fence, tag: Tag::random() }),
            continued: self.continued,
            runner: self.runner.as_deref().and_then(Runner::from_stored),
        })
    }
}

impl Store {
    /// Returns whether Redis replicas hold the turns, ends, cancels and clears that Redis
    /// acknowledged in the last ten seconds, as far as that was asked for.
    pub fn is_replicated(&self) -> bool {
        self.redis.is_replicated()
    }

    /// Sends a copy to the replica that is to keep it. Returns whether that replica is subscribed.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn send_copy(&self, to: &str, payload: String) -> Result<bool, RedisError> {
        Ok(self.redis.publish(&keys::copies(to), payload).await? > 0)
    }

    /// Receives the copies that this replica is to keep, until the result is dropped.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub async fn receive_copies(
        &self,
        listener: &Arc<dyn Listener>,
    ) -> Result<Subscriptions, RedisError> {
        let subscriptions = Subscriptions::start_with(&self.redis, listener, 1, MESSAGES)?;
        // A subscription that fails is tried again.
        let _ = subscriptions.subscribe(&keys::copies(&self.replica)).await;
        Ok(subscriptions)
    }
}
