//! The bounds of what an answer has to be, for every front: its format, the tools that the model may call,
//! and the texts that end it. Pure.

use serde_json::Value;

/// Bytes of a format, at most: it is stored with each turn.
pub const FORMAT_BYTES: usize = 64 << 10;
/// Bytes of all tools together, at most.
pub const TOOLS_BYTES: usize = 128 << 10;
/// Tools of one request, at most, as OpenAI has it.
pub const TOOLS: usize = 128;
/// Characters of the name of a function or a schema, at most.
pub const NAME_CHARACTERS: usize = 64;
/// The name of a function or a schema, as a pattern.
pub const NAME_PATTERN: &str = "^[A-Za-z0-9_-]{1,64}$";
/// Texts that end an answer, at most.
pub const STOPS: usize = 4;
/// Bytes of each of them, at most.
pub const STOP_BYTES: usize = 256;

/// Returns whether a text may be the name of a function or a schema.
pub fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (1..=NAME_CHARACTERS).contains(&text.len()) && text.bytes().all(is_plain)
}

/// Returns the text of a value as it was sent, or the value as text where that cannot be found: the order
/// of the fields in a schema is lost in the parsed value, and a model writes its answer in that order.
///
/// # Errors
/// Returns the complaint about a text that has more bytes than `most`.
pub fn bounded(sent: Option<&str>, value: &Value, most: usize) -> Result<String, String> {
    let text = sent.map_or_else(|| value.to_string(), str::to_owned);
    if text.len() > most {
        return Err(format!("must have at most {most} bytes"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_obeys_the_pattern_of_names() {
        assert!(NAME_PATTERN.contains(&format!("{{1,{NAME_CHARACTERS}}}")));
        let longest = "a".repeat(NAME_CHARACTERS);
        for name in ["f", "A-b_9", &longest] {
            assert!(is_name(name), "{name}");
        }
        for other in ["", "a b", "é", "a.b", &format!("{longest}a")] {
            assert!(!is_name(other), "{other}");
        }
    }

    #[test]
    fn a_value_is_kept_as_it_was_sent_within_its_bound() {
        let value = json!({"z": 1, "a": 2});
        assert_eq!(
            bounded(Some(r#"{"z": 1, "a": 2}"#), &value, 16),
            Ok(r#"{"z": 1, "a": 2}"#.into())
        );
        assert_eq!(bounded(None, &json!([1]), 3), Ok("[1]".to_owned()));
        assert_eq!(bounded(None, &json!([1]), 2), Err("must have at most 2 bytes".to_owned()));
    }
}
