//! What Ollama's statuses and error texts mean.

use std::time::Duration;

use super::error::OllamaError;

/// When to come back to a host whose own queue is full.
const QUEUE_FULL_RETRY: Duration = Duration::from_secs(2);

/// What a reply that is not a success means.
pub(super) fn refusal(status: u16, text: &str, model: &str) -> OllamaError {
    if let Some(too_long) = context_too_long(text) {
        return too_long;
    }
    match status {
        // Without Ollama's own words a 404 says that the address is not an Ollama's.
        404 if text.contains("not found") && text.contains("model") => {
            OllamaError::ModelNotFound { model: model.to_owned(), available: Vec::new() }
        }
        429 | 503 => OllamaError::Busy { retry_after: QUEUE_FULL_RETRY },
        status => OllamaError::Rejected { status },
    }
}

/// What an error in the middle of a stream means.
pub(super) fn failure(text: &str) -> OllamaError {
    context_too_long(text).unwrap_or(OllamaError::Interrupted("the model's runner failed"))
}

fn context_too_long(text: &str) -> Option<OllamaError> {
    text.contains("exceed_context_size_error").then(|| OllamaError::ContextTooLong {
        prompt_tokens: figure(text, "n_prompt_tokens").unwrap_or(0),
        num_ctx: figure(text, "n_ctx").unwrap_or(0),
    })
}

/// The number after a key. The error is JSON within a string within JSON, and has been quoted more
/// or less often from release to release; the figure itself looks the same in all of them.
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
    fn both_figures_of_a_prompt_that_is_too_long_are_read_however_often_they_are_quoted() {
        let inner = json!({"error": {
            "type": "exceed_context_size_error", "n_prompt_tokens": 6010, "n_ctx": 512,
        }})
        .to_string();
        let once = json!({"error": inner}).to_string();
        let twice = json!({"error": once}).to_string();
        let expected = OllamaError::ContextTooLong { prompt_tokens: 6010, num_ctx: 512 };
        for text in [inner, once, twice] {
            assert_eq!(refusal(400, &text, "m"), expected);
            assert_eq!(failure(&text), expected);
        }
        assert_eq!(
            refusal(400, "exceed_context_size_error", "m"),
            OllamaError::ContextTooLong { prompt_tokens: 0, num_ctx: 0 }
        );
    }

    #[test]
    fn only_ollamas_own_words_say_that_a_model_is_missing() {
        let missing = refusal(404, r#"{"error":"model 'nope' not found"}"#, "nope");
        assert_eq!(missing.code(), "model_not_found");
        assert_eq!(refusal(404, "404 page not found", "m").code(), "upstream_error");
    }
}
