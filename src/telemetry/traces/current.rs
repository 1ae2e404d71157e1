//! The span that the current request is handled under, so that every front hands it on unseen.

use std::future::Future;

use super::TraceContext;

tokio::task_local! {
    static CURRENT: Option<TraceContext>;
}

/// Returns the context of the span that the current task works under.
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(|context| *context).ok().flatten()
}

/// Writes the trace's identifier into the field `trace` of a span of the log, so that a line leads to
/// the trace.
pub fn record_in_log(context: Option<TraceContext>, span: &tracing::Span) {
    if let Some(context) = context {
        span.record("trace", tracing::field::display(context.trace_id()));
    }
}

/// Runs a future under a span. A task that it spawns is not under the span by itself.
pub fn within<F: Future>(
    context: Option<TraceContext>,
    future: F,
) -> impl Future<Output = F::Output> {
    CURRENT.scope(context, future)
}
