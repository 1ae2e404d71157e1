//! Ollama's JSON: what is sent, and what is read.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatRole {
    /// Instructions.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// A tool that the model called.
    Tool,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: ChatRole,
    /// What is said.
    pub content: String,
}

/// How to generate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Options {
    /// 0 (the likeliest token) to 2.
    pub temperature: f64,
    /// Tokens at most; 0 is sent as 1, as it would mean "without end" to Ollama.
    #[serde(serialize_with = "at_least_one")]
    pub num_predict: u32,
    /// Context window in tokens. The same for all requests of a model: another value reloads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<u32>,
    /// The same seed gives the same answer, as far as the model goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Texts that end the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn at_least_one<S: Serializer>(tokens: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32((*tokens).max(1))
}

/// A conversation to be answered.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The model's name; without a tag it means `:latest`.
    pub model: String,
    /// Oldest first; at least one.
    pub messages: Vec<ChatMessage>,
    /// How to generate.
    pub options: Options,
    /// Thoughts are wanted; without effect on a model that has none.
    pub think: bool,
}

/// How long a model stays loaded, as Ollama reads it: a number is seconds, a text has a unit.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum KeepAlive {
    Seconds(i64),
    Text(String),
}

impl From<&str> for KeepAlive {
    fn from(text: &str) -> Self {
        let text = text.trim();
        text.parse().map_or_else(|_| Self::Text(text.to_owned()), Self::Seconds)
    }
}

/// The body of `/api/chat`.
#[derive(Serialize)]
pub(super) struct ChatBody<'a> {
    pub model: &'a str,
    pub messages: &'a [ChatMessage],
    pub options: &'a Options,
    pub stream: bool,
    #[serde(rename = "_debug_render_only", skip_serializing_if = "std::ops::Not::not")]
    pub render_only: bool,
    #[serde(flatten)]
    pub always: Always<'a>,
}

/// The body of `/api/generate`.
#[derive(Serialize)]
pub(super) struct GenerateBody<'a> {
    pub model: &'a str,
    pub prompt: &'a str,
    pub options: &'a Options,
    pub stream: bool,
    pub raw: bool,
    #[serde(flatten)]
    pub always: Always<'a>,
}

/// What Ollama would otherwise decide in silence.
#[derive(Serialize)]
pub(super) struct Always<'a> {
    think: bool,
    truncate: bool,
    shift: bool,
    keep_alive: &'a KeepAlive,
}

impl<'a> Always<'a> {
    pub(super) fn new(keep_alive: &'a KeepAlive, think: bool) -> Self {
        Self { think, truncate: false, shift: false, keep_alive }
    }
}

/// A piece of an answer. Pieces are not tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// More of the answer.
    pub content: String,
    /// More of the thoughts.
    pub thinking: String,
    /// Set on the last piece.
    pub done: Option<Done>,
}

/// The end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Why it ended.
    pub reason: DoneReason,
    /// Tokens of the prompt.
    pub prompt_eval_count: u64,
    /// Tokens generated.
    pub eval_count: u64,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoneReason {
    /// The model had said it all, or met a stop text.
    Stop,
    /// `num_predict` or the context window is used up.
    Length,
    /// The model was loaded; there was nothing to answer.
    Load,
    /// The model was unloaded.
    Unload,
    /// Something that Ollama did not say when this was written.
    Other,
}

/// A model that some host has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Model {
    /// With its tag.
    pub name: String,
    /// Bytes on disk.
    #[serde(default)]
    pub size: u64,
    /// When it last changed, RFC 3339, as the host tells it.
    #[serde(default)]
    pub modified_at: String,
    /// Of its weights and template: only the same digest continues an answer.
    #[serde(default)]
    pub digest: String,
}

/// Whether two names are of one model: without a tag a name means `:latest`.
pub(super) fn same_model(a: &str, b: &str) -> bool {
    parts(a) == parts(b)
}

/// A model's name with its tag.
pub fn canonical(name: &str) -> String {
    let (name, tag) = parts(name);
    format!("{name}:{tag}")
}

fn parts(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        // A colon before a slash is a registry's port.
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (name, "latest"),
    }
}

/// One line of a stream, or the only object of a reply without one.
#[derive(Deserialize)]
pub(super) struct Line {
    #[serde(default)]
    pub error: Option<Value>,
    #[serde(default)]
    message: Option<Said>,
    #[serde(default)]
    response: Option<String>,
    #[serde(default)]
    thinking: Option<String>,
    #[serde(default)]
    done: bool,
    #[serde(default)]
    done_reason: Option<String>,
    #[serde(default)]
    prompt_eval_count: u64,
    #[serde(default)]
    eval_count: u64,
    #[serde(default, rename = "_debug_info")]
    debug_info: Option<DebugInfo>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    content: String,
    #[serde(default)]
    thinking: Option<String>,
}

