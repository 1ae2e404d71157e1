//! Answers: `/api/chat` and `/api/generate`.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::errors::{JSON, invalid, of_model};
use super::fields::{self, RawJsonObject};
use super::lines::{Clock, Lines, Shape};
use super::messages::OllamaMessages;
use super::request::{AskedModel, Question, Task};
use super::schema::{OllamaChatRequest, OllamaGenerateRequest};
use super::shapes::{ChatReply, GenerateReply, HostErrorReply, ModelErrorReply};
use super::shapes::{OllamaErrorReply, TurnConflictReply};
use super::stream::{AnswerWriter, whole};
use crate::api::idempotency::IdempotencyKeyHeader;
use crate::api::large_body::{HeldRoom, WITH_IMAGES};
use crate::api::own_turn::{OwnQuestion, OwnTurn};
use crate::api::state::Shared;
use crate::api::streamed_turn::{self, FrontOutput};
use crate::api::whole_turn::{self, PendingReply, completed};
use crate::follow::AcceptedTurn;
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::limits::TurnPermit;
use crate::session::store::OwnConversation;
use crate::session::{Owner, SessionId};
use crate::sign_in::Identity;

/// Answers a conversation that comes with the request.
#[utoipa::path(
    post, path = "/api/chat", tag = "ollama", operation_id = "ollama_chat",
    request_body = OllamaChatRequest, params(IdempotencyKeyHeader),
    responses(
        (status = 200, description = "The whole answer, or its lines",
            content((ChatReply = "application/json"), (String = "application/x-ndjson"))),
        OllamaErrorReply, ModelErrorReply, TurnConflictReply, HostErrorReply,
    ),
)]
pub async fn chat(
    State(shared): State<Shared>,
    caller: Identity,
    permit: TurnPermit,
    last_byte: LastByte,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let (asked, room) = read(request, &shared, Shape::Chat).await?;
    let asked = AnswerRequest { shared, caller, permit, last_byte, headers, asked, room };
    Box::pin(asked.answer(Shape::Chat)).await
}

/// Answers one prompt.
#[utoipa::path(
    post, path = "/api/generate", tag = "ollama", operation_id = "ollama_generate",
    request_body = OllamaGenerateRequest, params(IdempotencyKeyHeader),
    responses(
        (status = 200, description = "The whole answer, or its lines",
            content((GenerateReply = "application/json"), (String = "application/x-ndjson"))),
        OllamaErrorReply, ModelErrorReply, TurnConflictReply, HostErrorReply,
    ),
)]
pub async fn generate(
    State(shared): State<Shared>,
    caller: Identity,
    permit: TurnPermit,
    last_byte: LastByte,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let (asked, room) = read(request, &shared, Shape::Generate).await?;
    let asked = AnswerRequest { shared, caller, permit, last_byte, headers, asked, room };
    Box::pin(asked.answer(Shape::Generate)).await
}

/// Reads and checks the body of a request. Its room is kept until it is dropped.
async fn read(
    request: Request,
    shared: &Shared,
    shape: Shape,
) -> Result<(AskedModel, HeldRoom), Problem> {
    let read = move |body: &RawJsonObject| AskedModel::read(shape, body);
    fields::read(request, shared, WITH_IMAGES, read).await
}

/// A request with everything that its answer needs.
struct AnswerRequest {
    shared: Shared,
    caller: Identity,
    permit: TurnPermit,
    last_byte: LastByte,
    headers: HeaderMap,
    asked: AskedModel,
    /// The room of the body.
    room: HeldRoom,
}

impl AnswerRequest {
    async fn answer(self, shape: Shape) -> Result<Response, Problem> {
        let started = Instant::now();
        let Self { shared, caller, permit, last_byte, headers, asked, room } = self;
        let AskedModel { model, stream, task } = asked;
        let named = |problem: Problem| of_model(&model, problem);
        let mut lines = Lines::new(shape, &model, Clock::start(started));
        let question = match task {
            Task::Answer(question) => question,
            task => {
                // Whether a model is in memory is not for one caller to decide: no host is asked.
                permit.give_back().await;
                shared.generations.check_model(&model).await.map_err(|e| named(e.into()))?;
                let is_load = matches!(task, Task::Load);
                let line = lines.without_answer(if is_load { "load" } else { "unload" });
                return Ok(([(header::CONTENT_TYPE, JSON)], line).into_response());
            }
        };
        let socket = shared.admit_stream(stream, &permit.subject).await?;
        let submitted = submit(&shared, &caller.owner, permit, &headers, *question).await;
        let (session, AcceptedTurn { submitted, guard }) = submitted.map_err(named)?;
        drop(room);
        let follow = shared.follow(&caller.owner, session, submitted).await?;
        if let Some(socket) = socket {
            let writer = AnswerWriter::new(follow, lines, &model, guard);
            let (output, validity) = (FrontOutput::default(), caller.validity);
            return streamed_turn::respond(&shared, writer, output, socket, validity, last_byte)
                .await;
        }
        let waiting = PendingReply::begin(&shared, started, &headers, last_byte, guard);
        let answer =
            whole_turn::answer(&shared, Box::pin(whole(follow, &mut lines)), waiting).await?;
        let line = lines.whole(&completed(answer).map_err(named)?);
        Ok(([(header::CONTENT_TYPE, JSON)], line).into_response())
    }
}

/// Submits a question as a turn of a session of its own.
async fn submit(
    shared: &Shared,
    owner: &Owner,
    permit: TurnPermit,
    headers: &HeaderMap,
    question: Question,
) -> Result<(SessionId, AcceptedTurn), Problem> {
    let turn = OwnTurn::begin(shared, owner, headers, "ollama\n")?;
    let digest = question.digest();
    let Question { spec, messages } = question;
    let OllamaMessages { before, question, images } = messages;
    let conversation = OwnConversation::new(before).map_err(|error| invalid(error.to_string()))?;
    let asked = OwnQuestion { spec, conversation, question, images, digest, is_background: false };
    let session = turn.session;
    Ok((session, turn.submit(shared, permit, asked).await?))
}
