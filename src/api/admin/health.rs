//! Health, readiness and metrics of this replica, and the health of Redis and the model hosts.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::responses::Unavailable;
use crate::api::state::Shared;
use crate::config::SignInMode;
use crate::generation::{ModelInfo, SubmitError};
use crate::http::middleware;
use crate::http::problem::{Problem, ProblemDetails};
use crate::http::rate_limit::Standings;
use crate::limits::Standing;
use crate::readiness::NotReady;
use crate::session::model::rfc3339;
use crate::sign_in::SignInError;
use crate::source::Source;
use crate::telemetry::metric;
use crate::web;

/// How long a health reply waits for the model hosts.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
const APP: &str = "jarvis";
/// Why callers get no metrics where they have to sign in.
const CLOSED_METRICS: &str = "The metrics are for operators: set JARVIS_METRICS_TOKEN and send it, or ask \
    the port of JARVIS_ADMIN_LISTEN.";
/// The names of the services in health replies, and of the replica itself.
const REDIS: &str = "redis";
const OLLAMA: &str = "ollama";
const REPLICA: &str = "replica";

/// The name and the version of the service.
#[derive(Serialize, ToSchema)]
pub struct Root {
    app: &'static str,
    version: &'static str,
    status: &'static str,
    docs: &'static str,
    api: &'static str,
}

/// Returns the name and the version of the service, or its page to a browser that asks for HTML.
#[utoipa::path(
    get, path = "/", tag = "service",
    responses(
        (status = 200, content((Root = "application/json"), (String = "text/html"))),
        (status = 304, description = "The browser has the page of this `ETag`"),
    ),
)]
pub async fn root(headers: HeaderMap) -> Response {
    let mut response = if web::wants_page(&headers) {
        web::page(&headers)
    } else {
        let root = Root {
            app: APP,
            version: env!("CARGO_PKG_VERSION"),
            status: "operational",
            docs: "/docs",
            api: "/api/v1",
        };
        Json(root).into_response()
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept"));
    response
}

/// The reply of a replica that is alive.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
pub struct Liveness {
    status: &'static str,
    app: &'static str,
}

/// Reports that this replica is alive.
#[utoipa::path(get, path = "/health", tag = "service", responses((status = 200, body = Liveness)))]
pub async fn health() -> Json<Liveness> {
    Json(Liveness { status: "healthy", app: APP })
}

/// Reports that this replica is alive, whatever the state of Redis and the model hosts.
#[utoipa::path(get, path = "/health/live", tag = "service", responses((status = 200, body = Liveness)))]
pub async fn live() -> Json<Liveness> {
    health().await
}

/// The reply of a replica that is ready for requests.
#[derive(Serialize, ToSchema)]
pub struct Ready {
    /// Always ready.
    status: &'static str,
    app: &'static str,
    #[serde(skip_serializing_if = "Problems::is_empty")]
    problems: Problems,
}

/// The problem of each service, in a few words.
type Problems = BTreeMap<&'static str, String>;

/// Reports whether this replica is ready. It is not while it drains, before a turn could be accepted
/// with Redis for the first time, when none could for `--redis-patience`, and when an essential task
/// died.
#[utoipa::path(
    get, path = "/health/ready", tag = "service",
    responses((status = 200, body = Ready), Unavailable),
)]
pub async fn ready(State(shared): State<Shared>) -> Result<Json<Ready>, Problem> {
    if let Some(reason) = shared.readiness.not_ready() {
        return Err(reason.into());
    }
    let problems = shared.readiness.redis_trouble().map(|trouble| (REDIS, trouble));
    Ok(Json(Ready { status: "ready", app: APP, problems: problems.into_iter().collect() }))
}

/// The health of each service that this replica depends on.
#[derive(Serialize, ToSchema)]
pub struct Detailed {
    /// healthy; degraded where a service has a problem and the replica is ready; unhealthy.
    status: &'static str,
    services: BTreeMap<&'static str, bool>,
    healthy_count: usize,
    total_services: usize,
    #[serde(skip_serializing_if = "Problems::is_empty")]
    problems: Problems,
}

/// Reports the health of each service that this replica depends on.
#[utoipa::path(
    get, path = "/health/detailed", tag = "service",
    responses((status = 200, body = Detailed), (status = 503, body = Detailed)),
)]
pub async fn detailed(State(shared): State<Shared>) -> Response {
    let Services { redis, models } = services(&shared).await;
    let services = BTreeMap::from([(REDIS, redis.is_none()), (OLLAMA, models.is_ok())]);
    let healthy_count = services.values().filter(|healthy| **healthy).count();
    let total_services = services.len();
    let mut problems = Problems::new();
    problems.extend(redis.map(|trouble| (REDIS, trouble)));
    problems.extend(models.err().map(|problem| (OLLAMA, problem.detail)));
    let not_ready = shared.readiness.not_ready();
    match &not_ready {
        Some(NotReady::Draining) => drop(problems.insert(REPLICA, "draining".to_owned())),
        Some(NotReady::TaskDied(task)) => {
            problems.insert(REPLICA, format!("the task \"{task}\" died"));
        }
        Some(NotReady::Redis(_) | NotReady::RedisFull) | None => {}
    }
    let status = match (&not_ready, problems.is_empty()) {
        (Some(_), _) => "unhealthy",
        (None, false) => "degraded",
        (None, true) => "healthy",
    };
    let body = Json(Detailed { status, services, healthy_count, total_services, problems });
    if not_ready.is_none() {
        return body.into_response();
    }
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, body).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    response
}

