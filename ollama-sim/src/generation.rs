//! One generation: from a slot to the last line, faults included.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::engine::{EngineError, Reason, Step, Task};
use crate::error::{ApiError, RUNNER_DIED};
use crate::fault::{Fault, FaultKind};
use crate::faults::Planned;
use crate::journal::Entry;
use crate::models::{Load, Model};
use crate::net::Connection;
use crate::options::KeepAlive;
use crate::output::Output;
use crate::simulator::Simulator;
use crate::slots::Slot;
use crate::stats::count;
use crate::stream::{Frame, Frames};
use crate::wire::{Figures, Shape};

/// The content type of one object.
pub const JSON: &str = "application/json; charset=utf-8";
/// The tokens of a call of a tool.
const CALL_TOKENS: usize = 20;
/// The content type of a stream.
pub const LINES: &str = "application/x-ndjson";

/// A generation that has not started.
pub struct Job {
    /// The route whose lines are written.
    pub shape: Shape,
    /// Whether the response is a stream of lines; otherwise it is one object.
    pub stream: bool,
    /// The model's name as the request spells it.
    pub requested_name: String,
    /// The model.
    pub model: Model,
    /// Its context in tokens.
    pub num_ctx: usize,
    /// The time for which it stays loaded.
    pub keep_alive: KeepAlive,
    /// The input of the engine.
    pub task: Task,
    /// The planned fault.
    pub fault: Option<Planned>,
    /// The entry of the journal that gets the end.
    pub entry: Arc<Entry>,
    /// The time when the request came.
    pub since: Instant,
}

/// The ends of a generation, other than a client that leaves.
enum Outcome {
    Completed(&'static str),
    Fault(Fault),
    Failed(EngineError),
}

/// Runs a job and returns its response as soon as the first frame is there.
pub async fn respond(server: Arc<Simulator>, connection: Connection, job: Job) -> Response {
    if let Some(planned) = job.fault
        && let Some(response) = strike_first(&server, &connection, &job, planned).await
    {
        return response;
    }
    let mut waiting = Waiting(Some(Arc::clone(&job.entry)));
    let slot = server.slots.take().await;
    waiting.0 = None;
    let slot = match slot {
        Ok(slot) => slot,
        Err(error) => {
            job.entry.end(error.to_string());
            return error.into_response();
        }
    };
    let stream = job.stream;
    #[expect(
        clippy::disallowed_methods,
        reason = "a paused client must not hold the generation up; the answer's length bounds it"
    )]
    let (frames, mut received) = unbounded_channel();
    tokio::spawn(run(server, slot, job, frames));
    let first = match received.recv().await {
        Some(Frame::Fail(error)) => return error.into_response(),
        Some(Frame::Abort) if !stream => return connection.cut().await,
        first => first,
    };
    let content_type = if stream { LINES } else { JSON };
    let body = Body::from_stream(Frames::new(first, received));
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

/// Applies a fault that needs no slot.
pub async fn strike(connection: &Connection, fault: Fault) -> Option<Response> {
    match fault.kind {
        FaultKind::Refuse => connection.cut().await,
        FaultKind::Busy => Some(ApiError::Busy.into_response()),
        FaultKind::Status => {
            let status = u16::try_from(fault.at)
                .ok()
                .and_then(|code| StatusCode::from_u16(code).ok())
                .filter(|status| status.as_u16() >= 200)
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Some(ApiError::Simulated(status).into_response())
        }
        _ => None,
    }
}

async fn strike_first(
    server: &Simulator,
    connection: &Connection,
    job: &Job,
    planned: Planned,
) -> Option<Response> {
    let needs_no_slot =
        matches!(planned.fault.kind, FaultKind::Refuse | FaultKind::Busy | FaultKind::Status);
    if !needs_no_slot || !server.faults.strike(planned) {
        return None;
    }
    count(&server.counters.faulted);
    job.entry.end(format!("fault: {}", planned.fault));
    strike(connection, planned.fault).await
}

/// Writes to the journal that a client left while it waited for a slot.
struct Waiting(Option<Arc<Entry>>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(entry) = &self.0 {
            entry.end("client_gone");
        }
    }
}

async fn run(server: Arc<Simulator>, slot: Slot, job: Job, frames: UnboundedSender<Frame>) {
    let ended = tokio::select! {
        biased;
        () = frames.closed() => None,
        ended = drive(&server, &job, &frames) => Some(ended),
    };
    // The last line is sent after all this, so that a client that has read it finds the slot free.
    drop(slot);
    server.models.touch(&job.model, job.num_ctx, job.keep_alive);
    let Some((outcome, last)) = ended else {
        count(&server.counters.client_gone);
        job.entry.end("client_gone");
        return;
    };
    match outcome {
        Outcome::Completed(reason) => {
            count(&server.counters.completed);
            job.entry.end(format!("completed: {reason}"));
        }
        Outcome::Fault(fault) => {
            count(&server.counters.faulted);
            job.entry.end(format!("fault: {fault}"));
        }
        Outcome::Failed(error) => {
            tracing::warn!(%error, "the engine failed");
            job.entry.end(format!("failed: {error}"));
        }
    }
    if let Some(frame) = last {
        // A client that left at this very moment needs nothing.
        let _ = frames.send(frame);
    }
}

