//! The course of one turn from its submission to its end, for every front.
//!
//! A front submits a turn or joins one, and then receives typed updates until the generation ends.
//! Nothing here knows a protocol or a wire format.

pub mod outcome;
pub mod snapshot;
mod submit;

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep_until};

use self::outcome::{LoggedEnd, logged_end, stored_answer};
pub use self::outcome::{TurnOutcome, outcome};
pub use self::submit::{AcceptedTurn, CancelOnDrop, Submission, check_early, submit};
use crate::byte_room::ClientRoom;
use crate::generation::Submitted;
use crate::retry::Backoff;
use crate::session::{
    Change, Control, Cursor, Delivered, Delta, Feeds, FinishReason, GenerationId, Message, Owner,
    Reader, Role, SessionId, Status, Store, StoreError, store,
};

/// How long a follower waits for the next update while Redis refuses what turns need: longer than a
/// turn that waits for a slot, whose failure may still be written.
const REFUSED_LIMIT: Duration = Duration::from_secs(15);

/// A generation that a client follows to its end.
pub struct Follow {
    store: Store,
    feeds: Feeds,
    owner: Owner,
    session: SessionId,
    generation: GenerationId,
    reader: Reader,
    /// The stored answer of a generation that had ended already.
    stored: Option<Box<Message>>,
    /// The time of the last update. A wait that is given up and begun again is one wait.
    updated: Instant,
}

/// The next update of a followed generation.
#[derive(Debug)]
pub enum Update {
    /// The generation changed, or ended.
    Delta(Arc<Delta>),
    /// All earlier updates are void: the generation follows from its beginning.
    Restart,
    /// The generation has ended, and its changes are no longer kept. This is its stored answer.
    Stored(Box<Message>),
}

/// The reason why a generation cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The session has no such generation, or nothing of it is kept.
    #[error("this session has no such generation, or its answer is no longer kept")]
    UnknownGeneration,
    /// The session store refused the call, or did not reply.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Redis refuses what turns need, so that neither the text nor the end of this one can be
    /// written. The text is what is wrong, without a host, user or secret.
    #[error("Redis is not usable: {0}")]
    Refused(String),
}

/// The result of resuming a generation.
pub enum Resumed {
    /// The generation is followed.
    Following {
        /// The updates.
        follow: Box<Follow>,
        /// Whether no change since the client's cursor is missing.
        recovered: bool,
    },
    /// The client has the generation's end already.
    Complete,
}

impl Follow {
    /// Follows a turn that was submitted, from its acceptance on.
    ///
    /// # Errors
    /// Any [`FollowError`].
    pub async fn submitted(
        feeds: Feeds,
        store: Store,
        owner: Owner,
        session: SessionId,
        submitted: Submitted,
    ) -> Result<Self, FollowError> {
        let Submitted { generation, before, .. } = submitted;
        // The reader is opened first, so that the end cannot fall between it and the outcome.
        let mut reader = feeds.reader(&owner, session, before).await?;
        let mut stored = None;
        if before.is_none() || !reader.is_recovered() {
            if !reader.is_recovered() {
                reader = feeds.reader(&owner, session, None).await?;
            }
            match outcome(&store, &owner, session, generation, before).await? {
                TurnOutcome::Open => {}
                TurnOutcome::Ended { message, .. } => stored = Some(message),
                TurnOutcome::Unknown => return Err(FollowError::UnknownGeneration),
            }
        }
        let updated = Instant::now();
        Ok(Self { store, feeds, owner, session, generation, reader, stored, updated })
    }

    /// Follows a generation from a client's cursor on; without one, from its beginning.
    ///
    /// # Errors
    /// Any [`FollowError`].
    pub async fn resume(
        feeds: Feeds,
        store: Store,
        owner: Owner,
        session: SessionId,
        generation: GenerationId,
        cursor: Option<Cursor>,
    ) -> Result<Resumed, FollowError> {
        let reader = feeds.reader(&owner, session, cursor).await?;
        let recovered = reader.is_recovered();
        let known = cursor.filter(|_| recovered);
        let mut stored = None;
        if !store.is_open(&owner, session, generation).await? {
            let end = match known {
                Some(cursor) => logged_end(&store, &owner, session, generation, cursor).await?,
                None => LoggedEnd::Unknown,
            };
            if !matches!(end, LoggedEnd::Ended(_)) {
                match stored_answer(&store, &owner, session, generation).await? {
                    Some(_) if known.is_some() => return Ok(Resumed::Complete),
                    None => return Err(FollowError::UnknownGeneration),
                    answer => stored = answer,
                }
            }
        }
        let updated = Instant::now();
        let follow = Self { store, feeds, owner, session, generation, reader, stored, updated };
        Ok(Resumed::Following { follow: Box::new(follow), recovered })
    }

    /// Takes room for what its reader reads of Redis, as [`Reader::charge`] does.
    pub fn charge(&mut self, room: ClientRoom) {
        self.reader.charge(room);
    }

