//! The replies of hosts, read tolerantly: an odd value costs its own field and no other.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::tolerant::{Count, Flag, Joiner, LenientText, Text};
use crate::model_name::ModelName;
use crate::raw_fields::RawFields;

/// A byte order mark in UTF-8. Some servers begin their bodies with one.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Returns the bytes without blanks and a byte order mark before them.
pub(super) fn without_bom(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.trim_ascii_start();
    bytes.strip_prefix(BYTE_ORDER_MARK).map_or(bytes, <[u8]>::trim_ascii_start)
}

/// The end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The reason for the end.
    pub reason: DoneReason,
    /// Tokens of the prompt; 0 where the host does not report them.
    pub prompt_eval_count: u64,
    /// Tokens generated; 0 where the host does not report them.
    pub eval_count: u64,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoneReason {
    /// The answer is complete, or the model generated a stop text.
    Stop,
    /// `num_predict` or the context window is used up.
    Length,
    /// The model was loaded; there was nothing to answer.
    Load,
    /// The model was unloaded.
    Unload,
    /// A reason that this release does not know.
    Other,
}

/// A model that a host lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The parsed name, which is the same on every host.
    pub key: ModelName,
    /// The name as the host spells it, for requests to that host.
    pub name: String,
    /// Bytes on disk; 0 where the host does not report them.
    pub size: u64,
    /// The time of its last change, RFC 3339, as the host reports it; empty where it does not.
    pub modified_at: String,
    /// The digest of weights and template: only a model with the same digest continues an answer.
    pub digest: String,
    /// The kind of the model, as the host reports it.
    pub details: ModelDetails,
}

/// The kind of a model, as its host reports it; empty where the host does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ModelDetails {
    /// The model that this one was made from.
    pub parent_model: String,
    /// The format of its file, such as `gguf`.
    pub format: String,
    /// The family of its architecture, such as `llama`.
    pub family: String,
    /// All families.
    pub families: Option<Vec<String>>,
    /// The number of its parameters, such as `1B`.
    pub parameter_size: String,
    /// How its weights are quantised, such as `Q4_0`.
    pub quantization_level: String,
}

impl ModelDetails {
    /// Returns the kind without the path on its host that some releases report as the parent.
    #[must_use]
    pub fn without_paths(mut self) -> Self {
        let parent = &self.parent_model;
        if parent.starts_with(['/', '\\', '~']) || parent.contains(":\\") {
            self.parent_model.clear();
        }
        self
    }
}

/// A model in the memory of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedModel {
    /// The model. Its size is the one in memory.
    pub model: Model,
    /// When the host unloads it, RFC 3339; empty where the host does not report it.
    pub expires_at: String,
    /// Bytes in the memory of GPUs.
    pub size_vram: u64,
    /// The context window in tokens; 0 where the host does not report it.
    pub context_length: u64,
}

/// The text for an error of a host that cannot be read.
const UNREADABLE_ERROR: &str = "an error that cannot be read";

/// Returns the value of a field; the default where it cannot be read.
fn or_absent<T: Default + DeserializeOwned>(value: &str) -> T {
    serde_json::from_str(value).unwrap_or_default()
}

/// One line of a stream, or the only object of a reply without one.
#[derive(Default, Deserialize)]
pub(super) struct ReplyLine {
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    message: Option<ReplyMessage>,
    #[serde(default)]
    response: Option<Text>,
    #[serde(default)]
    thinking: Option<Text>,
    #[serde(default)]
    done: Flag,
    #[serde(default)]
    done_reason: LenientText,
    #[serde(default)]
    prompt_eval_count: Count,
    #[serde(default)]
    eval_count: Count,
    #[serde(default, rename = "_debug_info")]
    debug_info: Option<DebugInfo>,
}

#[derive(Deserialize)]
struct ReplyMessage {
    #[serde(default)]
    content: Option<Text>,
    #[serde(default)]
    thinking: Option<Text>,
    #[serde(default)]
    tool_calls: Option<Vec<ReplyToolCall>>,
}

#[derive(Deserialize)]
struct ReplyToolCall {
    #[serde(default)]
    id: LenientText,
    function: ReplyFunction,
}

#[derive(Deserialize)]
struct ReplyFunction {
    name: String,
    #[serde(default)]
    arguments: Option<Box<RawValue>>,
}

