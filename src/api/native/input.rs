//! Reads and checks chat requests field by field. Pure.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::answer_rules::{STOP_BYTES, STOPS};
use crate::api::native::{answer_rules, schema};
use crate::digest::sha256_hex;
use crate::http::extract::fields::{FieldError, Fields};
use crate::http::extract::lax;
use crate::http::extract::object::Object;
use crate::model_name::ModelName;
use crate::session::image::{Image, ImageFault, ImageRef, RequestImages};
use crate::session::model::{AnswerRules, Effort, Reasoning, Sampling, TurnSpec};
use crate::session::{Anchor, GenerationId, Role, SessionId};

/// Characters of one message, at most.
pub const MESSAGE_CHARACTERS: usize = 32_768;
/// Characters of a system prompt, at most.
const SYSTEM_CHARACTERS: usize = MESSAGE_CHARACTERS;
/// Characters of a session's title, at most.
pub const TITLE_CHARACTERS: usize = 200;
const MESSAGE_ID_CHARACTERS: usize = 128;
/// The field of a WebSocket's message with the client's own identifier of it, where `message_id` names
/// another message.
pub const IDEMPOTENCY_KEY: &str = "idempotency_key";
const TEMPERATURE: (f64, f64) = (0.0, 2.0);
const DEFAULT_TEMPERATURE: f64 = 0.7;
const DEFAULT_MAX_TOKENS: u32 = 1000;
/// The value that stands for the largest allowed number of tokens.
const NO_TOKEN_LIMIT: i64 = -1;

/// Reads the largest number of tokens of the answer.
fn token_limit(fields: &mut Fields<'_>) -> u32 {
    match fields.integer("max_tokens", i64::MIN, i64::MAX) {
        None => DEFAULT_MAX_TOKENS,
        Some(NO_TOKEN_LIMIT) => u32::MAX,
        Some(tokens @ 1..) => u32::try_from(tokens).unwrap_or(u32::MAX),
        Some(_) => {
            let msg = "must be at least 1, or -1 for as many as are allowed";
            fields.refuse("max_tokens", "out_of_range", msg);
            DEFAULT_MAX_TOKENS
        }
    }
}

/// Reads the texts that end the answer: a list, or one text.
fn stops(fields: &mut Fields<'_>) -> Vec<String> {
    let Some(value) = fields.value("stop") else { return Vec::new() };
    let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let texts: Option<Vec<String>> = items
        .iter()
        .map(|item| item.as_str().filter(|text| !text.is_empty()).map(str::to_owned))
        .collect();
    let refused = match texts {
        Some(texts) if texts.len() > STOPS => {
            ("too_long", format!("must have at most {STOPS} texts"))
        }
        Some(texts) if texts.iter().any(|text| text.len() > STOP_BYTES) => {
            ("string_too_long", format!("must have at most {STOP_BYTES} bytes in each text"))
        }
        Some(texts) => return texts,
        None => ("list_type", "must be a text or a list of texts, none of them empty".to_owned()),
    };
    fields.refuse("stop", refused.0, refused.1);
    Vec::new()
}

/// Reads whether the model reasons before it answers, and how hard.
fn reasoning(fields: &mut Fields<'_>) -> Reasoning {
    let Some(value) = fields.value("think") else { return Reasoning::Off };
    let effort = match value.as_str() {
        Some("low") => Some(Effort::Low),
        Some("medium") => Some(Effort::Medium),
        Some("high") => Some(Effort::High),
        _ => None,
    };
    match (effort, lax::flag(value)) {
        (Some(effort), _) => Reasoning::Effort(effort),
        (None, Some(true)) => Reasoning::On,
        (None, Some(false)) => Reasoning::Off,
        (None, None) => {
            let msg = "must be true, false, \"low\", \"medium\" or \"high\"";
            fields.refuse("think", "enum", msg);
            Reasoning::Off
        }
    }
}

