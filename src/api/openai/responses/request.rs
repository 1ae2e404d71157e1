//! Reads the request of a response into a turn, and what the response shows of it again. Pure.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::super::body;
use super::super::conversation_id::parse_conversation_id;
use super::super::metadata;
use super::super::params::{INVALID_TYPE, INVALID_VALUE, Params};
use super::super::request::{DEFAULT_SAMPLING, effort, model};
use super::ResponseKey;
use super::input::{self, InputItem};
use super::rules::{self, Rules};
use crate::digest::sha256_hex;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::Object;
use crate::session::image::RequestImages;
use crate::session::model::{Effort, Reasoning, Sampling};
use crate::session::store::REQUEST_BYTES;
use crate::session::stored_message::json_size;
use crate::session::{SessionId, TurnSpec};

/// Bytes that a stored response has in addition to what its request brings, about.
const STORED_BESIDES: u64 = 4 << 10;

/// A request for a response.
#[derive(Clone, Debug)]
pub struct ResponseRequest {
    /// The request without its input.
    pub spec: TurnSpec,
    /// The input.
    pub input: Vec<InputItem>,
    /// The images of the input, until the turn takes them.
    pub images: RequestImages,
    /// The response whose conversation goes on.
    pub previous: Option<ResponseKey>,
    /// The session of the conversation in which the response is a turn.
    pub conversation: Option<SessionId>,
    /// Whether the response is streamed.
    pub stream: bool,
    /// The fields of the request that the response repeats.
    pub shown: Shown,
}

/// The parameters that a response shows again, under OpenAI's names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shown {
    /// Whether the response goes on without its client.
    pub background: bool,
    #[serde(default)]
    frequency_penalty: f64,
    /// The system prompt.
    pub instructions: Option<String>,
    max_output_tokens: Option<i64>,
    metadata: Map<String, Value>,
    /// The model, as the request spells it.
    model: String,
    parallel_tool_calls: bool,
    #[serde(default)]
    presence_penalty: f64,
    previous_response_id: Option<String>,
    prompt_cache_key: Option<String>,
    reasoning: ShownReasoning,
    safety_identifier: Option<String>,
    service_tier: String,
    /// Whether the response can be retrieved.
    pub store: bool,
    temperature: f64,
    text: Box<RawValue>,
    tool_choice: String,
    tools: Box<RawValue>,
    top_logprobs: u32,
    top_p: f64,
    truncation: String,
    user: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ShownReasoning {
    effort: Option<String>,
    summary: Option<String>,
}

