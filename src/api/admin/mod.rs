//! What operators and programs ask of the service itself: probes, metrics, and its description.

pub(crate) mod docs;
pub(crate) mod health;
