//! The models of all hosts.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::responses::Unavailable;
use crate::api::state::Shared;
use crate::generation::ModelInfo;
use crate::http::problem::Problem;

/// The models of all hosts.
#[derive(Serialize, ToSchema)]
#[schema(as = Models)]
pub struct ModelList {
    models: Vec<ModelInfo>,
    count: usize,
    /// The model of a request that names none.
    default: String,
}

/// Returns the models of all hosts, and whether they take images.
#[utoipa::path(
    get, path = "/api/v1/chat/models", tag = "models",
    responses((status = 200, body = ModelList), Unavailable),
)]
pub async fn chat_models(State(shared): State<Shared>) -> Result<Json<ModelList>, Problem> {
    let models = shared.described_models().await?;
    let default = shared.settings.default_model.clone();
    let count = models.len();
    Ok(Json(ModelList { models, count, default }))
}

/// The names of the models of all hosts.
#[derive(Serialize, ToSchema)]
pub struct ModelNames {
    models: Vec<String>,
    count: usize,
}

/// Returns the names of the models of all hosts.
#[utoipa::path(
    get, path = "/api/v1/models", tag = "models",
    responses((status = 200, body = ModelNames), Unavailable),
)]
pub async fn models(State(shared): State<Shared>) -> Result<Json<ModelNames>, Problem> {
    let models: Vec<_> = shared.models().await?.into_iter().map(|model| model.name).collect();
    Ok(Json(ModelNames { count: models.len(), models }))
}
