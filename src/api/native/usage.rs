//! The use that a caller has made of its limits.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::state::Shared;
use crate::http::middleware::LimitedCaller;
use crate::limits::Standing;

/// The use that a caller has made of its limits.
#[derive(Serialize, ToSchema)]
pub struct UsageReport {
    /// The caller: the subject of its token, or "anonymous".
    user_id: String,
    /// Every limit that applies to the caller.
    limits: Vec<LimitUsage>,
}

/// The use that a caller has made of one limit.
#[derive(Serialize, ToSchema)]
struct LimitUsage {
    /// The name of the limit, as in the header RateLimit.
    limit: &'static str,
    /// The unit that is counted: requests, turns, tokens, sessions or sockets.
    unit: &'static str,
    /// All of it.
    quota: u64,
    /// Seconds in which all of it comes back; null for what is open at a time.
    window_seconds: Option<u64>,
    /// The part of the quota that is in use.
    used: u64,
    /// The part of the quota that is left.
    remaining: u64,
    /// Seconds until all of it is back; null for what is open at a time.
    reset_seconds: Option<u64>,
}

/// Returns the use that the caller has made of its limits, this request included.
#[utoipa::path(
    get, path = "/api/v1/usage", tag = "service",
    responses((status = 200, body = UsageReport, description = "Every limit of the caller")),
)]
pub async fn usage(
    State(shared): State<Shared>,
    LimitedCaller(subject): LimitedCaller,
) -> Json<UsageReport> {
    let mut standings = shared.limits.usage(&subject).await;
    standings.extend(shared.permits.standing(&subject.source));
    let limits = standings.iter().map(usage_of).collect();
    Json(UsageReport { user_id: subject.owner.user_id().to_owned(), limits })
}

fn usage_of(standing: &Standing) -> LimitUsage {
    let kind = standing.kind;
    let window_seconds = kind.window().map(|window| window.as_secs());
    let reset = u64::try_from(standing.reset.as_micros().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    LimitUsage {
        limit: kind.name(),
        unit: kind.unit(),
        quota: standing.quota,
        window_seconds,
        used: standing.used,
        remaining: standing.remaining(),
        reset_seconds: window_seconds.map(|_| reset),
    }
}
