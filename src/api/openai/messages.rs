//! Reads the conversation that comes with a request. Pure.

use chrono::Utc;
use serde::Serialize;
use serde_json::Value;

use super::params::{INVALID_TYPE, INVALID_VALUE, JsonObject, Params, UNSUPPORTED_VALUE, error};
use crate::http::extract::fields::FieldError;
use crate::session::image::RequestImages;
use crate::session::model::ToolCall;
use crate::session::store::{OwnConversation, message};
use crate::session::{Image, ImageRef, Message, Role};

/// The conversation of a request.
#[derive(Clone, Debug)]
pub struct Messages {
    /// The messages before the question, oldest first.
    pub before: Vec<Message>,
    /// The message that is answered.
    pub question: Message,
    /// The images of all messages, until the turn takes them.
    pub images: Vec<Image>,
}

impl Messages {
    /// Returns what distinguishes this conversation from others.
    pub fn for_digest(&self) -> Vec<impl Serialize + '_> {
        let all = self.before.iter().chain([&self.question]);
        all.map(|it| (it.role, &it.content, &it.tool_calls, &it.tool_call_id, &it.images)).collect()
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
    let mut images = RequestImages::default();
    let mut before = Vec::with_capacity(list.len());
    for (at, value) in list.iter().enumerate() {
        let message = read_message(value, &format!("messages[{at}]"), &before, &mut images)?;
        before.push(message);
    }
    let bytes: usize = before.iter().map(bytes).sum();
    if bytes > OwnConversation::BYTES {
        let msg = format!("must have at most {} bytes of text together", OwnConversation::BYTES);
        return Err(params.refuse("messages", INVALID_VALUE, msg));
    }
    match before.pop() {
        Some(question) if question.role != Role::Assistant => {
            Ok(Messages { before, question, images: images.into_images() })
        }
        _ => {
            let path = format!("messages[{}].role", before.len());
            let msg = "must not be assistant in the last message: there is nothing to answer";
            Err(error(&path, INVALID_VALUE, msg))
        }
    }
}

/// Returns the bytes that a message takes.
fn bytes(message: &Message) -> usize {
    let calls = message.tool_calls.iter();
    let calls = calls.map(|call| call.id.len() + call.name.len() + call.arguments.len());
    message.content.len() + calls.sum::<usize>()
}

fn read_message(
    value: &Value,
    path: &str,
    before: &[Message],
    images: &mut RequestImages,
) -> Result<Message, FieldError> {
    let mut params = Params::of_value(value, path)?;
    let role = match params.required_text("role")? {
        "developer" | "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        "function" => {
            let msg = "is supported as developer, system, user, assistant and tool";
            return Err(params.refuse("role", UNSUPPORTED_VALUE, msg));
        }
        _ => {
            let msg = "must be developer, system, user, assistant or tool";
            return Err(params.refuse("role", INVALID_VALUE, msg));
        }
    };
    let mut message = message(role, Utc::now());
    match role {
        Role::Assistant => {
            message.tool_calls = tool_calls(&mut params)?;
            // Clients send the message of an earlier reply as it came.
            params
                .only("annotations", "[]", |value| value.as_array().is_some_and(Vec::is_empty))?;
            params.unsupported(&["audio", "function_call", "refusal"])?;
        }
        Role::Tool => {
            let id = params.required_text("tool_call_id")?;
            let mut calls = before.iter().flat_map(|message| &message.tool_calls);
            let Some(call) = calls.find(|call| call.id == id) else {
                let msg = "must be the id of a call in an earlier message";
                return Err(params.refuse("tool_call_id", INVALID_VALUE, msg));
            };
            message.tool_call_id = Some(id.to_owned());
            message.tool_name = Some(call.name.clone());
        }
        Role::System | Role::User => {}
    }
    let path = params.path_of("content");
    message.content = match params.value("content") {
        None if !message.tool_calls.is_empty() => String::new(),
        _ => {
            let content = params.required("content")?;
            // Only a user shows images, as OpenAI has it.
            let images = (role == Role::User).then_some((images, &mut message.images));
            read_content(content, &path, images)?
        }
    };
    params.unsupported(&["name"])?;
    params.finish()?;
    Ok(message)
}

