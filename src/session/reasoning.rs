//! What a model thinks before it answers.
//!
//! Thoughts and answer are one growing text, with one count of bytes: `␂ thoughts ␃ answer`, or the
//! answer alone. So they are written, taken back, resumed and taken over together, and only who
//! writes or shows the text has to know where the one ends and the other begins.

/// Stands before thoughts. An answer that begins with it has empty thoughts before it.
const BEGIN: char = '\u{2}';
/// Stands after thoughts, and never in them.
const END: char = '\u{3}';
/// Bytes of either.
const MARK: usize = 1;

/// Where the thoughts of a text end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// It has none.
    #[default]
    Plain,
    /// It is all thoughts so far.
    Thinking,
    /// The answer begins at this byte.
    Answering(usize),
}

impl Shape {
    /// The shape of a text, given from its beginning.
    pub fn of(text: &str) -> Self {
        if text.starts_with(BEGIN) { Self::Thinking.grown(text, 0) } else { Self::Plain }
    }

    /// The shape of `text`, where this was the shape of its first `known` bytes.
    #[must_use]
    pub fn grown(self, text: &str, known: usize) -> Self {
        match self {
            Self::Plain if known == 0 => Self::of(text),
            Self::Thinking => match text[known..].find(END) {
                Some(at) => Self::Answering(known + at + MARK),
                None => Self::Thinking,
            },
            settled => settled,
        }
    }

    /// What is to be written so that `answer` follows on `text`, which has this shape.
    pub fn before_answer(self, text: &str, answer: &str) -> &'static str {
        match self {
            Self::Thinking => "\u{3}",
            Self::Plain if text.is_empty() && answer.starts_with(BEGIN) => "\u{2}\u{3}",
            Self::Plain | Self::Answering(_) => "",
        }
    }

    /// What is to be written so that thoughts follow on `text`, which has this shape. None once it
    /// has any of the answer.
    pub fn before_reasoning(self, text: &str) -> Option<&'static str> {
        match self {
            Self::Thinking => Some(""),
            Self::Plain if text.is_empty() => Some("\u{2}"),
            Self::Plain | Self::Answering(_) => None,
        }
    }

    /// Where the answer begins; none while there is nothing of it.
    pub fn answer_from(self) -> Option<usize> {
        match self {
            Self::Plain => Some(0),
            Self::Thinking => None,
            Self::Answering(from) => Some(from),
        }
    }

    /// The answer in a text of this shape.
    pub fn answer(self, text: &str) -> &str {
        self.answer_from().map_or("", |from| &text[from..])
    }

    /// The thoughts in a text of this shape; none where they are empty.
    pub fn thoughts(self, text: &str) -> Option<&str> {
        let thoughts = match self {
            Self::Plain => "",
            Self::Thinking => &text[MARK..],
            Self::Answering(from) => &text[MARK..from - MARK],
        };
        (!thoughts.is_empty()).then_some(thoughts)
    }

    /// The first part of what stands between these places of a text of this shape. Nothing where
    /// only marks stand there.
    pub fn part(self, text: &str, from: usize, to: usize) -> Option<Part<'_>> {
        let answer_from = self.answer_from();
        let reasoning_end = match answer_from {
            Some(0) => 0,
            Some(answer) => (answer - MARK).min(to),
            None => to,
        };
        let begin = from.max(MARK);
        if begin < reasoning_end {
            let end = if reasoning_end < to { reasoning_end + MARK } else { to };
            let (thought, text) = (true, &text[begin..reasoning_end]);
            return Some(Part { thought, offset: begin - MARK, text, end });
        }
        let answer = answer_from?;
        let begin = from.max(answer);
        (begin < to).then(|| {
            let (thought, text) = (false, &text[begin..to]);
            Part { thought, offset: begin - answer, text, end: to }
        })
    }
}

/// A part of a text that is all thoughts or all answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Whether it is of the thoughts.
    pub thought: bool,
    /// UTF-8 bytes of the thoughts, or of the answer, before it.
    pub offset: usize,
    /// The part.
    pub text: &'a str,
    /// Where it ends in the whole text, marks included.
    pub end: usize,
}

/// Thoughts without what would end them.
pub fn unmarked(thoughts: &str) -> impl Iterator<Item = &str> {
    thoughts.split(END)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(text: &mut String, thoughts: &[String], answer: &[String]) {
        for piece in thoughts.iter().filter(|piece| !piece.is_empty()) {
            let mark = Shape::of(text).before_reasoning(text).expect("nothing of the answer");
            text.push_str(mark);
            text.extend(unmarked(piece));
        }
        for piece in answer.iter().filter(|piece| !piece.is_empty()) {
            text.push_str(Shape::of(text).before_answer(text, piece));
            text.push_str(piece);
        }
    }

    proptest! {
        #[test]
        fn thoughts_and_answer_come_apart_as_they_were_put_together(
            thoughts in proptest::collection::vec("[a三\u{2}\u{3}]{0,5}", 0..5),
            answer in proptest::collection::vec("[a三\u{2}\u{3}]{0,5}", 0..5),
            sizes in proptest::collection::vec(1usize..6, 1..8),
        ) {
            let mut text = String::new();
            write(&mut text, &thoughts, &answer);
            let (thoughts, answer) = (thoughts.concat().replace(END, ""), answer.concat());
            let shape = Shape::of(&text);
            prop_assert_eq!(shape.answer(&text), &answer);
            prop_assert_eq!(shape.thoughts(&text).unwrap_or_default(), &thoughts);
            // And piece by piece, of any size, as it grows.
            let (mut known, mut seen) = (Shape::Plain, [String::new(), String::new()]);
            let (mut held, mut at) = (0, 0);
            for size in sizes.iter().cycle() {
                let grown = text.ceil_char_boundary(held + size);
                known = known.grown(&text[..grown], held);
                prop_assert_eq!(known, Shape::of(&text[..grown]));
                held = grown;
                while let Some(part) = known.part(&text[..held], at, held) {
                    let seen = &mut seen[usize::from(part.thought)];
                    prop_assert_eq!(part.offset, seen.len());
                    seen.push_str(part.text);
                    at = part.end;
                }
                if held == text.len() {
                    break;
                }
            }
            prop_assert_eq!(seen, [answer, thoughts]);
        }
    }
}
