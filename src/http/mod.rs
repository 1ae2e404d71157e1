//! HTTP itself, apart from what any front says over it: connections, bodies, fields, problems.

pub mod codes;
mod exchange;
pub mod extract;
pub mod listener;
pub mod middleware;
pub mod origin;
pub mod peer;
pub mod problem;
mod stream_limit;
