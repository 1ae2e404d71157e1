//! What the tests share: the harness in the tests' words, clients, and ways to wait.
#![allow(dead_code, unused_imports, missing_docs, reason = "each test file uses a part of it")]

pub mod client;
pub mod nginx;
pub mod process;
pub mod raw;
pub mod raw_http;

pub use testkit::{eventually, redis};
