//! Maps Ollama's statuses and error texts to errors.

use std::time::Duration;

use super::error::{ModelRefusal, OllamaError};

/// The time after which to retry on a host whose own queue is full.
const QUEUE_FULL_RETRY: Duration = Duration::from_secs(2);

/// Phrases by which Ollama, or its runner, reports a model that does not fit in memory.
const MEMORY: &[&str] = &[
    "requires more system memory",
    "out of memory",
    "not enough memory",
    "insufficient memory",
    "unable to allocate",
    "failed to allocate",
];
/// Phrases by which they report a model that they cannot run.
const FORMAT: &[&str] = &[
    "unknown model architecture",
    "unsupported model architecture",
    "unsupported architecture",
    "unsupported model format",
    "invalid file magic",
    "error loading model",
    "unable to load model",
    "requires a newer version of ollama",
    "incompatible with your version of ollama",
];
/// Phrases by which they report a format that no grammar can be made of.
const ANSWER_FORMAT: &[&str] = &[
    "invalid json schema in format",
    "invalid format:",
    "failed to parse grammar",
    "failed to initialize grammar",
    "failed to create grammar",
];
/// Ollama's names of the capabilities that a model may lack.
const CAPABILITIES: &[&str] = &[
    "chat",
    "generate",
    "completion",
    "thinking",
    "tools",
    "insert",
    "vision",
    "images",
    "embeddings",
];

/// Returns the error of a reply that is not a success.
pub(super) fn refusal(status: u16, text: &str, model: &str) -> OllamaError {
    if let Some(too_long) = context_too_long(text) {
        return too_long;
    }
    if is_format_refused(text) {
        return OllamaError::FormatRefused;
    }
    if let Some(refusal) = model_refusal(text) {
        return OllamaError::ModelRefused { model: model.to_owned(), refusal };
    }
    match status {
        // A 404 without Ollama's text shows that there is no Ollama at the address.
        404 if text.contains("not found") && text.contains("model") => {
            OllamaError::ModelNotFound { model: model.to_owned(), available: Vec::new() }
        }
        429 | 503 => OllamaError::Busy { retry_after: QUEUE_FULL_RETRY },
        status => OllamaError::Rejected { status },
    }
}

/// Returns the error of an error line in a stream. Once the answer has begun, the error is not a
/// refusal of the model.
pub(super) fn failure(text: &str, model: &str, has_begun: bool) -> OllamaError {
    if let Some(too_long) = context_too_long(text) {
        return too_long;
    }
    if is_format_refused(text) && !has_begun {
        return OllamaError::FormatRefused;
    }
    match model_refusal(text) {
        Some(refusal) if !has_begun => {
            OllamaError::ModelRefused { model: model.to_owned(), refusal }
        }
        _ => OllamaError::Interrupted("the model's runner failed"),
    }
}

/// Returns why the host does not run the model; `None` where the text reports something else. A
/// runner that ended, or a load that failed, without a reason may succeed the next time.
fn model_refusal(text: &str) -> Option<ModelRefusal> {
    let text = text.to_lowercase();
    let has = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    // The text of a failed allocation matches both lists.
    if has(MEMORY) {
        return Some(ModelRefusal::Memory);
    }
    if has(FORMAT) {
        return Some(ModelRefusal::Format);
    }
    let (_, lacks) = text.split_once("does not support ")?;
    let known = CAPABILITIES.iter().find(|known| lacks.starts_with(**known));
    Some(ModelRefusal::Capability(known.copied().unwrap_or("this request")))
}

/// Returns whether the host cannot follow the format of the request: every caller can send one that
/// it cannot, so this must not count against the model.
fn is_format_refused(text: &str) -> bool {
    let text = text.to_lowercase();
    ANSWER_FORMAT.iter().any(|phrase| text.contains(phrase))
}

fn context_too_long(text: &str) -> Option<OllamaError> {
    let is_too_long = text.contains("exceed_context_size_error")
        // The text of a model that only embeds.
        || text.contains("input length exceeds");
    is_too_long.then(|| OllamaError::ContextTooLong {
        prompt_tokens: figure(text, "n_prompt_tokens").unwrap_or(0),
        num_ctx: figure(text, "n_ctx").unwrap_or(0),
    })
}

