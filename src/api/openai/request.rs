//! Reads the request of a chat completion into a turn that brings its own conversation. Pure.

use serde_json::{Map, Value};

use super::body;
use super::messages::{self, Messages};
use super::params::{INVALID_TYPE, INVALID_VALUE, Params, UNSUPPORTED_VALUE};
use super::tools;
use crate::api::answer_rules::{STOP_BYTES, STOPS};
use crate::digest::sha256_hex;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::Object;
use crate::model_name::ModelName;
use crate::session::TurnSpec;
use crate::session::model::{Effort, Reasoning, Sampling};

/// OpenAI's default of the temperature and of `top_p`.
pub const DEFAULT_SAMPLING: f64 = 1.0;

/// A request for a chat completion.
#[derive(Clone, Debug)]
pub struct ChatCompletion {
    /// The request without its messages.
    pub spec: TurnSpec,
    /// The messages.
    pub messages: Messages,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether a chunk with the usage comes before the stream's end.
    pub include_usage: bool,
}

impl ChatCompletion {
    /// Reads a request from its text, which was parsed into `object`.
    ///
    /// # Errors
    /// The first parameter that is not valid.
    pub fn read(object: &Object, text: &[u8]) -> Result<Self, FieldError> {
        let parameters = body::parameters(object)?;
        let mut params = Params::of_request(&parameters);
        let model = model(&mut params)?;
        let messages = messages::read(&mut params)?;
        let stream = params.flag("stream")?.unwrap_or(false);
        let include_usage = include_usage(&mut params, stream)?;
        let temperature = params.number("temperature", 0.0, 2.0)?.unwrap_or(DEFAULT_SAMPLING);
        let max_tokens = token_limit(&mut params)?;
        let spec = TurnSpec {
            temperature: Some(temperature),
            seed: params.integer("seed", i64::MIN)?,
            stop: stops(&mut params)?,
            sampling: Sampling {
                top_p: params.number("top_p", 0.0, 1.0)?.or(Some(DEFAULT_SAMPLING)),
                presence_penalty: params.number("presence_penalty", -2.0, 2.0)?,
                frequency_penalty: params.number("frequency_penalty", -2.0, 2.0)?,
                ..Sampling::default()
            },
            rules: tools::rules(&mut params, text)?,
            think: effort(&mut params, "reasoning_effort")?,
            ..TurnSpec::least(&model, max_tokens)
        };
        // These change nothing about an answer: who asks, and hints for OpenAI's own caches.
        for name in ["user", "safety_identifier", "prompt_cache_key"] {
            params.hint(name)?;
        }
        params.only("n", "1", |value| value.as_f64() == Some(1.0))?;
        params.only("logprobs", "false", |value| *value == false)?;
        params.only("store", "false", |value| *value == false)?;
        params.only("logit_bias", "{}", |value| value.as_object().is_some_and(Map::is_empty))?;
        params.only("metadata", "{}", |value| value.as_object().is_some_and(Map::is_empty))?;
        params.only("modalities", "[\"text\"]", |value| {
            value.as_array().is_some_and(|list| list.len() == 1 && list[0] == "text")
        })?;
        params.service_tier()?;
        params.unsupported(&[
            "audio",
            "function_call",
            "functions",
            "moderation",
            "prediction",
            "prompt_cache_options",
            "prompt_cache_retention",
            "top_logprobs",
            "verbosity",
            "web_search_options",
        ])?;
        params.finish()?;
        Ok(Self { spec, messages, stream, include_usage })
    }

    /// Returns a digest that is the same for the same request, streamed or not.
    pub fn digest(&self) -> String {
        let messages = self.messages.for_digest();
        sha256_hex(&serde_json::to_vec(&(&self.spec, messages)).unwrap_or_default())
    }
}

