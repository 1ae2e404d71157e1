//! Chat completions.

use std::pin::pin;

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use tokio::time::{Instant, timeout_at};

use super::request::ChatCompletion;
use super::schema::{ChatCompletionEvent, ChatCompletionRequest};
use super::shapes::{ChatCompletionReply, Choice, ErrorReply, completion_id, finish_reason};
use super::stream::CompletionStream;
use crate::api::idempotency::{self, IdempotencyKeyHeader};
use crate::api::problems::in_time;
use crate::api::state::Shared;
use crate::api::turn_body::turn_body;
use crate::digest::sha256_hex;
use crate::follow::{self, AcceptedTurn, Follow, Submission};
use crate::http::extract::body::json_position;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::{NotAnObject, Object};
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::lifecycle::Phase;
use crate::limits::TurnPermit;
use crate::session::model::Failure;
use crate::session::store::{Attached, IdempotencyKey, NewTurn, OwnConversation};
use crate::session::{Message, Owner, SessionId, Status, TurnSpec};
use crate::sign_in::Identity;

/// Bytes of a body without images, at most. JSON takes more than the text that it holds.
const BODY_BYTES: usize = 2 << 20;

/// The body of a request, read and checked.
pub struct CompletionBody(ChatCompletion);

impl FromRequest<Shared> for CompletionBody {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Problem> {
        let body = turn_body(request, shared, BODY_BYTES, shared.settings.max_body_bytes).await?;
        let object = Object::parse(&body).map_err(|error| match error {
            NotAnObject::OtherJson => {
                let error = FieldError {
                    loc: vec!["body".to_owned()],
                    msg: "The body must be a JSON object.".to_owned(),
                    kind: "invalid_type",
                };
                vec![error].into()
            }
            NotAnObject::Invalid(error) => Problem::invalid_json(json_position(&error)),
        })?;
        ChatCompletion::read(&object, &body).map(Self).map_err(|error| vec![error].into())
    }
}

/// Completes a conversation that comes with the request.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "openai", operation_id = "openai_chat_completion",
    request_body = ChatCompletionRequest, params(IdempotencyKeyHeader),
    responses(
        (status = 200, description = "The completion; with `stream` its chunks",
            content((ChatCompletionReply = "application/json"), (ChatCompletionEvent = "text/event-stream"))),
        ErrorReply,
    ),
)]
pub async fn complete(
    State(shared): State<Shared>,
    caller: Identity,
    permit: TurnPermit,
    last_byte: LastByte,
    headers: HeaderMap,
    CompletionBody(mut request): CompletionBody,
) -> Result<Response, Problem> {
    let started = Instant::now();
    let created = Utc::now().timestamp();
    let socket = request.stream.then(|| shared.admit(&permit.subject.source)).transpose()?;
    let (session, accepted) =
        submit(&shared, &caller.owner, permit, &headers, &mut request).await?;
    let AcceptedTurn { submitted, mut guard } = accepted;
    let (feeds, store) = (shared.feeds.clone(), shared.store.clone());
    let follow = Follow::submitted(feeds, store, caller.owner, session, submitted);
    let follow = in_time(follow).await?;
    if let Some(socket) = socket {
        let stream = CompletionStream::new(&shared, follow, created, &request, guard, socket);
        return stream.respond(caller.validity, last_byte).await;
    }
    let generation = submitted.generation;
    let is_by_proxy = idempotency::is_by_proxy(&headers);
    let limit = shared.settings.request_timeout;
    let mut whole = pin!(timeout_at(started + limit, follow.answer()));
    let answered = loop {
        tokio::select! {
            biased;
            answered = &mut whole => break answered,
            () = shared.lifecycle.reached(Phase::Stopped) => return Err(Problem::draining()),
            // A client that is gone looks like one that has sent its last byte.
            () = last_byte.received(), if guard.is_some() || is_by_proxy => {
                if guard.take().is_none() {
                    return Err(cancelled());
                }
            }
        }
    };
    let answer = answered.map_err(|_| out_of_time())??;
    if let Some(guard) = &mut guard {
        guard.disarm();
    }
    let answer = completed(*answer)?;
    let usage = answer.usage.unwrap_or_default().into();
    Ok(Json(ChatCompletionReply {
        id: completion_id(generation),
        object: "chat.completion",
        created,
        model: request.spec.model,
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

/// Submits a request as a turn of a session of its own. A request without an idempotency key of its
/// client is cancelled when the client goes away, because it could not find its answer again.
async fn submit(
    shared: &Shared,
    owner: &Owner,
    permit: TurnPermit,
    headers: &HeaderMap,
    request: &mut ChatCompletion,
) -> Result<(SessionId, AcceptedTurn), Problem> {
    if let Some(refusal) = shared.readiness.refusal() {
        return Err(refusal.into());
    }
    let key = idempotency::key(headers, owner)?;
    let session = match &key {
        Some(key) => idempotency::session(owner, "openai\n", key),
        None => SessionId::random(),
    };
    tracing::Span::current().record("session", session.redacted());
    let conversation = OwnConversation::new(request.messages.before.clone());
    let conversation = conversation.map_err(|error| {
        let refused = FieldError::new("body", "messages", "invalid_value", error.to_string());
        Problem::from(vec![refused])
    })?;
    // Redis keeps the images from here on, and the request lives as long as the answer.
    let images = std::mem::take(&mut request.messages.images);
    let question = &request.messages.question;
    let turn = NewTurn {
        spec: TurnSpec {
            source: permit.subject.source.0.clone(),
            needs_listener: key.is_none() || idempotency::is_by_proxy(headers),
            ..request.spec.clone()
        },
        content: question.content.clone(),
        conversation: Some(conversation.with_question(question)),
        attached: Attached { question: None, images },
        key: key.map(|key| IdempotencyKey {
            key: sha256_hex(format!("openai\n{key}").as_bytes()),
            body: request.digest(),
        }),
    };
    let cancel_on_disconnect = turn.key.is_none();
    let submission = Submission { session, turn, permit, cancel_on_disconnect };
    Ok((session, follow::submit(&shared.generations, submission).await?))
}

/// Returns an answer that is complete.
///
/// # Errors
/// Why it failed, or that it was cancelled.
pub fn completed(answer: Message) -> Result<Message, Problem> {
    match (answer.status, answer.error) {
        (Some(Status::Failed), Some(failure)) => Err(Failure::into(failure)),
        (Some(Status::Cancelled), _) => Err(cancelled()),
        (_, error) => Ok(Message { error, ..answer }),
    }
}

fn cancelled() -> Problem {
    let detail = "The completion was cancelled before its end.";
    Problem::new(StatusCode::BAD_GATEWAY, "upstream_interrupted", detail)
}

fn out_of_time() -> Problem {
    let detail = "The completion took too long for one reply; request it as a stream.";
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", detail)
}