/// A call of a tool that a model requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyCall {
    /// The identifier, where the host has one.
    pub id: Option<String>,
    /// The name of the tool.
    pub name: String,
    /// The arguments, a JSON object as text.
    pub arguments: String,
}

impl From<ReplyToolCall> for ReplyCall {
    fn from(
        ReplyToolCall { id, function: ReplyFunction { name, arguments } }: ReplyToolCall,
    ) -> Self {
        let arguments = arguments.map_or_else(|| "{}".to_owned(), |it| it.get().to_owned());
        Self { id: id.0.filter(|id| !id.is_empty()), name, arguments }
    }
}

#[derive(Deserialize)]
struct DebugInfo {
    #[serde(default)]
    rendered_template: Option<String>,
}

impl ReplyMessage {
    /// Parses the message of a line, whose odd fields count as absent. `null` is no message.
    fn parse(value: &str) -> Result<Option<Self>, serde_json::Error> {
        serde_json::from_str(value).or_else(|error| {
            let Ok(RawFields(fields)) = serde_json::from_str(value) else { return Err(error) };
            let mut message = Self { content: None, thinking: None, tool_calls: None };
            for (name, value) in fields {
                match name.as_str() {
                    "content" => message.content = serde_json::from_str(value)?,
                    "thinking" => message.thinking = serde_json::from_str(value)?,
                    "tool_calls" => message.tool_calls = serde_json::from_str(value)?,
                    _ => {}
                }
            }
            Ok(Some(message))
        })
    }
}

/// The part of an answer in one line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    pub content: Text,
    pub thinking: Text,
    pub tool_calls: Vec<ReplyCall>,
    pub end: Option<FragmentEnd>,
}

/// The end of an answer, as a line reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FragmentEnd {
    /// The line has `done`.
    Explicit(Done),
    /// The line has a reason without `done`: the answer has ended unless another line follows.
    Implied(Done),
}

impl ReplyLine {
    /// Parses a JSON object.
    ///
    /// # Errors
    /// Where it is no object, or where the text of the answer cannot be read.
    pub(super) fn parse(object: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(object).or_else(|error| Self::parse_field_by_field(object, error))
    }

    /// Parses an object of which a field cannot be read: it is nested too deeply, holds a number
    /// that no float can hold, is there twice, or has a name or a type that is odd. Such a field
    /// counts as absent, unless it holds the answer or the host's error.
    #[cold]
    fn parse_field_by_field(
        object: &[u8],
        error: serde_json::Error,
    ) -> Result<Self, serde_json::Error> {
        let text = String::from_utf8_lossy(object);
        let Ok(RawFields(fields)) = serde_json::from_str(&text) else { return Err(error) };
        let mut line = Self::default();
        for (name, value) in fields {
            match name.as_str() {
                "message" => line.message = ReplyMessage::parse(value)?,
                "response" => line.response = serde_json::from_str(value)?,
                "thinking" => line.thinking = serde_json::from_str(value)?,
                "error" => {
                    let readable = serde_json::from_str(value);
                    line.error = readable.unwrap_or_else(|_| Some(UNREADABLE_ERROR.into()));
                }
                "done" => line.done = or_absent(value),
                "done_reason" => line.done_reason = or_absent(value),
                "prompt_eval_count" => line.prompt_eval_count = or_absent(value),
                "eval_count" => line.eval_count = or_absent(value),
                "_debug_info" => line.debug_info = or_absent(value),
                _ => {}
            }
        }
        Ok(line)
    }

    /// Returns the text of the host's error.
    pub(super) fn error(&self) -> Option<String> {
        match &self.error {
            None => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(other) => Some(other.to_string()),
        }
    }

    /// Returns the part of the answer; `None` where the line reports something else.
    pub(super) fn into_fragment(self) -> Option<Fragment> {
        let done = Done {
            // Releases of Ollama that send no reason know only this one.
            reason: match self.done_reason.0.as_deref() {
                Some("stop") | None => DoneReason::Stop,
                Some("length") => DoneReason::Length,
                Some("load") => DoneReason::Load,
                Some("unload") => DoneReason::Unload,
                Some(_) => DoneReason::Other,
            },
            prompt_eval_count: self.prompt_eval_count.tokens(),
            eval_count: self.eval_count.tokens(),
        };
        let end = match self.done {
            Flag(Some(true)) => Some(FragmentEnd::Explicit(done)),
            _ if self.done_reason.0.is_some() => Some(FragmentEnd::Implied(done)),
            _ => None,
        };
        let (content, thinking, calls) = match (self.message, self.response) {
            (Some(message), _) => (message.content, message.thinking, message.tool_calls),
            (None, None) if end.is_none() && self.thinking.is_none() => return None,
            (None, response) => (response, self.thinking, None),
        };
        let (content, thinking) = (content.unwrap_or_default(), thinking.unwrap_or_default());
        let tool_calls = calls.unwrap_or_default().into_iter().map(ReplyCall::from).collect();
        Some(Fragment { content, thinking, tool_calls, end })
    }

