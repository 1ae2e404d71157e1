//! Spans. One that is not sampled is a context alone, and costs no allocation.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Display;
use std::time::SystemTime;

use opentelemetry::trace::{
    Event, Link, Span as _, SpanBuilder, SpanId, SpanKind, Status, TraceContextExt, TraceId, Tracer,
};
use opentelemetry::{Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::IdGenerator;

use super::context::new_span_id;
use super::{TRACING, TraceContext};

/// A span, which ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span {
    context: Option<TraceContext>,
    recorded: Option<Box<Recorded>>,
}

/// The data of a span that is sampled.
#[derive(Debug)]
struct Recorded {
    name: Cow<'static, str>,
    kind: SpanKind,
    parent: Option<TraceContext>,
    start: SystemTime,
    attributes: Vec<KeyValue>,
    events: Vec<Event>,
    links: Vec<Link>,
    status: Status,
}

impl Span {
    /// Begins the first span of this service in a trace, which may be a client's, and decides whether
    /// the trace is sampled.
    pub fn of_request(
        client: Option<TraceContext>,
        name: impl FnOnce() -> Cow<'static, str>,
    ) -> Self {
        let is_sampled = TRACING.get().is_some_and(|on| on.sampler.samples(client.as_ref()));
        let context = match client {
            // The next service gets the flag that this one records nothing.
            Some(client) if !is_sampled => Some(TraceContext { is_sampled, ..client }),
            Some(client) => Some(TraceContext { span: new_span_id(), is_sampled, ..client }),
            None => is_sampled.then(|| TraceContext::root(true)),
        };
        let recorded = is_sampled.then(|| Recorded::begin(name(), SpanKind::Server, client));
        Self { context, recorded: recorded.map(Box::new) }
    }

    /// Begins a span below this one.
    pub fn child_of(parent: Option<TraceContext>, name: &'static str) -> Self {
        Self::child_with(parent, SpanKind::Internal, new_span_id, || name.into())
    }

    /// Begins a span of a request to another service.
    pub fn client_of(
        parent: Option<TraceContext>,
        name: impl FnOnce() -> Cow<'static, str>,
    ) -> Self {
        Self::child_with(parent, SpanKind::Client, new_span_id, name)
    }

    /// Begins a span below this one whose context is known already.
    pub fn child_at(
        parent: Option<TraceContext>,
        context: Option<TraceContext>,
        name: &'static str,
    ) -> Self {
        let id = || context.map_or_else(new_span_id, |context| context.span);
        Self::child_with(parent, SpanKind::Internal, id, || name.into())
    }

    fn child_with(
        parent: Option<TraceContext>,
        kind: SpanKind,
        id: impl FnOnce() -> SpanId,
        name: impl FnOnce() -> Cow<'static, str>,
    ) -> Self {
        match parent {
            Some(above) if above.is_sampled && TRACING.get().is_some() => Self {
                context: Some(above.with_span(id())),
                recorded: Some(Box::new(Recorded::begin(name(), kind, parent))),
            },
            context => Self { context, recorded: None },
        }
    }

    /// Returns the context for the spans below this one.
    pub fn context(&self) -> Option<TraceContext> {
        self.context
    }

    /// Returns whether the span is recorded, so that its attributes are worth their cost.
    pub fn is_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// Sets an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(recorded) = &mut self.recorded {
            recorded.attributes.push(KeyValue::new(key, value));
        }
    }

    /// Sets an attribute to the text of a value, which is made only where the span is recorded.
    pub fn set_text(&mut self, key: &'static str, value: &(impl Display + ?Sized)) {
        if self.is_recorded() {
            self.set(key, value.to_string());
        }
    }

    /// Sets an attribute to a count.
    pub fn set_count(&mut self, key: &'static str, count: u64) {
        self.set(key, i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets an attribute to a list of one text.
    pub fn set_list(&mut self, key: &'static str, only: &'static str) {
        if self.is_recorded() {
            self.set(key, Value::Array(vec![StringValue::from(only)].into()));
        }
    }

    /// Adds an event at the current time.
    pub fn add_event(&mut self, name: &'static str) {
        if let Some(recorded) = &mut self.recorded {
            let at = opentelemetry::time::now();
            recorded.events.push(Event::new(name, at, Vec::new(), 0));
        }
    }

    /// Links the span to another one.
    pub fn link(&mut self, to: TraceContext) {
        if let Some(recorded) = &mut self.recorded {
            recorded.links.push(Link::new(to.to_span_context(), Vec::new(), 0));
        }
    }

    /// Marks the span as failed with a stable code.
    pub fn fail(&mut self, code: &str) {
        self.set_text("error.type", code);
        if let Some(recorded) = &mut self.recorded {
            recorded.status = Status::error("");
        }
    }

    /// Sets the time of the beginning.
    pub fn began(&mut self, at: SystemTime) {
        if let Some(recorded) = &mut self.recorded {
            recorded.start = at;
        }
    }
}

impl Recorded {
    fn begin(name: Cow<'static, str>, kind: SpanKind, parent: Option<TraceContext>) -> Self {
        Self {
            name,
            kind,
            parent,
            start: opentelemetry::time::now(),
            attributes: Vec::with_capacity(12),
            events: Vec::new(),
            links: Vec::new(),
            status: Status::Unset,
        }
    }
}

impl Drop for Span {
    /// Ends the span, and queues it for the exporter.
    fn drop(&mut self) {
        let (Some(recorded), Some(context)) = (self.recorded.take(), self.context) else { return };
        let Some(tracing) = TRACING.get() else { return };
        let Recorded { name, kind, parent, start, mut attributes, events, links, mut status } =
            *recorded;
        if std::thread::panicking() {
            attributes.push(KeyValue::new("error.type", "panic"));
            status = Status::error("");
        }
        let builder = SpanBuilder::from_name(name)
            .with_kind(kind)
            .with_start_time(start)
            .with_attributes(attributes)
            .with_events(events)
            .with_links(links);
        let above = match parent {
            // The library would let a parent that is not sampled decide.
            Some(parent) => Context::new().with_remote_span_context(
                TraceContext { is_sampled: true, ..parent }.to_span_context(),
            ),
            None => Context::new(),
        };
        NEXT.set((context.trace, context.span));
        let mut span = tracing.tracer.build_with_context(builder, &above);
        span.set_status(status);
        span.end();
    }
}

thread_local! {
    /// The identifiers of the span that this thread hands to the exporter's library.
    static NEXT: Cell<(TraceId, SpanId)> = const { Cell::new((TraceId::INVALID, SpanId::INVALID)) };
}

/// Gives the exporter's library the identifiers of a span, which are known from the beginning.
#[derive(Debug)]
pub(super) struct KnownIds;

impl IdGenerator for KnownIds {
    fn new_trace_id(&self) -> TraceId {
        NEXT.get().0
    }

    fn new_span_id(&self) -> SpanId {
        NEXT.get().1
    }
}
