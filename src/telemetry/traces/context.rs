//! The place of a span in its trace, as W3C Trace Context writes it.

use std::fmt;
use std::str::FromStr;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use rand::RngCore;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The header of a request with its place in a trace.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Bytes of the header's first version.
const BYTES: usize = 55;
/// The flag of a trace that is sampled.
const SAMPLED: u8 = 1;

/// The identifiers of a trace and of one of its spans, and whether the trace is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    pub(super) is_sampled: bool,
}

/// The text is not a `traceparent`.
#[derive(Debug, thiserror::Error)]
#[error("not a traceparent of W3C Trace Context")]
pub struct NotTraceparent;

impl TraceContext {
    /// Returns the context that a client sent; none where it sent none, more than one, or one that
    /// is not valid.
    pub fn of_client(headers: &HeaderMap) -> Option<Self> {
        let mut sent = headers.get_all(TRACEPARENT).iter();
        let only = sent.next().filter(|_| sent.next().is_none());
        only?.to_str().ok()?.parse().ok()
    }

    /// Returns the context of the first span of a new trace.
    pub(super) fn root(is_sampled: bool) -> Self {
        let mut bytes = [0; 16];
        rand::rng().fill_bytes(&mut bytes);
        Self { trace: TraceId::from_bytes(bytes), span: new_span_id(), is_sampled }
    }

    /// Returns the context of another span in the same trace.
    pub(super) fn with_span(self, span: SpanId) -> Self {
        Self { span, ..self }
    }

    /// Returns the context of the span in the same trace that has an identifier made from a unique
    /// name: every replica that knows the name knows the span.
    #[must_use]
    pub fn named(self, name: &[u8]) -> Self {
        if !self.is_sampled {
            return self;
        }
        let mut span = [0; 8];
        span.copy_from_slice(&Sha256::digest(name)[..8]);
        self.with_span(SpanId::from_bytes(span))
    }

    /// Returns the identifier of the trace: 32 hexadecimal digits.
    pub fn trace_id(&self) -> impl fmt::Display + use<> {
        self.trace
    }

    /// Returns whether the spans of the trace are recorded.
    pub fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// Returns the value of the header that a called service gets.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.to_string()).ok()
    }

    /// Returns the context as the exporter's library has it.
    pub(super) fn to_span_context(self) -> SpanContext {
        let flags = TraceFlags::default().with_sampled(self.is_sampled);
        SpanContext::new(self.trace, self.span, flags, true, TraceState::NONE)
    }
}

/// Returns a random identifier of a span.
pub(super) fn new_span_id() -> SpanId {
    SpanId::from(rand::rng().next_u64())
}

impl fmt::Display for TraceContext {
    /// Writes the `traceparent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.is_sampled))
    }
}

impl FromStr for TraceContext {
    type Err = NotTraceparent;

    fn from_str(text: &str) -> Result<Self, NotTraceparent> {
        let parsed = || {
            let (first, rest) = text.split_at_checked(BYTES)?;
            let mut parts = first.split('-');
            let mut part = |digits: usize| {
                let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
                parts.next().filter(|part| part.len() == digits && part.bytes().all(is_digit))
            };
            let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
            // A later version may have more behind another dash.
            let is_whole = rest.is_empty() || (version != "00" && rest.starts_with('-'));
            let trace = TraceId::from_hex(trace).ok().filter(|id| *id != TraceId::INVALID)?;
            let span = SpanId::from_hex(span).ok().filter(|id| *id != SpanId::INVALID)?;
            let flags = u8::from_str_radix(flags, 16).ok()?;
            let context = Self { trace, span, is_sampled: flags & SAMPLED != 0 };
            (version != "ff" && is_whole).then_some(context)
        };
        parsed().ok_or(NotTraceparent)
    }
}

impl Serialize for TraceContext {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TraceContext {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written_as_w3c_has_it() {
        let context: TraceContext = SENT.parse().expect("a context");
        assert_eq!(context.to_string(), SENT);
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(context.is_sampled());
        for (accepted, sampled) in [
            (SENT.replace("-01", "-00"), false),
            (SENT.replace("-01", "-03"), true),
            (SENT.replace("00-4b", "01-4b"), true),
            (SENT.replace("00-4b", "01-4b") + "-more", true),
        ] {
            let context: TraceContext = accepted.parse().expect(&accepted);
            assert_eq!(context.is_sampled(), sampled, "{accepted}");
        }
        for refused in [
            "",
            "00",
            &SENT[..54],
            &format!("{SENT}0"),
            &format!("{SENT}-more"),
            &SENT.replace("00-4b", "ff-4b"),
            &SENT.replace("4bf9", "4BF9"),
            &SENT.replace("4bf9", "4bg9"),
            &SENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &SENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &SENT.replace('-', "_"),
            &SENT.replace("0e0e4736", "0e0e47é"),
        ] {
            assert!(refused.parse::<TraceContext>().is_err(), "{refused}");
        }
    }

    #[test]
    fn a_client_sends_one_traceparent_or_none() {
        let sent = |values: &[&'static str]| {
            let values = values.iter().map(|value| HeaderValue::from_static(value));
            TraceContext::of_client(&values.map(|value| (TRACEPARENT, value)).collect())
        };
        assert_eq!(sent(&[SENT]), SENT.parse().ok());
        assert_eq!(sent(&[]), None);
        assert_eq!(sent(&["no"]), None);
    }

    #[test]
    fn two_traceparents_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, HeaderValue::from_static(SENT));
        headers.append(TRACEPARENT, HeaderValue::from_static(SENT));
        assert_eq!(TraceContext::of_client(&headers), None);
    }
}
