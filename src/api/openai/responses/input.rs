//! Reads the items of an input into messages, and writes messages as items. Pure.

use std::collections::HashSet;

use chrono::Utc;
use serde_json::{Value, json};

use super::super::content::{self, Images, Parts};
use super::super::messages::{CallNames, Messages, call_id};
use super::super::params::{INVALID_TYPE, INVALID_VALUE, Params, UNSUPPORTED_VALUE, error};
use super::super::tools::check_name;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::is_object;
use crate::session::image::RequestImages;
use crate::session::model::ToolCall;
use crate::session::store::{OwnConversation, message};
use crate::session::{Image, ImageRef, Message, Role};

/// An item of an input, with its path.
#[derive(Clone, Debug)]
pub struct InputItem {
    path: String,
    content: ItemContent,
}

#[derive(Clone, Debug)]
enum ItemContent {
    Message(Role, String, Vec<ImageRef>),
    Call(ToolCall),
    /// The result of the call with this identifier.
    Result(String, String),
    /// Earlier reasoning of the model. A model never gets its earlier reasoning again.
    Reasoning,
}

impl InputItem {
    /// Returns what distinguishes this item from others.
    pub fn for_digest(&self) -> String {
        match &self.content {
            ItemContent::Message(role, text, images) => json!([role, text, images]).to_string(),
            ItemContent::Call(call) => json!(call).to_string(),
            ItemContent::Result(call, text) => json!([call, text]).to_string(),
            ItemContent::Reasoning => String::new(),
        }
    }
}

/// Returns whether items have a result whose call is not among them.
pub fn has_result_of_earlier_call(items: &[InputItem]) -> bool {
    let mut calls = HashSet::new();
    items.iter().any(|item| match &item.content {
        ItemContent::Call(call) => {
            calls.insert(call.id.as_str());
            false
        }
        ItemContent::Result(id, _) => !calls.contains(id.as_str()),
        ItemContent::Message(..) | ItemContent::Reasoning => false,
    })
}

/// Returns whether items have the result of this call.
pub fn has_result_of(items: &[InputItem], call: &str) -> bool {
    items.iter().any(|item| matches!(&item.content, ItemContent::Result(id, _) if id == call))
}

/// Reads the input of a request: a text, or a list of items. Adds its images to `images`.
///
/// # Errors
/// The first item that is not valid.
pub fn read(
    params: &mut Params<'_>,
    images: &mut RequestImages,
) -> Result<Vec<InputItem>, FieldError> {
    const NAME: &str = "input";
    let list = match params.required(NAME)? {
        Value::String(text) => {
            let content = ItemContent::Message(Role::User, text.clone(), Vec::new());
            return Ok(vec![InputItem { path: NAME.to_owned(), content }]);
        }
        Value::Array(list) => list,
        _ => return Err(params.refuse(NAME, INVALID_TYPE, "must be a string or a list of items")),
    };
    read_items(params, NAME, list, OwnConversation::MESSAGES, images)
}

/// Reads a list of items, at least one and at most so many. Adds their images to `images`.
///
/// # Errors
/// The first item that is not valid.
pub fn read_items(
    params: &Params<'_>,
    name: &str,
    list: &[Value],
    most: usize,
    images: &mut RequestImages,
) -> Result<Vec<InputItem>, FieldError> {
    if list.is_empty() || list.len() > most {
        return Err(params.refuse(name, INVALID_VALUE, format!("must have 1 to {most} items")));
    }
    let read = |(at, value)| read_item(value, format!("{name}[{at}]"), images);
    list.iter().enumerate().map(read).collect()
}

