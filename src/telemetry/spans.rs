//! The export of spans to a collector.
//!
//! The library sends batches from a thread of its own, on which no HTTP client of tokio can run. So the
//! client runs on the runtime of the process, and the thread waits for its answer.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use opentelemetry::trace::TraceContextExt;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::trace::SdkTracerProvider;
use reqwest::Url;
use reqwest::redirect::Policy;
use tokio::runtime::Handle;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Time limit of sending a batch.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a collector's answer that are read.
const ANSWER_BYTES: u64 = 64 << 10;
/// The path of a collector that takes spans (OTLP over HTTP), where the URL names none.
const PATH: &str = "/v1/traces";

/// Creates the exporter to the collector at this URL. Must be called inside a Tokio runtime.
///
/// # Errors
/// Where the collector's address is not usable.
pub(super) fn exporter(url: &Url) -> anyhow::Result<SdkTracerProvider> {
    let mut url = url.clone();
    if url.path() == "/" {
        url.set_path(PATH);
    }
    let http = reqwest::Client::builder().timeout(SEND_LIMIT).redirect(Policy::none()).build()?;
    let client = SpanClient { url: url.clone(), http, runtime: Handle::current() };
    // The exporter needs an address without a password: its errors name it.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(url.as_str())
        .build()?;
    let resource = opentelemetry_sdk::Resource::builder().with_service_name("jarvis").build();
    Ok(SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build())
}

/// A client of the collector.
struct SpanClient {
    url: Url,
    http: reqwest::Client,
    runtime: Handle,
}

impl fmt::Debug for SpanClient {
    /// Leaves out the URL, because it may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanClient").finish_non_exhaustive()
    }
}

/// The answer to a batch, as the library wants it.
type Answer<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for SpanClient {
    fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> Answer<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        let (parts, body) = request.into_parts();
        let sent = self.http.post(self.url.clone()).headers(parts.headers).body(body);
        let sent = self.runtime.spawn(async move {
            let answer = sent.send().await?;
            let status = answer.status();
            let is_small = answer.content_length().is_some_and(|bytes| bytes <= ANSWER_BYTES);
            let body = if is_small { answer.bytes().await? } else { Bytes::new() };
            let mut response = Response::new(body);
            *response.status_mut() = status;
            Ok(response)
        });
        Box::pin(async move { sent.await? })
    }
}

/// Writes the identifier of a span's trace into its field `trace`, so that a log line leads to the
/// trace. Without a collector there are no traces, and the field stays empty.
pub fn record_trace(span: &tracing::Span) {
    let context = span.context();
    let context = context.span().span_context().clone();
    if context.is_valid() {
        span.record("trace", tracing::field::display(context.trace_id()));
    }
}
