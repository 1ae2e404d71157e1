//! One turn, from acceptance to its end.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::Generations;
use super::attempts::{Attempts, FailedAttempt};
use super::capacity;
use super::images::ReadImages;
use super::model_run::{ModelRun, RunEnd, RunStart, run_model};
use super::redis_call::call_redis;
use super::redo::{Finished, RedoEntry};
use super::slot_wait::{SlotWait, WaitOptions, wait_for_slot};
use super::stop::{Stopped, cancelled};
use super::turn_spans;
use super::turn_state::TurnState;
use super::writer::Writer;
use super::writer_state::Fenced;
use crate::model_name;
use crate::ollama::HostId;
use crate::session::model::{ContextReport, Failure, ToolCall, rfc3339};
use crate::session::store::{Turn, message};
use crate::session::{Control, Feed, FinishReason, Message, Role, Status, Tag, Usage};
use crate::telemetry::traces::{self, Span};
use crate::telemetry::{CountedOpen, GenAi, LIVE, metric};

/// How long the session is not notified of a queue position after an answer broke off: the answer
/// usually continues sooner.
const NOTIFY_AFTER: Duration = Duration::from_secs(1);

/// The time after a claim before which the end of the turn is not written. Its former replica may have
/// ended it, and clients got that end; where a failover lost it, the backup writes it again meanwhile.
const END_AFTER_CLAIM: Duration = Duration::from_millis(1500);

/// The end of an answer.
enum TurnEnd {
    Finished {
        reason: FinishReason,
        usage: Usage,
        context: ContextReport,
        tool_calls: Vec<ToolCall>,
    },
    Failed {
        failure: Failure,
        context: ContextReport,
    },
}

/// Runs a turn until its generation has ended or is another replica's. With a `failure` the turn is
/// not answered, and ends with that failure.
pub(super) async fn run(
    generations: Generations,
    turn: Arc<Turn>,
    state: TurnState,
    failure: Option<Failure>,
) {
    // At this level the lines of every other one have its fields.
    let span = tracing::error_span!(
        "turn",
        session = turn.session.redacted(),
        generation = %turn.generation,
        model = turn.spec.model,
        trace = tracing::field::Empty,
    );
    traces::record_in_log(turn.trace(), &span);
    async move {
        let mut trace = turn_spans::writer(&turn, generations.store.replica());
        let _open = CountedOpen::live(metrics::gauge!(metric::TURNS_OPEN), &LIVE.turns);
        if run_to_end(&generations, &turn, state, failure, &mut trace).await.is_err() {
            trace.set("jarvis.turn.outcome", "stopped");
            // A cancel waits for this event.
            if let Err(error) = generations.store.upstream_closed(&turn).await {
                tracing::debug!(%error, "closing of the upstream not published");
            }
            tracing::info!("turn stopped");
        }
        drop(trace);
        if turn.own_conversation().is_some() && !turn.spec.is_kept {
            generations.images.forget(turn.generation);
        }
        // An amount that is recorded twice, by two writers of the turn, counts once.
        generations.budget.record(&turn.spec.source, turn.session).await;
    }
    .instrument(span)
    .await;
}

async fn run_to_end(
    generations: &Generations,
    turn: &Arc<Turn>,
    state: TurnState,
    failure: Option<Failure>,
    trace: &mut Span,
) -> Result<(), Stopped> {
    #[cfg(test)]
    generations.injected_panics.strike_at_start();
    let taken = Instant::now();
    let feed = call_redis(|| generations.feeds.join_of_turn(turn)).await;
    if turn.is_claimed() {
        feed.note_unended(turn.generation);
    }
    let (store, written_turn) = (generations.store.clone(), Arc::clone(turn));
    let (writers, mut writer) = match state {
        TurnState::Waiting => {
            let mut writer = Writer::waiting(store, written_turn, &feed);
            let waits = Span::child_of(trace.context(), "wait for earlier turns");
            wait_to_begin(&mut writer, turn, &feed).await?;
            drop(waits);
            (1, writer)
        }
        TurnState::Running { writers: 1 } => {
            (1, Writer::start(store, written_turn, &feed, String::new()))
        }
        TurnState::Running { writers } => {
            let stored = call_redis(|| generations.store.answer_so_far(turn)).await;
            (writers, Writer::start(store, written_turn, &feed, stored))
        }
    };
    let end = match failure {
        Some(failure) => TurnEnd::Failed { failure, context: ContextReport::default() },
        None => Box::pin(answer(generations, turn, &feed, &mut writer)).await?,
    };
    if writers > 1 {
        let pause = sleep_until(taken + END_AFTER_CLAIM);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                written = writer.progress() => written.map_err(|Fenced| Stopped)?,
            }
        }
    }
    // Boxed, because a turn that waits would keep the room of its end.
    Box::pin(finish(generations, turn, writer, writers, end, trace)).await
}

