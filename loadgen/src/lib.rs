//! `loadgen`: holds sessions over replicas of jarvis, breaks things on purpose, and checks every
//! character of every answer.

pub mod checker;
pub mod client;
pub mod event;
pub mod report;
pub mod run;
pub mod script;
pub mod tally;
