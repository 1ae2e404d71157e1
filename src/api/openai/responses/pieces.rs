//! Cuts a text into the pieces that its events carry. Pure.
//!
//! Where a text is cut follows from the text alone, and not from when its parts arrived: so each
//! event has the same number at every replica, while the text grows and once it is stored.

/// Bytes of a piece, after which it ends with the next character.
const LONGEST: usize = 16;
/// Bytes of a character in the scripts that have no spaces between their words, at least.
const WIDE: usize = 3;

/// Returns the bytes of the next piece of a text: a word with the white space before it, a single
/// character of a script without spaces, or a part of a long word. None where the end of the piece is
/// not known before more of the text is.
pub fn next_piece(text: &str) -> Option<usize> {
    let mut has_word = false;
    for (at, character) in text.char_indices() {
        let is_space = character.is_ascii_whitespace();
        if is_space && has_word {
            return Some(at);
        }
        has_word |= !is_space;
        let end = at + character.len_utf8();
        if end >= LONGEST || character.len_utf8() >= WIDE {
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(text: &str) -> Vec<&str> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some(bytes) = next_piece(rest) {
            let (piece, after) = rest.split_at(bytes);
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        pieces
    }

    #[test]
    fn a_piece_is_a_word_with_the_space_before_it_or_a_character_without_spaces() {
        for (text, pieces) in [
            ("", vec![""]),
            ("Hello", vec!["Hello"]),
            ("Hello, my  friend\n", vec!["Hello,", " my", "  friend", "\n"]),
            ("日本go", vec!["日", "本", "go"]),
            ("Rindfleischetikettierung", vec!["Rindfleischetike", "ttierung"]),
            ("                  x", vec!["                ", "  x"]),
        ] {
            assert_eq!(cut(text), pieces, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn more_text_never_moves_an_earlier_cut(text in "[ a-zäß日\n]{0,80}", at in 0usize..80) {
            let at = text.floor_char_boundary(at.min(text.len()));
            let (early, late) = (cut(&text[..at]), cut(&text));
            prop_assert_eq!(&early[..early.len() - 1], &late[..early.len() - 1]);
            prop_assert_eq!(late.concat(), text);
        }
    }
}
