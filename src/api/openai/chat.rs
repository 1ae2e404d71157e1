//! Chat completions.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use tokio::time::Instant;

use super::body;
use super::messages::Messages;
use super::request::ChatCompletion;
use super::schema::{ChatCompletionEvent, ChatCompletionRequest};
use super::shapes::{ChatCompletionReply, Choice, completion_id, finish_reason};
use super::shapes::{ConflictReply, ErrorReply, HostErrorReply};
use super::stream::CompletionWriter;
use crate::api::idempotency::IdempotencyKeyHeader;
use crate::api::large_body::WITH_IMAGES;
use crate::api::own_turn::{OwnQuestion, OwnTurn};
use crate::api::state::Shared;
use crate::api::streamed_turn::{self, FrontOutput};
use crate::api::whole_turn::{self, PendingReply, completed};
use crate::follow::AcceptedTurn;
use crate::http::extract::fields::FieldError;
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::limits::TurnPermit;
use crate::session::store::OwnConversation;
use crate::session::{Owner, SessionId};
use crate::sign_in::Identity;

/// Completes a conversation that comes with the request.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "openai", operation_id = "openai_chat_completion",
    request_body = ChatCompletionRequest, params(IdempotencyKeyHeader),
    responses(
        (status = 200, description = "The completion; with `stream` its chunks",
            content((ChatCompletionReply = "application/json"), (ChatCompletionEvent = "text/event-stream"))),
        ErrorReply, ConflictReply, HostErrorReply,
    ),
)]
pub async fn complete(
    State(shared): State<Shared>,
    caller: Identity,
    permit: TurnPermit,
    last_byte: LastByte,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let (request, room) = body::read(request, &shared, WITH_IMAGES, ChatCompletion::read).await?;
    let started = Instant::now();
    let created = Utc::now().timestamp();
    let socket = shared.admit_stream(request.stream, &permit.subject).await?;
    let (model, include_usage) = (request.spec.model.clone(), request.include_usage);
    let (session, accepted) = submit(&shared, &caller.owner, permit, &headers, request).await?;
    drop(room);
    let AcceptedTurn { submitted, guard } = accepted;
    let follow = shared.follow(&caller.owner, session, submitted).await?;
    if let Some(socket) = socket {
        let writer = CompletionWriter::new(follow, created, (&model, include_usage), guard);
        let (output, validity) = (FrontOutput::default(), caller.validity);
        return streamed_turn::respond(&shared, writer, output, socket, validity, last_byte).await;
    }
    let generation = submitted.generation;
    let waiting = PendingReply::begin(&shared, started, &headers, last_byte, guard);
    let answer = completed(whole_turn::answer(&shared, Box::pin(follow.answer()), waiting).await?)?;
    let usage = answer.usage.unwrap_or_default().into();
    Ok(Json(ChatCompletionReply {
        id: completion_id(generation),
        object: "chat.completion",
        created,
        model,
        choices: [Choice {
            index: 0,
            finish_reason: finish_reason(&answer),
            logprobs: None,
            message: answer.into(),
        }],
        usage,
    })
    .into_response())
}

/// Submits a request as a turn of a session of its own.
async fn submit(
    shared: &Shared,
    owner: &Owner,
    permit: TurnPermit,
    headers: &HeaderMap,
    request: ChatCompletion,
) -> Result<(SessionId, AcceptedTurn), Problem> {
    let turn = OwnTurn::begin(shared, owner, headers, "openai\n")?;
    let digest = request.digest();
    let ChatCompletion { spec, messages: Messages { before, question, images }, .. } = request;
    let conversation = OwnConversation::new(before);
    let conversation = conversation.map_err(|error| {
        let refused = FieldError::new("body", "messages", "invalid_value", error.to_string());
        Problem::from(vec![refused])
    })?;
    let asked = OwnQuestion { spec, conversation, question, images, digest, is_background: false };
    let session = turn.session;
    Ok((session, turn.submit(shared, permit, asked).await?))
}
