//! Creates, describes, changes and deletes conversations.

use axum::Json;
use axum::extract::{Request, State};
use chrono::Utc;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::super::body;
use super::super::conversation_id::conversation_id;
use super::super::messages::CallNames;
use super::super::shapes::ErrorReply;
use super::body::ConversationRequest;
use super::items::added;
use super::schema::{CreateConversation, UpdateConversation};
use super::{ConversationPath, of_conversation};
use crate::api::large_body::CONVERSATION_BYTES;
use crate::api::problems::in_time;
use crate::api::state::Shared;
use crate::http::extract::caller::Caller;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::Object;
use crate::http::middleware::LimitedCaller;
use crate::http::problem::Problem;
use crate::session::SessionId;
use crate::session::store::{DescribedConversation, NewConversation};

/// A conversation.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiConversation)]
pub struct ConversationReply {
    /// The id.
    #[schema(pattern = "^conv_[0-9a-f]{32}$")]
    id: String,
    /// Always `conversation`.
    object: &'static str,
    /// When it was created, in seconds since 1970.
    created_at: i64,
    /// The metadata that clients gave it: texts by names.
    #[schema(value_type = std::collections::HashMap<String, String>)]
    metadata: Map<String, Value>,
}

impl ConversationReply {
    fn of(session: SessionId, described: &DescribedConversation) -> Self {
        let DescribedConversation { created_at, metadata } = described;
        Self {
            id: conversation_id(session),
            object: "conversation",
            created_at: created_at.timestamp(),
            // A session that no client of this front created has none.
            metadata: serde_json::from_str(metadata).unwrap_or_default(),
        }
    }
}

/// Creates a conversation, which is a session of its caller.
#[utoipa::path(
    post, path = "/v1/conversations", tag = "openai", operation_id = "openai_create_conversation",
    request_body = CreateConversation,
    responses((status = 200, body = ConversationReply), ErrorReply),
)]
pub async fn create(
    State(shared): State<Shared>,
    LimitedCaller(subject): LimitedCaller,
    request: Request,
) -> Result<Json<ConversationReply>, Problem> {
    let read =
        body::read(request, &shared, CONVERSATION_BYTES, ConversationRequest::of_create).await?;
    let (ConversationRequest { metadata, items }, room) = read;
    if let Some(refusal) = shared.readiness.refusal() {
        return Err(refusal.into());
    }
    let messages = added(CallNames::default(), &items)?;
    let new = NewConversation {
        session: SessionId::random(),
        model: shared.settings.default_model.clone(),
        metadata: Value::Object(metadata).to_string(),
        created_at: Utc::now(),
        messages,
    };
    tracing::Span::current().record("session", new.session.redacted());
    let (session, created_at, metadata) = (new.session, new.created_at, new.metadata.clone());
    in_time(shared.generations.create_conversation(&subject, new)).await?;
    drop(room);
    Ok(Json(ConversationReply::of(session, &DescribedConversation { created_at, metadata })))
}

/// Returns a conversation.
#[utoipa::path(
    get, path = "/v1/conversations/{conversation_id}", tag = "openai",
    operation_id = "openai_conversation", params(("conversation_id" = String, Path)),
    responses((status = 200, body = ConversationReply), ErrorReply),
)]
pub async fn retrieve(
    State(shared): State<Shared>,
    Caller(owner): Caller,
    ConversationPath(session): ConversationPath,
) -> Result<Json<ConversationReply>, Problem> {
    let described = in_time(shared.store.conversation(&owner, session)).await;
    Ok(Json(ConversationReply::of(session, &described.map_err(of_conversation)?)))
}

fn read_update(object: &Object, text: &[u8]) -> Result<String, FieldError> {
    let ConversationRequest { metadata, .. } = ConversationRequest::of_update(object, text)?;
    Ok(Value::Object(metadata).to_string())
}

/// Replaces the metadata of a conversation.
#[utoipa::path(
    post, path = "/v1/conversations/{conversation_id}", tag = "openai",
    operation_id = "openai_update_conversation", params(("conversation_id" = String, Path)),
    request_body = UpdateConversation,
    responses((status = 200, body = ConversationReply), ErrorReply),
)]
pub async fn update(
    State(shared): State<Shared>,
    LimitedCaller(subject): LimitedCaller,
    ConversationPath(session): ConversationPath,
    request: Request,
) -> Result<Json<ConversationReply>, Problem> {
    let (metadata, room) = body::read(request, &shared, CONVERSATION_BYTES, read_update).await?;
    let described = in_time(shared.store.conversation(&subject.owner, session)).await;
    let described = described.map_err(of_conversation)?;
    let set = in_time(shared.generations.set_metadata(&subject, session, metadata)).await;
    let metadata = set.map_err(of_conversation)?;
    drop(room);
    Ok(Json(ConversationReply::of(session, &DescribedConversation { metadata, ..described })))
}

/// The result of a deletion.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiDeletedConversation)]
pub struct DeletedConversation {
    id: String,
    /// Always `conversation.deleted`.
    object: &'static str,
    /// Always true.
    deleted: bool,
}

/// Deletes a conversation with its items and responses, and cancels its turns.
#[utoipa::path(
    delete, path = "/v1/conversations/{conversation_id}", tag = "openai",
    operation_id = "openai_delete_conversation", params(("conversation_id" = String, Path)),
    responses((status = 200, body = DeletedConversation), ErrorReply),
)]
pub async fn delete(
    State(shared): State<Shared>,
    Caller(owner): Caller,
    ConversationPath(session): ConversationPath,
) -> Result<Json<DeletedConversation>, Problem> {
    in_time(shared.store.conversation(&owner, session)).await.map_err(of_conversation)?;
    let cleared = in_time(shared.generations.clear(&owner, session, true)).await;
    cleared.map_err(of_conversation)?;
    let (id, object) = (conversation_id(session), "conversation.deleted");
    Ok(Json(DeletedConversation { id, object, deleted: true }))
}
