//! The schemas of request fields, with every form that [`crate::http::extract::lax`] reads.

use serde_json::{Value, json};
use utoipa::openapi::schema::{AnyOfBuilder, KnownFormat, SchemaFormat, Type};
use utoipa::openapi::{ArrayBuilder, ObjectBuilder};
use utoipa::{IntoParams, ToSchema};

use crate::api::answer_rules::{NAME_PATTERN, STOP_BYTES, STOPS, TOOLS};
use crate::api::large_body::PIXEL;
use crate::session::image::MESSAGE_IMAGES;

/// Characters of a model's name, at most.
pub const MODEL_CHARACTERS: usize = 256;
/// Characters of the identifier of a call, at most.
pub const TOOL_CALL_ID_CHARACTERS: usize = 256;

/// The header that resumes an event stream.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "only its description is used")]
pub struct LastEventId {
    /// The cursor to resume after.
    #[param(rename = "Last-Event-ID", required = false)]
    cursor: String,
}

/// An event of a stream of server-sent events.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only its description is used")]
pub struct ServerSentEvent {
    /// The event, as over a WebSocket: a JSON object.
    #[schema(content_media_type = "application/json")]
    data: String,
    /// Its cursor; absent where it has none.
    #[schema(required = false, nullable = false)]
    id: Option<String>,
}

const INTEGER_AS_TEXT: &str = r"^[+-]?\d{1,18}$";
const TOKENS_AS_TEXT: &str = r"^(\+?0{0,9}[1-9]\d{0,17}|-1)$";
const TEMPERATURE_AS_TEXT: &str = r"^\+?(0*[01](\.\d*)?|0*2(\.0*)?|\.\d+)$";
/// A model's name, with its host, namespace and tag or without: a part of what is read, in the way
/// that names are written.
const MODEL_NAME: &str = r"^\s*(([A-Za-z0-9_.-]{1,64}(:[0-9]{1,5})?/)?[A-Za-z0-9_-]{1,64}/)?[A-Za-z0-9_.-]{1,64}(:[A-Za-z0-9_.-]{1,32})?\s*$";
const WORDS: [&str; 12] = ["true", "t", "yes", "y", "on", "1", "false", "f", "no", "n", "off", "0"];

fn any_of(description: &str, default: Option<Value>) -> AnyOfBuilder {
    AnyOfBuilder::new().description(Some(description)).default(default)
}

fn typed(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(kind)
}

fn null() -> ObjectBuilder {
    typed(Type::Null)
}

fn integer_as_text() -> ObjectBuilder {
    typed(Type::String).pattern(Some(INTEGER_AS_TEXT))
}

fn boolean_as_number() -> ObjectBuilder {
    typed(Type::Boolean).description(Some("1 or 0"))
}

fn with_flags(forms: AnyOfBuilder) -> AnyOfBuilder {
    forms
        .item(typed(Type::Boolean))
        .item(typed(Type::Integer).enum_values(Some([0, 1])))
        .item(typed(Type::String).enum_values(Some(WORDS)).description(Some("In any case")))
}

/// Returns the schema of `session_id`.
pub fn session_id() -> AnyOfBuilder {
    let description = "The session; a new one where absent, null or empty. An unknown one is \
        created. The nil UUID is refused";
    any_of(description, None)
        .item(typed(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))))
        .item(typed(Type::String).max_length(Some(0)))
        .item(null())
}

/// Returns the schema of `model`.
pub fn model() -> AnyOfBuilder {
    any_of("The model; the configured one where absent or null", None)
        .item(typed(Type::String).pattern(Some(MODEL_NAME)).max_length(Some(MODEL_CHARACTERS)))
        .item(null())
}

/// Returns the schema of `stream`.
pub fn stream() -> AnyOfBuilder {
    with_flags(any_of("Whether the answer is streamed", Some(json!(false)))).item(null())
}

/// Returns the schema of `pinned` and `archived`.
pub fn session_flag() -> AnyOfBuilder {
    with_flags(any_of("Whether the session has this flag; it stays where absent or null", None))
        .item(null())
}

/// Returns the schema of `temperature`.
pub fn temperature() -> AnyOfBuilder {
    any_of("0 to 2, also as text", Some(json!(0.7)))
        .item(typed(Type::Number).minimum(Some(0)).maximum(Some(2)))
        .item(typed(Type::String).pattern(Some(TEMPERATURE_AS_TEXT)))
        .item(boolean_as_number())
        .item(null())
}

