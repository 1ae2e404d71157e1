//! Reads the conversation that comes with a request. Pure.

use std::collections::HashMap;

use chrono::Utc;
use serde::Serialize;
use serde_json::Value;

use super::content::{self, Images, Parts};
use super::params::{INVALID_VALUE, Params, UNSUPPORTED_PARAMETER, UNSUPPORTED_VALUE, error};
use super::tools::check_name;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::is_object;
use crate::session::image::RequestImages;
use crate::session::model::ToolCall;
use crate::session::store::{OwnConversation, message};
use crate::session::{Image, Message, Role};

/// Bytes of the id of a call, at most: each result names it.
const CALL_ID_BYTES: usize = 256;

/// The functions of the calls in a conversation, by the ids of the calls: each result names the call that it
/// answers. Of two calls with one id, the first one counts.
#[derive(Debug, Default)]
pub struct CallNames(HashMap<String, String>);

impl CallNames {
    /// Adds the calls of the next message.
    pub fn add(&mut self, calls: &[ToolCall]) {
        for ToolCall { id, name, .. } in calls {
            self.0.entry(id.clone()).or_insert_with(|| name.clone());
        }
    }

    /// Adds the calls of messages, and of those that came before each with its request.
    pub fn add_all(&mut self, messages: &[Message]) {
        for message in messages.iter().flat_map(|it| it.before.iter().chain([it])) {
            self.add(&message.tool_calls);
        }
    }

    /// Returns the function of the call with this id.
    pub fn get(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(String::as_str)
    }
}

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
    let mut calls = CallNames::default();
    let mut before = Vec::with_capacity(list.len());
    let mut bytes = 0;
    for (at, value) in list.iter().enumerate() {
        let message = read_message(value, &format!("messages[{at}]"), &calls, &mut images)?;
        calls.add(&message.tool_calls);
        bytes += OwnConversation::bytes_of(&message);
        if bytes > OwnConversation::BYTES {
            let msg = format!("must have at most {}", OwnConversation::bound_of_bytes());
            return Err(params.refuse("messages", INVALID_VALUE, msg));
        }
        before.push(message);
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

fn read_message(
    value: &Value,
    path: &str,
    calls: &CallNames,
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
            // The content as an object, as `parse` and `stream` of OpenAI's packages add it.
            params.ignore(&["parsed"]);
        }
        Role::Tool => {
            let id = params.required_text("tool_call_id")?;
            let Some(name) = calls.get(id) else {
                let msg = "must be the id of a call in an earlier message";
                return Err(params.refuse("tool_call_id", INVALID_VALUE, msg));
            };
            message.tool_call_id = Some(id.to_owned());
            message.tool_name = Some(name.to_owned());
        }
        Role::System | Role::User => {}
    }
    let path = params.path_of("content");
    message.content = match params.value("content") {
        None if !message.tool_calls.is_empty() => String::new(),
        _ => {
            let value = params.required("content")?;
            // Only a user shows images, as OpenAI has it.
            let of_message = &mut message.images;
            let images = (role == Role::User).then_some(Images { of_request: images, of_message });
            content::read(value, &path, Parts::Chat, images)?
        }
    };
    check_author(&mut params, &message)?;
    params.finish()?;
    Ok(message)
}

/// Checks the name of a message's author. A result of a tool may name its function, as older clients do,
/// which the model gets either way.
fn check_author(params: &mut Params<'_>, message: &Message) -> Result<(), FieldError> {
    let Some(name) = params.text("name")? else { return Ok(()) };
    if message.role == Role::Tool {
        if message.tool_name.as_deref() == Some(name) {
            return Ok(());
        }
        let msg = "must be the name of the function that the call names";
        return Err(params.refuse("name", INVALID_VALUE, msg));
    }
    let msg = "is not supported: the model hosts take no names of authors; write the name into the content";
    Err(params.refuse("name", UNSUPPORTED_PARAMETER, msg))
}

/// Reads the calls of tools in a message of the model.
fn tool_calls(params: &mut Params<'_>) -> Result<Vec<ToolCall>, FieldError> {
    let path = params.path_of("tool_calls");
    let list = params.list("tool_calls")?.unwrap_or_default();
    if list.len() > OwnConversation::CALLS {
        let msg = format!("must have at most {} calls", OwnConversation::CALLS);
        return Err(params.refuse("tool_calls", INVALID_VALUE, msg));
    }
    let read = |(at, value): (usize, &Value)| {
        let path = format!("{path}[{at}]");
        let mut call = Params::of_value(value, &path)?;
        let id = call_id(&mut call, "id")?;
        if call.required_text("type")? != "function" {
            return Err(call.refuse("type", UNSUPPORTED_VALUE, "is supported as function"));
        }
        let path = call.path_of("function");
        let mut function = Params::of_value(call.required("function")?, &path)?;
        // The position of the call in a stream, which those packages keep.
        call.ignore(&["index"]);
        call.finish()?;
        check_name(&mut function)?;
        let name = function.required_text("name")?.to_owned();
        let arguments = function.required_text("arguments")?;
        if !is_object(arguments) {
            return Err(function.refuse(
                "arguments",
                INVALID_VALUE,
                "must be a JSON object as text",
            ));
        }
        function.ignore(&["parsed_arguments"]);
        function.finish()?;
        Ok(ToolCall { id, name, arguments: arguments.to_owned() })
    };
    list.iter().enumerate().map(read).collect()
}

/// Reads the id of a call, which each result of it repeats.
///
/// # Errors
/// Where it is absent, no text, or too long.
pub fn call_id(params: &mut Params<'_>, name: &'static str) -> Result<String, FieldError> {
    let id = params.required_text(name)?;
    if id.len() > CALL_ID_BYTES {
        let msg = format!("must have at most {CALL_ID_BYTES} bytes");
        return Err(params.refuse(name, INVALID_VALUE, msg));
    }
    Ok(id.to_owned())
}
