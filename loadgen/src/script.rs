//! Prompts whose answers are known.

use rand::Rng;
use rand::rngs::StdRng;
use uuid::Uuid;

/// The tokens of an answer whose message names no number; every message here names one.
const DEFAULT_TOKENS: usize = 64;

/// The properties of the answers.
#[derive(Clone, Debug)]
pub struct Script {
    /// The model to request.
    pub model: String,
    /// The fewest and the most tokens of an answer.
    pub tokens: (usize, usize),
    /// The tokens a second; 0 is as fast as possible.
    pub rate: f64,
}

impl Script {
    /// Returns a message that was never sent before, and its answer.
    pub fn ask(&self, random: &mut StdRng) -> (String, String) {
        let tokens = random.random_range(self.tokens.0..=self.tokens.1);
        let name = random_uuid(random).simple();
        let prompt = format!("[[tokens={tokens} rate={}]] {name}", self.rate);
        let answer = ollama_sim::script_answer(&self.model, &prompt, None, DEFAULT_TOKENS);
        (prompt, answer)
    }
}

/// Returns an identifier that the seed decides.
pub fn random_uuid(random: &mut StdRng) -> Uuid {
    uuid::Builder::from_random_bytes(random.random()).into_uuid()
}
