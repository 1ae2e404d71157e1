//! The one harness: it starts Redis (single, behind sentinels, as a cluster), model hosts, replicas
//! and a balancer on free ports, and ends them when they are dropped.
//!
//! Every function blocks, but for [`eventually`]. Asynchronous callers that may not block use
//! `spawn_blocking`.

pub mod balancer;
pub mod frames;
pub mod http;
pub mod port;
pub mod process;
pub mod programs;

#[cfg(feature = "harness")]
pub mod binaries;
#[cfg(feature = "harness")]
pub mod folder;
#[cfg(feature = "harness")]
pub mod redis;
#[cfg(feature = "harness")]
pub mod server;
mod wait;

pub use port::Port;
pub use process::{Process, Program};
#[cfg(feature = "harness")]
pub use server::Server;
#[cfg(feature = "harness")]
pub use wait::eventually;
pub use wait::{eventually_blocking, pause};