/// Reads the calls of tools in a message of the model.
fn tool_calls(params: &mut Params<'_>) -> Result<Vec<ToolCall>, FieldError> {
    let path = params.path_of("tool_calls");
    let list = params.list("tool_calls")?.unwrap_or_default();
    let read = |(at, value): (usize, &Value)| {
        let path = format!("{path}[{at}]");
        let mut call = Params::of_value(value, &path)?;
        let id = call.required_text("id")?.to_owned();
        if call.required_text("type")? != "function" {
            return Err(call.refuse("type", UNSUPPORTED_VALUE, "is supported as function"));
        }
        let path = call.path_of("function");
        let mut function = Params::of_value(call.required("function")?, &path)?;
        call.finish()?;
        let name = function.required_text("name")?.to_owned();
        let arguments = function.required_text("arguments")?;
        if serde_json::from_str::<JsonObject>(arguments).is_err() {
            return Err(function.refuse(
                "arguments",
                INVALID_VALUE,
                "must be a JSON object as text",
            ));
        }
        function.finish()?;
        Ok(ToolCall { id, name, arguments: arguments.to_owned() })
    };
    list.iter().enumerate().map(read).collect()
}

/// Reads a content: a text, or a list of parts, whose texts are joined by line breaks. The images of
/// its parts are added to those of the request and of the message, where it may have any.
fn read_content(
    value: &Value,
    path: &str,
    mut images: Option<(&mut RequestImages, &mut Vec<ImageRef>)>,
) -> Result<String, FieldError> {
    let parts = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) if !parts.is_empty() => parts,
        Value::Array(_) => return Err(error(path, INVALID_VALUE, "must have at least one part")),
        _ => return Err(error(path, INVALID_TYPE, "must be a string or a list of parts")),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (at, part) in parts.iter().enumerate() {
        let mut params = Params::of_value(part, &format!("{path}[{at}]"))?;
        match (params.required_text("type")?, &mut images) {
            ("text", _) => texts.push(params.required_text("text")?),
            ("image_url", Some((images, of_message))) => {
                read_image(&mut params, images, of_message)?;
            }
            (_, Some(_)) => {
                let msg = "is supported as text and image_url";
                return Err(params.refuse("type", UNSUPPORTED_VALUE, msg));
            }
            (_, None) => {
                return Err(params.refuse("type", UNSUPPORTED_VALUE, "is supported as text"));
            }
        }
        params.finish()?;
    }
    Ok(texts.join("\n"))
}

/// Reads an image, which comes as a data URL. No other URL is fetched.
fn read_image(
    params: &mut Params<'_>,
    images: &mut RequestImages,
    of_message: &mut Vec<ImageRef>,
) -> Result<(), FieldError> {
    let path = params.path_of("image_url");
    let mut image = Params::of_value(params.required("image_url")?, &path)?;
    let url = image.required_text("url")?;
    let data = url.strip_prefix("data:").and_then(|rest| rest.split_once(','));
    let base64 = data.filter(|(kind, _)| {
        let (media_type, form) = kind.rsplit_once(';').unwrap_or((kind, ""));
        media_type.starts_with("image/") && form.eq_ignore_ascii_case("base64")
    });
    let Some((_, base64)) = base64 else {
        let msg = "is supported as a data URL, data:image/png;base64,…: no other URL is fetched";
        return Err(image.refuse("url", UNSUPPORTED_VALUE, msg));
    };
    let added = images.add(base64, of_message);
    added.map_err(|fault| image.refuse("url", INVALID_VALUE, fault.to_string()))?;
    // How a model takes an image apart is the model's own matter.
    image.text("detail")?;
    image.finish()
}
