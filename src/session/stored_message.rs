//! Messages as they are stored: a header in one line of JSON, and the text, which Redis never decodes.
//!
//! The fields of the header have names of one letter, because each session of each stranger has
//! such headers.

use std::io;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::image::StoredImage;
use super::model::{
    ContextReport, Continuation, Failure, FinishReason, GenerationId, Message, Role, Status,
    ToolCall, Usage, timestamp,
};
use super::reasoning::Shape;

/// The header of a stored message.
#[derive(Serialize, Deserialize)]
struct Header {
    /// The id comes first: `push_message` finds it by its name.
    #[serde(rename = "i")]
    id: Uuid,
    #[serde(rename = "r")]
    role: Role,
    #[serde(rename = "t", with = "timestamp")]
    timestamp: DateTime<Utc>,
    /// Before all that may be long: `digests_of` in `images.lua` looks no further than 1 KiB.
    #[serde(rename = "p", skip_serializing_if = "Vec::is_empty", default)]
    images: Vec<StoredImage>,
    #[serde(rename = "u", skip_serializing_if = "Option::is_none", default)]
    user_id: Option<String>,
    #[serde(rename = "g", skip_serializing_if = "Option::is_none", default)]
    generation: Option<OfGeneration>,
    #[serde(rename = "m", skip_serializing_if = "Option::is_none", default)]
    model: Option<String>,
    #[serde(rename = "s", skip_serializing_if = "Option::is_none", default)]
    status: Option<Status>,
    #[serde(rename = "f", skip_serializing_if = "Option::is_none", default)]
    finish_reason: Option<FinishReason>,
    /// Tokens of the prompt and of the answer.
    #[serde(rename = "k", skip_serializing_if = "Option::is_none", default)]
    usage: Option<(u64, u64)>,
    /// Messages sent and dropped, tokens of the prompt, and the context window.
    #[serde(rename = "x", skip_serializing_if = "Option::is_none", default)]
    context: Option<(u64, u64, u64, u64)>,
    #[serde(rename = "e", skip_serializing_if = "Option::is_none", default)]
    error: Option<Failure>,
    #[serde(rename = "w", skip_serializing_if = "Option::is_none", default)]
    writers: Option<u32>,
    #[serde(rename = "c", skip_serializing_if = "Vec::is_empty", default)]
    continued: Vec<Continuation>,
    /// Identifier, tool and arguments of each call.
    #[serde(rename = "l", skip_serializing_if = "Vec::is_empty", default)]
    tool_calls: Vec<(String, String, String)>,
    /// Call and tool of a result.
    #[serde(rename = "o", skip_serializing_if = "Option::is_none", default)]
    result_of: Option<(Option<String>, Option<String>)>,
    /// The request as its front shows it again.
    #[serde(rename = "q", skip_serializing_if = "Option::is_none", default)]
    request: Option<String>,
    /// Whether it was added outside of a turn.
    #[serde(rename = "d", skip_serializing_if = "std::ops::Not::not", default)]
    is_added: bool,
    /// The messages that came before it with the same request, each with its text. Their images are also
    /// the last ones of this message, where the functions find them.
    #[serde(rename = "b", skip_serializing_if = "Vec::is_empty", default)]
    before: Vec<(Self, String)>,
}

/// The generation that made an answer.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OfGeneration {
    /// The one with the id of the answer.
    Same(u8),
    Other(GenerationId),
}

/// Returns the bytes that a value takes as JSON. Nothing is kept of the text.
pub fn json_size(value: &impl Serialize) -> usize {
    struct Counter(usize);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // A value that cannot be written is never small.
    serde_json::to_writer(&mut counter, value).map_or(usize::MAX, |()| counter.0)
}

/// Returns the bytes that a text takes within a string of JSON, without its quotes.
pub fn escaped_size(text: &str) -> usize {
    let escaped = |byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum()
}

/// The text before the id of a message in its header.
const BEFORE_ID: &str = "{\"i\":\"";

/// Replaces the id in a stored message, and with it that of its generation where the two are the same.
/// Returns `false` where the message does not begin as [`header`] writes it.
pub fn replace_id(entry: &mut String, id: Uuid) -> bool {
    let at = BEFORE_ID.len()..BEFORE_ID.len() + uuid::fmt::Hyphenated::LENGTH;
    if !entry.starts_with(BEFORE_ID) || entry.get(at.clone()).is_none() {
        return false;
    }
    entry.replace_range(at, &id.to_string());
    true
}

