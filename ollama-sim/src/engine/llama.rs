//! Real weights: a llama.cpp server, called by its raw completion only, so that a continuation is
//! exactly the prompt that was rendered.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{EngineError, Piece, Reason, Step, Task};
use crate::script::Part;

/// The text that ends a turn in ChatML, where the server does not know it from the weights.
const END_OF_TURN: [&str; 2] = ["<|im_end|>", "<|im_start|>"];

/// Sampling options that llama.cpp knows by the same name.
const SAMPLING: [&str; 11] = [
    "temperature",
    "seed",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_last_n",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "num_keep",
];

/// A llama.cpp server.
#[derive(Clone, Debug)]
pub struct Llama {
    client: reqwest::Client,
    base: String,
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<Value>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    content: String,
    #[serde(default)]
    tokens: Vec<Value>,
    #[serde(default)]
    stop: bool,
    #[serde(default)]
    stop_type: String,
    tokens_predicted: Option<usize>,
    tokens_evaluated: Option<usize>,
    timings: Option<Timings>,
}

#[derive(Deserialize)]
struct Timings {
    /// The tokens of the prompt that were evaluated: the others were in the cache.
    prompt_n: Option<usize>,
}

impl Llama {
    /// Creates a client of the server at `base`, without sending anything yet.
    pub fn new(base: &str) -> Result<Self, reqwest::Error> {
        // Another part of this process may have installed one already; that one does as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(2))
            .tcp_nodelay(true)
            // llama.cpp closes a connection after some requests, often while the next one is sent.
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self { client, base: base.trim_end_matches('/').to_owned() })
    }

    /// Counts the tokens of a prompt.
    pub async fn count(&self, prompt: &str) -> Result<usize, EngineError> {
        let body = json!({"content": prompt, "add_special": true, "parse_special": true});
        let tokens: Tokens = self.post("/tokenize", &body).await?.json().await.map_err(failed)?;
        Ok(tokens.tokens.len())
    }

    /// Starts a completion.
    pub async fn complete(&self, task: &Task) -> Result<Completion, EngineError> {
        let body = completion(task);
        let response = self.post("/completion", &body).await?;
        Ok(Completion { body: response.bytes_stream().boxed(), buffer: Vec::new(), tokens: 0 })
    }

    async fn post(&self, path: &str, body: &Value) -> Result<reqwest::Response, EngineError> {
        let response = self
            .client
            .post(format!("{}{path}", self.base))
            .json(body)
            .send()
            .await
            .map_err(failed)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        Err(EngineError(format!("llama.cpp answered {status}: {text}")))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "fits map_err")]
fn failed(error: reqwest::Error) -> EngineError {
    EngineError(format!("llama.cpp server: {error}"))
}

fn completion(task: &Task) -> Value {
    let mut body = Map::new();
    body.insert("prompt".to_owned(), json!(&*task.prompt));
    body.insert("stream".to_owned(), json!(true));
    body.insert("return_tokens".to_owned(), json!(true));
    body.insert("cache_prompt".to_owned(), json!(true));
    let limit = task.limit().map_or(json!(-1), |limit| json!(limit));
    body.insert("n_predict".to_owned(), limit);
    for name in SAMPLING {
        if let Some(value) = task.options.sampling.get(name) {
            let name = if name == "num_keep" { "n_keep" } else { name };
            body.insert(name.to_owned(), value.clone());
        }
    }
    let stops: Vec<&str> =
        END_OF_TURN.into_iter().chain(task.options.stop.iter().map(String::as_str)).collect();
    body.insert("stop".to_owned(), json!(stops));
    Value::Object(body)
}

/// A completion under way; dropping it makes the server stop.
pub struct Completion {
    body: BoxStream<'static, Result<Bytes, reqwest::Error>>,
    buffer: Vec<u8>,
    tokens: usize,
}

impl Completion {
    /// Waits for the next event.
    pub async fn next(&mut self) -> Result<Step, EngineError> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if let Some(step) = self.read(&line)? {
                    return Ok(step);
                }
            }
            match self.body.next().await {
                Some(bytes) => self.buffer.extend_from_slice(&bytes.map_err(failed)?),
                None => return Err(EngineError("llama.cpp server: unexpected EOF".to_owned())),
            }
        }
    }

    fn read(&mut self, line: &[u8]) -> Result<Option<Step>, EngineError> {
        let line = String::from_utf8_lossy(line);
        if let Some(error) = line.strip_prefix("error: ") {
            return Err(EngineError(error.trim().to_owned()));
        }
        let Some(data) = line.strip_prefix("data: ") else {
            return Ok(None);
        };
        let chunk: Chunk = serde_json::from_str(data.trim())
            .map_err(|error| EngineError(format!("llama.cpp server: {error}: {data}")))?;
        let evaluated = chunk.timings.and_then(|timings| timings.prompt_n);
        if chunk.stop && chunk.content.is_empty() {
            let reason = if chunk.stop_type == "limit" { Reason::Length } else { Reason::Stop };
            return Ok(Some(Step::End {
                reason,
                prompt_tokens: chunk.tokens_evaluated,
                evaluated,
                tokens: chunk.tokens_predicted.unwrap_or(self.tokens),
            }));
        }
        if chunk.stop {
            // The last text and the end came in one event: the end is returned next, without the
            // text.
            let rest = json!({
                "stop": true,
                "stop_type": chunk.stop_type,
                "tokens_predicted": chunk.tokens_predicted,
                "tokens_evaluated": chunk.tokens_evaluated,
                "timings": {"prompt_n": evaluated},
            });
            let again = format!("data: {rest}\n");
            self.buffer.splice(..0, again.into_bytes());
        }
        self.tokens += chunk.tokens.len().max(1);
        if chunk.content.is_empty() {
            return Ok(None);
        }
        Ok(Some(Step::Pieces(vec![Piece {
            text: chunk.content,
            tokens: self.tokens,
            part: Part::Answer,
        }])))
    }
}
