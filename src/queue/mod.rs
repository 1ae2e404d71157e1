//! The queue: whose turn it is on which model host.
//!
//! The right to run is a slot's lease in Redis, held in the name of a replica and freed with it.
//! Slots go to tickets in fair order: one user's fifty turns delay another's first by no more than
//! one turn. All of it happens in Redis, in one step each; what is told over the channel is a hint.

mod store;

pub use store::{
    Freed, Grant, HostKey, HostReport, HostUse, Limits, Place, QueueStore, Returned, Tick, Ticket,
    Told, Via, Waiting,
};
