//! A tokenizer of the simulator's own: deterministic, and such that the tokens of a prompt and of a
//! text that follows it add up whenever the prompt ends with a line break.
//!
//! By that property a client can count the tokens of an unfinished answer as `prompt_eval_count` of
//! prompt and answer, less the prompt's own.

/// Longest word, in characters, that counts as one token.
const LONGEST_WORD: u8 = 8;

const ZERO_WIDTH_JOINER: char = '\u{200d}';

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Class {
    #[default]
    Start,
    Newline,
    Space,
    Word,
    Wide,
    Punctuation,
    Joiner,
    Extension,
}

fn classify(c: char) -> Class {
    match c {
        '\n' => Class::Newline,
        ZERO_WIDTH_JOINER => Class::Joiner,
        '\u{300}'..='\u{36f}' | '\u{fe0f}' | '\u{20e3}' | '\u{1f3fb}'..='\u{1f3ff}' => {
            Class::Extension
        }
        '\u{2600}'..='\u{27bf}' | '\u{2e80}'..='\u{d7ff}' | '\u{f900}'..='\u{faff}' => Class::Wide,
        c if c >= '\u{1f000}' => Class::Wide,
        c if c.is_whitespace() => Class::Space,
        c if c.is_alphanumeric() => Class::Word,
        _ => Class::Punctuation,
    }
}

/// Counts tokens one character at a time.
///
/// A token is a line break, or a word of at most eight letters and digits, one wide character
/// (CJK, emoji with everything joined to it) or one other sign, with the blanks before it.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenCounter {
    last: Class,
    word: u8,
    count: usize,
}

impl TokenCounter {
    /// Reads one character; returns true when a token starts with it.
    pub fn push(&mut self, c: char) -> bool {
        let class = classify(c);
        let starts = match (self.last, class) {
            (Class::Start | Class::Newline, _) | (_, Class::Newline) => true,
            (Class::Space, _)
            | (_, Class::Joiner | Class::Extension)
            | (Class::Joiner, Class::Wide) => false,
            (Class::Word, Class::Word) => self.word >= LONGEST_WORD,
            _ => true,
        };
        self.word = if class != Class::Word {
            0
        } else if starts {
            1
        } else {
            self.word + 1
        };
        self.last = match class {
            // An accent belongs to the character before it.
            Class::Extension if !matches!(self.last, Class::Start | Class::Newline) => self.last,
            other => other,
        };
        self.count += usize::from(starts);
        starts
    }

    /// Reads a text.
    pub fn feed(&mut self, text: &str) {
        for c in text.chars() {
            self.push(c);
        }
    }

    /// Returns how many tokens have started so far.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Counts the tokens of a text.
pub fn count_tokens(text: &str) -> usize {
    let mut counter = TokenCounter::default();
    counter.feed(text);
    counter.count()
}

/// Returns the first `limit` tokens of a text that follows what `counter` has already read.
pub fn first_tokens(mut counter: TokenCounter, text: &str, limit: usize) -> &str {
    let most = counter.count().saturating_add(limit);
    for (at, c) in text.char_indices() {
        if counter.push(c) && counter.count() > most {
            return &text[..at];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_a_prompt_and_its_answer_add_up() {
        let prompt = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n";
        let answer = "Well 👩\u{200d}👩\u{200d}👧 cafe\u{301} 世界, 12\n\nok";
        for (cut, _) in answer.char_indices() {
            let joined = count_tokens(&format!("{prompt}{}", &answer[..cut]));
            assert_eq!(joined, count_tokens(prompt) + count_tokens(&answer[..cut]));
        }
    }

    #[test]
    fn a_joined_emoji_and_an_accented_word_are_one_token_each() {
        assert_eq!(count_tokens("👩\u{200d}👩\u{200d}👧"), 1);
        assert_eq!(count_tokens("e\u{301}te\u{301}"), 1);
        assert_eq!(count_tokens("世界"), 2);
        assert_eq!(count_tokens("aaaaaaaaaaaaaaaaa"), 3);
    }

    #[test]
    fn a_limit_keeps_whole_tokens() {
        let limited = first_tokens(TokenCounter::default(), "one two three", 2);
        assert_eq!(limited, "one two");
    }
}
