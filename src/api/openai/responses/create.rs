//! Creates responses.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::Utc;
use tokio::time::Instant;

use super::super::body;
use super::super::messages::CallNames;
use super::super::params::INVALID_VALUE;
use super::super::shapes::{ConflictReply, ErrorReply, HostErrorReply};
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
use crate::http::room::{REPLY_BYTES, RoomPermit, no_room};
use crate::limits::{Subject, TurnPermit};
use crate::session::image::{ImageFault, REQUEST_IMAGE_BYTES, RequestImages};
use crate::session::store::{OwnConversation, message};
use crate::session::{Image, ImageRef, Message, Owner, Role, Status};
use crate::sign_in::Identity;

/// Creates a response.
#[utoipa::path(
    post, path = "/v1/responses", tag = "openai", operation_id = "openai_create_response",
    request_body = CreateResponse, params(IdempotencyKeyHeader),
    responses(
        (status = 200, description = "The response; with `stream` its events",
            content((ResponseReply = "application/json"), (ResponseEvent = "text/event-stream"))),
        ErrorReply, ConflictReply, HostErrorReply,
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
    let subject = Arc::clone(&permit.subject);
    // A stream shows these fields again with its last event: it has room for them before the turn is
    // accepted.
    let reserved = match &socket {
        Some(socket) => shared.output_room(socket.source()).reserve(request.shown_bytes()).await?,
        None => None,
    };
    let created = match request.conversation {
        None => submit(&shared, permit, &headers, request).await,
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
            let stored = StoredResponse::read(&shared, &subject, key).await?;
            stored.json(&shared, &caller.owner).await?
        } else {
            object.open(OpenState::Queued)
        };
        return Ok(json_reply(reply));
    }
    let follow = shared.follow(&caller.owner, key.session, submitted).await?;
    if let Some(socket) = socket {
        let (writer, mut output) = ResponseWriter::new(follow, object, guard);
        output.reserved = reserved;
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
    permit: TurnPermit,
    headers: &HeaderMap,
    request: ResponseRequest,
) -> Result<CreatedResponse, Problem> {
    let subject = Arc::clone(&permit.subject);
    let owner = &subject.owner;
    let turn = OwnTurn::begin(shared, owner, headers, "openai-response\n")?;
    let key = ResponseKey::alone(turn.session);
    let digest = request.digest();
    let ResponseRequest { mut spec, input, mut images, previous, shown, .. } = request;
    let (mut permit, mut earlier) = (permit, None);
    if let Some(previous) = previous {
        // A few bytes name an earlier response of megabytes: they are read only for a turn that may be
        // accepted, and within the room of the caller's network.
        let asked = OwnQuestion {
            spec,
            conversation: OwnConversation::default(),
            question: message(Role::User, Utc::now()),
            images: images.images().to_vec(),
            digest: digest.clone(),
            is_background: shown.background,
        };
        let without = turn.turn(&permit, asked);
        permit = Box::pin(turn.check_early(shared, permit, &without)).await?;
        spec = without.spec;
        let network = permit.subject.source.widest_network();
        // Half of the share at most: its other requests go on.
        let bytes = EARLIER_BYTES.min(shared.room.most(network) / 2);
        let room = shared.room.try_take(network, bytes).ok_or_else(no_room)?;
        earlier = Some(Box::pin(Earlier::read(shared, &subject, previous, room)).await?);
    }
    let before = earlier.as_mut().map_or_else(Vec::new, |it| std::mem::take(&mut it.messages));
    let stored =
        StoredRequest { created_at: Utc::now().timestamp(), earlier: before.len() as u64, shown };
    let instructions = stored.shown.instructions.as_ref().map_or(0, String::len);
    let own_images = images.images().to_vec();
    let messages =
        input::conversation(CallNames::default(), before, &input, instructions, own_images)
            .map_err(|error| Problem::from(vec![error]))?;
    drop(input);
    let question = Message { request: serde_json::to_string(&stored).ok(), ..messages.question };
    let conversation = OwnConversation::new(messages.before).map_err(|error| {
        let refused = FieldError::new("body", "input", INVALID_VALUE, error.to_string());
        Problem::from(vec![refused])
    })?;
    let is_background = stored.shown.background;
    let asked = OwnQuestion {
        spec,
        conversation,
        question,
        images: messages.images,
        digest,
        is_background,
    };
    let mut new = turn.turn(&permit, asked);
    if let Some(earlier) = &earlier
        && !earlier.images.is_empty()
    {
        // Their sizes are known, and that there are some.
        earlier.admit_images(&images)?;
        new.attached.images.extend(earlier.images.iter().map(without_bytes));
        permit = Box::pin(turn.check_early(shared, permit, &new)).await?;
        Box::pin(earlier.read_images(shared, owner, &mut images)).await?;
        new.attached.images = images.into_images();
    }
    let accepted = turn.submit_turn(shared, permit, new, is_background).await?;
    drop(earlier);
    CreatedResponse::of(shared, &subject, key, stored, accepted).await
}

