//! Sessions over REST.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::api::json_page;
use crate::api::native::input::{TITLE_CHARACTERS, cancel_target};
use crate::api::native::schema;
use crate::api::problems::in_time;
use crate::api::responses::{InvalidFields, SessionNotFound, Unavailable};
use crate::api::state::Shared;
use crate::generation::CancelOutcome;
use crate::http::extract::body::{JsonBody, ReadBody};
use crate::http::extract::caller::Caller;
use crate::http::extract::fields::{FieldError, Fields};
use crate::http::extract::object::Object;
use crate::http::extract::path::SessionPath;
use crate::http::extract::query::QueryFields;
use crate::http::problem::{Problem, ProblemDetails};
use crate::session::model::rfc3339;
use crate::session::store::SessionChange;
use crate::session::{GenerationId, Message, SessionId, SessionInfo};

/// The largest number that Redis's Lua, like JavaScript, holds exactly.
const LARGEST_SKIP: i64 = (1 << 53) - 1;

/// A session with one page of its messages.
#[derive(Serialize, ToSchema)]
#[schema(as = Conversation)]
#[allow(clippy::struct_excessive_bools, reason = "each is a field of the reply")]
pub struct SessionPage {
    session_id: SessionId,
    title: String,
    /// The model of the last turn.
    model: String,
    pinned: bool,
    archived: bool,
    /// Whether an answer is being written.
    running: bool,
    /// The messages, oldest first.
    #[schema(value_type = Vec<Message>)]
    messages: Vec<Box<RawValue>>,
    /// The number of all messages, equal to `total`.
    message_count: u64,
    total: u64,
    /// The number of messages before these.
    skip: u64,
    limit: u64,
    /// Whether there are messages after these. A page is bounded by its bytes as JSON, too.
    has_more: bool,
    created_at: String,
    updated_at: String,
}

/// Returns a session with one page of its messages.
#[utoipa::path(
    get, path = "/api/v1/chat/sessions/{session_id}", tag = "sessions",
    params(
        ("session_id" = SessionId, Path),
        ("skip" = Option<i64>, Query, minimum = 0, maximum = 9_007_199_254_740_991_i64,
            description = "Messages to leave out, from the oldest; 0"),
        ("limit" = Option<i64>, Query, minimum = 0, maximum = 500,
            description = "Messages in the reply, at most; 50"),
    ),
    responses(
        (status = 200, body = SessionPage),
        SessionNotFound, InvalidFields, Unavailable,
    ),
)]
pub async fn read(
    State(shared): State<Shared>,
    Caller(owner): Caller,
    SessionPath(session): SessionPath,
    QueryFields(query): QueryFields,
) -> Result<Json<SessionPage>, Problem> {
    let mut fields = Fields::new("query", &query);
    let skip = fields.integer("skip", 0, LARGEST_SKIP).unwrap_or(0).unsigned_abs();
    let limit = fields.page_limit(0);
    fields.finish(())?;
    let page = in_time(shared.store.page(&owner, session, skip, limit)).await?;
    let total = page.info.message_count;
    let messages = json_page::fitting(page.messages);
    Ok(Json(SessionPage {
        session_id: session,
        title: page.info.title,
        model: page.info.model,
        pinned: page.info.pinned,
        archived: page.info.archived,
        running: page.info.running,
        message_count: total,
        total,
        skip,
        limit,
        has_more: skip.saturating_add(messages.len() as u64) < total,
        messages,
        created_at: rfc3339(&page.info.created_at),
        updated_at: rfc3339(&page.info.updated_at),
    }))
}

/// The changes of a session; a field that is absent or null stays as it is.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only its description is used; `Fields` reads the body")]
pub struct SessionUpdate {
    /// The title: 1 to 200 characters, not blank.
    #[schema(min_length = 1, max_length = 200, pattern = r"[^\s\u0085]")]
    title: Option<String>,
    /// Whether the session is pinned.
    #[schema(required = false, schema_with = schema::session_flag)]
    pinned: Option<bool>,
    /// Whether the session is archived.
    #[schema(required = false, schema_with = schema::session_flag)]
    archived: Option<bool>,
}

/// The fields of a [`SessionUpdate`].
pub struct ChangedFields {
    title: Option<String>,
    pinned: Option<bool>,
    archived: Option<bool>,
}

