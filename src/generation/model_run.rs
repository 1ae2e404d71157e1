//! One model run: one stream from one host, written into the answer.

use std::pin::pin;
use std::sync::Arc;

use super::Generations;
use super::calls::ToolCalls;
use super::context::{Beginning, ChosenContext, Conversation};
use super::continuation::{self, Continued, Opening};
use super::images::{NoImages, ReadImages, add_images};
use super::pace::Pace;
use super::redis_call::call_redis;
use super::stop::{Stopped, cancelled};
use super::turn_spans;
use super::writer::Writer;
use super::writer_state::Fenced;
use crate::model_name;
use crate::ollama::{Done, DoneReason, HostId, ModelRequest, OllamaError, Slot};
use crate::queue::Lease;
use crate::retry::Backoff;
use crate::session::model::{ContextReport, ContinuedHow, Failure, Reasoning, Runner, ToolCall};
use crate::session::store::Turn;
use crate::session::{Feed, FinishReason, Usage};
use crate::telemetry::traces::Span;

/// A request that the host found too long is shortened by the host's count, and this much more.
const MARGIN: f64 = 1.1;
/// How often a request is shortened, at most: each time at least one message less is sent.
const SHORTENED: u32 = 4;
/// The end of a model run.
pub(super) enum RunEnd {
    /// The model has completed the answer.
    Completed {
        /// Why the model ended.
        reason: FinishReason,
        /// The tokens of the whole answer.
        usage: Usage,
        /// The calls of tools that the model requests.
        tool_calls: Vec<ToolCall>,
    },
    /// The host failed; another run may continue the answer.
    Failed(OllamaError),
    /// The turn cannot be answered.
    Impossible(Failure),
}

impl RunEnd {
    /// Returns why the model ended, or the code of the failure.
    pub(super) fn outcome(&self) -> Result<FinishReason, &str> {
        match self {
            Self::Completed { reason, .. } => Ok(*reason),
            Self::Failed(error) => Err(error.code()),
            Self::Impossible(failure) => Err(&failure.code),
        }
    }
}

/// The end of a model run, with the context that the model was given.
pub(super) struct ModelRun {
    pub(super) end: RunEnd,
    pub(super) context: ContextReport,
}

/// The beginning of a model run.
pub(super) struct RunStart<'a> {
    /// The lease with the grant of a host.
    pub(super) lease: &'a Lease,
    /// The number of messages that the answer so far was generated from, where this replica knows it.
    pub(super) sent: Option<u64>,
    /// The images that earlier runs have read.
    pub(super) images: &'a mut ReadImages,
    /// The span of the run.
    pub(super) span: &'a mut Span,
}

