//! The routes of a signed-in caller's own sessions, but for their list.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::problems::in_time;
use crate::api::responses::{InvalidFields, OverBudgetReply, SessionNotFound, Unavailable};
use crate::api::state::Shared;
use crate::generation::DeletedAll;
use crate::http::extract::caller::Caller;
use crate::http::extract::path::SessionPath;
use crate::http::problem::Problem;
use crate::session::{Owner, SessionId, SessionInfo, StoreError};
use crate::sign_in::SignInError;

/// A signed-in caller. An anonymous one is refused with 401.
pub struct SignedIn(pub Owner);

impl<S: Send + Sync> FromRequestParts<S> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Caller::from_request_parts(parts, state).await {
            Ok(Caller(owner @ Owner::User(_))) => Ok(Self(owner)),
            _ => Err(Problem::not_signed_in(&SignInError::Required)),
        }
    }
}

/// Makes an anonymous session the caller's.
#[utoipa::path(
    post, path = "/api/v1/chat/sessions/{session_id}/claim", tag = "sessions",
    params(("session_id" = SessionId, Path)),
    responses(
        (status = 200, body = SessionInfo, description = "The session is the caller's"),
        SessionNotFound, InvalidFields, OverBudgetReply, Unavailable,
    ),
)]
pub async fn claim(
    State(shared): State<Shared>,
    SignedIn(owner): SignedIn,
    SessionPath(session): SessionPath,
) -> Result<Json<SessionInfo>, Problem> {
    let known = async {
        match shared.store.describe(&owner, session).await {
            Err(StoreError::Absent) => Ok(None),
            described => described.map(Some),
        }
    };
    // A repeat needs no room in the budget.
    if let Some(described) = in_time(known).await? {
        return Ok(Json(described.info));
    }
    in_time(shared.generations.transfer(&owner, session)).await?;
    Ok(Json(in_time(shared.store.describe(&owner, session)).await?.info))
}

/// The result of the deletion of all sessions.
#[derive(Serialize, ToSchema)]
pub struct DeletionOfAll {
    /// "success", or "accepted" where the deletion goes on after this reply.
    status: &'static str,
    message: &'static str,
    /// The number of sessions that are deleted, or are to be.
    sessions_deleted: u64,
}

/// Deletes all sessions that the caller has now.
#[utoipa::path(
    delete, path = "/api/v1/chat/sessions", tag = "sessions",
    responses(
        (status = 200, body = DeletionOfAll, description = "All are deleted"),
        (status = 202, body = DeletionOfAll, description = "The deletion goes on"),
        Unavailable,
    ),
)]
pub async fn delete_all(
    State(shared): State<Shared>,
    SignedIn(owner): SignedIn,
) -> Result<(StatusCode, Json<DeletionOfAll>), Problem> {
    let (code, status, message, sessions_deleted) =
        match shared.generations.delete_all(&owner).await? {
            DeletedAll::Done(count) => (StatusCode::OK, "success", "All sessions deleted", count),
            DeletedAll::Running(count) => {
                (StatusCode::ACCEPTED, "accepted", "The deletion goes on", count)
            }
        };
    Ok((code, Json(DeletionOfAll { status, message, sessions_deleted })))
}
