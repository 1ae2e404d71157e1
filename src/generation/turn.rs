//! One turn, from acceptance to its end.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep};
use tracing::Instrument;

use super::Generations;
use super::capacity;
use super::context::Conversation;
use super::continuation::{self, Asked, without_overlap};
use super::deeds::{Deed, Finished};
use super::draft::Fenced;
use super::place::{Wait, wait_for_slot};
use super::writer::Writer;
use crate::ollama::{Done, DoneReason, HostId, OllamaError, Slot};
use crate::queue::Lease;
use crate::session::model::{ContextReport, Failure, rfc3339};
use crate::session::store::{Turn, message};
use crate::session::{Control, Feed, FinishReason, Message, Role, Status, StoreError, Tag, Usage};

const RETRY: Duration = Duration::from_millis(500);
/// Attempts in a row that bring no text, after which the turn fails.
const FRUITLESS_ATTEMPTS: usize = 3;
/// Attempts in all.
const ATTEMPTS: usize = 12;
/// Times in all that a host said it was full.
const BUSY_ATTEMPTS: usize = 60;
/// A request that the host found too long is made shorter by its own count, and a little more.
const MARGIN: f64 = 1.1;
/// How often, at most: each time at least one message less is sent.
const SHORTENED: u32 = 4;

/// Why a turn stops without an end of its own: it was cancelled, or is another replica's.
pub(super) struct Stopped;

/// How an answer ended.
enum End {
    Finished { reason: FinishReason, usage: Usage, context: ContextReport },
    Failed { failure: Failure, context: ContextReport },
}

/// Where a turn stands when this replica gets it.
pub(super) enum Stage {
    /// Accepted, and other turns of the session come first.
    Waiting,
    /// Running; a writer before us may have stored a part of the answer.
    Running {
        /// How many replicas have written it, this one included.
        writers: u32,
    },
}

/// Runs a turn. Whatever happens, its generation ends, or is somebody else's.
pub(super) async fn run(generations: Generations, turn: Arc<Turn>, stage: Stage) {
    let span = tracing::info_span!(
        "turn",
        session = turn.session.redacted(),
        generation = %turn.generation,
        model = turn.spec.model,
    );
    async move {
        metrics::gauge!("jarvis_turns_open").increment(1.0);
        let accepted = Instant::now();
        if run_to_end(&generations, &turn, stage).await.is_err() {
            // Whoever cancelled it waits for this word.
            if let Err(error) = generations.store.upstream_closed(&turn).await {
                tracing::debug!(%error, "could not tell that the upstream is closed");
            }
            tracing::info!("stopped: cancelled, or another replica's");
        }
        metrics::histogram!("jarvis_turn_seconds").record(accepted.elapsed().as_secs_f64());
        metrics::gauge!("jarvis_turns_open").decrement(1.0);
    }
    .instrument(span)
    .await;
}

async fn run_to_end(
    generations: &Generations,
    turn: &Arc<Turn>,
    stage: Stage,
) -> Result<(), Stopped> {
    let feed = patiently(|| generations.feeds.join(&turn.owner, turn.session)).await;
    let (store, held) = (generations.store.clone(), Arc::clone(turn));
    let (writers, mut writer) = match stage {
        Stage::Waiting => {
            let mut writer = Writer::waiting(store, held);
            wait_for_place(&mut writer, turn, &feed).await?;
            (1, writer)
        }
        Stage::Running { writers: 1 } => (1, Writer::start(store, held, String::new())),
        Stage::Running { writers } => {
            let stored = patiently(|| generations.store.answer_so_far(turn)).await;
            (writers, Writer::start(store, held, stored))
        }
    };
    let told = writer.text().is_empty();
    let end = Box::pin(answer(generations, turn, &feed, &mut writer, told)).await?;
    finish(generations, turn, writer, writers, end).await
}

async fn wait_for_place(writer: &mut Writer, turn: &Turn, feed: &Arc<Feed>) -> Result<(), Stopped> {
    let changed = feed.changed();
    tokio::pin!(changed);
    changed.as_mut().enable();
    while !writer.has_place() {
        tokio::select! {
            asked = writer.progress() => asked.map_err(|Fenced| Stopped)?,
            () = &mut changed => {
                changed.set(feed.changed());
                changed.as_mut().enable();
                if !feed.is_running() || feed.has_ended(turn.generation) {
                    writer.hurry();
                }
            }
        }
    }
    Ok(())
}

/// Asks Redis until it answers.
async fn patiently<T, F>(ask: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => tracing::warn!(%error, "a turn waits for Redis"),
        }
        sleep(RETRY).await;
    }
}

