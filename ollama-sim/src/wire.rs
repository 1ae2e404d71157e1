//! The wire format: requests as Ollama reads them, and its lines.

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
    /// The images, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<String>>,
    /// The calls of tools in a message of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<Value>>,
}

impl Message {
    /// Returns its text; null counts as empty.
    pub fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }
}

/// The fields that chat and generate share.
#[derive(Debug, Default, Deserialize)]
pub struct Common {
    /// The model as the request spells it.
    #[serde(default)]
    pub model: Option<String>,
    /// Whether the response is a stream of lines (the default) or one object.
    #[serde(default)]
    pub stream: Option<bool>,
    /// The options, checked later: Ollama does not treat a wrong type here as bad JSON.
    #[serde(default)]
    pub options: Option<Map<String, Value>>,
    /// Seconds, or a duration such as `5m`; a negative one is forever.
    #[serde(default)]
    pub keep_alive: Option<Value>,
    /// A bool, or `low`, `medium`, `high`.
    #[serde(default)]
    pub think: Option<Value>,
    /// `"json"`, or a JSON schema.
    #[serde(default)]
    pub format: Option<Value>,
    /// Where false, a prompt that is too long is an error.
    #[serde(default)]
    pub truncate: Option<bool>,
    /// Where false, the generation ends where the context is full.
    #[serde(default)]
    pub shift: Option<bool>,
    /// Whether to return the rendered prompt and generate nothing.
    #[serde(default, rename = "_debug_render_only")]
    pub debug_render_only: Option<bool>,
}

/// `POST /api/chat`.
#[derive(Debug, Default, Deserialize)]
pub struct ChatRequest {
    /// The conversation.
    #[serde(default)]
    pub messages: Option<Vec<Message>>,
    /// The tools that the model may call.
    #[serde(default)]
    pub tools: Option<Vec<Value>>,
    /// The shared fields.
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
    /// The images, in base64; a raw prompt refers to each by `[img-<number>]`.
    #[serde(default)]
    pub images: Option<Vec<String>>,
    /// Whether the prompt is used without a template.
    #[serde(default)]
    pub raw: Option<bool>,
    /// The shared fields.
    #[serde(flatten)]
    pub common: Common,
}

/// Formats a time as Ollama does.
pub fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// The two shapes of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The lines of chat, with `message`.
    Chat,
    /// The lines of generate, with `response`.
    Generate,
}

/// The figures of a last line; durations are in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Figures {
    /// The time since the request came.
    pub total_duration: u64,
    /// The time until the model was loaded.
    pub load_duration: u64,
    /// Tokens of the prompt.
    pub prompt_eval_count: usize,
    /// The time from then until the first token.
    pub prompt_eval_duration: u64,
    /// Tokens generated.
    pub eval_count: usize,
    /// The time from the first token to the end.
    pub eval_duration: u64,
}

/// The whole text of an answer that comes in one object.
#[derive(Clone, Copy, Debug, Default)]
pub struct Texts<'a> {
    /// The answer.
    pub answer: &'a str,
    /// The reasoning before it.
    pub reasoning: &'a str,
    /// The calls of tools.
    pub calls: &'a [Value],
}

#[derive(Serialize)]
struct Line<'a> {
    model: &'a str,
    created_at: String,
    #[serde(flatten)]
    answer: AnswerFields<'a>,
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    done_reason: Option<&'a str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    figures: Option<Figures>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum AnswerFields<'a> {
    Chat {
        message: AnswerMessage<'a>,
    },
    Generate {
        response: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        thinking: &'a str,
    },
}

#[derive(Serialize)]
struct AnswerMessage<'a> {
    role: &'static str,
    content: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    thinking: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tool_calls: &'a [Value],
}

impl Shape {
    /// Appends the line of one piece.
    pub fn piece(self, out: &mut Vec<u8>, model: &str, at: &str, text: &str, is_reasoning: bool) {
        let text = quoted(text);
        let (answer, thinking) = if is_reasoning {
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

    /// Returns the last line, or with the texts the only object.
    pub fn last(
        self,
        model: &str,
        done_reason: &str,
        texts: Texts<'_>,
        figures: Figures,
    ) -> String {
        self.object(model, Some(done_reason), texts, Some(figures))
    }

    /// Returns the answer to a request that has nothing to generate.
    pub fn loaded(self, model: &str, done_reason: &str) -> String {
        self.object(model, Some(done_reason), Texts::default(), None)
    }

    /// Returns the only object of a generation that ended without `done`.
    pub fn not_done(self, model: &str, texts: Texts<'_>) -> String {
        self.object(model, None, texts, None)
    }

    fn object(
        self,
        model: &str,
        done_reason: Option<&str>,
        texts: Texts<'_>,
        figures: Option<Figures>,
    ) -> String {
        let answer = match self {
            Self::Chat => AnswerFields::Chat {
                message: AnswerMessage {
                    role: "assistant",
                    content: texts.answer,
                    thinking: texts.reasoning,
                    tool_calls: texts.calls,
                },
            },
            Self::Generate => {
                AnswerFields::Generate { response: texts.answer, thinking: texts.reasoning }
            }
        };
        let line = Line {
            model,
            created_at: now(),
            answer,
            done: done_reason.is_some(),
            done_reason,
            figures,
        };
        // Strings and numbers always serialise.
        serde_json::to_string(&line).unwrap_or_default() + "\n"
    }

    /// Returns the rendered prompt, as `_debug_render_only` shows it.
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

/// Appends the line of the calls of tools, which come whole and in chat only.
pub fn calls_line(out: &mut Vec<u8>, model: &str, calls: &[Value]) {
    let line = json!({
        "model": model,
        "created_at": now(),
        "message": {"role": "assistant", "content": "", "tool_calls": calls},
        "done": false,
    });
    out.extend_from_slice(line.to_string().as_bytes());
    out.push(b'\n');
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
