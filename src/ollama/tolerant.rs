//! Tolerant parsers for JSON fields of hosts.
//!
//! `null` counts as absent. A count may be `5`, `5.0` or `"5"`. A text may hold half of a surrogate
//! pair or of a character, and [`Joiner`] joins it to the half in the next text.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A text of a host.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// The text is UTF-8.
    Valid(String),
    /// The bytes of a text that is not UTF-8. A lone surrogate is three bytes, as UTF-8 would encode
    /// it.
    Invalid(Vec<u8>),
}

impl Default for Text {
    fn default() -> Self {
        Self::Valid(String::new())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde_json refuses lone surrogates in a string, and passes them on as bytes.
        deserializer.deserialize_bytes(TextVisitor)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text::Valid(text.to_owned()))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
        Ok(match std::str::from_utf8(bytes) {
            Ok(text) => Text::Valid(text.to_owned()),
            Err(_) => Text::Invalid(bytes.to_vec()),
        })
    }
}

/// Joins characters that are split over the texts of one stream. It holds back at most three bytes.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    /// A high surrogate, or the beginning of a character, that ended the last text.
    held: Vec<u8>,
}

impl Joiner {
    /// Returns the held bytes and the text, and holds back a character that it cuts.
    pub(super) fn join(&mut self, text: Text) -> String {
        match text {
            Text::Valid(text) if self.held.is_empty() || text.is_empty() => text,
            Text::Valid(text) => self.read(text.as_bytes()),
            Text::Invalid(bytes) => self.read(&bytes),
        }
    }

    /// Ends the stream: a replacement character stands for the held bytes.
    pub(super) fn end(&mut self, text: &mut String) {
        if !std::mem::take(&mut self.held).is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn read(&mut self, bytes: &[u8]) -> String {
        let mut joined = std::mem::take(&mut self.held);
        joined.extend_from_slice(bytes);
        let mut text = String::with_capacity(joined.len());
        let mut rest = &joined[..];
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(last) => {
                    text.push_str(last);
                    return text;
                }
                Err(error) => error,
            };
            let (valid, invalid) = rest.split_at(error.valid_up_to());
            text.push_str(std::str::from_utf8(valid).unwrap_or_default());
            let Some((character, length)) = first_character(invalid, error.error_len()) else {
                self.held = invalid.to_vec();
                return text;
            };
            text.push(character);
            rest = &invalid[length..];
        }
    }
}

/// Returns the character for the beginning of invalid bytes, and the length of that beginning;
/// `None` where the next bytes may complete it. `length` is the number of bytes that can never
/// become UTF-8.
fn first_character(bytes: &[u8], length: Option<usize>) -> Option<(char, usize)> {
    let Some(high) = surrogate(bytes) else {
        return length.map(|length| (char::REPLACEMENT_CHARACTER, length));
    };
    let low = &bytes[3..];
    match pair(high, surrogate(low)) {
        Some(character) => Some((character, 6)),
        None if high < 0xdc00 && low.is_empty() => None,
        None => Some((char::REPLACEMENT_CHARACTER, 3)),
    }
}

/// Returns the surrogate at the beginning of the bytes.
fn surrogate(bytes: &[u8]) -> Option<u32> {
    match bytes {
        [0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf, ..] => {
            Some(0xd000 | u32::from(second & 0x3f) << 6 | u32::from(third & 0x3f))
        }
        _ => None,
    }
}

/// Returns the character of a surrogate pair.
fn pair(high: u32, low: Option<u32>) -> Option<char> {
    match (high, low?) {
        (0xd800..=0xdbff, low @ 0xdc00..=0xdfff) => {
            char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00))
        }
        _ => None,
    }
}

/// A count; `None` where the field is absent or not a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count(pub Option<u64>);

/// A flag; `None` where the field is absent or not a flag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flag(pub Option<bool>);

/// A short text; `None` where the field is absent or not a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LenientText(pub Option<String>);

/// A value that is read from JSON of any type.
trait Lenient: Default {
    fn of_number(number: f64) -> Self;
    fn of_text(text: &str) -> Self;

    fn of_whole(number: u64) -> Self {
        Self::of_number(number as f64)
    }

    fn of_bool(_: bool) -> Self {
        Self::default()
    }
}

/// More tokens than any context window has: a greater count is not credible.
const MOST_TOKENS: u64 = u32::MAX as u64;

impl Count {
    /// Returns the count of tokens; 0 where it is absent or not credible.
    pub(super) fn tokens(self) -> u64 {
        self.0.filter(|tokens| *tokens <= MOST_TOKENS).unwrap_or(0)
    }
}

impl Lenient for Count {
    fn of_number(number: f64) -> Self {
        Self((number.is_finite() && number >= 0.0).then_some(number as u64))
    }

    fn of_whole(number: u64) -> Self {
        Self(Some(number))
    }

    fn of_text(text: &str) -> Self {
        let text = text.trim();
        match text.parse() {
            Ok(number) => Self(Some(number)),
            Err(_) => text.parse().map_or(Self(None), Self::of_number),
        }
    }
}

impl Lenient for Flag {
    fn of_number(number: f64) -> Self {
        Self(Some(number != 0.0))
    }

