//! A turn over REST.

use std::pin::pin;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use super::fields::FieldError;
use super::guard::{Caller, Source};
use super::input::{ChatRequest, hex_digest};
use super::peer::Hangup;
use super::problem::{JsonBody, Problem, ProblemDetails, in_time};
use super::turns::{self, Asked, Past};
use super::{Shared, sse};
use crate::generation::Submitted;
use crate::session::feed::{Delivered, Frame, FrameKind};
use crate::session::model::{ContextReport, rfc3339};
use crate::session::{
    Control, FinishReason, GenerationId, Message, Owner, Role, SessionId, Status, Usage, store,
};

/// What a session is named after whose turn came with a key and without a session.
const SESSIONS_OF_KEYS: Uuid = Uuid::from_u128(0x6b1f_0c3e_52a4_4c1d_9a57_3f0d_84be_2c16);
const KEY_BYTES: usize = 255;

/// A whole answer.
#[derive(Serialize, ToSchema)]
pub struct ChatResponse {
    /// The answer.
    response: String,
    session_id: SessionId,
    /// As asked for.
    model: String,
    /// Always "success".
    status: &'static str,
    /// When it ended: RFC 3339, UTC, microseconds.
    timestamp: String,
    /// Seconds from the request to the end of the answer.
    response_time: f64,
    generation_id: GenerationId,
    finish_reason: FinishReason,
    usage: Usage,
    context: ContextReport,
}