/// Whether a turn would be answered.
#[derive(Serialize, ToSchema)]
pub struct ChatHealth {
    /// healthy or unhealthy.
    status: &'static str,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Reports whether a turn would be answered: healthy where `/health/detailed` is.
#[utoipa::path(
    get, path = "/api/v1/chat/health", tag = "service",
    responses((status = 200, body = ChatHealth)),
)]
pub async fn chat_health(State(shared): State<Shared>) -> Json<ChatHealth> {
    let Services { redis, models } = services(&shared).await;
    let checked = match (shared.readiness.not_ready(), redis, models) {
        (Some(reason), ..) => Err(Problem::from(reason)),
        (None, Some(_), _) if shared.readiness.is_store_full() => Err(Problem::store_full()),
        (None, Some(trouble), _) => Err(Problem::redis_unusable(&trouble)),
        (None, None, models) => models,
    };
    let timestamp = rfc3339(&Utc::now());
    Json(match checked {
        Ok(models) => {
            let model_count = Some(models.len());
            ChatHealth { status: "healthy", timestamp, model_count, error: None }
        }
        Err(problem) => {
            let error = Some(problem.detail);
            ChatHealth { status: "unhealthy", timestamp, model_count: None, error }
        }
    })
}

/// The state of the services that this replica depends on.
struct Services {
    /// The reason for which no turn can be accepted with Redis.
    redis: Option<String>,
    /// The models, or the problem of the model hosts.
    models: Result<Vec<ModelInfo>, Problem>,
}

async fn services(shared: &Shared) -> Services {
    let hosts = shared.generations.model_host_count();
    let models = async {
        let (hosts, models) = tokio::join!(hosts, shared.models());
        if hosts > 0 { models } else { Err(SubmitError::NoModelHost.into()) }
    };
    let models = tokio::time::timeout(PROBE_LIMIT, models).await;
    Services {
        redis: shared.readiness.redis_trouble(),
        models: models.unwrap_or_else(|_| Err(SubmitError::NoModelHost.into())),
    }
}

/// Returns the metrics of this replica in Prometheus's text format. Without a token of their own they are
/// open where callers need not sign in, and then cost their address a request; else they are closed.
#[utoipa::path(
    get, path = "/metrics", tag = "service",
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = 401, body = ProblemDetails, content_type = "application/problem+json",
            description = "The request has not the token of the metrics, or there is none and callers have \
                to sign in"),
        (status = 429, body = ProblemDetails, content_type = "application/problem+json",
            description = "The address sent as many requests as it may"),
        (status = 503, body = ProblemDetails, content_type = "application/problem+json",
            description = "The replica holds as many bytes of unread replies as it may"),
    ),
)]
pub async fn metrics(
    State(shared): State<Shared>,
    source: Source,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let standings = open_metrics(&shared, &source, &headers).await?;
    let mut response = rendered(&shared);
    response.extensions_mut().insert(Standings(standings));
    Ok(response)
}

/// Returns the metrics to an operator, whom the token of the metrics alone may keep out.
pub async fn operator_metrics(
    State(shared): State<Shared>,
    source: Source,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    check_metrics_token(&shared, &source, &headers).await?;
    Ok(rendered(&shared))
}

/// Admits a request for the metrics on the port of callers, and returns what it leaves of the limits of
/// its address.
async fn open_metrics(
    shared: &Shared,
    source: &Source,
    headers: &HeaderMap,
) -> Result<Vec<Standing>, Problem> {
    check_metrics_token(shared, source, headers).await?;
    if shared.settings.metrics_token.is_some() {
        return Ok(Vec::new());
    }
    if shared.sign_in.mode() == SignInMode::Required {
        // A caller that is signed in is no operator.
        let error = SignInError::Required;
        let problem = Box::pin(middleware::refuse(&shared.limits, source, &error)).await;
        return Err(match problem.status {
            StatusCode::UNAUTHORIZED => Problem { detail: CLOSED_METRICS.to_owned(), ..problem },
            _ => problem,
        });
    }
    if source.is_limited() && !shared.source_key.is_agreed() {
        // Its digest is by a key that no other replica has.
        return Ok(Vec::new());
    }
    let taken = Box::pin(shared.limits.take_request(source)).await;
    Ok(taken.map_err(|refusal| Problem::limited(&refusal))?.standings)
}

async fn check_metrics_token(
    shared: &Shared,
    source: &Source,
    headers: &HeaderMap,
) -> Result<(), Problem> {
    match shared.settings.metrics_token.as_ref().map(|expected| expected.check(headers)) {
        Some(Err(error)) => Err(middleware::refuse(&shared.limits, source, &error).await),
        _ => Ok(()),
    }
}

fn rendered(shared: &Shared) -> Response {
    metrics_process::Collector::default().collect();
    let is_ready = shared.readiness.not_ready().is_none();
    metrics::gauge!(metric::READY).set(f64::from(u8::from(is_ready)));
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, shared.metrics.render()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_not_to_be_ready_is_a_503_that_names_it_and_the_time_to_retry() {
        for (reason, code, words) in [
            (NotReady::Draining, "draining", "being replaced"),
            (NotReady::TaskDied("queue"), "task_died", "\"queue\""),
            (NotReady::Redis("read-only replica".into()), "store_unavailable", "read-only replica"),
            (NotReady::RedisFull, "store_full", "raise its maxmemory"),
        ] {
            let problem = Problem::from(reason);
            assert_eq!((problem.status, &*problem.code), (StatusCode::SERVICE_UNAVAILABLE, code));
            assert!(problem.detail.contains(words) && problem.retry_after.is_some(), "{problem:?}");
        }
    }
}
