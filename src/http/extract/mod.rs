//! Extractors that read a request leniently, and refuse it with a problem that names each field that
//! is not valid.

pub mod bearer;
pub mod body;
pub mod caller;
pub mod fields;
pub mod lax;
pub mod object;
pub mod path;
pub mod query;
