//! The export of spans to a collector, over HTTP or gRPC.
//!
//! The library sends batches from a thread of its own, on which no client of tokio can run. So the
//! client runs on the runtime of the process, and the thread waits for its answer.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::KeyValue;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{
    Compression, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use reqwest::Url;
use reqwest::redirect::Policy;
use tokio::runtime::Handle;

use super::span::KnownIds;
use crate::config::{Collector, Protocol};

/// Bytes of a collector's answer that are read.
const ANSWER_BYTES: u64 = 64 << 10;
/// Time between two reports that spans were lost.
const REPORT_EVERY: Duration = Duration::from_mins(1);

/// Creates the provider that sends spans to the collector. Must be called inside a Tokio runtime.
///
/// # Errors
/// Where the collector's address is not usable.
pub(super) fn provider(collector: &Collector) -> anyhow::Result<SdkTracerProvider> {
    let exporter = match collector.protocol {
        Protocol::Http => over_http(collector)?,
        Protocol::Grpc => over_grpc(collector)?,
    };
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(collector.batches.queue)
        .with_max_export_batch_size(collector.batches.size)
        .with_scheduled_delay(collector.batches.pause)
        .build();
    let watched = WatchedExporter { exporter, lost: Mutex::default() };
    let processor = BatchSpanProcessor::builder(watched).with_batch_config(batches).build();
    Ok(SdkTracerProvider::builder()
        .with_resource(resource(collector))
        // Only spans that are sampled reach the library.
        .with_sampler(Sampler::AlwaysOn)
        .with_id_generator(KnownIds)
        .with_span_processor(processor)
        .build())
}

fn resource(collector: &Collector) -> Resource {
    let given = collector.resource.iter();
    let given = given.map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    let instance = uuid::Uuid::new_v4().to_string();
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance),
        ])
        .with_attributes(given)
        .with_service_name(collector.service.clone())
        .build()
}

fn over_http(collector: &Collector) -> anyhow::Result<OtlpExporter> {
    let http = reqwest::Client::builder().timeout(collector.timeout).redirect(Policy::none());
    let mut url = collector.url.clone();
    let client = SpanClient { url: url.clone(), http: http.build()?, runtime: Handle::current() };
    // The exporter needs an address without a password: its errors name it.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    let exporter = OtlpExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(url.as_str())
        .with_headers(headers(collector))
        .with_timeout(collector.timeout);
    Ok(match compression(collector) {
        Some(gzip) => exporter.with_compression(gzip),
        None => exporter,
    }
    .build()?)
}

/// Returns the headers that come from a file. The exporter decodes their values.
fn headers(collector: &Collector) -> HashMap<String, String> {
    let encoded = |text: &str| urlencoding::encode(text).into_owned();
    let headers = collector.headers.iter();
    headers.map(|(name, value)| (name.clone(), encoded(value.expose()))).collect()
}

/// Returns the same for gRPC. Header fields that HTTP does not allow were refused with the settings.
fn metadata(collector: &Collector) -> MetadataMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &collector.headers {
        let pair = (HeaderName::try_from(name), HeaderValue::try_from(value.expose()));
        if let (Ok(name), Ok(mut value)) = pair {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    MetadataMap::from_headers(headers)
}

/// Returns how batches are compressed; none where they are not.
fn compression(collector: &Collector) -> Option<Compression> {
    collector.is_compressed.then_some(Compression::Gzip)
}

fn over_grpc(collector: &Collector) -> anyhow::Result<OtlpExporter> {
    let exporter = OtlpExporter::builder()
        .with_tonic()
        .with_endpoint(collector.url.as_str())
        .with_metadata(metadata(collector))
        .with_timeout(collector.timeout);
    let exporter = match collector.url.scheme() {
        "https" => exporter.with_tls_config(ClientTlsConfig::new().with_native_roots()),
        _ => exporter,
    };
    Ok(match compression(collector) {
        Some(gzip) => exporter.with_compression(gzip),
        None => exporter,
    }
    .build()?)
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

/// An exporter that logs, now and then, how many spans were lost.
#[derive(Debug)]
struct WatchedExporter {
    exporter: OtlpExporter,
    lost: Mutex<LostSpans>,
}

/// The spans that were lost since the last report.
#[derive(Debug, Default)]
struct LostSpans {
    spans: usize,
    reported: Option<Instant>,
}

impl LostSpans {
    /// Counts lost spans. Returns their number where it is time to report it.
    fn add(&mut self, spans: usize, now: Instant) -> Option<usize> {
        self.spans += spans;
        let is_due = self.reported.is_none_or(|at| now.duration_since(at) >= REPORT_EVERY);
        is_due.then(|| {
            self.reported = Some(now);
            std::mem::take(&mut self.spans)
        })
    }
}

impl SpanExporter for WatchedExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.exporter.export(batch).await;
        if let Err(error) = &exported {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(spans) = lost.add(spans, Instant::now()) {
                tracing::warn!(spans, %error, "spans not exported");
            }
        }
        exported
    }

    fn shutdown_with_timeout(&self, limit: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(limit)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_spans_are_reported_once_a_minute_with_their_number() {
        let (mut lost, now) = (LostSpans::default(), Instant::now());
        assert_eq!(lost.add(3, now), Some(3));
        assert_eq!(lost.add(4, now + Duration::from_secs(30)), None);
        assert_eq!(lost.add(5, now + Duration::from_secs(59)), None);
        assert_eq!(lost.add(6, now + Duration::from_secs(61)), Some(15));
    }
}
