//! Embeddings. They take slots and limits as completions do.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body;
use super::params::{INVALID_TYPE, INVALID_VALUE, Params, UNSUPPORTED_VALUE, error};
use super::request::model;
use super::schema::EmbeddingRequest;
use super::shapes::ErrorReply;
use crate::api::embedding::{self, TEXTS};
use crate::api::large_body::CONVERSATION_BYTES;
use crate::api::state::Shared;
use crate::generation::{EmbedKind, EmbedRequest};
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::Object;
use crate::http::peer::LastByte;
use crate::http::problem::Problem;
use crate::limits::TurnPermit;

/// A request for embeddings, read and checked.
#[derive(Clone, Debug)]
pub struct Embedding {
    model: String,
    /// The texts, and what is wanted of their vectors.
    pub request: EmbedRequest,
    encoding: Encoding,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// A list of numbers.
    Float,
    /// The numbers as single-precision floats, little-endian, in base64.
    Base64,
}

/// The vectors of texts.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiEmbeddings)]
pub struct EmbeddingsReply {
    /// Always `list`.
    object: &'static str,
    /// One vector for each text, in their order.
    data: Vec<EmbeddingItem>,
    /// The model, as the request spells it.
    model: String,
    /// The tokens of the texts.
    usage: EmbeddingUsage,
}

/// The vector of one text.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiEmbedding)]
struct EmbeddingItem {
    /// Always `embedding`.
    object: &'static str,
    /// The position of the text in the request.
    index: usize,
    /// The vector: its numbers, or their bytes in base64.
    #[schema(value_type = Vec<f64>)]
    embedding: Vector,
}

/// A vector as it is written.
#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    /// The numbers as the host sent them.
    Float(Box<RawValue>),
    /// Little-endian single-precision floats in base64.
    Base64(String),
}

/// The tokens of a request for embeddings.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiEmbeddingUsage)]
struct EmbeddingUsage {
    /// Tokens of the texts.
    prompt_tokens: u64,
    /// The same.
    total_tokens: u64,
}

impl FromRequest<Shared> for Embedding {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Problem> {
        let read = body::read(request, shared, CONVERSATION_BYTES, |object, _| Self::read(object));
        Ok(read.await?.0)
    }
}

impl Embedding {
    /// Reads a request.
    ///
    /// # Errors
    /// The first parameter that is not valid.
    pub fn read(object: &Object) -> Result<Self, FieldError> {
        let parameters = body::parameters(object)?;
        let mut params = Params::of_request(&parameters);
        let model = model(&mut params)?;
        let request = EmbedRequest {
            kind: EmbedKind::Normalised,
            texts: texts(&mut params)?,
            // A text that is too long is refused: it is never cut in silence.
            truncate: false,
            dimensions: dimensions(&mut params)?,
        };
        let encoding = match params.text("encoding_format")? {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(_) => {
                let msg = "must be float or base64";
                return Err(params.refuse("encoding_format", INVALID_VALUE, msg));
            }
        };
        // It changes nothing about a vector.
        params.text("user")?;
        params.finish()?;
        Ok(Self { model, request, encoding })
    }
}

/// Reads the texts: one, or a list. Texts that the client has split into tokens are not supported,
/// because their numbers are those of OpenAI's models.
fn texts(params: &mut Params<'_>) -> Result<Vec<String>, FieldError> {
    let value = params.required("input")?;
    let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    if value.is_array() && items.iter().any(|item| item.is_number() || item.is_array()) {
        let msg = "must be text: tokens are not supported";
        return Err(params.refuse("input", UNSUPPORTED_VALUE, msg));
    }
    if items.is_empty() || items.len() > TEXTS {
        let msg = format!("must have 1 to {TEXTS} texts");
        return Err(params.refuse("input", INVALID_VALUE, msg));
    }
    let mut texts = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let path = if value.is_array() { format!("input[{at}]") } else { "input".to_owned() };
        match item.as_str() {
            Some("") => return Err(error(&path, INVALID_VALUE, "must not be empty")),
            Some(text) => texts.push(text.to_owned()),
            None => return Err(error(&path, INVALID_TYPE, "must be a string")),
        }
    }
    Ok(texts)
}

/// Reads the length of the vectors.
fn dimensions(params: &mut Params<'_>) -> Result<Option<u32>, FieldError> {
    let Some(length) = params.integer("dimensions", 1)? else { return Ok(None) };
    match u32::try_from(length) {
        Ok(length) => Ok(Some(length)),
        Err(_) => Err(params.refuse("dimensions", INVALID_VALUE, "is too large")),
    }
}

/// Returns the vectors of texts.
///
/// # Errors
/// Why there are none.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "openai", operation_id = "openai_embeddings",
    request_body = EmbeddingRequest,
    responses((status = 200, body = EmbeddingsReply), ErrorReply),
)]
pub async fn create(
    State(shared): State<Shared>,
    permit: TurnPermit,
    last_byte: LastByte,
    Embedding { model, request, encoding }: Embedding,
) -> Result<Response, Problem> {
    let vectors = embedding::vectors(&shared, permit, last_byte, &model, &request).await;
    let vectors = vectors.map_err(of_input)?.ok_or_else(embedding::none_sent)?;
    let prompt_tokens = vectors.tokens();
    let list = vectors.embeddings.ok_or_else(embedding::none_sent)?;
    let items = items(&list, &request, encoding)?;
    let usage = EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens };
    Ok(Json(EmbeddingsReply { object: "list", data: items, model, usage }).into_response())
}

