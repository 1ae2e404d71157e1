//! The keys of the queue. All of them begin with the queue's name, and so lie in one hash slot.
//! The functions make the rest of each (`migrations/functions/include/queue/tickets.lua` lists
//! them).

use crate::membership::QUEUE;
use crate::redis::Call;

/// The hash of heartbeats. It lies in the queue's hash slot, because a replica's tickets are
/// freed only while its heartbeat stands still.
pub(super) use crate::membership::HEARTBEATS;

/// Creates a call of a function of the queue.
pub(super) fn call(function: &'static str) -> Call {
    Call::new(function).key("queue", QUEUE.to_owned())
}

/// Returns the channel on which a replica learns of its grants.
pub(super) fn channel(replica: &str) -> String {
    format!("{QUEUE}:replica:{replica}")
}
