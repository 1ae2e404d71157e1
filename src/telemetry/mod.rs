//! Logs, spans and metrics of the process.

mod count;
mod gen_ai;
mod handles;
mod hosts;
mod line_limit;
mod live;
mod log_filter;
pub mod metric;
mod runtime;
mod secrets;
pub mod traces;

pub use count::{CountedOpen, count_close, count_resume, count_slow_reader};
pub use gen_ai::GenAi;
pub use handles::{APPENDS, AppendMetrics, record_redis_command};
pub use hosts::GaugedHosts;
pub use live::{LIVE, LiveCount, LiveCounts};
pub use log_filter::{FilterInForce, LogFilter};
pub use secrets::Secrets;

use std::io::IsTerminal;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::line_limit::{LineLimit, report_suppressed};
use self::metric::MetricKind;
use self::runtime::RuntimeSamples;
use crate::config::{LogFormat, TelemetrySettings};

/// The target of this service's own lines.
const SERVICE: &str = "jarvis";
/// Time between two rounds of [`upkeep`].
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Time limit of sending the last spans.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// The exporters that must flush before the process ends, and the filter of log lines.
pub struct Telemetry {
    spans: Option<SdkTracerProvider>,
    log_filter: LogFilter,
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
        let (filter, log_filter) = LogFilter::layer(&settings.log);
        tracing_subscriber::registry().with(filter).with(lines).try_init()?;
        let spans = settings.collector().as_ref().map(traces::start).transpose()?;
        Ok(Self { spans, log_filter })
    }

    /// Returns the filter of log lines.
    pub fn log_filter(&self) -> LogFilter {
        self.log_filter.clone()
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
    let handle = with_buckets(PrometheusBuilder::new())?.install_recorder()?;
    metric::describe();
    runtime::record_build();
    metrics_process::Collector::default().describe();
    Ok(handle)
}

/// Returns a handle that renders no metrics, as none are recorded.
///
/// # Errors
/// Never, as the buckets are those of [`metrics`].
pub fn no_metrics() -> anyhow::Result<PrometheusHandle> {
    Ok(with_buckets(PrometheusBuilder::new())?.build_recorder().handle())
}

/// Sets the buckets of every histogram.
fn with_buckets(mut builder: PrometheusBuilder) -> anyhow::Result<PrometheusBuilder> {
    for metric in metric::ALL {
        if let MetricKind::Histogram(bounds) = metric.kind {
            builder =
                builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)?;
        }
    }
    Ok(builder)
}

/// Samples the runtime, merges the samples of histograms into their buckets, which reading the metrics
/// does, too, and reports suppressed log lines. Without it, samples that nobody reads pile up. Never
/// returns.
pub async fn upkeep(metrics: PrometheusHandle) {
    upkeep_every(UPKEEP_EVERY, metrics).await;
}

async fn upkeep_every(pause: Duration, metrics: PrometheusHandle) {
    let mut rounds = tokio::time::interval(pause);
    let mut runtime = RuntimeSamples::begin();
    loop {
        rounds.tick().await;
        runtime.record();
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
        let builder = with_buckets(PrometheusBuilder::new()).expect("buckets");
        let recorder = builder.build_recorder();
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