/// Returns the number after a key. The error is JSON within a string within JSON, and each release
/// quotes it another number of times; the number itself looks the same in all of them.
fn figure(text: &str, key: &str) -> Option<u64> {
    text.match_indices(key).find_map(|(at, key)| {
        let rest = text[at + key.len()..].trim_start_matches(['\\', '"', ':', ' ']);
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_numbers_of_a_prompt_that_is_too_long_are_read_at_any_depth_of_quoting() {
        let inner = json!({"error": {
            "type": "exceed_context_size_error", "n_prompt_tokens": 6010, "n_ctx": 512,
        }})
        .to_string();
        let once = json!({"error": inner}).to_string();
        let twice = json!({"error": once}).to_string();
        let expected = OllamaError::ContextTooLong { prompt_tokens: 6010, num_ctx: 512 };
        for text in [inner, once, twice] {
            assert_eq!(refusal(400, &text, "m"), expected);
            assert_eq!(failure(&text, "m", true), expected);
        }
        assert_eq!(
            refusal(400, "exceed_context_size_error", "m"),
            OllamaError::ContextTooLong { prompt_tokens: 0, num_ctx: 0 }
        );
    }

    #[test]
    fn only_ollamas_own_text_reports_a_missing_model() {
        let missing = refusal(404, r#"{"error":"model 'nope' not found"}"#, "nope");
        assert_eq!(missing.code(), "model_not_found");
        assert_eq!(refusal(404, "404 page not found", "m").code(), "upstream_error");
    }

    #[test]
    fn a_format_that_no_host_can_follow_is_an_error_of_the_request_and_no_fault_of_the_model() {
        for (status, text) in [
            (500, "invalid JSON schema in format"),
            (400, "invalid format: \"yaml\"; expected \"json\" or a valid JSON Schema object"),
            (500, "failed to parse grammar"),
        ] {
            let error = refusal(status, &json!({"error": text}).to_string(), "m");
            assert_eq!((error.code(), error.is_retryable()), ("format_unsupported", false));
            assert_eq!(error.fault(), None, "{text}");
            assert_eq!(failure(text, "m", false), error, "{text}");
            assert_eq!(failure(text, "m", true).code(), "upstream_interrupted", "{text}");
        }
    }

    #[test]
    fn a_refused_model_is_an_error_of_the_request_and_no_fault_of_the_host() {
        for (status, text, code) in [
            (
                500,
                "model requires more system memory (7.5 GiB) than is available (5.2 GiB)",
                "model_too_large",
            ),
            (
                500,
                "model requires more system memory than is currently available",
                "model_too_large",
            ),
            (
                500,
                "llama runner process has terminated: cudaMalloc failed: out of memory",
                "model_too_large",
            ),
            (
                500,
                "llama runner process has terminated: error loading model: unable to allocate CUDA0 buffer",
                "model_too_large",
            ),
            (400, "\"nomic-embed-text:latest\" does not support chat", "model_unsupported"),
            (400, "\"m\" does not support generate", "model_unsupported"),
            (400, "\"m\" does not support thinking", "model_unsupported"),
            (
                400,
                "registry.ollama.ai/library/m:latest does not support tools",
                "model_unsupported",
            ),
            (
                500,
                "llama runner process has terminated: error loading model: unknown model architecture: 'mllama'",
                "model_unsupported",
            ),
            (500, "unable to load model: /models/blobs/sha256-1", "model_unsupported"),
        ] {
            let body = json!({"error": text}).to_string();
            let error = refusal(status, &body, "m");
            assert_eq!((error.code(), error.is_retryable()), (code, false), "{text}");
            assert_eq!(error.fault(), None, "{text}");
            assert!(error.to_string().ends_with("; choose another model"), "{error}");
            assert_eq!(failure(text, "m", false), error, "{text}");
            assert_eq!(failure(text, "m", true).code(), "upstream_interrupted", "{text}");
        }
        // A runner that ended without a reason may succeed the next time.
        for text in ["llama runner process has terminated: exit status 2", "model failed to load"] {
            let error = refusal(500, text, "m");
            assert_eq!((error.code(), error.is_retryable()), ("upstream_error", true), "{text}");
        }
    }
}