/// Runs the model on the host that was granted to the ticket, and streams its text into the writer.
///
/// # Errors
/// [`Stopped`].
pub(super) async fn run_model(
    generations: &Generations,
    turn: &Turn,
    feed: &Arc<Feed>,
    writer: &mut Writer,
    mut start: RunStart<'_>,
) -> Result<ModelRun, Stopped> {
    let mut pace = pace(turn, start.lease);
    let so_far = writer.text().to_owned();
    let begun = match begin(generations, turn, feed, writer, &mut start, &so_far).await? {
        Begun::Streams(begun) => *begun,
        Begun::Ended(run) => return Ok(run),
    };
    let BegunStream { mut continued, runner, mut context, estimate, slot, request } = begun;
    let span = start.span;
    // A restart is noted at once, another continuation with its first piece.
    let mut continuation = expected(continued.how, turn, writer, runner.as_ref());
    turn_spans::note_continuation(span, continuation);
    if continuation == Some(ContinuedHow::Restarted) {
        continuation = None;
        writer.rewind(0);
        writer.note_continued(ContinuedHow::Restarted, runner.as_ref());
    }
    // A piece is not a token, but each is at least one.
    let mut pieces = 0;
    let mut calls = ToolCalls::of(turn);
    let mut stopped = pin!(cancelled(feed, turn));
    let (reason, done) = loop {
        let token = tokio::select! {
            biased;
            written = writer.progress() => {
                written.map_err(|Fenced| Stopped)?;
                continue;
            }
            () = &mut stopped => return Err(Stopped),
            token = continued.next() => token,
        };
        let token = match token {
            Ok(Some(token)) => token,
            Ok(None) => {
                let end = RunEnd::Failed(OllamaError::Interrupted("no end"));
                return Ok(ModelRun { end, context });
            }
            Err(OllamaError::Repetition) => break (FinishReason::Repetition, None),
            Err(error) => return Ok(ModelRun { end: RunEnd::Failed(error), context }),
        };
        if let Some(how) = continuation.take() {
            writer.note_continued(how, runner.as_ref());
        }
        if !token.is_empty() {
            pieces += 1;
            if pace.note() {
                span.add_event("first token");
                pace.record_first(so_far.is_empty().then(|| writer.age()));
            }
        }
        // Some models reason although the request turns that off: their reasoning is dropped.
        let reasoning = match turn.spec.think {
            Reasoning::Off => "",
            Reasoning::On | Reasoning::Effort(_) => token.thinking.as_str(),
        };
        if !writer.push_reasoning(reasoning) || !writer.push(&token.content) {
            break (FinishReason::Length, None);
        }
        if !calls.add(token.tool_calls, writer.text().len()) {
            break (FinishReason::Length, None);
        }
        #[cfg(test)]
        generations.injected_panics.strike_in_answer(writer.text().len());
        let Some(done) = token.done else { continue };
        let Some(prompt) = continued.take_prompt_to_extend(done) else {
            break (finish_reason(done), Some(done));
        };
        let so_far = writer.text().to_owned();
        let extended = continuation::extend(&slot, &request, &prompt, &so_far);
        match while_writing(turn, feed, writer, extended).await? {
            Ok(Opening::Stream(next)) => {
                if next.how == Some(ContinuedHow::Approximate) {
                    writer.note_divergence();
                }
                (continued, pieces) = (next, 0);
            }
            Ok(Opening::OutOfTokens { prompt_tokens, answer_tokens }) => {
                return Ok(out_of_tokens(context, prompt_tokens, answer_tokens));
            }
            Err(error) => return Ok(ModelRun { end: RunEnd::Failed(error), context }),
        }
    };
    let answer = writer.text().to_owned();
    let counted = continued.counted(&slot, &request, &answer, done, pieces);
    let counted = while_writing(turn, feed, writer, counted).await?;
    context.prompt_tokens = counted.prompt.unwrap_or_default();
    let usage = counted.usage(estimate);
    let generated = done.map(|done| done.eval_count).filter(|count| *count > 0).unwrap_or(pieces);
    pace.record_end(usage, generated);
    turn_spans::count_tokens(span, usage, generated);
    let end = match calls.end() {
        Ok(tool_calls) => RunEnd::Completed { reason, usage, tool_calls },
        Err(failure) => RunEnd::Impossible(failure),
    };
    Ok(ModelRun { end, context })
}

/// How a model run begins.
enum Begun {
    /// The host streams.
    Streams(Box<BegunStream>),
    /// The run has ended without a stream.
    Ended(ModelRun),
}

/// A stream with what is known when it begins.
struct BegunStream {
    continued: Box<Continued>,
    /// The host and the model's digest; none where the host does not report that.
    runner: Option<Runner>,
    context: ContextReport,
    /// Tokens of the prompt, where the host does not count them.
    estimate: u64,
    /// The slot of the host, which is held until the stream has ended.
    slot: Slot,
    /// The request, for what follows the stream.
    request: ModelRequest,
}

/// Takes the slot of the grant, and opens a stream there that continues `so_far`.
async fn begin(
    generations: &Generations,
    turn: &Turn,
    feed: &Arc<Feed>,
    writer: &mut Writer,
    start: &mut RunStart<'_>,
    so_far: &str,
) -> Result<Begun, Stopped> {
    let lease = start.lease;
    // Known before the slot is taken unless the host has just failed to list its models: so the call
    // that starts the answer carries it.
    writer.note_runner(listed_runner(generations, turn, lease).as_ref());
    let at_host = take_slot(generations, turn, lease, so_far);
    let (mut slot, runner) = match while_writing(turn, feed, writer, at_host).await? {
        Ok(at_host) => at_host,
        Err(error) => {
            let (end, context) = (RunEnd::Failed(error), ContextReport::default());
            return Ok(Begun::Ended(ModelRun { end, context }));
        }
    };
    writer.note_runner(runner.as_ref());
    slot.set_trace(start.span.context());
    let is_same_model = is_same_model(writer.runner(), runner.as_ref());
    let from = OpenFrom { so_far, is_same_model, sent: start.sent, slot };
    let opened_stream = open(generations, turn, from, start.images);
    let opened = match while_writing(turn, feed, writer, opened_stream).await? {
        Ok(opened) => opened,
        Err((unopened, context)) => {
            return Ok(Begun::Ended(ModelRun { end: unopened.end(), context }));
        }
    };
    let Opened { opening, report: context, estimate, slot, request } = opened;
    Ok(match opening {
        Opening::Stream(continued) => {
            let begun = BegunStream { continued, runner, context, estimate, slot, request };
            Begun::Streams(Box::new(begun))
        }
        Opening::OutOfTokens { prompt_tokens, answer_tokens } => {
            Begun::Ended(out_of_tokens(context, prompt_tokens, answer_tokens))
        }
    })
}

