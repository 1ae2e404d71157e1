//! The items of conversations: listed, returned one by one, and added outside of responses.
//!
//! A message of the session is one item or several: its text, its reasoning, its calls, and the items that
//! came before it with the same request. The ids of all of them have the digits of the message's own id.

use axum::Json;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::super::body;
use super::super::conversation_id::parse_simple;
use super::super::messages::CallNames;
use super::super::newest::newest_messages;
use super::super::params::{INVALID_VALUE, error};
use super::super::query::{ItemPage, Order, PageQuery, check_names, unknown_after};
use super::super::responses::input::{self, InputItem};
use super::super::responses::output::AnswerItems;
use super::super::shapes::{ConflictReply, ErrorReply};
use super::body::ConversationRequest;
use super::schema::{ConversationItem, CreateItems, ITEMS_AT_ONCE};
use super::{ConversationPath, of_conversation, without_retry};
use crate::api::large_body::CONVERSATION_BYTES;
use crate::api::problems::in_time;
use crate::api::state::Shared;
use crate::http::extract::caller::Caller;
use crate::http::extract::fields::{FieldError, Fields};
use crate::http::extract::object::Object;
use crate::http::extract::path::path_field;
use crate::http::extract::query::QueryFields;
use crate::http::middleware::LimitedCaller;
use crate::http::problem::Problem;
use crate::session::store::{ADDED_BYTES, REPLY_BYTES, json_bytes};
use crate::session::{Message, Owner, Role, SessionId, StoreError};

/// Digits of a message's identifier in the id of an item.
const DIGITS: usize = 32;

/// Returns the messages that a request adds to a conversation with these calls.
///
/// # Errors
/// The first item that does not follow from what is before it; items that are too large.
pub fn added(calls: CallNames, items: &[InputItem]) -> Result<Vec<Message>, Problem> {
    let refused = |error: FieldError| Problem::from(vec![error]);
    let messages = input::messages(calls, Vec::new(), items).map_err(refused)?;
    let mark = |message: Message| Message { is_added: true, ..message };
    let messages: Vec<Message> = messages.into_iter().map(mark).collect();
    if json_bytes(&messages) > ADDED_BYTES {
        let msg = format!("must have at most {ADDED_BYTES} bytes as JSON");
        return Err(refused(error("items", INVALID_VALUE, msg)));
    }
    Ok(messages)
}

/// Returns the items of a message, oldest first; at least one.
fn items_of(message: &Message) -> Vec<Value> {
    let Some(generation) = message.generation_id.filter(|_| message.role == Role::Assistant) else {
        return input::items_of_message(message);
    };
    let items = AnswerItems(generation);
    let output = items.output(message);
    if output.is_empty() { vec![items.message_item("incomplete", Some(""))] } else { output }
}

/// Returns the message whose item has this id.
fn message_of(id: &str) -> Option<Uuid> {
    parse_simple(id.split_once('_')?.1.get(..DIGITS)?)
}

/// A page of the items of a conversation.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiConversationItems)]
pub struct ConversationItems {
    /// Always `list`.
    object: &'static str,
    /// The items.
    #[schema(value_type = Vec<ConversationItem>)]
    data: Vec<Box<RawValue>>,
    /// The id of the first item; empty where there is none.
    first_id: String,
    /// The id of the last item; empty where there is none.
    last_id: String,
    /// Whether there are items after these. A page is bounded by its bytes, too.
    has_more: bool,
}

impl ConversationItems {
    fn of(items: &[Value], limit: usize, has_more: bool) -> Self {
        let ItemPage { data, first_id, last_id, has_more } = ItemPage::of(items, limit, has_more);
        Self { object: "list", data, first_id, last_id, has_more }
    }
}

