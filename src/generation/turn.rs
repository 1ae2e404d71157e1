//! One turn, from acceptance to its end.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;
use tracing::Instrument;

use super::Generations;
use super::attempts::{Attempts, Failed};
use super::capacity;
use super::context::{Beginning, Conversation};
use super::continuation::{self, Opening};
use super::redo::{Finished, RedoEntry};
use super::slot_wait::{Wait, wait_for_slot};
use super::stop::{Stopped, cancelled};
use super::writer::Writer;
use super::writer_state::Fenced;
use crate::ollama::{DoneReason, HostId, OllamaError, Slot};
use crate::queue::Lease;
use crate::retry::{Backoff, retry_until_ok};
use crate::session::model::{ContextReport, ContinuedHow, Failure, Reasoning, rfc3339};
use crate::session::store::{Turn, message};
use crate::session::{Control, Feed, FinishReason, Message, Role, Status, StoreError, Tag, Usage};
use crate::telemetry::metric;

/// An answer that breaks off usually goes on within so long: until then nobody is told that it waits.
const MOMENT: Duration = Duration::from_secs(1);
/// A request that the host found too long is made shorter by its own count, and a little more.
const MARGIN: f64 = 1.1;
/// How often, at most: each time at least one message less is sent.
const SHORTENED: u32 = 4;

/// How an answer ended.
enum TurnEnd {
    Finished { reason: FinishReason, usage: Usage, context: ContextReport },
    Failed { failure: Failure, context: ContextReport },
}

/// Where a turn stands when this replica gets it.
pub(super) enum TurnState {
    /// Accepted, and other turns of the session come first.
    Waiting,
    /// Running; a writer before us may have stored a part of the answer.
    Running {
        /// How many replicas have written it, this one included.
        writers: u32,
    },
}

/// Runs a turn. Whatever happens, its generation ends, or is somebody else's. With a `failure` it
/// is not answered, and ends with that.
pub(super) async fn run(
    generations: Generations,
    turn: Arc<Turn>,
    state: TurnState,
    failure: Option<Failure>,
) {
    let span = tracing::info_span!(
        "turn",
        session = turn.session.redacted(),
        generation = %turn.generation,
        model = turn.spec.model,
    );
    async move {
        let _open = CountedOpen::new();
        let accepted = Instant::now();
        if run_to_end(&generations, &turn, state, failure).await.is_err() {
            // Whoever cancelled it waits for this word.
            if let Err(error) = generations.store.upstream_closed(&turn).await {
                tracing::debug!(%error, "could not tell that the upstream is closed");
            }
            tracing::info!("stopped: cancelled, or another replica's");
        }
        metrics::histogram!(metric::TURN_SECONDS).record(accepted.elapsed().as_secs_f64());
    }
    .instrument(span)
    .await;
}

/// Counts a turn as open until it is dropped, whether its task ends, is stopped or panics.
struct CountedOpen;

impl CountedOpen {
    fn new() -> Self {
        metrics::gauge!(metric::TURNS_OPEN).increment(1.0);
        Self
    }
}

impl Drop for CountedOpen {
    fn drop(&mut self) {
        metrics::gauge!(metric::TURNS_OPEN).decrement(1.0);
    }
}

async fn run_to_end(
    generations: &Generations,
    turn: &Arc<Turn>,
    state: TurnState,
    failure: Option<Failure>,
) -> Result<(), Stopped> {
    #[cfg(test)]
    generations.injected_panics.strike_at_start();
    let feed = ask_redis(|| generations.feeds.join(&turn.owner, turn.session)).await;
    let (store, held) = (generations.store.clone(), Arc::clone(turn));
    let (writers, mut writer) = match state {
        TurnState::Waiting => {
            let mut writer = Writer::waiting(store, held);
            wait_to_begin(&mut writer, turn, &feed).await?;
            (1, writer)
        }
        TurnState::Running { writers: 1 } => (1, Writer::start(store, held, String::new())),
        TurnState::Running { writers } => {
            let stored = ask_redis(|| generations.store.answer_so_far(turn)).await;
            (writers, Writer::start(store, held, stored))
        }
    };
    let end = match failure {
        Some(failure) => TurnEnd::Failed { failure, context: ContextReport::default() },
        None => Box::pin(answer(generations, turn, &feed, &mut writer)).await?,
    };
    finish(generations, turn, writer, writers, end).await
}

