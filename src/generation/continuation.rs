//! How an answer goes on after its writer, its host or the connection was lost.
//!
//! The host renders the prompt as the model would see it, and the model continues that prompt with
//! the answer so far behind it, cut at its seam. What was cut off comes again and is dropped. Where
//! the model goes another way instead, it is asked once more, with all of the text that readers
//! have: they never have to give any back. Where the host cannot render, the answer begins anew.

use super::seam::{Comparison, compare, seam};
use crate::ollama::{Done, ModelRequest, OllamaError, Options, Slot, Token, TokenStream};
use crate::session::model::ContinuedHow;
use crate::session::reasoning::Shape;

/// A stream that goes on, or one that begins anew.
pub(super) struct Continued {
    stream: TokenStream,
    /// A token that was read from the stream already.
    first: Option<Token>,
    /// How the stream follows on the text so far; none where there is no text. With
    /// [`ContinuedHow::Restarted`] that text is to be taken back first.
    pub(super) how: Option<ContinuedHow>,
    /// Tokens of the answer before this stream.
    pub(super) tokens_before: u64,
    /// Tokens of the prompt without the answer, 0 where unknown.
    pub(super) prompt_tokens: u64,
}

/// What became of asking the model to go on.
pub(super) enum Opening {
    Goes(Box<Continued>),
    /// The answer has used up its tokens: there is nothing to ask for.
    Length {
        prompt_tokens: u64,
        answer_tokens: u64,
    },
}

impl Continued {
    /// Returns the next piece that follows on the answer so far, as [`TokenStream::next`] does.
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Token>, OllamaError> {
        match self.first.take() {
            Some(token) => Ok(Some(token)),
            None => self.stream.next().await,
        }
    }

    /// Reads until the model has repeated `expected`. `false`: it goes another way, or has ended.
    async fn repeats(&mut self, mut expected: &str) -> Result<bool, OllamaError> {
        loop {
            let mut token = match self.stream.next().await {
                Ok(Some(token)) => token,
                Ok(None) | Err(OllamaError::Repetition) => break,
                Err(error) => return Err(error),
            };
            match compare(&mut expected, &token.content) {
                Comparison::Continues(new) => {
                    let repeated = token.content.len() - new.len();
                    token.content.drain(..repeated);
                    self.first = Some(token);
                    return Ok(true);
                }
                Comparison::Repeats if token.done.is_none() => {}
                Comparison::Repeats | Comparison::Differs => break,
            }
        }
        Ok(false)
    }
}

/// Opens a stream that goes on after `so_far`, which may have thoughts before it, or begins where
/// nothing is there.
pub(super) async fn open(
    slot: &Slot,
    request: &ModelRequest,
    so_far: &str,
) -> Result<Opening, OllamaError> {
    let anew = async |how| {
        let stream = slot.chat(request).await?;
        let continued = Continued { stream, first: None, how, tokens_before: 0, prompt_tokens: 0 };
        Ok(Opening::Goes(Box::new(continued)))
    };
    if so_far.is_empty() {
        return anew(None).await;
    }
    let shape = Shape::of(so_far);
    // How a prompt goes on after thoughts only the host knows, and it does not tell.
    let thinks = shape.thoughts(so_far).is_some() || slot.thinks(request).await?;
    let so_far = shape.answer(so_far);
    let rendered = if thinks { None } else { slot.render(request).await? };
    let Some(prompt) = rendered else {
        return anew(Some(ContinuedHow::Restarted)).await;
    };
    let prompt_tokens = count(slot, request, &prompt).await?;
    let (kept, cut_off) = so_far.split_at(seam(so_far));
    let mut asked = go_on(slot, request, &prompt, prompt_tokens, kept).await?;
    if let Opening::Goes(continued) = &mut asked
        && !cut_off.is_empty()
        && !continued.repeats(cut_off).await?
    {
        drop(asked);
        tracing::debug!("the model went another way; it goes on after all that readers have");
        asked = go_on(slot, request, &prompt, prompt_tokens, so_far).await?;
        if let Opening::Goes(continued) = &mut asked {
            continued.how = Some(ContinuedHow::Approximate);
        }
    }
    Ok(asked)
}

/// Has the model go on after `kept`, which follows on a prompt of `prompt_tokens`.
async fn go_on(
    slot: &Slot,
    request: &ModelRequest,
    prompt: &str,
    prompt_tokens: u64,
    kept: &str,
) -> Result<Opening, OllamaError> {
    let prompt = format!("{prompt}{kept}");
    let tokens_before = match count(slot, request, &prompt).await {
        Ok(tokens) => tokens.saturating_sub(prompt_tokens),
        // The prompt fits, so the answer has filled the window. A shorter prompt would go on with
        // the answer to another one.
        Err(OllamaError::ContextTooLong { prompt_tokens: all, .. }) => {
            let answer_tokens = all.saturating_sub(prompt_tokens);
            return Ok(Opening::Length { prompt_tokens, answer_tokens });
        }
        Err(error) => return Err(error),
    };
    let limit = u64::from(request.options.num_predict);
    // To Ollama a limit of 0 is none.
    if tokens_before >= limit {
        return Ok(Opening::Length { prompt_tokens, answer_tokens: tokens_before });
    }
    let left = u32::try_from(limit - tokens_before).unwrap_or(u32::MAX);
    let stream = slot.continue_raw(&with_limit(request, left), &prompt).await?;
    let how = Some(ContinuedHow::Exact);
    let continued = Continued { stream, first: None, how, tokens_before, prompt_tokens };
    Ok(Opening::Goes(Box::new(continued)))
}

/// Pieces are not tokens: only the host can count them.
async fn count(slot: &Slot, request: &ModelRequest, prompt: &str) -> Result<u64, OllamaError> {
    let mut stream = slot.continue_raw(&with_limit(request, 1), prompt).await?;
    while let Some(token) = stream.next().await? {
        if let Some(Done { prompt_eval_count, .. }) = token.done {
            return Ok(prompt_eval_count);
        }
    }
    Err(OllamaError::Interrupted("a count of tokens ended without one"))
}

fn with_limit(request: &ModelRequest, num_predict: u32) -> ModelRequest {
    let options = Options { num_predict, ..request.options.clone() };
    ModelRequest { options, ..request.clone() }
}
