//! The engines that make tokens.

pub mod llama;
pub mod scripted;

use std::fmt;

use crate::options::Options;
use crate::script::Part;
use crate::tokens::count_tokens;

/// The input of one generation.
#[derive(Clone, Debug)]
pub struct Task {
    /// The name under which the weights were created; it is the same for all copies.
    pub model: String,
    /// The prompt that the model sees.
    pub prompt: std::sync::Arc<str>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Whether the prompt lost its question when it was cut to the context.
    pub beheaded: bool,
    /// Whether the model reasons, unless the prompt already closes the reasoning.
    pub thinks: bool,
    /// Whether the tags around the reasoning are shown as text.
    pub raw: bool,
    /// The most tokens that the context allows, where it may not shift.
    pub room: Option<usize>,
    /// The options of the request.
    pub options: Options,
    /// The answer that the format of the request leaves, where it has one.
    pub formatted: Option<String>,
    /// The calls of tools that the answer ends with.
    pub calls: Vec<serde_json::Value>,
    /// The digests of the images.
    pub images: Vec<String>,
}

impl Task {
    /// Returns the most tokens to generate.
    pub fn limit(&self) -> Option<usize> {
        match (self.options.num_predict, self.room) {
            (Some(wanted), Some(room)) => Some(wanted.min(room)),
            (wanted, room) => wanted.or(room),
        }
    }
}

/// The text of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// The tokens generated up to its end.
    pub tokens: usize,
    /// The part of the answer that the text belongs to.
    pub part: Part,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The model finished its answer, or a stop text came.
    Stop,
    /// A limit was reached.
    Length,
    /// The model repeated a piece too often: the stream ends without a last line.
    Repetition,
}

/// The next step of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Pieces, at least one.
    Pieces(Vec<Piece>),
    /// The end.
    End {
        /// The reason.
        reason: Reason,
        /// The tokens of the prompt, where the engine knows them better.
        prompt_tokens: Option<usize>,
        /// The tokens of the prompt that were not in the prompt cache, where the engine has one.
        evaluated: Option<usize>,
        /// The tokens generated.
        tokens: usize,
    },
}

/// The engine failed.
#[derive(Debug)]
pub struct EngineError(pub String);

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for EngineError {}

/// The engine of one server.
pub enum Engine {
    /// Deterministic text.
    Scripted(scripted::Pace),
    /// Real weights.
    Llama(llama::Llama),
}

impl Engine {
    /// Counts the tokens of a prompt.
    pub async fn count(&self, prompt: &str) -> Result<usize, EngineError> {
        match self {
            Self::Scripted(_) => Ok(count_tokens(prompt)),
            Self::Llama(llama) => llama.count(prompt).await,
        }
    }

    /// Starts a generation.
    pub async fn start(&self, task: &Task) -> Result<Generator, EngineError> {
        Ok(match self {
            Self::Scripted(pace) => {
                Generator::Scripted(Box::new(scripted::Scripted::new(task, pace)))
            }
            Self::Llama(llama) => Generator::Llama(Box::new(llama.complete(task).await?)),
        })
    }
}

/// A running generation; dropping it stops it.
pub enum Generator {
    /// Deterministic text.
    Scripted(Box<scripted::Scripted>),
    /// Real weights.
    Llama(Box<llama::Completion>),
}

impl Generator {
    /// Waits for the next step.
    pub async fn next(&mut self) -> Result<Step, EngineError> {
        match self {
            Self::Scripted(scripted) => Ok(scripted.next().await),
            Self::Llama(completion) => completion.next().await,
        }
    }
}
