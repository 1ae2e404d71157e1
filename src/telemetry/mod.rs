//! Logs, spans and metrics of the process.

mod count;
mod line_limit;
pub mod metric;
mod secrets;
mod spans;

pub use count::{CountedOpen, count_slow_reader};
pub use secrets::Secrets;

use std::io::IsTerminal;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::line_limit::{LineLimit, report_suppressed};
use crate::config::{LogFormat, TelemetrySettings};

/// The bounds of the buckets of histograms, in seconds.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// The target of this service's own spans.
const SERVICE: &str = "jarvis";
/// Time between two rounds of [`upkeep`].
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Time limit of sending the last spans.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// The exporters that must flush before the process ends.
#[derive(Default)]
pub struct Telemetry {
    spans: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts logging, and the export of spans where a collector is set. No line holds a secret.
    ///
    /// # Errors
    /// Where the collector's address is not usable.
    pub fn start(settings: &TelemetrySettings, secrets: &Secrets) -> anyhow::Result<Self> {
        let secrets = secrets.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(is_coloured())
            .with_writer(move || RedactedStderr(secrets.clone()));
        let lines = match settings.log_format {
            LogFormat::Text => lines.with_target(false).boxed(),
            // The list of spans includes the current one.
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        };
        let lines = lines.with_filter(LineLimit.and(without_library_traces()));
        let spans = settings.collector().map(spans::exporter).transpose()?;
        let traces = spans
            .as_ref()
            .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer(SERVICE)));
        // Libraries have spans of their own, which nobody has checked for secrets.
        let own = Targets::new().with_target(SERVICE, LevelFilter::TRACE);
        let traces = traces.map(|layer| layer.with_filter(own));
        tracing_subscriber::registry()
            .with(settings.log.clone())
            .with(lines)
            .with(traces)
            .try_init()?;
        Ok(Self { spans })
    }

    /// Sends the last spans.
    pub fn stop(&self) {
        if let Some(spans) = &self.spans
            && let Err(error) = spans.shutdown_with_timeout(FLUSH_LIMIT)
        {
            tracing::warn!(%error, "last spans not sent");
        }
    }
}

/// Returns a filter without the traces of libraries: they quote what they carry, tokens and messages
/// among it, whatever the operator's filter lets through.
fn without_library_traces() -> Targets {
    Targets::new().with_default(LevelFilter::DEBUG).with_target(SERVICE, LevelFilter::TRACE)
}

/// Returns whether log lines are coloured: on a terminal, unless NO_COLOR is set (no-color.org).
fn is_coloured() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !unwanted
}

/// Standard error without secrets. Each call of `write` gets one whole log line.
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

/// Installs the recorder of the process's metrics, and returns the handle that renders them.
///
/// # Errors
/// Where a recorder is already installed.
pub fn metrics() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .install_recorder()?;
    metric::describe();
    metrics_process::Collector::default().describe();
    Ok(handle)
}

/// Merges the samples of histograms into their buckets, which reading the metrics does, too, and
/// reports suppressed log lines. Without it, samples that nobody reads pile up. Never returns.
pub async fn upkeep(metrics: PrometheusHandle) {
    upkeep_every(UPKEEP_EVERY, metrics).await;
}

async fn upkeep_every(pause: Duration, metrics: PrometheusHandle) {
    let mut rounds = tokio::time::interval(pause);
    loop {
        rounds.tick().await;
        metrics.run_upkeep();
        report_suppressed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the resident memory of this process.
    fn resident_bytes() -> usize {
        let pages = std::fs::read_to_string("/proc/self/statm").expect("figures");
        let resident = pages.split(' ').nth(1).expect("a figure");
        resident.parse::<usize>().expect("a number") * 4096
    }

    #[tokio::test]
    async fn samples_of_metrics_that_nobody_reads_take_no_memory() {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
            .expect("buckets")
            .build_recorder();
        let pause = Duration::from_millis(20);
        let upkeep = tokio::spawn(upkeep_every(pause, recorder.handle()));
        let record = async || {
            metrics::with_local_recorder(&recorder, || {
                let histogram = metrics::histogram!(metric::HTTP_REQUEST_SECONDS);
                (0..200_000).for_each(|_| histogram.record(0.3));
            });
            // As much as one round takes.
            tokio::time::sleep(2 * pause).await;
        };
        record().await;
        let before = resident_bytes();
        for _ in 0..30 {
            record().await;
        }
        // Six million samples.
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 16 << 20, "{grown} bytes more");
        upkeep.abort();
    }
}