#[derive(Deserialize)]
struct DebugInfo {
    rendered_template: String,
}

impl Line {
    /// The piece that it carries; none where it is about something else.
    pub(super) fn into_token(self) -> Option<Token> {
        let done = self.done.then_some(Done {
            // Ollamas that give no reason knew only one.
            reason: match self.done_reason.as_deref() {
                Some("stop") | None => DoneReason::Stop,
                Some("length") => DoneReason::Length,
                Some("load") => DoneReason::Load,
                Some("unload") => DoneReason::Unload,
                Some(_) => DoneReason::Other,
            },
            prompt_eval_count: self.prompt_eval_count,
            eval_count: self.eval_count,
        });
        let (content, thinking) = match (self.message, self.response) {
            (Some(said), _) => (said.content, said.thinking),
            (None, Some(response)) => (response, self.thinking),
            (None, None) if done.is_some() => (String::new(), None),
            (None, None) => return None,
        };
        Some(Token { content, thinking: thinking.unwrap_or_default(), done })
    }

    /// The prompt as the model would see it, where the host was asked for it and understood.
    pub(super) fn into_rendered(self) -> Option<String> {
        self.debug_info.map(|info| info.rendered_template)
    }
}

/// The reply of `/api/tags`.
#[derive(Deserialize)]
pub(super) struct Tags {
    #[serde(default)]
    pub models: Option<Vec<Model>>,
}

/// The reply of `/api/version`.
#[derive(Deserialize)]
pub(super) struct Version {
    pub version: String,
}

/// What is used of `/api/show`.
#[derive(Deserialize)]
pub(super) struct Show {
    #[serde(default)]
    model_info: Option<serde_json::Map<String, Value>>,
    #[serde(default)]
    capabilities: Option<Vec<String>>,
}

impl Show {
    /// The largest context window in tokens.
    pub(super) fn context_length(&self) -> Option<u32> {
        let info = self.model_info.as_ref()?;
        // The key begins with the architecture; a multimodal model has several such keys.
        let architecture = info.get("general.architecture").and_then(Value::as_str)?;
        let tokens = info.get(&format!("{architecture}.context_length"))?.as_u64()?;
        u32::try_from(tokens).ok().filter(|tokens| *tokens > 0)
    }

    /// Whether `think` may be asked of it.
    pub(super) fn thinks(&self) -> bool {
        self.capabilities.iter().flatten().any(|capability| capability == "thinking")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_without_a_tag_means_latest() {
        assert!(same_model("tinyllama", "tinyllama:latest"));
        assert!(same_model("tinyllama:latest", "tinyllama"));
        assert!(same_model("host:5000/a/b", "host:5000/a/b:latest"));
        assert!(!same_model("tinyllama:1b", "tinyllama"));
        assert!(!same_model("tinyllama", "llama"));
    }

    #[test]
    fn a_request_leaves_nothing_for_ollama_to_decide() {
        let options = Options {
            temperature: 0.0,
            num_predict: 0,
            num_ctx: Some(2048),
            seed: None,
            stop: Vec::new(),
        };
        let keep_alive = KeepAlive::from("-1");
        let messages = [ChatMessage { role: ChatRole::User, content: "hi".to_owned() }];
        let body = ChatBody {
            model: "m",
            messages: &messages,
            options: &options,
            stream: true,
            render_only: false,
            always: Always::new(&keep_alive, false),
        };
        assert_eq!(
            serde_json::to_value(&body).expect("JSON"),
            json!({
                "model": "m",
                "messages": [{"role": "user", "content": "hi"}],
                "options": {"temperature": 0.0, "num_predict": 1, "num_ctx": 2048},
                "stream": true,
                "think": false,
                "truncate": false,
                "shift": false,
                "keep_alive": -1,
            })
        );
    }

    #[test]
    fn keep_alive_is_seconds_or_has_a_unit() {
        let json = |text: &str| serde_json::to_value(KeepAlive::from(text)).expect("JSON");
        assert_eq!(json("5m"), json!("5m"));
        assert_eq!(json(" 300 "), json!(300));
    }

    #[test]
    fn the_window_is_that_of_the_architecture() {
        let show: Show = serde_json::from_value(json!({
            "model_info": {
                "clip.context_length": 77,
                "general.architecture": "llama",
                "llama.context_length": 2048,
            },
            "capabilities": ["completion", "thinking"],
        }))
        .expect("a reply");
        assert_eq!(show.context_length(), Some(2048));
        assert!(show.thinks());
        let bare: Show = serde_json::from_value(json!({})).expect("a reply");
        assert_eq!(bare.context_length(), None);
        assert!(!bare.thinks());
    }
}
