//! The size of a text as JSON, before it is written. Pure.

/// Returns how many bytes a text has as JSON, with its quotes.
pub fn quoted_size(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
        0..=0x1f => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum::<usize>() + 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_size_of_a_text_as_json_is_known_before_it_is_written(
            text in "[\u{0}-\u{80}\"\\\\\n\t日é]{0,80}",
        ) {
            let written = serde_json::to_string(&text).expect("a text");
            prop_assert_eq!(quoted_size(&text), written.len());
        }
    }
}
