//! How an answer goes on after its writer, its host or the connection was lost.
//!
//! The host renders the prompt as the model would see it, and the model continues that prompt with
//! the answer so far behind it. Where the host cannot render, the answer begins anew.

use unicode_segmentation::UnicodeSegmentation;

use crate::ollama::{ChatRequest, Done, OllamaError, Options, Slot, TokenStream};
use crate::session::thoughts::Shape;

/// A stream that goes on, or one that begins anew.
pub(super) struct Continued {
    pub(super) stream: TokenStream,
    /// What comes again at first, as the prompt was cut before it.
    pub(super) overlap: String,
    /// The answer is to be taken back to nothing first.
    pub(super) anew: bool,
    /// Tokens of the answer before this stream.
    pub(super) tokens_before: u64,
    /// Tokens of the prompt without the answer, 0 where unknown.
    pub(super) prompt_tokens: u64,
}

/// What became of asking the model to go on.
pub(super) enum Asked {
    Goes(Box<Continued>),
    /// The answer has used up its tokens: there is nothing to ask for.
    Length {
        prompt_tokens: u64,
        answer_tokens: u64,
    },
}

/// Opens a stream that goes on after `so_far`, which may have thoughts before it, or begins where
/// nothing is there.
pub(super) async fn open(
    slot: &Slot,
    request: &ChatRequest,
    so_far: &str,
) -> Result<Asked, OllamaError> {
    let anew = async |anew| {
        let stream = slot.chat(request).await?;
        let overlap = String::new();
        let continued = Continued { stream, overlap, anew, tokens_before: 0, prompt_tokens: 0 };
        Ok(Asked::Goes(Box::new(continued)))
    };
    if so_far.is_empty() {
        return anew(false).await;
    }
    let shape = Shape::of(so_far);
    // How a prompt goes on after thoughts only the host knows, and it does not tell.
    let thinks = shape.thoughts(so_far).is_some() || slot.thinks(request).await?;
    let so_far = shape.answer(so_far);
    let rendered = if thinks { None } else { slot.render(request).await? };
    let Some(prompt) = rendered else {
        return anew(true).await;
    };
    let kept = &so_far[..seam(so_far)];
    let prompt_tokens = count(slot, request, &prompt).await?;
    let prompt = prompt + kept;
    let tokens_before = match count(slot, request, &prompt).await {
        Ok(tokens) => tokens.saturating_sub(prompt_tokens),
        // The prompt fits, so the answer has filled the window. A shorter prompt would go on with
        // the answer to another one.
        Err(OllamaError::ContextTooLong { prompt_tokens: all, .. }) => {
            let answer_tokens = all.saturating_sub(prompt_tokens);
            return Ok(Asked::Length { prompt_tokens, answer_tokens });
        }
        Err(error) => return Err(error),
    };
    let limit = u64::from(request.options.num_predict);
    // To Ollama a limit of 0 is none.
    if tokens_before >= limit {
        return Ok(Asked::Length { prompt_tokens, answer_tokens: tokens_before });
    }
    let left = u32::try_from(limit - tokens_before).unwrap_or(u32::MAX);
    let request = with_limit(request, left);
    let stream = slot.continue_raw(&request, &prompt).await?;
    let overlap = so_far[kept.len()..].to_owned();
    let continued = Continued { stream, overlap, anew: false, tokens_before, prompt_tokens };
    Ok(Asked::Goes(Box::new(continued)))
}

/// Pieces are not tokens: only the host can count them.
async fn count(slot: &Slot, request: &ChatRequest, prompt: &str) -> Result<u64, OllamaError> {
    let mut stream = slot.continue_raw(&with_limit(request, 1), prompt).await?;
    while let Some(token) = stream.next().await? {
        if let Some(Done { prompt_eval_count, .. }) = token.done {
            return Ok(prompt_eval_count);
        }
    }
    Err(OllamaError::Interrupted("a count of tokens ended without one"))
}

fn with_limit(request: &ChatRequest, num_predict: u32) -> ChatRequest {
    let options = Options { num_predict, ..request.options.clone() };
    ChatRequest { options, ..request.clone() }
}

/// Where the answer is cut before the model goes on: before blanks at its end, as after one a model
/// often goes another way, and before a last character that may only be the beginning of one.
fn seam(text: &str) -> usize {
    let end = text.trim_end();
    match end.grapheme_indices(true).next_back() {
        Some((at, last)) if !last.is_ascii() => end[..at].trim_end().len(),
        _ => end.len(),
    }
}

/// What is new in `piece`, as far as it repeats the overlap; `Err` with the bytes of the overlap
/// that were not repeated, where the model goes another way.
pub(super) fn without_overlap<'a>(
    overlap: &mut String,
    piece: &'a str,
) -> Result<&'a str, (usize, &'a str)> {
    let same: usize = overlap
        .chars()
        .zip(piece.chars())
        .take_while(|(left, right)| left == right)
        .map(|(left, _)| left.len_utf8())
        .sum();
    overlap.drain(..same);
    let fresh = &piece[same..];
    if overlap.is_empty() || fresh.is_empty() {
        return Ok(fresh);
    }
    Err((std::mem::take(overlap).len(), fresh))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_the_pieces_the_overlap_is_dropped_once(
            known in "[ab é🏳️‍🌈\\n]{0,20}",
            fresh in "[ab é🏳️‍🌈\\n]{0,20}",
            sizes in proptest::collection::vec(1usize..5, 1..20),
        ) {
            let cut = seam(&known);
            let mut overlap = known[cut..].to_owned();
            let again: Vec<char> = known[cut..].chars().chain(fresh.chars()).collect();
            let mut text = known.clone();
            let mut rest = again.as_slice();
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                rest = after;
                let piece: String = piece.iter().collect();
                text.push_str(without_overlap(&mut overlap, &piece).expect("the same text"));
            }
            prop_assert_eq!(text, known + &fresh);
        }
    }

    #[test]
    fn the_seam_lies_before_blanks_and_unfinished_characters() {
        assert_eq!(seam("one two \n"), "one two".len());
        assert_eq!(seam("flag \u{1f3f3}\u{fe0f}\u{200d}"), "flag".len());
        assert_eq!(seam(" "), 0);
    }

    #[test]
    fn a_model_that_goes_another_way_tells_what_to_take_back() {
        let mut overlap = "  x".to_owned();
        assert_eq!(without_overlap(&mut overlap, " y"), Err((2, "y")));
        assert_eq!(without_overlap(&mut overlap, "z"), Ok("z"));
    }
}