/// Reads the images of the message, in base64.
fn images(fields: &mut Fields<'_>) -> (Vec<ImageRef>, Vec<Image>) {
    let (mut references, mut images) = (Vec::new(), RequestImages::default());
    let Some(value) = fields.value("images") else { return Default::default() };
    let Some(list) = value.as_array() else {
        fields.refuse("images", "list_type", "must be a list of images in base64");
        return Default::default();
    };
    for (at, value) in list.iter().enumerate() {
        let field = format!("images[{at}]");
        let Some(text) = value.as_str() else {
            fields.refuse(&field, "string_type", "must be a string");
            continue;
        };
        if let Err(fault) = images.add(text, &mut references) {
            fields.refuse(&field, image_kind(fault), fault.to_string());
            break;
        }
    }
    (references, images.into_images())
}

fn image_kind(fault: ImageFault) -> &'static str {
    match fault {
        ImageFault::NotBase64 => "base64",
        ImageFault::UnknownFormat => "image_format",
        ImageFault::TooManyInMessage | ImageFault::TooManyInRequest => "too_long",
        ImageFault::TooLarge => "image_too_large",
    }
}

/// Reads the call whose result the message is; none of a user's message.
fn tool_call(fields: &mut Fields<'_>) -> Option<String> {
    let id = fields.text("tool_call_id", schema::TOOL_CALL_ID_CHARACTERS);
    match fields.text("role", usize::MAX) {
        None | Some("user") => None,
        Some("tool") => {
            if id.is_none_or(str::is_empty) && !fields.is_refused("tool_call_id") {
                fields.refuse("tool_call_id", "missing", "is required where role is tool");
            }
            id.map(str::to_owned)
        }
        Some(_) => {
            fields.refuse("role", "enum", "must be user or tool");
            None
        }
    }
}

/// Reads a model's name, as it is spelled, without the blanks around it.
fn model(fields: &mut Fields<'_>) -> Option<String> {
    if !fields.has("model") {
        return None;
    }
    let name = fields.required_text("model", schema::MODEL_CHARACTERS).trim();
    match ModelName::parse(name) {
        Ok(_) => Some(name.to_owned()),
        // A value that is not text has its error already.
        Err(_) if fields.is_refused("model") => None,
        Err(error) => {
            fields.refuse("model", "model_name", error.to_string());
            None
        }
    }
}

/// The fate of a turn whose client leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDisconnect {
    /// The turn continues, and its answer is stored.
    #[default]
    Continue,
    /// The turn is cancelled.
    Cancel,
}

/// A request for the answer to a message. A field that is absent or null has its default.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ChatRequest {
    /// The message: 1 to 32,768 characters, not blank.
    #[schema(min_length = 1, max_length = 32_768, pattern = r"[^\s\u0085]")]
    pub message: String,
    /// The session; a new one where absent or empty. An unknown one is created. The nil UUID is
    /// refused.
    #[schema(required = false, schema_with = schema::session_id)]
    pub session_id: Option<SessionId>,
    /// The model; the configured one where absent.
    #[schema(required = false, schema_with = schema::model)]
    pub model: Option<String>,
    /// Whether the answer is streamed.
    #[schema(required = false, schema_with = schema::stream)]
    pub stream: Option<bool>,
    /// The temperature, 0 to 2; 0.7 where absent.
    #[schema(required = false, schema_with = schema::temperature)]
    pub temperature: f64,
    /// Tokens of the answer, at most; 1000 where absent. -1 stands for as many as are allowed.
    #[schema(required = false, schema_with = schema::max_tokens)]
    pub max_tokens: u32,
    /// The system prompt, of at most 32,768 characters.
    #[schema(required = false, max_length = 32_768)]
    pub system: Option<String>,
    /// The seed, for repeatable answers.
    #[schema(required = false, schema_with = schema::seed)]
    pub seed: Option<i64>,
    /// A text that ends the answer, or a list of up to four, of at most 256 bytes each.
    #[schema(required = false, schema_with = schema::stop)]
    pub stop: Vec<String>,
    /// Whether a model that supports reasoning reasons before it answers, and how hard.
    #[schema(required = false, schema_with = schema::think)]
    pub think: Reasoning,
    /// The images of the message: PNG, JPEG, WebP or GIF, in base64; at most 4, and 4 MiB together
    /// after decoding. Only for a model that takes images.
    #[schema(required = false, schema_with = schema::images)]
    pub images: Vec<ImageRef>,
    /// The bytes of the images, until the turn takes them.
    #[serde(skip)]
    #[schema(ignore)]
    pub image_data: Vec<Image>,
    /// The format of the answer: `"json"`, or a JSON schema.
    #[schema(required = false, schema_with = schema::format)]
    pub format: Option<String>,
    /// The tools that the model may call: functions.
    #[schema(required = false, schema_with = schema::tools)]
    pub tools: Option<String>,
    /// The author of the message: the user, or a tool that the model called.
    #[schema(required = false, schema_with = schema::role)]
    pub role: Role,
    /// The call whose result the message is, where `role` is tool: one of the last answer.
    #[schema(required = false, schema_with = schema::tool_call_id)]
    pub tool_call_id: Option<String>,
    /// The message beside which the turn goes, in a request to regenerate or to edit.
    #[serde(skip)]
    #[schema(ignore)]
    pub anchor: Option<Anchor>,
    /// Whether the question keeps the images of the one that it replaces.
    #[serde(skip)]
    #[schema(ignore)]
    pub keeps_images: bool,
    /// The fate of the turn where the client leaves before its end.
    #[schema(required = false, default = "continue")]
    pub on_disconnect: OnDisconnect,
    /// The client's own identifier of the message, which its `message_received` repeats; empty means
    /// none.
    #[schema(required = false, max_length = 128)]
    pub message_id: Option<String>,
}

