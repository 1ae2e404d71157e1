//! The schemas of responses, exactly as they are read, and as they are written.

use serde_json::{Value, json};
use utoipa::ToSchema;

use super::super::schema::{
    MODEL_NAME, call_id, hint, ignored, number, object, only, reply_object,
};
use crate::api::answer_rules::NAME_PATTERN;
use crate::api::large_body::PIXEL;

/// The body of a request for a response; [`describe`] writes its schema.
#[derive(ToSchema)]
#[schema(as = OpenAiCreateResponse)]
pub struct CreateResponse {}

/// A response; [`describe`] writes its schema.
#[derive(ToSchema)]
#[schema(as = OpenAiResponse)]
pub struct ResponseReply {}

/// An event of a streamed response.
#[derive(ToSchema)]
#[schema(as = OpenAiResponseEvent)]
#[allow(dead_code, reason = "only its description is used")]
pub struct ResponseEvent {
    /// The type of the event, which is also in its data.
    event: String,
    /// The event as JSON, with its `type` and its `sequence_number`.
    data: String,
}

/// An item of an input or of a conversation, as it is shown; [`describe`] writes its schema.
#[derive(ToSchema)]
#[schema(as = OpenAiItem)]
pub struct ShownItem {}

/// Writes the schemas that a type cannot describe exactly into the API's description.
pub fn describe(document: &mut Value) {
    for (name, schema) in [
        ("OpenAiCreateResponse", request()),
        ("OpenAiResponse", response()),
        ("OpenAiItem", shown_item()),
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

/// The id of a conversation.
const CONVERSATION: &str = "^conv_[0-9a-f]{32}$";

fn kind(kind: &str) -> Value {
    json!({"type": "string", "enum": [kind]})
}

fn text() -> Value {
    json!({"type": ["string", "null"]})
}

fn content(parts: &[&Value]) -> Value {
    let part = if let [part] = parts { json!(part) } else { json!({"oneOf": parts}) };
    json!({
        "description": "A text, or parts whose texts are joined by line breaks",
        "oneOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": part}],
    })
}

/// Returns the schema of an item of an input, or of one that is added to a conversation: that has no images.
pub fn item(of_input: bool) -> Value {
    let status = only(&["completed", "incomplete"].map(Value::from));
    let empty = json!({"type": ["array", "null"], "maxItems": 0});
    let input_text =
        object(&["type", "text"], &json!({"type": kind("input_text"), "text": {"type": "string"}}));
    let input_image = object(
        &["type", "image_url"],
        &json!({
            "type": kind("input_image"), "detail": text(), "file_id": {"type": "null"},
            "image_url": {"type": "string", "enum": [format!("data:image/png;base64,{PIXEL}")],
                "description": "The data URL of a PNG, JPEG, WebP or GIF; at most 4 in a message, \
                    and 16 and 4 MiB in a request with what previous_response_id brings"},
        }),
    );
    let output_text = object(
        &["type", "text"],
        &json!({
            "type": kind("output_text"), "text": {"type": "string"}, "annotations": empty,
            "logprobs": empty, "parsed": ignored(),
        }),
    );
    let message = |roles: &[&str], parts: &[&Value]| {
        object(
            &["role", "content"],
            &json!({
                "type": only(&[json!("message")]), "id": text(), "status": status,
                "role": {"type": "string", "enum": roles}, "content": content(parts),
            }),
        )
    };
    let call = object(
        &["type", "call_id", "name", "arguments"],
        &json!({
            "type": kind("function_call"), "id": text(), "status": status,
            "call_id": if of_input { call_id() } else { json!({"type": "string",
                "description": "At most 256 bytes"}) },
            "name": {"type": "string", "pattern": NAME_PATTERN},
            "arguments": {"type": "string", "enum": ["{}"],
                "description": "Any JSON object, as text"},
            "parsed_arguments": ignored(),
        }),
    );
    let result = object(
        &["type", "call_id", "output"],
        &json!({
            "type": kind("function_call_output"), "id": text(), "status": status,
            "call_id": {"type": "string", "description": "The call_id of an earlier call"},
            "output": content(&[&input_text]),
        }),
    );
    let reasoning = object(
        &["type"],
        &json!({
            "type": kind("reasoning"), "id": text(), "status": status,
            "summary": {"type": ["array", "null"]}, "content": {"type": ["array", "null"]},
            "encrypted_content": {"type": "null"},
        }),
    );
    let seen = [&input_text, &input_image];
    json!({"oneOf": [
        message(&["user"], if of_input { &seen[..] } else { &seen[..1] }),
        message(&["system", "developer"], &[&input_text]),
        message(&["assistant"], &[&output_text]), call, result, reasoning,
    ]})
}

