//! The acceptance of turns: what is checked before it, the call to Redis, and the retry of a call whose
//! outcome is unknown.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::held_texts::HeldTexts;
use super::turn_state::TurnState;
use super::{Generations, SubmitError, Submitted, capacity, context, failures};
use crate::budget::RoomGrant;
use crate::lifecycle::catch_panic;
use crate::limits::{LimitRefusal, SessionPermit, TurnPermit};
use crate::model_name;
use crate::ollama::{ModelRefusal, OllamaError};
use crate::queue::Room;
use crate::retry::{Backoff, retry};
use crate::session::store::{Acceptance, NewTurn, Proposal, StoredSize};
use crate::session::{Feed, Image, Owner, SessionId, StoreError};
use crate::telemetry::traces::{self, Span};

/// How long the acceptance of a turn is retried after its client got the error that Redis is not
/// available.
const RETRY_ACCEPT_LIMIT: Duration = Duration::from_secs(20);

/// Bytes of a turn as it is stored that are recorded only when it ends, at most, where it waits for no
/// other turn of its session.
const RECORDED_AT_END: u64 = 8 << 10;

/// How often the images of one turn are put, where what was put is gone before its acceptance.
const IMAGE_PUTS: u32 = 3;

/// The parts that the acceptance of a turn needs, and holds until its outcome.
struct Accepting {
    proposal: Proposal,
    images: Vec<Image>,
    /// The source of the request.
    source: String,
    /// The bytes that the turn stores, about.
    bytes: u64,
    texts: HeldTexts,
    /// The feed of the session, which is opened meanwhile.
    feed: Arc<Feed>,
}

impl Generations {
    /// Accepts a turn and runs it on this replica. A repeat with the same idempotency key returns
    /// the first turn. The permit is taken where the acceptance goes on after an error: then it is
    /// used up, or given back, with the outcome.
    ///
    /// # Errors
    /// Any [`SubmitError`].
    pub async fn submit(
        &self,
        owner: &Owner,
        session: SessionId,
        new: NewTurn,
        turn_permit: &mut Option<TurnPermit>,
    ) -> Result<Submitted, SubmitError> {
        let mut span = Span::child_of(traces::current(), "accept turn");
        span.set_text("gen_ai.request.model", &new.spec.model);
        let submitted = self.submit_new(owner, session, new, turn_permit).await;
        match &submitted {
            Ok(submitted) => {
                span.set_text("jarvis.generation.id", &submitted.generation);
                span.set("jarvis.turn.repeated", submitted.repeated);
            }
            Err(refused) => span.fail(refused.code()),
        }
        submitted
    }

    async fn submit_new(
        &self,
        owner: &Owner,
        session: SessionId,
        mut new: NewTurn,
        turn_permit: &mut Option<TurnPermit>,
    ) -> Result<Submitted, SubmitError> {
        if self.store.lifecycle().is_draining() {
            return Err(SubmitError::Draining);
        }
        // A turn that cannot run soon is refused before it becomes a part of the conversation. The
        // repeat of an accepted turn is not refused.
        let source = turn_permit.as_ref().map_or("", |permit| &permit.subject.source.0);
        let size = new.stored_size();
        let admitted = match self.texts.take(owner, source, new.memory()) {
            Ok(texts) => {
                self.admits(owner, session, &new, size).await.map(|grants| (grants, texts))
            }
            Err(refused) => Err(refused),
        };
        let ((permit, grant), texts) = match admitted {
            Ok(admitted) => admitted,
            Err(refused) => {
                // Boxed, because it is rare.
                return Box::pin(self.repeated(owner, session, &new)).await?.ok_or(refused);
            }
        };
        let accepting = Accepting {
            proposal: Proposal::new(owner, session, &new),
            source: new.spec.source.clone(),
            bytes: size.whole,
            images: std::mem::take(&mut new.attached.images),
            texts,
            // A turn that the checks above refuse opens no feed; one that `accept` refuses does.
            feed: self.feeds.prepare(owner, session),
        };
        let accepted = Box::pin(self.accept_and_record(owner, session, &accepting)).await;
        if let Err(StoreError::Full) = &accepted
            && let Some(repeat) = Box::pin(self.repeated(owner, session, &new)).await?
        {
            return Ok(repeat);
        }
        if let Ok(submitted) = &accepted {
            permit.accepted(submitted.created_session);
        } else if let Err(StoreError::Redis(_)) = &accepted
            && accepting.proposal.has_key()
        {
            self.retry_accept(owner, session, accepting, (turn_permit.take(), permit));
        }
        match accepted {
            Err(StoreError::Absent) => {
                // Boxed, because it is rare, and its future is large.
                Box::pin(self.budget.withdraw(owner, session, grant)).await;
                Err(StoreError::Absent.into())
            }
            done => Ok(done?),
        }
    }

