//! Membership: which replicas are alive, and which are gone.
//!
//! A replica renews one counter in Redis, its heartbeat. Turns and slots are held in a replica's
//! name. This module reports that a replica is gone; a [`Successor`] takes over its turns and
//! slots.

mod detector;
mod store;

use std::collections::HashSet;
use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::lifecycle::{Lifecycle, TaskEnd};

pub use self::detector::{Detector, GoneReplica};
pub use self::store::{HEARTBEATS, Heartbeats, MembershipStore};

/// Heartbeats in one replica lease.
const HEARTBEATS_PER_LEASE: u32 = 10;
/// How often the successor looks for holdings of replicas that have no heartbeat at all.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Takes over from replicas that are gone.
pub trait Successor: Send + Sync {
    /// Why a takeover could not be completed.
    type Error: Display + Send;

    /// Takes over everything that the replica held. The call is repeated until it succeeds.
    fn take_over(&self, gone: &GoneReplica)
    -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Reads all holdings, and returns the holders that are not in `alive`: they have no heartbeat.
    fn sweep(
        &mut self,
        alive: &HashSet<String>,
    ) -> impl Future<Output = Result<Vec<String>, Self::Error>> + Send;
}

/// One replica's part in the membership.
pub struct Membership {
    /// The heartbeats of all replicas.
    pub store: MembershipStore,
    /// The replica lease: how long a replica may miss heartbeats before it is gone.
    pub lease: Duration,
    /// The life of the process. A draining replica renews its heartbeat and takes nothing over.
    pub lifecycle: Lifecycle,
    /// Cancelled when this replica hands over what it holds.
    pub stop: CancellationToken,
}

impl Membership {
    /// Renews this replica's heartbeat, observes the others, and calls the successor for each
    /// replica that is gone, until `stop` is cancelled.
    pub async fn run<S: Successor>(self, mut successor: S) -> TaskEnd {
        let Self { store, lease, lifecycle, stop } = self;
        let mut tick = interval(lease / HEARTBEATS_PER_LEASE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut detector = Detector::new(store.replica().to_owned(), lease);
        let mut swept = Instant::now();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.cancelled() => return TaskEnd::Done,
            }
            let Ok(Ok(heartbeats)) = timeout(lease, store.heartbeat()).await else {
                detector.reset();
                continue;
            };
            let gone = detector.observe(&heartbeats, Instant::now());
            if lifecycle.is_draining() {
                continue;
            }
            for replica in &gone {
                if let Err(error) = successor.take_over(replica).await {
                    tracing::warn!(%error, replica = replica.name, "takeover waiting for redis");
                    continue;
                }
                detector.forget(&replica.name);
                if let Some(counter) = replica.counter {
                    // If this fails, the replica is found gone again, with nothing to take over.
                    let _ = store.remove_replica(&replica.name, counter).await;
                }
            }
            if swept.elapsed() >= SWEEP_INTERVAL {
                swept = Instant::now();
                let alive = heartbeats.into_keys().collect();
                match successor.sweep(&alive).await {
                    Ok(without_heartbeat) => {
                        for name in without_heartbeat {
                            detector.suspect(name, swept);
                        }
                    }
                    Err(error) => tracing::debug!(%error, "sweep waiting for redis"),
                }
            }
        }
    }
}
