//! The choice of the turns that fit into a prompt: its bounds in tokens, messages and bytes.

use super::past_turns::PastTurn;
use super::tokens::{TokenEstimate, text_bytes};
use crate::session::Message;
use crate::session::model::TurnSpec;

/// Bytes of the headers of a question and its answer as they are stored, about.
pub(super) const HEADER_BYTES: usize = 1 << 10;
/// Share of the room that is in use after turns were dropped.
pub(super) const AFTER_DROP: f64 = 0.75;
/// Share of the context window that is left for the answer, at most.
const ANSWER_SHARE: f64 = 0.5;

/// The size of a prompt, or the bounds of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct PromptSize {
    pub(super) tokens: f64,
    pub(super) messages: f64,
    /// Bytes as they are stored.
    pub(super) bytes: f64,
    /// The share of the images in the room for them.
    pub(super) images: f64,
}

/// Images of one prompt, at most, and their bytes.
const IMAGES: f64 = 16.0;
const IMAGE_BYTES: f64 = 8.0 * 1024.0 * 1024.0;

/// Returns what the images of a message take of the room for images.
pub(super) fn image_share(message: &Message) -> f64 {
    let of_before = || message.before.iter().flat_map(|before| &before.images);
    let bytes: u64 = message.images.iter().chain(of_before()).map(|image| image.bytes).sum();
    let count = message.images.len() + of_before().count();
    (count as f64 / IMAGES).max(bytes as f64 / IMAGE_BYTES)
}

impl PromptSize {
    fn fits(self, room: Self, share: f64) -> bool {
        self.tokens <= room.tokens * share
            && self.messages <= room.messages * share
            && self.bytes <= room.bytes * share
            && self.images <= room.images * share
    }
}

/// Returns the tokens that a prompt may have, so that the answer has room in the context window.
pub(super) fn token_room(spec: &TurnSpec, num_ctx: Option<u32>) -> f64 {
    num_ctx.map_or(f64::INFINITY, |window| {
        let window = f64::from(window);
        window - f64::from(spec.max_tokens).min(window * ANSWER_SHARE)
    })
}

/// Returns the size of the prompt that begins with each of the turns. The last size is that of a
/// prompt without turns: `always`, which has the question and the system prompt.
pub(super) fn sizes_from(
    past: &[PastTurn<'_>],
    estimate: &TokenEstimate,
    always: PromptSize,
) -> Vec<PromptSize> {
    let mut sizes = vec![always; past.len() + 1];
    for (at, turn) in past.iter().enumerate().rev() {
        let after = sizes[at + 1];
        let stored = |message: &Message| {
            let reasoning = message.thinking.as_ref().map_or(0, String::len);
            text_bytes(message) + reasoning + HEADER_BYTES / 2
        };
        let before: f64 = turn.before_answer().map(|message| estimate.of_message(message)).sum();
        sizes[at] = PromptSize {
            tokens: after.tokens + before + estimate.of_answer(turn),
            messages: after.messages + turn.messages().count() as f64,
            bytes: after.bytes + turn.messages().map(stored).sum::<usize>() as f64,
            images: after.images + turn.messages().map(image_share).sum::<f64>(),
        };
    }
    sizes
}

/// Returns the turn that the prompt begins with. `sizes` is the result of [`sizes_from`], and
/// `last` the turn that the last prompt began with.
pub(super) fn first_turn(sizes: &[PromptSize], room: PromptSize, last: Option<usize>) -> usize {
    if let Some(last) = last
        && sizes[last].fits(room, 1.0)
    {
        return last;
    }
    let question_only = sizes.len() - 1;
    let after_drop = (0..question_only).find(|first| sizes[*first].fits(room, AFTER_DROP));
    after_drop.unwrap_or_else(|| {
        // A long turn just before the question is worth more than the free quarter.
        let before = question_only.saturating_sub(1);
        if sizes[before].fits(room, 1.0) { before } else { question_only }
    })
}
