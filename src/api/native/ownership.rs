//! The routes of a signed-in caller's own sessions.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use futures_util::StreamExt;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::problems::in_time;
use crate::api::responses::{InvalidFields, OverBudget, SessionNotFound, Unavailable};
use crate::api::state::Shared;
use crate::budget::{ListEntry, ListOrder, ListPosition};
use crate::generation::DeletedAll;
use crate::http::extract::caller::Caller;
use crate::http::extract::fields::Fields;
use crate::http::extract::path::SessionPath;
use crate::http::extract::query::QueryFields;
use crate::http::problem::Problem;
use crate::session::{Owner, SessionId, SessionInfo, StoreError};
use crate::sign_in::SignInError;

/// Pages of the index that one request reads, at most: entries whose sessions are gone are left out.
const PAGES: usize = 4;
/// Sessions that are described at the same time.
const AT_ONCE: usize = 16;

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
        SessionNotFound, InvalidFields, OverBudget, Unavailable,
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

/// The caller's sessions, the one that was used last first.
#[derive(Serialize, ToSchema)]
pub struct SessionList {
    sessions: Vec<SessionInfo>,
    /// The number of these sessions.
    count: usize,
    /// The `cursor` of the next page; null on the last one.
    next_cursor: Option<String>,
}

/// Lists the caller's sessions, the one that was used last first.
#[utoipa::path(
    get, path = "/api/v1/chat/sessions", tag = "sessions",
    params(
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 500,
            description = "Sessions in the reply, at most; 50"),
        ("cursor" = Option<String>, Query, max_length = 128,
            pattern = r"^([0-9]{1,16}(\.[0-9]{1,8})?_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?$",
            description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, body = SessionList), InvalidFields, Unavailable),
)]
pub async fn list(
    State(shared): State<Shared>,
    SignedIn(owner): SignedIn,
    QueryFields(query): QueryFields,
) -> Result<Json<SessionList>, Problem> {
    let mut fields = Fields::new("query", &query);
    let limit = usize::try_from(fields.page_limit(1)).unwrap_or(1);
    let cursor = fields.text("cursor", 128).filter(|text| !text.is_empty());
    let after = cursor.and_then(ListPosition::parse);
    if cursor.is_some() && after.is_none() {
        fields.refuse("cursor", "cursor_invalid", "is not a cursor of this list; leave it out");
    }
    fields.finish(())?;
    Ok(Json(in_time(list_page(&shared, &owner, after, limit)).await?))
}

/// Collects a page of sessions from as many pages of the index as it takes.
async fn list_page(
    shared: &Shared,
    owner: &Owner,
    mut after: Option<ListPosition>,
    limit: usize,
) -> Result<SessionList, StoreError> {
    let budget = shared.generations.budget();
    let mut sessions = Vec::new();
    for _ in 0..PAGES {
        let wanted = limit - sessions.len();
        let entries = budget.list(owner, ListOrder::Newest, after.as_ref(), wanted).await?;
        let is_last = entries.len() < wanted;
        let last = entries.last().map(|entry| entry.position.clone());
        sessions.extend(describe(shared, owner, entries).await?);
        if is_last {
            after = None;
            break;
        }
        after = last;
        if sessions.len() == limit {
            break;
        }
    }
    let next_cursor = after.map(|after| after.to_string());
    Ok(SessionList { count: sessions.len(), sessions, next_cursor })
}

/// Describes the listed sessions, and leaves out those that are gone. The index is repaired where it
/// differs from the sessions.
async fn describe(
    shared: &Shared,
    owner: &Owner,
    entries: Vec<ListEntry>,
) -> Result<Vec<SessionInfo>, StoreError> {
    let descriptions = futures_util::stream::iter(entries).map(|entry| {
        let (store, owner) = (shared.store.clone(), owner.clone());
        async move {
            let described = store.describe_listed(&owner, entry.position.session).await;
            (entry, described)
        }
    });
    let mut descriptions = descriptions.buffered(AT_ONCE);
    let (mut found, mut gone, mut unrecorded) = (Vec::new(), Vec::new(), Vec::new());
    while let Some((entry, described)) = descriptions.next().await {
        let session = entry.position.session;
        match described {
            Ok(info) => {
                found.extend(info);
                if !entry.is_recorded {
                    unrecorded.push(session);
                }
            }
            Err(StoreError::Absent) => gone.push(session),
            Err(error) => return Err(error),
        }
    }
    let budget = shared.generations.budget();
    if !gone.is_empty() {
        budget.unlist_gone(owner, &gone).await?;
    }
    let unrecorded = futures_util::stream::iter(unrecorded);
    unrecorded.for_each_concurrent(AT_ONCE, |session| budget.record("", session)).await;
    Ok(found)
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