impl ReadBody for ChangedFields {
    fn read(object: &Object) -> Result<Self, Vec<FieldError>> {
        let mut fields = Fields::new("body", object);
        let pinned = fields.flag("pinned");
        let archived = fields.flag("archived");
        let title = fields.has("title").then(|| fields.required_text("title", TITLE_CHARACTERS));
        let title = title.map(str::to_owned);
        fields.finish(Self { title, pinned, archived })
    }
}

/// Changes the title of a session and its flags.
#[utoipa::path(
    patch, path = "/api/v1/chat/sessions/{session_id}", tag = "sessions",
    request_body = Option<SessionUpdate>,
    params(("session_id" = SessionId, Path)),
    responses(
        (status = 200, body = SessionInfo),
        SessionNotFound, InvalidFields, Unavailable,
    ),
)]
pub async fn update(
    State(shared): State<Shared>,
    Caller(owner): Caller,
    SessionPath(session): SessionPath,
    JsonBody(ChangedFields { title, pinned, archived }): JsonBody<ChangedFields>,
) -> Result<Json<SessionInfo>, Problem> {
    let change = SessionChange { title, pinned, archived, metadata: None };
    in_time(shared.generations.update(&owner, session, change)).await?;
    Ok(Json(in_time(shared.store.describe(&owner, session)).await?.info))
}

/// The result of a deletion.
#[derive(Serialize, ToSchema)]
pub struct DeletionReply {
    /// Always "success".
    status: &'static str,
    message: String,
    messages_deleted: u64,
}

/// Deletes a session, and cancels its turns.
#[utoipa::path(
    delete, path = "/api/v1/chat/sessions/{session_id}", tag = "sessions",
    params(("session_id" = SessionId, Path)),
    responses(
        (status = 200, body = DeletionReply),
        SessionNotFound, InvalidFields, Unavailable,
    ),
)]
pub async fn delete(
    State(shared): State<Shared>,
    Caller(owner): Caller,
    SessionPath(session): SessionPath,
) -> Result<Json<DeletionReply>, Problem> {
    let messages_deleted = in_time(shared.generations.clear(&owner, session, true)).await?;
    let message = format!("Session {session} cleared");
    Ok(Json(DeletionReply { status: "success", message, messages_deleted }))
}

/// A request to cancel a generation.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only its description is used; `Fields` reads the body")]
pub struct Cancel {
    /// The generation; where absent, the running one, else the oldest that waits.
    generation_id: Option<GenerationId>,
}

/// The generation to cancel, where the client names one.
pub struct CancelTarget(Option<GenerationId>);

impl ReadBody for CancelTarget {
    fn read(object: &Object) -> Result<Self, Vec<FieldError>> {
        cancel_target(object).map(Self)
    }
}

/// The result of a cancel.
#[derive(Serialize, ToSchema)]
#[schema(as = Cancelled)]
pub struct CancelResult {
    /// Always "cancelled".
    status: &'static str,
    generation_id: GenerationId,
    /// Whether the model host is known to have stopped, within 500 ms.
    upstream_closed: bool,
}

/// Cancels a generation.
#[utoipa::path(
    post, path = "/api/v1/chat/sessions/{session_id}/cancel", tag = "sessions",
    request_body = Option<Cancel>,
    params(("session_id" = SessionId, Path)),
    responses(
        (status = 200, body = CancelResult),
        SessionNotFound, InvalidFields, Unavailable,
        (status = 409, body = ProblemDetails, content_type = "application/problem+json",
            description = "The generation has already ended"),
    ),
)]
pub async fn cancel(
    State(shared): State<Shared>,
    Caller(owner): Caller,
    SessionPath(session): SessionPath,
    JsonBody(CancelTarget(generation)): JsonBody<CancelTarget>,
) -> Result<Json<CancelResult>, Problem> {
    match shared.generations.cancel(&owner, session, generation).await? {
        CancelOutcome::Cancelled { generation, upstream_closed } => {
            let status = "cancelled";
            Ok(Json(CancelResult { status, generation_id: generation, upstream_closed }))
        }
        CancelOutcome::AlreadyEnded => Err(already_ended()),
    }
}

/// Returns the problem of a cancel without a running or waiting turn.
pub fn already_ended() -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "already_ended",
        "No turn of this session runs or waits; there is nothing to cancel.",
    )
}
