//! The parts that the tests share: servers, clients, and ways to wait.
#![allow(dead_code, unused_imports, missing_docs, reason = "each test file uses a part of it")]

pub mod client;
pub mod collector;
pub mod drawing;
pub mod ended_streams;
pub mod fleet;
pub mod frames;
pub mod fronts;
pub mod host;
pub mod issuer;
pub mod lossy;
pub mod metrics;
pub mod monitored;
pub mod nginx;
pub mod owned;
pub mod picture;
pub mod process;
pub mod prometheus;
pub mod raw;
pub mod raw_http;
pub mod redis_time;
pub mod responses;
pub mod samples;
pub mod sdks;
pub mod setup;
pub mod store;
pub mod terminal;
pub mod tls;
pub mod tokens;

pub use testkit::{eventually, redis};