/// Returns the header of a message as it is stored.
pub fn header(message: &Message) -> String {
    // This cannot fail: the types have no maps with keys other than text.
    serde_json::to_string(&to_header(message)).unwrap_or_default()
}

/// Returns the bytes that messages take in the header of the one that they come before.
pub fn size_before(before: &[Message]) -> usize {
    let parts = |message: &Message| (to_header(message), message.content.clone());
    before.iter().map(|message| json_size(&parts(message)) + 1).sum()
}

fn to_header(message: &Message) -> Header {
    let generation = message.generation_id.map(|generation| {
        if generation.0 == message.id {
            OfGeneration::Same(1)
        } else {
            OfGeneration::Other(generation)
        }
    });
    let of_before = message.before.iter().flat_map(|before| &before.images);
    Header {
        id: message.id,
        role: message.role,
        timestamp: message.timestamp,
        user_id: message.user_id.clone(),
        generation,
        model: message.model.clone(),
        status: message.status,
        finish_reason: message.finish_reason,
        usage: message.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens)),
        context: message.context.map(|context| {
            let ContextReport { messages_sent, messages_dropped, prompt_tokens, num_ctx } = context;
            (messages_sent, messages_dropped, prompt_tokens, num_ctx)
        }),
        error: message.error.clone(),
        writers: message.writers,
        continued: message.continued.clone(),
        tool_calls: message
            .tool_calls
            .iter()
            .cloned()
            .map(|ToolCall { id, name, arguments }| (id, name, arguments))
            .collect(),
        images: message.images.iter().chain(of_before).cloned().map(StoredImage).collect(),
        result_of: (message.tool_call_id.is_some() || message.tool_name.is_some())
            .then(|| (message.tool_call_id.clone(), message.tool_name.clone())),
        request: message.request.clone(),
        is_added: message.is_added,
        before: message.before.iter().map(|it| (to_header(it), it.content.clone())).collect(),
    }
}

/// Returns what stands before the content of a message without reasoning, as it is stored.
pub fn before_content(message: &Message) -> &'static str {
    match message.role {
        Role::Assistant => Shape::Plain.before_answer("", &message.content),
        Role::System | Role::User | Role::Tool => "",
    }
}

/// Parses the header of a stored message; none where this version does not write such a header.
pub fn parse_header(header: &str) -> Option<Message> {
    serde_json::from_str(header).ok().map(of_header)
}

fn of_header(header: Header) -> Message {
    let (tool_call_id, tool_name) = header.result_of.unwrap_or_default();
    let with_text = |(header, content): (Header, String)| Message { content, ..of_header(header) };
    let before: Vec<Message> = header.before.into_iter().map(with_text).collect();
    let of_before: usize = before.iter().map(|message| message.images.len()).sum();
    let own_images = header.images.len().saturating_sub(of_before);
    Message {
        id: header.id,
        parent_id: None,
        siblings: None,
        role: header.role,
        content: String::new(),
        thinking: None,
        timestamp: header.timestamp,
        user_id: header.user_id,
        generation_id: header.generation.map(|generation| match generation {
            OfGeneration::Same(_) => GenerationId(header.id),
            OfGeneration::Other(id) => id,
        }),
        model: header.model,
        status: header.status,
        finish_reason: header.finish_reason,
        usage: header
            .usage
            .map(|(prompt_tokens, completion_tokens)| Usage { prompt_tokens, completion_tokens }),
        context: header.context.map(|(messages_sent, messages_dropped, prompt_tokens, num_ctx)| {
            ContextReport { messages_sent, messages_dropped, prompt_tokens, num_ctx }
        }),
        error: header.error,
        writers: header.writers,
        continued: header.continued,
        tool_calls: header
            .tool_calls
            .into_iter()
            .map(|(id, name, arguments)| ToolCall { id, name, arguments })
            .collect(),
        images: header
            .images
            .into_iter()
            .take(own_images)
            .map(|StoredImage(image)| image)
            .collect(),
        tool_call_id,
        tool_name,
        request: header.request,
        before,
        is_added: header.is_added,
    }
}