impl ResponseRequest {
    /// Reads a request from its text, which was parsed into `object`.
    ///
    /// # Errors
    /// The first parameter that is not valid.
    pub fn read(object: &Object, text: &[u8]) -> Result<Self, FieldError> {
        let parameters = body::parameters(object)?;
        let mut params = Params::of_request(&parameters);
        let model = model(&mut params)?;
        let mut images = RequestImages::default();
        let input = input::read(&mut params, &mut images)?;
        let stream = params.flag("stream")?.unwrap_or(false);
        read_stream_options(&mut params, stream)?;
        let background = params.flag("background")?.unwrap_or(false);
        let store = params.flag("store")?.unwrap_or(true);
        if background && !store {
            let msg = "must not be false where background is true: the response could not be found";
            return Err(params.refuse("store", INVALID_VALUE, msg));
        }
        let (previous, previous_response_id) = read_previous(&mut params)?;
        let conversation = read_conversation(&mut params)?;
        if previous.is_some() && conversation.is_some() {
            let msg = "must not be sent with previous_response_id: it brings another conversation";
            return Err(params.refuse("conversation", INVALID_VALUE, msg));
        }
        let instructions = params.text("instructions")?.map(str::to_owned);
        let max_output_tokens = params.integer("max_output_tokens", 1)?;
        let temperature = params.number("temperature", 0.0, 2.0)?.unwrap_or(DEFAULT_SAMPLING);
        let top_p = params.number("top_p", 0.0, 1.0)?.unwrap_or(DEFAULT_SAMPLING);
        let presence_penalty = penalty(&mut params, "presence_penalty")?;
        let frequency_penalty = penalty(&mut params, "frequency_penalty")?;
        let (think, effort) = read_reasoning(&mut params)?;
        let Rules { for_host: rules, text, tools, tool_choice, parallel_tool_calls } =
            rules::read(&mut params, text)?;
        let metadata = metadata::read(&mut params)?;
        let mut hint = |name| Ok::<_, FieldError>(params.hint(name)?.map(str::to_owned));
        // These change nothing about an answer: who asks, and hints for OpenAI's own caches.
        let (user, safety_identifier) = (hint("user")?, hint("safety_identifier")?);
        let prompt_cache_key = hint("prompt_cache_key")?;
        refuse_others(&mut params)?;
        let shown = Shown {
            background,
            frequency_penalty,
            instructions: instructions.clone(),
            max_output_tokens,
            metadata,
            model: model.clone(),
            parallel_tool_calls,
            presence_penalty,
            previous_response_id,
            prompt_cache_key,
            reasoning: ShownReasoning { effort, summary: None },
            safety_identifier,
            service_tier: "default".to_owned(),
            store,
            temperature,
            text: raw(&params, "text", text)?,
            tool_choice,
            tools: raw(&params, "tools", tools)?,
            top_logprobs: 0,
            top_p,
            truncation: "disabled".to_owned(),
            user,
        };
        params.finish()?;
        let tokens = max_output_tokens.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX));
        let spec = TurnSpec {
            temperature: Some(temperature),
            system: instructions.filter(|text| !text.is_empty()),
            sampling: Sampling {
                top_p: Some(top_p),
                presence_penalty: Some(presence_penalty),
                frequency_penalty: Some(frequency_penalty),
                ..Sampling::default()
            },
            rules,
            think,
            is_detached: background,
            is_kept: store,
            ..TurnSpec::least(&model, tokens.unwrap_or(u32::MAX))
        };
        check_size(&spec, &shown)?;
        Ok(Self { spec, input, images, previous, conversation, stream, shown })
    }

    /// Returns the bytes of what a response shows of its request, as JSON.
    pub fn shown_bytes(&self) -> usize {
        json_size(&self.shown)
    }

    /// Returns a digest that is the same for the same request, streamed or not.
    pub fn digest(&self) -> String {
        let input: Vec<_> = self.input.iter().map(InputItem::for_digest).collect();
        let all = serde_json::to_vec(&(&self.spec, &self.shown, input));
        sha256_hex(&all.unwrap_or_default())
    }
}

/// Checks the bytes of the request as it is stored: once for the model, and once as the response shows it
/// again, as JSON within JSON.
fn check_size(spec: &TurnSpec, shown: &Shown) -> Result<(), FieldError> {
    let shown_again = serde_json::to_string(shown).unwrap_or_default();
    let bytes = json_size(spec) + json_size(&shown_again);
    if bytes as u64 + STORED_BESIDES <= REQUEST_BYTES {
        return Ok(());
    }
    let instructions = json_size(&shown.instructions);
    let largest = if instructions >= json_size(&shown.tools) { "instructions" } else { "tools" };
    let msg = format!(
        "must have fewer bytes: with the other parameters that the response shows it has {bytes} as it is \
         stored, once for the model and once to be shown, and may have {REQUEST_BYTES}"
    );
    Err(super::super::params::error(largest, INVALID_VALUE, msg))
}

/// Reads a penalty, which the response shows; without it there is none, whatever the model's own is.
fn penalty(params: &mut Params<'_>, name: &'static str) -> Result<f64, FieldError> {
    Ok(params.number(name, -2.0, 2.0)?.unwrap_or_default())
}