/// Bytes of an earlier response that a request reads, at most: its conversation with its answer, and images.
const EARLIER_BYTES: usize = REPLY_BYTES + REQUEST_IMAGE_BYTES;

/// The conversation of an earlier response with its answer, without its instructions.
struct Earlier {
    key: ResponseKey,
    messages: Vec<Message>,
    /// The images that the messages name, each once.
    images: Vec<ImageRef>,
    /// The room of what is read, until the request was accepted or refused.
    _room: RoomPermit,
}

impl Earlier {
    /// Reads the messages of an earlier response.
    async fn read(
        shared: &Shared,
        subject: &Subject,
        key: ResponseKey,
        room: RoomPermit,
    ) -> Result<Self, Problem> {
        let messages = earlier_messages(shared, subject, key).await?;
        let mut images: Vec<ImageRef> = Vec::new();
        for image in messages.iter().flat_map(|message| &message.images) {
            if !images.iter().any(|known| known.digest == image.digest) {
                images.push(image.clone());
            }
        }
        let bytes = images.iter().map(|image| image.bytes as usize).sum::<usize>();
        let room = room.shrink(REPLY_BYTES + bytes);
        Ok(Self { key, messages: messages.iter().map(plain).collect(), images, _room: room })
    }

    /// Checks that its images fit beside those of the request, before they are read.
    fn admit_images(&self, of_request: &RequestImages) -> Result<(), Problem> {
        of_request.admits_stored(&self.images).map_err(too_large)
    }

    /// Reads its images, and adds them to those of the request.
    async fn read_images(
        &self,
        shared: &Shared,
        owner: &Owner,
        of_request: &mut RequestImages,
    ) -> Result<(), Problem> {
        for image in &self.images {
            let data = in_time(shared.store.image(owner, self.key.session, image)).await?;
            let data =
                data.ok_or_else(|| refused("has an image that is no longer stored".to_owned()))?;
            let image = Image { reference: image.clone(), data };
            of_request.add_stored(image).map_err(too_large)?;
        }
        Ok(())
    }
}

fn refused(msg: String) -> Problem {
    vec![FieldError::new("body", "previous_response_id", INVALID_VALUE, msg)].into()
}

fn too_large(fault: ImageFault) -> Problem {
    refused(format!("{fault}; those of earlier responses count"))
}

/// Returns an image that counts with its size, and that was not read yet.
fn without_bytes(reference: &ImageRef) -> Image {
    Image { reference: reference.clone(), data: Bytes::new() }
}

/// Returns the messages of an earlier response with its answer, as they are stored.
async fn earlier_messages(
    shared: &Shared,
    subject: &Subject,
    previous: ResponseKey,
) -> Result<Vec<Message>, Problem> {
    let owner = &subject.owner;
    let id = previous.id();
    let unknown = || Problem::from(vec![previous_not_found(&id)]);
    let stored = match StoredResponse::read(shared, subject, previous).await {
        Err(problem) if problem.code == "response_not_found" => return Err(unknown()),
        stored => stored?,
    };
    if !stored.object.request.shown.store {
        return Err(unknown());
    }
    let answer = stored.turn.answer.clone();
    let Some(answer) = answer.filter(|answer| answer.status == Some(Status::Complete)) else {
        let msg = format!("The response {id:?} has not ended well; its conversation cannot go on");
        return Err(refused(msg));
    };
    let mut messages = stored.messages(shared, owner, false).await?;
    messages.push(answer);
    Ok(messages)
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