    /// Checks a turn before the conversation that it goes on with is read, by what needs none of that: the
    /// limits of the caller, the model, the queue and the caller's budget. The repeat of a turn that was
    /// accepted passes. `new` is the turn without that conversation.
    ///
    /// # Errors
    /// Any [`SubmitError`].
    pub async fn check_early(
        &self,
        owner: &Owner,
        session: SessionId,
        new: &NewTurn,
        refusal: Option<&LimitRefusal>,
    ) -> Result<(), SubmitError> {
        if self.store.lifecycle().is_draining() {
            return Err(SubmitError::Draining);
        }
        let checked = match refusal {
            Some(refusal) => Err(refusal.clone().into()),
            None => self.admits_early(owner, session, new).await,
        };
        let Err(refused) = checked else { return Ok(()) };
        // Boxed, because it is rare.
        if Box::pin(self.repeated(owner, session, new)).await?.is_some() {
            return Ok(());
        }
        if let SubmitError::Limited(refusal) = &refused {
            refusal.count();
        }
        Err(refused)
    }

    async fn admits_early(
        &self,
        owner: &Owner,
        session: SessionId,
        new: &NewTurn,
    ) -> Result<(), SubmitError> {
        let stored = new.stored_size();
        self.admits_request(owner, new, stored).await?;
        let grant = self.budget.room_with(owner, &new.spec.source, session, stored.whole).await?;
        // The turn is listed with its whole conversation.
        self.budget.withdraw(owner, session, grant).await;
        Ok(())
    }

    /// Returns the turn that was accepted before with the same idempotency key, if there is one.
    ///
    /// # Errors
    /// [`SubmitError::Store`].
    pub async fn repeated(
        &self,
        owner: &Owner,
        session: SessionId,
        new: &NewTurn,
    ) -> Result<Option<Submitted>, SubmitError> {
        let found = self.store.find(owner, session, new).await?;
        let repeat = |(generation, before)| Submitted {
            generation,
            before,
            repeated: true,
            created_session: false,
            waits: false,
        };
        Ok(found.map(repeat))
    }

    /// Checks that Redis may store the request, that a host has the model or may be back with it while the
    /// turn waits, that the question may fit into the model's context window, and that the queue has room.
    async fn admits_request(
        &self,
        owner: &Owner,
        new: &NewTurn,
        stored: StoredSize,
    ) -> Result<(), SubmitError> {
        if stored.is_too_large() {
            return Err(SubmitError::RequestTooLarge);
        }
        let model = &new.spec.model;
        match self.fleet.check(model).await {
            Err(OllamaError::NoHost | OllamaError::ModelNotFound { .. })
                if self.fleet.may_return(model) => {}
            checked => checked?,
        }
        if !new.attached.images.is_empty() && matches!(self.fleet.sees(model).await, Ok(false)) {
            let refusal = ModelRefusal::Capability("images");
            return Err(OllamaError::ModelRefused { model: model.clone(), refusal }.into());
        }
        let room = self.fleet.known_num_ctx(model).map(|tokens| tokens.min(self.num_ctx_cap));
        if let Some(failure) = context::obviously_too_long(&new.content, &new.spec, room) {
            return Err(SubmitError::TooLong(failure));
        }
        let queue_source = capacity::ticket_source(owner, &new.spec.source);
        match self.queue.room(&model_name::canonical(model), &queue_source).await {
            Room::NoneFor(after) => Err(SubmitError::QueueFull(failures::queue_full(after))),
            Room::Some => Ok(()),
        }
    }

    /// Checks the request, that the caller may store another turn, and that its address may begin another
    /// session.
    async fn admits(
        &self,
        owner: &Owner,
        session: SessionId,
        new: &NewTurn,
        stored: StoredSize,
    ) -> Result<(SessionPermit, RoomGrant), SubmitError> {
        self.admits_request(owner, new, stored).await?;
        let source = &new.spec.source;
        let begun = async {
            match &new.conversation {
                // It is no session that its client goes on with, and it expires within an hour: the
                // limits of turns and of bytes are those of a client that keeps no sessions.
                Some(_) => Ok(self.limits.existing_session(session)),
                None => self.limits.take_session(source, session).await,
            }
        };
        let (room, permit) = tokio::join!(
            self.budget.room_with(owner, source, session, stored.whole),
            Box::pin(begun)
        );
        let grant = room?;
        match permit {
            Ok(permit) => Ok((permit, grant)),
            // A session that exists goes on.
            Err(_) if Box::pin(self.store.describe(owner, session)).await.is_ok() => {
                Ok((self.limits.existing_session(session), grant))
            }
            Err(refusal) => {
                Box::pin(self.budget.withdraw(owner, session, grant)).await;
                refusal.count();
                Err(refusal.into())
            }
        }
    }

