//! What makes the tokens.

pub mod llama;
pub mod scripted;

use std::fmt;

use crate::options::Options;
use crate::script::Part;
use crate::tokens::count_tokens;

/// What one generation is asked to do.
#[derive(Clone, Debug)]
pub struct Task {
    /// The name that the weights were first known under.
    pub model: String,
    /// What the model sees.
    pub prompt: std::sync::Arc<str>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The prompt lost what mattered when it was cut to the context.
    pub beheaded: bool,
    /// The model thinks, unless the prompt says that it has done so.
    pub thinks: bool,
    /// Marks of thoughts are shown as text.
    pub raw: bool,
    /// Most tokens that the context allows, where it may not shift.
    pub room: Option<usize>,
    /// As asked.
    pub options: Options,
}

impl Task {
    /// Most tokens to generate.
    pub fn limit(&self) -> Option<usize> {
        match (self.options.num_predict, self.room) {
            (Some(asked), Some(room)) => Some(asked.min(room)),
            (asked, room) => asked.or(room),
        }
    }
}

/// Some text, as one line carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its text.
    pub text: String,
    /// Tokens generated up to its end.
    pub tokens: usize,
    /// Where it belongs.
    pub part: Part,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The model had said everything, or a stop text came.
    Stop,
    /// A limit was reached.
    Length,
    /// Too many equal pieces: the stream ends without a last line.
    Repetition,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Pieces, at least one.
    Pieces(Vec<Piece>),
    /// The end.
    End {
        /// Why.
        reason: Reason,
        /// Tokens of the prompt, where the engine knows better.
        prompt_tokens: Option<usize>,
        /// Tokens generated.
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

/// What makes the answers of one server.
pub enum Engine {
    /// Deterministic text.
    Scripted(scripted::Pace),
    /// Real weights.
    Llama(llama::Llama),
}

impl Engine {
    /// Tokens of a prompt.
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
                Generator::Scripted(Box::new(scripted::Scripted::new(task, *pace)))
            }
            Self::Llama(llama) => Generator::Llama(Box::new(llama.complete(task).await?)),
        })
    }
}

/// A generation under way; dropping it stops it.
pub enum Generator {
    /// Deterministic text.
    Scripted(Box<scripted::Scripted>),
    /// Real weights.
    Llama(Box<llama::Completion>),
}

impl Generator {
    /// Waits for what comes next.
    pub async fn next(&mut self) -> Result<Step, EngineError> {
        match self {
            Self::Scripted(scripted) => Ok(scripted.next().await),
            Self::Llama(completion) => completion.next().await,
        }
    }
}
