//! The requests to hosts, written strictly.

use std::sync::Arc;

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::reply::{Done, ReplyCall};

/// The author of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatRole {
    /// The system prompt.
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
    /// The author.
    pub role: ChatRole,
    /// The text.
    pub content: String,
    /// The images, in base64.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "texts")]
    pub images: Vec<Arc<str>>,
    /// The calls of tools in a message of the model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<RequestedCall>,
    /// The tool whose result the message is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_name: Option<String>,
    /// The call whose result the message is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// Creates a message of text.
    pub fn text(role: ChatRole, content: String) -> Self {
        Self {
            role,
            content,
            images: Vec::new(),
            tool_calls: Vec::new(),
            tool_name: None,
            tool_call_id: None,
        }
    }
}

fn texts<S: Serializer>(texts: &[Arc<str>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(texts.iter().map(|text| &**text))
}

fn borrowed_texts<S: Serializer>(texts: &[&Arc<str>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(texts.iter().map(|text| &***text))
}

/// A call of a tool in an earlier message of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequestedCall {
    /// The identifier.
    pub id: String,
    /// The call.
    pub function: CalledFunction,
}

/// The function of a call, with its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CalledFunction {
    /// The name.
    pub name: String,
    /// The arguments, an object.
    pub arguments: RawJson,
}

/// JSON that is passed on as it is: a model writes the fields of an object in the order in which its
/// schema has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawJson(String);

impl RawJson {
    /// Wraps a text; none where it is not JSON.
    pub fn new(text: String) -> Option<Self> {
        serde_json::from_str::<&RawValue>(&text).is_ok().then_some(Self(text))
    }
}

impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(S::Error::custom)?;
        raw.serialize(serializer)
    }
}

/// The options of a generation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Options {
    /// The temperature, from 0 (always the likeliest token) to 2; the model's own where absent, which
    /// its Modelfile may set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Tokens at most. 0 is sent as 1, because 0 means "without end" to Ollama.
    #[serde(serialize_with = "at_least_one")]
    pub num_predict: u32,
    /// The context window in tokens: the same for all requests of a model, because another value
    /// reloads the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<u32>,
    /// The seed of the random choices: the same seed repeats an answer, as far as the model can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Texts that end the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// The number of the likeliest tokens that are chosen from; the model's own where absent, as all
    /// that follow are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// The share of the likeliest tokens that are chosen from, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// The share of the likeliest token's probability that a token needs, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// The factor by which a token is less likely that the latest text has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_penalty: Option<f64>,
    /// How much less likely a token is that the text has already, -2 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// How much less likely a token is for each time that the text has it, -2 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn at_least_one<S: Serializer>(tokens: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32((*tokens).max(1))
}

/// Whether a model reasons before it answers, and how hard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Think {
    /// The model does not reason.
    #[default]
    No,
    /// The model reasons with its default effort.
    Yes,
    /// The model reasons with low effort.
    Low,
    /// The model reasons with medium effort.
    Medium,
    /// The model reasons with high effort.
    High,
}

impl Serialize for Think {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::No => serializer.serialize_bool(false),
            Self::Yes => serializer.serialize_bool(true),
            Self::Low => serializer.serialize_str("low"),
            Self::Medium => serializer.serialize_str("medium"),
            Self::High => serializer.serialize_str("high"),
        }
    }
}

/// A request for the answer to a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRequest {
    /// The messages, oldest first; at least one.
    pub messages: Vec<ChatMessage>,
    /// The options of the generation.
    pub options: Options,
    /// Whether the model reasons; without effect on a model that does not support it.
    pub think: Think,
    /// The format of the answer: `"json"`, or a JSON schema.
    pub format: Option<RawJson>,
    /// The tools that the model may call, a list of functions.
    pub tools: Option<RawJson>,
}

impl ModelRequest {
    /// Returns whether the answer is free text, which the model continues behind any beginning. The
    /// grammar of a format begins with the first token of a request, and the host reads calls of
    /// tools out of the whole answer.
    pub fn is_free_text(&self) -> bool {
        self.format.is_none() && self.tools.is_none()
    }
}