    /// Puts the images of a turn, and has Redis accept it. Where it is refused, or was accepted
    /// before, the images leave nothing behind.
    async fn accept_with_images(
        &self,
        owner: &Owner,
        session: SessionId,
        accepting: &Accepting,
    ) -> Result<Submitted, StoreError> {
        let Accepting { proposal, images, .. } = accepting;
        if images.is_empty() {
            return self.accept(accepting).await;
        }
        let mut accepted = Err(StoreError::ImagesAbsent);
        for _ in 0..IMAGE_PUTS {
            self.put_images(owner, session, images).await?;
            accepted = self.accept(accepting).await;
            // A clear, or the refusal of the same images in another turn, may have removed them.
            if !matches!(accepted, Err(StoreError::ImagesAbsent)) {
                break;
            }
        }
        let is_stored = match &accepted {
            Ok(submitted) => !submitted.repeated,
            // It may have been accepted, and is tried again.
            Err(error) => matches!(error, StoreError::Redis(_)) && proposal.has_key(),
        };
        if !is_stored {
            // Images that another message has are not dropped.
            self.drop_images(owner, session, images).await;
        }
        accepted
    }

    /// Has Redis accept a turn, and records what it stores where that is much, or where it waits for other
    /// turns of its session, at once: the caller's next turn is to find it. The data of a little one that
    /// runs next is recorded when it ends: there are no more of those than the queue has positions.
    async fn accept_and_record(
        &self,
        owner: &Owner,
        session: SessionId,
        accepting: &Accepting,
    ) -> Result<Submitted, StoreError> {
        let accepted = self.accept_with_images(owner, session, accepting).await;
        if let Ok(Submitted { repeated: false, waits, .. }) = accepted
            && (waits || accepting.bytes > RECORDED_AT_END)
        {
            self.budget.record(&accepting.source, session).await;
        }
        accepted
    }

    /// Has Redis accept a turn, and runs the turn if it is new.
    async fn accept(&self, accepting: &Accepting) -> Result<Submitted, StoreError> {
        let Accepting { proposal, images, texts, feed, .. } = accepting;
        match self.store.accept(proposal).await? {
            Acceptance::New { turn, began, before, created } => {
                let generation = turn.generation;
                if !images.is_empty() {
                    self.images.push(&turn, images.clone());
                }
                let state =
                    if began { TurnState::Running { writers: 1 } } else { TurnState::Waiting };
                self.run(turn, state, texts.clone(), Some(Arc::clone(feed)));
                Ok(Submitted {
                    generation,
                    before: Some(before),
                    repeated: false,
                    created_session: created,
                    waits: !began,
                })
            }
            Acceptance::Same { generation, before } => Ok(Submitted {
                generation,
                before,
                repeated: true,
                created_session: false,
                waits: false,
            }),
        }
    }

    /// Retries the acceptance of a turn whose call failed: Redis may have accepted and published
    /// the turn, and lost it with a failover. A repeat with the same key then finds this turn.
    ///
    /// The permits are used up where the turn is accepted now, and given back otherwise. The room of the
    /// turn's texts stays taken until then.
    fn retry_accept(
        &self,
        owner: &Owner,
        session: SessionId,
        mut accepting: Accepting,
        (turn_permit, session_permit): (Option<TurnPermit>, SessionPermit),
    ) {
        let (generations, stop, owner) = (self.clone(), self.stop.clone(), owner.clone());
        let memory = self.images.reserve_retry(&accepting.images);
        if memory.is_none() {
            // A turn that was accepted is still found; of one that was not, the client has the error.
            accepting.images = Vec::new();
        }
        self.tasks.spawn(catch_panic("submission", async move {
            let _memory = memory;
            let accept = || generations.accept_and_record(&owner, session, &accepting);
            let is_retryable = |error: &StoreError| matches!(error, StoreError::Redis(_));
            let accepted = retry(Backoff::redis(), accept, is_retryable);
            let accepted = tokio::select! {
                accepted = timeout(RETRY_ACCEPT_LIMIT, accepted) => accepted,
                () = stop.cancelled() => return,
            };
            if accepted.is_err() {
                generations.drop_images(&owner, session, &accepting.images).await;
            }
            if let Ok(Ok(submitted)) = accepted {
                session_permit.accepted(submitted.created_session);
                if !submitted.repeated
                    && let Some(permit) = turn_permit
                {
                    permit.keep();
                }
            }
        }));
    }
}