/// Reads the model's name, as it is spelled, without the blanks around it.
///
/// # Errors
/// Where it is absent, or no name of a model.
pub fn model(params: &mut Params<'_>) -> Result<String, FieldError> {
    let name = params.required_text("model")?.trim();
    match ModelName::parse(name) {
        Ok(_) => Ok(name.to_owned()),
        Err(error) => Err(params.refuse("model", INVALID_VALUE, error.to_string())),
    }
}

/// Reads the largest number of tokens of the answer, under its new name or its old one. Without it
/// the context window is the bound.
fn token_limit(params: &mut Params<'_>) -> Result<u32, FieldError> {
    let new = params.integer("max_completion_tokens", 1)?;
    let old = params.integer("max_tokens", 1)?;
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        let msg = "must be the same as max_completion_tokens where both are present";
        return Err(params.refuse("max_tokens", INVALID_VALUE, msg));
    }
    let limit = new.or(old).map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX));
    Ok(limit.unwrap_or(u32::MAX))
}

/// Reads the texts that end the answer: one, or a list.
fn stops(params: &mut Params<'_>) -> Result<Vec<String>, FieldError> {
    let Some(value) = params.value("stop") else { return Ok(Vec::new()) };
    let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let texts: Option<Vec<String>> =
        items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
    let Some(texts) = texts else {
        let msg = "must be a string or a list of strings";
        return Err(params.refuse("stop", INVALID_TYPE, msg));
    };
    let is_allowed = |text: &String| (1..=STOP_BYTES).contains(&text.len());
    if texts.len() > STOPS || !texts.iter().all(is_allowed) {
        let msg = format!("must have at most {STOPS} strings of 1 to {STOP_BYTES} bytes");
        return Err(params.refuse("stop", INVALID_VALUE, msg));
    }
    Ok(texts)
}

/// Reads how hard the model reasons before it answers. Without it the model does not reason.
///
/// # Errors
/// Where it is no effort, or not a supported one.
pub fn effort(params: &mut Params<'_>, name: &'static str) -> Result<Reasoning, FieldError> {
    match params.text(name)? {
        None | Some("none") => Ok(Reasoning::Off),
        Some("low") => Ok(Reasoning::Effort(Effort::Low)),
        Some("medium") => Ok(Reasoning::Effort(Effort::Medium)),
        Some("high") => Ok(Reasoning::Effort(Effort::High)),
        Some("minimal" | "xhigh" | "max") => {
            let msg = "is supported as none, low, medium and high";
            Err(params.refuse(name, UNSUPPORTED_VALUE, msg))
        }
        Some(_) => {
            let msg = "must be none, low, medium or high";
            Err(params.refuse(name, INVALID_VALUE, msg))
        }
    }
}

