//! Reads the request of `/api/chat` or `/api/generate`. Pure.

use serde_json::Value;

use super::errors::{invalid, model_not_found};
use super::fields::{RawJsonObject, RequestFields};
use super::lines::Shape;
use super::messages::OllamaMessages;
use super::options::AnswerOptions;
use super::rules;
use crate::digest::sha256_hex;
use crate::http::problem::Problem;
use crate::model_name::ModelName;
use crate::session::TurnSpec;
use crate::session::model::{AnswerRules, Effort, Reasoning};

/// The units of Ollama's durations, of which one is enough to say that a duration is zero.
const UNITS: [&str; 8] = ["ns", "us", "µs", "ms", "s", "m", "h", ""];

/// A request.
#[derive(Clone, Debug)]
pub struct AskedModel {
    /// The model, as the request spells it.
    pub model: String,
    /// Whether the reply is a stream of lines.
    pub stream: bool,
    /// The question and its context.
    pub task: Task,
}

/// The question to a model, and its context.
#[derive(Clone, Debug)]
pub enum Task {
    /// To be in memory. The service decides that, so there is nothing to do.
    Load,
    /// To leave memory. There is nothing to do, either.
    Unload,
    /// To answer.
    Answer(Box<Question>),
}

/// A question, with its conversation.
#[derive(Clone, Debug)]
pub struct Question {
    /// The request without its messages.
    pub spec: TurnSpec,
    /// The messages.
    pub messages: OllamaMessages,
}

impl AskedModel {
    /// Reads a request.
    ///
    /// # Errors
    /// The first field that is not valid, or asks for what is not supported.
    pub fn read(shape: Shape, body: &RawJsonObject) -> Result<Self, Problem> {
        let fields = RequestFields::new(&body.fields, "");
        let model = model(fields)?;
        let stream = fields.flag("stream")?.unwrap_or(true);
        let think = reasoning(fields)?;
        let options = AnswerOptions::read(fields.object("options")?)?;
        fields.flag("truncate")?;
        fields.flag("shift")?;
        fields.unsupported("logprobs", "is not supported")?;
        let mut rules = AnswerRules { format: rules::format(body)?, ..AnswerRules::default() };
        let messages = match shape {
            Shape::Chat => {
                rules.tools = rules::tools(body)?;
                let list = fields.list("messages")?.unwrap_or_default();
                if list.is_empty() { None } else { Some(OllamaMessages::read(list)?) }
            }
            Shape::Generate => of_prompt(fields)?,
        };
        let task = match messages {
            None if is_zero(fields.value("keep_alive")?) => Task::Unload,
            None => Task::Load,
            Some(messages) => {
                let spec = TurnSpec {
                    temperature: options.temperature,
                    seed: options.seed,
                    stop: options.stop,
                    sampling: options.sampling,
                    rules,
                    think,
                    ..TurnSpec::least(&model, options.max_tokens)
                };
                Task::Answer(Box::new(Question { spec, messages }))
            }
        };
        Ok(Self { model, stream, task })
    }
}

impl Question {
    /// Returns a digest that is the same for the same question, streamed or not.
    pub fn digest(&self) -> String {
        let messages = self.messages.for_digest();
        sha256_hex(&serde_json::to_vec(&(&self.spec, messages)).unwrap_or_default())
    }
}

/// Reads the model's name, without the blanks around it.
///
/// # Errors
/// Where it is absent, or no name.
pub fn model(fields: RequestFields<'_>) -> Result<String, Problem> {
    let name = fields.text("model")?.filter(|name| !name.is_empty());
    // An older name of the field, which some clients still use.
    let name = name.or(fields.text("name")?).unwrap_or_default().trim();
    if name.is_empty() {
        return Err(invalid("model is required"));
    }
    ModelName::parse(name).map(|_| name.to_owned()).map_err(|_| model_not_found(name))
}