impl ChatRequest {
    /// Reads the body of a REST request, whose text was parsed into `object`.
    ///
    /// # Errors
    /// Every field that is not valid.
    pub fn from_body(object: &Object, text: &[u8]) -> Result<Self, Vec<FieldError>> {
        let mut fields = Fields::new("body", object);
        let mut request = Self::read(&mut fields, text);
        (request.images, request.image_data) = images(&mut fields);
        request.session_id = fields.session();
        request.on_disconnect = on_disconnect(&mut fields);
        request.message_id = own_id(&mut fields, "message_id");
        fields.finish(request)
    }

    /// Reads the body of a request to edit a question of this session.
    ///
    /// # Errors
    /// Every field that is not valid.
    pub fn from_edit(
        session: SessionId,
        object: &Object,
        text: &[u8],
    ) -> Result<Self, Vec<FieldError>> {
        let mut fields = Fields::new("body", object);
        let mut request = Self::read_edit(&mut fields, text);
        request.keeps_images = !fields.has("images");
        (request.images, request.image_data) = images(&mut fields);
        request.session_id = Some(session);
        request.on_disconnect = on_disconnect(&mut fields);
        fields.finish(request)
    }

    /// Reads the body of a request to regenerate an answer of this session.
    ///
    /// # Errors
    /// Every field that is not valid.
    pub fn from_regenerate(
        session: SessionId,
        object: &Object,
        text: &[u8],
    ) -> Result<Self, Vec<FieldError>> {
        let mut fields = Fields::new("body", object);
        let mut request = Self::read_regenerate(&mut fields, text);
        request.session_id = Some(session);
        request.on_disconnect = on_disconnect(&mut fields);
        fields.finish(request)
    }

    /// Reads a request to edit a question that came over a WebSocket.
    ///
    /// # Errors
    /// Every field that is not valid.
    pub fn from_edit_message(object: &Object, text: &[u8]) -> Result<Self, Vec<FieldError>> {
        let mut fields = Fields::new("body", object);
        let mut request = Self::read_edit(&mut fields, text);
        request.keeps_images = true;
        refuse_images(&mut fields);
        request.message_id = own_id(&mut fields, IDEMPOTENCY_KEY);
        fields.finish(request)
    }

    /// Reads a request to regenerate an answer that came over a WebSocket.
    ///
    /// # Errors
    /// Every field that is not valid.
    pub fn from_regenerate_message(object: &Object, text: &[u8]) -> Result<Self, Vec<FieldError>> {
        let mut fields = Fields::new("body", object);
        let mut request = Self::read_regenerate(&mut fields, text);
        request.message_id = own_id(&mut fields, IDEMPOTENCY_KEY);
        fields.finish(request)
    }