fn read_item(
    value: &Value,
    path: String,
    images: &mut RequestImages,
) -> Result<InputItem, FieldError> {
    let mut params = Params::of_value(value, &path)?;
    // Clients send the items of an earlier reply as they came.
    params.text("id")?;
    let kind = match params.text("type")? {
        None if params.value("role").is_some() => "message",
        None => params.required_text("type")?,
        Some(kind) => kind,
    };
    let content = match kind {
        "message" => read_message(&mut params, images)?,
        "function_call" => {
            params.unsupported(&["async", "caller", "namespace"])?;
            // The arguments as an object, as `parse` and `stream` of OpenAI's packages add it.
            params.ignore(&["parsed_arguments"]);
            check_name(&mut params)?;
            let call = ToolCall {
                id: call_id(&mut params, "call_id")?,
                name: params.required_text("name")?.to_owned(),
                arguments: params.required_text("arguments")?.to_owned(),
            };
            if !is_object(&call.arguments) {
                let msg = "must be a JSON object as text";
                return Err(params.refuse("arguments", INVALID_VALUE, msg));
            }
            ItemContent::Call(call)
        }
        "function_call_output" => {
            params.unsupported(&["caller", "name", "namespace"])?;
            let call = params.required_text("call_id")?.to_owned();
            let path = params.path_of("output");
            let output = params.required("output")?;
            ItemContent::Result(call, content::read(output, &path, Parts::Input, None)?)
        }
        "reasoning" => {
            params.unsupported(&["encrypted_content"])?;
            params.list("summary")?;
            params.list("content")?;
            ItemContent::Reasoning
        }
        _ => {
            let msg = "is supported as message, function_call, function_call_output and reasoning";
            return Err(params.refuse("type", UNSUPPORTED_VALUE, msg));
        }
    };
    params.only("status", "completed or incomplete", |value| {
        *value == "completed" || *value == "incomplete"
    })?;
    params.finish()?;
    Ok(InputItem { path, content })
}

fn read_message(
    params: &mut Params<'_>,
    images: &mut RequestImages,
) -> Result<ItemContent, FieldError> {
    let role = match params.required_text("role")? {
        "developer" | "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => {
            let msg = "must be developer, system, user or assistant";
            return Err(params.refuse("role", INVALID_VALUE, msg));
        }
    };
    params.unsupported(&["phase"])?;
    let kinds = if role == Role::Assistant { Parts::Output } else { Parts::Input };
    let path = params.path_of("content");
    let mut of_message = Vec::new();
    // Only a user shows images, as in chat completions.
    let images =
        (role == Role::User).then_some(Images { of_request: images, of_message: &mut of_message });
    let text = content::read(params.required("content")?, &path, kinds, images)?;
    Ok(ItemContent::Message(role, text, of_message))
}

/// Joins the messages of earlier responses and the items of an input to the conversation of a turn. `calls`
/// are those of a conversation that goes on.
///
/// # Errors
/// The first item that does not follow from what is before it, or a conversation that is too large.
pub fn conversation(
    calls: CallNames,
    earlier: Vec<Message>,
    items: &[InputItem],
    instructions: usize,
    images: Vec<Image>,
) -> Result<Messages, FieldError> {
    let mut before = messages(calls, earlier, items)?;
    let total: usize = before.iter().map(OwnConversation::bytes_of).sum();
    if before.len() > OwnConversation::MESSAGES || total + instructions > OwnConversation::BYTES {
        let msg = format!(
            "must have, with what previous_response_id brings and with the instructions, at most {} \
             messages and {}",
            OwnConversation::MESSAGES,
            OwnConversation::bound_of_bytes()
        );
        return Err(error("input", INVALID_VALUE, msg));
    }
    match before.pop() {
        Some(question) if question.role != Role::Assistant => {
            Ok(Messages { before, question, images })
        }
        _ => {
            let msg = "must not end with an item of the model: there is nothing to answer";
            Err(error("input", INVALID_VALUE, msg))
        }
    }
}

