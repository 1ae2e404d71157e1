//! Injects the faults of the plan, and repairs them again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use chrono::Utc;
use serde::Serialize;
use serde_json::json;
use testkit::{Process, Server};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::claims::{self, Claims};
use super::plan::{Fault, Planned};
use super::suspicions::Lives;
use crate::fleet::{Fleet, end, with};

/// The time that a fault of Redis may wait until every primary has a Redis replica in sync.
const SYNC_LIMIT: Duration = Duration::from_secs(12);
const LOOK: Duration = Duration::from_millis(50);
/// The time that a drained replica may take to end: the promised limit, and a little more.
const DRAIN_LIMIT: Duration = Duration::from_secs(26);
/// The time for which a fault of Redis has effects after its beginning, and after its repair: that
/// of a failover.
const REDIS_FELT: Duration = Duration::from_secs(6);

/// A fault that was injected.
#[derive(Clone, Debug, Serialize)]
pub struct Injected {
    /// The seconds from the beginning to the fault.
    pub at: f64,
    /// The seconds from the beginning to the repair.
    pub until: f64,
    /// The kind.
    pub kind: &'static str,
    /// The target, and the details.
    pub what: String,
    /// `done`, or the reason why not.
    pub outcome: String,
}

/// The claims after one death.
#[derive(Debug)]
pub struct Death {
    /// The fate of its turns.
    pub claims: Claims,
    /// When it happened.
    pub died: Instant,
    /// Whether Redis had a fault near it.
    pub redis_disturbed: bool,
}

/// The record of injected faults.
#[derive(Debug, Default)]
pub struct Record {
    /// The faults, in the order of their repairs.
    pub faults: Vec<Injected>,
    /// Replicas that were killed.
    pub deaths: Vec<Death>,
    /// Replicas that were killed and whose name was not known.
    pub unwatched: usize,
}

/// Injects one fault after another.
pub struct Injector {
    fleet: Arc<Fleet>,
    began: Instant,
    record: Mutex<Record>,
    /// When replicas ended and were paused.
    pub lives: Lives,
    /// The milliseconds from the beginning until which a fault of Redis has effects.
    redis_felt: AtomicU64,
}

impl Injector {
    /// Creates an injector for a running fleet; its time begins now.
    pub fn new(fleet: Arc<Fleet>) -> Arc<Self> {
        let redis_felt = AtomicU64::new(0);
        let (began, record, lives) = (Instant::now(), Mutex::default(), Lives::default());
        Arc::new(Self { fleet, began, record, lives, redis_felt })
    }

    /// Injects the faults of a plan. All of them are repaired when this returns.
    pub async fn run(self: &Arc<Self>, plan: Vec<Planned>) {
        let mut under_way = JoinSet::new();
        for Planned { at, fault } in plan {
            sleep_until(self.began + at).await;
            if fault.is_of_redis() {
                // Faults of Redis never overlap, and no other fault waits for them.
                let injector = Arc::clone(self);
                under_way.spawn(async move { injector.inject_once_in_sync(fault).await });
            } else {
                let injector = Arc::clone(self);
                under_way.spawn(async move { injector.inject(fault).await });
            }
        }
        while under_way.join_next().await.is_some() {}
    }