/// Names the parameter of an error: the texts are those that are too long.
fn of_input(problem: Problem) -> Problem {
    if problem.code != "context_too_long" {
        return problem;
    }
    let msg = "has a text that does not fit in the model's context window; send shorter texts";
    vec![error("input", "context_length_exceeded", msg)].into()
}

/// Writes the vectors that a host sent.
///
/// # Errors
/// Where they are no vectors of these texts, or shorter than the request wants them.
fn items(
    list: &RawValue,
    request: &EmbedRequest,
    encoding: Encoding,
) -> Result<Vec<EmbeddingItem>, Problem> {
    let vectors: Vec<Box<RawValue>> =
        serde_json::from_str(list.get()).map_err(|_| embedding::none_sent())?;
    if vectors.len() != request.texts.len() {
        return Err(embedding::none_sent());
    }
    let item = |(index, vector): (usize, Box<RawValue>)| {
        let embedding = match (encoding, request.dimensions) {
            (Encoding::Float, None) => Vector::Float(vector),
            (encoding, dimensions) => {
                let numbers: Vec<f32> =
                    serde_json::from_str(vector.get()).map_err(|_| embedding::none_sent())?;
                check_length(numbers.len(), dimensions)?;
                match encoding {
                    Encoding::Float => Vector::Float(vector),
                    Encoding::Base64 => Vector::Base64(base64_of(&numbers)),
                }
            }
        };
        Ok(EmbeddingItem { object: "embedding", index, embedding })
    };
    vectors.into_iter().enumerate().map(item).collect()
}

/// Refuses vectors of another length than the request wants. A host makes vectors shorter, never
/// longer, and does not report that it left them as they are.
fn check_length(length: usize, wanted: Option<u32>) -> Result<(), Problem> {
    match wanted {
        Some(wanted) if usize::try_from(wanted) != Ok(length) => {
            let msg = format!("must be at most {length}, the length of this model's vectors");
            Err(vec![error("dimensions", INVALID_VALUE, msg)].into())
        }
        _ => Ok(()),
    }
}

fn base64_of(numbers: &[f32]) -> String {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: &Value) -> Result<Embedding, (String, &'static str)> {
        let object = value.as_object().expect("an object").clone().into();
        Embedding::read(&object)
            .map_err(|error| (error.loc.last().cloned().unwrap_or_default(), error.kind))
    }

    #[test]
    fn a_request_for_embeddings_is_read_strictly_by_its_paths() {
        let request = json!({
            "model": " m ", "input": ["a", "b"], "dimensions": 4, "encoding_format": "base64",
            "user": "u",
        });
        let Embedding { model, request, encoding } = read(&request).expect("valid");
        assert_eq!((&*model, encoding), ("m", Encoding::Base64));
        assert_eq!((request.texts, request.dimensions), (vec!["a".into(), "b".into()], Some(4)));
        assert!(!request.truncate, "nothing is cut in silence");
        for (name, value, path, kind) in [
            ("input", Value::Null, "input", "missing_required_parameter"),
            ("input", json!(7), "input", "invalid_type"),
            ("input", json!(""), "input", "invalid_value"),
            ("input", json!([]), "input", "invalid_value"),
            ("input", json!(vec!["x"; 257]), "input", "invalid_value"),
            ("input", json!([1, 2]), "input", "unsupported_value"),
            ("input", json!([[1, 2]]), "input", "unsupported_value"),
            ("input", json!(["a", ""]), "input[1]", "invalid_value"),
            ("input", json!(["a", {}]), "input[1]", "invalid_type"),
            ("dimensions", json!(0), "dimensions", "invalid_value"),
            ("dimensions", json!(5_000_000_000_u64), "dimensions", "invalid_value"),
            ("dimensions", json!("4"), "dimensions", "invalid_type"),
            ("encoding_format", json!("hex"), "encoding_format", "invalid_value"),
            ("encoding_format", json!(1), "encoding_format", "invalid_type"),
            ("user", json!(1), "user", "invalid_type"),
            ("truncate", json!(true), "truncate", "unknown_parameter"),
        ] {
            let mut request = json!({"model": "m", "input": "a"});
            request[name] = value.clone();
            let refused = read(&request).expect_err(name);
            assert_eq!(refused, (path.to_owned(), kind), "{name} {value}");
        }
    }

    #[test]
    fn a_vector_is_the_hosts_text_or_the_bytes_of_its_numbers() {
        let sent = RawValue::from_string("[[0.10, -1e-3], [1,2]]".to_owned()).expect("JSON");
        let request = |dimensions| EmbedRequest {
            kind: EmbedKind::Normalised,
            texts: vec!["a".to_owned(), "b".to_owned()],
            truncate: false,
            dimensions,
        };
        let written = |dimensions, encoding| {
            let items = items(&sent, &request(dimensions), encoding)?;
            Ok::<_, Problem>(serde_json::to_string(&items[0].embedding).expect("JSON"))
        };
        assert_eq!(written(None, Encoding::Float), Ok("[0.10, -1e-3]".to_owned()));
        let bytes = [0.1_f32, -0.001].iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>();
        let base64 = format!("\"{}\"", STANDARD.encode(bytes));
        assert_eq!(written(Some(2), Encoding::Base64), Ok(base64));
        let refused = written(Some(3), Encoding::Float).expect_err("too long");
        assert_eq!(refused.errors[0].loc, ["body", "dimensions"]);
        let fewer = RawValue::from_string("[[1]]".to_owned()).expect("JSON");
        assert_eq!(
            items(&fewer, &request(None), Encoding::Float).err().map(|it| it.status.as_u16()),
            Some(502)
        );
    }
}
