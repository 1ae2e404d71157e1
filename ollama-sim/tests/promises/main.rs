//! What `ollama-sim` promises, checked over real HTTP.

mod answers;
mod continuation;
mod faults;
mod llama;
mod models;
mod process;
mod slots;
mod support;
