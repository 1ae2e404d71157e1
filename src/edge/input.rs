//! What clients ask for, checked field by field. Pure.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::model_name::ModelName;
use crate::session::model::TurnSpec;
use crate::session::{GenerationId, SessionId};

/// Characters of one message, at most.
pub const MESSAGE_CHARACTERS: usize = 32_768;
/// Characters of a session's title, at most.
pub const TITLE_CHARACTERS: usize = 200;
/// Messages of one reply, at most, and where nothing is said.
pub const PAGE_LIMIT: (i64, i64) = (500, 50);
const MODEL_CHARACTERS: usize = 256;
const MESSAGE_ID_CHARACTERS: usize = 128;
const STOPS: usize = 4;
const TEMPERATURE: (f64, f64) = (0.0, 2.0);
const DEFAULT_TEMPERATURE: f64 = 0.7;
const DEFAULT_MAX_TOKENS: u32 = 1000;

/// One field that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Where: `body`, `query`, `path` or `header`, then the field.
    pub loc: Vec<String>,
    /// For people.
    pub msg: String,
    /// Stable, `snake_case`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

impl FieldError {
    /// An error in `field` of `place`.
    pub fn new(place: &str, field: &str, kind: &'static str, msg: impl Into<String>) -> Self {
        Self { loc: vec![place.to_owned(), field.to_owned()], msg: msg.into(), kind }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.loc.last() {
            Some(field) => write!(f, "{field}: {}", self.msg),
            None => f.write_str(&self.msg),
        }
    }
}

/// Reads the fields of an object, and gathers what is wrong with them. `null` is as good as absent,
/// and a number may be written as text, as in a query.
pub struct Fields<'a> {
    place: &'static str,
    map: &'a Map<String, Value>,
    errors: Vec<FieldError>,
}

impl<'a> Fields<'a> {
    /// Of an object that stands in `place` of the request.
    pub fn new(place: &'static str, map: &'a Map<String, Value>) -> Self {
        Self { place, map, errors: Vec::new() }
    }

    /// Notes an error.
    pub fn refuse(&mut self, field: &str, kind: &'static str, msg: impl Into<String>) {
        self.errors.push(FieldError::new(self.place, field, kind, msg));
    }

    /// What was gathered, with `value` if that is nothing.
    ///
    /// # Errors
    /// Every field that is not as it should be.
    pub fn finish<T>(self, value: T) -> Result<T, Vec<FieldError>> {
        if self.errors.is_empty() { Ok(value) } else { Err(self.errors) }
    }

    fn value(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// A text of at most `longest` characters.
    pub fn text(&mut self, field: &str, longest: usize) -> Option<&'a str> {
        let Some(text) = self.value(field)?.as_str() else {
            self.refuse(field, "string_type", "must be a string");
            return None;
        };
        // Bytes are never fewer than characters, and cheaper to count.
        if text.len() > longest && text.chars().count() > longest {
            let msg = format!("must have at most {longest} characters");
            self.refuse(field, "string_too_long", msg);
            return None;
        }
        Some(text)
    }

    /// A text that is there, of at most `longest` characters, and not blank.
    pub fn required_text(&mut self, field: &str, longest: usize) -> &'a str {
        if self.value(field).is_none() {
            self.refuse(field, "missing", "is required");
            return "";
        }
        let text = self.text(field, longest).unwrap_or("-");
        if text.trim().is_empty() {
            self.refuse(field, "string_too_short", "must not be blank");
        }
        text
    }

    /// `true` or `false`.
    pub fn flag(&mut self, field: &str) -> Option<bool> {
        let flag = self.value(field)?.as_bool();
        if flag.is_none() {
            self.refuse(field, "bool_type", "must be true or false");
        }
        flag
    }

    /// A number from `least` to `most`.
    pub fn number(&mut self, field: &str, (least, most): (f64, f64)) -> Option<f64> {
        let value = self.value(field)?;
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        match number {
            Some(number) if (least..=most).contains(&number) => Some(number),
            Some(_) => {
                self.refuse(field, "out_of_range", format!("must be from {least} to {most}"));
                None
            }
            None => {
                self.refuse(field, "float_type", "must be a number");
                None
            }
        }
    }

    /// A whole number from `least` to `most`.
    pub fn integer(&mut self, field: &str, least: i64, most: i64) -> Option<i64> {
        let value = self.value(field)?;
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_i64().or_else(|| whole(other)),
        };
        match number {
            Some(number) if (least..=most).contains(&number) => Some(number),
            Some(_) => {
                let msg = if most == i64::MAX {
                    format!("must be at least {least}")
                } else {
                    format!("must be from {least} to {most}")
                };
                self.refuse(field, "out_of_range", msg);
                None
            }
            None => {
                self.refuse(field, "int_type", "must be a whole number");
                None
            }
        }
    }

    /// A UUID.
    pub fn uuid(&mut self, field: &str) -> Option<Uuid> {
        let value = self.value(field)?;
        let uuid = value.as_str().and_then(|text| Uuid::try_parse(text).ok());
        if uuid.is_none() {
            self.refuse(field, "uuid_parsing", "must be a UUID");
        }
        uuid
    }

    /// How many items are wanted on a page, from `least` on.
    pub fn page_limit(&mut self, least: i64) -> u64 {
        let (most, default) = PAGE_LIMIT;
        self.integer("limit", least, most).unwrap_or(default).unsigned_abs()
    }

    /// A model's name, as it is spelled but for blanks around it.
    fn model(&mut self) -> Option<String> {
        self.value("model")?;
        let errors = self.errors.len();
        let name = self.required_text("model", MODEL_CHARACTERS).trim();
        if self.errors.len() > errors {
            return None;
        }
        match ModelName::parse(name) {
            Ok(_) => Some(name.to_owned()),
            Err(error) => {
                self.refuse("model", "model_name", error.to_string());
                None
            }
        }
    }

    fn stops(&mut self) -> Vec<String> {
        let Some(value) = self.value("stop") else { return Vec::new() };
        let texts: Option<Vec<String>> = value.as_array().and_then(|items| {
            items
                .iter()
                .map(|item| item.as_str().filter(|text| !text.is_empty()).map(str::to_owned))
                .collect()
        });
        match texts {
            Some(texts) if texts.len() <= STOPS => texts,
            Some(_) => {
                self.refuse("stop", "too_long", format!("must have at most {STOPS} texts"));
                Vec::new()
            }
            None => {
                self.refuse("stop", "list_type", "must be a list of texts that are not empty");
                Vec::new()
            }
        }
    }
}

