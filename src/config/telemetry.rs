//! Settings of logs and spans.

use clap::builder::EnumValueParser;
use clap::{Args, ValueEnum};
use reqwest::Url;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

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

/// Checks the directives of a log filter, and returns them without blanks between them.
///
/// # Errors
/// What is expected.
fn log_filter(text: &str) -> Result<String, String> {
    let directives: Vec<&str> =
        directives(text).into_iter().map(str::trim).filter(|text| !text.is_empty()).collect();
    let filter = directives.join(",");
    if !filter.is_empty()
        && directives.into_iter().all(is_directive)
        && EnvFilter::try_new(&filter).is_ok()
    {
        return Ok(filter);
    }
    Err("expected off, error, warn, info, debug or trace, alone or as target=level, and commas \
        between them, as in info,fred=error"
        .to_owned())
}

/// Splits a filter at the commas outside of brackets, which hold spans and their fields.
fn directives(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|letter| {
        match letter {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    })
    .collect()
}

/// Returns whether a directive is a level, or a target or span with a level. The library takes any
/// other text for the name of a target, which logs nothing.
fn is_directive(directive: &str) -> bool {
    let is_level = |text: &str| !text.is_empty() && text.parse::<LevelFilter>().is_ok();
    let (target, level) = match directive.rsplit_once('=').filter(|(_, end)| !end.contains(']')) {
        Some((target, level)) => (target, Some(level)),
        None => (directive, None),
    };
    let name = target.split('[').next().unwrap_or_default();
    let is_name =
        name.chars().all(|letter| letter.is_ascii_alphanumeric() || "_:-.".contains(letter));
    match level {
        Some(level) => is_name && !target.is_empty() && is_level(level),
        None => is_level(target) || is_name && target.ends_with(']'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_filter_is_levels_and_targets_with_levels() {
        for (text, filter) in [
            ("info", "info"),
            (" INFO ", "INFO"),
            ("off", "off"),
            ("3", "3"),
            ("info,fred=error", "info,fred=error"),
            ("info, fred=error,", "info,fred=error"),
            ("jarvis::api=debug,warn", "jarvis::api=debug,warn"),
            ("[turn{model=a}]=debug,warn", "[turn{model=a}]=debug,warn"),
            ("jarvis[turn]", "jarvis[turn]"),
        ] {
            assert_eq!(log_filter(text).as_deref(), Ok(filter), "{text}");
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
            "in fo[turn]=debug",
        ] {
            let refused = log_filter(text).expect_err(text);
            assert!(refused.contains("info,fred=error"), "{text}: {refused}");
        }
    }
}