/// Asks the model, in a session.
#[utoipa::path(
    post, path = "/api/v1/chat", tag = "chat", request_body = ChatRequest,
    params(("Idempotency-Key" = Option<String>, Header,
        description = "The same key gives the same generation, for 24 hours; a UUID")),
    responses(
        (status = 200, body = ChatResponse,
            description = "The whole answer; with `stream` its events, as text/event-stream"),
        (status = 404, body = ProblemDetails, content_type = "application/problem+json",
            description = "No such model"),
        (status = 409, body = ProblemDetails, content_type = "application/problem+json",
            description = "As many turns wait in this session as may, or it is full"),
        (status = 413, body = ProblemDetails, content_type = "application/problem+json",
            description = "Too long"),
        (status = 422, body = ProblemDetails, content_type = "application/problem+json",
            description = "Not as it should be; `errors` says where"),
        (status = 502, body = ProblemDetails, content_type = "application/problem+json",
            description = "The answer broke off"),
        (status = 503, body = ProblemDetails, content_type = "application/problem+json",
            description = "The queue is full, no model host, or no store; see Retry-After"),
        (status = 504, body = ProblemDetails, content_type = "application/problem+json",
            description = "Out of time"),
    ),
)]
pub async fn send(
    State(shared): State<Shared>,
    Caller(owner): Caller,
    Source(source): Source,
    hangup: Hangup,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let started = Instant::now();
    let request = ChatRequest::from_body(&body)?;
    let (session, key) = address(&headers, &owner, &request)?;
    tracing::Span::current().record("session", session.redacted());
    if request.stream == Some(true) {
        shared.admit()?;
        let asked = turns::submit(&shared, &owner, session, &request, key, &source).await?;
        return sse::of_turn(shared, owner, session, asked, hangup).await;
    }
    let Asked { submitted, mut guard } =
        turns::submit(&shared, &owner, session, &request, key, &source).await?;
    let limit = shared.settings.request_timeout;
    let whole = answer(&shared, &owner, session, submitted);
    let mut whole = pin!(tokio::time::timeout_at(started + limit, whole));
    let answered = loop {
        tokio::select! {
            biased;
            answered = &mut whole => break answered,
            () = shared.leave.cancelled() => break Ok(Err(Problem::draining())),
            // Whoever still reads is told how the turn ended.
            () = hangup.happened(), if guard.is_some() => drop(guard.take()),
        }
    };
    // Only a client that went away, and so dropped this, wants the turn cancelled.
    if let Some(guard) = &mut guard {
        guard.disarm();
    }
    let message = answered.map_err(|_| {
        let detail = "the answer is not ready yet; it is written on, and stays in the session";
        Problem { retryable: true, ..Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", detail) }
    })??;
    if let (Some(Status::Failed), Some(failure)) = (message.status, message.error) {
        return Err(failure.into());
    }
    Ok(Json(ChatResponse {
        response: message.content,
        session_id: session,
        model: message.model.unwrap_or(request.spec(&shared.settings.default_model).model),
        status: "success",
        timestamp: rfc3339(&message.timestamp),
        response_time: started.elapsed().as_secs_f64(),
        generation_id: submitted.generation,
        finish_reason: message.finish_reason.unwrap_or(FinishReason::Stop),
        usage: message.usage.unwrap_or_default(),
        context: message.context.unwrap_or_default(),
    })
    .into_response())
}

/// Which session a request belongs to, and the key under which a repeat finds it.
fn address(
    headers: &HeaderMap,
    owner: &Owner,
    request: &ChatRequest,
) -> Result<(SessionId, Option<String>), Problem> {
    let Some(key) = headers.get("idempotency-key") else {
        return Ok((request.session_id.unwrap_or_else(SessionId::random), None));
    };
    let refused = |kind, msg: &str| {
        Problem::from(vec![FieldError::new("header", "Idempotency-Key", kind, msg)])
    };
    let key = key.to_str().unwrap_or_default().trim_matches('"');
    if key.is_empty() || key.len() > KEY_BYTES {
        return Err(refused("string_length", "must be 1 to 255 visible ASCII characters"));
    }
    // A session that is named after a key must be as hard to guess as one that is not.
    let key = match (owner, Uuid::try_parse(key)) {
        (_, Ok(uuid)) => uuid.to_string(),
        (Owner::User(_), Err(_)) => key.to_owned(),
        (Owner::Anonymous, Err(_)) => return Err(refused("uuid_parsing", "must be a UUID")),
    };
    let session = request.session_id.unwrap_or_else(|| {
        let name = format!("{}\n{key}", owner.key());
        SessionId(Uuid::new_v5(&SESSIONS_OF_KEYS, name.as_bytes()))
    });
    Ok((session, Some(hex_digest(format!("rest\n{key}").as_bytes()))))
}

/// Waits for a generation's end.
async fn answer(
    shared: &Shared,
    owner: &Owner,
    session: SessionId,
    Submitted { generation, mut before, .. }: Submitted,
) -> Result<Message, Problem> {
    loop {
        let mut reader = in_time(shared.feeds.reader(owner, session, before)).await?;
        reader.want_answer(generation);
        if before.is_none() {
            match in_time(turns::past(&shared.store, owner, session, generation, None)).await? {
                Past::Ended { message, .. } => return Ok(*message),
                Past::Unknown => return Err(Problem::generation_not_found()),
                Past::Live => {}
            }
        }
        while let Delivered::Frame(frame) = reader.next().await {
            if let Some(message) = ended(frame, generation) {
                return Ok(message);
            }
        }
        before = None;
    }
}

/// The message that a generation's last event tells of.
fn ended(frame: Frame, generation: GenerationId) -> Option<Message> {
    let FrameKind::Control(event) = frame.kind else { return None };
    if event.generation != Some(generation) {
        return None;
    }
    let message = Message {
        content: frame.answer.unwrap_or_default(),
        generation_id: Some(generation),
        ..store::message(Role::Assistant, Utc::now())
    };
    match &event.control {
        Control::Ended { timestamp, model, finish_reason, usage, context } => Some(Message {
            timestamp: timestamp.parse().unwrap_or(message.timestamp),
            model: Some(model.clone()),
            status: Some(Status::Complete),
            finish_reason: Some(*finish_reason),
            usage: Some(*usage),
            context: Some(*context),
            ..message
        }),
        Control::Cancelled {} => Some(Message {
            status: Some(Status::Cancelled),
            finish_reason: Some(FinishReason::Cancelled),
            ..message
        }),
        Control::Failed(failure) => {
            Some(Message { status: Some(Status::Failed), error: Some(failure.clone()), ..message })
        }
        _ => None,
    }
}
