//! Extractors that read leniently what a client sent, and refuse with a problem that says what is
//! wrong with each field.

pub mod body;
pub mod caller;
pub mod fields;
pub mod lax;
pub mod object;
pub mod path;
pub mod query;