/// Returns the schema of the metadata of a request.
pub fn metadata() -> Value {
    json!({
        "type": ["object", "null"], "maxProperties": 16,
        "propertyNames": {"maxLength": 64},
        "additionalProperties": {"type": "string", "maxLength": 512},
    })
}

fn text_parameter() -> Value {
    let schema = object(
        &["type", "name", "schema"],
        &json!({
            "type": kind("json_schema"),
            "name": {"type": "string", "pattern": NAME_PATTERN},
            "description": text(),
            "strict": {"type": ["boolean", "null"]},
            "schema": {"type": "object"},
        }),
    );
    let format = json!({"oneOf": [
        {"type": "null"},
        object(&["type"], &json!({"type": kind("text")})),
        object(&["type"], &json!({"type": kind("json_object")})),
        schema,
    ]});
    let text = object(&[], &json!({"format": format, "verbosity": only(&[json!("medium")])}));
    json!({"oneOf": [{"type": "null"}, text]})
}

fn request() -> Value {
    let flag = json!({"type": ["boolean", "null"]});
    let tool = object(
        &["type", "name"],
        &json!({
            "type": kind("function"),
            "name": {"type": "string", "pattern": NAME_PATTERN},
            "description": text(),
            "parameters": {"type": ["object", "null"]},
            "strict": {"type": ["boolean", "null"]},
        }),
    );
    object(
        &["model", "input"],
        &json!({
            "model": {"type": "string", "pattern": MODEL_NAME},
            "input": {
                "description": "A text, or items of which the last one is not of the model",
                "oneOf": [
                    {"type": "string"},
                    {"type": "array", "minItems": 1, "maxItems": 1000, "items": item(true)},
                ],
            },
            "instructions": text(),
            "previous_response_id": {
                "description": "The id of a response of this caller that has ended well",
                "type": ["string", "null"], "pattern": "^resp_[0-9a-f]{32}$",
            },
            "conversation": {
                "description": "The id of a conversation of this caller, in which the response is a turn; \
                    not with previous_response_id",
                "oneOf": [
                    {"type": "null"},
                    {"type": "string", "pattern": CONVERSATION},
                    object(&["id"], &json!({"id": {"type": "string", "pattern": CONVERSATION}})),
                ],
            },
            "stream": flag,
            "stream_options": {
                "description": "Only where stream is true",
                "oneOf": [{"type": "null"},
                    object(&[], &json!({"include_obfuscation": only(&[json!(false)])}))],
            },
            "background": {"type": ["boolean", "null"], "description": "Only where store is not false"},
            "store": flag,
            "max_output_tokens": {
                "type": ["integer", "null"], "minimum": 1, "maximum": i64::MAX,
            },
            "temperature": number(0.0, 2.0, Some(1.0)),
            "top_p": number(0.0, 1.0, Some(1.0)),
            "presence_penalty": number(-2.0, 2.0, Some(0.0)),
            "frequency_penalty": number(-2.0, 2.0, Some(0.0)),
            "reasoning": {"oneOf": [{"type": "null"}, object(&[], &json!({
                "effort": only(&["none", "low", "medium", "high"].map(Value::from)),
                "summary": {"type": "null"},
            }))]},
            "text": text_parameter(),
            "tools": {"type": ["array", "null"], "maxItems": 128, "items": tool},
            "tool_choice": only(&["auto", "none"].map(Value::from)),
            "parallel_tool_calls": flag,
            "metadata": metadata(),
            "include": {"type": ["array", "null"], "maxItems": 0},
            "service_tier": only(&["auto", "default"].map(Value::from)),
            "top_logprobs": only(&[json!(0)]),
            "truncation": only(&[json!("disabled")]),
            "user": hint(),
            "safety_identifier": hint(),
            "prompt_cache_key": hint(),
        }),
    )
}

