//! The scripted answer: a pure function of model, last user message and seed.
//!
//! A load generator calls [`script_answer`] to know, byte for byte, what a stream must contain.

pub mod directive;

use directive::{Directives, Form, MOST_TOKENS};

use crate::hash::fnv;
use crate::model_name::canonical;
use crate::tokens::TokenCounter;

/// Equal pieces in a row after which the real Ollama ends a stream.
pub const REPETITION_LIMIT: usize = 30;

const DEFAULT_REASONING: usize = 16;

/// The part of a script that a piece belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The tags around the reasoning: a raw prompt shows them, a chat does not.
    Mark,
    /// The reasoning.
    Reasoning,
    /// The answer.
    Answer,
}

/// The end of a piece within its script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// The bytes of the script up to the end of this piece.
    pub end: usize,
    /// The tokens of the script up to the end of this piece.
    pub tokens: usize,
    /// The part that it belongs to.
    pub part: Part,
}

/// The ways in which a script ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It ends with a last line.
    Done,
    /// It ends without a last line and without an error.
    Silent,
}

/// The whole text of the scripted engine, reasoning included, and its pieces.
#[derive(Clone, Debug)]
pub struct Script {
    /// The tags, the reasoning and the answer as one text.
    pub text: String,
    /// The ends of the pieces, in ascending order.
    pub pieces: Vec<Boundary>,
    /// The way in which it ends.
    pub ending: Ending,
    counter: TokenCounter,
}

/// Returns the whole answer, without reasoning, as if nothing limited it.
///
/// `model` is the name under which it was created (an alias answers like its origin); a name
/// without a tag means `:latest`. `default_tokens` is the value of `--tokens`. Of a `num_predict`
/// below the answer's tokens the first that many remain: see [`crate::first_tokens`].
pub fn script_answer(
    model: &str,
    user_message: &str,
    seed: Option<i64>,
    default_tokens: usize,
) -> String {
    script(model, user_message, seed, default_tokens, false).text
}

/// Returns the answer of [`script_answer`] in the pieces of a stream without faults.
pub fn script_pieces(
    model: &str,
    user_message: &str,
    seed: Option<i64>,
    default_tokens: usize,
) -> Vec<String> {
    let script = script(model, user_message, seed, default_tokens, false);
    let mut from = 0;
    let mut pieces = Vec::with_capacity(script.pieces.len());
    for piece in &script.pieces {
        pieces.push(script.text[from..piece.end].to_owned());
        from = piece.end;
    }
    pieces
}

/// Returns the script for one request; `thinking` puts reasoning before the answer.
pub fn script(
    model: &str,
    user_message: &str,
    seed: Option<i64>,
    default_tokens: usize,
    thinking: bool,
) -> Script {
    let directives = Directives::parse(user_message);
    let key = Random::keyed(&canonical(model), user_message, seed);
    let mut script = Script {
        text: String::new(),
        pieces: Vec::new(),
        ending: Ending::Done,
        counter: TokenCounter::default(),
    };
    if thinking {
        let reasoning = directives.reasoning.unwrap_or(DEFAULT_REASONING).min(MOST_TOKENS);
        script.push("<think>\n", Part::Mark);
        script.varied(key.fork("thoughts"), reasoning, Part::Reasoning);
        script.push("\n</think>\n\n", Part::Mark);
    }
    let tokens = directives.tokens.unwrap_or(default_tokens).min(MOST_TOKENS);
    match directives.form {
        Form::Varied => script.varied(key, tokens, Part::Answer),
        Form::Count => script.count(tokens),
        Form::Repeat => {
            script.ending = Ending::Silent;
            for _ in 0..REPETITION_LIMIT {
                script.push(" again", Part::Answer);
            }
        }
        Form::Say(text) => match directives.by {
            Some(by) => text.split(by).for_each(|piece| script.push(piece, Part::Answer)),
            None => script.say(key, text),
        },
    }
    script
}

impl Script {
    /// Returns the tokens before the byte `at`, which must be a character boundary.
    pub fn counter_at(&self, at: usize) -> TokenCounter {
        if at >= self.text.len() {
            return self.counter;
        }
        let mut counter = TokenCounter::default();
        counter.feed(&self.text[..at]);
        counter
    }

    /// Writes another text after the byte `at`, unless a piece ends there: real weights often do
    /// that when they continue from within one of their tokens.
    pub fn stray(&mut self, at: usize) {
        if at == 0 || at >= self.text.len() || self.pieces.iter().any(|piece| piece.end == at) {
            return;
        }
        self.counter = self.counter_at(at);
        self.text.truncate(at);
        self.pieces.retain(|piece| piece.end < at);
        self.pieces.push(Boundary { end: at, tokens: self.counter.count(), part: Part::Answer });
        self.push("-another-way", Part::Answer);
    }

    fn push(&mut self, text: &str, part: Part) {
        if text.is_empty() {
            return;
        }
        self.text.push_str(text);
        self.counter.feed(text);
        self.pieces.push(Boundary { end: self.text.len(), tokens: self.counter.count(), part });
    }

    /// Adds pieces until there are exactly `tokens` more; the last piece is cut to fit.
    fn varied(&mut self, mut random: Random, tokens: usize, part: Part) {
        let most = self.counter.count() + tokens;
        for number in 1_u64.. {
            let left = most - self.counter.count();
            if left == 0 {
                break;
            }
            let mut piece = random.piece(number);
            if number == 1 {
                piece.drain(..piece.len() - piece.trim_start().len());
            }
            let fitting = crate::tokens::first_tokens(self.counter, &piece, left);
            let cut = fitting.len() < piece.len();
            self.push(fitting, part);
            if cut {
                break;
            }
        }
    }

