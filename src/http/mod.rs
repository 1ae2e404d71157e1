//! HTTP itself, apart from what any front says over it: connections, bodies, fields, problems.

pub mod codes;
mod exchange;
pub mod fields;
pub mod guard;
pub mod lax;
pub mod listener;
pub mod object;
pub mod peer;
pub mod problem;
pub mod schema;
