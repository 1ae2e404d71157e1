//! The content of conversations in spans, where a setting switches it on.

use serde_json::json;

use super::TRACING;

/// Bytes of one text in a span, at most.
const TEXT_BYTES: usize = 4 << 10;

/// Returns whether spans have the content of conversations.
pub fn is_captured() -> bool {
    TRACING.get().is_some_and(|tracing| tracing.captures_content)
}

/// Returns a message as the conventions for generative AI write it, with the beginning of its text.
pub fn content(role: &str, text: &str) -> String {
    let text = &text[..text.floor_char_boundary(TEXT_BYTES)];
    json!([{"role": role, "parts": [{"type": "text", "content": text}]}]).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_a_span_is_cut_between_characters() {
        let text = "é".repeat(TEXT_BYTES);
        let written = content("user", &format!("a{text}"));
        assert!(written.len() < TEXT_BYTES + 100, "{}", written.len());
        let read: serde_json::Value = serde_json::from_str(&written).expect("JSON");
        let content = read[0]["parts"][0]["content"].as_str().expect("a text");
        assert!(format!("a{text}").starts_with(content) && content.len() > TEXT_BYTES - 2);
    }
}
