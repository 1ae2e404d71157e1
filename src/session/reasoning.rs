//! The reasoning of a model before its answer.
//!
//! Reasoning and answer are one growing text, with one count of bytes: `␂ reasoning ␃ answer`, or
//! the answer alone. So they are written, taken back, resumed and taken over together, and only the
//! writer and the fronts need to know where the reasoning ends.

/// The marker before reasoning. An answer that begins with it has empty reasoning before it.
const BEGIN: char = '\u{2}';
/// The marker after reasoning, and never in it.
const END: char = '\u{3}';
/// Bytes of each marker.
const MARKER: usize = 1;

/// Returns reasoning and answer as one text; none where the reasoning has a marker in it.
pub fn joined(reasoning: Option<&str>, answer: &str) -> Option<String> {
    match reasoning {
        Some(reasoning) if reasoning.contains(END) => None,
        Some(reasoning) => Some(format!("{BEGIN}{reasoning}{END}{answer}")),
        None => Some(format!("{}{answer}", Shape::Plain.before_answer("", answer))),
    }
}

/// The position at which the reasoning of a text ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// The text has no reasoning.
    #[default]
    Plain,
    /// The text is all reasoning so far.
    Reasoning,
    /// The answer begins at this byte.
    Answering(usize),
}

impl Shape {
    /// Returns the shape of a text that is known from its beginning.
    pub fn of(text: &str) -> Self {
        if text.starts_with(BEGIN) { Self::Reasoning.grown(text, 0) } else { Self::Plain }
    }

    /// Returns the shape of `text`, where this was the shape of its first `known` bytes.
    #[must_use]
    pub fn grown(self, text: &str, known: usize) -> Self {
        match self {
            Self::Plain if known == 0 => Self::of(text),
            Self::Reasoning => match text[known..].find(END) {
                Some(at) => Self::Answering(known + at + MARKER),
                None => Self::Reasoning,
            },
            settled => settled,
        }
    }

    /// Returns the markers to write between `text`, which has this shape, and `answer`.
    pub fn before_answer(self, text: &str, answer: &str) -> &'static str {
        match self {
            Self::Reasoning => "\u{3}",
            Self::Plain if text.is_empty() && answer.starts_with(BEGIN) => "\u{2}\u{3}",
            Self::Plain | Self::Answering(_) => "",
        }
    }

    /// Returns the marker to write between `text`, which has this shape, and more reasoning; none
    /// once the answer has begun.
    pub fn before_reasoning(self, text: &str) -> Option<&'static str> {
        match self {
            Self::Reasoning => Some(""),
            Self::Plain if text.is_empty() => Some("\u{2}"),
            Self::Plain | Self::Answering(_) => None,
        }
    }

    /// Returns the position at which the answer begins; none before it does.
    pub fn answer_from(self) -> Option<usize> {
        match self {
            Self::Plain => Some(0),
            Self::Reasoning => None,
            Self::Answering(from) => Some(from),
        }
    }

    /// Returns the answer in a text of this shape.
    pub fn answer(self, text: &str) -> &str {
        self.answer_from().map_or("", |from| &text[from..])
    }

    /// Returns the reasoning in a text of this shape; none where it is empty.
    pub fn reasoning(self, text: &str) -> Option<&str> {
        let reasoning = match self {
            Self::Plain => "",
            Self::Reasoning => &text[MARKER..],
            Self::Answering(from) => &text[MARKER..from - MARKER],
        };
        (!reasoning.is_empty()).then_some(reasoning)
    }

    /// Returns the first part of a text of this shape between two positions; none where only
    /// markers lie between them.
    pub fn part(self, text: &str, from: usize, to: usize) -> Option<Part<'_>> {
        let answer_from = self.answer_from();
        let reasoning_end = match answer_from {
            Some(0) => 0,
            Some(answer) => (answer - MARKER).min(to),
            None => to,
        };
        let begin = from.max(MARKER);
        if begin < reasoning_end {
            let end = if reasoning_end < to { reasoning_end + MARKER } else { to };
            let (is_reasoning, text) = (true, &text[begin..reasoning_end]);
            return Some(Part { is_reasoning, offset: begin - MARKER, text, end });
        }
        let answer = answer_from?;
        let begin = from.max(answer);
        (begin < to).then(|| {
            let (is_reasoning, text) = (false, &text[begin..to]);
            Part { is_reasoning, offset: begin - answer, text, end: to }
        })
    }
}

/// A part of a text that is all reasoning or all answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Whether the part is reasoning.
    pub is_reasoning: bool,
    /// UTF-8 bytes of the reasoning, or of the answer, before the part.
    pub offset: usize,
    /// The text of the part.
    pub text: &'a str,
    /// The position at which the part ends in the whole text, markers included.
    pub end: usize,
}

/// Returns the pieces of a reasoning text without the marker that would end it.
pub fn without_end_markers(reasoning: &str) -> impl Iterator<Item = &str> {
    reasoning.split(END)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(text: &mut String, reasoning: &[String], answer: &[String]) {
        for piece in reasoning.iter().filter(|piece| !piece.is_empty()) {
            let marker = Shape::of(text).before_reasoning(text).expect("no answer yet");
            text.push_str(marker);
            text.extend(without_end_markers(piece));
        }
        for piece in answer.iter().filter(|piece| !piece.is_empty()) {
            text.push_str(Shape::of(text).before_answer(text, piece));
            text.push_str(piece);
        }
    }

    proptest! {
        #[test]
        fn reasoning_and_answer_are_split_as_they_were_joined(
            reasoning in proptest::collection::vec("[a三\u{2}\u{3}]{0,5}", 0..5),
            answer in proptest::collection::vec("[a三\u{2}\u{3}]{0,5}", 0..5),
            sizes in proptest::collection::vec(1usize..6, 1..8),
        ) {
            let mut text = String::new();
            write(&mut text, &reasoning, &answer);
            let (reasoning, answer) = (reasoning.concat().replace(END, ""), answer.concat());
            let shape = Shape::of(&text);
            prop_assert_eq!(shape.answer(&text), &answer);
            prop_assert_eq!(shape.reasoning(&text).unwrap_or_default(), &reasoning);
            // The same holds piece by piece, of any size, while the text grows.
            let (mut known, mut seen) = (Shape::Plain, [String::new(), String::new()]);
            let (mut held, mut at) = (0, 0);
            for size in sizes.iter().cycle() {
                let grown = text.ceil_char_boundary(held + size);
                known = known.grown(&text[..grown], held);
                prop_assert_eq!(known, Shape::of(&text[..grown]));
                held = grown;
                while let Some(part) = known.part(&text[..held], at, held) {
                    let seen = &mut seen[usize::from(part.is_reasoning)];
                    prop_assert_eq!(part.offset, seen.len());
                    seen.push_str(part.text);
                    at = part.end;
                }
                if held == text.len() {
                    break;
                }
            }
            prop_assert_eq!(seen, [answer, reasoning]);
        }
    }
}