async fn wait_to_begin(writer: &mut Writer, turn: &Turn, feed: &Arc<Feed>) -> Result<(), Stopped> {
    let changed = feed.changed();
    tokio::pin!(changed);
    changed.as_mut().enable();
    while !writer.is_running() {
        tokio::select! {
            asked = writer.progress() => asked.map_err(|Fenced| Stopped)?,
            () = &mut changed => {
                changed.set(feed.changed());
                changed.as_mut().enable();
                if !feed.is_running() || feed.has_ended(turn.generation) {
                    writer.wake();
                }
            }
        }
    }
    Ok(())
}

/// Asks Redis until it answers.
pub(super) async fn ask_redis<T, F>(ask: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    let failed = |error| tracing::warn!(%error, "turn waiting for redis");
    retry_until_ok(Backoff::redis(), ask, failed).await
}

/// Streams the answer into the writer until it ends; what breaks off is continued.
async fn answer(
    generations: &Generations,
    turn: &Turn,
    feed: &Arc<Feed>,
    writer: &mut Writer,
) -> Result<TurnEnd, Stopped> {
    // Given up with this call, before the end is written: the next one need not wait for that.
    let mut lease = generations.queue.lease(capacity::ticket(turn));
    let mut notify_from = Instant::now();
    if !writer.text().is_empty() {
        notify_from += MOMENT;
    }
    let mut again_at = None;
    let mut context = ContextReport::default();
    let mut attempts = Attempts::default();
    loop {
        let text = writer.text();
        let begun = !text.is_empty() || writer.has_begun() || feed.has_begun(turn.generation);
        let wait = Wait {
            has_text: !text.is_empty(),
            answer: begun.then_some(text.len() as u64),
            notify_from,
            again_at,
        };
        let granted = tokio::select! {
            granted = wait_for_slot(generations, turn, feed, &mut lease, wait) => granted?,
            Fenced = writer.keep_turn() => return Err(Stopped),
        };
        if let Err(failure) = granted {
            return Ok(TurnEnd::Failed { failure, context });
        }
        let before = writer.text().len();
        let sent = (before > 0).then_some(context.messages_sent).filter(|sent| *sent > 0);
        let attempted = attempt(generations, turn, feed, writer, &lease, sent).await;
        if attempted.is_err() && writer.unheard_for() > generations.lease {
            // Paused or cut off: meanwhile its slot may have been somebody else's.
            metrics::counter!(metric::STREAMS_BEYOND_LEASE_TOTAL).increment(1);
        }
        let (ended, attempted_context) = attempted?;
        if attempted_context.messages_sent > 0 {
            context = attempted_context;
        }
        while !writer.is_settled() {
            tokio::select! {
                written = writer.progress() => written.map_err(|Fenced| Stopped)?,
                () = cancelled(feed, turn) => return Err(Stopped),
            }
        }
        let error = match ended {
            Ok((reason, usage)) => {
                generations.retries.earn();
                return Ok(TurnEnd::Finished { reason, usage, context });
            }
            Err(error) => error,
        };
        let has_text = !writer.text().is_empty();
        let failed = Failed {
            error: &error,
            host: lease.grant().map(|grant| HostId::new(&grant.host.0)),
            has_text,
            grown: writer.text().len().saturating_sub(before),
        };
        if let Some(failure) = attempts.after(generations, turn, failed).await {
            return Ok(TurnEnd::Failed { failure, context });
        }
        tracing::warn!(
            %error,
            attempts = attempts.counted(),
            "the model host failed; the turn goes on"
        );
        writer.broke_off(error.code());
        metrics::counter!(metric::CONTINUATIONS_TOTAL, "code" => error.code()).increment(1);
        let why = capacity::returned(&error, attempts.slow(), has_text);
        again_at = Some(Instant::now() + why.excluded.max(why.full));
        notify_from = Instant::now() + MOMENT;
        if let Err(error) = lease.give_back(why).await {
            tracing::warn!(%error, "returning a slot failed; the turn tries the same host again");
        }
    }
}

