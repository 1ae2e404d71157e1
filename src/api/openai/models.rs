//! The models of all hosts, in OpenAI's dialect.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use chrono::DateTime;
use serde::Serialize;
use utoipa::ToSchema;

use super::shapes::ErrorReply;
use crate::api::state::Shared;
use crate::generation::ModelInfo;
use crate::http::problem::Problem;
use crate::model_name::ModelName;

/// The path of a model, up to its name.
const PATH: &str = "/v1/models/";

/// A model.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiModel)]
pub struct ModelObject {
    /// The name, such as `tinyllama:latest`.
    id: String,
    /// Always `model`.
    object: &'static str,
    /// When the model last changed, in seconds since 1970; 0 where its host does not report it.
    created: i64,
    /// Always `library`.
    owned_by: &'static str,
}

impl From<ModelInfo> for ModelObject {
    fn from(model: ModelInfo) -> Self {
        let created = DateTime::parse_from_rfc3339(&model.modified);
        let created = created.map_or(0, |time| time.timestamp());
        Self { id: model.name, object: "model", created, owned_by: "library" }
    }
}

/// The models of all hosts.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiModelList)]
pub struct ModelList {
    /// Always `list`.
    object: &'static str,
    /// The models, by name.
    data: Vec<ModelObject>,
}

/// Returns the models of all hosts.
#[utoipa::path(
    get, path = "/v1/models", tag = "openai", operation_id = "openai_models",
    responses((status = 200, body = ModelList), ErrorReply),
)]
pub async fn list(State(shared): State<Shared>) -> Result<Json<ModelList>, Problem> {
    let data = shared.models().await?.into_iter().map(ModelObject::from).collect();
    Ok(Json(ModelList { object: "list", data }))
}

/// Returns one model, however its name is spelled.
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "openai", operation_id = "openai_model",
    params(("model" = String, Path, description = "The name; it may hold slashes")),
    responses((status = 200, body = ModelObject), ErrorReply),
)]
pub async fn retrieve(
    State(shared): State<Shared>,
    uri: Uri,
) -> Result<Json<ModelObject>, Problem> {
    let name = uri.path().strip_prefix(PATH).unwrap_or_default();
    let name = urlencoding::decode(name).map_or_else(|_| name.to_owned(), Into::into);
    let models = shared.models().await?;
    let found = models.into_iter().find(|model| ModelName::same(&model.name, &name));
    let Some(found) = found else {
        let detail = "No model host has this model; GET /v1/models lists the models.";
        return Err(Problem::new(StatusCode::NOT_FOUND, "model_not_found", detail));
    };
    Ok(Json(found.into()))
}