/// Reads the conversation of `/api/generate`; none where there is nothing to answer.
fn of_prompt(fields: RequestFields<'_>) -> Result<Option<OllamaMessages>, Problem> {
    for (name, text) in [
        ("raw", "is not supported: send the prompt without the template of the model"),
        ("template", "is not supported: the model's own template is used"),
        ("context", "is not supported: send the conversation to /api/chat"),
        ("suffix", "is not supported"),
    ] {
        fields.unsupported(name, text)?;
    }
    let system = fields.text("system")?.filter(|text| !text.is_empty());
    let prompt = fields.text("prompt")?.unwrap_or_default();
    if prompt.is_empty() {
        return Ok(None);
    }
    let most = crate::session::store::OwnConversation::BYTES;
    if prompt.len() + system.map_or(0, str::len) > most {
        return Err(invalid(format!(
            "prompt: must have at most {most} bytes with the system text"
        )));
    }
    OllamaMessages::of_prompt(system, prompt, fields).map(Some)
}

/// Reads whether the model reasons. As with Ollama, a model that can does unless the request turns it off.
fn reasoning(fields: RequestFields<'_>) -> Result<Reasoning, Problem> {
    Ok(match fields.value("think")? {
        None | Some(Value::Bool(true)) => Reasoning::On,
        Some(Value::Bool(false)) => Reasoning::Off,
        Some(Value::String(effort)) if effort == "low" => Reasoning::Effort(Effort::Low),
        Some(Value::String(effort)) if effort == "medium" => Reasoning::Effort(Effort::Medium),
        Some(Value::String(effort)) if effort == "high" => Reasoning::Effort(Effort::High),
        Some(_) => {
            let text = "must be true, false, \"low\", \"medium\" or \"high\"";
            return Err(fields.refuse("think", text));
        }
    })
}