/// Lists the items of a conversation.
#[utoipa::path(
    get, path = "/v1/conversations/{conversation_id}/items", tag = "openai",
    operation_id = "openai_conversation_items",
    params(
        ("conversation_id" = String, Path),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Items; 20"),
        ("order" = Option<String>, Query, pattern = "^(asc|desc)$",
            description = "asc: oldest first; desc"),
        ("after" = Option<String>, Query, description = "The id of the last item before these"),
    ),
    responses((status = 200, body = ConversationItems), ErrorReply),
)]
pub async fn list(
    State(shared): State<Shared>,
    Caller(owner): Caller,
    ConversationPath(session): ConversationPath,
    QueryFields(query): QueryFields,
) -> Result<Json<ConversationItems>, Problem> {
    let asked = PageQuery::read(&query)?;
    let (items, has_more) = page(&shared, &owner, session, &asked).await?;
    Ok(Json(ConversationItems::of(&items, asked.limit, has_more)))
}

/// Reads more than `limit` items, where there are so many, and whether there may be more than these.
async fn page(
    shared: &Shared,
    owner: &Owner,
    session: SessionId,
    asked: &PageQuery<'_>,
) -> Result<(Vec<Value>, bool), Problem> {
    let PageQuery { limit, order, after } = *asked;
    let store = &shared.store;
    in_time(store.conversation(owner, session)).await.map_err(of_conversation)?;
    let in_order = |message: &Message| {
        let mut items = items_of(message);
        if order == Order::Descending {
            items.reverse();
        }
        items
    };
    let mut items = Vec::new();
    // The position of the next message in ascending order, or that behind it in descending order.
    let mut next = if order == Order::Ascending { 0 } else { u64::MAX };
    if let Some(after) = after {
        let unknown = || unknown_after("conversation");
        let id = message_of(after).ok_or_else(unknown)?;
        let found = in_time(store.find_message(owner, session, id)).await;
        let found = found.map_err(of_conversation)?.ok_or_else(unknown)?;
        let position = found.position.ok_or_else(unknown)?;
        items = in_order(&found.message);
        let at = items.iter().position(|item| item["id"] == after).ok_or_else(unknown)?;
        items.drain(..=at);
        next = if order == Order::Ascending { position + 1 } else { position };
    }
    let mut bytes = 0;
    loop {
        if items.len() > limit {
            return Ok((items, true));
        }
        if order == Order::Descending && next == 0 {
            return Ok((items, false));
        }
        // A page of messages is bounded in bytes, and so are all of them together.
        let wanted = (limit - items.len()) as u64 + 1;
        let read = async {
            match order {
                Order::Ascending => store.page(owner, session, next, wanted).await,
                Order::Descending if next == u64::MAX => {
                    store.newest(owner, session, wanted, REPLY_BYTES).await
                }
                Order::Descending => store.page_before(owner, session, next, wanted).await,
            }
        };
        let page = in_time(read).await.map_err(of_conversation)?;
        let mut messages = page.messages;
        if messages.is_empty() {
            return Ok((items, false));
        }
        if order == Order::Descending {
            next = page.first;
            messages.reverse();
        } else {
            next += messages.len() as u64;
        }
        bytes += json_bytes(&messages);
        items.extend(messages.iter().flat_map(in_order));
        if order == Order::Ascending && next >= page.info.message_count {
            return Ok((items, false));
        }
        if bytes > REPLY_BYTES {
            return Ok((items, next > 0));
        }
    }
}

/// The id of an item in the path.
pub struct ItemPath(String);

impl<S: Send + Sync> FromRequestParts<S> for ItemPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = path_field(parts, state, "item_id").await;
        id.map(Self).ok_or_else(Problem::message_not_found)
    }
}

