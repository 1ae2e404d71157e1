//! jarvis: a chat service in front of Ollama. See ARCHITECTURE.md.

pub mod redis;
pub mod session;