/// Returns whether a `keep_alive` is zero: a number, or a duration such as `0s`.
fn is_zero(keep_alive: Option<&Value>) -> bool {
    match keep_alive {
        Some(Value::Number(seconds)) => seconds.as_f64() == Some(0.0),
        Some(Value::String(text)) => {
            let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
            UNITS.contains(&&text[digits.len()..]) && digits.parse::<f64>() == Ok(0.0)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::session::Role;

    fn read(shape: Shape, body: &Value) -> Result<AskedModel, (u16, String)> {
        let body = RawJsonObject::parse(body.to_string().into_bytes()).expect("an object");
        AskedModel::read(shape, &body).map_err(|problem| (problem.status.as_u16(), problem.detail))
    }

    fn with(name: &str, value: &Value) -> Value {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        body[name] = value.clone();
        body
    }

    fn question(asked: AskedModel) -> Question {
        match asked.task {
            Task::Answer(question) => *question,
            task => panic!("{task:?}"),
        }
    }

    fn roles_and_texts(messages: &OllamaMessages) -> Vec<(Role, &str)> {
        let all = messages.before.iter().chain([&messages.question]);
        all.map(|message| (message.role, message.content.as_str())).collect()
    }

    #[test]
    fn a_conversation_and_a_prompt_reach_the_turn() {
        let chat = json!({"model": " Llama3 ", "tools": [], "format": "", "messages": [
            {"role": "System", "content": "s"},
            {"role": "assistant", "content": "a", "thinking": "t", "tool_calls": []},
            {"role": "user", "content": "q", "images": []},
        ], "think": "low", "options": {"temperature": 0}, "unknown": 1});
        let asked = read(Shape::Chat, &chat).expect("valid");
        assert_eq!((asked.model.as_str(), asked.stream), ("Llama3", true));
        let Question { spec, messages } = question(asked);
        let think = Reasoning::Effort(Effort::Low);
        assert_eq!(spec, TurnSpec { think, ..TurnSpec::least("Llama3", u32::MAX) });
        let wanted = [(Role::System, "s"), (Role::Assistant, "a"), (Role::User, "q")];
        assert_eq!(roles_and_texts(&messages), wanted);
        let prompt = json!({
            "model": "m", "prompt": "q", "system": "s", "suffix": "", "template": "", "context": [],
            "raw": false, "stream": false,
        });
        let asked = read(Shape::Generate, &prompt).expect("valid");
        assert!(!asked.stream);
        let messages = question(asked).messages;
        assert_eq!(roles_and_texts(&messages), [(Role::System, "s"), (Role::User, "q")]);
    }

    #[test]
    fn a_request_without_a_question_loads_or_unloads_the_model_by_its_keep_alive() {
        for (keep_alive, unloads) in [
            (json!(null), false),
            (json!("5m"), false),
            (json!(-1), false),
            (json!("x"), false),
            (json!(0), true),
            (json!("0"), true),
            (json!("0s"), true),
            (json!("0.0h"), true),
        ] {
            let load = |shape| {
                let body = json!({"model": "m", "messages": [], "keep_alive": keep_alive});
                read(shape, &body).expect("valid").task
            };
            for shape in [Shape::Chat, Shape::Generate] {
                assert_eq!(matches!(load(shape), Task::Unload), unloads, "{keep_alive}");
                assert_eq!(matches!(load(shape), Task::Load), !unloads, "{keep_alive}");
            }
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_name() {
        let refused = |shape, body: &Value| read(shape, body).expect_err("refused");
        for (name, value) in [
            ("tools", json!([{}])),
            ("tools", json!({})),
            ("format", json!(7)),
            ("logprobs", json!(true)),
            ("think", json!("very")),
            ("stream", json!("true")),
            ("options", json!([])),
            ("messages", json!("hi")),
            ("messages", json!(["hi"])),
            ("messages", json!([{"role": "robot", "content": "x"}])),
            ("messages", json!([{"role": "assistant", "tool_calls": [{}]}])),
            (
                "messages",
                json!([{"role": "assistant", "tool_calls": vec![json!({"function": {"name": "f"}}); 129]}]),
            ),
            ("messages", json!([{"role": "user", "content": ["x"]}])),
            ("messages", json!([{"role": "user", "content": "x", "images": ["aGk="]}])),
            ("messages", json!([{"role": "assistant", "content": "x"}])),
            ("messages", json!([{"role": "user", "content": "x".repeat((1 << 20) + 1)}])),
            ("messages", Value::Array(vec![json!({"role": "user"}); 1001])),
        ] {
            let (status, text) = refused(Shape::Chat, &with(name, &value));
            assert!(status == 400 && text.starts_with(name), "{name}: {text}");
        }
        for (name, value) in [
            ("raw", json!(true)),
            ("template", json!("{{ .Prompt }}")),
            ("context", json!([1, 2])),
            ("suffix", json!("end")),
            ("images", json!(["aGk="])),
            ("prompt", json!(7)),
            ("prompt", json!("x".repeat((1 << 20) + 1))),
        ] {
            let mut body = json!({"model": "m", "prompt": "hi"});
            body[name] = value;
            let (status, text) = refused(Shape::Generate, &body);
            assert!(status == 400 && text.starts_with(name), "{name}: {text}");
        }
    }

    #[test]
    fn a_request_needs_the_name_of_a_model() {
        for body in [json!({}), json!({"model": ""}), json!({"model": " "})] {
            let refused = read(Shape::Chat, &body).expect_err("refused");
            assert_eq!(refused, (400, "model is required".to_owned()));
        }
        let refused = read(Shape::Chat, &json!({"model": "no name"})).expect_err("refused");
        assert_eq!(refused, (404, "model 'no name' not found".to_owned()));
        assert_eq!(read(Shape::Chat, &json!({"name": "m"})).expect("valid").model, "m");
    }

    #[test]
    fn a_repeat_has_the_same_digest_whether_it_streams_or_not() {
        let digest = |body: &Value| question(read(Shape::Chat, body).expect("valid")).digest();
        let plain = digest(&with("stream", &json!(false)));
        assert_eq!(plain, digest(&with("stream", &json!(true))));
        assert_ne!(plain, digest(&with("options", &json!({"seed": 1}))));
    }
}
