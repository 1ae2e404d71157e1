//! Open turns, and claims of them.

use std::collections::HashMap;
use std::sync::Arc;

use super::keys::open_turns;
use super::turns::{Accepted, Claimed, Fence, StoredTurn, Turn};
use super::{OwnConversation, SessionKeys, Store, StoreError, claimed_event, field, unexpected};
use crate::redis::Call;
use crate::session::cursor::Tag;
use crate::session::model::{GenerationId, Owner, Runner, SessionId};

/// An unfinished turn in the index of its bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTurn {
    /// The session of the turn.
    pub session: SessionId,
    /// The turn's generation.
    pub generation: GenerationId,
    /// The replica that holds the turn.
    pub replica: String,
    /// The fence of that replica.
    pub fence: Fence,
}

impl OpenTurn {
    /// Reads who holds a turn, as the index has it.
    fn of_stored(session: SessionId, generation: GenerationId, holder: &str) -> Option<Self> {
        let (replica, fence) = holder.split_once(' ')?;
        let fence = Fence(fence.parse().ok()?);
        Some(Self { session, generation, replica: replica.to_owned(), fence })
    }
}

/// A claim that may be made more than once, because the reply to an earlier call may be lost: the
/// repeat of one that was carried out changes nothing, and returns the turn.
#[derive(Debug)]
pub struct ClaimAttempt {
    /// The turn as it was before.
    open: OpenTurn,
    fence: Fence,
    tag: Tag,
}

impl ClaimAttempt {
    /// Creates the claim of a turn from the replica that holds it.
    pub fn new(open: OpenTurn) -> Self {
        Self { open, fence: Fence::unique(), tag: Tag::random() }
    }

    /// Returns the turn as it was before.
    pub fn open(&self) -> &OpenTurn {
        &self.open
    }

    /// Returns whether the turn is as it was before: the claim was not carried out.
    pub fn is_left(&self, turn: &OpenTurn) -> bool {
        self.open == *turn
    }

    /// Returns whether the turn is as this claim leaves it: it was carried out, and its reply was lost.
    /// `replica` is the one that made it.
    pub fn is_carried_out(&self, turn: &OpenTurn, replica: &str) -> bool {
        self.open.generation == turn.generation
            && self.fence == turn.fence
            && turn.replica == replica
    }
}

/// The result of a claim.
#[derive(Debug)]
pub enum Claim {
    /// The running turn was claimed. The number counts its writers, this replica included.
    Running(Arc<Turn>, u32),
    /// The waiting turn was claimed.
    Waiting(Arc<Turn>),
    /// The turn has ended, or another replica claimed it first.
    Other,
}

impl Store {
    /// Returns the open turns of one bucket, a number below [`super::BUCKETS`]. They are read in parts: any
    /// number of sessions may be in one bucket. A turn that begins or ends meanwhile may be missing.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn open_turns(&self, bucket: u16) -> Result<Vec<OpenTurn>, StoreError> {
        let mut open = HashMap::new();
        let mut from = "0".to_owned();
        loop {
            let call = Call::new("jarvis_open_turns_1").key("open", open_turns(bucket));
            let call = call.arg("from", from.as_str());
            let mut reply = self.redis.call_readonly::<Vec<String>>(call).await?.into_iter();
            from = reply.next().ok_or_else(|| unexpected("open turns"))?;
            // A scan may return an entry twice.
            while let (Some(turn), Some(holder)) = (reply.next(), reply.next()) {
                open.insert(turn, holder);
            }
            if from == "0" {
                break;
            }
        }
        let read = |(turn, holder): (&String, &String)| {
            let (session, generation) = turn.split_once(' ')?;
            OpenTurn::of_stored(session.parse().ok()?, generation.parse().ok()?, holder)
        };
        open.iter().map(|entry| read(entry).ok_or_else(|| unexpected("open turn"))).collect()
    }

    /// Returns an unfinished turn as the index of its bucket has it; none where it has ended or a
    /// failover lost it.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn open_turn(&self, turn: &Turn) -> Result<Option<OpenTurn>, StoreError> {
        let keys = SessionKeys::of(turn.session);
        let call = keys.call_with("jarvis_open_turn_1", &["session", "open"]);
        let call = call.text("generation", turn.generation);
        let holder: String = self.redis.call_readonly(call).await?;
        if holder.is_empty() {
            return Ok(None);
        }
        let open = OpenTurn::of_stored(turn.session, turn.generation, &holder);
        open.map(Some).ok_or_else(|| unexpected("open turn"))
    }

    /// Claims a turn from the replica that holds it, if the fence is still the same.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn claim(&self, attempt: &ClaimAttempt) -> Result<Claim, StoreError> {
        let &ClaimAttempt { ref open, fence, tag } = attempt;
        let call = SessionKeys::of(open.session)
            .call("jarvis_claim_1")
            .text("generation", open.generation)
            .text("replaced_fence", open.fence.0)
            .text("fence", fence.0)
            .arg("replica", self.replica.as_str())
            .text("tag", tag)
            .arg("event", claimed_event());
        let reply: Vec<String> = self.redis.call(call).await?;
        let turn = || -> Result<Arc<Turn>, StoreError> {
            let stored = reply.get(1).and_then(|json| serde_json::from_str(json).ok());
            let stored = stored.ok_or_else(|| unexpected("turn"))?;
            let StoredTurn { spec, own_conversation, idempotency, trace } = stored;
            let entry = reply.get(7).ok_or_else(|| unexpected("message"))?;
            let conversation = own_conversation
                .then(|| OwnConversation::parse(reply.iter().skip(8)))
                .transpose()?;
            let accepted = Accepted::of_stored(
                open.generation,
                entry,
                &spec,
                conversation,
                idempotency,
                trace,
            )?;
            Ok(Arc::new(Turn {
                owner: Owner::from_key(&field::<String>(&reply, 2)?),
                session: open.session,
                generation: open.generation,
                fence,
                epoch: field(&reply, 3)?,
                accepted: Arc::new(accepted),
                number: 0,
                claimed: Some(Claimed { replaced: open.fence, tag }),
                // Unreadable continuations are left out: they are only shown, and decide nothing.
                continued: reply
                    .get(5)
                    .and_then(|stored| serde_json::from_str(stored).ok())
                    .unwrap_or_default(),
                runner: reply.get(6).and_then(|stored| Runner::from_stored(stored)),
                spec,
            }))
        };
        match reply.first().map(String::as_str) {
            Some("running") => Ok(Claim::Running(turn()?, field(&reply, 4)?)),
            Some("waiting") => Ok(Claim::Waiting(turn()?)),
            Some("other") => Ok(Claim::Other),
            _ => Err(unexpected("claim")),
        }
    }
}
