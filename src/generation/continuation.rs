//! How an answer is continued after its writer, its host or the connection was lost.
//!
//! The host renders the prompt as the model would see it, and the model continues that prompt with
//! the answer so far behind it, cut at its seam. The model repeats the text behind the seam, and
//! the repetition is dropped. Where the model diverges instead, a second request continues all of
//! the text that readers have, so that no reader has to remove text. Where the host cannot render,
//! the answer restarts.
//!
//! Only the host can count tokens, and each count is a request of its own, which takes the host's
//! prompt cache away from the answer. So text goes on first, and the prompt is counted once, when
//! the stream has ended: the stream's last line has the tokens of prompt and answer together. A
//! token has at least one byte of text. While the bytes so far leave room below the answer's limit,
//! the stream may have so many tokens; only an answer that needs more is counted before it goes on.

use std::time::Duration;

use tokio::time::timeout;

use super::seam::{Comparison, compare, seam};
use crate::ollama::{
    Done, DoneReason, ModelRequest, OllamaError, Options, Slot, Token, TokenStream,
};
use crate::session::Usage;
use crate::session::model::ContinuedHow;
use crate::session::reasoning::Shape;

/// How long the end of an answer waits for a count.
const COUNT_LIMIT: Duration = Duration::from_secs(5);

/// A stream that continues an answer, or begins one.
pub(super) struct Continued {
    stream: TokenStream,
    /// A token that was already read from the stream.
    first: Option<Token>,
    /// How the stream continues the text so far, by its seam alone; none where there is no text.
    /// With [`ContinuedHow::Restarted`] the writer must rewind that text first.
    pub(super) how: Option<ContinuedHow>,
    tokens: TokensBefore,
}

/// The tokens before a stream, as far as they are known.
enum TokensBefore {
    /// The stream begins the answer.
    Begins,
    /// The prompt and the answer so far were counted.
    Counted { prompt: u64, answer: u64 },
    /// The stream continues this rendered prompt with text behind it, and may have `room` tokens:
    /// the answer's limit allows more.
    Uncounted { prompt: String, room: u32 },
}

/// How many tokens a stream that continues an answer may have.
#[derive(Clone, Copy)]
enum TokenLimit {
    /// So many: with the answer so far they are surely below the answer's limit.
    Room(u32),
    /// Returns the rest of the answer's limit once the answer is counted behind a prompt of so many tokens.
    BehindPrompt(u64),
}

/// The tokens of a prompt and its whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// The tokens of the prompt; none where the host does not count them.
    pub(super) prompt: Option<u64>,
    /// The tokens of the whole answer; a lower bound where the host does not count them.
    pub(super) answer: u64,
}

impl Counted {
    /// Returns the tokens of a turn, whose prompt is estimated at `prompt` tokens.
    pub(super) fn usage(&self, prompt: u64) -> Usage {
        Usage { prompt_tokens: self.prompt.unwrap_or(prompt), completion_tokens: self.answer }
    }
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

    /// Returns the rendered prompt where the stream ended because it had used up its room, and not
    /// because of the answer's own limit: [`extend`] continues the answer.
    pub(super) fn take_prompt_to_extend(&mut self, done: Done) -> Option<String> {
        let TokensBefore::Uncounted { prompt, room } = &mut self.tokens else { return None };
        // With fewer tokens the stream has filled the context window. A host that does not count
        // reports none.
        let used_up = done.eval_count == 0 || done.eval_count >= u64::from(*room);
        (done.reason == DoneReason::Length && used_up).then(|| std::mem::take(prompt))
    }

