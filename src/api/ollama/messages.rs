//! Reads the conversation that comes with a request. Pure.

use chrono::Utc;
use serde::Serialize;
use serde_json::{Map, Value};

use super::errors::invalid;
use super::fields::RequestFields;
use crate::http::problem::Problem;
use crate::session::image::RequestImages;
use crate::session::model::ToolCall;
use crate::session::store::{OwnConversation, message};
use crate::session::{Image, ImageRef, Message, Role};

/// The conversation of a request.
#[derive(Clone, Debug)]
pub struct OllamaMessages {
    /// The messages before the question, oldest first.
    pub before: Vec<Message>,
    /// The message that is answered.
    pub question: Message,
    /// The images of all messages.
    pub images: Vec<Image>,
}

impl OllamaMessages {
    /// Creates the conversation of one message of the user, after instructions.
    ///
    /// # Errors
    /// An image that is not valid.
    pub fn of_prompt(
        system: Option<&str>,
        prompt: &str,
        fields: RequestFields<'_>,
    ) -> Result<Self, Problem> {
        let before = system.map(|text| of_role(Role::System, text.to_owned()));
        let mut question = of_role(Role::User, prompt.to_owned());
        let mut images = RequestImages::default();
        question.images = read_images(fields, &mut images)?;
        let images = images.into_images();
        Ok(Self { before: before.into_iter().collect(), question, images })
    }

    /// Reads the messages of a request, of which there is at least one.
    ///
    /// # Errors
    /// The first one that is not valid, and a conversation that is too large.
    pub fn read(list: &[Value]) -> Result<Self, Problem> {
        if list.len() > OwnConversation::MESSAGES {
            let most = OwnConversation::MESSAGES;
            return Err(invalid(format!("messages: must have at most {most} messages")));
        }
        let mut images = RequestImages::default();
        let mut before = Vec::with_capacity(list.len());
        let mut bytes = 0;
        for (at, value) in list.iter().enumerate() {
            let path = format!("messages[{at}]");
            let Some(object) = value.as_object() else {
                return Err(invalid(format!("{path}: must be an object")));
            };
            let message = read_message(object, at, &format!("{path}."), &mut images)?;
            bytes += OwnConversation::bytes_of(&message);
            if bytes > OwnConversation::BYTES {
                let most = OwnConversation::bound_of_bytes();
                return Err(invalid(format!("messages: must have at most {most}")));
            }
            before.push(message);
        }
        match before.pop() {
            Some(question) if question.role != Role::Assistant => {
                Ok(Self { before, question, images: images.into_images() })
            }
            _ => Err(invalid(
                "messages: the last one must not be of the assistant; to continue an answer is not \
                 supported",
            )),
        }
    }

    /// Returns what distinguishes this conversation from others.
    pub fn for_digest(&self) -> Vec<impl Serialize + '_> {
        let all = self.before.iter().chain([&self.question]);
        let tool = |it: &'_ Message| (it.tool_name.clone(), it.tool_call_id.clone());
        all.map(|it| (it.role, &it.content, &it.tool_calls, tool(it), &it.images)).collect()
    }
}

fn read_message(
    object: &Map<String, Value>,
    at: usize,
    path: &str,
    images: &mut RequestImages,
) -> Result<Message, Problem> {
    let fields = RequestFields::new(object, path);
    let role = fields.text("role")?.unwrap_or_default();
    let role = match role.to_ascii_lowercase().as_str() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        _ => return Err(fields.refuse("role", "must be system, user, assistant or tool")),
    };
    // Clients send the reasoning of an earlier answer back. The model does not need it.
    fields.text("thinking")?;
    let mut message = of_role(role, fields.text("content")?.unwrap_or_default().to_owned());
    message.images = read_images(fields, images)?;
    if role == Role::Assistant {
        message.tool_calls = tool_calls(fields, at)?;
    }
    if role == Role::Tool {
        message.tool_name = fields.text("tool_name")?.map(str::to_owned);
        message.tool_call_id = fields.text("tool_call_id")?.map(str::to_owned);
    }
    Ok(message)
}

/// Reads the images of a message, in base64, and adds them to those of the request.
fn read_images(
    fields: RequestFields<'_>,
    images: &mut RequestImages,
) -> Result<Vec<ImageRef>, Problem> {
    let mut of_message = Vec::new();
    for value in fields.list("images")?.unwrap_or_default() {
        let Some(text) = value.as_str() else {
            return Err(fields.refuse("images", "must be a list of strings"));
        };
        let added = images.add(text, &mut of_message);
        added.map_err(|fault| fields.refuse("images", &fault.to_string()))?;
    }
    Ok(of_message)
}

/// Reads the calls of tools in the message at this place. A call without an identifier gets one: the
/// packages do not send it back.
fn tool_calls(fields: RequestFields<'_>, at: usize) -> Result<Vec<ToolCall>, Problem> {
    let list = fields.list("tool_calls")?.unwrap_or_default();
    if list.len() > OwnConversation::CALLS {
        let text = format!("must have at most {} calls", OwnConversation::CALLS);
        return Err(fields.refuse("tool_calls", &text));
    }
    let refused = || {
        let text = "must be calls with a function, its name, and an object of arguments";
        fields.refuse("tool_calls", text)
    };
    let read = |(number, call): (usize, &Value)| {
        let id = match &call["id"] {
            Value::String(id) if !id.is_empty() => id.clone(),
            _ => format!("call_{at}_{number}"),
        };
        let name = call["function"]["name"].as_str().filter(|name| !name.is_empty());
        let arguments = match &call["function"]["arguments"] {
            Value::Null => "{}".to_owned(),
            arguments @ Value::Object(_) => arguments.to_string(),
            _ => return Err(refused()),
        };
        Ok(ToolCall { id, name: name.ok_or_else(refused)?.to_owned(), arguments })
    };
    list.iter().enumerate().map(read).collect()
}

fn of_role(role: Role, content: String) -> Message {
    Message { content, ..message(role, Utc::now()) }
}
