//! The schemas of requests, as far as they are checked: a field that is ignored is not described.

use serde_json::{Value, json};
use utoipa::{OpenApi, ToSchema};

use super::errors::OllamaErrorObject;
use crate::api::answer_rules::{STOP_BYTES, STOPS};
use crate::api::embedding::TEXTS;
use crate::api::large_body::PIXEL;
use crate::session::image::MESSAGE_IMAGES;

/// The parts of the description that belong to no handler.
#[derive(OpenApi)]
#[openapi(components(schemas(OllamaErrorObject)))]
pub struct OllamaApiDoc;

/// The body of a request for a chat; [`describe`] writes its schema, as those of the others.
#[derive(ToSchema)]
pub struct OllamaChatRequest {}

/// The body of a request for the answer to a prompt.
#[derive(ToSchema)]
pub struct OllamaGenerateRequest {}

/// The body of a request for embeddings.
#[derive(ToSchema)]
pub struct OllamaEmbedRequest {}

/// The body of a request for one embedding.
#[derive(ToSchema)]
pub struct OllamaEmbeddingRequest {}

/// The body of a request for the description of a model.
#[derive(ToSchema)]
pub struct OllamaShowRequest {}

/// Writes the schemas that a type cannot describe exactly into the API's description.
pub fn describe(document: &mut Value) {
    for (name, schema) in [
        (
            "OllamaChatRequest",
            answer(&json!({
                "messages": {
                    "description": "The conversation; the last message is not the assistant's",
                    "type": ["array", "null"], "maxItems": 1000, "items": message(),
                },
                "tools": {"type": ["array", "null"], "maxItems": 128, "items": tool()},
            })),
        ),
        (
            "OllamaGenerateRequest",
            answer(&json!({
                "prompt": {"type": ["string", "null"]}, "system": {"type": ["string", "null"]},
                "images": images(),
            })),
        ),
        (
            "OllamaEmbedRequest",
            of_model(&json!({
                "input": {"oneOf": [
                    {"type": ["string", "null"]},
                    {"type": "array", "maxItems": TEXTS, "items": {"type": "string"}},
                ]},
                "truncate": {"type": ["boolean", "null"]},
                "dimensions": {"type": ["integer", "null"], "minimum": 0, "maximum": u32::MAX},
            })),
        ),
        ("OllamaEmbeddingRequest", of_model(&json!({"prompt": {"type": ["string", "null"]}}))),
        ("OllamaShowRequest", of_model(&json!({}))),
    ] {
        if let Some(described) = document.pointer_mut(&format!("/components/schemas/{name}")) {
            *described = schema;
        }
    }
}

/// A model's name, with its host, namespace and tag or without: a part of what is read, in the way
/// that names are written.
const MODEL_NAME: &str = r"^(([A-Za-z0-9_.-]{1,64}(:[0-9]{1,5})?/)?[A-Za-z0-9_-]{1,64}/)?[A-Za-z0-9_.-]{1,64}(:[A-Za-z0-9_.-]{1,32})?$";

/// Returns the schema of a request for this model with these fields, and any others.
fn of_model(fields: &Value) -> Value {
    let mut properties = fields.clone();
    properties["model"] = json!({"type": "string", "pattern": MODEL_NAME});
    json!({"type": "object", "required": ["model"], "properties": properties})
}

/// Returns the schema of a request for an answer.
fn answer(fields: &Value) -> Value {
    let number = |least: f64, most: f64| json!({"type": ["number", "null"], "minimum": least, "maximum": most});
    let whole = json!({"type": ["integer", "null"], "minimum": i64::MIN, "maximum": i64::MAX});
    let stop = json!({"type": "string", "maxLength": STOP_BYTES});
    let options = json!({
        "temperature": number(0.0, 2.0), "top_p": number(0.0, 1.0), "min_p": number(0.0, 1.0),
        "repeat_penalty": number(0.0, 10.0), "presence_penalty": number(-2.0, 2.0),
        "frequency_penalty": number(-2.0, 2.0), "seed": whole, "num_predict": whole,
        "top_k": {"type": ["integer", "null"], "minimum": 0, "maximum": u32::MAX},
        "stop": {"oneOf": [
            {"type": "null"}, stop, {"type": "array", "maxItems": STOPS, "items": stop},
        ]},
    });
    let mut fields = fields.clone();
    fields["stream"] = json!({"type": ["boolean", "null"], "default": true});
    fields["think"] = json!({"enum": [true, false, "low", "medium", "high", null]});
    fields["options"] = json!({"type": ["object", "null"], "properties": options});
    fields["format"] = json!({"oneOf": [{"enum": ["json", "", null]}, {"type": "object"}]});
    of_model(&fields)
}

fn images() -> Value {
    let image = json!({"type": "string", "enum": [PIXEL],
        "description": "Any PNG, JPEG, WebP or GIF image in base64"});
    json!({"type": ["array", "null"], "maxItems": MESSAGE_IMAGES, "items": image})
}

fn message() -> Value {
    let text = json!({"type": ["string", "null"]});
    let call = json!({
        "type": "object", "required": ["function"],
        "properties": {"function": {
            "type": "object", "required": ["name"],
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "arguments": {"type": ["object", "null"]},
            },
        }},
    });
    let of_role = |roles: &[&str], more: Value| {
        let mut properties = more;
        properties["role"] = json!({"type": "string", "enum": roles});
        properties["content"] = text.clone();
        properties["thinking"] = text.clone();
        properties["images"] = images();
        json!({"type": "object", "required": ["role"], "properties": properties})
    };
    json!({"oneOf": [
        of_role(&["system", "user"], json!({})),
        of_role(
            &["assistant"],
            json!({"tool_calls": {"type": ["array", "null"], "maxItems": 128, "items": call}}),
        ),
        of_role(&["tool"], json!({"tool_name": text, "tool_call_id": text})),
    ]})
}

fn tool() -> Value {
    json!({
        "type": "object", "required": ["function"],
        "properties": {
            "type": {"enum": ["function", null]},
            "function": {
                "type": "object", "required": ["name"],
                "properties": {"name": {"type": "string", "minLength": 1}},
            },
        },
    })
}
