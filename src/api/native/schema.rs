//! The schemas of request fields, with every form that [`crate::http::extract::lax`] reads.

use serde_json::{Value, json};
use utoipa::openapi::schema::{AnyOfBuilder, KnownFormat, SchemaFormat, Type};
use utoipa::openapi::{ArrayBuilder, ObjectBuilder};

const INTEGER_AS_TEXT: &str = r"^\s*[+-]?\d+(_\d+)*(\.0+)?\s*$";
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

/// Returns the schema of `stream`.
pub fn stream() -> AnyOfBuilder {
    with_flags(any_of("Whether the answer is streamed", Some(json!(false)))).item(null())
}

/// Returns the schema of `temperature`.
pub fn temperature() -> AnyOfBuilder {
    any_of("0 to 2, also as text", Some(json!(0.7)))
        .item(typed(Type::Number).minimum(Some(0)).maximum(Some(2)))
        .item(typed(Type::String))
        .item(null())
}

/// Returns the schema of `max_tokens`.
pub fn max_tokens() -> AnyOfBuilder {
    let description = "Tokens of the answer, at most: 1 or more, also as text; -1 for as many as \
        are allowed";
    any_of(description, Some(json!(1000)))
        .item(typed(Type::Integer).minimum(Some(1)))
        .item(typed(Type::Integer).enum_values(Some([-1])))
        .item(integer_as_text())
        .item(null())
}

/// Returns the schema of `seed`.
pub fn seed() -> AnyOfBuilder {
    any_of("For repeatable answers; also as text", None)
        .item(typed(Type::Integer))
        .item(integer_as_text())
        .item(null())
}

/// Returns the schema of `stop`.
pub fn stop() -> AnyOfBuilder {
    let text = || typed(Type::String).min_length(Some(1)).max_length(Some(256));
    let description = "A text that ends the answer, or up to four, of at most 256 bytes each";
    any_of(description, None)
        .item(text())
        .item(ArrayBuilder::new().items(text()).max_items(Some(4)))
        .item(null())
}

/// Returns the schema of `think`.
pub fn think() -> AnyOfBuilder {
    let description = "Whether a model that supports reasoning reasons before it answers, and how \
        hard. A model without levels of effort may refuse one";
    let efforts = typed(Type::String).enum_values(Some(["low", "medium", "high"]));
    with_flags(any_of(description, Some(json!(false))).item(efforts)).item(null())
}