    fn count(&mut self, tokens: usize) {
        for number in 1..=tokens {
            let blank = if number == 1 { "" } else { " " };
            self.push(&format!("{blank}{number}"), Part::Answer);
        }
    }

    fn say(&mut self, mut random: Random, text: &str) {
        let mut rest = text;
        while !rest.is_empty() {
            let tokens = 1 + random.below(2);
            let piece = crate::tokens::first_tokens(self.counter, rest, tokens);
            // A word that continues in the next piece starts no token of its own.
            let piece = if piece.is_empty() { rest } else { piece };
            self.push(piece, Part::Answer);
            rest = &rest[piece.len()..];
        }
    }
}

const WORDS: [&str; 16] = [
    "tide", "moss", "lamp", "fern", "salt", "wick", "oar", "dusk", "pine", "reed", "clay", "ash",
    "loom", "kelp", "hail", "rye",
];

/// A SplitMix64 generator: small, and the same on every machine.
#[derive(Clone, Copy, Debug)]
struct Random(u64);

impl Random {
    fn keyed(model: &str, message: &str, seed: Option<i64>) -> Self {
        let mut hash = fnv(0xcbf2_9ce4_8422_2325, model.as_bytes());
        hash = fnv(hash, &[0]);
        hash = fnv(hash, message.as_bytes());
        hash = fnv(hash, &seed.unwrap_or(0).to_le_bytes());
        Self(hash)
    }

    fn fork(self, name: &str) -> Self {
        Self(fnv(self.0, name.as_bytes()))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }

    /// Returns a piece. Each word carries its number, so that a loss, a double and a change of order show.
    fn piece(&mut self, number: u64) -> String {
        let word = WORDS[self.below(WORDS.len())];
        match self.below(30) {
            0 => format!(" 世界{number}"),
            1 => format!(" 👩\u{200d}👩\u{200d}👧{number}"),
            2 => format!(" e\u{301}t{number}e\u{301}"),
            3 => format!(", {word}{number}"),
            4 => format!(".\n\n{number}"),
            5 => format!(" \"{number}\\\" <b>&"),
            6 => format!("  {word}\t{number}"),
            7 => format!(" naïve ß{number} 🏳\u{fe0f}\u{200d}🌈"),
            8 => format!("\n- {word}{number}"),
            _ => format!(" {word}{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::count_tokens;

    #[test]
    fn an_answer_has_exactly_the_requested_tokens() {
        for tokens in [0, 1, 2, 7, 50, 999] {
            let answer = script_answer("m", &format!("x [[tokens={tokens}]]"), None, 5);
            assert_eq!(count_tokens(&answer), tokens);
        }
    }

    #[test]
    fn the_answer_depends_on_model_message_and_seed_alone() {
        let base = script_answer("m", "q", None, 60);
        assert_eq!(base, script_answer("m:latest", "q", Some(0), 60));
        assert_ne!(base, script_answer("n", "q", None, 60));
        assert_ne!(base, script_answer("m", "r", None, 60));
        assert_ne!(base, script_answer("m", "q", Some(1), 60));
    }

    #[test]
    fn reasoning_comes_first_and_leaves_the_answer_as_it_is() {
        let answer = script_answer("m", "q", None, 60);
        let thinking = script("m", "q", None, 60, true);
        assert!(thinking.text.starts_with("<think>\n"));
        assert!(thinking.text.ends_with(&format!("</think>\n\n{answer}")));
    }

    #[test]
    fn pieces_are_the_answer_and_fewer_than_its_tokens() {
        let pieces = script_pieces("m", "q", None, 500);
        assert_eq!(pieces.concat(), script_answer("m", "q", None, 500));
        assert!(pieces.len() < 500 && pieces.len() > 250, "{}", pieces.len());
    }

    #[test]
    fn the_text_is_as_awkward_as_promised() {
        let answer = script_answer("m", "q", None, 500);
        for sign in ["\u{200d}", "\u{301}", "世", "\n\n", "\"", "\\", "\t", "  "] {
            assert!(answer.contains(sign), "{sign:?}");
        }
    }

    #[test]
    fn pieces_can_be_set_and_a_strict_model_strays_only_from_within_one() {
        let script = script("m", "q [[strict by=| say]]fr|an\u{e7}| ais", None, 5, false);
        let ends: Vec<_> = script.pieces.iter().map(|piece| piece.end).collect();
        assert_eq!((script.text.as_str(), ends), ("fran\u{e7} ais", vec![2, 6, 10]));
        for (at, goes_on) in [(0, "fran\u{e7} ais"), (6, "fran\u{e7} ais"), (4, "fran-another-way")]
        {
            let mut straying = script.clone();
            straying.stray(at);
            assert_eq!(straying.text, goes_on);
            assert_eq!(straying.pieces.last().map(|piece| piece.end), Some(goes_on.len()));
        }
    }

    #[test]
    fn the_say_directive_sets_the_text() {
        for text in ["", "hello", " a\n\nb 👩\u{200d}👩\u{200d}👧 ]] [[", "é"] {
            let script = script("m", &format!("q [[say]]{text}"), None, 5, false);
            assert_eq!(script.text, text);
            assert_eq!(script.pieces.last().map_or(0, |p| p.end), text.len());
        }
    }
}
