//! Embeddings: `/api/embed`, and the older `/api/embeddings`. They take slots and limits as turns do.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout};
use utoipa::ToSchema;

use super::errors::{invalid, of_model};
use super::fields::{Fields, JsonObject};
use super::lines::nanoseconds;
use super::request;
use super::schema::{OllamaEmbedRequest, OllamaEmbeddingRequest};
use super::shapes::ErrorReply;
use crate::api::state::Shared;
use crate::generation::{EmbedKind, EmbedRequest, Vectors};
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::lifecycle::Phase;
use crate::limits::TurnPermit;

/// Texts of one request, at most.
const TEXTS: usize = 256;

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
    let vectors = vectors(&shared, permit, last_byte, &model, &request).await?;
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
    let vectors = vectors(&shared, permit, last_byte, &model, &request).await?;
    let embedding = list(vectors.and_then(|vectors| vectors.embedding), &request)?;
    Ok(Json(EmbeddingReply { embedding }).into_response())
}

/// Reads the texts: one, or a list.
fn texts(fields: Fields<'_>) -> Result<Vec<String>, Problem> {
    let list = match fields.value("input") {
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

/// Returns the vectors from a host; none where there is no text, as with Ollama.
async fn vectors(
    shared: &Shared,
    permit: TurnPermit,
    last_byte: LastByte,
    model: &str,
    request: &EmbedRequest,
) -> Result<Option<Vectors>, Problem> {
    if let Some(refusal) = permit.refusal() {
        refusal.count();
        return Err(Problem::limited(refusal));
    }
    let embedded = async {
        if request.texts.is_empty() {
            shared.generations.check_model(model).await?;
            return Ok(None);
        }
        if let Some(refusal) = shared.readiness.refusal() {
            return Err(refusal.into());
        }
        let vectors = shared.generations.embed(&permit, model, request);
        tokio::select! {
            vectors = timeout(shared.settings.request_timeout, vectors) => {
                Ok(Some(vectors.map_err(|_| out_of_time())??))
            }
            () = shared.lifecycle.reached(Phase::Stopped) => Err(Problem::draining()),
            // A client that is gone looks like one that has sent its last byte.
            () = last_byte.received() => Err(gone()),
        }
    };
    match Box::pin(embedded).await {
        Ok(Some(vectors)) => {
            permit.keep();
            Ok(Some(vectors))
        }
        nothing => {
            permit.give_back().await;
            nothing.map_err(|problem| of_model(model, problem))
        }
    }
}

/// Returns the list that a host sent; an empty one where it was not asked.
fn list(sent: Option<Box<RawValue>>, request: &EmbedRequest) -> Result<Box<RawValue>, Problem> {
    match sent {
        Some(list) if list.get().starts_with('[') => Ok(list),
        None if request.texts.is_empty() => {
            RawValue::from_string("[]".to_owned()).map_err(|_| Problem::internal())
        }
        _ => {
            let detail = "The model host's reply has no embeddings.";
            Err(Problem::new(StatusCode::BAD_GATEWAY, "upstream_error", detail))
        }
    }
}

fn out_of_time() -> Problem {
    let detail = "The embeddings took too long; send fewer texts.";
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", detail)
}

/// The error that nobody reads.
pub(super) fn gone() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "body_unreadable", "the client is gone")
}