    /// Returns the rendered prompt, where the request asked for it and the host supports it.
    pub(super) fn into_rendered(self) -> Option<String> {
        self.debug_info.and_then(|info| info.rendered_template)
    }
}

/// The reply of `/api/tags` and `/api/ps`.
#[derive(Deserialize)]
pub(super) struct Tags {
    #[serde(default)]
    models: Option<Vec<Box<RawValue>>>,
}

/// One entry of a list. Each field is read separately.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    name: Option<Box<RawValue>>,
    #[serde(default)]
    model: Option<Box<RawValue>>,
    #[serde(default)]
    size: Option<Box<RawValue>>,
    #[serde(default)]
    modified_at: Option<Box<RawValue>>,
    #[serde(default)]
    digest: Option<Box<RawValue>>,
    #[serde(default)]
    details: Option<Box<RawValue>>,
    #[serde(default)]
    expires_at: Option<Box<RawValue>>,
    #[serde(default)]
    size_vram: Option<Box<RawValue>>,
    #[serde(default)]
    context_length: Option<Box<RawValue>>,
}

impl Tags {
    /// Returns the models. Entries without a usable name are skipped.
    pub(super) fn into_models(self) -> Vec<Model> {
        let entries = self.models.unwrap_or_default();
        entries.iter().filter_map(|entry| model(&Entry::parse(entry)?)).collect()
    }

    /// Returns the models in memory, as [`Tags::into_models`] does.
    pub(super) fn into_loaded(self) -> Vec<LoadedModel> {
        let entries = self.models.unwrap_or_default();
        let loaded = |entry: &RawValue| {
            let entry = Entry::parse(entry)?;
            Some(LoadedModel {
                model: model(&entry)?,
                expires_at: text(entry.expires_at.as_deref()).unwrap_or_default(),
                size_vram: count(entry.size_vram.as_deref()).unwrap_or(0),
                context_length: count(entry.context_length.as_deref()).unwrap_or(0),
            })
        };
        entries.iter().filter_map(|entry| loaded(entry)).collect()
    }
}

impl Entry {
    fn parse(entry: &RawValue) -> Option<Self> {
        let parsed = serde_json::from_str(entry.get());
        if parsed.is_err() {
            tracing::debug!("listed model is not an object");
        }
        parsed.ok()
    }
}

fn model(entry: &Entry) -> Option<Model> {
    let mut names =
        [&entry.name, &entry.model].into_iter().filter_map(|name| text(name.as_deref()));
    let usable = names.find_map(|name| Some((ModelName::parse(&name).ok()?, name)));
    let Some((key, name)) = usable else {
        tracing::debug!("listed model has no usable name");
        return None;
    };
    Some(Model {
        key,
        name,
        size: count(entry.size.as_deref()).unwrap_or(0),
        modified_at: text(entry.modified_at.as_deref()).unwrap_or_default(),
        digest: text(entry.digest.as_deref()).unwrap_or_default(),
        details: details(entry.details.as_deref()),
    })
}

/// Returns the kind of a model.
fn details(value: Option<&RawValue>) -> ModelDetails {
    let details = value.and_then(|value| serde_json::from_str(value.get()).ok());
    ModelDetails::without_paths(details.unwrap_or_default())
}

fn text(value: Option<&RawValue>) -> Option<String> {
    let text: Text = serde_json::from_str(value?.get()).ok()?;
    let mut joiner = Joiner::default();
    let mut text = joiner.join(text);
    joiner.end(&mut text);
    Some(text)
}

fn count(value: Option<&RawValue>) -> Option<u64> {
    serde_json::from_str::<Count>(value?.get()).ok()?.0
}

