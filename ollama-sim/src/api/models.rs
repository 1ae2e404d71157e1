//! Models: the stored ones, the loaded ones, and their names.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use super::read;
use crate::error::ApiError;
use crate::generation::LINES;
use crate::models::Model;
use crate::simulator::Simulator;
use crate::template;

const FAMILY: &str = "llama";

/// Reads the name of a model, under either key.
#[derive(Deserialize)]
pub struct Named {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    stream: Option<bool>,
}

impl Named {
    fn name(self) -> String {
        self.model.filter(|model| !model.is_empty()).or(self.name).unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Copy {
    #[serde(default)]
    source: String,
    #[serde(default)]
    destination: String,
}

fn details() -> Value {
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": FAMILY,
        "families": [FAMILY],
        "parameter_size": "1B",
        "quantization_level": "Q4_0",
    })
}

fn written(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// `GET /api/tags`.
pub async fn tags(State(server): State<Arc<Simulator>>) -> Json<Value> {
    let models: Vec<_> = server
        .models
        .list()
        .iter()
        .map(|model| {
            json!({
                "name": model.name,
                "model": model.name,
                "modified_at": written(model.modified_at),
                "size": model.size(),
                "digest": model.digest(),
                "details": details(),
            })
        })
        .collect();
    Json(json!({"models": models}))
}

/// `GET /api/tags` as no Ollama should list its models: first entries without a usable name, and
/// then the models without their other fields.
pub fn odd_tags(server: &Simulator) -> Json<Value> {
    let mut models = vec![
        json!({"size": 1, "digest": ""}),
        json!({"name": null, "model": null}),
        json!({"name": "", "size": "", "modified_at": null}),
        json!({"name": 5}),
        json!(null),
        json!([]),
    ];
    let odd = |model: &Model| json!({"name": model.name, "size": "", "modified_at": null, "digest": null, "details": []});
    models.extend(server.models.list().iter().map(odd));
    Json(json!({"models": models}))
}

/// `GET /api/ps`.
pub async fn ps(State(server): State<Arc<Simulator>>) -> Json<Value> {
    // Ollama writes a time in the far future where a model is never unloaded.
    let never = DateTime::<Utc>::from_timestamp(9_999_999_999, 0).unwrap_or_default();
    let models: Vec<_> = server
        .models
        .loaded()
        .iter()
        .map(|loaded| {
            let model = &loaded.model;
            json!({
                "name": model.name,
                "model": model.name,
                "size": model.size(),
                "size_vram": 0,
                "digest": model.digest(),
                "details": details(),
                "expires_at": written(loaded.expires_at.unwrap_or(never)),
                "context_length": loaded.num_ctx,
            })
        })
        .collect();
    Json(json!({"models": models}))
}

/// `POST /api/show`.
pub async fn show(
    State(server): State<Arc<Simulator>>,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let model = find(&server, &body)?;
    let mut capabilities = vec![if model.embeds() { "embedding" } else { "completion" }];
    if model.thinks() {
        capabilities.push("thinking");
    }
    let context_length = format!("{FAMILY}.context_length");
    Ok(Json(json!({
        "template": template::CHATML,
        "details": details(),
        "model_info": {
            "general.architecture": FAMILY,
            "general.parameter_count": 1_100_048_384_u64,
            context_length: server.config.model_ctx,
        },
        "capabilities": capabilities,
        "modified_at": written(model.modified_at),
    })))
}

/// `POST /api/copy`.
pub async fn copy(
    State(server): State<Arc<Simulator>>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let request: Copy = read(&body)?;
    if request.destination.is_empty() {
        let text = format!("destination {:?} is invalid", request.destination);
        return Err(ApiError::BadRequest(text));
    }
    if server.models.copy(&request.source, &request.destination) {
        Ok(StatusCode::OK)
    } else {
        Err(ApiError::ModelNotFound(request.source))
    }
}

/// `DELETE /api/delete`.
pub async fn delete(
    State(server): State<Arc<Simulator>>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let name = read::<Named>(&body)?.name();
    if server.models.delete(&name) {
        Ok(StatusCode::OK)
    } else {
        Err(ApiError::ModelNotFound(name))
    }
}

/// `POST /api/pull`: only a stored model can be pulled.
pub async fn pull(State(server): State<Arc<Simulator>>, body: Bytes) -> Result<Response, ApiError> {
    let request: Named = read(&body)?;
    let stream = request.stream.unwrap_or(true);
    let model = server.models.get(&request.name());
    if !stream {
        return match model {
            Some(_) => Ok(Json(json!({"status": "success"})).into_response()),
            None => Err(ApiError::Internal(NO_MANIFEST.to_owned())),
        };
    }
    let mut lines = vec![json!({"status": "pulling manifest"})];
    match model {
        Some(model) => {
            let (digest, size) = (model.digest(), model.size());
            lines.push(json!({
                "status": format!("pulling {}", &digest[..12]),
                "digest": format!("sha256:{digest}"),
                "total": size,
                "completed": size,
            }));
            for status in ["verifying sha256 digest", "writing manifest", "success"] {
                lines.push(json!({"status": status}));
            }
        }
        None => lines.push(json!({"error": NO_MANIFEST})),
    }
    let mut body: Vec<String> = lines.iter().map(Value::to_string).collect();
    // The last line ends like the others.
    body.push(String::new());
    let body = body.join("\n");
    Ok(([(header::CONTENT_TYPE, LINES)], body).into_response())
}

const NO_MANIFEST: &str = "pull model manifest: file does not exist";

fn find(server: &Simulator, body: &Bytes) -> Result<Model, ApiError> {
    let name = read::<Named>(body)?.name();
    if name.is_empty() {
        return Err(ApiError::BadRequest("model is required".to_owned()));
    }
    server.models.get(&name).ok_or(ApiError::ModelNotFound(name))
}