    fn of_text(text: &str) -> Self {
        Self(match text.trim() {
            text if text.eq_ignore_ascii_case("true") || text == "1" => Some(true),
            text if text.eq_ignore_ascii_case("false") || text == "0" => Some(false),
            _ => None,
        })
    }

    fn of_bool(flag: bool) -> Self {
        Self(Some(flag))
    }
}

impl Lenient for LenientText {
    fn of_number(_: f64) -> Self {
        Self(None)
    }

    fn of_text(text: &str) -> Self {
        Self((!text.is_empty()).then(|| text.to_owned()))
    }
}

struct LenientVisitor<T>(PhantomData<T>);

impl<'de, T: Lenient> Visitor<'de> for LenientVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<T, E> {
        Ok(T::of_bool(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<T, E> {
        Ok(T::of_whole(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<T, E> {
        Ok(T::of_number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<T, E> {
        Ok(T::of_number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<T, E> {
        Ok(T::of_text(text))
    }

    fn visit_unit<E>(self) -> Result<T, E> {
        Ok(T::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<T, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(T::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<T, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(T::default())
    }
}

macro_rules! deserialize_leniently {
    ($($kind:ty),*) => {$(
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(LenientVisitor(PhantomData))
            }
        }
    )*};
}

deserialize_leniently!(Count, Flag, LenientText);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Text {
        TextVisitor.visit_bytes::<serde_json::Error>(bytes).expect("a text")
    }

    fn text(json: &str) -> Text {
        serde_json::from_str(json).expect(json)
    }

    /// Returns the joined texts of a whole stream.
    fn joined(texts: &[&str]) -> String {
        let mut joiner = Joiner::default();
        let mut all: String = texts.iter().map(|json| joiner.join(text(json))).collect();
        joiner.end(&mut all);
        all
    }

    #[test]
    fn halves_of_a_pair_are_joined_and_lone_ones_are_replaced() {
        assert_eq!(joined(&[r#""a\ud83d\ude00b""#]), "a😀b");
        assert_eq!(joined(&[r#""a\ud83d""#, r#""\ude00b""#]), "a😀b");
        assert_eq!(joined(&[r#""a\ud83d""#, r#""""#, r#""\ude00b""#]), "a😀b");
        assert_eq!(joined(&[r#""a\ud83d""#, r#""b""#]), "a\u{fffd}b");
        assert_eq!(joined(&[r#""a\ude00b""#]), "a\u{fffd}b");
        assert_eq!(joined(&[r#""\ud83d\ud83d\ude00""#]), "\u{fffd}😀");
        assert_eq!(joined(&[r#""a\ud83d""#]), "a\u{fffd}");
        assert_eq!(joined(&[r#""\ud83d\n""#]), "\u{fffd}\n");
    }

    #[test]
    fn bytes_of_a_character_are_joined_and_others_are_replaced() {
        let mut joiner = Joiner::default();
        let mut read = |bytes: &[u8]| joiner.join(Text::Invalid(bytes.to_vec()));
        assert_eq!(read(b"a\xe4\xb8"), "a");
        assert_eq!(read(b"\x96b\xff\xf0\x9f"), "世b\u{fffd}");
        assert_eq!(read(b"\x98"), "");
        assert_eq!(read(b"\x80"), "😀");
    }

    #[test]
    fn counts_and_flags_are_read_in_every_form() {
        for (json, count) in [
            ("5", Some(5)),
            ("5.0", Some(5)),
            ("\"5\"", Some(5)),
            ("\" 5.0 \"", Some(5)),
            ("18446744073709551615", Some(u64::MAX)),
            ("null", None),
            ("\"\"", None),
            ("-1", None),
            ("true", None),
            ("[1,[2]]", None),
            ("{\"a\":{}}", None),
        ] {
            assert_eq!(serde_json::from_str::<Count>(json).expect(json), Count(count), "{json}");
        }
        for (json, flag) in [
            ("true", Some(true)),
            ("\"True\"", Some(true)),
            ("1", Some(true)),
            ("0.0", Some(false)),
            ("\"no\"", None),
            ("null", None),
            ("[]", None),
        ] {
            assert_eq!(serde_json::from_str::<Flag>(json).expect(json), Flag(flag), "{json}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_chunks_give_one_text_and_at_most_three_bytes_are_held(
            bytes in prop::collection::vec(
                prop_oneof![any::<u8>(), Just(0xed), 0xa0..=0xbfu8], 0..60),
            cuts in prop::collection::vec(0..60usize, 0..6),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut <= bytes.len()).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let (mut joiner, mut begin, mut joined) = (Joiner::default(), 0, String::new());
            for cut in cuts {
                let chunk = &bytes[std::mem::replace(&mut begin, cut)..cut];
                joined += &joiner.join(read(chunk));
                prop_assert!(joiner.held.len() <= 3);
            }
            joiner.end(&mut joined);
            // UTF-8 stays as it is, and no character is added without a byte.
            if let Ok(text) = std::str::from_utf8(&bytes) {
                prop_assert_eq!(&joined, text);
            }
            prop_assert!(joined.chars().count() <= bytes.len());
        }
    }
}