fn finish_reason(done: Done) -> FinishReason {
    match done.reason {
        DoneReason::Length => FinishReason::Length,
        _ => FinishReason::Stop,
    }
}

/// Waits for the host while the writer writes.
async fn while_writing<T>(
    turn: &Turn,
    feed: &Arc<Feed>,
    writer: &mut Writer,
    call: impl Future<Output = T>,
) -> Result<T, Stopped> {
    let mut call = Box::pin(call);
    loop {
        tokio::select! {
            reply = &mut call => return Ok(reply),
            written = writer.progress() => written.map_err(|Fenced| Stopped)?,
            () = cancelled(feed, turn) => return Err(Stopped),
        }
    }
}

/// Returns the end of an answer that has used up its tokens.
fn out_of_tokens(mut context: ContextReport, prompt_tokens: u64, answer_tokens: u64) -> ModelRun {
    context.prompt_tokens = prompt_tokens;
    let usage = Usage { prompt_tokens, completion_tokens: answer_tokens };
    let (reason, tool_calls) = (FinishReason::Length, Vec::new());
    ModelRun { end: RunEnd::Completed { reason, usage, tool_calls }, context }
}

/// Begins to measure the host of the grant.
fn pace(turn: &Turn, lease: &Lease) -> Pace {
    let host = lease.grant().map(|grant| grant.host.0.clone()).unwrap_or_default();
    Pace::begin(host, model_name::canonical(&turn.spec.model))
}

/// Returns the runner of the turn's model on the host of the grant, as the host listed it last; none
/// where the host did not report the model's digest.
fn listed_runner(generations: &Generations, turn: &Turn, lease: &Lease) -> Option<Runner> {
    let host = HostId::new(&lease.grant()?.host.0);
    let digest = generations.fleet.digest(&host, &turn.spec.model)?;
    Some(Runner::new(host.as_str(), &digest))
}

/// Takes the slot of the grant, and returns its runner. Where the answer has text, a host that did not
/// report the model's digest is asked once more.
async fn take_slot(
    generations: &Generations,
    turn: &Turn,
    lease: &Lease,
    so_far: &str,
) -> Result<(Slot, Option<Runner>), OllamaError> {
    let host = HostId::new(&lease.grant().ok_or(OllamaError::Unreachable)?.host.0);
    let slot = generations.fleet.slot(&host, &turn.spec.model).await?;
    let digest = match &*slot.model().digest {
        "" if so_far.is_empty() => None,
        "" => slot.digest().await,
        digest => Some(digest.to_owned()),
    };
    let runner = digest.map(|digest| Runner::new(host.as_str(), &digest));
    Ok((slot, runner))
}

/// Returns whether the next runner has the model of the last one. The model of a name may be another
/// one at the next host, or at the same one later, whose text would not go on with that of the last
/// one: a model whose digest is not known is not known to be the same.
fn is_same_model(last: Option<&Runner>, next: Option<&Runner>) -> bool {
    last.zip(next).is_some_and(|(last, next)| next.has_model_of(last))
}

/// Returns how the stream of the next runner continues the answer.
fn expected(
    how: Option<ContinuedHow>,
    turn: &Turn,
    writer: &Writer,
    next: Option<&Runner>,
) -> Option<ContinuedHow> {
    how.map(|how| match how {
        ContinuedHow::Exact if !writes_the_same(turn, writer.runner(), next) => {
            ContinuedHow::Approximate
        }
        how => how,
    })
}

