//! Estimates how many tokens a text has.

use super::past_turns::{PastTurn, first_of_prompt};
use crate::session::model::TurnSpec;
use crate::session::{Message, Status};

/// Bytes of a token where the conversation has no count yet: fewer than in known languages and
/// models, so that the estimate is high.
pub(super) const BYTES_PER_TOKEN: f64 = 3.0;
/// Bounds of the bytes of a token that follow from a count.
pub(super) const COUNTED_BYTES_PER_TOKEN: std::ops::RangeInclusive<f64> = 0.5..=8.0;
/// An estimate from a count is multiplied by this.
pub(super) const CAUTION: f64 = 1.1;
/// Characters of one, two and more bytes in a token, at most, on average over a text: more than in
/// any text but repetitions of one sign.
const MOST_PER_TOKEN: [usize; 3] = [16, 4, 3];
/// Tokens that a chat template puts around one message.
const TOKENS_AROUND_MESSAGE: f64 = 8.0;

/// Tokens of an image: models differ by a factor of ten and more.
const TOKENS_OF_IMAGE: f64 = 576.0;

/// Returns the bytes of text that a message adds to a prompt, with what its request brought before it.
pub(super) fn text_bytes(message: &Message) -> usize {
    let calls = message.tool_calls.iter().map(|call| call.name.len() + call.arguments.len());
    let before = message.before.iter().map(text_bytes);
    message.content.len() + calls.sum::<usize>() + before.sum::<usize>()
}

/// Returns the least number of tokens that a text has.
pub(super) fn least_tokens(text: &str) -> usize {
    let mut characters = [0; 3];
    for character in text.chars() {
        characters[character.len_utf8().min(3) - 1] += 1;
    }
    characters.iter().zip(MOST_PER_TOKEN).map(|(count, most)| count / most).sum()
}

/// Estimates tokens from what the host counted in this conversation, because only the host knows
/// the model's tokenizer.
pub(super) struct TokenEstimate {
    pub(super) bytes_per_token: f64,
}

impl TokenEstimate {
    /// Creates an estimate from the newest answer of this model whose prompt was counted. Its
    /// system prompt is assumed to have been the present one.
    pub(super) fn of(past: &[PastTurn<'_>], spec: &TurnSpec) -> Self {
        let system = spec.system.as_ref().map_or(0, String::len);
        let counted = past.iter().enumerate().rev().find_map(|(at, turn)| {
            // The usage may be an estimate itself, so the count of the report is read.
            let report = turn.answer.context?;
            if report.prompt_tokens == 0 || report.messages_sent == 0 || !turn.is_by(&spec.model) {
                return None;
            }
            let own = turn.before_answer().count();
            let first = first_of_prompt(past, at, own, report.messages_sent)?;
            let earlier = past[first..at].iter().flat_map(PastTurn::messages);
            let sent: Vec<&Message> = earlier.chain(turn.before_answer()).collect();
            let has_image = |message: &Message| !message.images.is_empty();
            if sent.iter().any(|it| has_image(it) || it.before.iter().any(has_image)) {
                // The cost of their images is not known, so the count says nothing of the text.
                return None;
            }
            let bytes = sent.iter().map(|message| text_bytes(message)).sum::<usize>() + system;
            let before: usize = sent.iter().map(|message| message.before.len()).sum();
            let messages = report.messages_sent + before as u64;
            let around = messages as f64 * TOKENS_AROUND_MESSAGE;
            let tokens = (report.prompt_tokens as f64 - around).max(1.0);
            Some(bytes as f64 / tokens)
        });
        let bytes_per_token = counted.map_or(BYTES_PER_TOKEN, |bytes| {
            let (least, most) = COUNTED_BYTES_PER_TOKEN.into_inner();
            bytes.clamp(least, most) / CAUTION
        });
        Self { bytes_per_token }
    }

    /// Estimates the tokens of a message with this text.
    pub(super) fn of_text(&self, text: &str) -> f64 {
        self.of_bytes(text.len())
    }

    /// Estimates the tokens of a message, with its images and calls of tools.
    pub(super) fn of_message(&self, message: &Message) -> f64 {
        let of_before: usize = message.before.iter().map(|before| before.images.len()).sum();
        let images = message.images.len() + of_before;
        self.of_bytes(text_bytes(message))
            + TOKENS_AROUND_MESSAGE * message.before.len() as f64
            + TOKENS_OF_IMAGE * images as f64
    }

    fn of_bytes(&self, bytes: usize) -> f64 {
        bytes as f64 / self.bytes_per_token + TOKENS_AROUND_MESSAGE
    }

    /// Estimates the tokens of an answer in a prompt. The host counted the answer as it generated
    /// it, without what its template puts around it there, so the larger of count and estimate is
    /// taken.
    pub(super) fn of_answer(&self, turn: &PastTurn<'_>) -> f64 {
        let answer = turn.answer;
        let text = self.of_bytes(text_bytes(answer));
        match (answer.usage, answer.status) {
            // A count that includes reasoning says nothing of the answer. Reasoning that was not
            // requested is not even stored, so the count is bounded by the bytes of the answer.
            (Some(usage), Some(Status::Complete)) if answer.thinking.is_none() => {
                let counted = usage.completion_tokens.min(answer.content.len() as u64);
                text.max(counted as f64 + TOKENS_AROUND_MESSAGE)
            }
            _ => text,
        }
    }
}