fn response() -> Value {
    let tokens = json!({"type": "integer", "minimum": 0});
    let usage = reply_object(
        &[
            "input_tokens",
            "input_tokens_details",
            "output_tokens",
            "output_tokens_details",
            "total_tokens",
        ],
        &json!({
            "input_tokens": tokens, "output_tokens": tokens, "total_tokens": tokens,
            "input_tokens_details": reply_object(&["cached_tokens", "cache_write_tokens"],
                &json!({"cached_tokens": tokens, "cache_write_tokens": tokens})),
            "output_tokens_details": reply_object(&["reasoning_tokens"],
                &json!({"reasoning_tokens": tokens})),
        }),
    );
    let error = reply_object(
        &["code", "message", "type", "param"],
        &json!({
            "code": {"type": "string"}, "message": {"type": "string"},
            "type": {"type": "string", "description": "The stable code of docs/PROTOCOL.md"},
            "param": text(),
        }),
    );
    let item = json!({
        "type": "object", "required": ["id", "type", "status"],
        "properties": {
            "id": {"type": "string"},
            "type": {"type": "string", "enum": ["message", "function_call", "reasoning"]},
            "status": {"type": "string", "enum": ["completed", "incomplete"]},
        },
    });
    let nullable = |schema: Value| json!({"oneOf": [{"type": "null"}, schema]});
    let seconds = json!({"type": ["integer", "null"]});
    let properties = json!({
        "id": {"type": "string", "pattern": "^resp_[0-9a-f]{32}([0-9a-f]{32})?$"},
        "conversation": reply_object(&["id"], &json!({"id": {"type": "string", "pattern": CONVERSATION}})),
        "object": kind("response"),
        "created_at": {"type": "integer"},
        "completed_at": seconds,
        "status": {"type": "string", "enum": ["queued", "in_progress", "completed", "incomplete",
            "cancelled", "failed"]},
        "error": nullable(error),
        "incomplete_details": nullable(reply_object(&["reason"],
            &json!({"reason": kind("max_output_tokens")}))),
        "output": {"type": "array", "items": item},
        "usage": nullable(usage),
        "background": {"type": "boolean"},
        "instructions": text(),
        "max_output_tokens": seconds,
        "max_tool_calls": {"type": "null"},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        "model": {"type": "string"},
        "parallel_tool_calls": {"type": "boolean"},
        "previous_response_id": text(),
        "prompt_cache_key": text(),
        "reasoning": reply_object(&["effort", "summary"], &json!({"effort": text(), "summary": text()})),
        "safety_identifier": text(),
        "service_tier": {"type": "string"},
        "store": {"type": "boolean"},
        "temperature": {"type": "number"},
        "text": {"type": "object", "required": ["format", "verbosity"]},
        "tool_choice": {"type": "string", "enum": ["auto", "none"]},
        "tools": {"type": "array", "items": {"type": "object"}},
        "top_logprobs": {"type": "integer"},
        "top_p": {"type": "number"},
        "presence_penalty": {"type": "number"}, "frequency_penalty": {"type": "number"},
        "truncation": {"type": "string"},
        "user": text(),
    });
    // Only a turn of a conversation has that.
    let names = properties.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let names: Vec<&str> = names.filter(|name| *name != "conversation").collect();
    reply_object(&names, &properties)
}
