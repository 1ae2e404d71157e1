//! The models of all hosts, in Ollama's dialect. Nothing that names a host or a file on it leaves.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::errors::of_model;
use super::fields::{self, RawJsonObject, RequestFields};
use super::request;
use super::schema::OllamaShowRequest;
use super::shapes::{HostErrorReply, ModelErrorReply, OllamaErrorReply};
use crate::api::state::Shared;
use crate::generation::{LoadedModel, ModelDetails, ModelInfo};
use crate::http::problem::Problem;

/// The release of Ollama whose API this front has. Clients choose by it what they may send.
const VERSION: &str = "0.33.0";
/// The parts of a description that describe the model, and nothing of its host.
const DESCRIBED: [&str; 9] = [
    "license",
    "parameters",
    "template",
    "system",
    "messages",
    "model_info",
    "projector_info",
    "capabilities",
    "modified_at",
];
/// The instructions of a model file that may name a file of the host.
const WITH_FILES: [&str; 2] = ["FROM", "ADAPTER"];

/// A version.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaVersion)]
pub struct VersionReply {
    /// The version of Ollama's API.
    version: &'static str,
}

/// Returns the version of Ollama whose API this is.
#[utoipa::path(
    get, path = "/api/version", tag = "ollama", operation_id = "ollama_version",
    responses((status = 200, body = VersionReply), OllamaErrorReply),
)]
pub async fn version() -> Json<VersionReply> {
    Json(VersionReply { version: VERSION })
}

/// A model.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaListedModel)]
pub struct ListedModel {
    /// The name, such as `tinyllama:latest`.
    name: String,
    /// The same.
    model: String,
    /// When the model last changed, RFC 3339; absent where its host does not report it.
    #[serde(skip_serializing_if = "String::is_empty")]
    modified_at: String,
    /// Bytes on disk.
    size: u64,
    /// The digest of weights and template.
    digest: String,
    /// The kind of the model.
    details: ModelDetails,
}

impl From<ModelInfo> for ListedModel {
    fn from(model: ModelInfo) -> Self {
        let ModelInfo { name, size, modified, digest, details, images: _ } = model;
        Self { model: name.clone(), name, modified_at: modified, size, digest, details }
    }
}

/// The models of all hosts.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaModels)]
pub struct ListedModels {
    models: Vec<ListedModel>,
}

/// Returns the models of all hosts, each once.
#[utoipa::path(
    get, path = "/api/tags", tag = "ollama", operation_id = "ollama_models",
    responses((status = 200, body = ListedModels), OllamaErrorReply),
)]
pub async fn tags(State(shared): State<Shared>) -> Result<Json<ListedModels>, Problem> {
    let models = shared.models().await?.into_iter().map(ListedModel::from).collect();
    Ok(Json(ListedModels { models }))
}

/// A model in memory.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaLoadedModel)]
pub struct RunningModel {
    /// The name, such as `tinyllama:latest`.
    name: String,
    /// The same.
    model: String,
    /// Bytes in memory.
    size: u64,
    /// The digest of weights and template.
    digest: String,
    /// The kind of the model.
    details: ModelDetails,
    /// When its host unloads it, RFC 3339; absent where the host does not report it.
    #[serde(skip_serializing_if = "String::is_empty")]
    expires_at: String,
    /// Bytes in the memory of GPUs.
    size_vram: u64,
    /// The context window in tokens.
    context_length: u64,
}

impl From<LoadedModel> for RunningModel {
    fn from(loaded: LoadedModel) -> Self {
        let LoadedModel { model, expires_at, size_vram, context_length } = loaded;
        Self {
            name: model.name.clone(),
            model: model.name,
            size: model.size,
            digest: model.digest,
            details: model.details,
            expires_at,
            size_vram,
            context_length,
        }
    }
}

/// The models that are in the memory of any host.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaLoadedModels)]
pub struct RunningModels {
    models: Vec<RunningModel>,
}

