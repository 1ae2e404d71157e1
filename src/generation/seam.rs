//! The seam: where an answer is cut before another model run continues it.
//!
//! The text so far ends between two tokens, because hosts send whole tokens and whole characters.
//! The model continues best from exactly there, in every script: one character earlier may be
//! inside one of its tokens, and the model diverges (`franç` cut to `fran` continued as `franze`).
//! Two endings are cut off:
//!
//! - **White space.** A tokenizer merges it with more white space, so the model would read other
//!   tokens than it wrote.
//! - **An emoji that cannot be whole**: half a flag, a keycap without its cap, a sequence that ends
//!   with a joiner.
//!
//! A letter or emoji is not unfinished because a combining mark, a vowel sign, the next consonant
//! of a conjunct or a skin tone may follow it: a cut before it would be in the middle of a word.

use std::ops::RangeInclusive;

use unicode_segmentation::UnicodeSegmentation;

const ZERO_WIDTH_JOINER: char = '\u{200d}';
const EMOJI_PRESENTATION: char = '\u{fe0f}';
/// Two of them are a flag.
const REGIONAL_INDICATORS: RangeInclusive<char> = '\u{1f1e6}'..='\u{1f1ff}';
/// They spell the flag of a region after a black flag; U+E007F ends it.
const TAGS: RangeInclusive<char> = '\u{e0020}'..='\u{e007e}';

/// Returns the length of the part of `text` that the model gets. The model should repeat the rest.
pub(super) fn seam(text: &str) -> usize {
    let whole = match text.grapheme_indices(true).next_back() {
        Some((at, last)) if is_unfinished(last) => &text[..at],
        _ => text,
    };
    whole.trim_end().len()
}

/// Returns whether this grapheme is the beginning of an emoji and cannot be all of it.
fn is_unfinished(grapheme: &str) -> bool {
    // In a word, as Hindi and Arabic have it, a joiner shapes the letter before it.
    if grapheme.contains(char::is_alphabetic) {
        return false;
    }
    let mut from_end = grapheme.chars().rev();
    match (from_end.next(), from_end.next()) {
        (Some(last), None) => REGIONAL_INDICATORS.contains(&last),
        (Some(ZERO_WIDTH_JOINER), _) => true,
        (Some(EMOJI_PRESENTATION), Some(before)) => matches!(before, '0'..='9' | '#' | '*'),
        (Some(last), _) => TAGS.contains(&last),
        (None, _) => false,
    }
}

/// How a piece from the model compares with the text that it should repeat.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Comparison<'a> {
    /// The piece repeats a part of the text; the rest should follow.
    Repeats,
    /// The whole text is repeated; this part of the piece is new.
    Continues(&'a str),
    /// The piece differs from the text.
    Differs,
}

