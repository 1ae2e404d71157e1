//! Settings of logs and spans.

use clap::builder::EnumValueParser;
use clap::{Args, ValueEnum};
use reqwest::Url;
use tracing_subscriber::EnvFilter;

use super::url::{http_url, passwords};
use super::values::trimmed;

/// The format of log lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// Plain text, for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The settings of logs and spans.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Telemetry")]
pub struct TelemetrySettings {
    /// Log lines for people (text) or machines (json)
    #[arg(long, env = "JARVIS_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    #[arg(value_parser = trimmed(EnumValueParser::<LogFormat>::new()))]
    pub log_format: LogFormat,

    /// Filter of log lines, as tracing's directives
    #[arg(long, env = "JARVIS_LOG", value_name = "FILTER", default_value = "info,fred=error")]
    #[arg(value_parser = log_filter)]
    pub log: String,

    /// OpenTelemetry collector that gets spans over HTTP; where absent, no spans are sent
    #[arg(long, env = "JARVIS_OTLP_URL", hide_env_values = true, value_name = "URL", value_parser = http_url)]
    pub otlp_url: Option<Url>,
}

impl TelemetrySettings {
    /// Returns the passwords in the collector's URL.
    pub(super) fn passwords(&self) -> Vec<String> {
        self.otlp_url.iter().flat_map(|url| passwords(url.as_str())).collect()
    }
}

/// Checks the directives of a log filter.
///
/// # Errors
/// What is expected.
fn log_filter(text: &str) -> Result<String, String> {
    let text = text.trim();
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected directives, as in info,fred=error".to_owned()),
    }
}
