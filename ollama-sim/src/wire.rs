//! What goes over the wire: requests as Ollama reads them, and its lines.

use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// One message of a conversation.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    #[serde(default)]
    pub role: String,
    /// Its text.
    #[serde(default)]
    pub content: Option<String>,
}

impl Message {
    /// Its text; nothing counts as empty.
    pub fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }
}

/// What chat and generate have in common.
#[derive(Debug, Default, Deserialize)]
pub struct Common {
    /// The model as asked for.
    #[serde(default)]
    pub model: Option<String>,
    /// One object, or lines (the default).
    #[serde(default)]
    pub stream: Option<bool>,
    /// Checked later: a wrong type here is not bad JSON to Ollama.
    #[serde(default)]
    pub options: Option<Map<String, Value>>,
    /// Seconds, or a duration such as `5m`; negative is for ever.
    #[serde(default)]
    pub keep_alive: Option<Value>,
    /// A bool, or `low`, `medium`, `high`.
    #[serde(default)]
    pub think: Option<Value>,
    /// False: a prompt that is too long is an error.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// False: generation ends where the context is full.
    #[serde(default)]
    pub shift: Option<bool>,
    /// Show the prompt, generate nothing.
    #[serde(default, rename = "_debug_render_only")]
    pub debug_render_only: Option<bool>,
}

/// `POST /api/chat`.
#[derive(Debug, Default, Deserialize)]
pub struct ChatRequest {
    /// The conversation.
    #[serde(default)]
    pub messages: Option<Vec<Message>>,
    /// The rest.
    #[serde(flatten)]
    pub common: Common,
}

/// `POST /api/generate`.
#[derive(Debug, Default, Deserialize)]
pub struct GenerateRequest {
    /// The prompt, or with `raw` exactly what the model sees.
    #[serde(default)]
    pub prompt: Option<String>,
    /// A system message.
    #[serde(default)]
    pub system: Option<String>,
    /// No template.
    #[serde(default)]
    pub raw: Option<bool>,
    /// The rest.
    #[serde(flatten)]
    pub common: Common,
}

/// The time as Ollama writes it.
pub fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// Which of the two shapes of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `message`.
    Chat,
    /// `response`.
    Generate,
}

/// The figures of a last line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Nanoseconds since the request came.
    pub total: u64,
    /// Nanoseconds until the model was loaded.
    pub load: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Nanoseconds until the first token.
    pub prompt: u64,
    /// Tokens generated.
    pub tokens: usize,
    /// Nanoseconds of generating.
    pub generating: u64,
}

impl Shape {
    /// Appends the line of one piece.
    pub fn piece(self, out: &mut Vec<u8>, model: &str, at: &str, text: &str, thought: bool) {
        let text = quoted(text);
        let (answer, thinking) = if thought {
            ("\"\"", format!(",\"thinking\":{text}"))
        } else {
            (text.as_str(), String::new())
        };
        let line = match self {
            Self::Chat => format!(
                "{{\"model\":{},\"created_at\":\"{at}\",\"message\":{{\"role\":\"assistant\",\"content\":{answer}{thinking}}},\"done\":false}}\n",
                quoted(model)
            ),
            Self::Generate => format!(
                "{{\"model\":{},\"created_at\":\"{at}\",\"response\":{answer}{thinking},\"done\":false}}\n",
                quoted(model)
            ),
        };
        out.extend_from_slice(line.as_bytes());
    }

    /// The last line, or with the texts the only one.
    pub fn last(
        self,
        model: &str,
        reason: &str,
        answer: &str,
        thoughts: &str,
        figures: Option<Figures>,
    ) -> Value {
        let mut line = Map::new();
        line.insert("model".to_owned(), json!(model));
        line.insert("created_at".to_owned(), json!(now()));
        match self {
            Self::Chat => {
                let mut message = json!({"role": "assistant", "content": answer});
                if !thoughts.is_empty() {
                    message["thinking"] = json!(thoughts);
                }
                line.insert("message".to_owned(), message);
            }
            Self::Generate => {
                line.insert("response".to_owned(), json!(answer));
                if !thoughts.is_empty() {
                    line.insert("thinking".to_owned(), json!(thoughts));
                }
            }
        }
        line.insert("done".to_owned(), json!(true));
        line.insert("done_reason".to_owned(), json!(reason));
        if let Some(f) = figures {
            line.insert("total_duration".to_owned(), json!(f.total));
            line.insert("load_duration".to_owned(), json!(f.load));
            line.insert("prompt_eval_count".to_owned(), json!(f.prompt_tokens));
            line.insert("prompt_eval_duration".to_owned(), json!(f.prompt));
            line.insert("eval_count".to_owned(), json!(f.tokens));
            line.insert("eval_duration".to_owned(), json!(f.generating));
        }
        Value::Object(line)
    }

    /// The rendered prompt, as `_debug_render_only` shows it.
    pub fn rendered(self, model: &str, prompt: &str) -> Value {
        let mut line = json!({
            "model": model,
            "created_at": now(),
            "done": false,
            "_debug_info": {"rendered_template": prompt},
        });
        match self {
            Self::Chat => line["message"] = json!({"role": "", "content": ""}),
            Self::Generate => line["response"] = json!(""),
        }
        line
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
