//! Stored responses: retrieved, streamed again, cancelled, deleted, listed by their input.

use std::time::Instant;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use axum::{Extension, Json};
use chrono::Utc;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::super::params::{INVALID_VALUE, UNSUPPORTED_VALUE};
use super::super::query::{ItemPage, Order, PageQuery, check_names, unknown_after};
use super::super::shapes::{ConflictReply, ErrorReply};
use super::object::{OpenState, ResponseObject, StoredRequest};
use super::reading::{self, ReadPermit};
use super::schema::{ResponseEvent, ResponseReply, ShownItem};
use super::stream::ResponseWriter;
use super::{ResponseKey, ResponsePath, input, not_found};
use crate::api::problems::in_time;
use crate::api::state::Shared;
use crate::api::streamed_turn;
use crate::follow::{Follow, Resumed};
use crate::generation::CancelOutcome;
use crate::http::extract::fields::{FieldError, Fields};
use crate::http::extract::query::QueryFields;
use crate::http::middleware::LimitedCaller;
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::http::room::HandedRoom;
use crate::limits::Subject;
use crate::session::store::{AnsweredTurn, ReadFrom, ReadOutcome, message};
use crate::session::{Cursor, FinishReason, Message, Owner, Role, Status, StoreError};
use crate::sign_in::Identity;

/// A response as it is stored, with the right to read it: it is dropped before anything but a read of it is
/// waited for.
pub struct StoredResponse {
    /// The fields that the response has in every state.
    pub object: ResponseObject,
    /// Its turn.
    pub turn: AnsweredTurn,
    key: ResponseKey,
    _reading: ReadPermit,
}

impl StoredResponse {
    /// Reads a response.
    ///
    /// # Errors
    /// Where the caller has none of this key, or Redis does not reply.
    pub async fn read(
        shared: &Shared,
        subject: &Subject,
        key: ResponseKey,
    ) -> Result<Self, Problem> {
        let owner = &subject.owner;
        let read = in_time(async {
            let reading = reading::permit(reading::client(subject)).await;
            let reading = reading.ok_or_else(not_found)?;
            let turn = match turn_of(shared, owner, key).await {
                Ok(turn) => turn.ok_or_else(not_found)?,
                Err(StoreError::Absent) => return Err(not_found()),
                Err(error) => return Err(error.into()),
            };
            Ok((turn, reading))
        });
        let (turn, reading) = read.await?;
        let request = turn.question.request.as_deref().ok_or_else(not_found)?;
        let request: StoredRequest = serde_json::from_str(request).map_err(|error| {
            tracing::error!(%error, "stored request of a response unreadable");
            Problem::internal()
        })?;
        let object = ResponseObject::new(key, turn.generation, request);
        Ok(Self { object, turn, key, _reading: reading })
    }

    /// Returns the response as JSON, in its state now.
    ///
    /// # Errors
    /// Where Redis does not reply.
    pub async fn json(&self, shared: &Shared, owner: &Owner) -> Result<String, Problem> {
        if let Some(answer) = &self.turn.answer {
            return Ok(self.object.ended(answer));
        }
        let session = self.key.session;
        let read = in_time(shared.store.read(owner, session, ReadFrom::RunningTurn)).await?;
        let begun = match read {
            ReadOutcome::Window { window, .. } => {
                window.running() == Some(self.turn.generation)
                    && window.answer(self.turn.generation).is_some()
            }
            ReadOutcome::Behind | ReadOutcome::Unknown | ReadOutcome::Absent => false,
        };
        let state = if begun { OpenState::InProgress } else { OpenState::Queued };
        Ok(self.object.open(state))
    }

    /// Returns what every state of the response shows, and drops the rest.
    pub fn into_object(self) -> ResponseObject {
        self.object
    }

    /// Returns the messages that it got, with its question: all of them, or those of its own input. Of a
    /// turn of a conversation always the latter.
    ///
    /// # Errors
    /// Where Redis does not reply.
    pub async fn messages(
        &self,
        shared: &Shared,
        owner: &Owner,
        own_input: bool,
    ) -> Result<Vec<Message>, Problem> {
        let mut skip = if own_input { self.object.request.earlier } else { 0 };
        let mut messages: Vec<Message> = Vec::new();
        // A page is bounded in bytes.
        while skip < self.turn.brought {
            let limit = self.turn.brought - skip;
            let page = in_time(shared.store.page(owner, self.key.session, skip, limit)).await?;
            if page.messages.is_empty() {
                return Err(not_found());
            }
            skip += page.messages.len() as u64;
            messages.extend(page.messages);
        }
        messages.push(self.turn.question.clone());
        Ok(messages)
    }
}

