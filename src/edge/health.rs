//! Whether this replica, Redis and the models' hosts are well, and what models there are.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use serde::Serialize;
use utoipa::ToSchema;

use super::Shared;
use super::problem::{Problem, ProblemDetails};
use crate::generation::ModelInfo;
use crate::session::model::rfc3339;

/// How long a probe waits for Redis, and for the models' hosts.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
const APP: &str = "jarvis";

/// What runs here.
#[derive(Serialize, ToSchema)]
pub struct Root {
    app: &'static str,
    version: &'static str,
    status: &'static str,
    docs: &'static str,
    api: &'static str,
}

/// What runs here.
#[utoipa::path(get, path = "/", tag = "service", responses((status = 200, body = Root)))]
pub async fn root() -> Json<Root> {
    Json(Root {
        app: APP,
        version: env!("CARGO_PKG_VERSION"),
        status: "operational",
        docs: "/docs",
        api: "/api/v1",
    })
}

/// That this replica answers.
#[derive(Serialize, ToSchema)]
pub struct Health {
    status: &'static str,
    app: &'static str,
}

/// That this replica answers.
#[utoipa::path(get, path = "/health", tag = "service", responses((status = 200, body = Health)))]
pub async fn health() -> Json<Health> {
    Json(Health { status: "healthy", app: APP })
}

/// For a liveness probe: it says nothing of what this replica depends on.
#[utoipa::path(get, path = "/health/live", tag = "service", responses((status = 200, body = Health)))]
pub async fn live() -> Json<Health> {
    health().await
}

/// For a readiness probe: fails while this replica drains, and without Redis.
#[utoipa::path(
    get, path = "/health/ready", tag = "service",
    responses(
        (status = 200, body = Health),
        (status = 503, body = ProblemDetails, content_type = "application/problem+json"),
    ),
)]
pub async fn ready(State(shared): State<Shared>) -> Result<Json<Health>, Problem> {
    if shared.drain.is_cancelled() {
        return Err(Problem::draining());
    }
    if !redis_answers(&shared).await {
        return Err(Problem::store_unavailable());
    }
    Ok(Json(Health { status: "ready", app: APP }))
}

/// What this replica depends on.
#[derive(Serialize, ToSchema)]
pub struct Detailed {
    /// healthy, degraded, or unhealthy where nothing can be done without what is missing.
    status: &'static str,
    services: BTreeMap<&'static str, bool>,
    healthy_count: usize,
    total_services: usize,
}

/// What this replica depends on, one by one.
#[utoipa::path(
    get, path = "/health/detailed", tag = "service",
    responses((status = 200, body = Detailed), (status = 503, body = Detailed)),
)]
pub async fn detailed(State(shared): State<Shared>) -> Response {
    let hosts = tokio::time::timeout(PROBE_LIMIT, shared.generations.model_host_count());
    let (redis, hosts) = tokio::join!(redis_answers(&shared), hosts);
    let services = BTreeMap::from([("redis", redis), ("ollama", hosts.is_ok_and(|n| n > 0))]);
    let healthy_count = services.values().filter(|healthy| **healthy).count();
    let total_services = services.len();
    let status = match (redis, healthy_count == total_services) {
        (false, _) => "unhealthy",
        (true, false) => "degraded",
        (true, true) => "healthy",
    };
    let body = Json(Detailed { status, services, healthy_count, total_services });
    if redis {
        return body.into_response();
    }
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, body).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    response
}

/// Whether there is a model to talk to.
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

/// Whether there is a model to talk to.
#[utoipa::path(
    get, path = "/api/v1/chat/health", tag = "service",
    responses((status = 200, body = ChatHealth)),
)]
pub async fn chat_health(State(shared): State<Shared>) -> Json<ChatHealth> {
    let timestamp = rfc3339(&Utc::now());
    let models = list(&shared).await;
    Json(match models {
        Ok(models) if redis_answers(&shared).await => ChatHealth {
            status: "healthy",
            timestamp,
            model_count: Some(models.len()),
            error: None,
        },
        Ok(_) => unhealthy(timestamp, &Problem::store_unavailable()),
        Err(problem) => unhealthy(timestamp, &problem),
    })
}

fn unhealthy(timestamp: String, problem: &Problem) -> ChatHealth {
    let error = Some(problem.detail.clone());
    ChatHealth { status: "unhealthy", timestamp, model_count: None, error }
}

/// The models of all hosts.
#[derive(Serialize, ToSchema)]
pub struct Models {
    models: Vec<ModelInfo>,
    count: usize,
}

/// The models of all hosts.
#[utoipa::path(
    get, path = "/api/v1/chat/models", tag = "models",
    responses(
        (status = 200, body = Models),
        (status = 503, body = ProblemDetails, content_type = "application/problem+json"),
    ),
)]
pub async fn chat_models(State(shared): State<Shared>) -> Result<Json<Models>, Problem> {
    let models = list(&shared).await?;
    Ok(Json(Models { count: models.len(), models }))
}

/// The models' names.
#[derive(Serialize, ToSchema)]
pub struct ModelNames {
    models: Vec<String>,
    count: usize,
}

/// The models' names.
#[utoipa::path(
    get, path = "/api/v1/models", tag = "models",
    responses(
        (status = 200, body = ModelNames),
        (status = 503, body = ProblemDetails, content_type = "application/problem+json"),
    ),
)]
pub async fn models(State(shared): State<Shared>) -> Result<Json<ModelNames>, Problem> {
    let models: Vec<_> = list(&shared).await?.into_iter().map(|model| model.name).collect();
    Ok(Json(ModelNames { count: models.len(), models }))
}

async fn list(shared: &Shared) -> Result<Vec<ModelInfo>, Problem> {
    // Whatever the reason, there is nothing to choose from now.
    shared.generations.models().await.map_err(|error| {
        let problem = Problem::from(error);
        Problem { status: StatusCode::SERVICE_UNAVAILABLE, ..problem }.retry_after(5)
    })
}

/// The metrics of this replica, as Prometheus reads them.
#[utoipa::path(
    get, path = "/metrics", tag = "service",
    responses((status = 200, body = String, content_type = "text/plain")),
)]
pub async fn metrics(State(shared): State<Shared>) -> Response {
    metrics_process::Collector::default().collect();
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, shared.metrics.render()).into_response()
}

async fn redis_answers(shared: &Shared) -> bool {
    matches!(tokio::time::timeout(PROBE_LIMIT, shared.store.ping()).await, Ok(Ok(())))
}
