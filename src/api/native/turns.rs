//! Submits a chat request of the native front as a turn, and follows the turn.

use crate::api::native::input::{ChatRequest, OnDisconnect};
use crate::api::problems::in_time;
use crate::api::state::Shared;
use crate::follow::{self, AcceptedTurn, Follow, Submission};
use crate::generation::Submitted;
use crate::http::problem::Problem;
use crate::limits::TurnPermit;
use crate::session::store::{IdempotencyKey, NewTurn};
use crate::session::{Owner, SessionId, TurnSpec};

/// Submits a chat request as a turn.
///
/// # Errors
/// A problem for the client.
pub async fn submit(
    shared: &Shared,
    permit: TurnPermit,
    session: SessionId,
    request: &ChatRequest,
    key: Option<String>,
) -> Result<AcceptedTurn, Problem> {
    // A turn that Redis accepts and then refuses to run would wait for an operator.
    if let Some(refusal) = shared.readiness.refusal() {
        return Err(refusal.into());
    }
    let default_model = &shared.settings.default_model;
    let turn = NewTurn {
        spec: TurnSpec { source: permit.subject.source.0.clone(), ..request.spec(default_model) },
        content: request.message.clone(),
        conversation: None,
        key: key.map(|key| IdempotencyKey { key, body: request.digest(default_model) }),
    };
    let cancel_on_disconnect = request.on_disconnect == OnDisconnect::Cancel;
    let submission = Submission { session, turn, permit, cancel_on_disconnect };
    Ok(follow::submit(&shared.generations, submission).await?)
}

/// Follows a submitted turn.
///
/// # Errors
/// A problem for the client.
pub async fn follow(
    shared: &Shared,
    owner: &Owner,
    session: SessionId,
    submitted: Submitted,
) -> Result<Follow, Problem> {
    let (feeds, store) = (shared.feeds.clone(), shared.store.clone());
    let follow = Follow::submitted(feeds, store, owner.clone(), session, submitted);
    in_time(follow).await
}