/// Parses a stored message: its header, a line break, and its text, which begins with the reasoning
/// where there is one. Returns none where this version does not write such a message.
pub fn parse(entry: &str) -> Option<Message> {
    let (header, content) = entry.split_once('\n')?;
    let mut message = parse_header(header)?;
    match message.role {
        Role::System | Role::User | Role::Tool => content.clone_into(&mut message.content),
        Role::Assistant => {
            let shape = Shape::of(content);
            shape.answer(content).clone_into(&mut message.content);
            message.thinking = shape.reasoning(content).map(str::to_owned);
        }
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::session::image::{ImageFormat, ImageRef};
    use crate::session::model::ContinuedHow;
    use crate::session::store::message;

    proptest! {
        #[test]
        fn the_size_of_a_text_within_json_is_known_before_it_is_written(
            text in "[\u{0}-\u{80}\"\\\\\n\t日é]{0,80}",
        ) {
            let written = serde_json::to_string(&text).expect("a text");
            prop_assert_eq!(escaped_size(&text) + 2, written.len());
        }
    }

    #[test]
    fn the_size_of_a_value_is_that_of_its_json() {
        for text in ["", "plain", "\"quoted\" \\ \u{1}\n", "字🏳️‍🌈"] {
            let json = serde_json::to_string(&[text]).expect("JSON");
            assert_eq!(json_size(&[text]), json.len(), "{json}");
        }
    }

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        let id = Uuid::new_v4();
        let time = "2026-11-26T10:00:00.123456Z".parse().expect("a time");
        let alice = Some("alice".to_owned());
        let image = |format| ImageRef { digest: "0a".repeat(32), bytes: 7, media_type: format };
        let images = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Webp, ImageFormat::Gif];
        let images = images.map(image).to_vec();
        let question = Message { id, user_id: alice, images, ..message(Role::User, time) };
        let answer = Message {
            role: Role::Assistant,
            user_id: None,
            images: Vec::new(),
            generation_id: Some(GenerationId(id)),
            model: Some("m".to_owned()),
            status: Some(Status::Complete),
            finish_reason: Some(FinishReason::Length),
            usage: Some(Usage { prompt_tokens: 1, completion_tokens: 2 }),
            context: Some(ContextReport {
                messages_sent: 3,
                messages_dropped: 4,
                prompt_tokens: 5,
                num_ctx: 6,
            }),
            writers: Some(7),
            continued: vec![Continuation { how: ContinuedHow::Exact, why: "w".to_owned() }],
            tool_calls: vec![ToolCall {
                id: "call_1".to_owned(),
                name: "weather".to_owned(),
                arguments: "{\"city\":\n\"Paris\"}".to_owned(),
            }],
            ..question.clone()
        };
        let failed = Message {
            generation_id: Some(GenerationId(Uuid::new_v4())),
            error: Some(Failure {
                code: "internal".to_owned(),
                message: "m".to_owned(),
                retryable: true,
                retry_after: Some(3),
            }),
            ..answer.clone()
        };
        let result = Message {
            tool_call_id: Some("call_1".to_owned()),
            tool_name: Some("weather".to_owned()),
            request: Some("{\"created\": 1,\n\"text\": \"\\\"\"}".to_owned()),
            ..message(Role::Tool, time)
        };
        let earlier = Message { content: "\"two\"\nlines".to_owned(), ..question.clone() };
        let added = Message { is_added: true, ..message(Role::System, time) };
        let last =
            Message { before: vec![earlier, result.clone()], request: None, ..question.clone() };
        for written in [question, answer, failed, result, added, last] {
            assert_eq!(parse_header(&header(&written)), Some(written));
        }
    }

    #[test]
    fn the_images_of_the_messages_before_another_stand_where_the_functions_find_them() {
        let image = ImageRef { digest: "0a".repeat(32), bytes: 7, media_type: ImageFormat::Png };
        let now = "2026-11-26T10:00:00.123456Z".parse().expect("a time");
        let earlier = Message { images: vec![image], ..message(Role::User, now) };
        let question = Message { before: vec![earlier], ..message(Role::User, now) };
        let stored = header(&question);
        assert!(stored.find("\"p\":[").is_some_and(|at| at < 256), "{stored}");
        assert_eq!(parse_header(&stored), Some(question));
    }
}
