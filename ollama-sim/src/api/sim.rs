//! Routes that no Ollama has: statistics, the journal, and faults on request.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::read;
use crate::error::ApiError;
use crate::faults::Arming;
use crate::simulator::Simulator;
use crate::stats::Stats;

/// Handles `GET /sim/stats`.
pub async fn stats(State(server): State<Arc<Simulator>>) -> Json<Stats> {
    Json(server.counters.read())
}

/// Handles `GET /sim/requests`.
pub async fn requests(State(server): State<Arc<Simulator>>) -> Json<Value> {
    Json(json!({"requests": server.journal.list()}))
}

/// Handles `DELETE /sim/requests`.
pub async fn forget(State(server): State<Arc<Simulator>>) -> StatusCode {
    server.journal.clear();
    StatusCode::NO_CONTENT
}

/// Handles `GET /sim/faults`.
pub async fn armed(State(server): State<Arc<Simulator>>) -> Json<Value> {
    Json(json!({"armed": server.faults.armed()}))
}

/// Handles `POST /sim/faults`.
pub async fn arm(
    State(server): State<Arc<Simulator>>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let arming: Arming = read(&body)?;
    server.faults.arm(arming).map_err(|error| ApiError::BadRequest(error.to_string()))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Handles `DELETE /sim/faults`.
pub async fn disarm(State(server): State<Arc<Simulator>>) -> StatusCode {
    server.faults.clear();
    StatusCode::NO_CONTENT
}