/// Compares the next piece with `expected`, and removes the repeated part from `expected`.
pub(super) fn compare<'a>(expected: &mut &str, piece: &'a str) -> Comparison<'a> {
    let pairs = expected.chars().zip(piece.chars());
    let same = pairs.take_while(|(left, right)| left == right).map(|(left, _)| left.len_utf8());
    let same: usize = same.sum();
    *expected = &expected[same..];
    match &piece[same..] {
        new if expected.is_empty() => Comparison::Continues(new),
        "" => Comparison::Repeats,
        _ => Comparison::Differs,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FAMILY: &str = "\u{1f469}\u{200d}\u{1f469}\u{200d}\u{1f467}";
    const SCOTLAND: &str = "\u{1f3f4}\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f}";

    const WHOLE: &[&str] = &[
        "a",
        "7",
        "#",
        "|",
        "\u{e9}",
        "e\u{301}",
        "\u{df}",
        "\u{4f60}",
        "\u{3042}",
        "\u{304b}\u{3099}",
        "\u{645}",
        "\u{645}\u{64e}",
        "\u{915}\u{94d}",
        "\u{915}\u{94d}\u{937}",
        "\u{915}\u{94d}\u{200d}",
        "\u{939}\u{93f}",
        "\u{e01}\u{e33}",
        "\u{e40}",
        "\u{1100}\u{1161}\u{11a8}",
        "\u{1100}",
        "\u{d55c}",
        "\u{647}\u{200d}",
        "\u{645}\u{200c}",
        "\u{2764}\u{fe0f}",
        "\u{1f44d}\u{1f3fd}",
        "1\u{fe0f}\u{20e3}",
        FAMILY,
        SCOTLAND,
        "\u{1f1eb}\u{1f1f7}",
        "\u{1f3f3}\u{fe0f}\u{200d}\u{1f308}",
    ];

    /// Returns whole graphemes of many scripts.
    fn grapheme() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => proptest::sample::select(WHOLE).prop_map(str::to_owned),
            1 => any::<char>()
                .prop_filter("whole by itself", |c| {
                    !c.is_whitespace() && !is_unfinished(&c.to_string()) && *c != ZERO_WIDTH_JOINER
                        && !TAGS.contains(c) && *c != EMOJI_PRESENTATION
                })
                .prop_map(String::from),
        ]
    }

    fn blanks() -> impl Strategy<Value = String> {
        "[ \t\n\u{a0}\u{3000}]{0,4}"
    }

    fn unfinished() -> impl Strategy<Value = &'static str> {
        proptest::sample::select(
            &[
                "\u{1f1eb}",
                "1\u{fe0f}",
                "#\u{fe0f}",
                "\u{1f469}\u{200d}",
                "\u{1f469}\u{1f3fd}\u{200d}",
                "\u{1f3f3}\u{fe0f}\u{200d}",
                "\u{1f3f4}\u{e0067}",
                "\u{1f3f4}\u{e0067}\u{e0062}",
            ][..],
        )
    }

    proptest! {
        #[test]
        fn only_blanks_and_unfinished_emoji_are_cut_off(
            graphemes in proptest::collection::vec(grapheme(), 0..12),
            end in blanks(),
            last in proptest::option::of(unfinished()),
        ) {
            let whole = graphemes.concat();
            prop_assert_eq!(seam(&whole), whole.len(), "{:?}", whole);
            let text = format!("{whole}{end}");
            prop_assert_eq!(seam(&text), whole.len(), "{:?}", text);
            // A blank in between, so that it is a grapheme of its own whatever stands before it.
            if let Some(last) = last {
                let text = format!("{whole} {end}{last}");
                prop_assert_eq!(seam(&text), whole.len(), "{:?}", text);
                // A grapheme with a blank behind it is not cut off.
                let text = format!("{whole} {last}{end} ");
                prop_assert_eq!(&text[..seam(&text)], format!("{whole} {last}"));
            }
        }

        #[test]
        fn any_text_is_cut_at_a_character_and_never_in_a_word(
            parts in proptest::collection::vec(
                prop_oneof![grapheme(), blanks(), unfinished().prop_map(str::to_owned), ".{0,3}"],
                0..8,
            ),
        ) {
            let text = parts.concat();
            let (kept, cut_off) = text.split_at(seam(&text));
            prop_assert!(!cut_off.contains(char::is_alphabetic), "{:?}", cut_off);
            prop_assert_eq!(kept.trim_end(), kept);
            let half = cut_off.trim_end();
            prop_assert!(half.is_empty() || half == cut_off, "{:?}", cut_off);
            prop_assert!(half.graphemes(true).filter(|part| !part.trim().is_empty()).count() <= 1);
        }

        #[test]
        fn repeated_text_is_separated_from_new_text_however_it_is_cut_into_pieces(
            known in "[ab \u{e9}\u{1f3f3}\u{fe0f}\u{200d}\u{1f308}\\n]{0,20}",
            fresh in "[ab \u{e9}\u{1f3f3}\u{fe0f}\u{200d}\u{1f308}\\n]{0,20}",
            sizes in proptest::collection::vec(1usize..5, 1..20),
        ) {
            let mut expected = &known[seam(&known)..];
            let again: Vec<char> = expected.chars().chain(fresh.chars()).collect();
            let mut text = known.clone();
            let mut rest = again.as_slice();
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                rest = after;
                let piece: String = piece.iter().collect();
                match compare(&mut expected, &piece) {
                    Comparison::Repeats => prop_assert!(!expected.is_empty()),
                    Comparison::Continues(new) => text.push_str(new),
                    Comparison::Differs => prop_assert!(false, "the same text"),
                }
            }
            prop_assert_eq!(text, known + &fresh);
        }
    }

    #[test]
    fn a_whole_character_of_any_script_stays() {
        let words = [
            "fran\u{e7}",
            "fran\u{c7}",
            "e\u{301}",
            "ni\u{f1}o",
            "\u{4f60}\u{597d}",
            "\u{3042}",
            "\u{645}\u{631}\u{62d}",
            "\u{928}\u{92e}\u{938}\u{94d}",
            "\u{939}\u{948}",
            "\u{e17}\u{e35}\u{e48}",
            "\u{d55c}",
            "\u{1112}\u{1161}",
            "\u{2764}\u{fe0f}",
            "\u{1f44d}\u{1f3fd}",
            "\u{1f1eb}\u{1f1f7}",
            "5\u{fe0f}\u{20e3}",
            FAMILY,
            SCOTLAND,
        ];
        for word in words {
            assert_eq!(seam(word), word.len(), "{word:?}");
            assert_eq!(seam(&format!("{word} \n")), word.len(), "{word:?}");
        }
    }

    #[test]
    fn half_an_emoji_is_cut_off_with_the_blanks_before_it() {
        for half in ["\u{1f3f3}\u{fe0f}\u{200d}", "\u{1f1eb}", "3\u{fe0f}", "\u{1f3f4}\u{e0067}"] {
            assert_eq!(seam(&format!("flag {half}")), "flag".len(), "{half:?}");
        }
        // The third of three is the first half of the second flag.
        assert_eq!(seam("\u{1f1eb}\u{1f1f7}\u{1f1e9}"), "\u{1f1eb}\u{1f1f7}".len());
        assert_eq!(seam(" "), 0);
    }

    #[test]
    fn a_model_that_diverges_is_noticed_at_its_first_different_character() {
        let mut expected = " \n";
        assert_eq!(compare(&mut expected, " "), Comparison::Repeats);
        assert_eq!(compare(&mut expected, "\ny"), Comparison::Continues("y"));
        let mut expected = "  ";
        assert_eq!(compare(&mut expected, " y"), Comparison::Differs);
    }
}