type Ended = Result<(FinishReason, Usage), OllamaError>;

/// One stream from one host, into the writer. `sent`: the messages that the answer so far was
/// generated from, where this replica has seen that.
async fn attempt(
    generations: &Generations,
    turn: &Turn,
    feed: &Arc<Feed>,
    writer: &mut Writer,
    lease: &Lease,
    sent: Option<u64>,
) -> Result<(Ended, ContextReport), Stopped> {
    let opened = Instant::now();
    let so_far = writer.text().to_owned();
    let mut opening = Box::pin(open(generations, turn, lease, &so_far, sent));
    let opened_stream = loop {
        tokio::select! {
            opened = &mut opening => break opened,
            written = writer.progress() => written.map_err(|Fenced| Stopped)?,
            () = cancelled(feed, turn) => return Err(Stopped),
        }
    };
    let Opened { opening: asked, report: mut context, estimate, slot: _slot } = match opened_stream
    {
        Ok(open) => open,
        Err((error, context)) => return Ok((Err(error), context)),
    };
    let mut continued = match asked {
        Opening::Goes(continued) => continued,
        Opening::Length { prompt_tokens, answer_tokens } => {
            context.prompt_tokens = prompt_tokens;
            let usage = Usage { prompt_tokens, completion_tokens: answer_tokens };
            return Ok((Ok((FinishReason::Length, usage)), context));
        }
    };
    // Noted as soon as it shows: a restart at once, another continuation with its first piece.
    let mut continuation = continued.how;
    if continuation == Some(ContinuedHow::Restarted) {
        writer.take_back(0);
        writer.note_continued(continuation.take());
    }
    if so_far.is_empty() {
        metrics::histogram!(metric::TIME_TO_FIRST_TOKEN_SECONDS)
            .record(opened.elapsed().as_secs_f64());
    }
    // Pieces are not tokens, but each is at least one.
    let mut pieces = 0;
    let (reason, done) = loop {
        let token = tokio::select! {
            biased;
            written = writer.progress() => {
                written.map_err(|Fenced| Stopped)?;
                continue;
            }
            () = cancelled(feed, turn) => return Err(Stopped),
            token = continued.next() => token,
        };
        let token = match token {
            Ok(Some(token)) => token,
            Ok(None) => return Ok((Err(OllamaError::Interrupted("no end")), context)),
            Err(OllamaError::Repetition) => break (FinishReason::Repetition, None),
            Err(error) => return Ok((Err(error), context)),
        };
        writer.note_continued(continuation.take());
        pieces += u64::from(!token.content.is_empty() || !token.thinking.is_empty());
        // Some models think although they were told not to: nobody asked to see that.
        let thoughts = match turn.spec.think {
            Reasoning::Off => "",
            Reasoning::On | Reasoning::Effort(_) => token.thinking.as_str(),
        };
        if !writer.push_reasoning(thoughts) || !writer.push(&token.content) {
            break (FinishReason::Length, None);
        }
        #[cfg(test)]
        generations.injected_panics.strike_in_answer(writer.text().len());
        match token.done {
            Some(done) if done.reason == DoneReason::Length => {
                break (FinishReason::Length, Some(done));
            }
            Some(done) => break (FinishReason::Stop, Some(done)),
            None => {}
        }
    };
    let known = |count: u64| (count > 0).then_some(count);
    let prompt_tokens = known(continued.prompt_tokens)
        .or_else(|| known(done.map_or(0, |done| done.prompt_eval_count)));
    let generated = known(done.map_or(0, |done| done.eval_count)).unwrap_or(pieces);
    context.prompt_tokens = prompt_tokens.unwrap_or_default();
    let usage = Usage {
        prompt_tokens: prompt_tokens.unwrap_or(estimate),
        completion_tokens: continued.tokens_before.saturating_add(generated),
    };
    metrics::counter!(metric::TOKENS_TOTAL, "kind" => "prompt").increment(usage.prompt_tokens);
    metrics::counter!(metric::TOKENS_TOTAL, "kind" => "completion").increment(generated);
    Ok((Ok((reason, usage)), context))
}