/// Reads the turn of a response; none where the session has no such turn.
async fn turn_of(
    shared: &Shared,
    owner: &Owner,
    key: ResponseKey,
) -> Result<Option<AnsweredTurn>, StoreError> {
    let ResponseKey { session, generation } = key;
    let Some(generation) = generation else { return shared.store.own_turn(owner, session).await };
    let Some(question) = shared.store.question(owner, session, generation).await? else {
        return Ok(None);
    };
    let answer = shared.store.find_answer(owner, session, generation).await?;
    let answer = answer.map(|found| found.message);
    // What it brought is in its question.
    Ok(Some(AnsweredTurn { generation, brought: 0, question, answer }))
}

/// Notifies the replica with the turn of a response that its client asks for it, so that the turn of a caller
/// that is not signed in goes on waiting. Where that fails, the client's next request does it.
async fn note_poll(shared: &Shared, owner: &Owner, stored: &StoredResponse) {
    if *owner != Owner::Anonymous || stored.turn.answer.is_some() {
        return;
    }
    let noted = async {
        let noted = shared.store.publish_poll(stored.key.session).await;
        noted.map_err(StoreError::from)
    };
    if let Err(problem) = in_time(noted).await {
        tracing::debug!(code = %problem.code, "poll of a response not noted");
    }
}

/// Reads a response that its caller may retrieve.
async fn retrievable(
    shared: &Shared,
    subject: &Subject,
    key: ResponseKey,
) -> Result<StoredResponse, Problem> {
    let stored = StoredResponse::read(shared, subject, key).await?;
    if stored.object.request.shown.store { Ok(stored) } else { Err(not_found()) }
}

/// Returns JSON that is written already.
pub fn json_reply(text: String) -> Response {
    let mut response = Response::new(text.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Returns a response, or streams its events.
#[utoipa::path(
    get, path = "/v1/responses/{response_id}", tag = "openai", operation_id = "openai_response",
    params(
        ("response_id" = String, Path),
        ("stream" = Option<bool>, Query, description = "Streams the events; false"),
        ("starting_after" = Option<i64>, Query, minimum = 0, maximum = 9_007_199_254_740_991_i64,
            description = "The sequence_number of the last event that the client has; only with stream"),
    ),
    responses(
        (status = 200, description = "The response; with `stream` its events",
            content((ResponseReply = "application/json"), (ResponseEvent = "text/event-stream"))),
        ErrorReply, ConflictReply,
    ),
)]
pub async fn retrieve(
    State(shared): State<Shared>,
    caller: Identity,
    LimitedCaller(subject): LimitedCaller,
    last_byte: LastByte,
    Extension(reserved): Extension<HandedRoom>,
    ResponsePath(key): ResponsePath,
    QueryFields(query): QueryFields,
) -> Result<Response, Problem> {
    let mut fields = Fields::new("query", &query);
    check_names(&mut fields, &["stream", "starting_after", "include_obfuscation"], &query);
    let stream = fields.flag("stream").unwrap_or(false);
    let after = fields.integer("starting_after", 0, (1 << 53) - 1);
    if after.is_some() && !stream {
        fields.refuse("starting_after", INVALID_VALUE, "is only allowed where stream is true");
    }
    if fields.flag("include_obfuscation") == Some(true) {
        fields.refuse("include_obfuscation", UNSUPPORTED_VALUE, "is supported as false");
    }
    fields.finish(())?;
    let owner = caller.owner;
    let stored = retrievable(&shared, &subject, key).await?;
    note_poll(&shared, &owner, &stored).await;
    let Some(permit) = shared.admit_stream(stream, &subject).await? else {
        return Ok(json_reply(stored.json(&shared, &owner).await?));
    };
    let (feeds, store) = (shared.feeds.clone(), shared.store.clone());
    let generation = stored.turn.generation;
    // The log of a conversation does not begin with the turn, and may no longer have its beginning.
    let start = key.generation.is_none().then_some(Cursor::START);
    let object = stored.into_object();
    let follow = Follow::resume(feeds, store, owner, key.session, generation, start);
    // A cursor before the beginning is never that of a client which has the end.
    let Resumed::Following { follow, .. } = in_time(follow).await? else { return Err(not_found()) };
    let after = after.map(i64::unsigned_abs);
    let (writer, mut output) = ResponseWriter::again(*follow, object, after);
    output.reserved = reserved.take();
    streamed_turn::respond(&shared, writer, output, permit, caller.validity, last_byte).await
}