/// Generates everything but the last frame.
async fn drive(
    server: &Simulator,
    job: &Job,
    frames: &UnboundedSender<Frame>,
) -> (Outcome, Option<Frame>) {
    load(server, &job.model, job.num_ctx, job.keep_alive).await;
    let loaded = job.since.elapsed();
    let mut output = Output::new(job.shape, job.stream, &job.requested_name, frames);
    let mut planned = job.fault;
    if let Some(early) = planned
        && early.fault.after_pieces().is_none()
    {
        planned = None;
        if server.faults.strike(early) {
            match early.fault.kind {
                FaultKind::Hang => pending().await,
                FaultKind::Slow => tokio::time::sleep(Duration::from_millis(early.fault.at)).await,
                FaultKind::Load => return instead_of_an_answer(job, early.fault, "load"),
                FaultKind::Unload => return instead_of_an_answer(job, early.fault, "unload"),
                FaultKind::Dialect(dialect) => output.speak(dialect),
                FaultKind::Split => output.split(),
                _ => {}
            }
        }
    }
    let mut generator = match server.engine.start(&job.task).await {
        Ok(generator) => generator,
        Err(error) => {
            let fail = Frame::Fail(ApiError::Internal(error.to_string()));
            return (Outcome::Failed(error), Some(fail));
        }
    };
    let mut first = None;
    let mut tokens_so_far = 0;
    loop {
        let pieces = match generator.next().await {
            Ok(Step::Pieces(pieces)) => pieces,
            Ok(Step::End { reason, prompt_tokens, evaluated, tokens }) => {
                job.entry.evaluated(evaluated);
                // A call takes tokens, too.
                let tokens = tokens + CALL_TOKENS * job.task.calls.len();
                if reason == Reason::Stop {
                    output.calls_of(&job.task.calls);
                }
                let figures = figures(
                    job.since,
                    loaded,
                    first,
                    prompt_tokens.unwrap_or(job.task.prompt_tokens),
                    tokens,
                );
                job.entry.progress(figures.prompt_eval_count, tokens, output.pieces());
                return match reason {
                    Reason::Repetition => (Outcome::Completed("repetition"), output.open_end()),
                    Reason::Stop => (Outcome::Completed("stop"), output.last("stop", figures)),
                    Reason::Length => {
                        (Outcome::Completed("length"), output.last("length", figures))
                    }
                };
            }
            Err(error) => {
                let fail = Frame::Fail(ApiError::Internal(RUNNER_DIED.to_owned()));
                return (Outcome::Failed(error), Some(fail));
            }
        };
        first.get_or_insert_with(|| job.since.elapsed());
        let mut rest = &pieces[..];
        if let Some(due) = planned
            && let Some(after) = due.fault.after_pieces()
            && let Some(before) = usize::try_from(after.saturating_sub(output.pieces()))
                .ok()
                .filter(|before| *before <= rest.len())
        {
            planned = None;
            output.pieces_of(&rest[..before]);
            rest = &rest[before..];
            if server.faults.strike(due) {
                let tokens =
                    before.checked_sub(1).map_or(tokens_so_far, |last| pieces[last].tokens);
                count_tokens(server, job, &output, &mut tokens_so_far, tokens);
                match due.fault.kind {
                    FaultKind::Stall => {
                        output.flush();
                        pending::<()>().await;
                    }
                    FaultKind::Cut => return (Outcome::Fault(due.fault), Some(Frame::Abort)),
                    FaultKind::Error => {
                        let fail = Frame::Fail(ApiError::Internal(RUNNER_DIED.to_owned()));
                        return (Outcome::Fault(due.fault), Some(fail));
                    }
                    FaultKind::End => return (Outcome::Fault(due.fault), output.open_end()),
                    _ => output.garbage(),
                }
            }
        }
        output.pieces_of(rest);
        let tokens = pieces.last().map_or(tokens_so_far, |piece| piece.tokens);
        count_tokens(server, job, &output, &mut tokens_so_far, tokens);
    }
}

fn instead_of_an_answer(job: &Job, fault: Fault, reason: &str) -> (Outcome, Option<Frame>) {
    let line = job.shape.loaded(&job.requested_name, reason);
    (Outcome::Fault(fault), Some(Frame::Data(line.into())))
}

/// Loads a model, which takes its time where the model was not in memory.
pub async fn load(server: &Simulator, model: &Model, num_ctx: usize, keep_alive: KeepAlive) {
    let load = server.models.load(model, num_ctx, keep_alive);
    if load != Load::Ready {
        count(&server.counters.loads);
    }
    if load == Load::Reload {
        count(&server.counters.reloads);
    }
    if load != Load::Ready && server.config.load_ms > 0 {
        tokio::time::sleep(Duration::from_millis(server.config.load_ms)).await;
    }
}

fn count_tokens(
    server: &Simulator,
    job: &Job,
    output: &Output<'_>,
    before: &mut usize,
    now: usize,
) {
    let new = now.saturating_sub(*before) as u64;
    server.counters.tokens.fetch_add(new, Ordering::Relaxed);
    job.entry.progress(job.task.prompt_tokens, now, output.pieces());
    *before = now;
}

fn figures(
    since: Instant,
    loaded: Duration,
    first: Option<Duration>,
    prompt_tokens: usize,
    tokens: usize,
) -> Figures {
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let total = since.elapsed();
    let first = first.unwrap_or(total);
    Figures {
        total_duration: nanoseconds(total),
        load_duration: nanoseconds(loaded),
        prompt_eval_count: prompt_tokens,
        prompt_eval_duration: nanoseconds(first.saturating_sub(loaded)),
        eval_count: tokens,
        eval_duration: nanoseconds(total.saturating_sub(first)),
    }
}