/// Returns whether the next runner is expected to write what the last one would have written.
fn writes_the_same(turn: &Turn, last: Option<&Runner>, next: Option<&Runner>) -> bool {
    // Where the request has none, the model's own may be any.
    turn.spec.temperature.is_some_and(|it| it <= 0.0) && next.is_some() && last == next
}

/// An opened stream of a host, with the context that the model was given.
struct Opened {
    opening: Opening,
    report: ContextReport,
    /// Tokens of the prompt, where the host does not count them.
    estimate: u64,
    /// The slot of the host, which is held until the stream has ended.
    slot: Slot,
    /// The request, for what follows the stream.
    request: ModelRequest,
}

/// The source of a stream.
struct OpenFrom<'a> {
    so_far: &'a str,
    /// Whether the model of the slot is known to have written it.
    is_same_model: bool,
    sent: Option<u64>,
    slot: Slot,
}

/// Why no stream was opened.
enum Unopened {
    Failed(OllamaError),
    Impossible(Failure),
    /// Calls of tools have no result yet: the model answers once it has all of them.
    AwaitsResults,
}

impl Unopened {
    fn end(self) -> RunEnd {
        match self {
            Self::Failed(error) => RunEnd::Failed(error),
            Self::Impossible(failure) => RunEnd::Impossible(failure),
            Self::AwaitsResults => {
                let (reason, usage) = (FinishReason::Stop, Usage::default());
                RunEnd::Completed { reason, usage, tool_calls: Vec::new() }
            }
        }
    }
}

/// Opens a stream that continues `so_far`, on the host of the slot. The prompt is the one that
/// `so_far` was generated from: `sent` messages of the conversation, and where that is unknown the
/// choice that every replica makes.
async fn open(
    generations: &Generations,
    turn: &Turn,
    OpenFrom { so_far, is_same_model, sent, slot }: OpenFrom<'_>,
    images: &mut ReadImages,
) -> Result<Opened, (Unopened, ContextReport)> {
    let conversation = read_conversation(generations, turn).await;
    if conversation.awaits_results() {
        return Err((Unopened::AwaitsResults, ContextReport::default()));
    }
    let nothing_sent = |error| (Unopened::Failed(error), ContextReport::default());
    let allowed = slot.num_ctx().await.map_err(nothing_sent)?;
    let num_ctx = allowed.map(|tokens| tokens.min(generations.num_ctx_cap));
    let beginning = sent.map_or(Beginning::Fitting { density: 1.0 }, Beginning::Sent);
    let mut chosen = conversation.request(&turn.spec, num_ctx, beginning);
    let mut shortened = 0;
    loop {
        let added = add_images(generations, turn, &conversation, &slot, images, &mut chosen).await;
        added.map_err(|error| match error {
            NoImages::Host(error) => (Unopened::Failed(error), chosen.report),
            NoImages::Lost(failure) => (Unopened::Impossible(failure), chosen.report),
        })?;
        match continuation::open(&slot, &chosen.request, so_far, is_same_model).await {
            Ok(opening) => {
                let estimate = chosen.estimate.ceil() as u64;
                let ChosenContext { request, report, .. } = chosen;
                return Ok(Opened { opening, report, estimate, slot, request });
            }
            Err(OllamaError::ContextTooLong { prompt_tokens, .. })
                if shortened < SHORTENED
                    && chosen.report.messages_sent > 1
                    && conversation.can_be_shortened() =>
            {
                shortened += 1;
                let density = prompt_tokens as f64 / chosen.estimate.max(1.0) * MARGIN;
                let shorter = Beginning::Fitting { density: density.max(MARGIN) };
                chosen = conversation.request(&turn.spec, num_ctx, shorter);
            }
            Err(error) => return Err((Unopened::Failed(error), chosen.report)),
        }
    }
}

/// Reads the conversation that the turn is answered from, as soon as Redis has the question.
async fn read_conversation(generations: &Generations, turn: &Turn) -> Conversation {
    if let Some(conversation) = turn.own_conversation() {
        return Conversation::of_turn(turn, conversation);
    }
    let mut backoff = Backoff::redis();
    loop {
        let read = || Conversation::read(&generations.store, turn);
        if let Some(conversation) = call_redis(read).await {
            return conversation;
        }
        // Meanwhile the writer restores the turn, or learns that it has lost the turn.
        let _ = backoff.pause().await;
    }
}
