//! How an answer is continued after its writer, its host or the connection was lost.
//!
//! The host renders the prompt as the model would see it, and the model continues that prompt with
//! the answer so far behind it, cut at its seam. The model repeats the text behind the seam, and
//! the repetition is dropped. Where the model diverges instead, a second request continues all of
//! the text that readers have, so that no reader has to remove text. Where the host cannot render,
//! the answer restarts.

use super::seam::{Comparison, compare, seam};
use crate::ollama::{Done, ModelRequest, OllamaError, Options, Slot, Token, TokenStream};
use crate::session::model::ContinuedHow;
use crate::session::reasoning::Shape;

/// A stream that continues an answer, or begins one.
pub(super) struct Continued {
    stream: TokenStream,
    /// A token that was already read from the stream.
    first: Option<Token>,
    /// How the stream continues the text so far, by its seam alone; none where there is no text.
    /// With [`ContinuedHow::Restarted`] the writer must rewind that text first.
    pub(super) how: Option<ContinuedHow>,
    /// Tokens of the answer before this stream.
    pub(super) tokens_before: u64,
    /// Tokens of the prompt without the answer, 0 where unknown.
    pub(super) prompt_tokens: u64,
}

/// The outcome of opening a stream.
pub(super) enum Opening {
    Stream(Box<Continued>),
    /// The answer has used up its tokens, so that no stream is needed.
    OutOfTokens {
        prompt_tokens: u64,
        answer_tokens: u64,
    },
}

impl Continued {
    /// Returns the next token behind the answer so far, as [`TokenStream::next`] does. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Token>, OllamaError> {
        match self.first.take() {
            Some(token) => Ok(Some(token)),
            None => self.stream.next().await,
        }
    }

    /// Reads until the model has repeated `expected`. Returns `false` where it diverges or ends.
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

/// Opens a stream that continues `so_far`, which may begin with reasoning, or begins an answer
/// where `so_far` is empty.
pub(super) async fn open(
    slot: &Slot,
    request: &ModelRequest,
    so_far: &str,
) -> Result<Opening, OllamaError> {
    let begin = async |how| {
        let stream = slot.chat(request).await?;
        let continued = Continued { stream, first: None, how, tokens_before: 0, prompt_tokens: 0 };
        Ok(Opening::Stream(Box::new(continued)))
    };
    if so_far.is_empty() {
        return begin(None).await;
    }
    let shape = Shape::of(so_far);
    // How a template continues after reasoning is known to the host alone, which does not expose
    // it.
    let thinks = shape.reasoning(so_far).is_some() || slot.thinks(request).await?;
    let so_far = shape.answer(so_far);
    let rendered = if thinks { None } else { slot.render(request).await? };
    let Some(prompt) = rendered else {
        return begin(Some(ContinuedHow::Restarted)).await;
    };
    let prompt_tokens = count(slot, request, &prompt).await?;
    let (kept, cut_off) = so_far.split_at(seam(so_far));
    let mut opening = continue_from(slot, request, &prompt, prompt_tokens, kept).await?;
    if let Opening::Stream(continued) = &mut opening
        && !cut_off.is_empty()
        && !continued.repeats(cut_off).await?
    {
        drop(opening);
        tracing::debug!("model diverged; continuing all of the text");
        opening = continue_from(slot, request, &prompt, prompt_tokens, so_far).await?;
        if let Opening::Stream(continued) = &mut opening {
            continued.how = Some(ContinuedHow::Approximate);
        }
    }
    Ok(opening)
}

/// Has the model continue `kept`, which follows a prompt of `prompt_tokens`.
async fn continue_from(
    slot: &Slot,
    request: &ModelRequest,
    prompt: &str,
    prompt_tokens: u64,
    kept: &str,
) -> Result<Opening, OllamaError> {
    let prompt = format!("{prompt}{kept}");
    let tokens_before = match count(slot, request, &prompt).await {
        Ok(tokens) => tokens.saturating_sub(prompt_tokens),
        // The prompt fits, so the answer has filled the context window. A shorter prompt would
        // continue the answer to another prompt.
        Err(OllamaError::ContextTooLong { prompt_tokens: all, .. }) => {
            let answer_tokens = all.saturating_sub(prompt_tokens);
            return Ok(Opening::OutOfTokens { prompt_tokens, answer_tokens });
        }
        Err(error) => return Err(error),
    };
    let limit = u64::from(request.options.num_predict);
    // For Ollama a limit of 0 is no limit.
    if tokens_before >= limit {
        return Ok(Opening::OutOfTokens { prompt_tokens, answer_tokens: tokens_before });
    }
    let left = u32::try_from(limit - tokens_before).unwrap_or(u32::MAX);
    let stream = slot.continue_raw(&with_limit(request, left), &prompt).await?;
    let how = Some(ContinuedHow::Exact);
    let continued = Continued { stream, first: None, how, tokens_before, prompt_tokens };
    Ok(Opening::Stream(Box::new(continued)))
}

/// Has the host count the tokens of a prompt, because only the host knows the model's tokenizer.
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