/// Reads whether a stream ends with the usage.
fn include_usage(params: &mut Params<'_>, stream: bool) -> Result<bool, FieldError> {
    let Some(value) = params.value("stream_options") else { return Ok(false) };
    if !stream {
        let msg = "is only allowed where stream is true";
        return Err(params.refuse("stream_options", INVALID_VALUE, msg));
    }
    let mut options = Params::of_value(value, "stream_options")?;
    let include_usage = options.flag("include_usage")?.unwrap_or(false);
    options.only("include_obfuscation", "false", |value| *value == Value::Bool(false))?;
    options.finish()?;
    Ok(include_usage)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::session::Role;
    use crate::session::store::OwnConversation;

    fn read(value: &Value) -> Result<ChatCompletion, (String, &'static str)> {
        let object = value.as_object().expect("an object").clone().into();
        ChatCompletion::read(&object, value.to_string().as_bytes())
            .map_err(|error| (error.loc.last().cloned().unwrap_or_default(), error.kind))
    }

    /// Returns a request with the least that it needs, and this parameter.
    fn with(name: &str, value: Value) -> Value {
        let mut request = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        request[name] = value;
        request
    }

    #[test]
    fn a_request_without_options_has_the_defaults_of_openai() {
        let request = read(&with("stream", json!(null))).expect("valid");
        assert_eq!(
            request.spec,
            TurnSpec {
                temperature: Some(1.0),
                sampling: Sampling { top_p: Some(1.0), ..Sampling::default() },
                ..TurnSpec::least("m", u32::MAX)
            }
        );
        assert!(!request.stream && !request.include_usage);
    }

    #[test]
    fn every_option_reaches_the_turn() {
        let request = json!({
            "model": " Llama3 ", "messages": [{"role": "user", "content": "hi"}],
            "stream": true, "stream_options": {"include_usage": true}, "temperature": -0.0,
            "top_p": 0.5, "seed": -7, "stop": "X", "presence_penalty": -2, "frequency_penalty": 2,
            "max_completion_tokens": 5, "max_tokens": 5, "reasoning_effort": "high", "n": 1,
            "user": "u", "logprobs": false, "store": false, "logit_bias": {}, "metadata": {},
            "modalities": ["text"], "service_tier": "auto", "response_format": {"type": "text"},
        });
        let request = read(&request).expect("valid");
        let sampling = Sampling {
            top_p: Some(0.5),
            presence_penalty: Some(-2.0),
            frequency_penalty: Some(2.0),
            ..Sampling::default()
        };
        assert_eq!(
            request.spec,
            TurnSpec {
                seed: Some(-7),
                stop: vec!["X".to_owned()],
                sampling,
                think: Reasoning::Effort(Effort::High),
                ..TurnSpec::least("Llama3", 5)
            }
        );
        assert!(request.spec.temperature.is_some_and(f64::is_sign_positive));
        assert!(request.stream && request.include_usage);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_path_and_never_ignored() {
        for (name, value, kind) in [
            ("n", json!(2), "unsupported_value"),
            ("logprobs", json!(true), "unsupported_value"),
            ("top_logprobs", json!(0), "unsupported_parameter"),
            ("logit_bias", json!({"1": 5}), "unsupported_value"),
            ("store", json!(true), "unsupported_value"),
            ("metadata", json!({"a": "b"}), "unsupported_value"),
            ("modalities", json!(["text", "audio"]), "unsupported_value"),
            ("service_tier", json!("flex"), "unsupported_value"),
            ("audio", json!({}), "unsupported_parameter"),
            ("functions", json!([]), "unsupported_parameter"),
            ("prediction", json!({}), "unsupported_parameter"),
            ("prompt_cache_options", json!({}), "unsupported_parameter"),
            ("verbosity", json!("low"), "unsupported_parameter"),
            ("web_search_options", json!({}), "unsupported_parameter"),
            ("reasoning_effort", json!("minimal"), "unsupported_value"),
            ("reasoning_effort", json!("max"), "unsupported_value"),
            ("keep_alive", json!(0), "unknown_parameter"),
            ("options", json!({"num_ctx": 1}), "unknown_parameter"),
        ] {
            let refused = read(&with(name, value.clone())).expect_err(name);
            assert_eq!(refused, (name.to_owned(), kind), "{name} {value}");
        }
    }

    #[test]
    fn a_value_of_another_type_or_out_of_bounds_is_refused_by_its_path() {
        for (name, value, kind) in [
            ("model", json!(7), "invalid_type"),
            ("model", json!(""), "invalid_value"),
            ("stream", json!("true"), "invalid_type"),
            ("temperature", json!("1"), "invalid_type"),
            ("temperature", json!(2.1), "invalid_value"),
            ("top_p", json!(-0.1), "invalid_value"),
            ("presence_penalty", json!(3), "invalid_value"),
            ("frequency_penalty", json!(-2.5), "invalid_value"),
            ("max_tokens", json!(0), "invalid_value"),
            ("max_tokens", json!(-1), "invalid_value"),
            ("max_completion_tokens", json!(1.5), "invalid_type"),
            ("seed", json!("7"), "invalid_type"),
            ("seed", json!(1e300), "invalid_value"),
            ("stop", json!(7), "invalid_type"),
            ("stop", json!(["a", "b", "c", "d", "e"]), "invalid_value"),
            ("stop", json!([""]), "invalid_value"),
            ("stop", json!("x".repeat(257)), "invalid_value"),
            ("stream_options", json!({"include_usage": true}), "invalid_value"),
            ("user", json!(1), "invalid_type"),
        ] {
            let refused = read(&with(name, value.clone())).expect_err(name);
            assert_eq!(refused, (name.to_owned(), kind), "{name} {value}");
        }
        let mut both = with("max_tokens", json!(5));
        both["max_completion_tokens"] = json!(6);
        assert_eq!(read(&both).expect_err("two"), ("max_tokens".to_owned(), "invalid_value"));
        let mut options = with("stream", json!(true));
        options["stream_options"] = json!({"colour": 1});
        let refused = read(&options).expect_err("unknown");
        assert_eq!(refused, ("stream_options.colour".to_owned(), "unknown_parameter"));
        options["stream_options"] = json!({"include_obfuscation": true});
        let refused = read(&options).expect_err("not supported");
        let path = "stream_options.include_obfuscation".to_owned();
        assert_eq!(refused, (path, "unsupported_value"));
        let surrogate = br#"{"model": "m", "messages": [{"role": "user", "content": "\ud800"}]}"#;
        let object = Object::parse(surrogate).expect("an object");
        let refused = ChatCompletion::read(&object, surrogate).expect_err("no character");
        assert_eq!(refused.loc, ["body", "messages"]);
    }

    #[test]
    fn the_conversation_ends_with_the_message_that_is_answered() {
        let request = json!({"model": "m", "messages": [
            {"role": "developer", "content": "d"},
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a", "refusal": null, "parsed": {"a": 1}, "new": null},
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
        ]});
        let messages = read(&request).expect("valid").messages;
        let before: Vec<_> =
            messages.before.iter().map(|message| (message.role, &*message.content)).collect();
        assert_eq!(
            before,
            [(Role::System, "d"), (Role::System, "s"), (Role::User, "q"), (Role::Assistant, "a"),]
        );
        assert_eq!((messages.question.role, &*messages.question.content), (Role::User, "x\ny"));
    }

    #[test]
    fn messages_that_cannot_be_answered_are_refused_by_their_path() {
        for (messages, path, kind) in [
            (json!(null), "messages", "missing_required_parameter"),
            (json!("hi"), "messages", "invalid_type"),
            (json!([]), "messages", "invalid_value"),
            (json!(["hi"]), "messages[0]", "invalid_type"),
            (json!([{"content": "x"}]), "messages[0].role", "missing_required_parameter"),
            (json!([{"role": "robot", "content": "x"}]), "messages[0].role", "invalid_value"),
            (json!([{"role": "user"}]), "messages[0].content", "missing_required_parameter"),
            (json!([{"role": "user", "content": 1}]), "messages[0].content", "invalid_type"),
            (json!([{"role": "user", "content": []}]), "messages[0].content", "invalid_value"),
            (
                json!([{"role": "user", "content": "x", "name": "bob"}]),
                "messages[0].name",
                "unsupported_parameter",
            ),
            (
                json!([{"role": "assistant", "tool_calls": [{"id": "c", "type": "function",
                    "function": {"name": "f", "arguments": "{}"}}]},
                    {"role": "tool", "content": "x", "tool_call_id": "c", "name": "g"}]),
                "messages[1].name",
                "invalid_value",
            ),
            (
                json!([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]),
                "messages[0].content[0].type",
                "unsupported_value",
            ),
            (
                json!([{"role": "user", "content": "x", "colour": 1}]),
                "messages[0].colour",
                "unknown_parameter",
            ),
            (json!([{"role": "assistant", "content": "x"}]), "messages[0].role", "invalid_value"),
            (
                json!([{"role": "assistant", "content": "x", "annotations": [1]},
                    {"role": "user", "content": "y"}]),
                "messages[0].annotations",
                "unsupported_value",
            ),
            (
                json!([{"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]),
                "messages[0].content[0].image_url.url",
                "invalid_value",
            ),
            (
                json!([{"role": "system", "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]),
                "messages[0].content[0].type",
                "unsupported_value",
            ),
            (
                json!([{"role": "user", "content": [{"type": "input_audio"}]}]),
                "messages[0].content[0].type",
                "unsupported_value",
            ),
            (
                json!([{"role": "user", "content": [
                    {"type": "text", "text": "x", "prompt_cache_breakpoint": {}}]}]),
                "messages[0].content[0].prompt_cache_breakpoint",
                "unsupported_parameter",
            ),
            (
                json!([{"role": "tool", "content": "x"}]),
                "messages[0].tool_call_id",
                "missing_required_parameter",
            ),
            (
                json!([{"role": "tool", "content": "x", "tool_call_id": "c"}]),
                "messages[0].tool_call_id",
                "invalid_value",
            ),
            (
                json!([{"role": "assistant", "tool_calls": [{"id": "c", "type": "function",
                    "function": {"name": "f", "arguments": "[]"}}]}]),
                "messages[0].tool_calls[0].function.arguments",
                "invalid_value",
            ),
            (
                json!([{"role": "user", "content": "x".repeat((1 << 20) + 1)}]),
                "messages",
                "invalid_value",
            ),
        ] {
            let refused = read(&with("messages", messages.clone())).expect_err(path);
            assert_eq!(refused, (path.to_owned(), kind), "{path}");
        }
    }

    #[test]
    fn a_result_of_a_tool_names_the_call_that_it_answers() {
        let call = json!({"id": "c1", "type": "function", "index": 0, "function": {
            "name": "weather", "arguments": "{\"city\": \"Paris\"}",
            "parsed_arguments": {"city": "Paris"}}});
        let messages = json!([
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny", "name": "weather"},
        ]);
        let Messages { before, question, images: _ } =
            read(&with("messages", messages)).expect("valid").messages;
        let calls = &before[1].tool_calls;
        assert_eq!((&*calls[0].id, &*calls[0].name), ("c1", "weather"));
        assert_eq!(calls[0].arguments, "{\"city\": \"Paris\"}");
        assert_eq!((question.role, &*question.content), (Role::Tool, "sunny"));
        assert_eq!(question.tool_call_id.as_deref(), Some("c1"));
        assert_eq!(question.tool_name.as_deref(), Some("weather"));
    }

    #[test]
    fn the_calls_of_a_message_are_bounded_and_of_two_with_one_id_the_first_one_is_answered() {
        let call = |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}});
        let with_calls = |calls: Vec<Value>| {
            with(
                "messages",
                json!([
                    {"role": "assistant", "tool_calls": calls},
                    {"role": "tool", "tool_call_id": "c", "content": "x"},
                ]),
            )
        };
        let mut calls = vec![call("c", "first"), call("c", "second")];
        calls.resize(OwnConversation::CALLS, call("d", "f"));
        let question = read(&with_calls(calls.clone())).expect("valid").messages.question;
        assert_eq!(question.tool_name.as_deref(), Some("first"));
        calls.push(call("d", "f"));
        let refused = read(&with_calls(calls)).expect_err("one too many");
        assert_eq!(refused, ("messages[0].tool_calls".to_owned(), "invalid_value"));
    }

    #[test]
    fn a_repeat_has_the_same_digest_whether_it_streams_or_not() {
        let digest = |value: Value| read(&value).expect("valid").digest();
        let plain = digest(with("stream", json!(false)));
        assert_eq!(plain, digest(with("stream", json!(true))));
        assert_ne!(plain, digest(with("seed", json!(1))));
        assert_ne!(plain, digest(with("messages", json!([{"role": "system", "content": "hi"}]))));
    }
}
