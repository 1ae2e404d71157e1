//! Membership: which replicas are alive, and which are gone.
//!
//! A replica renews one counter in Redis, its heartbeat, and is subscribed to a channel of its own.
//! Turns and slots are held in a replica's name. This module reports that a replica is gone; a
//! [`Successor`] takes over its turns and slots.

mod detector;
mod figures;
mod renewal;
mod store;

use std::collections::HashSet;
use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::lifecycle::{Lifecycle, TaskEnd};

use self::figures::FiguresSource;

pub use self::detector::{Detector, GoneReason, GoneReplica, Timing};
pub use self::figures::{ReplicaFigures, published_address};
pub use self::renewal::Renewal;
pub use self::store::{Heartbeats, MembershipStore, Sighting, Watched};

/// Heartbeats in one replica lease, at least.
const HEARTBEATS_PER_LEASE: u32 = 10;
/// The longest time between two heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);
/// How long the heartbeat of a replica without connections may stand still: a connection that was
/// reset, and not refused, is made again within this time.
const STILL: Duration = Duration::from_millis(250);
/// The heartbeats of all replicas are read with every tenth heartbeat, and when their number has
/// changed.
const HEARTBEATS_PER_READ_OF_ALL: u32 = 10;
/// How often the successor looks for holdings of replicas that have no heartbeat at all.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Takes over from replicas that are gone.
pub trait Successor: Send + Sync {
    /// Why a takeover could not be completed.
    type Error: Display + Send;

    /// Takes over everything that the replica held, and returns the number of turns. The call is
    /// repeated until it succeeds.
    fn take_over(
        &mut self,
        gone: &GoneReplica,
    ) -> impl Future<Output = Result<usize, Self::Error>> + Send;

    /// Learns which living replica watches the connections of this one, where there is one.
    fn note_watcher(&self, watcher: Option<String>);

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
    /// When the heartbeat was renewed.
    pub renewal: Renewal,
    /// The life of the process. A draining replica renews its heartbeat and takes nothing over.
    pub lifecycle: Lifecycle,
    /// Cancelled when this replica hands over what it holds.
    pub stop: CancellationToken,
}

impl Membership {
    /// Renews this replica's heartbeat, observes the others, and calls the successor for each
    /// replica that is gone, until `stop` is cancelled.
    pub async fn run<S: Successor>(self, mut successor: S) -> TaskEnd {
        let Self { store, lease, renewal, lifecycle, stop } = self;
        let heartbeat_interval = HEARTBEAT_INTERVAL.min(lease / HEARTBEATS_PER_LEASE);
        let still = STILL.min(lease);
        let mut tick = interval(heartbeat_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut detector = Detector::new(store.replica().to_owned(), Timing { lease, still });
        let mut figures = FiguresSource::new(store.address().to_owned());
        let mut swept = Instant::now();
        let (mut heartbeats_since_all, mut known) = (HEARTBEATS_PER_READ_OF_ALL, 0);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.cancelled() => return TaskEnd::Done,
            }
            heartbeats_since_all += 1;
            let all = heartbeats_since_all >= HEARTBEATS_PER_READ_OF_ALL;
            let made = Instant::now();
            let due = figures.due(lifecycle.phase());
            let heartbeat = store.heartbeat(all, detector.watched(), due.as_ref());
            let Ok(Ok(sighting)) = timeout(lease, heartbeat).await else {
                figures.repeat();
                detector.reset(Instant::now());
                heartbeats_since_all = HEARTBEATS_PER_READ_OF_ALL;
                continue;
            };
            renewal.note(made);
            if let Some(all) = &sighting.all {
                (heartbeats_since_all, known) = (0, all.len());
            } else if sighting.replicas != known {
                heartbeats_since_all = HEARTBEATS_PER_READ_OF_ALL;
            }
            let gone = detector.observe(&sighting, Instant::now());
            if sighting.all.is_some() {
                successor.note_watcher(detector.watcher());
            }
            if lifecycle.is_draining() {
                continue;
            }
            for replica in &gone {
                let turns = match successor.take_over(replica).await {
                    Ok(turns) => turns,
                    Err(error) => {
                        tracing::warn!(%error, replica = replica.name, "takeover waiting for redis");
                        continue;
                    }
                };
                detector.forget(&replica.name);
                if let Some(counter) = replica.counter {
                    let reason = replica.reason.as_str();
                    // If this fails, the replica is found gone again, with nothing to take over.
                    let _ = store.remove_replica(&replica.name, counter, reason, turns).await;
                }
            }
            if swept.elapsed() >= SWEEP_INTERVAL
                && let Some(all) = sighting.all
            {
                swept = Instant::now();
                let alive = all.into_keys().collect();
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
