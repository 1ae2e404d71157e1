//! Errors in Ollama's form, with its statuses and, where it has the same error, its texts.

use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::serves;
use crate::http::problem::Problem;

/// The content type of one object.
pub const JSON: &str = "application/json; charset=utf-8";
/// Ollama's text where its queue is full.
const BUSY: &str = "server busy, please try again.  maximum pending requests exceeded";
/// Ollama's text where a model does not fit in memory.
const TOO_LARGE: &str = "model requires more system memory than is available";
/// Characters of a model's name that an error repeats, at most.
const NAME_CHARACTERS: usize = 128;

/// The name of the schema of [`OllamaErrorObject`].
pub const ERROR_SCHEMA: &str = "OllamaError";

/// An error as Ollama sends it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaError)]
pub struct OllamaErrorObject {
    /// The text.
    pub error: String,
}

/// Writes an error of this front in Ollama's form, also one of a shared layer.
pub fn dialect(path: &str, mut response: Response) -> Response {
    if !serves(path) {
        return response;
    }
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    let (mut parts, _) = response.into_parts();
    parts.status = status(&problem);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, error_json(&problem).into())
}

/// Returns an error as JSON.
pub fn error_json(problem: &Problem) -> String {
    serde_json::to_string(&OllamaErrorObject { error: text(problem) }).unwrap_or_default()
}

/// Creates the error of a request that cannot be understood, or asks for what is not supported.
pub fn invalid(text: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "validation_failed", text)
}

/// Creates the error of a model that no host has.
pub fn model_not_found(model: &str) -> Problem {
    let shown: String = model.chars().take(NAME_CHARACTERS).collect();
    let detail = format!("model '{shown}' not found");
    Problem::new(StatusCode::NOT_FOUND, "model_not_found", detail)
}

/// Returns an error of a request for this model, with the name as the request spells it.
pub fn of_model(model: &str, problem: Problem) -> Problem {
    if problem.code == "model_not_found" { model_not_found(model) } else { problem }
}

fn status(problem: &Problem) -> StatusCode {
    match (&*problem.code, problem.status) {
        ("model_too_large", _) => StatusCode::INTERNAL_SERVER_ERROR,
        ("context_too_long", _) | (_, StatusCode::UNPROCESSABLE_ENTITY) => StatusCode::BAD_REQUEST,
        (_, status) => status,
    }
}

fn text(problem: &Problem) -> String {
    let detail = problem.detail.as_str();
    match &*problem.code {
        "queue_full" | "upstream_busy" => BUSY.to_owned(),
        "model_too_large" => TOO_LARGE.to_owned(),
        "model_unsupported" => unsupported(detail).unwrap_or_else(|| detail.to_owned()),
        "format_unsupported" => "invalid JSON schema in format".to_owned(),
        "not_found" => "404 page not found".to_owned(),
        "method_not_allowed" => "405 method not allowed".to_owned(),
        _ => detail.to_owned(),
    }
}

/// Returns Ollama's text for a model that lacks a capability.
fn unsupported(detail: &str) -> Option<String> {
    let (model, rest) = detail.strip_prefix("the model ")?.split_once(" does not support ")?;
    let (what, _) = rest.split_once(';')?;
    Some(format!("\"{model}\" does not support {what}"))
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;
    use crate::session::model::Failure;

    fn failed(code: &str, message: &str) -> Problem {
        Failure {
            code: code.to_owned(),
            message: message.to_owned(),
            retryable: false,
            retry_after: None,
        }
        .into()
    }

    #[test]
    fn each_error_has_the_status_and_the_text_that_ollama_gives_it() {
        let lacks = "the model m:latest does not support chat; choose another model";
        for (problem, wanted, words) in [
            (model_not_found("nope"), 404, "model 'nope' not found"),
            (of_model("X", failed("model_not_found", "there is no")), 404, "model 'X' not found"),
            (failed("queue_full", "The queue is full"), 503, BUSY),
            (failed("upstream_busy", "all model hosts are busy"), 503, BUSY),
            (failed("model_unsupported", lacks), 400, "\"m:latest\" does not support chat"),
            (failed("model_too_large", "needs more"), 500, TOO_LARGE),
            (failed("context_too_long", "too long"), 400, "too long"),
            (Problem::not_found(), 404, "404 page not found"),
            (invalid("stream: must be a boolean"), 400, "stream: must be a boolean"),
        ] {
            assert_eq!((status(&problem).as_u16(), &*text(&problem)), (wanted, words));
        }
        let long = model_not_found(&"é".repeat(9_000));
        assert!(long.detail.len() < 300, "{}", long.detail.len());
    }

    #[tokio::test]
    async fn only_errors_of_this_front_are_written_again() {
        for (path, wanted) in [
            ("/api/chat", r#"{"error":"The session"#),
            ("/api", r#"{"error":"The session"#),
            ("/api/v1/chat", r#"{"type":"about:blank""#),
            ("/v1/models", r#"{"type":"about:blank""#),
        ] {
            let response = dialect(path, Problem::store_unavailable().into_response());
            assert_eq!(response.status(), 503, "{path}");
            assert_eq!(response.headers()["retry-after"], "2", "{path}");
            let body = axum::body::to_bytes(response.into_body(), 4096).await.expect("a body");
            let body = String::from_utf8_lossy(&body);
            assert!(body.starts_with(wanted), "{path}: {body}");
        }
    }
}
