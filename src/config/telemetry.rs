//! Settings of logs and spans.

use std::path::Path;

use clap::builder::{BoolishValueParser, EnumValueParser};
use clap::{Args, ValueEnum};
use reqwest::Url;
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::otel::{Collector, OtelVariables};
use super::secrets::{OfFile, of_file};
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

    /// Filter of log lines: levels, alone or as target=level, separated by commas
    #[arg(long, env = "JARVIS_LOG", value_name = "FILTER", default_value = "info,fred=error")]
    #[arg(value_parser = log_filter)]
    pub log: Targets,

    /// OpenTelemetry collector that gets spans, over HTTP at /v1/traces where the URL has no path; the
    /// standard variables OTEL_... also count; where absent, no spans are sent
    #[arg(long, env = "JARVIS_OTLP_URL", hide_env_values = true, value_name = "URL", value_parser = http_url)]
    pub otlp_url: Option<Url>,

    /// File with the URL of the collector, instead of the variable
    #[arg(long, env = "JARVIS_OTLP_URL_FILE", value_name = "FILE", value_parser = of_file(http_url))]
    pub otlp_url_file: Option<OfFile<Url>>,

    /// Traces a second of this replica that clients may have sampled by their traceparent, beyond those
    /// that the sampler chooses
    #[arg(long, env = "JARVIS_CLIENT_TRACES", value_name = "NUMBER", default_value = "1")]
    #[arg(value_parser = trimmed(clap::value_parser!(u32).range(0..=1000)))]
    client_traces: u32,

    /// Whether spans have the content of conversations: the question and the answer, 4 KiB of each
    #[arg(long, env = "JARVIS_TRACE_CONTENT", value_name = "BOOL", default_value = "false")]
    #[arg(value_parser = trimmed(BoolishValueParser::new()), action = clap::ArgAction::Set)]
    trace_content: bool,

    /// The standard variables of OpenTelemetry
    #[arg(skip)]
    pub(super) otel: OtelVariables,

    /// Record no metrics and no spans, to measure what they cost
    #[arg(
        long,
        env = "JARVIS_UNOBSERVED",
        hide = true,
        value_name = "BOOL",
        default_value = "false"
    )]
    #[arg(value_parser = trimmed(BoolishValueParser::new()), action = clap::ArgAction::Set)]
    unobserved: bool,
}

impl TelemetrySettings {
    /// Returns whether metrics are recorded.
    pub fn records_metrics(&self) -> bool {
        !self.unobserved
    }

    /// Returns the collector of spans, wherever its address comes from; none where no spans are sent.
    pub fn collector(&self) -> Option<Collector> {
        let collector = self.otel.collector(self.url(), self.client_traces, self.trace_content);
        collector.filter(|_| !self.unobserved)
    }

    /// Checks settings together that are valid each.
    ///
    /// # Errors
    /// The fault.
    pub(super) fn check(&self) -> Result<(), String> {
        self.otel.check(self.url())
    }

    fn url(&self) -> Option<&Url> {
        self.otlp_url.as_ref().or(self.otlp_url_file.as_ref().map(|file| &file.value))
    }

    /// Returns the files that secrets were read from.
    pub(super) fn secret_files(&self) -> impl Iterator<Item = &Path> {
        self.otlp_url_file.iter().map(OfFile::path).chain(self.otel.header_file())
    }

    /// Returns the passwords in the collector's URL, and the values of its headers.
    pub(super) fn passwords(&self) -> Vec<String> {
        let of_url = self.url().into_iter().flat_map(|url| passwords(url.as_str()));
        of_url.chain(self.otel.secrets()).collect()
    }
}

/// Parses the directives of a filter of log lines. Empty ones count as absent.
///
/// # Errors
/// The expected form.
pub fn log_filter(text: &str) -> Result<Targets, String> {
    let directives: Vec<&str> =
        text.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
    let filter = directives.join(",").parse().ok();
    filter
        .filter(|_| !directives.is_empty() && directives.into_iter().all(is_directive))
        .ok_or_else(|| {
            "expected off, error, warn, info, debug or trace, alone or as target=level, and commas \
             between them, as in info,fred=error"
                .to_owned()
        })
}

/// Returns whether a directive is a level, or a target with a level. The library takes any other
/// text for the name of a target, of which it logs everything.
fn is_directive(directive: &str) -> bool {
    let (target, level) = match directive.split_once('=') {
        Some((target, level)) => (Some(target), level),
        None => (None, directive),
    };
    let is_path = |target: &str| {
        !target.is_empty()
            && target
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || "_:-.".contains(letter))
    };
    target.is_none_or(is_path) && !level.is_empty() && level.parse::<LevelFilter>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_filter_is_levels_and_targets_with_levels() {
        for (text, filter) in [
            ("info", "info"),
            (" INFO ", "info"),
            ("off", "off"),
            ("3", "info"),
            ("info,fred=error", "info,fred=error"),
            ("info, fred=error,", "info,fred=error"),
            ("jarvis::api=debug,warn", "jarvis::api=debug,warn"),
        ] {
            let expected = filter.parse::<Targets>().expect(filter);
            assert_eq!(log_filter(text), Ok(expected), "{text}");
        }
        for text in [
            "in fo",
            "infoo",
            "jarvis",
            "99",
            ",",
            "=",
            "a=b",
            "jarvis=",
            "=info",
            "info;fred=error",
            "warn jarvis=debug",
            "fred=err or",
            "true",
            "[turn",
            "[turn]=debug",
            "jarvis[{model}]=debug",
            "a=b=info",
        ] {
            let refused = log_filter(text).expect_err(text);
            assert!(refused.contains("info,fred=error"), "{text}: {refused}");
        }
    }
}
