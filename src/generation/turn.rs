//! One turn, from acceptance to its end.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep};
use tracing::Instrument;

use super::Generations;
use super::context::Conversation;
use super::writer::{Fenced, Writer};
use crate::ollama::{Done, DoneReason, OllamaError, Slot, TokenStream};
use crate::session::model::{ContextReport, Failure, rfc3339};
use crate::session::store::{Begin, Turn, Written, message};
use crate::session::{Control, Feed, FinishReason, Message, Role, Status, Tag, Usage};

/// A waiting turn asks for its place at least this often, should a hint be lost.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(500);
/// How long the end of a turn is tried to be written before it is left to another replica.
const FINISH_LIMIT: Duration = Duration::from_secs(600);
/// Hosts that are tried before the first token.
const HOSTS_TRIED: usize = 3;
/// A request that the host found too long is made shorter by its own count, and a little more.
const MARGIN: f64 = 0.9;

/// Why a turn stops without an end of its own: it was cancelled, or is another replica's.
struct Stopped;

/// How an answer ended.
enum End {
    Finished { reason: FinishReason, usage: Usage, context: ContextReport },
    Failed { failure: Failure, context: ContextReport },
}

/// Runs a turn. Whatever happens, its generation ends, or is somebody else's.
pub(super) async fn run(generations: Generations, turn: Turn, began: bool) {
    let span = tracing::info_span!(
        "turn",
        session = turn.session.redacted(),
        generation = %turn.generation,
        model = turn.spec.model,
    );
    async move {
        metrics::gauge!("jarvis_turns_open").increment(1.0);
        let accepted = Instant::now();
        if run_to_end(&generations, &turn, began).await.is_err() {
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

async fn run_to_end(generations: &Generations, turn: &Turn, began: bool) -> Result<(), Stopped> {
    let feed = loop {
        match generations.feeds.join(&turn.owner, turn.session).await {
            Ok(feed) => break feed,
            Err(error) => {
                tracing::warn!(%error, "a turn waits for Redis");
                sleep(RETRY).await;
            }
        }
    };
    if !began {
        wait_for_place(generations, turn, &feed).await?;
    }
    let mut writer = Writer::start(generations.store.clone(), turn.clone());
    let end = answer(generations, turn, &feed, &mut writer).await?;
    finish(generations, turn, writer, end).await
}

async fn wait_for_place(
    generations: &Generations,
    turn: &Turn,
    feed: &Arc<Feed>,
) -> Result<(), Stopped> {
    loop {
        let changed = feed.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        match generations.store.begin(turn).await {
            Ok(Begin::Began) => return Ok(()),
            Ok(Begin::Gone) => return Err(Stopped),
            Ok(Begin::Waiting) => {}
            Err(error) => {
                tracing::warn!(%error, "a turn waits for Redis");
                sleep(RETRY).await;
            }
        }
        let ask_again = sleep(ASK_AGAIN);
        tokio::pin!(ask_again);
        loop {
            tokio::select! {
                () = &mut changed => {}
                () = &mut ask_again => break,
            }
            changed.set(feed.changed());
            changed.as_mut().enable();
            if !feed.is_running() || feed.has_ended(turn.generation) {
                break;
            }
        }
    }
}

/// Streams the answer into the writer until it ends or breaks off.
async fn answer(
    generations: &Generations,
    turn: &Turn,
    feed: &Arc<Feed>,
    writer: &mut Writer,
) -> Result<End, Stopped> {
    let opened = Instant::now();
    let mut first_token = None;
    let opening = open(generations, turn);
    tokio::pin!(opening);
    let opened_stream = loop {
        tokio::select! {
            opened = &mut opening => break opened,
            written = writer.progress() => written.map_err(|Fenced| Stopped)?,
            () = cancelled(feed, turn) => return Err(Stopped),
        }
    };
    let Open { mut stream, mut context, slot: _slot } = match opened_stream {
        Ok(open) => open,
        Err((error, context)) => return Ok(End::Failed { failure: failure(&error), context }),
    };
    let ended: Result<Done, OllamaError> = loop {
        let token = tokio::select! {
            biased;
            written = writer.progress() => {
                written.map_err(|Fenced| Stopped)?;
                continue;
            }
            () = cancelled(feed, turn) => return Err(Stopped),
            token = stream.next() => token,
        };
        match token {
            Ok(Some(token)) => {
                if !token.content.is_empty() {
                    first_token.get_or_insert_with(|| {
                        metrics::histogram!("jarvis_time_to_first_token_seconds")
                            .record(opened.elapsed().as_secs_f64());
                    });
                    if !writer.push(&token.content) {
                        break Ok(Done {
                            reason: DoneReason::Length,
                            prompt_eval_count: 0,
                            eval_count: 0,
                        });
                    }
                }
                if let Some(done) = token.done {
                    break Ok(done);
                }
            }
            Ok(None) => break Err(OllamaError::Interrupted("the stream ended without an end")),
            Err(error) => break Err(error),
        }
    };
    // The host is free from here on, whatever Redis takes to hold the rest.
    drop(stream);
    drop(_slot);
    while !writer.is_settled() {
        tokio::select! {
            written = writer.progress() => written.map_err(|Fenced| Stopped)?,
            () = cancelled(feed, turn) => return Err(Stopped),
        }
    }
    Ok(match ended {
        Ok(done) => {
            let usage = Usage {
                prompt_tokens: done.prompt_eval_count,
                completion_tokens: done.eval_count,
            };
            context.prompt_tokens = usage.prompt_tokens;
            metrics::counter!("jarvis_tokens_total", "kind" => "prompt")
                .increment(usage.prompt_tokens);
            metrics::counter!("jarvis_tokens_total", "kind" => "completion")
                .increment(usage.completion_tokens);
            let reason = match done.reason {
                DoneReason::Length => FinishReason::Length,
                _ => FinishReason::Stop,
            };
            End::Finished { reason, usage, context }
        }
        Err(OllamaError::Repetition) => {
            End::Finished { reason: FinishReason::Repetition, usage: Usage::default(), context }
        }
        Err(error) => End::Failed { failure: failure(&error), context },
    })
}

struct Open {
    stream: TokenStream,
    context: ContextReport,
    slot: Slot,
}

/// Finds a host and opens the stream. Before the first token a failure goes to another host.
async fn open(
    generations: &Generations,
    turn: &Turn,
) -> Result<Open, (OllamaError, ContextReport)> {
    let fleet = &generations.fleet;
    let conversation = loop {
        match Conversation::read(&generations.store, &turn.owner, turn.session).await {
            Ok(conversation) => break conversation,
            Err(error) => {
                tracing::warn!(%error, "a turn waits for Redis");
                sleep(RETRY).await;
            }
        }
    };
    let allowed = fleet.num_ctx(&turn.spec.model).await;
    let num_ctx = allowed.map(|tokens| tokens.min(generations.num_ctx_cap));
    let (mut request, mut context) = conversation.request(turn, num_ctx, 1.0);
    let mut shortened = false;
    let mut tried = 0;
    loop {
        tried += 1;
        let opened = match fleet.acquire(&turn.spec.model).await {
            Ok(slot) => slot.chat(&request).await.map(|stream| (stream, slot)),
            Err(error) => Err(error),
        };
        match opened {
            Ok((stream, slot)) => return Ok(Open { stream, context, slot }),
            Err(OllamaError::ContextTooLong { prompt_tokens, num_ctx: window })
                if !shortened && context.messages_sent > 1 =>
            {
                shortened = true;
                let boldness = window as f64 / prompt_tokens.max(1) as f64 * MARGIN;
                (request, context) = conversation.request(turn, num_ctx, boldness);
            }
            Err(error) if error.is_retryable() && tried < HOSTS_TRIED => {
                tracing::warn!(%error, tried, "a model host failed before the first token");
                sleep(RETRY).await;
            }
            Err(error) => return Err((error, context)),
        }
    }
}

async fn cancelled(feed: &Arc<Feed>, turn: &Turn) {
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
    end: End,
) -> Result<(), Stopped> {
    let now = Utc::now();
    let header = Message {
        generation_id: Some(turn.generation),
        model: Some(turn.spec.model.clone()),
        writers: Some(1),
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
    let deadline = Instant::now() + FINISH_LIMIT;
    loop {
        let length = writer.text().len() as u64;
        match generations.store.finish(turn, length, &header, &events).await {
            Ok(Written::Ok) => {
                metrics::counter!("jarvis_turns_total", "outcome" => outcome).increment(1);
                tracing::info!(outcome, bytes = length, "ended");
                return Ok(());
            }
            Ok(Written::Fenced) => return Err(Stopped),
            Ok(Written::Hole(stored)) => {
                writer.go_back_to(stored);
                while !writer.is_settled() {
                    writer.progress().await.map_err(|Fenced| Stopped)?;
                }
            }
            Err(error) if Instant::now() < deadline => {
                tracing::warn!(%error, "the end of a turn waits for Redis");
                sleep(RETRY).await;
            }
            Err(error) => {
                tracing::error!(%error, "the end of a turn could not be written");
                return Err(Stopped);
            }
        }
    }
}

fn failure(error: &OllamaError) -> Failure {
    Failure {
        code: error.code().to_owned(),
        message: error.to_string(),
        retryable: error.is_retryable(),
        retry_after: error.is_retryable().then_some(2),
    }
}
