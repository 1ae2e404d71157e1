//! The requests to hosts, written strictly.

use serde::{Serialize, Serializer};

use super::reply::Done;

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
}

/// The options of a generation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Options {
    /// The temperature, from 0 (always the likeliest token) to 2.
    pub temperature: f64,
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
    /// The share of the likeliest tokens that are chosen from, 0 to 1; the model's own where absent,
    /// as the penalties are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
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
    /// The end of the answer, on the last token.
    pub done: Option<Done>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_leaves_no_choice_to_ollama() {
        let options =
            Options { temperature: 0.0, num_predict: 0, num_ctx: Some(2048), ..Options::default() };
        let keep_alive = KeepAlive::from("-1");
        let messages = [ChatMessage { role: ChatRole::User, content: "hi".to_owned() }];
        let body = ChatBody {
            model: "m",
            messages: &messages,
            options: &options,
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
