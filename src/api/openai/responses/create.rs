//! Creates responses.

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::Utc;
use tokio::time::Instant;

use super::super::body;
use super::super::messages::CallNames;
use super::super::shapes::ErrorReply;
use super::created::CreatedResponse;
use super::object::{OpenState, StoredRequest};
use super::request::{ResponseRequest, previous_not_found};
use super::schema::{CreateResponse, ResponseEvent, ResponseReply};
use super::stored::{StoredResponse, json_reply};
use super::stream::ResponseWriter;
use super::{ResponseKey, in_conversation, input};
use crate::api::idempotency::IdempotencyKeyHeader;
use crate::api::large_body::WITH_IMAGES;
use crate::api::own_turn::{OwnQuestion, OwnTurn};
use crate::api::problems::in_time;
use crate::api::state::Shared;
use crate::api::streamed_turn;
use crate::api::whole_turn::{self, PendingReply, completed};
use crate::follow::AcceptedTurn;
use crate::http::extract::fields::FieldError;
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::limits::TurnPermit;
use crate::session::image::RequestImages;
use crate::session::store::{OwnConversation, message};
use crate::session::{Image, Message, Owner, Status};
use crate::sign_in::Identity;

/// Creates a response.
#[utoipa::path(
    post, path = "/v1/responses", tag = "openai", operation_id = "openai_create_response",
    request_body = CreateResponse, params(IdempotencyKeyHeader),
    responses(
        (status = 200, description = "The response; with `stream` its events",
            content((ResponseReply = "application/json"), (ResponseEvent = "text/event-stream"))),
        ErrorReply,
    ),
)]
pub async fn create(
    State(shared): State<Shared>,
    caller: Identity,
    permit: TurnPermit,
    last_byte: LastByte,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let (request, room) = body::read(request, &shared, WITH_IMAGES, ResponseRequest::read).await?;
    let started = Instant::now();
    let socket = shared.admit_stream(request.stream, &permit.subject).await?;
    let created = match request.conversation {
        None => submit(&shared, &caller.owner, permit, &headers, request).await,
        Some(session) => {
            let submitted = in_conversation::submit(&shared, permit, &headers, session, request);
            Box::pin(submitted).await
        }
    };
    let CreatedResponse { key, object, accepted: AcceptedTurn { submitted, guard } } = created?;
    drop(room);
    let is_background = object.request.shown.background;
    if is_background && socket.is_none() {
        let reply = if submitted.repeated {
            let stored = StoredResponse::read(&shared, &caller.owner, key).await?;
            stored.json(&shared, &caller.owner).await?
        } else {
            object.open(OpenState::Queued)
        };
        return Ok(json_reply(reply));
    }
    let follow = shared.follow(&caller.owner, key.session, submitted).await?;
    if let Some(socket) = socket {
        let (writer, output) = ResponseWriter::new(follow, object, guard);
        let validity = caller.validity;
        return streamed_turn::respond(&shared, writer, output, socket, validity, last_byte).await;
    }
    let waiting = PendingReply::begin(&shared, started, &headers, last_byte, guard);
    let answer = completed(whole_turn::answer(&shared, Box::pin(follow.answer()), waiting).await?)?;
    Ok(json_reply(object.ended(&answer)))
}

/// Submits a request as the one turn of a session.
async fn submit(
    shared: &Shared,
    owner: &Owner,
    permit: TurnPermit,
    headers: &HeaderMap,
    request: ResponseRequest,
) -> Result<CreatedResponse, Problem> {
    let turn = OwnTurn::begin(shared, owner, headers, "openai-response\n")?;
    let key = ResponseKey::alone(turn.session);
    let digest = request.digest();
    let ResponseRequest { spec, input, mut images, previous, shown, .. } = request;
    let earlier = match previous {
        Some(previous) => earlier_messages(shared, owner, previous, &mut images).await?,
        None => Vec::new(),
    };
    let stored =
        StoredRequest { created_at: Utc::now().timestamp(), earlier: earlier.len() as u64, shown };
    let instructions = stored.shown.instructions.as_ref().map_or(0, String::len);
    let (calls, images) = (CallNames::default(), images.into_images());
    let messages = input::conversation(calls, earlier, &input, instructions, images)
        .map_err(|error| Problem::from(vec![error]))?;
    drop(input);
    let question = Message { request: serde_json::to_string(&stored).ok(), ..messages.question };
    let conversation = OwnConversation::new(messages.before).map_err(|error| {
        let refused = FieldError::new("body", "input", "invalid_value", error.to_string());
        Problem::from(vec![refused])
    })?;
    let asked = OwnQuestion {
        spec,
        conversation,
        question,
        images: messages.images,
        digest,
        is_background: stored.shown.background,
    };
    let accepted = turn.submit(shared, permit, asked).await?;
    CreatedResponse::of(shared, owner, key, stored, accepted).await
}

/// Returns the conversation of an earlier response with its answer, without its instructions. Its
/// images are added to those of the request.
async fn earlier_messages(
    shared: &Shared,
    owner: &Owner,
    previous: ResponseKey,
    images: &mut RequestImages,
) -> Result<Vec<Message>, Problem> {
    let id = previous.id();
    let unknown = || Problem::from(vec![previous_not_found(&id)]);
    let stored = match StoredResponse::read(shared, owner, previous).await {
        Err(problem) if problem.code == "response_not_found" => return Err(unknown()),
        stored => stored?,
    };
    if !stored.object.request.shown.store {
        return Err(unknown());
    }
    let answer = stored.turn.answer.clone();
    let Some(answer) = answer.filter(|answer| answer.status == Some(Status::Complete)) else {
        let msg = format!("The response {id:?} has not ended well; its conversation cannot go on");
        let error = FieldError::new("body", "previous_response_id", "invalid_value", msg);
        return Err(vec![error].into());
    };
    let mut messages = stored.messages(shared, owner, false).await?;
    messages.push(answer);
    let refused = |msg: String| {
        let error = FieldError::new("body", "previous_response_id", "invalid_value", msg);
        Problem::from(vec![error])
    };
    let mut read: Vec<&str> = Vec::new();
    for image in messages.iter().flat_map(|message| &message.images) {
        if read.contains(&&*image.digest) {
            continue;
        }
        read.push(&image.digest);
        let data = in_time(shared.store.image(owner, previous.session, image)).await?;
        let data =
            data.ok_or_else(|| refused("has an image that is no longer stored".to_owned()))?;
        let added = images.add_stored(Image { reference: image.clone(), data });
        added.map_err(|fault| refused(format!("{fault}; those of earlier responses count")))?;
    }
    Ok(messages.iter().map(plain).collect())
}

/// Returns what a conversation keeps of a message.
fn plain(from: &Message) -> Message {
    Message {
        id: from.id,
        content: from.content.clone(),
        tool_calls: from.tool_calls.clone(),
        tool_call_id: from.tool_call_id.clone(),
        tool_name: from.tool_name.clone(),
        images: from.images.clone(),
        ..message(from.role, from.timestamp)
    }
}
