//! The title of a session.

/// Returns a text in at most so many characters. A longer one ends at a word, where that leaves half of
/// them, and with an ellipsis.
pub fn shortened(text: &str, characters: usize) -> String {
    let text = text.trim();
    if text.chars().count() <= characters {
        return text.to_owned();
    }
    let end = text.char_indices().nth(characters.saturating_sub(1)).map_or(0, |(at, _)| at);
    let half = text.char_indices().nth(characters / 2).map_or(0, |(at, _)| at);
    // The word goes that the bound is in.
    let ends_word = text[end..].starts_with(char::is_whitespace);
    let at_word = if ends_word { Some(end) } else { text[..end].rfind(char::is_whitespace) };
    let cut = at_word.filter(|at| *at >= half).unwrap_or(end);
    format!("{}…", text[..cut].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_ends_at_a_word_and_one_without_words_at_a_character() {
        for (text, short) in [
            ("", ""),
            (" short  ", "short"),
            ("exactly 10", "exactly 10"),
            ("a word too many", "a word…"),
            ("sentences longer", "sentences…"),
            ("a sentenceofoneword", "a sentenc…"),
            ("日本語の長い文章をここに書く", "日本語の長い文章を…"),
        ] {
            assert_eq!(shortened(text, 10), short, "{text:?}");
        }
    }
}
