//! The filter of log lines, as operators read and change it while the process runs.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::api::state::Shared;
use crate::config::log_filter;
use crate::http::extract::body::{JsonBody, ReadBody};
use crate::http::extract::fields::{FieldError, Fields};
use crate::http::extract::object::Object;
use crate::telemetry::{FilterInForce, LogFilter};

/// Characters of a filter, at most.
const FILTER_LENGTH: usize = 1000;
/// How long a change is in force, in seconds, where the operator does not say.
const DEFAULT_SECONDS: i64 = 600;
/// The longest time for which a change is in force, in seconds.
const LONGEST_SECONDS: i64 = 3600;

/// The filter in force.
#[derive(Serialize)]
pub(super) struct LogLevel {
    /// The filter, in the form of `--log`.
    filter: String,
    /// The filter of the settings.
    default: String,
    /// Seconds until the filter of the settings is in force again.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_left: Option<u64>,
}

impl LogLevel {
    fn of(log: &LogFilter) -> Json<Self> {
        let FilterInForce { filter, default, left } = log.in_force();
        Json(Self {
            filter: filter.to_string(),
            default: default.to_string(),
            seconds_left: left.map(|left| left.as_secs_f64().ceil() as u64),
        })
    }
}

/// Returns the filter in force.
pub(super) async fn read(State(shared): State<Shared>) -> Json<LogLevel> {
    LogLevel::of(&shared.log_filter)
}

/// A filter that is to be in force, and for how long.
pub(super) struct RequestedFilter {
    filter: String,
    seconds: i64,
}

impl ReadBody for RequestedFilter {
    fn read(object: &Object) -> Result<Self, Vec<FieldError>> {
        let mut fields = Fields::new("body", object);
        let filter = fields.required_text("filter", FILTER_LENGTH).to_owned();
        let seconds = fields.integer("seconds", 1, LONGEST_SECONDS).unwrap_or(DEFAULT_SECONDS);
        if let (Err(expected), false) = (log_filter(&filter), fields.is_refused("filter")) {
            fields.refuse("filter", "value_error", expected);
        }
        fields.finish(Self { filter, seconds })
    }
}

/// Puts a filter in force: `filter`, for `seconds`.
pub(super) async fn change(
    State(shared): State<Shared>,
    JsonBody(RequestedFilter { filter, seconds }): JsonBody<RequestedFilter>,
) -> Json<LogLevel> {
    if let Ok(filter) = log_filter(&filter) {
        shared.log_filter.change(filter, Duration::from_secs(seconds.unsigned_abs()));
    }
    LogLevel::of(&shared.log_filter)
}

/// Puts the filter of the settings in force again.
pub(super) async fn reset(State(shared): State<Shared>) -> Json<LogLevel> {
    shared.log_filter.reset();
    LogLevel::of(&shared.log_filter)
}
