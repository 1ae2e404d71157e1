//! The branches of a session over REST: another answer, another question, and which of them is shown.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use utoipa::openapi::schema::{KnownFormat, SchemaFormat, Type};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use crate::api::idempotency::IdempotencyKeyHeader;
use crate::api::large_body::{self, HeldRoom, IMAGE_BYTES};
use crate::api::native::chat::{self, ChatResponse};
use crate::api::native::input::{ChatRequest, branch_target};
use crate::api::native::schema::ServerSentEvent;
use crate::api::problems::in_time;
use crate::api::responses::{
    InvalidFields, SessionNotFound, TooManyConnections, TurnFailed, Unavailable,
};
use crate::api::state::Shared;
use crate::http::extract::body::{JsonBody, ReadBody, parse_object};
use crate::http::extract::caller::Caller;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::Object;
use crate::http::extract::path::SessionPath;
use crate::http::peer::LastByte;
use crate::http::problem::{Problem, ProblemDetails};
use crate::limits::TurnPermit;
use crate::session::SessionId;
use crate::sign_in::Identity;

/// Returns whether a POST to this path starts a turn.
pub fn starts_a_turn(path: &str) -> bool {
    path.starts_with("/api/v1/chat/sessions/")
        && (path.ends_with("/regenerate") || path.ends_with("/edit"))
}

/// A request for another answer beside one: a chat request without what belongs to a question. Only its
/// description is used; `ChatRequest` reads the body.
pub struct Regenerate;

impl ToSchema for Regenerate {}

impl PartialSchema for Regenerate {
    fn schema() -> RefOr<Schema> {
        let of_question = ["message", "images", "session_id", "role", "tool_call_id"];
        beside_message("The answer.", &of_question)
    }
}

/// A request for another question instead of an earlier one, whose images it keeps where it names none:
/// a chat request. Only its description is used; `ChatRequest` reads the body.
pub struct Edit;

impl ToSchema for Edit {}

impl PartialSchema for Edit {
    fn schema() -> RefOr<Schema> {
        beside_message("The question.", &["session_id", "role", "tool_call_id"])
    }
}

/// Returns the schema of a chat request that names a message, without these fields.
fn beside_message(message: &str, without: &[&str]) -> RefOr<Schema> {
    let mut schema = ChatRequest::schema();
    if let RefOr::T(Schema::Object(request)) = &mut schema {
        let is_in = |name: &String| !without.contains(&name.as_str());
        request.properties.retain(|name, _| is_in(name));
        request.required.retain(is_in);
        let id = ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)))
            .description(Some(message));
        request.properties.insert("message_id".to_owned(), id.into());
        request.required.push("message_id".to_owned());
        request.description = None;
    }
    schema
}

/// The session and the body of a request to regenerate an answer, read and checked, and its room.
pub struct RegenerateBody(ChatRequest, HeldRoom);

impl FromRequest<Shared> for RegenerateBody {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Problem> {
        let most = shared.settings.max_body_bytes;
        let (request, room) = read(request, shared, most, ChatRequest::from_regenerate).await?;
        Ok(Self(request, room))
    }
}

/// The session and the body of a request to edit a question, read and checked, and its room.
pub struct EditBody(ChatRequest, HeldRoom);

impl FromRequest<Shared> for EditBody {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Problem> {
        let most = shared.settings.max_body_bytes + IMAGE_BYTES;
        let (request, room) = read(request, shared, most, ChatRequest::from_edit).await?;
        Ok(Self(request, room))
    }
}

type Check = fn(SessionId, &Object, &[u8]) -> Result<ChatRequest, Vec<FieldError>>;

/// Reads the session of the path and the body, which `check` makes a request of.
async fn read(
    request: Request,
    shared: &Shared,
    most: usize,
    check: Check,
) -> Result<(ChatRequest, HeldRoom), Problem> {
    let (mut parts, body) = request.into_parts();
    let SessionPath(session) = SessionPath::from_request_parts(&mut parts, shared).await?;
    let parse = move |body: Bytes| Ok(check(session, &parse_object(body.clone())?, &body)?);
    large_body::read(Request::from_parts(parts, body), shared, most, parse).await
}