/// Cancels a response that goes on without its client.
#[utoipa::path(
    post, path = "/v1/responses/{response_id}/cancel", tag = "openai",
    operation_id = "openai_cancel_response", params(("response_id" = String, Path)),
    responses(
        (status = 200, body = ResponseReply, description = "The response as it ended"),
        ErrorReply,
    ),
)]
pub async fn cancel(
    State(shared): State<Shared>,
    LimitedCaller(subject): LimitedCaller,
    ResponsePath(key): ResponsePath,
) -> Result<Response, Problem> {
    let owner = &subject.owner;
    let stored = retrievable(&shared, &subject, key).await?;
    if !stored.object.request.shown.background {
        let msg = "is of a response without background: it is cancelled when its client goes away";
        return Err(vec![FieldError::new("path", "response_id", INVALID_VALUE, msg)].into());
    }
    if stored.turn.answer.is_some() {
        return Ok(json_reply(stored.json(&shared, owner).await?));
    }
    let generation = Some(stored.turn.generation);
    // The cancel, and what is read after it, does not wait with what was read before.
    let object = stored.into_object();
    let begun = Instant::now();
    let outcome = shared.generations.cancel(owner, key.session, generation).await?;
    if let CancelOutcome::Cancelled { upstream_closed, .. } = outcome {
        tracing::debug!(upstream_closed, elapsed = ?begun.elapsed(), "response cancelled");
    }
    match retrievable(&shared, &subject, key).await {
        // A turn of a conversation that was cancelled while it waited leaves nothing there.
        Err(problem) if key.generation.is_some() && problem.status == StatusCode::NOT_FOUND => {
            let answer = Message {
                status: Some(Status::Cancelled),
                finish_reason: Some(FinishReason::Cancelled),
                ..message(Role::Assistant, Utc::now())
            };
            Ok(json_reply(object.ended(&answer)))
        }
        stored => Ok(json_reply(stored?.json(&shared, owner).await?)),
    }
}

/// The result of a deletion.
#[derive(Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "OpenAI's names")]
#[schema(as = OpenAiDeletedResponse)]
pub struct Deleted {
    id: String,
    /// Always `response`.
    object: &'static str,
    /// Always true.
    deleted: bool,
}

/// Deletes a response, and cancels it where it has not ended. The items of a turn of a conversation stay in
/// that.
#[utoipa::path(
    delete, path = "/v1/responses/{response_id}", tag = "openai",
    operation_id = "openai_delete_response", params(("response_id" = String, Path)),
    responses((status = 200, body = Deleted), ErrorReply),
)]
pub async fn delete(
    State(shared): State<Shared>,
    LimitedCaller(subject): LimitedCaller,
    ResponsePath(key): ResponsePath,
) -> Result<Json<Deleted>, Problem> {
    let owner = &subject.owner;
    let stored = retrievable(&shared, &subject, key).await?;
    let is_open = stored.turn.answer.is_none();
    drop(stored);
    let ResponseKey { session, generation } = key;
    let deleted = match generation {
        None => in_time(shared.generations.clear(owner, session, true)).await.map(drop),
        Some(generation) => {
            if is_open {
                shared.generations.cancel(owner, session, Some(generation)).await?;
            }
            in_time(shared.generations.hide_request(owner, session, generation)).await
        }
    };
    match deleted {
        Err(problem) if problem.status == StatusCode::NOT_FOUND => Err(not_found()),
        deleted => {
            deleted.map(|()| Json(Deleted { id: key.id(), object: "response", deleted: true }))
        }
    }
}

/// A page of the items of an input.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiInputItems)]
pub struct InputItems {
    /// Always `list`.
    object: &'static str,
    /// The items.
    #[schema(value_type = Vec<ShownItem>)]
    data: Vec<Box<RawValue>>,
    /// The id of the first item; empty where there is none.
    first_id: String,
    /// The id of the last item; empty where there is none.
    last_id: String,
    /// Whether there are items after these. A page is bounded by its bytes, too.
    has_more: bool,
}

/// Lists the items of a response's own input. What earlier responses brought is not among them, and
/// neither is reasoning.
#[utoipa::path(
    get, path = "/v1/responses/{response_id}/input_items", tag = "openai",
    operation_id = "openai_response_input",
    params(
        ("response_id" = String, Path),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Items; 20"),
        ("order" = Option<String>, Query, pattern = "^(asc|desc)$",
            description = "asc: oldest first; desc"),
        ("after" = Option<String>, Query, description = "The id of the last item before these"),
    ),
    responses((status = 200, body = InputItems), ErrorReply),
)]
pub async fn input_items(
    State(shared): State<Shared>,
    LimitedCaller(subject): LimitedCaller,
    ResponsePath(key): ResponsePath,
    QueryFields(query): QueryFields,
) -> Result<Json<InputItems>, Problem> {
    let asked = PageQuery::read(&query)?;
    let stored = retrievable(&shared, &subject, key).await?;
    let mut items = input::items(&stored.messages(&shared, &subject.owner, true).await?);
    if asked.order == Order::Descending {
        items.reverse();
    }
    if let Some(after) = asked.after {
        let at = items.iter().position(|item| item["id"] == after);
        items.drain(..=at.ok_or_else(|| unknown_after("input"))?);
    }
    let ItemPage { data, first_id, last_id, has_more } = ItemPage::of(&items, asked.limit, false);
    Ok(Json(InputItems { object: "list", data, first_id, last_id, has_more }))
}
