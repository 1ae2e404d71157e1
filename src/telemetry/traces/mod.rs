//! Traces: the spans of requests and turns, and their export to a collector. `docs/TRACES.md` lists
//! every span.
//!
//! The spans are this service's own and not those of the log, whose levels and texts must neither
//! hide a span nor bring a text into one.

mod content;
mod context;
mod current;
mod export;
mod sampler;
mod span;

use std::sync::OnceLock;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

pub use content::{content, is_captured};
pub use context::{TRACEPARENT, TraceContext};
pub use current::{current, record_in_log, within};
use sampler::Sampler;
pub use span::Span;

use crate::config::Collector;

/// The tracing of this process; empty where no collector is set.
static TRACING: OnceLock<Tracing> = OnceLock::new();

/// The tracer.
struct Tracing {
    tracer: SdkTracer,
    sampler: Sampler,
    captures_content: bool,
}

/// Starts the export of spans to a collector. Must be called inside a Tokio runtime, once.
///
/// # Errors
/// Where the collector's address is not usable.
pub(super) fn start(collector: &Collector) -> anyhow::Result<SdkTracerProvider> {
    let provider = export::provider(collector)?;
    let tracing = Tracing {
        tracer: provider.tracer("jarvis"),
        sampler: Sampler::new(collector.sampling),
        captures_content: collector.captures_content,
    };
    let _ = TRACING.set(tracing);
    Ok(provider)
}