/// Waits until the turn begins, after the earlier turns of its session.
async fn wait_to_begin(writer: &mut Writer, turn: &Turn, feed: &Arc<Feed>) -> Result<(), Stopped> {
    let changed = feed.events_changed();
    tokio::pin!(changed);
    changed.as_mut().enable();
    while !writer.is_running() {
        tokio::select! {
            written = writer.progress() => written.map_err(|Fenced| Stopped)?,
            () = &mut changed => {
                changed.set(feed.events_changed());
                changed.as_mut().enable();
                if !feed.is_running() || feed.has_ended(turn.generation) {
                    writer.wake();
                }
            }
        }
    }
    Ok(())
}

/// Streams the answer into the writer until it ends. An answer that breaks off is continued.
async fn answer(
    generations: &Generations,
    turn: &Turn,
    feed: &Arc<Feed>,
    writer: &mut Writer,
) -> Result<TurnEnd, Stopped> {
    // Dropped when this function returns, so that the slot is free before the end is written.
    let mut lease =
        generations.queue.lease(capacity::ticket(turn, &feed.owner(), &generations.source_key));
    let mut notify_from = Instant::now();
    if !writer.text().is_empty() {
        notify_from += NOTIFY_AFTER;
    }
    let mut again_at = None;
    let mut context = ContextReport::default();
    let mut images = ReadImages::default();
    let mut attempts = Attempts::default();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut waits = Span::child_of(turn_spans::of_writer(turn), "wait in queue");
        waits.set("jarvis.attempt", attempt);
        let text = writer.text();
        let started = !text.is_empty() || writer.has_started() || feed.has_begun(turn.generation);
        let options = WaitOptions {
            has_text: !text.is_empty(),
            answer: started.then_some(text.len() as u64),
            notify_from,
            again_at,
        };
        let waited = tokio::select! {
            waited = wait_for_slot(generations, turn, feed, &mut lease, options) => waited,
            Fenced = writer.keep_turn() => SlotWait::Stopped,
        };
        waits.set("jarvis.queue.outcome", waited.outcome());
        drop(waits);
        match waited {
            SlotWait::Granted => {}
            SlotWait::Failed(failure) => return Ok(TurnEnd::Failed { failure, context }),
            SlotWait::Stopped => return Err(Stopped),
        }
        let before = writer.text().len();
        let sent = (before > 0).then_some(context.messages_sent).filter(|sent| *sent > 0);
        let host = lease.grant().map(|grant| HostId::new(&grant.host.0));
        let mut span = turn_spans::model_run(turn, host.as_ref(), attempt);
        let start = RunStart { lease: &lease, sent, images: &mut images, span: &mut span };
        let began = Instant::now();
        let run = run_model(generations, turn, feed, writer, start).await;
        if let Ok(run) = &run {
            turn_spans::end_model_run(span, run.end.outcome(), writer.text());
        }
        if run.is_err() && generations.renewal.was_late_since(began) {
            // This replica was paused or cut off, and another ticket may have got its slot
            // meanwhile.
            metrics::counter!(metric::STREAMS_BEYOND_LEASE_TOTAL).increment(1);
        }
        let ModelRun { end, context: run_context } = run?;
        if run_context.messages_sent > 0 {
            context = run_context;
        }
        while !writer.is_settled() {
            tokio::select! {
                written = writer.progress() => written.map_err(|Fenced| Stopped)?,
                () = cancelled(feed, turn) => return Err(Stopped),
            }
        }
        let error = match end {
            RunEnd::Completed { reason, usage, tool_calls } => {
                generations.retries.earn();
                return Ok(TurnEnd::Finished { reason, usage, context, tool_calls });
            }
            RunEnd::Impossible(failure) => return Ok(TurnEnd::Failed { failure, context }),
            RunEnd::Failed(error) => error,
        };
        let has_text = !writer.text().is_empty();
        let failed = FailedAttempt {
            error: &error,
            host,
            has_text,
            grown: writer.text().len().saturating_sub(before),
        };
        if let Some(failure) = attempts.after(generations, turn, failed).await {
            return Ok(TurnEnd::Failed { failure, context });
        }
        metrics::counter!(metric::RETRIES_TOTAL, "code" => error.code()).increment(1);
        tracing::warn!(%error, attempts = attempts.counted(), "model host failed; turn continues");
        writer.note_broken_off(error.code());
        let returned = capacity::returned(&error, attempts.slow(), has_text);
        again_at = Some(Instant::now() + returned.excluded.max(returned.full));
        notify_from = Instant::now() + NOTIFY_AFTER;
        if let Err(error) = lease.give_back(returned).await {
            tracing::warn!(%error, "slot not returned; trying the same host again");
        }
    }
}

