//! `POST /api/embed`, and the older `/api/embeddings`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::inference::refused;
use super::read;
use crate::error::ApiError;
use crate::faults::Planned;
use crate::generation;
use crate::hash::fnv;
use crate::journal::Entry;
use crate::options::{KeepAlive, Options};
use crate::simulator::Simulator;
use crate::stats::count;
use crate::tokens::count_tokens;

#[derive(Deserialize)]
struct EmbedRequest {
    #[serde(default)]
    model: String,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    truncate: Option<bool>,
    #[serde(default)]
    dimensions: Option<usize>,
    #[serde(default)]
    options: Option<Map<String, Value>>,
    #[serde(default)]
    keep_alive: Option<Value>,
}

/// The outcome of a request: its vectors, and the tokens of its texts.
struct Embedded {
    vectors: Vec<Vec<f64>>,
    tokens: usize,
    load_duration: u64,
}

/// Writes to the journal that a client left before its reply.
struct Left<'a>(&'a Simulator, Arc<Entry>);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        if self.1.end("client_gone") {
            count(&self.0.counters.client_gone);
        }
    }
}

/// Returns a normalised vector for each text.
pub async fn embed(State(server): State<Arc<Simulator>>, body: Bytes) -> Response {
    let since = Instant::now();
    let entry = server.journal.open("/api/embed", &body);
    match vectors(&server, "/api/embed", &entry, &body).await {
        Ok((model, Embedded { vectors, tokens, load_duration })) => {
            let total = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            Json(json!({
                "model": model,
                "embeddings": vectors,
                "total_duration": total,
                "load_duration": load_duration,
                "prompt_eval_count": tokens,
            }))
            .into_response()
        }
        Err(error) => refused(&entry, error),
    }
}

/// Returns the vector of one text.
pub async fn embeddings(State(server): State<Arc<Simulator>>, body: Bytes) -> Response {
    let entry = server.journal.open("/api/embeddings", &body);
    match vectors(&server, "/api/embeddings", &entry, &body).await {
        Ok((_, Embedded { vectors, .. })) => {
            let vector = vectors.into_iter().next().unwrap_or_default();
            Json(json!({"embedding": vector})).into_response()
        }
        Err(error) => refused(&entry, error),
    }
}

async fn vectors(
    server: &Simulator,
    path: &str,
    entry: &Arc<Entry>,
    body: &Bytes,
) -> Result<(String, Embedded), ApiError> {
    let request: EmbedRequest = read(body)?;
    let Some(model) = server.models.get(&request.model) else {
        return Err(ApiError::ModelNotFound(request.model));
    };
    struck(server, path, &request.model)?;
    let texts = texts(request.input, request.prompt)?;
    let keep_alive = KeepAlive::read(request.keep_alive.as_ref())?;
    let options = Options::read(request.options.as_ref())?;
    let num_ctx = options.num_ctx.unwrap_or(server.config.num_ctx).min(server.config.model_ctx);
    let tokens: Vec<usize> = texts.iter().map(|text| count_tokens(text).min(num_ctx)).collect();
    if request.truncate == Some(false) && texts.iter().any(|text| count_tokens(text) > num_ctx) {
        let text = "the input length exceeds the context length";
        return Err(ApiError::BadRequest(text.to_owned()));
    }
    let since = Instant::now();
    let left = Left(server, Arc::clone(entry));
    let slot = server.slots.take().await?;
    generation::load(server, &model, num_ctx, keep_alive).await;
    let load_duration = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let each = server.config.embed_text_ms.saturating_mul(texts.len() as u64);
    tokio::time::sleep(Duration::from_millis(server.config.first_token_ms + each)).await;
    // Vectors are made shorter, never longer.
    let whole = server.config.dimensions;
    let length = request.dimensions.unwrap_or(whole).min(whole);
    let vectors = texts.iter().map(|text| vector(&model.origin, text, length)).collect();
    drop(slot);
    let tokens = tokens.iter().sum();
    entry.progress(tokens, 0, 0);
    entry.end("completed: embedded");
    count(&server.counters.completed);
    drop(left);
    Ok((request.model, Embedded { vectors, tokens, load_duration }))
}

/// Takes an armed fault of this path; embeddings know only those with a status.
fn struck(server: &Simulator, path: &str, model: &str) -> Result<(), ApiError> {
    let Some(Planned { fault, .. }) = server.faults.take_armed(path, model) else { return Ok(()) };
    count(&server.counters.faulted);
    let status = u16::try_from(fault.at).ok().and_then(|code| StatusCode::from_u16(code).ok());
    Err(ApiError::Simulated(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)))
}

fn texts(input: Value, prompt: Option<String>) -> Result<Vec<String>, ApiError> {
    let invalid = || ApiError::BadRequest("invalid input type".to_owned());
    match (input, prompt) {
        (Value::Null, prompt) => Ok(prompt.into_iter().collect()),
        (Value::String(text), _) => Ok(vec![text]),
        (Value::Array(list), _) => {
            let texts = list.into_iter().map(|text| text.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or_else(invalid)
        }
        _ => Err(invalid()),
    }
}

/// Returns the vector of a text: invented, but always the same, and of length 1.
fn vector(model: &str, text: &str, length: usize) -> Vec<f64> {
    let seed = fnv(fnv(7, model.as_bytes()), text.as_bytes());
    let number = |at: usize| {
        let hash = fnv(seed, &at.to_le_bytes()) >> 12;
        hash as f64 / (1_u64 << 51) as f64 - 1.0
    };
    let numbers: Vec<f64> = (0..length).map(number).collect();
    let norm = numbers.iter().map(|number| number * number).sum::<f64>().sqrt();
    numbers.into_iter().map(|number| number / norm).collect()
}