    /// Returns the bytes of the stored answer that is still to come; 0 where none is.
    pub fn stored_bytes(&self) -> usize {
        self.stored.as_ref().map_or(0, |answer| {
            answer.content.len() + answer.thinking.as_ref().map_or(0, String::len)
        })
    }

    /// Returns the generation.
    pub fn generation(&self) -> GenerationId {
        self.generation
    }

    /// Returns the cursor of a client that has every update so far; none where the generation is
    /// delivered as its stored answer, which cannot be resumed in its middle.
    pub fn cursor(&self) -> Option<Cursor> {
        self.stored.is_none().then(|| self.reader.cursor())
    }

    /// Returns the cursor of the underlying reader, also where the stored answer is still to come.
    pub fn end(&self) -> Cursor {
        self.reader.cursor()
    }

    /// Returns how often the answer had started again by this control event, as the log shows it: the
    /// same at every replica, and after the end.
    ///
    /// # Errors
    /// [`FollowError::Store`].
    pub async fn restarts(&mut self, until: u64) -> Result<u32, FollowError> {
        outcome::restarts(&self.store, &self.owner, self.session, self.generation, until)
            .await
            .map_err(Into::into)
    }

    /// Waits for the next update, also while Redis is unreachable. Do not call it again after the
    /// generation's end. Cancel-safe.
    ///
    /// # Errors
    /// [`FollowError`] where nothing of the generation is kept any more.
    pub async fn next(&mut self) -> Result<Update, FollowError> {
        let update = self.next_update().await;
        self.updated = Instant::now();
        update
    }

    async fn next_update(&mut self) -> Result<Update, FollowError> {
        if let Some(message) = self.stored.take() {
            return Ok(Update::Stored(message));
        }
        let mut backoff = Backoff::redis();
        let (store, limit) = (self.store.clone(), self.updated + REFUSED_LIMIT);
        let refused = async {
            sleep_until(limit).await;
            store.refused_for(REFUSED_LIMIT).await
        };
        tokio::pin!(refused);
        loop {
            let delivered = tokio::select! {
                delivered = self.reader.next() => delivered,
                trouble = &mut refused => return Err(FollowError::Refused(trouble)),
            };
            match delivered {
                Delivered::Delta(delta) if delta.generation == Some(self.generation) => {
                    return Ok(Update::Delta(delta));
                }
                Delivered::Delta(_) => {}
                Delivered::Lost => match self.start_over().await {
                    Err(FollowError::Store(StoreError::Redis(error))) => {
                        tracing::debug!(%error, "follower waiting for redis");
                        let _ = backoff.pause().await;
                    }
                    done => return done.map(|()| Update::Restart),
                },
                Delivered::Transferred => return Err(StoreError::Absent.into()),
            }
        }
    }

    /// Returns to the generation's beginning, or to its stored answer.
    async fn start_over(&mut self) -> Result<(), FollowError> {
        let mut reader = self.feeds.reader(&self.owner, self.session, None).await?;
        reader.charge_as(&self.reader);
        match outcome(&self.store, &self.owner, self.session, self.generation, None).await? {
            TurnOutcome::Open => self.reader = reader,
            TurnOutcome::Ended { message, .. } => self.stored = Some(message),
            TurnOutcome::Unknown => return Err(FollowError::UnknownGeneration),
        }
        Ok(())
    }

    /// Waits for the generation's end, and returns the answer as it is stored.
    ///
    /// # Errors
    /// As [`Follow::next`].
    pub async fn answer(mut self) -> Result<Box<Message>, FollowError> {
        loop {
            match self.next().await? {
                Update::Stored(message) => return Ok(message),
                Update::Restart => {}
                Update::Delta(delta) => {
                    if let Some(message) = final_message(&delta) {
                        return Ok(Box::new(message));
                    }
                }
            }
        }
    }
}

/// Returns the answer of a delta that ends its generation; none of another delta.
pub fn final_message(delta: &Delta) -> Option<Message> {
    let Change::Event { event, answer, reasoning } = &delta.change else { return None };
    let message = Message {
        content: answer.clone(),
        thinking: reasoning.clone(),
        generation_id: delta.generation,
        ..store::message(Role::Assistant, Utc::now())
    };
    match &event.control {
        Control::Ended {
            timestamp,
            model,
            finish_reason,
            usage,
            context,
            continued,
            tool_calls,
        } => Some(Message {
            tool_calls: tool_calls.clone(),
            timestamp: timestamp.parse().unwrap_or(message.timestamp),
            model: Some(model.clone()),
            status: Some(Status::Complete),
            finish_reason: Some(*finish_reason),
            usage: Some(*usage),
            context: Some(*context),
            continued: continued.clone(),
            ..message
        }),
        Control::Cancelled {} => Some(Message {
            status: Some(Status::Cancelled),
            finish_reason: Some(FinishReason::Cancelled),
            ..message
        }),
        Control::Failed(failure) => {
            Some(Message { status: Some(Status::Failed), error: Some(failure.clone()), ..message })
        }
        _ => None,
    }
}
