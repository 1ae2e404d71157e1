//! The schema of a request, exactly as `request` reads it.

use serde_json::{Value, json};
use utoipa::{OpenApi, ToSchema};

use super::errors::ErrorEnvelope;
use super::params::HINT_CHARACTERS;
use crate::api::answer_rules::{NAME_PATTERN, STOP_BYTES, STOPS};
use crate::api::embedding::TEXTS;
use crate::api::large_body::PIXEL;

/// The parts of the description that belong to no handler.
#[derive(OpenApi)]
#[openapi(components(schemas(ErrorEnvelope)))]
pub struct OpenAiApiDoc;

/// The body of a request for a chat completion; [`describe`] writes its schema.
#[derive(ToSchema)]
pub struct ChatCompletionRequest {}

/// The body of a request for embeddings; [`describe`] writes its schema.
#[derive(ToSchema)]
#[schema(as = OpenAiEmbeddingRequest)]
pub struct EmbeddingRequest {}

/// An event of a streamed completion.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only its description is used")]
pub struct ChatCompletionEvent {
    /// A chunk or an error as JSON; `[DONE]` in the last event.
    data: String,
}

/// Writes the schemas that a type cannot describe exactly into the API's description.
pub fn describe(document: &mut Value) {
    if let Some(schema) = document.pointer_mut("/components/schemas/ChatCompletionRequest") {
        *schema = request();
    }
    if let Some(schema) = document.pointer_mut("/components/schemas/OpenAiEmbeddingRequest") {
        *schema = embedding_request();
    }
    let embedding = "/components/schemas/OpenAiEmbedding/properties/embedding";
    if let Some(schema) = document.pointer_mut(embedding) {
        *schema = json!({
            "description": "The numbers, or with base64 their bytes: little-endian, four a number",
            "oneOf": [
                {"type": "array", "items": {"type": "number"}},
                {"type": "string", "contentEncoding": "base64"},
            ],
        });
    }
}

/// A model's name, with its host, namespace and tag or without: a part of what is read, in the way
/// that names are written.
pub(super) const MODEL_NAME: &str = r"^(([A-Za-z0-9_.-]{1,64}(:[0-9]{1,5})?/)?[A-Za-z0-9_-]{1,64}/)?[A-Za-z0-9_.-]{1,64}(:[A-Za-z0-9_.-]{1,32})?$";

/// Returns the schema of the id of a call, which may have 256 bytes: as many as these characters have at
/// most.
pub(super) fn call_id() -> Value {
    json!({"type": "string", "maxLength": 64})
}

/// Returns an object of these fields in a request. Others may only be null, which counts as absent.
pub(super) fn object(required: &[&str], properties: &Value) -> Value {
    json!({
        "type": "object", "required": required, "properties": properties,
        "additionalProperties": {"type": "null"},
    })
}

/// Returns an object of these fields in a reply, with no others.
pub(super) fn reply_object(required: &[&str], properties: &Value) -> Value {
    json!({
        "type": "object", "required": required, "properties": properties,
        "additionalProperties": false,
    })
}

/// Returns a field that OpenAI's packages add to a reply by themselves, and that is ignored.
pub(super) fn ignored() -> Value {
    json!({"description": "Of any type, and ignored: OpenAI's packages add it to a reply"})
}

pub(super) fn number(least: f64, most: f64, default: Option<f64>) -> Value {
    let mut number = json!({"type": ["number", "null"], "minimum": least, "maximum": most});
    if let Some(default) = default {
        number["default"] = default.into();
    }
    number
}

/// Returns a parameter that may only have these values, or null.
pub(super) fn only(values: &[Value]) -> Value {
    json!({"enum": values.iter().chain([&Value::Null]).collect::<Vec<_>>()})
}

fn content() -> Value {
    let part = object(
        &["type", "text"],
        &json!({
            "type": {"type": "string", "enum": ["text"]},
            "text": {"type": "string"},
        }),
    );
    json!({
        "description": "A text, or parts whose texts are joined by line breaks",
        "oneOf": [
            {"type": "string"},
            {"type": "array", "minItems": 1, "items": part},
        ],
    })
}

/// Returns the content of a user's message, which may have images.
fn seen_content() -> Value {
    let mut content = content();
    let url = json!({"type": "string", "enum": [format!("data:image/png;base64,{PIXEL}")],
        "description": "Any PNG, JPEG, WebP or GIF image as a data URL"});
    let image = object(
        &["type", "image_url"],
        &json!({
            "type": {"type": "string", "enum": ["image_url"]},
            "image_url": object(&["url"], &json!({
                "url": url, "detail": {"type": ["string", "null"]},
            })),
        }),
    );
    let text = content["oneOf"][1]["items"].take();
    content["oneOf"][1]["items"] = json!({"oneOf": [text, image]});
    content
}

