//! The submission of a turn for a client.

use tracing::Instrument;

use crate::generation::{Generations, SubmitError, Submitted};
use crate::lifecycle::{spawn_caught, spawn_on_drop};
use crate::limits::{LimitRefusal, TurnPermit};
use crate::session::store::NewTurn;
use crate::session::{GenerationId, Owner, SessionId};
use crate::telemetry::{metric, traces};

/// A turn to submit.
pub struct Submission {
    /// The session of the turn.
    pub session: SessionId,
    /// The message and its options.
    pub turn: NewTurn,
    /// The right to the turn. It is used up where the turn is accepted, and given back where the
    /// turn was accepted before, or is refused.
    pub permit: TurnPermit,
    /// Whether the turn is cancelled when the client goes away; otherwise it continues.
    pub cancel_on_disconnect: bool,
}

/// A turn that was accepted.
pub struct AcceptedTurn {
    /// The generation that answers the turn.
    pub submitted: Submitted,
    /// The guard that cancels the turn when the client goes away, where the client requested that.
    pub guard: Option<CancelOnDrop>,
}

/// A guard that cancels a generation when it is dropped, unless it was disarmed.
pub struct CancelOnDrop {
    generations: Generations,
    owner: Owner,
    session: SessionId,
    generation: Option<GenerationId>,
    /// Whether the client, or a proxy for it, may repeat the request at another replica.
    may_repeat: bool,
}

impl CancelOnDrop {
    /// Keeps the guard from cancelling: the generation has ended, or may continue.
    pub fn disarm(&mut self) {
        self.generation = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some(generation) = self.generation else { return };
        // The client is not gone where this replica stops: it joins the turn again elsewhere.
        if self.may_repeat && self.generations.has_stopped() {
            return;
        }
        let (generations, owner, session) =
            (self.generations.clone(), self.owner.clone(), self.session);
        // The turns of a process that ends are taken over by other replicas.
        spawn_on_drop("submission", async move {
            if let Err(error) = generations.cancel(&owner, session, Some(generation)).await {
                tracing::warn!(%error, %generation, "cancel after disconnect failed");
            }
        });
    }
}

/// Checks a turn before the conversation that it goes on with is read, so that a request which is refused
/// reads nothing of that. `turn` is the turn without it. Returns the right to submit the turn, unless it is
/// refused: then it is given back.
///
/// # Errors
/// Any [`SubmitError`].
pub async fn check_early(
    generations: &Generations,
    permit: TurnPermit,
    session: SessionId,
    turn: &NewTurn,
) -> Result<TurnPermit, SubmitError> {
    let owner = &permit.subject.owner;
    let checked = generations.check_early(owner, session, turn, permit.refusal()).await;
    let Err(refused) = checked else { return Ok(permit) };
    permit.give_back().await;
    count_refusal(&refused);
    Err(refused)
}

fn count_refusal(refused: &SubmitError) {
    metrics::counter!(metric::TURNS_REFUSED_TOTAL, "code" => refused.code()).increment(1);
}

/// Submits a turn. It is accepted as a whole or not at all, even if the caller goes away meanwhile.
///
/// # Errors
/// Any [`SubmitError`].
pub async fn submit(
    generations: &Generations,
    submission: Submission,
) -> Result<AcceptedTurn, SubmitError> {
    let generations = generations.clone();
    let task = async move {
        let Submission { session, turn, permit, cancel_on_disconnect } = submission;
        let owner = permit.subject.owner.clone();
        let refusal = permit.refusal().cloned();
        let may_repeat = turn.key.is_some();
        let mut permit = Some(permit);
        let submitted = match refusal {
            None => generations.submit(&owner, session, turn, &mut permit).await,
            Some(refusal) => repeated(&generations, &owner, session, &turn, refusal).await,
        };
        // Here, because a client that leaves meanwhile does not undo the turn.
        match (&submitted, permit) {
            (Ok(submitted), Some(permit)) if !submitted.repeated => permit.keep(),
            (Ok(_), Some(permit)) => permit.give_back_repeat().await,
            (_, Some(permit)) => permit.give_back().await,
            (_, None) => {}
        }
        let submitted = submitted?;
        let guard = cancel_on_disconnect.then(|| CancelOnDrop {
            generations,
            owner,
            session,
            generation: Some(submitted.generation),
            may_repeat,
        });
        Ok(AcceptedTurn { submitted, guard })
    };
    let task = traces::within(traces::current(), task);
    let accepted = match spawn_caught("submission", task.in_current_span()).await {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(_)) | Err(_) => Err(SubmitError::Internal),
    };
    match &accepted {
        Ok(accepted) => {
            let generation = tracing::field::display(accepted.submitted.generation);
            tracing::Span::current().record("generation", generation);
        }
        Err(refused) => count_refusal(refused),
    }
    accepted
}

/// Returns the turn that was accepted before, where a limit refuses another one.
async fn repeated(
    generations: &Generations,
    owner: &Owner,
    session: SessionId,
    turn: &NewTurn,
    refusal: LimitRefusal,
) -> Result<Submitted, SubmitError> {
    generations.repeated(owner, session, turn).await?.ok_or_else(|| {
        refusal.count();
        refusal.into()
    })
}
