//! The routes.

mod chat;
mod embed;
mod generate;
mod inference;
mod models;
mod sim;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::error::ApiError;
use crate::fault::FaultKind;
use crate::generation::strike;
use crate::net::Connection;
use crate::simulator::Simulator;

/// Largest body, in bytes.
const BODY_LIMIT: usize = 8 << 20;

/// The version of Ollama whose behaviour the simulator follows.
const VERSION: &str = "0.33.0";

/// Returns all routes of one simulator.
pub fn router(server: Arc<Simulator>) -> Router {
    Router::new()
        .route("/", get(|| async { "Ollama is running" }))
        .route("/api/version", get(|| async { Json(json!({"version": VERSION})) }))
        .route("/api/tags", get(models::tags))
        .route("/api/ps", get(models::ps))
        .route("/api/show", post(models::show))
        .route("/api/copy", post(models::copy))
        .route("/api/delete", delete(models::delete))
        .route("/api/pull", post(models::pull))
        .layer(from_fn_with_state(Arc::clone(&server), faulty))
        .route("/api/chat", post(chat::chat))
        .route("/api/generate", post(generate::generate))
        .route("/api/embed", post(embed::embed))
        .route("/api/embeddings", post(embed::embeddings))
        .route("/sim/stats", get(sim::stats))
        .route("/sim/requests", get(sim::requests).delete(sim::forget))
        .route("/sim/faults", get(sim::armed).post(sim::arm).delete(sim::disarm))
        .fallback(|| async { (StatusCode::NOT_FOUND, "404 page not found") })
        .method_not_allowed_fallback(|| async {
            (StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed")
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(server)
}

/// Applies faults that are armed for a path other than those that generate.
async fn faulty(
    State(server): State<Arc<Simulator>>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(planned) = server.faults.take_armed(request.uri().path(), "") {
        match planned.fault.kind {
            FaultKind::Hang => std::future::pending().await,
            FaultKind::Odd => return models::odd_tags(&server).into_response(),
            FaultKind::Slow => tokio::time::sleep(Duration::from_millis(planned.fault.at)).await,
            _ => {
                if let Some(response) = strike(&connection, planned.fault).await {
                    return response;
                }
            }
        }
    }
    next.run(request).await
}

/// Reads a body as Ollama does: it ignores the content type.
fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    if body.is_empty() {
        return Err(ApiError::BadRequest("missing request body".to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| ApiError::BadRequest(error.to_string()))
}