fn message() -> Value {
    let role = |roles: &[&str]| json!({"type": "string", "enum": roles});
    let call = object(
        &["id", "type", "function"],
        &json!({
            "id": call_id(),
            "type": {"type": "string", "enum": ["function"]},
            "function": object(&["name", "arguments"], &json!({
                "name": {"type": "string", "pattern": NAME_PATTERN},
                "arguments": {"type": "string", "enum": ["{}"],
                    "description": "Any JSON object, as text"},
                "parsed_arguments": ignored(),
            })),
            "index": ignored(),
        }),
    );
    let question = |author: &str| {
        object(&["role", "content"], &json!({"role": role(&[author]), "content": content()}))
    };
    let seen =
        object(&["role", "content"], &json!({"role": role(&["user"]), "content": seen_content()}));
    let answer = object(
        &["role", "content"],
        &json!({
            "role": role(&["assistant"]), "content": content(), "refusal": {"type": "null"},
            "annotations": {"type": ["array", "null"], "maxItems": 0}, "parsed": ignored(),
        }),
    );
    let calling = object(
        &["role", "tool_calls"],
        &json!({
            "role": role(&["assistant"]), "content": {"type": ["string", "null"]},
            "tool_calls": {"type": "array", "minItems": 1, "maxItems": 128, "items": call},
            "parsed": ignored(),
        }),
    );
    let result = object(
        &["role", "content", "tool_call_id"],
        &json!({
            "role": role(&["tool"]), "content": content(),
            "tool_call_id": {"type": "string",
                "description": "The id of a call in an earlier message"},
            "name": {"type": ["string", "null"], "description": "The function of that call"},
        }),
    );
    json!({"oneOf": [
        seen, question("system"), question("developer"), answer, calling, result,
    ]})
}

fn response_format() -> Value {
    let kind = |kind: &str| json!({"type": "string", "enum": [kind]});
    let named = object(
        &["name", "schema"],
        &json!({
            "name": {"type": "string", "pattern": NAME_PATTERN},
            "description": {"type": ["string", "null"]},
            "strict": {"type": ["boolean", "null"]},
            "schema": {"type": "object"},
        }),
    );
    json!({"oneOf": [
        {"type": "null"},
        object(&["type"], &json!({"type": kind("text")})),
        object(&["type"], &json!({"type": kind("json_object")})),
        object(&["type", "json_schema"], &json!({"type": kind("json_schema"), "json_schema": named})),
    ]})
}

fn tool() -> Value {
    let function = object(
        &["name"],
        &json!({
            "name": {"type": "string", "pattern": NAME_PATTERN},
            "description": {"type": ["string", "null"]},
            "parameters": {"type": ["object", "null"]},
            "strict": {"type": ["boolean", "null"]},
        }),
    );
    object(
        &["type", "function"],
        &json!({
            "type": {"type": "string", "enum": ["function"]}, "function": function,
        }),
    )
}

fn request() -> Value {
    let stop = json!({"type": "string", "minLength": 1, "maxLength": STOP_BYTES});
    let tokens = json!({"type": ["integer", "null"], "minimum": 1, "maximum": i64::MAX});
    let empty = json!({"type": ["object", "null"], "maxProperties": 0});
    object(
        &["model", "messages"],
        &json!({
            "model": {"type": "string", "pattern": MODEL_NAME},
            "messages": {
                "description": "The conversation; the last message is not the assistant's",
                "type": "array", "minItems": 1, "maxItems": 1000, "items": message(),
            },
            "stream": {"type": ["boolean", "null"], "default": false},
            "stream_options": {
                "description": "Only where stream is true",
                "oneOf": [{"type": "null"}, object(&[], &json!({
                    "include_usage": {"type": ["boolean", "null"]},
                    "include_obfuscation": only(&[json!(false)]),
                }))],
            },
            "max_completion_tokens": tokens,
            "max_tokens": tokens,
            "temperature": number(0.0, 2.0, Some(1.0)),
            "top_p": number(0.0, 1.0, Some(1.0)),
            "presence_penalty": number(-2.0, 2.0, None),
            "frequency_penalty": number(-2.0, 2.0, None),
            "seed": {"type": ["integer", "null"], "minimum": i64::MIN, "maximum": i64::MAX},
            "stop": {"oneOf": [
                {"type": "null"}, stop, {"type": "array", "maxItems": STOPS, "items": stop},
            ]},
            "reasoning_effort": only(&["none", "low", "medium", "high"].map(Value::from)),
            "response_format": response_format(),
            "tools": {"type": ["array", "null"], "maxItems": 128, "items": tool()},
            "tool_choice": only(&["auto", "none"].map(Value::from)),
            "parallel_tool_calls": {"type": ["boolean", "null"]},
            "n": only(&[json!(1)]),
            "logprobs": only(&[json!(false)]),
            "store": only(&[json!(false)]),
            "logit_bias": empty,
            "metadata": empty,
            "modalities": only(&[json!(["text"])]),
            "service_tier": only(&["auto", "default"].map(Value::from)),
            "user": hint(),
            "safety_identifier": hint(),
            "prompt_cache_key": hint(),
        }),
    )
}

/// Returns the schema of a text that changes nothing about an answer.
pub fn hint() -> Value {
    json!({"type": ["string", "null"], "maxLength": HINT_CHARACTERS})
}

fn embedding_request() -> Value {
    let text = json!({"type": "string", "minLength": 1});
    object(
        &["model", "input"],
        &json!({
            "model": {"type": "string", "pattern": MODEL_NAME},
            "input": {"oneOf": [
                text, {"type": "array", "minItems": 1, "maxItems": TEXTS, "items": text},
            ]},
            "dimensions": {
                "description": "At most the length of the model's vectors",
                "type": ["integer", "null"], "minimum": 1, "maximum": u32::MAX,
            },
            "encoding_format": only(&["float", "base64"].map(Value::from)),
            "user": hint(),
        }),
    )
}
