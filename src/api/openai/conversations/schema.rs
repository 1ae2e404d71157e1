//! The schemas of conversations, exactly as they are read.

use serde_json::{Value, json};
use utoipa::ToSchema;

pub use super::super::responses::schema::ShownItem as ConversationItem;
use super::super::responses::schema::{item, metadata};
use super::super::schema::object;

/// Items that one request adds, at most, as OpenAI has it.
pub const ITEMS_AT_ONCE: usize = 20;

/// The body of a request for a conversation; [`describe`] writes its schema.
#[derive(ToSchema)]
#[schema(as = OpenAiCreateConversation)]
pub struct CreateConversation {}

/// The body of a change of a conversation; [`describe`] writes its schema.
#[derive(ToSchema)]
#[schema(as = OpenAiUpdateConversation)]
pub struct UpdateConversation {}

/// The body of a request that adds items; [`describe`] writes its schema.
#[derive(ToSchema)]
#[schema(as = OpenAiCreateItems)]
pub struct CreateItems {}

/// Writes the schemas that a type cannot describe exactly into the API's description.
pub fn describe(document: &mut Value) {
    let items = |kinds: &[&str], least: usize| {
        json!({
            "type": kinds, "minItems": least, "maxItems": ITEMS_AT_ONCE,
            "description": "The items, without images", "items": item(false),
        })
    };
    let create = json!({"metadata": metadata(), "items": items(&["array", "null"], 0)});
    for (name, schema) in [
        ("OpenAiCreateConversation", object(&[], &create)),
        ("OpenAiUpdateConversation", object(&["metadata"], &json!({"metadata": metadata()}))),
        ("OpenAiCreateItems", object(&["items"], &json!({"items": items(&["array"], 1)}))),
    ] {
        if let Some(place) = document.pointer_mut(&format!("/components/schemas/{name}")) {
            *place = schema;
        }
    }
}
