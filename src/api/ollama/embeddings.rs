//! Embeddings: `/api/embed`, and the older `/api/embeddings`. They take slots and limits as turns do.

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::errors::{invalid, of_model};
use super::fields::{self, RawJsonObject, RequestFields};
use super::lines::nanoseconds;
use super::request;
use super::schema::{OllamaEmbedRequest, OllamaEmbeddingRequest};
use super::shapes::{HostErrorReply, ModelErrorReply, OllamaErrorReply};
use crate::api::embedding::{self, HeldRequest, TEXTS, VectorForm, VectorReply, WriteVector};
use crate::api::large_body::CONVERSATION_BYTES;
use crate::api::state::Shared;
use crate::generation::{EmbedKind, EmbedRequest, EmbedUsage};
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::limits::TurnPermit;

/// The vectors of texts.
#[derive(ToSchema)]
#[schema(as = OllamaEmbeddings)]
#[allow(dead_code, reason = "only its description is used: the vectors are written as they come")]
pub struct EmbedReply {
    /// The model, as the request spells it.
    model: String,
    /// One vector for each text.
    embeddings: Vec<Vec<f64>>,
    /// Nanoseconds from the request to the reply.
    total_duration: u64,
    /// Nanoseconds in which the host loaded the model.
    load_duration: u64,
    /// Tokens of the texts.
    prompt_eval_count: u64,
}

/// The vector of one text.
#[derive(ToSchema)]
#[schema(as = OllamaEmbedding)]
#[allow(dead_code, reason = "only its description is used: the vector is written as it comes")]
pub struct EmbeddingReply {
    /// The vector.
    embedding: Vec<f64>,
}

/// A request for vectors, read and checked, with its room.
struct VectorsRequest {
    model: String,
    held: HeldRequest,
}

/// Reads and checks the body of a request.
async fn read(
    request: Request,
    shared: &Shared,
    rest: fn(RequestFields<'_>) -> Result<EmbedRequest, Problem>,
) -> Result<VectorsRequest, Problem> {
    let read = move |body: &RawJsonObject| {
        let fields = RequestFields::new(&body.fields, "");
        Ok((request::model(fields)?, rest(fields)?))
    };
    let ((model, request), room) = fields::read(request, shared, CONVERSATION_BYTES, read).await?;
    Ok(VectorsRequest { model, held: HeldRequest { request, room } })
}

/// Reads what a request for the vectors of texts has in addition to its model.
fn embed_request(fields: RequestFields<'_>) -> Result<EmbedRequest, Problem> {
    Ok(EmbedRequest {
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
    })
}

/// Reads what a request for the vector of one text has in addition to its model.
fn embedding_request(fields: RequestFields<'_>) -> Result<EmbedRequest, Problem> {
    let prompt = fields.text("prompt")?.filter(|prompt| !prompt.is_empty());
    let texts = prompt.into_iter().map(str::to_owned).collect();
    Ok(EmbedRequest { kind: EmbedKind::Raw, texts, truncate: true, dimensions: None })
}

/// Returns the vectors of texts.
#[utoipa::path(
    post, path = "/api/embed", tag = "ollama", operation_id = "ollama_embed",
    request_body = OllamaEmbedRequest,
    responses((status = 200, body = EmbedReply), OllamaErrorReply, ModelErrorReply, HostErrorReply),
)]
pub async fn embed(
    State(shared): State<Shared>,
    permit: TurnPermit,
    last_byte: LastByte,
    request: Request,
) -> Result<Response, Problem> {
    let VectorsRequest { model, held } = read(request, &shared, embed_request).await?;
    let started = Instant::now();
    let head = format!("{{\"model\":{},\"embeddings\":[", Value::from(&*model));
    let reply = VectorReply::new(&head, VectorForm::default(), AS_SENT);
    let embedded = embedding::vectors(&shared, permit, last_byte, &model, held, reply).await;
    let (reply, usage) = embedded.map_err(|problem| of_model(&model, problem))?;
    let EmbedUsage { tokens, load_duration } = usage;
    let total_duration = nanoseconds(started.elapsed());
    Ok(reply.end(&format!(
        "],\"total_duration\":{total_duration},\"load_duration\":{load_duration},\
         \"prompt_eval_count\":{tokens}}}"
    )))
}

/// Returns the vector of one text.
#[utoipa::path(
    post, path = "/api/embeddings", tag = "ollama", operation_id = "ollama_embeddings",
    request_body = OllamaEmbeddingRequest,
    responses((status = 200, body = EmbeddingReply), OllamaErrorReply, ModelErrorReply, HostErrorReply),
)]
pub async fn embeddings(
    State(shared): State<Shared>,
    permit: TurnPermit,
    last_byte: LastByte,
    request: Request,
) -> Result<Response, Problem> {
    let VectorsRequest { model, held } = read(request, &shared, embedding_request).await?;
    let tail = if held.request.texts.is_empty() { "[]}" } else { "}" };
    let reply = VectorReply::new("{\"embedding\":", VectorForm::default(), AS_SENT);
    let embedded = embedding::vectors(&shared, permit, last_byte, &model, held, reply).await;
    let (reply, _) = embedded.map_err(|problem| of_model(&model, problem))?;
    Ok(reply.end(tail))
}

/// Reads the texts: one, or a list.
fn texts(fields: RequestFields<'_>) -> Result<Vec<String>, Problem> {
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

/// Writes a vector as its host sent it.
const AS_SENT: WriteVector = |_, _, vector, to| {
    to.extend_from_slice(vector.get().as_bytes());
    Ok(())
};
