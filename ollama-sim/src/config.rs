//! Every setting of the simulator.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};

use crate::model_name::canonical;

/// The engine that makes the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// Deterministic text, faults on request.
    Scripted,
    /// Real weights behind a llama.cpp server.
    Llama,
}

const AFTER_HELP: &str = "\
Directives in the last user message steer the scripted engine: [[key=value ...]]
  tokens=N       length of the answer, in tokens (at most 1000000)
  rate=R         tokens per second; 0 = as fast as possible
  first_ms=MS    milliseconds before the first token
  think=N        length of the reasoning, in tokens (models with 'think' in their name)
  unasked        reasons although the request forbids it
  count          the answer is 1 2 3 ... N
  repeat         30 equal pieces, then the stream ends without done and without an error
  say            everything after the block is the answer
  fault=KIND[@N][!]  each message meets them one after another, each once; ! = always
      refuse     close the connection without a response
      busy       503, server busy
      status@C   HTTP status C (default 500)
      hang       never answer
      slow@MS    first token MS milliseconds late (default 5000)
      split      every line in several writes, cut anywhere
      null loose bom halves lone undone   lines as other servers write them; see the README
      load unload   done_reason load or unload, and no answer
      stall@N cut@N error@N end@N garbage@N   after N pieces (default 5): stop but stay open;
                 close without terminator; error line; clean end without done; a line of rubbish

Introspection (not Ollama's): GET|DELETE /sim/requests, GET /sim/stats,
  GET|POST|DELETE /sim/faults with {\"fault\":\"cut\",\"after_pieces\":20,\"times\":1,\"model\":\"...\",\"path\":\"...\"}";

/// An Ollama as far as its API goes: scripted for tests and benchmarks, or with real weights.
#[derive(Clone, Debug, Parser)]
#[command(name = "ollama-sim", version, after_help = AFTER_HELP)]
pub struct Config {
    /// Address to listen on; port 0 lets the system choose
    #[arg(long, env = "OLLAMA_SIM_LISTEN", default_value = "127.0.0.1:11434")]
    pub listen: SocketAddr,

    /// The engine that makes the answers
    #[arg(long, env = "OLLAMA_SIM_ENGINE", value_enum, default_value = "scripted")]
    pub engine: EngineKind,

    /// Models that are there, separated by commas; one with 'think' in its name thinks, one with
    /// 'embed' only embeds, one with 'alien' cannot be loaded, one with 'heedless' knows no `num_predict`
    #[arg(
        long,
        env = "OLLAMA_SIM_MODELS",
        value_delimiter = ',',
        value_name = "NAME",
        default_value = "tinyllama:latest"
    )]
    pub models: Vec<String>,

    /// A second name for a model, as `ollama cp` makes it; may be repeated
    #[arg(long = "alias", env = "OLLAMA_SIM_ALIAS", value_delimiter = ',', value_name = "NEW=OLD")]
    pub aliases: Vec<String>,

    /// Models that do not fit in this host's memory, separated by commas
    #[arg(long, env = "OLLAMA_SIM_TOO_LARGE", value_delimiter = ',', value_name = "NAME")]
    pub too_large: Vec<String>,

    /// Generations that run at the same time
    #[arg(long, env = "OLLAMA_SIM_SLOTS", value_name = "N", default_value_t = 4)]
    pub slots: usize,

    /// Requests that may wait for a slot; beyond it the answer is 503
    #[arg(long, env = "OLLAMA_SIM_QUEUE", value_name = "N", default_value_t = 512)]
    pub queue: usize,

    /// Speed of one generation in tokens per second; 0 = as fast as possible [scripted]
    #[arg(long, env = "OLLAMA_SIM_RATE", value_name = "TOKENS/S", default_value_t = 0.0, value_parser = rate)]
    pub rate: f64,

    /// Milliseconds before the first token [scripted]
    #[arg(long, env = "OLLAMA_SIM_FIRST_TOKEN_MS", value_name = "MS", default_value_t = 0)]
    pub first_token_ms: u64,

    /// Length of an answer in tokens, where the message does not say [scripted]
    #[arg(long, env = "OLLAMA_SIM_TOKENS", value_name = "N", default_value_t = 64)]
    pub tokens: usize,

    /// The answer to every message without directives [scripted]
    #[arg(long, env = "OLLAMA_SIM_SAY", value_name = "TEXT")]
    pub say: Option<String>,

    /// Milliseconds that loading a model takes, the first time and with another num_ctx
    #[arg(long, env = "OLLAMA_SIM_LOAD_MS", value_name = "MS", default_value_t = 0)]
    pub load_ms: u64,

    /// Context in tokens, where a request does not set num_ctx
    #[arg(long, env = "OLLAMA_SIM_NUM_CTX", value_name = "TOKENS", default_value_t = 4096)]
    pub num_ctx: usize,

    /// The models' own limit in tokens, as /api/show reports it; num_ctx is cut to it
    #[arg(long, env = "OLLAMA_SIM_MODEL_CTX", value_name = "TOKENS", default_value_t = 8192)]
    pub model_ctx: usize,

    /// Lists its models without their digests, as some other servers of this API do
    #[arg(long, env = "OLLAMA_SIM_WITHOUT_DIGEST")]
    pub without_digest: bool,

    /// Numbers of the vector of a text, where the request does not choose fewer
    #[arg(long, env = "OLLAMA_SIM_DIMENSIONS", value_name = "N", default_value_t = 8)]
    pub dimensions: usize,

    /// Milliseconds that the vector of one text takes, after the first token's
    #[arg(long, env = "OLLAMA_SIM_EMBED_TEXT_MS", value_name = "MS", default_value_t = 0)]
    pub embed_text_ms: u64,

    /// Where the llama.cpp server is [llama]
    #[arg(
        long,
        env = "OLLAMA_SIM_LLAMA_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    pub llama_url: String,
}

impl Default for Config {
    /// Returns the flags' defaults, but with a port that the system chooses; it reads no
    /// environment.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            engine: EngineKind::Scripted,
            models: vec!["tinyllama:latest".to_owned()],
            aliases: Vec::new(),
            too_large: Vec::new(),
            slots: 4,
            queue: 512,
            rate: 0.0,
            first_token_ms: 0,
            tokens: 64,
            say: None,
            load_ms: 0,
            num_ctx: 4096,
            model_ctx: 8192,
            without_digest: false,
            dimensions: 8,
            embed_text_ms: 0,
            llama_url: "http://127.0.0.1:8080".to_owned(),
        }
    }
}

impl Config {
    /// Returns whether a model does not fit in memory.
    pub fn is_too_large(&self, model: &str) -> bool {
        let model = canonical(model);
        self.too_large.iter().any(|name| canonical(name) == model)
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("a number of tokens per second, 0 or more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_are_sound() {
        Config::command().debug_assert();
    }
}