/// Joins earlier messages and items to messages. `calls` are those of a conversation that goes on.
///
/// # Errors
/// The first item that does not follow from what is before it.
pub fn messages(
    mut calls: CallNames,
    earlier: Vec<Message>,
    items: &[InputItem],
) -> Result<Vec<Message>, FieldError> {
    for message in &earlier {
        calls.add(&message.tool_calls);
    }
    let mut before = earlier;
    let mut last = None;
    for InputItem { path, content } in items {
        let now = Utc::now();
        let new = match content {
            ItemContent::Message(role, text, images) => {
                let images = images.clone();
                Message { content: text.clone(), images, ..message(*role, now) }
            }
            ItemContent::Call(call) => {
                calls.add(std::slice::from_ref(call));
                // Calls in a row, and the text before them, are one answer of the model.
                if let (Some("call" | "answer"), Some(answer)) = (last, before.last_mut()) {
                    if answer.tool_calls.len() == OwnConversation::CALLS {
                        let most = OwnConversation::CALLS;
                        let msg = format!("must not be more than {most} function calls in a row");
                        return Err(error(path, INVALID_VALUE, msg));
                    }
                    answer.tool_calls.push(call.clone());
                    last = Some("call");
                    continue;
                }
                Message { tool_calls: vec![call.clone()], ..message(Role::Assistant, now) }
            }
            ItemContent::Result(id, text) => {
                let Some(name) = calls.get(id) else {
                    let msg = "must be the call_id of an earlier function_call";
                    return Err(error(&format!("{path}.call_id"), INVALID_VALUE, msg));
                };
                Message {
                    content: text.clone(),
                    tool_call_id: Some(id.clone()),
                    tool_name: Some(name.to_owned()),
                    ..message(Role::Tool, now)
                }
            }
            ItemContent::Reasoning => continue,
        };
        last = match content {
            ItemContent::Message(Role::Assistant, ..) => Some("answer"),
            ItemContent::Call(_) => Some("call"),
            _ => None,
        };
        before.push(new);
    }
    Ok(before)
}

/// Returns messages of an input as the items that a client gets, oldest first.
pub fn items(messages: &[Message]) -> Vec<Value> {
    messages.iter().flat_map(items_of_message).collect()
}

/// Returns a message of an input, and the messages that came before it with its request, as items. The id of
/// each has the digits of the message's own, by which it is found.
pub fn items_of_message(message: &Message) -> Vec<Value> {
    let id = message.id.simple();
    let before = message.before.iter().enumerate();
    let before = before.flat_map(|(at, before)| items_of(before, &format!("{id}_{at}")));
    before.chain(items_of(message, &id.to_string())).collect()
}

