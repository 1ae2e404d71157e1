//! Rewrites lines as servers write them that are not quite Ollama.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::fault::Dialect;

/// Half a surrogate pair without the other half, as JSON escapes it.
const LONE_LOW: &str = "\\udc00";
const LONE_HIGH: &str = "\\ud83d";
/// A placeholder for such a half until the line is written.
const MARK: &str = "\u{e000}";

/// Rewrites the lines of one stream.
pub struct Writer {
    dialect: Dialect,
    begun: bool,
}

impl Writer {
    /// Creates the state of a stream that has not begun.
    pub fn new(dialect: Dialect) -> Self {
        Self { dialect, begun: false }
    }

    /// Rewrites whole lines.
    pub fn write(&mut self, lines: &[u8]) -> Vec<u8> {
        let mut written = String::new();
        if !std::mem::replace(&mut self.begun, true) {
            match self.dialect {
                Dialect::Bom => written.push('\u{feff}'),
                Dialect::Lone => written.push_str(&Self::half(lines, LONE_LOW)),
                _ => {}
            }
        }
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let Ok(Value::Object(line)) = serde_json::from_slice(line) else { continue };
            self.line(line, &mut written);
        }
        written.into_bytes()
    }

    fn line(&self, mut line: Map<String, Value>, written: &mut String) {
        let is_last = line["done"] == true;
        match self.dialect {
            Dialect::Null => {
                if is_last {
                    for figure in line.values_mut().filter(|value| value.is_number()) {
                        *figure = Value::Null;
                    }
                } else {
                    line.insert("eval_count".to_owned(), Value::Null);
                    line.insert("done_reason".to_owned(), Value::Null);
                    line.insert("done".to_owned(), Value::Null);
                }
                line.insert("error".to_owned(), Value::Null);
                line.insert("thinking".to_owned(), Value::Null);
                if let Some(Value::Object(message)) = line.get_mut("message") {
                    message.entry("thinking").or_insert(Value::Null);
                    message.insert("tool_calls".to_owned(), Value::Null);
                    if is_last {
                        message.insert("content".to_owned(), Value::Null);
                    }
                }
            }
            Dialect::Loose => {
                line.insert("done".to_owned(), json!(if is_last { "true" } else { "false" }));
                for (name, value) in &mut line {
                    if let Some(figure) = value.as_u64() {
                        *value = match &**name {
                            "eval_count" => json!(figure as f64),
                            "prompt_eval_count" => json!(figure.to_string()),
                            _ => json!({"nanoseconds": [figure]}),
                        };
                    }
                }
            }
            Dialect::Undone if is_last => {
                line.remove("done");
            }
            Dialect::Lone if is_last => {
                let half =
                    Self::half(Value::Object(line.clone()).to_string().as_bytes(), LONE_HIGH);
                written.push_str(&half);
            }
            Dialect::Halves => {
                written.push_str(&in_halves(&Value::Object(line).to_string()));
                return;
            }
            _ => {}
        }
        written.push_str(&Value::Object(line).to_string());
        written.push_str(if self.dialect == Dialect::Bom { "\r\n\r\n\n" } else { "\n" });
    }

    /// Returns a line like the first of `lines`, with half a pair as its text.
    fn half(lines: &[u8], half: &str) -> String {
        let first = lines.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let is_chat =
            serde_json::from_slice::<Value>(first).is_ok_and(|line| line["message"].is_object());
        let line = if is_chat {
            json!({"message": {"role": "assistant", "content": MARK}, "done": false})
        } else {
            json!({"response": MARK, "done": false})
        };
        line.to_string().replace(MARK, half) + "\n"
    }
}

/// Cuts the characters beyond the basic plane in two, the second half in a line of its own; the
/// other characters beyond ASCII are escaped.
fn in_halves(line: &str) -> String {
    let is_chat = line.contains("\"message\"");
    let (before, after) = if is_chat {
        ("{\"message\":{\"role\":\"assistant\",\"content\":\"", "\"},\"done\":false}\n")
    } else {
        ("{\"response\":\"", "\",\"done\":false}\n")
    };
    let Ok(mut value) = serde_json::from_str::<Value>(line) else { return String::new() };
    if value["done"] == true {
        return line.to_owned() + "\n";
    }
    let slot = if is_chat { &mut value["message"]["content"] } else { &mut value["response"] };
    let Some(text) = slot.as_str() else { return line.to_owned() + "\n" };
    let mut written = before.to_owned();
    for character in text.chars() {
        match character.encode_utf16(&mut [0; 2]) {
            [high, low] => {
                let _ = write!(written, "\\u{high:04x}{after}{before}\\u{low:04x}");
            }
            [unit] if *unit > 0x7e || *unit < 0x20 || matches!(*unit, 0x22 | 0x5c) => {
                let _ = write!(written, "\\u{unit:04x}");
            }
            _ => written.push(character),
        }
    }
    written + after
}