/// What a host that was asked to go on replied, with what it was given.
struct Opened {
    opening: Opening,
    report: ContextReport,
    /// Tokens of the prompt, where the host does not count them.
    estimate: u64,
    /// Held until the stream has ended.
    slot: Slot,
}

/// Has the model go on after `so_far`, on the host that was granted. The prompt is the one that
/// `so_far` was generated from: `sent` tells it, and otherwise it follows from what is stored.
async fn open(
    generations: &Generations,
    turn: &Turn,
    lease: &Lease,
    so_far: &str,
    sent: Option<u64>,
) -> Result<Opened, (OllamaError, ContextReport)> {
    let fleet = &generations.fleet;
    let conversation = conversation(generations, turn).await;
    let nothing_sent = |error| (error, ContextReport::default());
    let grant = lease.grant().ok_or(OllamaError::Unreachable).map_err(nothing_sent)?;
    let slot = fleet.slot(&HostId::new(&grant.host.0), &turn.spec.model).await;
    let slot = slot.map_err(nothing_sent)?;
    // Opened of this host only: another that does not answer is none of this turn's business.
    let allowed = slot.num_ctx().await.map_err(nothing_sent)?;
    let num_ctx = allowed.map(|tokens| tokens.min(generations.num_ctx_cap));
    let beginning = sent.map_or(Beginning::Fitting { density: 1.0 }, Beginning::Sent);
    let mut chosen = conversation.request(&turn.spec, num_ctx, beginning);
    let mut shortened = 0;
    loop {
        match continuation::open(&slot, &chosen.request, so_far).await {
            Ok(asked) => {
                let estimate = chosen.estimate.ceil() as u64;
                return Ok(Opened { opening: asked, report: chosen.report, estimate, slot });
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
            Err(error) => return Err((error, chosen.report)),
        }
    }
}

/// What the turn is to be answered from, as soon as Redis has it.
async fn conversation(generations: &Generations, turn: &Turn) -> Conversation {
    if let Some(own) = turn.own_conversation() {
        return Conversation::own(turn, own);
    }
    let mut backoff = Backoff::redis();
    loop {
        let read = || Conversation::read(&generations.store, turn);
        if let Some(conversation) = ask_redis(read).await {
            return conversation;
        }
        // Meanwhile the writer learns whose the turn is.
        let _ = backoff.pause().await;
    }
}

async fn finish(
    generations: &Generations,
    turn: &Turn,
    mut writer: Writer,
    writers: u32,
    end: TurnEnd,
) -> Result<(), Stopped> {
    let now = Utc::now();
    let continued = writer.continued().to_vec();
    let header = Message {
        generation_id: Some(turn.generation),
        model: Some(turn.spec.model.clone()),
        writers: Some(writers),
        continued: continued.clone(),
        ..message(Role::Assistant, now)
    };
    let (outcome, header, events) = match end {
        TurnEnd::Finished { reason, usage, context } => (
            "complete",
            Message {
                status: Some(Status::Complete),
                finish_reason: Some(reason),
                usage: Some(usage),
                context: Some(context),
                ..header
            },
            vec![
                (Tag::random(), Control::Done {}),
                (
                    Tag::random(),
                    Control::Ended {
                        timestamp: rfc3339(&now),
                        model: turn.spec.model.clone(),
                        finish_reason: reason,
                        usage,
                        context,
                        continued,
                    },
                ),
            ],
        ),
        TurnEnd::Failed { failure, context } => (
            "failed",
            Message {
                status: Some(Status::Failed),
                error: Some(failure.clone()),
                context: Some(context),
                ..header
            },
            vec![(Tag::random(), Control::Failed(failure))],
        ),
    };
    writer.finish(&header, &events).await.map_err(|Fenced| Stopped)?;
    metrics::counter!(metric::TURNS_TOTAL, "outcome" => outcome).increment(1);
    tracing::info!(outcome, bytes = writer.text().len(), "ended");
    generations.redo.push(RedoEntry::Finished(Box::new(Finished { writer, header, events })));
    Ok(())
}
