//! Embeddings: `/api/embed`, and the older `/api/embeddings`. They take slots and limits as turns do.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::errors::{invalid, of_model};
use super::fields::{Fields, JsonObject};
use super::lines::nanoseconds;
use super::request;
use super::schema::{OllamaEmbedRequest, OllamaEmbeddingRequest};
use super::shapes::ErrorReply;
use crate::api::embedding::{self, TEXTS};
use crate::api::state::Shared;
use crate::generation::{EmbedKind, EmbedRequest};
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::limits::TurnPermit;

/// The vectors of texts.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaEmbeddings)]
pub struct EmbedReply {
    /// The model, as the request spells it.
    model: String,
    /// One vector for each text.
    #[schema(value_type = Vec<Vec<f64>>)]
    embeddings: Box<RawValue>,
    /// Nanoseconds from the request to the reply.
    total_duration: u64,
    /// Nanoseconds in which the host loaded the model.
    load_duration: u64,
    /// Tokens of the texts.
    prompt_eval_count: u64,
}

/// The vector of one text.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaEmbedding)]
pub struct EmbeddingReply {
    /// The vector.
    #[schema(value_type = Vec<f64>)]
    embedding: Box<RawValue>,
}

/// Returns the vectors of texts.
#[utoipa::path(
    post, path = "/api/embed", tag = "ollama", operation_id = "ollama_embed",
    request_body = OllamaEmbedRequest,
    responses((status = 200, body = EmbedReply), ErrorReply),
)]
pub async fn embed(
    State(shared): State<Shared>,
    permit: TurnPermit,
    last_byte: LastByte,
    body: JsonObject,
) -> Result<Response, Problem> {
    let started = Instant::now();
    let fields = Fields::new(&body.fields, "");
    let model = request::model(fields)?;
    let request = EmbedRequest {
        kind: EmbedKind::Normalised,
        texts: texts(fields)?,
        truncate: fields.flag("truncate")?.unwrap_or(true),
        dimensions: match fields.integer("dimensions")? {
            None | Some(0) => None,
            Some(length) => Some(
                u32::try_from(length)
                    .map_err(|_| fields.refuse("dimensions", "must be at least 1"))?,
            ),
        },
    };
    let vectors = embedding::vectors(&shared, permit, last_byte, &model, &request).await;
    let vectors = vectors.map_err(|problem| of_model(&model, problem))?;
    let (load_duration, prompt_eval_count) =
        vectors.as_ref().map_or((0, 0), |it| (it.load_duration(), it.tokens()));
    let embeddings = list(vectors.and_then(|vectors| vectors.embeddings), &request)?;
    let total_duration = nanoseconds(started.elapsed());
    let reply = EmbedReply { model, embeddings, total_duration, load_duration, prompt_eval_count };
    Ok(Json(reply).into_response())
}

/// Returns the vector of one text.
#[utoipa::path(
    post, path = "/api/embeddings", tag = "ollama", operation_id = "ollama_embeddings",
    request_body = OllamaEmbeddingRequest,
    responses((status = 200, body = EmbeddingReply), ErrorReply),
)]
pub async fn embeddings(
    State(shared): State<Shared>,
    permit: TurnPermit,
    last_byte: LastByte,
    body: JsonObject,
) -> Result<Response, Problem> {
    let fields = Fields::new(&body.fields, "");
    let model = request::model(fields)?;
    let prompt = fields.text("prompt")?.filter(|prompt| !prompt.is_empty());
    let texts = prompt.into_iter().map(str::to_owned).collect();
    let request = EmbedRequest { kind: EmbedKind::Raw, texts, truncate: true, dimensions: None };
    let vectors = embedding::vectors(&shared, permit, last_byte, &model, &request).await;
    let vectors = vectors.map_err(|problem| of_model(&model, problem))?;
    let embedding = list(vectors.and_then(|vectors| vectors.embedding), &request)?;
    Ok(Json(EmbeddingReply { embedding }).into_response())
}

/// Reads the texts: one, or a list.
fn texts(fields: Fields<'_>) -> Result<Vec<String>, Problem> {
    let list = match fields.value("input")? {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => return Ok(vec![text.clone()]),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(invalid("invalid input type")),
    };
    if list.len() > TEXTS {
        return Err(fields.refuse("input", &format!("must have at most {TEXTS} texts")));
    }
    let texts = list.iter().map(|text| text.as_str().map(str::to_owned));
    texts.collect::<Option<_>>().ok_or_else(|| invalid("invalid input type"))
}

/// Returns the list that a host sent; an empty one where it was not asked.
fn list(sent: Option<Box<RawValue>>, request: &EmbedRequest) -> Result<Box<RawValue>, Problem> {
    match sent {
        Some(list) if list.get().starts_with('[') => Ok(list),
        None if request.texts.is_empty() => {
            RawValue::from_string("[]".to_owned()).map_err(|_| Problem::internal())
        }
        _ => Err(embedding::none_sent()),
    }
}
