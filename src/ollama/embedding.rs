//! Embeddings: the vectors of texts. A request for them takes a slot as a generation does.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::tolerant::Count;
use super::wire::KeepAlive;

/// The route of a request for embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbedKind {
    /// `/api/embed`: normalised vectors of several texts.
    Normalised,
    /// `/api/embeddings`, the older route: one vector as the model makes it.
    Raw,
}

impl EmbedKind {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Normalised => "api/embed",
            Self::Raw => "api/embeddings",
        }
    }
}

/// A request for embeddings.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// The route.
    pub kind: EmbedKind,
    /// The texts; only the first counts where `kind` is [`EmbedKind::Raw`].
    pub texts: Vec<String>,
    /// Whether a text that is too long is shortened; without it the host refuses such a text.
    pub truncate: bool,
    /// The length of the vectors, where the request chooses it.
    pub dimensions: Option<u32>,
}

/// The vectors of texts, as the host sent them.
#[derive(Debug, Deserialize)]
pub struct Vectors {
    /// One vector for each text, a JSON list of lists.
    #[serde(default)]
    pub embeddings: Option<Box<RawValue>>,
    /// The one vector of [`EmbedKind::Raw`], a JSON list.
    #[serde(default)]
    pub embedding: Option<Box<RawValue>>,
    #[serde(default)]
    load_duration: Count,
    #[serde(default)]
    prompt_eval_count: Count,
}

impl Vectors {
    /// Returns the tokens of the texts; 0 where the host does not report them.
    pub fn tokens(&self) -> u64 {
        self.prompt_eval_count.tokens()
    }

    /// Returns how long the host loaded the model, in nanoseconds.
    pub fn load_duration(&self) -> u64 {
        self.load_duration.0.unwrap_or_default()
    }
}

/// The body of a request for embeddings.
#[derive(Serialize)]
pub(super) struct EmbedBody<'a> {
    model: &'a str,
    #[serde(flatten)]
    texts: Texts<'a>,
    options: EmbedOptions,
    keep_alive: &'a KeepAlive,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Texts<'a> {
    Several {
        input: &'a [String],
        truncate: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        dimensions: Option<u32>,
    },
    One {
        prompt: &'a str,
    },
}

#[derive(Serialize)]
struct EmbedOptions {
    /// The same as for generations, because another value reloads the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    num_ctx: Option<u32>,
}

impl EmbedRequest {
    pub(super) fn body<'a>(
        &'a self,
        model: &'a str,
        num_ctx: Option<u32>,
        keep_alive: &'a KeepAlive,
    ) -> EmbedBody<'a> {
        let texts = match self.kind {
            EmbedKind::Normalised => Texts::Several {
                input: &self.texts,
                truncate: self.truncate,
                dimensions: self.dimensions,
            },
            EmbedKind::Raw => Texts::One { prompt: self.texts.first().map_or("", String::as_str) },
        };
        EmbedBody { model, texts, options: EmbedOptions { num_ctx }, keep_alive }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_route_gets_its_own_body() {
        let keep_alive = KeepAlive::from("5m");
        let mut request = EmbedRequest {
            kind: EmbedKind::Normalised,
            texts: vec!["a".to_owned(), "b".to_owned()],
            truncate: false,
            dimensions: Some(8),
        };
        let body = |request: &EmbedRequest| {
            serde_json::to_value(request.body("m", Some(512), &keep_alive)).expect("JSON")
        };
        assert_eq!(
            body(&request),
            json!({
                "model": "m", "input": ["a", "b"], "truncate": false, "dimensions": 8,
                "options": {"num_ctx": 512}, "keep_alive": "5m",
            })
        );
        request.kind = EmbedKind::Raw;
        let old = json!({
            "model": "m", "prompt": "a", "options": {"num_ctx": 512}, "keep_alive": "5m",
        });
        assert_eq!(body(&request), old);
    }
}
