//! `loadgen`: holds sessions over replicas of jarvis, breaks things on purpose, and checks every
//! character of every answer.

pub mod bench;
pub mod chaos;
pub mod checker;
pub mod client;
pub mod event;
pub mod fleet;
pub mod report;
pub mod roll;
pub mod run;
pub mod script;
pub mod tally;