/// A whole number that was written with a point, or beyond what an `i64` holds.
fn whole(value: &Value) -> Option<i64> {
    let number = value.as_f64().filter(|number| number.fract() == 0.0)?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it saturates, and bounds are checked after"
    )]
    Some(number as i64)
}

/// What becomes of a turn whose client goes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDisconnect {
    /// It runs on, and the answer is kept.
    #[default]
    Continue,
    /// It is cancelled.
    Cancel,
}

/// A message to the model, as asked for. Where a field is absent or null, its default holds.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ChatRequest {
    /// The text: 1 to 32,768 characters, not blank.
    #[schema(min_length = 1, max_length = 32_768)]
    pub message: String,
    /// The session that it belongs to; a new one where absent. One that is not known is created.
    #[schema(required = false, value_type = Option<Uuid>)]
    pub session_id: Option<SessionId>,
    /// The model; the configured one where absent.
    #[schema(required = false, max_length = 256)]
    pub model: Option<String>,
    /// Whether the answer comes piece by piece.
    #[schema(required = false, default = false)]
    pub stream: Option<bool>,
    /// 0 to 2.
    #[schema(required = false, default = 0.7, minimum = 0, maximum = 2)]
    pub temperature: f64,
    /// Tokens of the answer, at most.
    #[schema(required = false, default = 1000, minimum = 1)]
    pub max_tokens: u32,
    /// The system prompt.
    #[schema(required = false)]
    pub system: Option<String>,
    /// For repeatable answers.
    #[schema(required = false)]
    pub seed: Option<i64>,
    /// Up to four texts that end the answer.
    #[schema(required = false, max_items = 4)]
    pub stop: Vec<String>,
    /// Whether a thinking model may think.
    #[schema(required = false, default = false)]
    pub think: bool,
    /// What becomes of the turn if the client goes away before its end.
    #[schema(required = false, default = "continue")]
    pub on_disconnect: OnDisconnect,
    /// The client's own identifier of the message, only over a WebSocket.
    #[schema(ignore)]
    pub message_id: Option<String>,
}

impl ChatRequest {
    /// Checks a REST request's body.
    ///
    /// # Errors
    /// Every field that is not as it should be.
    pub fn from_body(map: &Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let mut fields = Fields::new("body", map);
        let mut request = Self::read(&mut fields);
        request.session_id = fields.uuid("session_id").map(SessionId);
        match fields.text("on_disconnect", usize::MAX) {
            None | Some("continue") => {}
            Some("cancel") => request.on_disconnect = OnDisconnect::Cancel,
            Some(_) => fields.refuse("on_disconnect", "enum", "must be continue or cancel"),
        }
        fields.finish(request)
    }

    /// Checks a WebSocket's message, whose session is the socket's.
    ///
    /// # Errors
    /// Every field that is not as it should be.
    pub fn from_message(map: &Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let mut fields = Fields::new("body", map);
        let mut request = Self::read(&mut fields);
        request.message_id = fields.text("message_id", MESSAGE_ID_CHARACTERS).map(str::to_owned);
        fields.finish(request)
    }

