//! The spans of a turn. `docs/TRACES.md` lists them.
//!
//! The identifier of a writer's span is made from the writer's fence. So every replica that knows who
//! holds a turn knows the span that a takeover continues.

use std::time::{Duration, UNIX_EPOCH};

use crate::ollama::HostId;
use crate::session::model::ContinuedHow;
use crate::session::store::{Fence, Turn};
use crate::session::{FinishReason, Usage};
use crate::telemetry::traces::{self, Span, TraceContext};

/// The outcome of the span of a writer whose replica is gone.
const REPLICA_GONE: &str = "replica_gone";

/// Returns the context of the span of the turn's writer on this replica.
pub(super) fn of_writer(turn: &Turn) -> Option<TraceContext> {
    of_fence(turn, turn.fence)
}

fn of_fence(turn: &Turn, fence: Fence) -> Option<TraceContext> {
    turn.trace().map(|trace| trace.named(fence.0.as_bytes()))
}

/// Begins the span of the turn's writer on this replica.
pub(super) fn writer(turn: &Turn, replica: &str) -> Span {
    let continued = turn.replaced().and_then(|fence| of_fence(turn, fence));
    let name = if continued.is_some() { TAKEN_OVER } else { FIRST };
    let mut span = Span::child_at(turn.trace(), of_writer(turn), name);
    if let Some(continued) = continued {
        span.link(continued);
        // It ends at once, so that the link is known also where this writer dies, too.
        let mut claimed = Span::child_of(of_writer(turn), "claim turn");
        claimed.link(continued);
    }
    describe(&mut span, turn, Some(replica));
    span
}

/// The names of a writer's span.
const FIRST: &str = "answer turn";
const TAKEN_OVER: &str = "take over turn";

fn describe(span: &mut Span, turn: &Turn, replica: Option<&str>) {
    span.set_text("gen_ai.request.model", &turn.spec.model);
    span.set_text("jarvis.generation.id", &turn.generation);
    if let Some(replica) = replica {
        span.set_text("jarvis.replica", replica);
    }
    if span.is_recorded() {
        span.set("gen_ai.conversation.id", turn.session.redacted());
    }
}

/// Ends the span of the writer from which this replica has claimed the turn, and which can no longer
/// do so. `writers` counts the writers so far, this replica included.
pub(super) fn end_lost_writer(turn: &Turn, writers: u32, lost: Option<&str>) {
    let Some(fence) = turn.replaced() else { return };
    let name = if writers > 2 { TAKEN_OVER } else { FIRST };
    let mut span = Span::child_at(turn.trace(), of_fence(turn, fence), name);
    if let Some(created) = fence.created() {
        span.began(UNIX_EPOCH + Duration::from_millis(created));
    }
    describe(&mut span, turn, lost);
    span.set("jarvis.turn.outcome", REPLICA_GONE);
    span.fail(REPLICA_GONE);
}

/// Begins the span of one run of the model on this host.
pub(super) fn model_run(turn: &Turn, host: Option<&HostId>, attempt: i64) -> Span {
    let spec = &turn.spec;
    let mut span = Span::client_of(of_writer(turn), || format!("chat {}", spec.model).into());
    if !span.is_recorded() {
        return span;
    }
    span.set("gen_ai.operation.name", "chat");
    span.set("gen_ai.provider.name", "ollama");
    span.set("gen_ai.request.model", spec.model.clone());
    if let Some(temperature) = spec.temperature {
        span.set("gen_ai.request.temperature", temperature);
    }
    span.set("gen_ai.request.max_tokens", i64::from(spec.max_tokens));
    if let Some(seed) = spec.seed {
        span.set("gen_ai.request.seed", seed);
    }
    span.set("gen_ai.output.type", "text");
    if let Some((address, port)) = host.and_then(HostId::address) {
        span.set("server.address", address);
        span.set("server.port", i64::from(port));
    }
    span.set("jarvis.attempt", attempt);
    if traces::is_captured() {
        span.set("gen_ai.input.messages", traces::content("user", &turn.question().content));
    }
    span
}

/// Ends the span of a run with its outcome, a reason or the code of a failure. The answer so far is this
/// one.
pub(super) fn end_model_run(mut span: Span, outcome: Result<FinishReason, &str>, answer: &str) {
    match outcome {
        Ok(reason) => span.set_list("gen_ai.response.finish_reasons", finish_reason(reason)),
        Err(code) => span.fail(code),
    }
    if span.is_recorded() && traces::is_captured() {
        span.set("gen_ai.output.messages", traces::content("assistant", answer));
    }
}

/// Notes how a run continues the answer, where it does.
pub(super) fn note_continuation(span: &mut Span, how: Option<ContinuedHow>) {
    if let Some(how) = how {
        span.set("jarvis.continuation", how.as_str());
    }
}

/// Sets the tokens of a run that has generated so many of an answer with this usage.
pub(super) fn count_tokens(span: &mut Span, usage: Usage, generated: u64) {
    span.set_count("gen_ai.usage.input_tokens", usage.prompt_tokens);
    span.set_count("gen_ai.usage.output_tokens", generated);
}

fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Repetition => "repetition",
        FinishReason::Cancelled => "cancelled",
    }
}
