//! `loadgen`: runs sessions over replicas of jarvis, injects faults, and checks every character of
//! every answer.

pub mod attack;
pub mod bench;
pub mod chaos;
pub mod checker;
pub mod client;
pub mod event;
mod event_stream;
pub mod fleet;
pub mod report;
pub mod roll;
pub mod run;
pub mod script;
pub mod sockets;
pub mod tally;