/// Generates another answer beside one, and selects its branch.
#[utoipa::path(
    post, path = "/api/v1/chat/sessions/{session_id}/regenerate", tag = "sessions",
    request_body = Regenerate,
    params(("session_id" = SessionId, Path), IdempotencyKeyHeader),
    responses(
        (status = 200, description = "The whole answer; with `stream` its events",
            content((ChatResponse = "application/json"), (ServerSentEvent = "text/event-stream"))),
        (status = 404, body = ProblemDetails, content_type = "application/problem+json",
            description = "No such session, message or model"),
        (status = 409, body = ProblemDetails, content_type = "application/problem+json",
            description = "Too many turns wait in this session, it is full, the message has too many \
                alternatives, or the answer is still being written"),
        TurnFailed, InvalidFields, TooManyConnections, Unavailable,
    ),
)]
pub async fn regenerate(
    State(shared): State<Shared>,
    caller: Identity,
    permit: TurnPermit,
    last_byte: LastByte,
    headers: HeaderMap,
    RegenerateBody(request, room): RegenerateBody,
) -> Result<Response, Problem> {
    // Boxed, because a request whose body does not arrive would keep the room of a whole turn.
    Box::pin(chat::answer(shared, caller, permit, last_byte, headers, (request, room))).await
}

/// Asks another question instead of an earlier one, and selects its branch.
#[utoipa::path(
    post, path = "/api/v1/chat/sessions/{session_id}/edit", tag = "sessions",
    request_body = Edit,
    params(("session_id" = SessionId, Path), IdempotencyKeyHeader),
    responses(
        (status = 200, description = "The whole answer; with `stream` its events",
            content((ChatResponse = "application/json"), (ServerSentEvent = "text/event-stream"))),
        (status = 404, body = ProblemDetails, content_type = "application/problem+json",
            description = "No such session, message or model"),
        (status = 409, body = ProblemDetails, content_type = "application/problem+json",
            description = "Too many turns wait in this session, it is full, or the message has too many \
                alternatives"),
        TurnFailed, InvalidFields, TooManyConnections, Unavailable,
    ),
)]
pub async fn edit(
    State(shared): State<Shared>,
    caller: Identity,
    permit: TurnPermit,
    last_byte: LastByte,
    headers: HeaderMap,
    EditBody(request, room): EditBody,
) -> Result<Response, Problem> {
    // Boxed, because a request whose body does not arrive would keep the room of a whole turn.
    Box::pin(chat::answer(shared, caller, permit, last_byte, headers, (request, room))).await
}

/// A request to select a branch.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only its description is used; `Fields` reads the body")]
pub struct Branch {
    /// The message through which the history leads from now on.
    message_id: Uuid,
}

/// The message whose branch is to be selected.
pub struct BranchTarget(Uuid);

impl ReadBody for BranchTarget {
    fn read(object: &Object) -> Result<Self, Vec<FieldError>> {
        branch_target(object).map(Self)
    }
}

/// The result of a selection.
#[derive(Serialize, ToSchema)]
#[schema(as = Selected)]
pub struct Selected {
    /// Always "selected".
    status: &'static str,
    session_id: SessionId,
    message_id: Uuid,
}

/// Selects the branch of a message: the history lists it, and the next turn continues it.
#[utoipa::path(
    post, path = "/api/v1/chat/sessions/{session_id}/branch", tag = "sessions",
    request_body = Branch,
    params(("session_id" = SessionId, Path)),
    responses(
        (status = 200, body = Selected),
        SessionNotFound, InvalidFields, Unavailable,
        (status = 409, body = ProblemDetails, content_type = "application/problem+json",
            description = "A turn of the session runs or waits"),
    ),
)]
pub async fn select(
    State(shared): State<Shared>,
    Caller(owner): Caller,
    SessionPath(session): SessionPath,
    JsonBody(BranchTarget(message_id)): JsonBody<BranchTarget>,
) -> Result<Json<Selected>, Problem> {
    in_time(shared.generations.select(&owner, session, message_id)).await?;
    Ok(Json(Selected { status: "selected", session_id: session, message_id }))
}
