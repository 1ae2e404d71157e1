//! ChatML: the prompts of the models here, and how a raw prompt is read back.

use crate::wire::Message;

/// The template in Ollama's own notation, as `/api/show` reports it.
pub const CHATML: &str = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n";

const START: &str = "<|im_start|>";
const END_OF_TURN: &str = "<|im_end|>\n";
const USER: &str = "<|im_start|>user\n";
const ASSISTANT: &str = "<|im_start|>assistant\n";
const NO_THOUGHTS: &str = "<think>\n\n</think>\n\n";

/// The ways in which a request sets the reasoning of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// The model does not reason.
    Unsupported,
    /// The model reasons first.
    On,
    /// The model could reason, and the request forbids it.
    Off,
}

/// Renders the prompt of a conversation, which ends where the answer starts.
///
/// A last message of the assistant is closed like any other, as with Ollama's built-in template.
pub fn render(messages: &[Message], thinking: Thinking) -> String {
    let length: usize = messages.iter().map(|m| m.text().len() + 40).sum();
    let mut prompt = String::with_capacity(length + 64);
    let mut images = 0;
    for message in messages {
        prompt.push_str(START);
        prompt.push_str(&message.role);
        prompt.push('\n');
        for _ in message.images.iter().flatten() {
            prompt.push_str(&crate::images::mark(images));
            images += 1;
        }
        prompt.push_str(message.text());
        for call in message.tool_calls.iter().flatten() {
            prompt.push_str("<tool_call>");
            prompt.push_str(&call["function"].to_string());
            prompt.push_str("</tool_call>");
        }
        prompt.push_str(END_OF_TURN);
    }
    prompt.push_str(ASSISTANT);
    if thinking == Thinking::Off {
        prompt.push_str(NO_THOUGHTS);
    }
    prompt
}

/// The content of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTurn<'a> {
    /// The last message of the user; the whole prompt if it is not ChatML.
    pub user: &'a str,
    /// The text after the last assistant header.
    pub answer_so_far: &'a str,
    /// Whether the prompt itself closes the reasoning.
    pub without_reasoning: bool,
}

/// Parses a prompt.
pub fn parse(prompt: &str) -> OpenTurn<'_> {
    let Some(header) = prompt.rfind(ASSISTANT) else {
        return OpenTurn { user: prompt, answer_so_far: "", without_reasoning: false };
    };
    let after = &prompt[header + ASSISTANT.len()..];
    let before = &prompt[..header];
    let user = before.rfind(USER).map_or("", |at| {
        let turn = &before[at + USER.len()..];
        match turn.find("<|im_end|>\n<|im_start|>") {
            Some(end) => &turn[..end],
            None => turn.strip_suffix(END_OF_TURN).unwrap_or(turn),
        }
    });
    let rest = after.strip_prefix(NO_THOUGHTS);
    OpenTurn { user, answer_so_far: rest.unwrap_or(after), without_reasoning: rest.is_some() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        let (role, content) = (role.to_owned(), Some(content.to_owned()));
        Message { role, content, ..Message::default() }
    }

    #[test]
    fn a_rendered_prompt_is_read_back() {
        let messages = [
            message("system", "Be brief."),
            message("user", "first"),
            message("assistant", "one"),
            message("user", "a <|im_start|>assistant\n b"),
        ];
        for thinking in [Thinking::Unsupported, Thinking::On, Thinking::Off] {
            let prompt = render(&messages, thinking) + "so far";
            let turn = parse(&prompt);
            assert_eq!(turn.user, "a <|im_start|>assistant\n b");
            assert_eq!(turn.answer_so_far, "so far");
            assert_eq!(turn.without_reasoning, thinking == Thinking::Off);
        }
    }

    #[test]
    fn a_closed_last_assistant_message_is_not_an_answer_so_far() {
        let prompt =
            render(&[message("user", "q"), message("assistant", "half")], Thinking::Unsupported);
        assert_eq!(parse(&prompt).answer_so_far, "");
        assert_eq!(parse(&prompt).user, "q");
    }
}