/// How long a model stays loaded: Ollama reads a number as seconds, and a text with its unit.
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
pub(super) struct HostChatBody<'a> {
    pub model: &'a str,
    pub messages: &'a [ChatMessage],
    pub options: &'a Options,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<&'a RawJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<&'a RawJson>,
    pub stream: bool,
    #[serde(rename = "_debug_render_only", skip_serializing_if = "std::ops::Not::not")]
    pub render_only: bool,
    #[serde(flatten)]
    pub always: Always<'a>,
}

/// The body of `/api/generate`.
#[derive(Serialize)]
pub(super) struct HostGenerateBody<'a> {
    pub model: &'a str,
    pub prompt: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "borrowed_texts")]
    pub images: Vec<&'a Arc<str>>,
    pub options: &'a Options,
    pub stream: bool,
    pub raw: bool,
    #[serde(flatten)]
    pub always: Always<'a>,
}

/// Fields of every body, which Ollama would otherwise choose by itself.
#[derive(Serialize)]
pub(super) struct Always<'a> {
    think: Think,
    truncate: bool,
    shift: bool,
    keep_alive: &'a KeepAlive,
}

impl<'a> Always<'a> {
    pub(super) fn new(keep_alive: &'a KeepAlive, think: Think) -> Self {
        Self { think, truncate: false, shift: false, keep_alive }
    }
}

/// The text of one line of a stream, usually one token of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// The next text of the answer.
    pub content: String,
    /// The next text of the reasoning.
    pub thinking: String,
    /// The calls of tools that the model requests, which come whole.
    pub tool_calls: Vec<ReplyCall>,
    /// The end of the answer, on the last token.
    pub done: Option<Done>,
}

impl Token {
    /// Returns whether the token adds nothing to the answer.
    pub fn is_empty(&self) -> bool {
        self.content.is_empty() && self.thinking.is_empty() && self.tool_calls.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_leaves_no_choice_to_ollama() {
        let options = Options {
            temperature: Some(0.0),
            num_predict: 0,
            num_ctx: Some(2048),
            ..Options::default()
        };
        let keep_alive = KeepAlive::from("-1");
        let messages = [ChatMessage::text(ChatRole::User, "hi".to_owned())];
        let body = HostChatBody {
            model: "m",
            messages: &messages,
            options: &options,
            format: None,
            tools: None,
            stream: true,
            render_only: false,
            always: Always::new(&keep_alive, Think::No),
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
    fn a_schema_is_sent_with_its_fields_in_their_order() {
        let schema = r#"{"type": "object", "properties": {"z": {}, "a": {}}}"#;
        let schema = RawJson::new(schema.to_owned()).expect("JSON");
        let keep_alive = KeepAlive::from("-1");
        let body = HostChatBody {
            model: "m",
            messages: &[],
            options: &Options::default(),
            format: Some(&schema),
            tools: None,
            stream: true,
            render_only: false,
            always: Always::new(&keep_alive, Think::No),
        };
        let sent = serde_json::to_string(&body).expect("JSON");
        assert!(sent.contains(r#""format":{"type": "object", "properties": {"z": {}, "a": {}}}"#));
        assert_eq!(RawJson::new("{".to_owned()), None);
    }

    #[test]
    fn the_effort_of_reasoning_is_sent_in_ollamas_format() {
        let sent = [Think::No, Think::Yes, Think::Low, Think::Medium, Think::High]
            .map(|think| serde_json::to_value(think).expect("JSON"));
        assert_eq!(sent, [json!(false), json!(true), json!("low"), json!("medium"), json!("high")]);
    }

    #[test]
    fn keep_alive_is_seconds_or_has_a_unit() {
        let json = |text: &str| serde_json::to_value(KeepAlive::from(text)).expect("JSON");
        assert_eq!(json("5m"), json!("5m"));
        assert_eq!(json(" 300 "), json!(300));
    }
}
