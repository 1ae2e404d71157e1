//! Logs, spans and metrics of the process.

pub mod metric;
mod secrets;

pub use secrets::Secrets;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{LogFormat, Settings};

const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// How long the last spans may take.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// What has to be told to flush when the process ends.
#[derive(Default)]
pub struct Telemetry {
    spans: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts logging, and sending spans where a collector is set. No line holds one of the secrets.
    ///
    /// # Errors
    /// Where the filter or the collector's address is not usable.
    pub fn start(settings: &Settings, secrets: &Secrets) -> anyhow::Result<Self> {
        let filter = EnvFilter::try_new(&settings.log)
            .context("--log is no filter; expected directives, as in info,fred=error")?;
        let secrets = secrets.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(is_coloured())
            .with_writer(move || RedactedStderr(secrets.clone()));
        let lines = match settings.log_format {
            LogFormat::Text => lines.with_target(false).boxed(),
            // The list of spans has the current one, too.
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        };
        let spans = settings.otlp_url.as_ref().map(|url| exporter(url.as_str())).transpose()?;
        let traces = spans
            .as_ref()
            .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer("jarvis")));
        tracing_subscriber::registry().with(filter).with(lines).with(traces).try_init()?;
        Ok(Self { spans })
    }

    /// Sends what is not sent yet.
    pub fn stop(&self) {
        if let Some(spans) = &self.spans
            && let Err(error) = spans.shutdown_with_timeout(FLUSH_LIMIT)
        {
            tracing::warn!(%error, "sending the last spans failed");
        }
    }
}

/// Colour is for a person in front of a terminal who has not said otherwise (no-color.org).
fn is_coloured() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !unwanted
}

/// Standard error without secrets. A log line comes in one piece.
struct RedactedStderr(Secrets);

impl std::io::Write for RedactedStderr {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        std::io::stderr().write_all(self.0.redact(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

fn exporter(url: &str) -> anyhow::Result<SdkTracerProvider> {
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_http().with_endpoint(url).build()?;
    let resource = opentelemetry_sdk::Resource::builder().with_service_name("jarvis").build();
    Ok(SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build())
}

/// The process's metrics, and the handle that renders them.
///
/// # Errors
/// Where a recorder is installed already.
pub fn metrics() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .install_recorder()?;
    metric::describe();
    metrics_process::Collector::default().describe();
    Ok(handle)
}