    /// Reads the message of a WebSocket, whose session is the socket's.
    ///
    /// # Errors
    /// Every field that is not valid.
    pub fn from_message(object: &Object, text: &[u8]) -> Result<Self, Vec<FieldError>> {
        let mut fields = Fields::new("body", object);
        let mut request = Self::read(&mut fields, text);
        refuse_images(&mut fields);
        request.message_id = own_id(&mut fields, "message_id");
        fields.finish(request)
    }

    fn read(fields: &mut Fields<'_>, text: &[u8]) -> Self {
        Self::read_with(fields, text, |fields| {
            let tool_call_id = tool_call(fields);
            (fields.required_text("message", MESSAGE_CHARACTERS).to_owned(), tool_call_id)
        })
    }

    fn read_edit(fields: &mut Fields<'_>, text: &[u8]) -> Self {
        let anchor = Some(Anchor::BesideQuestion(target(fields)));
        let request = Self::read_with(fields, text, |fields| {
            (fields.required_text("message", MESSAGE_CHARACTERS).to_owned(), None)
        });
        Self { anchor, ..request }
    }

    fn read_regenerate(fields: &mut Fields<'_>, text: &[u8]) -> Self {
        let anchor = Some(Anchor::BesideAnswer(target(fields)));
        Self { anchor, ..Self::read_with(fields, text, |_| (String::new(), None)) }
    }

