//! HTTP below the fronts: connections, middleware, bodies, fields, problems.

pub mod codes;
pub mod connections;
mod exchange;
pub mod extract;
pub mod frames;
pub mod listener;
pub mod middleware;
pub mod peer;
pub mod problem;
pub mod rate_limit;
pub mod room;
mod stream_limit;