/// Returns an item of a conversation.
#[utoipa::path(
    get, path = "/v1/conversations/{conversation_id}/items/{item_id}", tag = "openai",
    operation_id = "openai_conversation_item",
    params(("conversation_id" = String, Path), ("item_id" = String, Path)),
    responses((status = 200, body = ConversationItem), ErrorReply),
)]
pub async fn retrieve(
    State(shared): State<Shared>,
    Caller(owner): Caller,
    ConversationPath(session): ConversationPath,
    ItemPath(id): ItemPath,
) -> Result<Json<Value>, Problem> {
    let read = async {
        shared.store.conversation(&owner, session).await?;
        let Some(message) = message_of(&id) else { return Err(StoreError::MessageAbsent) };
        let found = shared.store.find_message(&owner, session, message).await?;
        found.ok_or(StoreError::MessageAbsent)
    };
    let found = in_time(read).await.map_err(of_conversation)?;
    let item = items_of(&found.message).into_iter().find(|item| item["id"] == *id);
    item.map(Json).ok_or_else(Problem::message_not_found)
}

fn read_added(object: &Object, text: &[u8]) -> Result<Vec<InputItem>, FieldError> {
    Ok(ConversationRequest::of_items(object, text)?.items)
}

/// Adds items to a conversation in which no response runs or waits. The model gets them with the next one.
#[utoipa::path(
    post, path = "/v1/conversations/{conversation_id}/items", tag = "openai",
    operation_id = "openai_create_conversation_items", params(("conversation_id" = String, Path)),
    request_body = CreateItems,
    responses(
        (status = 200, body = ConversationItems, description = "The items that were added"),
        ErrorReply, ConflictReply,
    ),
)]
pub async fn create(
    State(shared): State<Shared>,
    LimitedCaller(subject): LimitedCaller,
    ConversationPath(session): ConversationPath,
    QueryFields(query): QueryFields,
    request: Request,
) -> Result<Json<ConversationItems>, Problem> {
    let mut fields = Fields::new("query", &query);
    check_names(&mut fields, &[], &query);
    fields.finish(())?;
    let owner = &subject.owner;
    let (items, room) = body::read(request, &shared, CONVERSATION_BYTES, read_added).await?;
    in_time(shared.store.conversation(owner, session)).await.map_err(of_conversation)?;
    let mut calls = CallNames::default();
    if input::has_result_of_earlier_call(&items) {
        let newest = in_time(newest_messages(&shared.store, owner, session)).await;
        calls.add_all(&newest.map_err(of_conversation)?);
    }
    let messages = added(calls, &items)?;
    drop(items);
    if messages.is_empty() {
        // Earlier reasoning is no part of a conversation.
        return Ok(Json(ConversationItems::of(&[], ITEMS_AT_ONCE, false)));
    }
    let added = in_time(shared.generations.add_messages(&subject, session, messages)).await;
    let messages = added.map_err(|problem| without_retry(of_conversation(problem)))?;
    drop(room);
    let items: Vec<Value> = messages.iter().flat_map(items_of).collect();
    Ok(Json(ConversationItems::of(&items, usize::MAX, false)))
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;
    use crate::session::store::message;
    use crate::session::{GenerationId, Status};

    #[test]
    fn every_item_names_its_message() {
        let generation = GenerationId::random();
        let before = vec![message(Role::System, Utc::now())];
        let question = Message { before, ..message(Role::User, Utc::now()) };
        let answer = Message {
            id: generation.0,
            generation_id: Some(generation),
            thinking: Some("hm".to_owned()),
            status: Some(Status::Complete),
            ..message(Role::Assistant, Utc::now())
        };
        let failed = Message { thinking: None, status: Some(Status::Failed), ..answer.clone() };
        for (message, count) in [(question, 2), (answer, 2), (failed, 1)] {
            let items = items_of(&message);
            assert_eq!(items.len(), count, "{items:?}");
            for item in items {
                let id = item["id"].as_str().expect("an id");
                assert_eq!(message_of(id), Some(message.id), "{id}");
            }
        }
        for other in ["", "msg", "msg_", "msg_12", "msg_字字字字字字字字字字字"] {
            assert_eq!(message_of(other), None, "{other}");
        }
    }
}