fn items_of(message: &Message, id: &str) -> Vec<Value> {
    let text = |kind: &str, role: &str| {
        let mut part = json!({"type": kind, "text": message.content});
        if kind == "output_text" {
            part["annotations"] = json!([]);
            part["logprobs"] = json!([]);
        }
        let image = json!({
            "type": "input_image", "detail": "auto", "file_id": null, "image_url": null,
        });
        let images = message.images.iter().map(|_| image.clone());
        let content: Vec<_> = [part].into_iter().chain(images).collect();
        json!({
            "id": format!("msg_{id}"), "type": "message", "status": "completed", "role": role,
            "content": content,
        })
    };
    match message.role {
        Role::System => vec![text("input_text", "system")],
        Role::User => vec![text("input_text", "user")],
        Role::Tool => vec![json!({
            "id": format!("fco_{id}"), "type": "function_call_output", "status": "completed",
            "call_id": message.tool_call_id, "output": message.content,
        })],
        Role::Assistant => {
            let has_text = !message.content.is_empty() || message.tool_calls.is_empty();
            let answer = has_text.then(|| text("output_text", "assistant"));
            let calls = message.tool_calls.iter().enumerate().map(|(at, call)| {
                json!({
                    "id": format!("fc_{id}_{at}"), "type": "function_call", "status": "completed",
                    "call_id": call.id, "name": call.name, "arguments": call.arguments,
                })
            });
            answer.into_iter().chain(calls).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(input: &Value) -> Result<Messages, (String, &'static str)> {
        let request = json!({"input": input});
        let mut params = Params::of_request(request.as_object().expect("an object"));
        let mut images = RequestImages::default();
        read(&mut params, &mut images)
            .and_then(|items| {
                conversation(CallNames::default(), Vec::new(), &items, 0, images.into_images())
            })
            .map_err(|error| (error.loc.last().cloned().unwrap_or_default(), error.kind))
    }

    #[test]
    fn an_input_is_a_text_or_the_items_of_a_conversation() {
        let plain = read_all(&json!("hi")).expect("valid");
        assert_eq!((plain.before.len(), &*plain.question.content), (0, "hi"));
        let input = json!([
            {"role": "developer", "content": "d"},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "x"}, {"type": "input_text", "text": "y"}]},
            {"id": "rs_1", "type": "reasoning", "summary": [], "status": "completed",
                "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": [],
                    "parsed": {"a": 1}}]},
            {"id": "fc_1", "type": "function_call", "call_id": "c1", "name": "f", "namespace": null,
                "arguments": "{}", "parsed_arguments": {}, "status": "completed", "new": null},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{\"x\":1}"},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {"type": "function_call_output", "call_id": "c2",
                "output": [{"type": "input_text", "text": "two"}]},
        ]);
        let Messages { before, question, .. } = read_all(&input).expect("valid");
        let roles: Vec<_> = before.iter().map(|it| (it.role, &*it.content)).collect();
        let wanted = [
            (Role::System, "d"),
            (Role::User, "x\ny"),
            (Role::Assistant, "a"),
            (Role::Tool, "one"),
        ];
        assert_eq!(roles, wanted);
        assert_eq!(before[2].tool_calls.len(), 2, "one answer with both calls");
        assert_eq!((question.role, &*question.content), (Role::Tool, "two"));
        assert_eq!(question.tool_name.as_deref(), Some("g"));
    }

    #[test]
    fn calls_in_a_row_are_bounded_and_of_two_with_one_id_the_first_one_is_answered() {
        let call = |id: &str, name: &str| json!({"type": "function_call", "call_id": id, "name": name, "arguments": "{}"});
        let result = json!({"type": "function_call_output", "call_id": "c", "output": "x"});
        let mut items = vec![call("c", "first"), call("c", "second")];
        items.resize(OwnConversation::CALLS, call("d", "f"));
        items.push(result.clone());
        let read = read_all(&Value::from(items.clone())).expect("valid");
        assert_eq!(read.question.tool_name.as_deref(), Some("first"));
        items.insert(0, call("d", "f"));
        let refused = read_all(&Value::from(items)).expect_err("one too many");
        assert_eq!(refused, (format!("input[{}]", OwnConversation::CALLS), "invalid_value"));
    }

    #[test]
    fn items_that_cannot_be_answered_are_refused_by_their_path() {
        let part = |part: Value| json!([{"role": "user", "content": [part]}]);
        for (input, path, kind) in [
            (json!(null), "input", "missing_required_parameter"),
            (json!(7), "input", "invalid_type"),
            (json!([]), "input", "invalid_value"),
            (json!(["hi"]), "input[0]", "invalid_type"),
            (json!([{"content": "x"}]), "input[0].type", "missing_required_parameter"),
            (json!([{"type": "item_reference", "id": "x"}]), "input[0].type", "unsupported_value"),
            (
                json!([{"type": "web_search_call", "status": "searching"}]),
                "input[0].type",
                "unsupported_value",
            ),
            (json!([{"role": "robot", "content": "x"}]), "input[0].role", "invalid_value"),
            (json!([{"role": "user"}]), "input[0].content", "missing_required_parameter"),
            (json!([{"role": "user", "content": 1}]), "input[0].content", "invalid_type"),
            (json!([{"role": "user", "content": []}]), "input[0].content", "invalid_value"),
            (
                json!([{"role": "user", "content": "x", "colour": 1}]),
                "input[0].colour",
                "unknown_parameter",
            ),
            (
                json!([{"role": "user", "content": "x", "status": "in_progress"}]),
                "input[0].status",
                "unsupported_value",
            ),
            (
                part(json!({"type": "input_image", "image_url": "data:image/png;base64,AA=="})),
                "input[0].content[0].image_url",
                "invalid_value",
            ),
            (
                part(json!({"type": "input_image", "image_url": "https://example.org/x.png"})),
                "input[0].content[0].image_url",
                "unsupported_value",
            ),
            (
                part(json!({"type": "input_image", "file_id": "file-1"})),
                "input[0].content[0].file_id",
                "unsupported_parameter",
            ),
            (
                json!([{"role": "system", "content": [{"type": "input_image", "image_url": "x"}]}]),
                "input[0].content[0].type",
                "unsupported_value",
            ),
            (
                part(json!({"type": "output_text", "text": "x"})),
                "input[0].content[0].type",
                "unsupported_value",
            ),
            (json!([{"role": "assistant", "content": "x"}]), "input", "invalid_value"),
            (
                json!([{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[]"}]),
                "input[0].arguments",
                "invalid_value",
            ),
            (
                json!([{"type": "function_call_output", "call_id": "c", "output": "x"}]),
                "input[0].call_id",
                "invalid_value",
            ),
            (
                json!([{"type": "function_call_output", "call_id": "c", "output": "x",
                    "namespace": "n"}]),
                "input[0].namespace",
                "unsupported_parameter",
            ),
            (
                json!([{"type": "reasoning", "summary": [], "encrypted_content": "x"}]),
                "input[0].encrypted_content",
                "unsupported_parameter",
            ),
            (json!("x".repeat((1 << 20) + 1)), "input", "invalid_value"),
        ] {
            let refused = read_all(&input).expect_err(path);
            assert_eq!(refused, (path.to_owned(), kind), "{path}");
        }
    }

    #[test]
    fn items_are_shown_again_as_they_came() {
        let input = json!([
            {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "s"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "r"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
        ]);
        let Messages { mut before, question, .. } = read_all(&input).expect("valid");
        before.push(question);
        let shown = items(&before);
        for (shown, given) in shown.iter().zip(input.as_array().expect("items")) {
            assert!(shown["id"].is_string() && shown["status"] == "completed", "{shown}");
            for (name, value) in given.as_object().expect("an item") {
                assert_eq!(&shown[name], value, "{name}");
            }
        }
        assert_eq!(shown.len(), 4);
        // One message of a conversation has all of them, and each is found by its digits.
        let question = before.pop().expect("the question");
        let all = Message { before, ..question };
        let digits = all.id.simple().to_string();
        let together = items_of_message(&all);
        assert_eq!(together.len(), 4);
        for (at, item) in together.iter().enumerate() {
            let id = item["id"].as_str().expect("an id");
            assert!(id.contains(&digits), "{item}");
            assert!(together[at + 1..].iter().all(|other| other["id"] != id), "{item}");
        }
    }

    #[test]
    fn a_result_of_an_earlier_call_is_known() {
        let result = json!({"type": "function_call_output", "call_id": "c", "output": "r"});
        let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"});
        for (input, of_earlier, has) in [
            (json!("hi"), false, false),
            (json!([result]), true, true),
            (json!([call, result]), false, true),
            (json!([result, call]), true, true),
        ] {
            let request = json!({"input": input});
            let mut params = Params::of_request(request.as_object().expect("an object"));
            let items = read(&mut params, &mut RequestImages::default()).expect("valid");
            assert_eq!(has_result_of_earlier_call(&items), of_earlier, "{input}");
            assert_eq!(has_result_of(&items, "c"), has, "{input}");
        }
    }
}
