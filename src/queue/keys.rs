//! The keys of the queue. All of them begin with its name, and so lie in its slot; the functions
//! make the rest of each (`migrations/functions/include/queue/tickets.lua` lists them).

use crate::redis::Call;

const QUEUE: &str = "jarvis:{queue}";

/// The hash of heartbeats. It lies in the queue's slot, as what a replica holds there is freed only
/// while its heartbeat stands still.
pub(super) use crate::membership::HEARTBEATS;

/// A call of a function of the queue.
pub(super) fn call(function: &'static str) -> Call {
    Call::new(function).key("queue", QUEUE.to_owned())
}

/// The channel on which a replica learns of its grants.
pub(super) fn channel(replica: &str) -> String {
    format!("{QUEUE}:replica:{replica}")
}
