//! Embeddings. They take slots and limits as completions do.

use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body;
use super::params::{INVALID_TYPE, INVALID_VALUE, Params, UNSUPPORTED_VALUE, error};
use super::request::model;
use super::schema::EmbeddingRequest;
use super::shapes::{ErrorReply, HostErrorReply};
use crate::api::embedding::{self, HeldRequest, TEXTS, VectorForm, VectorReply};
use crate::api::large_body::CONVERSATION_BYTES;
use crate::api::state::Shared;
use crate::generation::{EmbedKind, EmbedRequest, EmbedUsage};
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
    /// Whether a vector is written as its numbers in base64, single-precision floats, little-endian.
    is_base64: bool,
}

/// The vectors of texts.
#[derive(ToSchema)]
#[schema(as = OpenAiEmbeddings)]
#[allow(dead_code, reason = "only its description is used: the vectors are written as they come")]
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
#[derive(ToSchema)]
#[schema(as = OpenAiEmbedding)]
#[allow(dead_code, reason = "only its description is used: the vectors are written as they come")]
struct EmbeddingItem {
    /// Always `embedding`.
    object: &'static str,
    /// The position of the text in the request.
    index: usize,
    /// The vector: its numbers, or their bytes in base64.
    embedding: Vec<f64>,
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
        let is_base64 = match params.text("encoding_format")? {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => {
                let msg = "must be float or base64";
                return Err(params.refuse("encoding_format", INVALID_VALUE, msg));
            }
        };
        // It changes nothing about a vector.
        params.hint("user")?;
        params.finish()?;
        Ok(Self { model, request, is_base64 })
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
    responses((status = 200, body = EmbeddingsReply), ErrorReply, HostErrorReply),
)]
pub async fn create(
    State(shared): State<Shared>,
    permit: TurnPermit,
    last_byte: LastByte,
    request: Request,
) -> Result<Response, Problem> {
    let read = |object: &Object, _: &[u8]| Embedding::read(object);
    let (embedding, room) = body::read(request, &shared, CONVERSATION_BYTES, read).await?;
    let Embedding { model, request, is_base64 } = embedding;
    let form = VectorForm { dimensions: request.dimensions, is_base64 };
    let reply = VectorReply::new("{\"object\":\"list\",\"data\":[", form, write);
    let held = HeldRequest { request, room };
    let embedded = embedding::vectors(&shared, permit, last_byte, &model, held, reply).await;
    let (reply, EmbedUsage { tokens, .. }) = embedded.map_err(of_input)?;
    let usage = EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens };
    let usage = serde_json::to_string(&usage).map_err(|_| Problem::internal())?;
    Ok(reply.end(&format!("],\"model\":{},\"usage\":{usage}}}", Value::from(model))))
}

/// Names the parameter of an error: the texts are those that are too long.
fn of_input(problem: Problem) -> Problem {
    if problem.code != "context_too_long" {
        return problem;
    }
    let msg = "has a text that does not fit in the model's context window; send shorter texts";
    vec![error("input", "context_length_exceeded", msg)].into()
}

/// Writes the vector of a text: its numbers as the host sent them, or their bytes in base64.
///
/// # Errors
/// Where it is no vector, or shorter than the request wants it.
fn write(
    form: &VectorForm,
    index: usize,
    vector: &RawValue,
    to: &mut Vec<u8>,
) -> Result<(), Problem> {
    let begin = format!("{{\"object\":\"embedding\",\"index\":{index},\"embedding\":");
    to.extend_from_slice(begin.as_bytes());
    if form.is_base64 || form.dimensions.is_some() {
        let numbers: Vec<f32> =
            serde_json::from_str(vector.get()).map_err(|_| embedding::unreadable())?;
        check_length(numbers.len(), form.dimensions)?;
        if form.is_base64 {
            to.push(b'"');
            to.extend_from_slice(base64_of(&numbers).as_bytes());
            to.push(b'"');
        }
    }
    if !form.is_base64 {
        to.extend_from_slice(vector.get().as_bytes());
    }
    to.push(b'}');
    Ok(())
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
    use serde_json::json;

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
        let Embedding { model, request, is_base64 } = read(&request).expect("valid");
        assert_eq!((&*model, is_base64), ("m", true));
        assert_eq!((request.texts, request.dimensions), (vec!["a".into(), "b".into()], Some(4)));
        assert!(!request.truncate, "nothing is cut in silence");
        for (name, value, path, kind) in [
            ("input", Value::Null, "input", "missing_required_parameter"),
            ("input", json!(7), "input", "invalid_type"),
            ("input", json!(""), "input", "invalid_value"),
            ("input", json!([]), "input", "invalid_value"),
            ("input", json!(vec!["x"; TEXTS + 1]), "input", "invalid_value"),
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
        let sent = RawValue::from_string("[0.10, -1e-3]".to_owned()).expect("JSON");
        let written = |dimensions, is_base64| {
            let mut to = Vec::new();
            write(&VectorForm { dimensions, is_base64 }, 7, &sent, &mut to)?;
            Ok::<_, Problem>(String::from_utf8(to).expect("text"))
        };
        let item = |vector: &str| {
            Ok(format!("{{\"object\":\"embedding\",\"index\":7,\"embedding\":{vector}}}"))
        };
        assert_eq!(written(None, false), item("[0.10, -1e-3]"));
        assert_eq!(written(Some(2), false), item("[0.10, -1e-3]"));
        let bytes = [0.1_f32, -0.001].iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>();
        assert_eq!(written(Some(2), true), item(&format!("\"{}\"", STANDARD.encode(bytes))));
        let refused = written(Some(3), false).expect_err("too long");
        assert_eq!(refused.errors[0].loc, ["body", "dimensions"]);
        let other = RawValue::from_string("[\"a\"]".to_owned()).expect("JSON");
        let form = VectorForm { dimensions: None, is_base64: true };
        let refused = write(&form, 0, &other, &mut Vec::new()).expect_err("no numbers");
        assert_eq!(refused.status.as_u16(), 502);
    }
}