/// Writes the end of the turn, and keeps it as a redo entry.
async fn finish(
    generations: &Generations,
    turn: &Arc<Turn>,
    mut writer: Writer,
    writers: u32,
    end: TurnEnd,
    trace: &mut Span,
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
        TurnEnd::Finished { reason, usage, context, tool_calls } => (
            "complete",
            Message {
                tool_calls: tool_calls.clone(),
                status: Some(Status::Complete),
                finish_reason: Some(reason),
                usage: Some(usage),
                context: Some(context),
                ..header
            },
            [
                Some(Control::Done {}),
                (!tool_calls.is_empty()).then(|| Control::ToolCalls { calls: tool_calls.clone() }),
                Some(Control::Ended {
                    timestamp: rfc3339(&now),
                    model: turn.spec.model.clone(),
                    finish_reason: reason,
                    usage,
                    context,
                    continued,
                    tool_calls,
                }),
            ]
            .into_iter()
            .flatten()
            .map(|control| (Tag::random(), control))
            .collect(),
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
    trace.set("jarvis.turn.outcome", outcome);
    trace.set("jarvis.turn.writers", i64::from(writers));
    if let Some(failure) = &header.error {
        trace.fail(&failure.code);
    }
    let mut ending = Span::child_of(trace.context(), "write end");
    ending.set("jarvis.turn.outcome", outcome);
    let tokens = header.usage.map_or(0, |usage| usage.prompt_tokens + usage.completion_tokens);
    // Sent together, and the tokens first: the client that gets the end may begin its next turn. The
    // entry does not wait for the tokens, which are offered for long to a Redis that is away.
    let end = async {
        writer.finish(&header, &events).await.map_err(|Fenced| Stopped)?;
        drop(ending);
        count_end(turn, outcome, &header, &writer);
        tracing::info!(outcome, bytes = writer.text().len(), "turn ended");
        if is_first_answer(&header) {
            generations.write_title(turn, writer.text());
        }
        generations.keep(RedoEntry::Finished(Box::new(Finished { writer, header, events })));
        Ok(())
    };
    let ((), ended) =
        tokio::join!(generations.limits.count_tokens(&turn.owner, turn.generation, tokens), end,);
    ended
}

/// Returns whether an answer ends the first turn of its session, and whole: nothing was before it.
fn is_first_answer(answer: &Message) -> bool {
    answer.status == Some(Status::Complete)
        && answer.tool_calls.is_empty()
        && answer.context.is_some_and(|it| it.messages_sent == 1 && it.messages_dropped == 0)
}

/// Counts the end of a turn, with the code of its failure.
fn count_end(turn: &Turn, outcome: &'static str, header: &Message, writer: &Writer) {
    metrics::counter!(metric::TURNS_TOTAL, "outcome" => outcome).increment(1);
    let gen_ai = GenAi::of_model(model_name::canonical(&turn.spec.model));
    match &header.error {
        None => gen_ai.completed(writer.age()),
        Some(failure) => {
            let code = failure.code.clone();
            metrics::counter!(metric::TURN_FAILURES_TOTAL, "code" => code).increment(1);
            gen_ai.failed(writer.age(), &failure.code);
        }
    }
}
