//! The schemas of conversations, exactly as they are read.

use serde_json::{Value, json};
use utoipa::ToSchema;

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

/// An item of a conversation; [`describe`] writes its schema.
#[derive(ToSchema)]
#[schema(as = OpenAiConversationItem)]
pub struct ConversationItem {}

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
        ("OpenAiConversationItem", shown_item()),
    ] {
        if let Some(place) = document.pointer_mut(&format!("/components/schemas/{name}")) {
            *place = schema;
        }
    }
}

fn shown_item() -> Value {
    json!({
        "type": "object", "required": ["id", "type", "status"],
        "properties": {
            "id": {"type": "string"},
            "type": {"type": "string",
                "enum": ["message", "function_call", "function_call_output", "reasoning"]},
            "status": {"type": "string", "enum": ["completed", "incomplete"]},
        },
    })
}
