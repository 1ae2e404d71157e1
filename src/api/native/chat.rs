//! A turn over REST.

use std::pin::pin;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::api::idempotency::{self, IdempotencyKeyHeader};
use crate::api::large_body::{self, HeldRoom, IMAGE_BYTES};
use crate::api::native::input::ChatRequest;
use crate::api::native::schema::ServerSentEvent;
use crate::api::native::{event_stream, turns};
use crate::api::responses::{InvalidFields, TooManyConnections, TurnFailed, Unavailable};
use crate::api::state::Shared;
use crate::digest::sha256_hex;
use crate::follow::AcceptedTurn;
use crate::http::extract::body::parse_object;
use crate::http::peer::LastByte;
use crate::http::problem::{Problem, ProblemDetails};
use crate::lifecycle::Phase;
use crate::limits::TurnPermit;
use crate::session::model::{ContextReport, Continuation, ToolCall, rfc3339};
use crate::session::{FinishReason, GenerationId, Owner, SessionId, Status, Usage};
use crate::sign_in::Identity;

/// The body of a request, read and checked, and its room.
pub struct ChatBody(ChatRequest, HeldRoom);

impl FromRequest<Shared> for ChatBody {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Problem> {
        let most = shared.settings.max_body_bytes + IMAGE_BYTES;
        let parse = |body: Bytes| Ok(ChatRequest::from_body(&parse_object(body.clone())?, &body)?);
        let (request, room) = large_body::read(request, shared, most, parse).await?;
        Ok(Self(request, room))
    }
}

/// A whole answer.
#[derive(Serialize, ToSchema)]
pub struct ChatResponse {
    /// The answer.
    response: String,
    /// The reasoning of the model, where `think` requested it.
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<String>,
    session_id: SessionId,
    /// The name in the request.
    model: String,
    /// Always "success".
    status: &'static str,
    /// The time of its end: RFC 3339, UTC, microseconds.
    timestamp: String,
    /// Seconds from the request to the end of the answer.
    response_time: f64,
    generation_id: GenerationId,
    finish_reason: FinishReason,
    /// The calls of tools that the model requests in addition to its text, or instead of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    usage: Usage,
    context: ContextReport,
    /// The continuations of the answer after it broke off, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    continued: Vec<Continuation>,
}

/// Sends a message to the model, in a session.
#[utoipa::path(
    post, path = "/api/v1/chat", tag = "chat", request_body = ChatRequest,
    params(IdempotencyKeyHeader),
    responses(
        (status = 200, description = "The whole answer; with `stream` its events",
            content((ChatResponse = "application/json"), (ServerSentEvent = "text/event-stream"))),
        (status = 404, body = ProblemDetails, content_type = "application/problem+json",
            description = "No such model"),
        (status = 409, body = ProblemDetails, content_type = "application/problem+json",
            description = "Too many turns wait in this session, or it is full"),
        TurnFailed, InvalidFields, TooManyConnections, Unavailable,
    ),
)]
pub async fn send(
    State(shared): State<Shared>,
    caller: Identity,
    permit: TurnPermit,
    last_byte: LastByte,
    headers: HeaderMap,
    ChatBody(request, room): ChatBody,
) -> Result<Response, Problem> {
    // Boxed, because a request whose body does not arrive would keep the room of a whole turn.
    Box::pin(answer(shared, caller, permit, last_byte, headers, (request, room))).await
}

/// Answers a request for a turn, with its whole answer or its events.
///
/// # Errors
/// A problem for the client.
pub(super) async fn answer(
    shared: Shared,
    caller: Identity,
    permit: TurnPermit,
    last_byte: LastByte,
    headers: HeaderMap,
    (mut request, room): (ChatRequest, HeldRoom),
) -> Result<Response, Problem> {
    let started = Instant::now();
    let (session, key) = address(&headers, &caller.owner, &request)?;
    tracing::Span::current().record("session", session.redacted());
    let is_streamed = request.stream == Some(true);
    if let Some(socket) = shared.admit_stream(is_streamed, &permit.subject).await? {
        let accepted = turns::submit(&shared, permit, session, &mut request, key).await?;
        drop((request, room));
        return event_stream::of_turn(shared, caller, session, accepted, last_byte, socket).await;
    }
    let AcceptedTurn { submitted, mut guard } =
        turns::submit(&shared, permit, session, &mut request, key).await?;
    // As this request spells it: a repeat may spell the model of the first one differently.
    let model = request.spec(&shared.settings.default_model).model;
    drop((request, room));
    let answer = async {
        let follow = shared.follow(&caller.owner, session, submitted).await?;
        Ok(follow.answer().await?)
    };
    let limit = shared.settings.request_timeout;
    let mut whole = pin!(tokio::time::timeout_at(started + limit, answer));
    let answered = loop {
        tokio::select! {
            biased;
            answered = &mut whole => break answered,
            () = shared.lifecycle.reached(Phase::Stopped) => break Ok(Err(Problem::draining())),
            // A client that still reads gets the end of the cancelled turn.
            () = last_byte.received(), if guard.is_some() => drop(guard.take()),
        }
    };
    // Only a client that left, which drops this future, cancels the turn.
    if let Some(guard) = &mut guard {
        guard.disarm();
    }
    let message = answered.map_err(|_| {
        let detail =
            "The answer is not complete yet; it continues, and will be in the session's history.";
        Problem { retryable: true, ..Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", detail) }
    })??;
    if let (Some(Status::Failed), Some(failure)) = (message.status, message.error) {
        return Err(failure.into());
    }
    Ok(Json(ChatResponse {
        response: message.content,
        thinking: message.thinking,
        session_id: session,
        model,
        status: "success",
        timestamp: rfc3339(&message.timestamp),
        response_time: started.elapsed().as_secs_f64(),
        generation_id: submitted.generation,
        finish_reason: message.finish_reason.unwrap_or(FinishReason::Stop),
        tool_calls: message.tool_calls,
        usage: message.usage.unwrap_or_default(),
        context: message.context.unwrap_or_default(),
        continued: message.continued,
    })
    .into_response())
}

/// Returns the session of a request, and the key by which a repeat finds its turn.
fn address(
    headers: &HeaderMap,
    owner: &Owner,
    request: &ChatRequest,
) -> Result<(SessionId, Option<String>), Problem> {
    let Some(key) = idempotency::key(headers, owner)? else {
        return Ok((request.session_id.unwrap_or_else(SessionId::random), None));
    };
    let session = request.session_id.unwrap_or_else(|| idempotency::session(owner, "", &key));
    Ok((session, Some(sha256_hex(format!("rest\n{key}").as_bytes()))))
}