    /// Returns the record.
    pub fn take_record(&self) -> Record {
        std::mem::take(&mut *self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn inject_once_in_sync(self: Arc<Self>, fault: Fault) {
        let deadline = Instant::now() + SYNC_LIMIT;
        let in_sync = || with(&self.fleet.redis, |redis| Ok(redis.is_in_sync()));
        while !in_sync().await.unwrap_or(false) {
            if Instant::now() >= deadline {
                let at = self.began.elapsed();
                self.note(fault, at, "skipped: no replica of Redis is in sync".to_owned());
                return;
            }
            sleep(LOOK).await;
        }
        self.feel_redis();
        self.inject(fault).await;
    }

    async fn inject(self: Arc<Self>, fault: Fault) {
        let at = self.began.elapsed();
        eprintln!("{:>7.2} s  {fault}", at.as_secs_f64());
        let outcome = match self.carry_out(fault).await {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("failed: {error:#}"),
        };
        if fault.is_of_redis() {
            self.feel_redis();
        }
        self.note(fault, at, outcome);
    }

    fn feel_redis(&self) {
        let until = (self.began.elapsed() + REDIS_FELT).as_millis();
        self.redis_felt.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn note(&self, fault: Fault, at: Duration, outcome: String) {
        if outcome != "done" {
            eprintln!("         {fault}: {outcome}");
        }
        let injected = Injected {
            at: at.as_secs_f64(),
            until: self.began.elapsed().as_secs_f64(),
            kind: fault.kind(),
            what: fault.to_string(),
            outcome,
        };
        self.record.lock().unwrap_or_else(PoisonError::into_inner).faults.push(injected);
    }

    async fn carry_out(self: &Arc<Self>, fault: Fault) -> anyhow::Result<()> {
        let fleet = &self.fleet;
        match fault {
            Fault::KillReplica { replica, down } => self.kill_replica(replica, down).await,
            Fault::PauseReplica { replica, time } => {
                let (name, from) = (fleet.name_of(replica).await, Utc::now());
                pause(&fleet.replicas[replica], time).await;
                if let Some(name) = name {
                    self.lives.paused(name, from);
                }
                Ok(())
            }
            Fault::DrainReplica { replica } => {
                let name = fleet.name_of(replica).await;
                let ended = end(&fleet.replicas[replica], DRAIN_LIMIT).await?;
                if let Some(name) = name {
                    self.lives.end(name);
                }
                fleet.start_replica(replica).await?;
                anyhow::ensure!(ended, "it did not end within {} s", DRAIN_LIMIT.as_secs());
                Ok(())
            }
            Fault::KillSim { sim, down } => {
                fleet.sims[sim].kill();
                sleep(down).await;
                self.start_sim(sim).await
            }
            Fault::PauseSim { sim, time } => {
                pause(&fleet.sims[sim], time).await;
                Ok(())
            }
            Fault::RestartSim { sim } => {
                end(&fleet.sims[sim], DRAIN_LIMIT).await?;
                self.start_sim(sim).await
            }
            Fault::BreakStreams { sim, fault, after, times } => {
                let arming = json!({"fault": fault.name(), "after_pieces": after, "times": times});
                let url = format!("{}/sim/faults", fleet.sims[sim].url);
                fleet.http.post(url).json(&arming).send().await?.error_for_status()?;
                Ok(())
            }
            Fault::KillRedis { primary, down } => {
                let port = with(&fleet.redis, move |redis| redis.primary(primary)).await?;
                fleet.redis.node(port)?.kill();
                sleep(down).await;
                with(&fleet.redis, move |redis| redis.node(port)?.try_restart()).await
            }
            Fault::PauseRedis { primary, time } => {
                let port = with(&fleet.redis, move |redis| redis.primary(primary)).await?;
                pause(fleet.redis.node(port)?, time).await;
                Ok(())
            }
            Fault::CutRedis { primary } => {
                let port = with(&fleet.redis, move |redis| redis.primary(primary)).await?;
                with(&fleet.redis, move |redis| redis.cut(port)).await
            }
            Fault::HandOverRedis { primary } => {
                let port = with(&fleet.redis, move |redis| redis.primary(primary)).await?;
                with(&fleet.redis, move |redis| redis.hand_over(port)).await
            }
            Fault::MoveSlot { primary, bucket } => {
                let port = with(&fleet.redis, move |redis| redis.primary(primary)).await?;
                fleet.move_bucket(port, bucket).await
            }
        }
    }

    async fn kill_replica(self: &Arc<Self>, replica: usize, down: Duration) -> anyhow::Result<()> {
        let name = self.fleet.name_of(replica).await;
        let died = Instant::now();
        self.fleet.replicas[replica].kill();
        if let Some(name) = name.clone() {
            self.lives.end(name);
        }
        let watching = name.map(|name| {
            let injector = Arc::clone(self);
            tokio::spawn(async move { injector.watch(&name, died).await })
        });
        sleep(down).await;
        self.fleet.start_replica(replica).await?;
        if let Some(watching) = watching {
            return watching.await.context("the watch over its turns broke off");
        }
        self.record.lock().unwrap_or_else(PoisonError::into_inner).unwatched += 1;
        Ok(())
    }

    async fn watch(&self, name: &str, died: Instant) {
        let claims = claims::watch(&self.fleet, name, died).await;
        let felt = Duration::from_millis(self.redis_felt.load(Ordering::Relaxed));
        let redis_disturbed = died - self.began < felt;
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.deaths.push(Death { claims, died, redis_disturbed });
    }

    async fn start_sim(&self, sim: usize) -> anyhow::Result<()> {
        with(&self.fleet.sims[sim], Server::restart).await
    }
}

async fn pause(process: &Process, time: Duration) {
    process.pause();
    sleep(time).await;
    process.resume();
}