/// The reply of `/api/version`.
#[derive(Deserialize)]
pub(super) struct Version {
    #[serde(default)]
    version: Option<Box<RawValue>>,
}

impl Version {
    /// Returns the version, for logs.
    pub(super) fn text(&self) -> String {
        text(self.version.as_deref()).unwrap_or_default()
    }
}

/// The reply of `/api/show`, as far as it is used.
#[derive(Deserialize)]
pub(super) struct Show {
    #[serde(default)]
    model_info: Option<Box<RawValue>>,
    #[serde(default)]
    capabilities: Option<Box<RawValue>>,
}

impl Show {
    /// Returns the largest context window in tokens.
    pub(super) fn context_length(&self) -> Option<u32> {
        let info = self.model_info.as_deref()?.get();
        let info: HashMap<String, &RawValue> = serde_json::from_str(info).ok()?;
        // The key begins with the architecture. A multimodal model has several such keys.
        let architecture = text(info.get("general.architecture").copied())?;
        let tokens = count(info.get(&format!("{architecture}.context_length")).copied())?;
        u32::try_from(tokens).ok().filter(|tokens| *tokens > 0)
    }

    /// Returns whether the model supports `think`.
    pub(super) fn thinks(&self) -> bool {
        self.is_capable_of("thinking")
    }

    /// Returns whether the model takes images.
    pub(super) fn sees(&self) -> bool {
        self.is_capable_of("vision")
    }

    fn is_capable_of(&self, capability: &str) -> bool {
        let capabilities = self.capabilities.as_deref().map(RawValue::get);
        let capabilities = capabilities.and_then(|list| serde_json::from_str(list).ok());
        let capabilities: Vec<&RawValue> = capabilities.unwrap_or_default();
        capabilities.into_iter().any(|name| text(Some(name)).as_deref() == Some(capability))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn show(reply: &Value) -> Show {
        serde_json::from_str(&reply.to_string()).expect("a reply")
    }

    #[test]
    fn the_context_window_is_that_of_the_architecture() {
        let whole = show(&json!({
            "model_info": {
                "clip.context_length": 77,
                "general.architecture": "llama",
                "llama.context_length": 2048,
            },
            "capabilities": ["completion", "thinking"],
        }));
        assert_eq!(whole.context_length(), Some(2048));
        assert!(whole.thinks());
        for bare in [
            json!({}),
            json!({"model_info": null, "capabilities": null}),
            json!({"model_info": [], "capabilities": {}}),
            json!({"model_info": {"general.architecture": 5}, "capabilities": [null, 7]}),
        ] {
            let bare = show(&bare);
            assert_eq!(bare.context_length(), None);
            assert!(!bare.thinks());
        }
        let loose = show(&json!({
            "model_info": {"general.architecture": "llama", "llama.context_length": "2048.0"},
            "capabilities": [{}, "thinking"],
        }));
        assert_eq!(loose.context_length(), Some(2048));
        assert!(loose.thinks());
        assert!(!loose.sees());
        assert!(show(&json!({"capabilities": ["completion", "vision"]})).sees());
    }

    #[test]
    fn an_odd_entry_of_a_list_costs_only_its_odd_field_or_itself() {
        let listed = |reply: &Value| {
            let tags: Tags = serde_json::from_str(&reply.to_string()).expect("a reply");
            let models = tags.into_models().into_iter();
            models.map(|model| (model.name, model.size, model.modified_at)).collect::<Vec<_>>()
        };
        let models = listed(&json!({"models": [
            {"name": "a:1", "size": 5, "modified_at": "2025"},
            {"size": 5},
            {"name": null, "model": "b:1"},
            {"name": "", "model": "c:1", "size": ""},
            {"name": "not a name"},
            {"name": 7},
            null, 7, "x", [],
            {"name": "d:1", "size": "6", "modified_at": null, "digest": {}, "details": [[]]},
            {"name": "e:1", "size": 7.0, "modified_at": 8},
        ]}));
        let expected =
            [("a:1", 5, "2025"), ("b:1", 0, ""), ("c:1", 0, ""), ("d:1", 6, ""), ("e:1", 7, "")];
        let expected = expected.map(|(name, size, at)| (name.to_owned(), size, at.to_owned()));
        assert_eq!(models, expected);
        assert_eq!(listed(&json!({"models": null})), []);
        assert_eq!(listed(&json!({})), []);
    }
}