    /// Counts the tokens of prompt and answer after the stream has ended, with its last line where
    /// it had one. `answer` is the whole text, and `pieces` the number of pieces of this stream.
    pub(super) async fn counted(
        self,
        slot: &Slot,
        request: &ModelRequest,
        answer: &str,
        done: Option<Done>,
        pieces: u64,
    ) -> Counted {
        let Self { stream, tokens, .. } = self;
        // The host counts when it generates no more.
        drop(stream);
        let known = |count: u64| (count > 0).then_some(count);
        let all = known(done.map_or(0, |done| done.prompt_eval_count));
        let generated = known(done.map_or(0, |done| done.eval_count));
        let at_least = generated.unwrap_or(pieces);
        match tokens {
            TokensBefore::Begins => Counted { prompt: all, answer: at_least },
            TokensBefore::Counted { prompt, answer } => {
                let prompt = known(prompt).or(all);
                Counted { prompt, answer: answer.saturating_add(at_least) }
            }
            TokensBefore::Uncounted { prompt, .. } => {
                let whole = match (done, all, generated) {
                    // The last line has what the prompt and the whole answer are together.
                    (Some(_), Some(all), Some(generated)) => Some(all.saturating_add(generated)),
                    // Another count would not be reported either.
                    (Some(_), ..) => None,
                    (None, ..) => {
                        // Counted before the prompt alone, which leaves no more in the host's cache.
                        let text = format!("{prompt}{}", Shape::of(answer).answer(answer));
                        count_in_time(slot, request, &text).await
                    }
                };
                let prompt = match whole {
                    Some(_) => count_in_time(slot, request, &prompt).await,
                    None => None,
                };
                let counted = whole.zip(prompt).map(|(whole, prompt)| whole.saturating_sub(prompt));
                Counted { prompt, answer: counted.unwrap_or(at_least) }
            }
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
/// where `so_far` is empty, and where another model wrote it.
pub(super) async fn open(
    slot: &Slot,
    request: &ModelRequest,
    so_far: &str,
    is_same_model: bool,
) -> Result<Opening, OllamaError> {
    let begin = async |how| {
        let stream = slot.chat(request).await?;
        let continued = Continued { stream, first: None, how, tokens: TokensBefore::Begins };
        Ok(Opening::Stream(Box::new(continued)))
    };
    if so_far.is_empty() {
        return begin(None).await;
    }
    if !is_same_model {
        return begin(Some(ContinuedHow::Restarted)).await;
    }
    let shape = Shape::of(so_far);
    // How a template continues after reasoning is known to the host alone, which does not expose
    // it.
    let thinks = shape.reasoning(so_far).is_some() || slot.thinks(request).await?;
    let so_far = shape.answer(so_far);
    let can_continue = !thinks && request.is_free_text();
    let rendered = if can_continue { slot.render(request).await? } else { None };
    let Some(prompt) = rendered.filter(|prompt| refers_to_images(prompt, request)) else {
        return begin(Some(ContinuedHow::Restarted)).await;
    };
    let limit = request.options.num_predict;
    let most_tokens = u32::try_from(so_far.len()).unwrap_or(u32::MAX);
    let tokens = match limit.checked_sub(most_tokens).filter(|room| *room > 0) {
        Some(room) => TokenLimit::Room(room),
        None => TokenLimit::BehindPrompt(count(slot, request, &prompt).await?),
    };
    continue_behind(slot, request, &prompt, so_far, tokens).await
}

/// Returns whether a rendered prompt refers to each image of the request by its number, as it has to
/// where the host gets prompt and images apart.
fn refers_to_images(prompt: &str, request: &ModelRequest) -> bool {
    let images: usize = request.messages.iter().map(|message| message.images.len()).sum();
    (0..images).all(|number| prompt.contains(&format!("[img-{number}]")))
}

/// Continues an answer whose stream has used up its room, behind the prompt that
/// [`Continued::take_prompt_to_extend`] returned: the answer is counted, and gets the tokens that
/// are left.
pub(super) async fn extend(
    slot: &Slot,
    request: &ModelRequest,
    prompt: &str,
    so_far: &str,
) -> Result<Opening, OllamaError> {
    let tokens = TokenLimit::BehindPrompt(count(slot, request, prompt).await?);
    continue_behind(slot, request, prompt, Shape::of(so_far).answer(so_far), tokens).await
}

/// Has the model continue the answer so far, which follows a prompt.
async fn continue_behind(
    slot: &Slot,
    request: &ModelRequest,
    prompt: &str,
    so_far: &str,
    tokens: TokenLimit,
) -> Result<Opening, OllamaError> {
    let continue_from = async |kept: &str| match tokens {
        TokenLimit::Room(room) => continue_uncounted(slot, request, prompt, kept, room).await,
        TokenLimit::BehindPrompt(prompt_tokens) => {
            continue_counted(slot, request, prompt, prompt_tokens, kept).await
        }
    };
    let (kept, cut_off) = so_far.split_at(seam(so_far));
    let mut opening = continue_from(kept).await?;
    if let Opening::Stream(continued) = &mut opening
        && !cut_off.is_empty()
        && !continued.repeats(cut_off).await?
    {
        drop(opening);
        tracing::debug!("model diverged; continuing all of the text");
        opening = continue_from(so_far).await?;
        if let Opening::Stream(continued) = &mut opening {
            continued.how = Some(ContinuedHow::Approximate);
        }
    }
    Ok(opening)
}

/// Has the model continue `kept` at once, with `room` tokens, which are surely below the limit of
/// the answer.
async fn continue_uncounted(
    slot: &Slot,
    request: &ModelRequest,
    prompt: &str,
    kept: &str,
    room: u32,
) -> Result<Opening, OllamaError> {
    let text = format!("{prompt}{kept}");
    match slot.continue_raw(&with_limit(request, room), &text).await {
        Ok(stream) => {
            let tokens = TokensBefore::Uncounted { prompt: prompt.to_owned(), room };
            let how = Some(ContinuedHow::Exact);
            Ok(Opening::Stream(Box::new(Continued { stream, first: None, how, tokens })))
        }
        Err(OllamaError::ContextTooLong { prompt_tokens: all, .. }) => {
            // If the prompt alone is too long, this is the error.
            let prompt_tokens = count(slot, request, prompt).await?;
            Ok(out_of_context(prompt_tokens, all))
        }
        Err(error) => Err(error),
    }
}

/// Has the model continue `kept`, which follows a prompt of `prompt_tokens`, with the tokens that
/// are left.
async fn continue_counted(
    slot: &Slot,
    request: &ModelRequest,
    prompt: &str,
    prompt_tokens: u64,
    kept: &str,
) -> Result<Opening, OllamaError> {
    let text = format!("{prompt}{kept}");
    let answer = match count(slot, request, &text).await {
        Ok(tokens) => tokens.saturating_sub(prompt_tokens),
        Err(OllamaError::ContextTooLong { prompt_tokens: all, .. }) => {
            return Ok(out_of_context(prompt_tokens, all));
        }
        Err(error) => return Err(error),
    };
    let limit = u64::from(request.options.num_predict);
    // For Ollama a limit of 0 is no limit.
    if answer >= limit {
        return Ok(Opening::OutOfTokens { prompt_tokens, answer_tokens: answer });
    }
    let left = u32::try_from(limit - answer).unwrap_or(u32::MAX);
    let stream = slot.continue_raw(&with_limit(request, left), &text).await?;
    let tokens = TokensBefore::Counted { prompt: prompt_tokens, answer };
    let how = Some(ContinuedHow::Exact);
    Ok(Opening::Stream(Box::new(Continued { stream, first: None, how, tokens })))
}

/// Returns the end of an answer that has filled the context window behind a prompt that fits: a
/// shorter prompt would continue the answer to another prompt.
fn out_of_context(prompt_tokens: u64, all: u64) -> Opening {
    Opening::OutOfTokens { prompt_tokens, answer_tokens: all.saturating_sub(prompt_tokens) }
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

/// Counts the tokens of a prompt for the usage of an answer that has ended. Returns none where the
/// host does not count, or not in time.
async fn count_in_time(slot: &Slot, request: &ModelRequest, prompt: &str) -> Option<u64> {
    match timeout(COUNT_LIMIT, count(slot, request, prompt)).await {
        Ok(Ok(tokens)) => (tokens > 0).then_some(tokens),
        Ok(Err(error)) => {
            tracing::warn!(%error, "tokens of an answer not counted");
            None
        }
        Err(_) => {
            tracing::warn!("tokens of an answer not counted in time");
            None
        }
    }
}

fn with_limit(request: &ModelRequest, num_predict: u32) -> ModelRequest {
    let options = Options { num_predict, ..request.options.clone() };
    ModelRequest { options, ..request.clone() }
}
