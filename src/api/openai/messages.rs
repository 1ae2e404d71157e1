//! Reads the conversation that comes with a request. Pure.

use chrono::Utc;
use serde_json::Value;

use super::params::{INVALID_TYPE, INVALID_VALUE, Params, UNSUPPORTED_VALUE, error};
use crate::http::extract::fields::FieldError;
use crate::session::store::{OwnConversation, message};
use crate::session::{Message, Role};

/// The conversation of a request.
#[derive(Clone, Debug)]
pub struct Messages {
    /// The messages before the question, oldest first.
    pub before: Vec<Message>,
    /// The message that is answered.
    pub question: Message,
}

impl Messages {
    /// Returns what distinguishes this conversation from others.
    pub fn for_digest(&self) -> Vec<(Role, &str)> {
        let all = self.before.iter().chain([&self.question]);
        all.map(|message| (message.role, message.content.as_str())).collect()
    }
}

/// Reads the messages of a request.
///
/// # Errors
/// The first one that is not valid.
pub fn read(params: &mut Params<'_>) -> Result<Messages, FieldError> {
    params.required("messages")?;
    let list = params.list("messages")?.unwrap_or_default();
    if list.is_empty() || list.len() > OwnConversation::MESSAGES {
        let msg = format!("must have 1 to {} messages", OwnConversation::MESSAGES);
        return Err(params.refuse("messages", INVALID_VALUE, msg));
    }
    let read = list.iter().enumerate().map(|(at, value)| {
        let path = format!("messages[{at}]");
        read_message(value, &path)
    });
    let mut before = read.collect::<Result<Vec<_>, _>>()?;
    let bytes: usize = before.iter().map(|message| message.content.len()).sum();
    if bytes > OwnConversation::BYTES {
        let msg = format!("must have at most {} bytes of text together", OwnConversation::BYTES);
        return Err(params.refuse("messages", INVALID_VALUE, msg));
    }
    let last = before.len() - 1;
    match before.pop() {
        Some(question) if question.role != Role::Assistant => Ok(Messages { before, question }),
        _ => {
            let path = format!("messages[{last}].role");
            let msg = "must not be assistant in the last message: there is nothing to answer";
            Err(error(&path, INVALID_VALUE, msg))
        }
    }
}

fn read_message(value: &Value, path: &str) -> Result<Message, FieldError> {
    let mut params = Params::of_value(value, path)?;
    let role = match params.required_text("role")? {
        "developer" | "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => {
            let msg = "is supported as developer, system, user and assistant";
            return Err(params.refuse("role", UNSUPPORTED_VALUE, msg));
        }
        _ => {
            let msg = "must be developer, system, user or assistant";
            return Err(params.refuse("role", INVALID_VALUE, msg));
        }
    };
    let content = content(params.required("content")?, &params.path_of("content"))?;
    if role == Role::Assistant {
        // Clients send the message of an earlier reply as it came.
        params.only("annotations", "[]", |value| value.as_array().is_some_and(Vec::is_empty))?;
        params.unsupported(&["audio", "function_call", "refusal", "tool_calls"])?;
    }
    params.unsupported(&["name"])?;
    params.finish()?;
    Ok(Message { content, ..message(role, Utc::now()) })
}

/// Reads a content: a text, or a list of parts, whose texts are joined by line breaks.
fn content(value: &Value, path: &str) -> Result<String, FieldError> {
    let parts = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) if !parts.is_empty() => parts,
        Value::Array(_) => return Err(error(path, INVALID_VALUE, "must have at least one part")),
        _ => return Err(error(path, INVALID_TYPE, "must be a string or a list of parts")),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (at, part) in parts.iter().enumerate() {
        let mut params = Params::of_value(part, &format!("{path}[{at}]"))?;
        match params.required_text("type")? {
            "text" => texts.push(params.required_text("text")?),
            _ => {
                let msg = "is supported as text";
                return Err(params.refuse("type", UNSUPPORTED_VALUE, msg));
            }
        }
        params.finish()?;
    }
    Ok(texts.join("\n"))
}