    /// Reads all fields; `message` reads the text, and the call whose result it is.
    fn read_with(
        fields: &mut Fields<'_>,
        text: &[u8],
        message: impl FnOnce(&mut Fields<'_>) -> (String, Option<String>),
    ) -> Self {
        let model = model(fields);
        let AnswerRules { format, tools, .. } = answer_rules::read(fields, text);
        let (message, tool_call_id) = message(fields);
        Self {
            message,
            session_id: None,
            model,
            stream: fields.flag("stream"),
            temperature: fields.number("temperature", TEMPERATURE).unwrap_or(DEFAULT_TEMPERATURE),
            max_tokens: token_limit(fields),
            system: fields.text("system", SYSTEM_CHARACTERS).map(str::to_owned),
            seed: fields.integer("seed", i64::MIN, i64::MAX),
            stop: stops(fields),
            think: reasoning(fields),
            images: Vec::new(),
            image_data: Vec::new(),
            format,
            tools,
            role: if tool_call_id.is_some() { Role::Tool } else { Role::User },
            tool_call_id,
            anchor: None,
            keeps_images: false,
            on_disconnect: OnDisconnect::Continue,
            message_id: None,
        }
    }

    /// Returns the specification of the turn.
    pub fn spec(&self, default_model: &str) -> TurnSpec {
        TurnSpec {
            model: self.model.as_deref().unwrap_or(default_model).to_owned(),
            temperature: Some(self.temperature),
            max_tokens: self.max_tokens,
            system: self.system.clone(),
            seed: self.seed,
            stop: self.stop.clone(),
            sampling: Sampling::default(),
            rules: AnswerRules {
                format: self.format.clone(),
                tools: self.tools.clone(),
                ..AnswerRules::default()
            },
            think: self.think,
            message_id: self.message_id.clone(),
            source: String::new(),
            needs_listener: self.on_disconnect == OnDisconnect::Cancel,
            is_detached: false,
            is_kept: false,
            anchor: self.anchor,
        }
    }

    /// Returns a digest that is the same for the same request, whatever the form of its delivery and
    /// the spelling of its model. The default model is the same as none.
    pub fn digest(&self, default_model: &str) -> String {
        let key = |model: &str| match ModelName::parse(model) {
            Ok(name) => name.to_string(),
            Err(_) => model.to_owned(),
        };
        let default = key(default_model);
        let model = self.model.as_deref().map(key).filter(|model| *model != default);
        let think = match self.think {
            Reasoning::Off => Value::Bool(false),
            Reasoning::On => Value::Bool(true),
            Reasoning::Effort(effort) => serde_json::json!(effort),
        };
        let content = (
            &self.message,
            &model,
            self.temperature,
            self.max_tokens,
            &self.system,
            self.seed,
            &self.stop,
            think,
        );
        let Self { images, format, tools, tool_call_id, anchor, .. } = self;
        let is_plain =
            images.is_empty() && format.is_none() && tools.is_none() && tool_call_id.is_none();
        // A request of text alone keeps the digest that other releases give it.
        let bytes = if let Some(anchor) = anchor {
            serde_json::to_vec(&(content, images, self.keeps_images, format, tools, anchor))
        } else if is_plain {
            serde_json::to_vec(&content)
        } else {
            serde_json::to_vec(&(content, images, format, tools, tool_call_id))
        };
        sha256_hex(&bytes.unwrap_or_default())
    }
}

/// Reads what happens to the turn of a client that leaves.
fn on_disconnect(fields: &mut Fields<'_>) -> OnDisconnect {
    match fields.text("on_disconnect", usize::MAX) {
        None | Some("continue") => OnDisconnect::Continue,
        Some("cancel") => OnDisconnect::Cancel,
        Some(_) => {
            fields.refuse("on_disconnect", "enum", "must be continue or cancel");
            OnDisconnect::Continue
        }
    }
}

/// Refuses images in a message of a WebSocket.
fn refuse_images(fields: &mut Fields<'_>) {
    let has_images = |value: &Value| value.as_array().is_none_or(|it| !it.is_empty());
    if fields.value("images").is_some_and(has_images) {
        let msg = "are not taken over a WebSocket: send the message over REST, by POST \
            /api/v1/chat with this session_id; this socket gets its events";
        fields.refuse("images", "images_over_websocket", msg);
    }
}

/// Reads the client's own identifier of a message of a WebSocket. An empty one counts as absent, as an
/// empty `session_id` does.
/// Reads the client's own identifier of a request from this field; an empty one is none.
pub fn own_id(fields: &mut Fields<'_>, field: &str) -> Option<String> {
    let id = fields.text(field, MESSAGE_ID_CHARACTERS);
    id.filter(|id| !id.is_empty()).map(str::to_owned)
}

/// Reads the message that a request names by its `message_id`.
fn target(fields: &mut Fields<'_>) -> Uuid {
    if !fields.has("message_id") {
        fields.refuse("message_id", "missing", "is required");
    }
    fields.uuid("message_id").unwrap_or_default()
}

/// Reads the `message_id` of a message whose branch is to be selected.
///
/// # Errors
/// Where it is absent, or no UUID.
pub fn branch_target(object: &Object) -> Result<Uuid, Vec<FieldError>> {
    let mut fields = Fields::new("body", object);
    let message = target(&mut fields);
    fields.finish(message)
}

/// Reads the `generation_id` of a cancel.
///
/// # Errors
/// Where it is not a UUID.
pub fn cancel_target(object: &Object) -> Result<Option<GenerationId>, Vec<FieldError>> {
    let mut fields = Fields::new("body", object);
    let generation = fields.uuid("generation_id").map(GenerationId);
    fields.finish(generation)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    const DEFAULT: &str = "llama3:latest";

    fn body(value: &Value) -> Result<ChatRequest, Vec<(String, &'static str)>> {
        let object = value.as_object().expect("an object").clone().into();
        ChatRequest::from_body(&object, b"{}").map_err(|errors| {
            errors.into_iter().map(|error| (error.loc.join("."), error.kind)).collect()
        })
    }

    #[test]
    fn null_and_absent_stand_for_the_default_and_unknown_fields_are_ignored() {
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
    fn every_field_that_is_not_valid_is_reported_at_once() {
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
        let system =
            |characters| body(&json!({"message": "hi", "system": "三".repeat(characters)}));
        assert!(system(MESSAGE_CHARACTERS).is_ok());
        let long = system(MESSAGE_CHARACTERS + 1).expect_err("too long");
        assert_eq!(long, [("body.system".to_owned(), "string_too_long")]);
    }

    #[test]
    fn the_form_of_delivery_does_not_change_the_digest() {
        let plain = body(&json!({"message": "hi"})).expect("valid");
        let stream = body(&json!({"message": "hi", "stream": true})).expect("valid");
        let other = body(&json!({"message": "hi", "seed": 1})).expect("valid");
        assert_eq!(plain.digest(DEFAULT), stream.digest(DEFAULT));
        assert_ne!(plain.digest(DEFAULT), other.digest(DEFAULT));
    }

    #[test]
    fn a_request_is_the_same_in_whichever_form_it_is_written() {
        let plain = json!({
            "message": "hi", "temperature": 0, "max_tokens": 5, "seed": 7, "stop": ["X"],
            "think": true, "stream": true, "session_id": null,
        });
        let other = json!({
            "message": "hi", "temperature": "-0.0", "max_tokens": "5.0", "seed": 7.0, "stop": "X",
            "think": "yes", "stream": 1, "session_id": "",
        });
        let (plain, other) = (body(&plain).expect("valid"), body(&other).expect("valid"));
        assert_eq!(plain, other);
        assert_eq!(plain.digest(DEFAULT), other.digest(DEFAULT));
    }

    #[test]
    fn every_spelling_of_a_model_has_the_same_digest() {
        let digest =
            |model| body(&json!({"message": "hi", "model": model})).expect("valid").digest(DEFAULT);
        for spelling in [
            "tinyllama",
            "TinyLlama",
            " tinyllama:LATEST ",
            "registry.ollama.ai/library/tinyllama:latest",
        ] {
            assert_eq!(digest(spelling), digest("tinyllama:latest"), "{spelling}");
        }
        assert_ne!(digest("tinyllama:1b"), digest("tinyllama:latest"));
        // The default model is the same as null and as no model.
        let none = body(&json!({"message": "hi"})).expect("valid").digest(DEFAULT);
        let null = body(&json!({"message": "hi", "model": null})).expect("valid").digest(DEFAULT);
        assert_eq!((&none, &digest("Llama3"), &digest(DEFAULT)), (&null, &null, &null));
        assert_ne!(digest("tinyllama:latest"), none);
    }

    #[test]
    fn a_number_is_the_same_as_a_number_and_as_text() {
        for digits in ["0.9950955264838783", "1.9999999999999998", "0.30000000000000004", "7e-1"] {
            let read = |text: &str| {
                let text = format!(r#"{{"message": "hi", "temperature": {text}}}"#);
                let object = Object::parse(text.as_bytes()).expect("an object");
                ChatRequest::from_body(&object, b"{}").expect("valid")
            };
            let (number, text) = (read(digits), read(&format!("\"{digits}\"")));
            assert!(number.temperature.total_cmp(&text.temperature).is_eq(), "{digits}");
            assert_eq!(number.digest(DEFAULT), text.digest(DEFAULT), "{digits}");
        }
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let outcome = runner.run(&(0u64..20_000_000_000_000_000), |digits| {
            let digits = format!("0.{digits:017}");
            let number: Value = serde_json::from_str(&digits).expect("a number");
            let text: f64 = digits.parse().expect("a number");
            proptest::prop_assert_eq!(number.as_f64().map(f64::to_bits), Some(text.to_bits()));
            Ok(())
        });
        outcome.expect("the same number");
    }

    #[test]
    fn an_empty_message_id_counts_as_absent() {
        let message_id = |id: &str| {
            let object = json!({"message": "hi", "message_id": id});
            let object = object.as_object().expect("an object").clone().into();
            ChatRequest::from_message(&object, b"{}").expect("valid").message_id
        };
        assert_eq!(message_id(""), None);
        assert_eq!(message_id("1").as_deref(), Some("1"));
    }

    /// A repeat may meet a replica of another release.
    #[test]
    fn the_digest_of_a_request_stays_what_it_was() {
        let digest = |value| body(&value).expect("valid").digest(DEFAULT);
        assert_eq!(
            digest(json!({"message": "hi"})),
            "761620f22d0a8f66c22ec4135b63c72744ccc16401dcdca8f4cd9d6153206d40"
        );
        assert_eq!(
            digest(json!({"message": "hi", "stop": ["X"], "think": true})),
            "7588c9e384198338bc9a72e90cfe12f3e37532162bdeef6ccda3aec3dbec56f1"
        );
    }

    #[test]
    fn minus_one_is_the_largest_number_of_tokens_and_lower_numbers_are_refused() {
        let tokens = |value: Value| {
            body(&json!({"message": "hi", "max_tokens": value})).map(|request| request.max_tokens)
        };
        for most in [json!(-1), json!("-1"), json!(-1.0), json!(u64::MAX)] {
            assert_eq!(tokens(most.clone()), Ok(u32::MAX), "{most}");
        }
        for none in [json!(0), json!(-2), json!("0"), json!(false)] {
            let errors = tokens(none.clone()).expect_err("out of range");
            assert_eq!(errors, [("body.max_tokens".to_owned(), "out_of_range")], "{none}");
        }
    }

    #[test]
    fn stop_is_one_text_or_a_list_within_bounds() {
        let stop = |value: Value| {
            body(&json!({"message": "hi", "stop": value}))
                .map(|request| request.stop)
                .map_err(|errors| errors[0].1)
        };
        assert_eq!(stop(json!("X")), Ok(vec!["X".to_owned()]));
        assert_eq!(stop(json!(["a", "b"])), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(stop(json!([])), Ok(Vec::new()));
        assert_eq!(stop(json!(["é".repeat(128)])).map(|stop| stop.len()), Ok(1));
        assert_eq!(stop(json!("x".repeat(257))), Err("string_too_long"));
        assert_eq!(stop(json!(["a", "é".repeat(129)])), Err("string_too_long"));
        assert_eq!(stop(json!(["a", "b", "c", "d", "e"])), Err("too_long"));
        for neither in [json!(""), json!([""]), json!(1), json!([1]), json!({"a": 1})] {
            assert_eq!(stop(neither.clone()), Err("list_type"), "{neither}");
        }
    }

    #[test]
    fn think_is_a_flag_or_one_of_three_efforts() {
        let think = |value: Value| {
            body(&json!({"message": "hi", "think": value}))
                .map(|request| request.think)
                .map_err(|errors| errors[0].1)
        };
        assert_eq!(think(json!("low")), Ok(Reasoning::Effort(Effort::Low)));
        assert_eq!(think(json!("medium")), Ok(Reasoning::Effort(Effort::Medium)));
        assert_eq!(think(json!("high")), Ok(Reasoning::Effort(Effort::High)));
        assert_eq!(think(json!("true")), Ok(Reasoning::On));
        assert_eq!(think(json!(0)), Ok(Reasoning::Off));
        for neither in [json!("highest"), json!(2), json!([]), json!("")] {
            assert_eq!(think(neither.clone()), Err("enum"), "{neither}");
        }
    }

    #[test]
    fn an_empty_session_counts_as_absent_and_the_nil_uuid_is_refused() {
        let session = |id: &str| {
            body(&json!({"message": "hi", "session_id": id}))
                .map(|request| request.session_id)
                .map_err(|errors| errors[0].1)
        };
        assert_eq!(session(""), Ok(None));
        assert_eq!(session("00000000-0000-0000-0000-000000000000"), Err("uuid_nil"));
        assert_eq!(session(" "), Err("uuid_parsing"));
        let id = Uuid::new_v4();
        assert_eq!(session(&id.to_string()), Ok(Some(SessionId(id))));
    }

    #[test]
    fn a_lone_surrogate_is_refused_where_it_is_read_and_ignored_elsewhere() {
        let read = |text: &str| {
            let object = Object::parse(text.as_bytes()).expect("an object");
            ChatRequest::from_body(&object, b"{}").map_err(|errors| {
                errors
                    .into_iter()
                    .map(|error| (error.loc[1].clone(), error.kind))
                    .collect::<Vec<_>>()
            })
        };
        let refused = |field: &str| Err(vec![(field.to_owned(), "string_unicode")]);
        assert_eq!(read(r#"{"message": "a\ud800"}"#), refused("message"));
        assert_eq!(read(r#"{"message": "a", "model": "\udc00"}"#), refused("model"));
        assert_eq!(read(r#"{"message": "a", "stop": ["\ud800"]}"#), refused("stop"));
        assert_eq!(read(r#"{"message": "a", "session_id": "\ud800"}"#), refused("session_id"));
        let request = read(r#"{"message": "a\ud83d\ude00", "note": "\ud800", "\udc00": 1}"#);
        assert_eq!(request.map(|request| request.message), Ok("a\u{1f600}".to_owned()));
    }
}