/// Refuses what is not supported.
fn refuse_others(params: &mut Params<'_>) -> Result<(), FieldError> {
    let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    params.only("include", "[]", is_empty)?;
    params.service_tier()?;
    params.only("top_logprobs", "0", |value| value.as_f64() == Some(0.0))?;
    params.only("truncation", "\"disabled\"", |value| *value == "disabled")?;
    params.unsupported(&[
        "access_programs",
        "background_options",
        "context_management",
        "image",
        "max_tool_calls",
        "moderation",
        "prompt",
        "prompt_cache_options",
        "prompt_cache_retention",
    ])
}

fn read_stream_options(params: &mut Params<'_>, stream: bool) -> Result<(), FieldError> {
    let Some(value) = params.value("stream_options") else { return Ok(()) };
    if !stream {
        let msg = "is only allowed where stream is true";
        return Err(params.refuse("stream_options", INVALID_VALUE, msg));
    }
    let mut options = Params::of_value(value, "stream_options")?;
    options.only("include_obfuscation", "false", |value| *value == false)?;
    options.finish()
}

/// Reads the response whose conversation goes on.
fn read_previous(
    params: &mut Params<'_>,
) -> Result<(Option<ResponseKey>, Option<String>), FieldError> {
    const NAME: &str = "previous_response_id";
    let Some(id) = params.text(NAME)? else { return Ok((None, None)) };
    let Some(key) = ResponseKey::parse(id) else { return Err(previous_not_found(id)) };
    if key.generation.is_some() {
        let msg = "must not be a response of a conversation: send the id of that as conversation";
        return Err(params.refuse(NAME, INVALID_VALUE, msg));
    }
    Ok((Some(key), Some(id.to_owned())))
}

/// Reads the conversation in which the response is a turn: its id, or an object with that.
fn read_conversation(params: &mut Params<'_>) -> Result<Option<SessionId>, FieldError> {
    const NAME: &str = "conversation";
    let (path, id) = match params.value(NAME) {
        None => return Ok(None),
        Some(Value::String(id)) => (NAME, id.as_str()),
        Some(value @ Value::Object(_)) => {
            let mut object = Params::of_value(value, NAME)?;
            let id = object.required_text("id")?;
            object.finish()?;
            ("conversation.id", id)
        }
        Some(_) => {
            let msg = "must be the id of a conversation, or an object with its id";
            return Err(params.refuse(NAME, INVALID_TYPE, msg));
        }
    };
    parse_conversation_id(id).map(Some).ok_or_else(|| {
        let msg = "must be the id of a conversation, as POST /v1/conversations returns it";
        params.refuse(path, INVALID_VALUE, msg)
    })
}

/// Returns the error of a response whose conversation cannot go on, because the caller has none of
/// this id.
pub fn previous_not_found(id: &str) -> FieldError {
    let msg = format!("There is no response {id:?} of this caller");
    super::super::params::error("previous_response_id", "previous_response_not_found", msg)
}

/// Reads how hard the model reasons. Without it the model does not reason.
fn read_reasoning(params: &mut Params<'_>) -> Result<(Reasoning, Option<String>), FieldError> {
    let Some(value) = params.value("reasoning") else { return Ok((Reasoning::Off, None)) };
    let mut reasoning = Params::of_value(value, "reasoning")?;
    let think = effort(&mut reasoning, "effort")?;
    reasoning.unsupported(&["context", "generate_summary", "mode", "summary"])?;
    reasoning.finish()?;
    let shown = match think {
        Reasoning::Off | Reasoning::On => "none",
        Reasoning::Effort(Effort::Low) => "low",
        Reasoning::Effort(Effort::Medium) => "medium",
        Reasoning::Effort(Effort::High) => "high",
    };
    Ok((think, Some(shown.to_owned())))
}

