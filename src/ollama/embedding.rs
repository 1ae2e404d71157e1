//! Embeddings: the vectors of texts. A request for them takes a slot as a generation does.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::tolerant::Count;
use super::wire::KeepAlive;

/// Texts that one request to a host has, at most: so the largest usual vectors, of 4,096 numbers, fit in
/// a reply.
const SLICE_TEXTS: usize = 64;
/// Bytes of the texts of one request to a host, at most, unless one text has more: a host may need no
/// longer for them than for the prompt of a chat, because their time limit is the same.
const SLICE_BYTES: usize = 32 << 10;

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
#[derive(Debug)]
pub struct Vectors {
    /// One JSON list for each text; none where the host sent no vectors.
    pub list: Vec<Box<RawValue>>,
    /// The bytes of the whole reply.
    pub bytes: usize,
    /// The tokens of the texts; 0 where the host does not report them.
    pub tokens: u64,
    /// How long the host loaded the model, in nanoseconds.
    pub load_duration: u64,
}

/// The reply of either route.
#[derive(Deserialize)]
struct VectorsReply {
    /// A JSON list of lists.
    #[serde(default)]
    embeddings: Option<Box<RawValue>>,
    /// The one vector of [`EmbedKind::Raw`], a JSON list.
    #[serde(default)]
    embedding: Option<Box<RawValue>>,
    #[serde(default)]
    load_duration: Count,
    #[serde(default)]
    prompt_eval_count: Count,
}

impl Vectors {
    /// Parses a reply. Values that are no lists are no vectors.
    ///
    /// # Errors
    /// Where it is no JSON object.
    pub(super) fn parse(reply: &[u8]) -> Result<Self, serde_json::Error> {
        let bytes = reply.len();
        let reply: VectorsReply = serde_json::from_slice(reply)?;
        let list: Vec<Box<RawValue>> = match (reply.embeddings, reply.embedding) {
            (Some(list), _) => serde_json::from_str(list.get()).unwrap_or_default(),
            (None, one) => one.into_iter().collect(),
        };
        let are_vectors = list.iter().all(|value| value.get().starts_with('['));
        Ok(Self {
            list: if are_vectors { list } else { Vec::new() },
            bytes,
            tokens: reply.prompt_eval_count.tokens(),
            load_duration: reply.load_duration.0.unwrap_or_default(),
        })
    }
}

/// The body of a request for embeddings.
#[derive(Serialize)]
pub(super) struct HostEmbedBody<'a> {
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
    /// Returns which texts go to a host together, from this one on: at most `most`, and at least one.
    pub fn slice(&self, from: usize, most: usize) -> Range<usize> {
        let mut bytes = 0;
        let texts = self.texts.iter().skip(from).take(most.min(SLICE_TEXTS));
        let fitting = texts.take_while(|text| {
            bytes += text.len();
            bytes <= SLICE_BYTES
        });
        from..(from + fitting.count().max(1)).min(self.texts.len())
    }

    pub(super) fn body<'a>(
        &'a self,
        texts: Range<usize>,
        model: &'a str,
        num_ctx: Option<u32>,
        keep_alive: &'a KeepAlive,
    ) -> HostEmbedBody<'a> {
        let texts = self.texts.get(texts).unwrap_or_default();
        let texts = match self.kind {
            EmbedKind::Normalised => Texts::Several {
                input: texts,
                truncate: self.truncate,
                dimensions: self.dimensions,
            },
            EmbedKind::Raw => Texts::One { prompt: texts.first().map_or("", String::as_str) },
        };
        HostEmbedBody { model, texts, options: EmbedOptions { num_ctx }, keep_alive }
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
            texts: ["x", "a", "b", "y"].map(str::to_owned).to_vec(),
            truncate: false,
            dimensions: Some(8),
        };
        let body = |request: &EmbedRequest| {
            serde_json::to_value(request.body(1..3, "m", Some(512), &keep_alive)).expect("JSON")
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
    #[test]
    fn texts_go_to_a_host_in_slices_bounded_in_number_and_in_bytes_and_all_of_them_once() {
        let request = |texts: Vec<String>| EmbedRequest {
            kind: EmbedKind::Normalised,
            texts,
            truncate: false,
            dimensions: None,
        };
        let slices = |request: &EmbedRequest, most: usize| {
            let (mut from, mut sizes) = (0, Vec::new());
            while from < request.texts.len() {
                let slice = request.slice(from, most);
                assert_eq!(slice.start, from);
                sizes.push(slice.len());
                from = slice.end;
            }
            assert_eq!(from, request.texts.len());
            sizes
        };
        let short = request(vec!["x".to_owned(); 150]);
        assert_eq!(slices(&short, usize::MAX), [64, 64, 22]);
        assert_eq!(slices(&short, 60), [60, 60, 30]);
        let long = request(vec!["x".repeat(SLICE_BYTES / 3); 7]);
        assert_eq!(slices(&long, usize::MAX), [3, 3, 1]);
        let longer = request(vec!["x".repeat(SLICE_BYTES + 1); 3]);
        assert_eq!(slices(&longer, usize::MAX), [1, 1, 1]);
        assert!(request(Vec::new()).slice(0, 1).is_empty());
    }

    #[test]
    fn what_is_no_list_of_vectors_has_none_and_what_is_no_object_is_an_error() {
        let parse = |reply: &str| {
            let vectors = Vectors::parse(reply.as_bytes()).expect("an object");
            vectors.list.iter().map(|it| it.get().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(parse(r#"{"embeddings": [[0.10], [2]], "x": 1}"#), ["[0.10]", "[2]"]);
        assert_eq!(parse(r#"{"embedding": [1e-3]}"#), ["[1e-3]"]);
        for reply in
            ["{}", r#"{"embeddings": null}"#, r#"{"embeddings": 7}"#, r#"{"embedding": {}}"#]
        {
            assert!(parse(reply).is_empty(), "{reply}");
        }
        assert!(parse(r#"{"embeddings": [[1], 7]}"#).is_empty());
        assert!(Vectors::parse(b"7").is_err());
    }
}