/// Streams the answer into the writer until it ends; what breaks off is continued.
async fn answer(
    generations: &Generations,
    turn: &Turn,
    feed: &Arc<Feed>,
    writer: &mut Writer,
    is_told: bool,
) -> Result<End, Stopped> {
    // Given up with this call, before the end is written: the next one need not wait for that.
    let mut lease = generations.queue.lease(capacity::ticket(turn));
    let mut wait = Wait { has_text: !writer.text().is_empty(), is_told, again_at: None };
    let mut context = ContextReport::default();
    let (mut attempts, mut fruitless, mut busy) = (0, 0, 0);
    loop {
        let granted = tokio::select! {
            granted = wait_for_slot(generations, turn, feed, &mut lease, wait) => granted?,
            Fenced = writer.keep_place() => return Err(Stopped),
        };
        if let Err(failure) = granted {
            return Ok(End::Failed { failure, context });
        }
        let before = writer.text().len();
        let attempted = attempt(generations, turn, feed, writer, &lease).await;
        if attempted.is_err() && writer.unheard_for() > generations.lease {
            // Paused or cut off: meanwhile its slot may have been somebody else's.
            metrics::counter!("jarvis_streams_beyond_lease_total").increment(1);
        }
        let ended;
        (ended, context) = attempted?;
        while !writer.is_settled() {
            tokio::select! {
                written = writer.progress() => written.map_err(|Fenced| Stopped)?,
                () = cancelled(feed, turn) => return Err(Stopped),
            }
        }
        let error = match ended {
            Ok((reason, usage)) => {
                generations.retries.earn();
                return Ok(End::Finished { reason, usage, context });
            }
            Err(OllamaError::Repetition) => {
                let reason = FinishReason::Repetition;
                return Ok(End::Finished { reason, usage: Usage::default(), context });
            }
            Err(error) => error,
        };
        let has_text = !writer.text().is_empty();
        if matches!(error, OllamaError::Busy { .. }) {
            busy += 1;
        } else {
            attempts += 1;
            fruitless = if writer.text().len() > before { 0 } else { fruitless + 1 };
        }
        if !is_worth_another(generations, turn, &error).await
            || fruitless >= FRUITLESS_ATTEMPTS
            || attempts >= ATTEMPTS
            || busy >= BUSY_ATTEMPTS
            || (fruitless > 0 && !has_text && !generations.retries.spend())
        {
            return Ok(End::Failed { failure: failure(&error), context });
        }
        tracing::warn!(%error, attempts, "the model broke off; going on");
        metrics::counter!("jarvis_continuations_total", "code" => error.code()).increment(1);
        let why = capacity::returned(&error, attempts, has_text);
        let again_at = Some(Instant::now() + why.excluded.max(why.full));
        wait = Wait { has_text, is_told: false, again_at };
        if let Err(error) = lease.give_back(why).await {
            tracing::warn!(%error, "a slot could not be returned; another try with it");
        }
    }
}

/// Whether the same request may succeed, here or elsewhere.
async fn is_worth_another(generations: &Generations, turn: &Turn, error: &OllamaError) -> bool {
    match error {
        // One host has lost the model; others may have it.
        OllamaError::ModelNotFound { .. } => {
            generations.fleet.check(&turn.spec.model).await.is_ok()
        }
        error => error.is_retryable(),
    }
}

type Ended = Result<(FinishReason, Usage), OllamaError>;