fn raw(params: &Params<'_>, name: &str, text: String) -> Result<Box<RawValue>, FieldError> {
    RawValue::from_string(text).map_err(|_| params.refuse(name, INVALID_VALUE, "cannot be read"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::openai::params::HINT_CHARACTERS;
    use crate::session::model::AnswerRules;

    fn read(value: &Value) -> Result<ResponseRequest, (String, &'static str)> {
        let object = value.as_object().expect("an object").clone().into();
        ResponseRequest::read(&object, value.to_string().as_bytes())
            .map_err(|error| (error.loc.last().cloned().unwrap_or_default(), error.kind))
    }

    /// Returns a request with the least that it needs, and this parameter.
    fn with(name: &str, value: Value) -> Value {
        let mut request = json!({"model": "m", "input": "hi"});
        request[name] = value;
        request
    }

    #[test]
    fn a_request_without_options_has_the_defaults_of_openai() {
        let request = read(&with("stream", json!(null))).expect("valid");
        let wanted = TurnSpec {
            temperature: Some(1.0),
            sampling: Sampling {
                top_p: Some(1.0),
                presence_penalty: Some(0.0),
                frequency_penalty: Some(0.0),
                ..Sampling::default()
            },
            is_kept: true,
            ..TurnSpec::least("m", u32::MAX)
        };
        assert_eq!(request.spec, wanted);
        assert!(!request.stream && !request.shown.background && request.shown.store);
        assert!(request.previous.is_none());
    }

    #[test]
    fn every_option_reaches_the_turn_and_is_shown_again() {
        let id = format!("resp_{}", "12".repeat(16));
        let request = json!({
            "model": " Llama3 ", "input": "hi", "instructions": "be brief", "stream": true,
            "stream_options": {"include_obfuscation": false}, "temperature": 0.5, "top_p": 0.25,
            "presence_penalty": -1.5, "frequency_penalty": 2.0,
            "max_output_tokens": 5, "reasoning": {"effort": "high"}, "background": true,
            "store": true, "previous_response_id": id, "metadata": {"a": "b"}, "user": "u",
            "safety_identifier": "s", "prompt_cache_key": "k", "service_tier": "auto",
            "truncation": "disabled", "top_logprobs": 0, "include": [],
            "parallel_tool_calls": true, "tool_choice": "auto",
            "text": {"format": {"type": "json_object"}},
        });
        let read = read(&request).expect("valid");
        let wanted = TurnSpec {
            temperature: Some(0.5),
            system: Some("be brief".to_owned()),
            sampling: Sampling {
                top_p: Some(0.25),
                presence_penalty: Some(-1.5),
                frequency_penalty: Some(2.0),
                ..Sampling::default()
            },
            rules: AnswerRules { format: Some("\"json\"".to_owned()), ..AnswerRules::default() },
            think: Reasoning::Effort(Effort::High),
            is_kept: true,
            is_detached: true,
            ..TurnSpec::least("Llama3", 5)
        };
        assert_eq!(read.spec, wanted);
        assert!(read.stream && read.previous.is_some());
        let shown = serde_json::to_value(&read.shown).expect("JSON");
        for name in [
            "instructions",
            "metadata",
            "user",
            "safety_identifier",
            "prompt_cache_key",
            "previous_response_id",
            "max_output_tokens",
            "temperature",
            "top_p",
            "presence_penalty",
            "frequency_penalty",
        ] {
            assert_eq!(shown[name], request[name], "{name}");
        }
        assert_eq!(shown["reasoning"]["effort"], "high");
        assert_eq!(shown["text"]["format"], json!({"type": "json_object"}));
        let stored = serde_json::to_string(&read.shown).expect("JSON");
        assert!(serde_json::from_str::<Shown>(&stored).is_ok());
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_path_and_never_ignored() {
        for (name, value, path, kind) in [
            ("include", json!(["x"]), "include", "unsupported_value"),
            ("max_tool_calls", json!(1), "max_tool_calls", "unsupported_parameter"),
            ("prompt", json!({"id": "p"}), "prompt", "unsupported_parameter"),
            ("moderation", json!({}), "moderation", "unsupported_parameter"),
            ("context_management", json!([]), "context_management", "unsupported_parameter"),
            ("top_logprobs", json!(3), "top_logprobs", "unsupported_value"),
            ("truncation", json!("auto"), "truncation", "unsupported_value"),
            ("service_tier", json!("flex"), "service_tier", "unsupported_value"),
            ("reasoning", json!({"summary": "auto"}), "reasoning.summary", "unsupported_parameter"),
            ("reasoning", json!({"effort": "xhigh"}), "reasoning.effort", "unsupported_value"),
            ("seed", json!(1), "seed", "unknown_parameter"),
            ("messages", json!([]), "messages", "unknown_parameter"),
        ] {
            let refused = read(&with(name, value.clone())).expect_err(name);
            assert_eq!(refused, (path.to_owned(), kind), "{name} {value}");
        }
    }

    #[test]
    fn a_value_of_another_type_or_out_of_bounds_is_refused_by_its_path() {
        for (name, value, path, kind) in [
            ("model", json!(7), "model", "invalid_type"),
            ("stream", json!("true"), "stream", "invalid_type"),
            ("background", json!(1), "background", "invalid_type"),
            ("instructions", json!([]), "instructions", "invalid_type"),
            ("temperature", json!(2.1), "temperature", "invalid_value"),
            ("top_p", json!(-0.1), "top_p", "invalid_value"),
            ("max_output_tokens", json!(0), "max_output_tokens", "invalid_value"),
            ("metadata", json!([]), "metadata", "invalid_type"),
            ("metadata", json!({"a": 1}), "metadata.a", "invalid_type"),
            ("metadata", json!({"a": "x".repeat(513)}), "metadata", "invalid_value"),
            ("stream_options", json!({}), "stream_options", "invalid_value"),
            ("conversation", json!("conv_1"), "conversation", "invalid_value"),
            ("conversation", json!({"id": "x"}), "conversation.id", "invalid_value"),
            ("conversation", json!({}), "conversation.id", "missing_required_parameter"),
            ("conversation", json!(7), "conversation", "invalid_type"),
            (
                "previous_response_id",
                json!(format!("resp_{}", "12".repeat(32))),
                "previous_response_id",
                "invalid_value",
            ),
            (
                "previous_response_id",
                json!("nope"),
                "previous_response_id",
                "previous_response_not_found",
            ),
        ] {
            let refused = read(&with(name, value.clone())).expect_err(name);
            assert_eq!(refused, (path.to_owned(), kind), "{name} {value}");
        }
        let long = |name: &str, character: &str, length: usize| {
            read(&with(name, json!(character.repeat(length))))
        };
        // As they are stored: a control character takes 13 bytes, a quote 6, and a letter 2.
        for (character, bytes) in [("\u{1}", 13), ("\"", 6), ("x", 2)] {
            let most = REQUEST_BYTES as usize / bytes;
            assert!(long("instructions", character, most - (8 << 10) / bytes).is_ok());
            let refused = long("instructions", character, most + 1).expect_err("too long");
            assert_eq!(refused, ("instructions".to_owned(), "invalid_value"));
        }
        for name in ["user", "safety_identifier", "prompt_cache_key"] {
            assert!(long(name, "字", HINT_CHARACTERS).is_ok());
            let refused = long(name, "字", HINT_CHARACTERS + 1).expect_err(name);
            assert_eq!(refused, (name.to_owned(), "invalid_value"));
        }
        let mut two = with("conversation", json!(format!("conv_{}", "12".repeat(16))));
        assert!(read(&two).expect("valid").conversation.is_some());
        two["previous_response_id"] = json!(format!("resp_{}", "12".repeat(16)));
        let refused = read(&two).expect_err("two conversations");
        assert_eq!(refused, ("conversation".to_owned(), "invalid_value"));
        let mut both = with("background", json!(true));
        both["store"] = json!(false);
        assert_eq!(
            read(&both).expect_err("not found later"),
            ("store".to_owned(), "invalid_value")
        );
    }

    #[test]
    fn a_repeat_has_the_same_digest_whether_it_streams_or_not() {
        let digest = |value: Value| read(&value).expect("valid").digest();
        let plain = digest(with("stream", json!(false)));
        assert_eq!(plain, digest(with("stream", json!(true))));
        assert_ne!(plain, digest(with("background", json!(true))));
        assert_ne!(plain, digest(with("input", json!([{"role": "system", "content": "hi"}]))));
    }
}
