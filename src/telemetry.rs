//! Logs, spans and metrics of the process.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::sync::Arc;
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

/// Texts that no log line and no error may hold.
#[derive(Clone, Default)]
pub struct Secrets(Arc<[String]>);

impl Secrets {
    /// Secrets of fewer than four bytes are left out: they are in every other word.
    pub fn new(secrets: Vec<String>) -> Self {
        let escaped = secrets.iter().map(|secret| {
            let json = serde_json::Value::from(secret.as_str()).to_string();
            json.trim_matches('"').to_owned()
        });
        let mut all: Vec<String> = escaped.collect();
        all.extend(secrets);
        all.retain(|secret| secret.len() >= 4);
        // The longest first: a shorter one may be a part of it.
        all.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        all.dedup();
        Self(all.into())
    }

    /// The text with every secret in it replaced.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for secret in &*self.0 {
            if text.contains(secret.as_str()) {
                text = Cow::Owned(text.replace(secret.as_str(), "***"));
            }
        }
        text
    }
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
    describe();
    Ok(handle)
}

fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!("jarvis_http_requests_total", "Requests by method, route and status.");
    describe_histogram!("jarvis_http_request_seconds", "Time to the response's head.");
    describe_gauge!("jarvis_websockets", "Open WebSockets.");
    describe_counter!("jarvis_websocket_messages_total", "Client messages by type.");
    describe_counter!(
        "jarvis_slow_readers_total",
        "Connections closed as their clients did not read."
    );
    describe_counter!("jarvis_turns_total", "Ended turns by outcome.");
    describe_gauge!("jarvis_turns_open", "Turns that this replica runs or holds waiting.");
    describe_gauge!("jarvis_queue_depth", "Turns that wait for a slot, of all replicas.");
    describe_gauge!(
        "jarvis_turns_per_slot",
        "Turns that have a slot or wait for one, of all replicas, for each slot of all hosts."
    );
    describe_histogram!("jarvis_queue_wait_seconds", "How long turns waited for their slot.");
    describe_gauge!("jarvis_slots_used", "Generations on a host, of all replicas.");
    describe_gauge!("jarvis_slots_total", "Generations that a host may have at a time.");
    describe_gauge!("jarvis_slots_over", "Generations on a host beyond its slots.");
    describe_counter!(
        "jarvis_streams_beyond_lease_total",
        "Generations that ran on after their replica was taken for dead."
    );
    describe_histogram!("jarvis_turn_seconds", "Time from acceptance to the end of a turn.");
    describe_histogram!(
        "jarvis_time_to_first_token_seconds",
        "Time from a turn's beginning to its first token."
    );
    describe_gauge!(
        "jarvis_breaker_open",
        "1 while a host gets no generations from this replica, 0.5 while one may try."
    );
    describe_gauge!(
        "jarvis_model_breaker_open",
        "The same for one model on a host, once it has failed there."
    );
    describe_counter!("jarvis_tokens_total", "Tokens by kind, as the model hosts count them.");
    describe_counter!("jarvis_redis_errors_total", "Failed Redis commands by kind.");
    metrics_process::Collector::default().describe();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_redacted_as_they_are_and_as_json_has_them_the_longest_first() {
        let secrets =
            Secrets::new(vec!["pass".to_owned(), "pass\"word".to_owned(), "abc".to_owned()]);
        assert_eq!(secrets.redact("pass, pass\"word, abc"), "***, ***, abc");
        assert_eq!(secrets.redact(r#"{"a":"pass\"word"}"#), r#"{"a":"***"}"#);
        assert!(matches!(secrets.redact("nothing"), Cow::Borrowed(_)));
    }
}