/// Returns the schema of `max_tokens`.
pub fn max_tokens() -> AnyOfBuilder {
    let description = "Tokens of the answer, at most: 1 or more, also as text; -1 for as many as \
        are allowed";
    any_of(description, Some(json!(1000)))
        .item(typed(Type::Integer).minimum(Some(1)).maximum(Some(i64::MAX as isize)))
        .item(typed(Type::Integer).enum_values(Some([-1])))
        .item(typed(Type::String).pattern(Some(TOKENS_AS_TEXT)))
        .item(typed(Type::Boolean).enum_values(Some([true])).description(Some("1")))
        .item(null())
}

/// Returns the schema of `seed`.
pub fn seed() -> AnyOfBuilder {
    any_of("For repeatable answers; also as text", None)
        .item(
            typed(Type::Integer).minimum(Some(i64::MIN as isize)).maximum(Some(i64::MAX as isize)),
        )
        .item(integer_as_text())
        .item(boolean_as_number())
        .item(null())
}

/// Returns the schema of `stop`.
pub fn stop() -> AnyOfBuilder {
    // A schema counts characters: up to 64 of any kind are at most 256 bytes.
    let ascii = format!(r"^[\x01-\x7f]{{1,{STOP_BYTES}}}$");
    let ascii = || typed(Type::String).pattern(Some(ascii.clone()));
    let any = || typed(Type::String).min_length(Some(1)).max_length(Some(STOP_BYTES / 4));
    let text = || AnyOfBuilder::new().item(ascii()).item(any());
    let description = "A text that ends the answer, or up to four, of at most 256 bytes each";
    any_of(description, None)
        .item(ascii())
        .item(any())
        .item(ArrayBuilder::new().items(text()).max_items(Some(STOPS)))
        .item(null())
}

/// Returns the schema of `think`.
pub fn think() -> AnyOfBuilder {
    let description = "Whether a model that supports reasoning reasons before it answers, and how \
        hard. A model without levels of effort may refuse one";
    let efforts = typed(Type::String).enum_values(Some(["low", "medium", "high"]));
    with_flags(any_of(description, Some(json!(false))).item(efforts)).item(null())
}

/// Returns the schema of `images`.
pub fn images() -> AnyOfBuilder {
    let description = "PNG, JPEG, WebP or GIF, in base64; at most 4, and 4 MiB together after \
        decoding. Only for a model that takes images";
    let image = typed(Type::String).enum_values(Some([PIXEL])).description(Some("Any image"));
    let list = ArrayBuilder::new().items(image).max_items(Some(MESSAGE_IMAGES));
    any_of(description, None).item(list).item(null())
}

/// Returns the schema of `format`.
pub fn format() -> AnyOfBuilder {
    any_of("The form of the answer: any JSON, or what a schema allows", None)
        .item(typed(Type::String).enum_values(Some(["json"])))
        .item(typed(Type::Object))
        .item(null())
}

/// Returns the schema of `tools`.
pub fn tools() -> AnyOfBuilder {
    let text = || AnyOfBuilder::new().item(typed(Type::String)).item(null());
    let function = typed(Type::Object)
        .property("name", typed(Type::String).pattern(Some(NAME_PATTERN)))
        .property("description", text())
        .property("parameters", AnyOfBuilder::new().item(typed(Type::Object)).item(null()))
        .required("name");
    let tool = typed(Type::Object)
        .property("type", typed(Type::String).enum_values(Some(["function"])))
        .property("function", function)
        .required("type")
        .required("function");
    any_of("Functions that the model may call", None)
        .item(ArrayBuilder::new().items(tool).max_items(Some(TOOLS)))
        .item(null())
}

/// Returns the schema of `role`.
pub fn role() -> AnyOfBuilder {
    let description = "The author of the message: the user, or a tool that the model called in the last \
        answer of the session";
    any_of(description, Some(json!("user")))
        .item(typed(Type::String).enum_values(Some(["user", "tool"])))
        .item(null())
}

/// Returns the schema of `tool_call_id`.
pub fn tool_call_id() -> AnyOfBuilder {
    any_of("The call whose result the message is; only where role is tool", None)
        .item(typed(Type::String).max_length(Some(TOOL_CALL_ID_CHARACTERS)))
        .item(null())
}
