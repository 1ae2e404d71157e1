//! Parsers of single values, shared by the groups.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::builder::{PossibleValue, TypedValueParser};

use crate::model_name::ModelName;
use crate::owner::User;

/// Parses the address and the port to listen on.
///
/// # Errors
/// The expected form.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let expected = "expected an IP address and a port, as in 127.0.0.1:10200";
    text.trim().parse().map_err(|_| expected.to_owned())
}

/// Checks a model's name, and returns it as it is spelled, without the blanks around it.
///
/// # Errors
/// Why Ollama would not take the name.
pub(super) fn model_name(text: &str) -> Result<String, String> {
    ModelName::parse(text).map_err(|error| error.to_string())?;
    Ok(text.trim().to_owned())
}

/// Parses the name of a user, without the blanks around it.
///
/// # Errors
/// Why the name cannot be the subject of a token.
pub(super) fn user_name(text: &str) -> Result<String, String> {
    let name = text.trim();
    match User::local(name) {
        Some(_) => Ok(name.to_owned()),
        None => Err("a user's name has 1 to 255 bytes and no control characters".to_owned()),
    }
}

/// Parses how long a token is valid: a number and a unit, at most a year.
///
/// # Errors
/// The expected form.
pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    const LONGEST: u64 = 366 * 86_400;
    let text = text.trim();
    let unit = |unit| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        _ => None,
    };
    let seconds = text
        .char_indices()
        .last()
        .and_then(|(at, last)| text[..at].parse::<u64>().ok()?.checked_mul(unit(last)?));
    let within = seconds.filter(|seconds| (1..=LONGEST).contains(seconds));
    within
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a time of at most 366 days, as in 90s, 15m, 8h or 30d".to_owned())
}

/// Returns a parser of whole seconds within bounds.
pub(super) fn seconds(range: RangeInclusive<u64>) -> impl TypedValueParser<Value = Duration> {
    trimmed(clap::value_parser!(u64).range(range).map(Duration::from_secs))
}

/// Returns a parser of whole milliseconds within bounds.
pub(super) fn milliseconds(range: RangeInclusive<u64>) -> impl TypedValueParser<Value = Duration> {
    trimmed(clap::value_parser!(u64).range(range).map(Duration::from_millis))
}

/// Returns a parser of a list's entries that accepts blank entries, too; [`entries`] drops them.
pub(super) fn or_blank(
    parse: fn(&str) -> Result<String, String>,
) -> impl Fn(&str) -> Result<String, String> + Clone {
    move |text| if text.trim().is_empty() { Ok(String::new()) } else { parse(text) }
}

/// Returns the entries of a list without the empty ones.
pub(super) fn entries(list: &[String]) -> Vec<String> {
    list.iter().filter(|entry| !entry.is_empty()).cloned().collect()
}

/// Returns a parser that skips blanks around a value, as compose files and editors leave them.
pub(super) fn trimmed<P: TypedValueParser>(parser: P) -> Trimmed<P> {
    Trimmed(parser)
}

/// A parser that skips blanks around a value.
#[derive(Clone)]
pub(super) struct Trimmed<P>(P);

impl<P: TypedValueParser> TypedValueParser for Trimmed<P> {
    type Value = P::Value;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<P::Value, clap::Error> {
        let value = value.to_str().map_or(value, |text| OsStr::new(text.trim()));
        self.0.parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}