/// Returns the models that are in the memory of any host, each once.
#[utoipa::path(
    get, path = "/api/ps", tag = "ollama", operation_id = "ollama_loaded_models",
    responses((status = 200, body = RunningModels), OllamaErrorReply, HostErrorReply),
)]
pub async fn ps(State(shared): State<Shared>) -> Result<Json<RunningModels>, Problem> {
    let loaded = shared.generations.loaded_models().await?;
    Ok(Json(RunningModels { models: loaded.into_iter().map(RunningModel::from).collect() }))
}

/// The model that a request names.
pub struct ShowBody(String);

impl FromRequest<Shared> for ShowBody {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Problem> {
        let model = |body: &RawJsonObject| request::model(RequestFields::new(&body.fields, ""));
        let read = fields::read(request, shared, shared.settings.max_body_bytes, model).await;
        read.map(|(model, _)| Self(model))
    }
}

/// Returns the description of one model, from a host that has it.
#[utoipa::path(
    post, path = "/api/show", tag = "ollama", operation_id = "ollama_model",
    request_body = OllamaShowRequest,
    responses((status = 200, body = Object), OllamaErrorReply, ModelErrorReply, HostErrorReply),
)]
pub async fn show(
    State(shared): State<Shared>,
    ShowBody(model): ShowBody,
) -> Result<Json<Map<String, Value>>, Problem> {
    let described = shared.generations.describe_model(&model).await;
    let described = described.map_err(|error| of_model(&model, error.into()))?;
    Ok(Json(without_host(&model, described)))
}

/// Refuses what would change the models of a host for everybody.
pub async fn refuse_change() -> Problem {
    let detail = "This service does not change the models of its hosts; ask its operator.";
    Problem::new(StatusCode::FORBIDDEN, "models_read_only", detail)
}

/// Returns a description without what it says of the host.
fn without_host(model: &str, mut described: Map<String, Value>) -> Map<String, Value> {
    let mut kept = Map::new();
    if let Some(Value::String(file)) = described.get("modelfile") {
        kept.insert("modelfile".to_owned(), without_files(model, file).into());
    }
    let details = described.remove("details").and_then(|it| serde_json::from_value(it).ok());
    let details: ModelDetails = details.unwrap_or_default();
    let details = details.without_paths();
    kept.insert("details".to_owned(), serde_json::to_value(details).unwrap_or_default());
    for name in DESCRIBED {
        if let Some(value) = described.remove(name) {
            kept.insert(name.to_owned(), value);
        }
    }
    kept
}

/// Returns a model file whose instructions name the model instead of files of the host.
fn without_files(model: &str, file: &str) -> String {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let instruction = words.next().unwrap_or_default();
        let names_file = words.next().is_some_and(|name| name.contains(['/', '\\']));
        let is_from = WITH_FILES.iter().find(|known| known.eq_ignore_ascii_case(instruction));
        match is_from {
            Some(&"FROM") if names_file => format!("FROM {model}"),
            Some(instruction) if names_file => format!("# {instruction}"),
            _ => line.to_owned(),
        }
    };
    file.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_description_names_no_file_and_no_host() {
        let described = json!({
            "modelfile": "# Modelfile generated by \"ollama show\"\n# FROM m:latest\n\n\
                FROM /root/.ollama/models/blobs/sha256-1\nADAPTER C:\\models\\a\n\
                TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\nfrom other:1",
            "details": {"parent_model": "/root/.ollama/models/blobs/sha256-2", "family": "llama"},
            "remote_host": "http://10.0.0.1:11434", "remote_model": "x", "tensors": [],
            "model_info": {"general.architecture": "llama"}, "capabilities": ["completion"],
        });
        let described = described.as_object().expect("an object").clone();
        let kept = Value::Object(without_host("m", described));
        assert_eq!(
            kept["modelfile"],
            "# Modelfile generated by \"ollama show\"\n# FROM m:latest\n\nFROM m\n# ADAPTER\n\
             TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\nfrom other:1"
        );
        assert_eq!(kept["details"]["family"], "llama");
        assert_eq!(kept["capabilities"], json!(["completion"]));
        let text = kept.to_string();
        for leak in ["/root", "C:\\", "10.0.0.1", "remote"] {
            assert!(!text.contains(leak), "{leak}: {text}");
        }
    }
}
