//! `ollama-sim`: an Ollama as far as its API goes, for tests, benchmarks and a first run.
//!
//! [`Sim`] runs one in this process. The scripted engine's answers are pure functions, so that a
//! client can know what it must have received: [`script_answer`], [`script_pieces`],
//! [`count_tokens`] and [`first_tokens`].

mod api;
mod config;
mod dialect;
mod engine;
mod error;
mod fault;
mod faults;
mod generation;
mod hash;
mod images;
mod journal;
mod model_name;
mod models;
mod net;
mod options;
mod output;
mod schema;
mod script;
mod server;
mod simulator;
mod slots;
mod stats;
mod stream;
mod sync;
mod template;
mod tokens;
mod wire;

pub use config::{Config, EngineKind};
pub use script::{REPETITION_LIMIT, script_answer, script_pieces};
pub use server::{Sim, StartError};
pub use stats::Stats;
pub use tokens::{TokenCounter, count_tokens, first_tokens};