    fn read(fields: &mut Fields<'_>) -> Self {
        let model = fields.model();
        Self {
            message: fields.required_text("message", MESSAGE_CHARACTERS).to_owned(),
            session_id: None,
            model,
            stream: fields.flag("stream"),
            temperature: fields.number("temperature", TEMPERATURE).unwrap_or(DEFAULT_TEMPERATURE),
            max_tokens: fields
                .integer("max_tokens", 1, i64::MAX)
                .map_or(DEFAULT_MAX_TOKENS, |tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
            system: fields.text("system", usize::MAX).map(str::to_owned),
            seed: fields.integer("seed", i64::MIN, i64::MAX),
            stop: fields.stops(),
            think: fields.flag("think").unwrap_or(false),
            on_disconnect: OnDisconnect::Continue,
            message_id: None,
        }
    }

    /// What the generation side is asked for.
    pub fn spec(&self, default_model: &str) -> TurnSpec {
        TurnSpec {
            model: self.model.as_deref().unwrap_or(default_model).to_owned(),
            temperature: self.temperature,
            max_tokens: self.max_tokens,
            system: self.system.clone(),
            seed: self.seed,
            stop: self.stop.clone(),
            think: self.think,
            message_id: self.message_id.clone(),
            source: String::new(),
        }
    }

    /// The same for the same question, however its answer is to be delivered.
    pub fn digest(&self) -> String {
        let asked = (
            &self.message,
            &self.model,
            self.temperature,
            self.max_tokens,
            &self.system,
            self.seed,
            &self.stop,
            self.think,
        );
        hex_digest(&serde_json::to_vec(&asked).unwrap_or_default())
    }
}

/// SHA-256 in lowercase hexadecimal.
pub fn hex_digest(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Reads the `generation_id` of a cancel.
///
/// # Errors
/// Where it is no UUID.
pub fn cancel_target(map: &Map<String, Value>) -> Result<Option<GenerationId>, Vec<FieldError>> {
    let mut fields = Fields::new("body", map);
    let generation = fields.uuid("generation_id").map(GenerationId);
    fields.finish(generation)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(value: &Value) -> Result<ChatRequest, Vec<(String, &'static str)>> {
        ChatRequest::from_body(value.as_object().expect("an object")).map_err(|errors| {
            errors.into_iter().map(|error| (error.loc.join("."), error.kind)).collect()
        })
    }

    #[test]
    fn null_and_absent_mean_the_default_and_unknown_fields_mean_nothing() {
        let bare = body(&json!({"message": "hi", "user_id": "eve", "colour": 3}));
        let null = body(&json!({
            "message": "hi", "session_id": null, "model": null, "stream": null,
            "temperature": null, "max_tokens": null, "system": null, "seed": null, "stop": null,
            "think": null, "on_disconnect": null,
        }));
        assert_eq!(bare, null);
        let request = bare.expect("valid");
        assert!((request.temperature - 0.7).abs() < f64::EPSILON);
        assert_eq!(request.max_tokens, 1000);
        assert_eq!(request.spec("tinyllama:latest").model, "tinyllama:latest");
    }

    #[test]
    fn zero_is_a_temperature() {
        let request = body(&json!({"message": "hi", "temperature": 0})).expect("valid");
        assert!(request.temperature.abs() < f64::EPSILON);
    }

    #[test]
    fn every_wrong_field_is_told_at_once() {
        let errors = body(&json!({
            "message": " \n", "session_id": "one", "model": 7, "stream": "maybe",
            "temperature": 2.1, "max_tokens": 0, "seed": 1.5, "stop": ["a", "b", "c", "d", "e"],
            "on_disconnect": "panic",
        }))
        .expect_err("invalid");
        insta::assert_snapshot!(
            errors.iter().map(|(loc, kind)| format!("{loc} {kind}")).collect::<Vec<_>>().join("\n"),
            @r"
        body.model string_type
        body.message string_too_short
        body.stream bool_type
        body.temperature out_of_range
        body.max_tokens out_of_range
        body.seed int_type
        body.stop too_long
        body.session_id uuid_parsing
        body.on_disconnect enum
        "
        );
    }

    #[test]
    fn the_longest_message_is_counted_in_characters() {
        assert!(body(&json!({"message": "三".repeat(MESSAGE_CHARACTERS)})).is_ok());
        let long = body(&json!({"message": "三".repeat(MESSAGE_CHARACTERS + 1)}));
        assert_eq!(long.expect_err("too long"), [("body.message".to_owned(), "string_too_long")]);
    }

    #[test]
    fn how_an_answer_is_delivered_does_not_change_what_was_asked() {
        let plain = body(&json!({"message": "hi"})).expect("valid");
        let stream = body(&json!({"message": "hi", "stream": true})).expect("valid");
        let other = body(&json!({"message": "hi", "seed": 1})).expect("valid");
        assert_eq!(plain.digest(), stream.digest());
        assert_ne!(plain.digest(), other.digest());
    }
}
