//! Submits a turn for a client.

use tokio::runtime::Handle;
use tracing::Instrument;

use crate::generation::{Generations, SubmitError, Submitted};
use crate::session::store::NewTurn;
use crate::session::{GenerationId, Owner, SessionId};

/// A turn on its way in.
pub struct Submission {
    /// Who asks.
    pub owner: Owner,
    /// The session that the turn joins.
    pub session: SessionId,
    /// What is asked.
    pub turn: NewTurn,
    /// Whether the turn is cancelled when the client goes away; else it runs on.
    pub cancel_on_disconnect: bool,
}

/// A turn that was accepted.
pub struct AcceptedTurn {
    /// The generation that answers it.
    pub submitted: Submitted,
    /// Cancels it when the client goes away, where the client wants that.
    pub guard: Option<CancelOnDrop>,
}

/// Cancels a generation when it is dropped, unless it was disarmed.
pub struct CancelOnDrop {
    generations: Generations,
    owner: Owner,
    session: SessionId,
    generation: Option<GenerationId>,
}

impl CancelOnDrop {
    /// Leaves the generation alone: it has ended, or may go on.
    pub fn disarm(&mut self) {
        self.generation = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some(generation) = self.generation else { return };
        // Without a runtime the process ends, and other replicas take over its turns.
        let Ok(runtime) = Handle::try_current() else { return };
        let (generations, owner, session) =
            (self.generations.clone(), self.owner.clone(), self.session);
        runtime.spawn(async move {
            if let Err(error) = generations.cancel(&owner, session, Some(generation)).await {
                tracing::warn!(%error, %generation, "cancel after disconnect failed");
            }
        });
    }
}

/// Submits a turn. It is accepted whole or not at all, even if the caller goes away meanwhile.
///
/// # Errors
/// Any [`SubmitError`].
pub async fn submit(
    generations: &Generations,
    submission: Submission,
) -> Result<AcceptedTurn, SubmitError> {
    let generations = generations.clone();
    let task = async move {
        let Submission { owner, session, turn, cancel_on_disconnect } = submission;
        let submitted = generations.submit(&owner, session, turn).await?;
        let guard = cancel_on_disconnect.then(|| CancelOnDrop {
            generations,
            owner,
            session,
            generation: Some(submitted.generation),
        });
        Ok(AcceptedTurn { submitted, guard })
    };
    let accepted: Result<AcceptedTurn, SubmitError> =
        tokio::spawn(task.in_current_span()).await.unwrap_or_else(|error| {
            tracing::error!(%error, "turn submission failed");
            Err(SubmitError::Internal)
        });
    if let Ok(accepted) = &accepted {
        let generation = tracing::field::display(accepted.submitted.generation);
        tracing::Span::current().record("generation", generation);
    }
    accepted
}
