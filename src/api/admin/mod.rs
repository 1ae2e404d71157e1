//! What operators and programs ask of the service itself: probes, metrics, and its description.

pub mod docs;
pub mod health;