/// One stream from one host, into the writer.
async fn attempt(
    generations: &Generations,
    turn: &Turn,
    feed: &Arc<Feed>,
    writer: &mut Writer,
    lease: &Lease,
) -> Result<(Ended, ContextReport), Stopped> {
    let opened = Instant::now();
    let so_far = writer.text().to_owned();
    let mut opening = Box::pin(open(generations, turn, lease, &so_far));
    let opened_stream = loop {
        tokio::select! {
            opened = &mut opening => break opened,
            written = writer.progress() => written.map_err(|Fenced| Stopped)?,
            () = cancelled(feed, turn) => return Err(Stopped),
        }
    };
    let (asked, mut context, _slot) = match opened_stream {
        Ok(open) => open,
        Err((error, context)) => return Ok((Err(error), context)),
    };
    let mut continued = match asked {
        Asked::Goes(continued) => continued,
        Asked::Length { prompt_tokens, answer_tokens } => {
            context.prompt_tokens = prompt_tokens;
            let usage = Usage { prompt_tokens, completion_tokens: answer_tokens };
            return Ok((Ok((FinishReason::Length, usage)), context));
        }
    };
    if continued.anew {
        writer.take_back(0);
    }
    if so_far.is_empty() {
        metrics::histogram!("jarvis_time_to_first_token_seconds")
            .record(opened.elapsed().as_secs_f64());
    }
    let done = loop {
        let token = tokio::select! {
            biased;
            written = writer.progress() => {
                written.map_err(|Fenced| Stopped)?;
                continue;
            }
            () = cancelled(feed, turn) => return Err(Stopped),
            token = continued.stream.next() => token,
        };
        let token = match token {
            Ok(Some(token)) => token,
            Ok(None) => return Ok((Err(OllamaError::Interrupted("no end")), context)),
            Err(error) => return Ok((Err(error), context)),
        };
        let fresh = match without_overlap(&mut continued.overlap, &token.content) {
            Ok(fresh) => fresh,
            Err((other, fresh)) => {
                let kept = writer.text().len() - other;
                writer.take_back(kept);
                fresh
            }
        };
        if !writer.push_thoughts(&token.thinking) || !writer.push(fresh) {
            let reason = DoneReason::Length;
            break Done { reason, prompt_eval_count: 0, eval_count: 0 };
        }
        if let Some(done) = token.done {
            break done;
        }
    };
    if !continued.overlap.is_empty() {
        // The model ended before it had said again what was cut off for it.
        let kept = writer.text().len() - continued.overlap.len();
        writer.take_back(kept);
    }
    let prompt_tokens = match continued.prompt_tokens {
        0 => done.prompt_eval_count,
        counted => counted,
    };
    let usage =
        Usage { prompt_tokens, completion_tokens: continued.tokens_before + done.eval_count };
    context.prompt_tokens = prompt_tokens;
    metrics::counter!("jarvis_tokens_total", "kind" => "prompt").increment(prompt_tokens);
    metrics::counter!("jarvis_tokens_total", "kind" => "completion").increment(done.eval_count);
    let reason = match done.reason {
        DoneReason::Length => FinishReason::Length,
        _ => FinishReason::Stop,
    };
    Ok((Ok((reason, usage)), context))
}

/// Has the model go on after `so_far`, on the host that was granted.
async fn open(
    generations: &Generations,
    turn: &Turn,
    lease: &Lease,
    so_far: &str,
) -> Result<(Asked, ContextReport, Slot), (OllamaError, ContextReport)> {
    let fleet = &generations.fleet;
    let conversation = conversation(generations, turn).await;
    let nothing_sent = |error| (error, ContextReport::default());
    let grant = lease.grant().ok_or(OllamaError::Unreachable).map_err(nothing_sent)?;
    let slot = fleet.slot(&HostId::new(&grant.host.0), &turn.spec.model).await;
    let slot = slot.map_err(nothing_sent)?;
    // Asked of this host only: another that does not answer is none of this turn's business.
    let allowed = slot.num_ctx().await.map_err(nothing_sent)?;
    let num_ctx = allowed.map(|tokens| tokens.min(generations.num_ctx_cap));
    let mut chosen = conversation.request(turn, num_ctx, 1.0);
    let mut shortened = 0;
    loop {
        match continuation::open(&slot, &chosen.request, so_far).await {
            Ok(asked) => return Ok((asked, chosen.report, slot)),
            Err(OllamaError::ContextTooLong { prompt_tokens, .. })
                if shortened < SHORTENED
                    && chosen.report.messages_sent > 1
                    && conversation.can_be_shortened() =>
            {
                shortened += 1;
                let density = prompt_tokens as f64 / chosen.estimate.max(1.0) * MARGIN;
                chosen = conversation.request(turn, num_ctx, density.max(MARGIN));
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
    loop {
        match Conversation::read(&generations.store, turn).await {
            Ok(Some(conversation)) => return conversation,
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a turn waits for Redis"),
        }
        // Meanwhile the writer learns whose the turn is.
        sleep(RETRY).await;
    }
}

pub(super) async fn cancelled(feed: &Arc<Feed>, turn: &Turn) {
    loop {
        let changed = feed.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if feed.has_ended(turn.generation) {
            return;
        }
        changed.await;
    }
}

async fn finish(
    generations: &Generations,
    turn: &Turn,
    mut writer: Writer,
    writers: u32,
    end: End,
) -> Result<(), Stopped> {
    let now = Utc::now();
    let header = Message {
        generation_id: Some(turn.generation),
        model: Some(turn.spec.model.clone()),
        writers: Some(writers),
        ..message(Role::Assistant, now)
    };
    let (outcome, header, events) = match end {
        End::Finished { reason, usage, context } => (
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
                    },
                ),
            ],
        ),
        End::Failed { failure, context } => (
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
    metrics::counter!("jarvis_turns_total", "outcome" => outcome).increment(1);
    tracing::info!(outcome, bytes = writer.text().len(), "ended");
    generations.deeds.note(Deed::Finished(Box::new(Finished { writer, header, events })));
    Ok(())
}

pub(super) fn failure(error: &OllamaError) -> Failure {
    Failure {
        code: error.code().to_owned(),
        message: error.to_string(),
        retryable: error.is_retryable(),
        retry_after: error.is_retryable().then_some(2),
    }
}
