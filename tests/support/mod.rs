//! What the tests share: real servers, and ways to wait for them.
#![allow(dead_code, missing_docs, reason = "each test file uses a part of it")]

pub mod client;
pub mod nginx;
pub mod process;
pub mod raw;
pub mod raw_http;
pub mod redis;
