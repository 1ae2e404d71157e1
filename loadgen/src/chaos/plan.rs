//! The plan of faults: a pure function of the seed.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testkit::redis::RedisKind;

/// The time before the first fault, in which the sessions begin.
const FIRST: Duration = Duration::from_secs(5);
/// The time without new faults before the end, in which all are repaired.
const LAST: Duration = Duration::from_secs(8);
/// The time between two faults, at least and at most.
const BETWEEN: (f64, f64) = (1.5, 5.0);
/// The time between two faults of Redis, at least and at most.
const BETWEEN_REDIS: (f64, f64) = (16.0, 26.0);
/// The time of the earliest fault of Redis.
const FIRST_REDIS: f64 = 10.0;
/// The replicas and sims that are out at the same time, at most: the others have to serve.
const REPLICAS_OUT: usize = 2;
const SIMS_OUT: usize = 1;
/// The seconds that a process needs to be back after it was started again.
const START: f64 = 4.0;
/// The seconds that a drained replica needs to end.
const DRAIN: f64 = 9.0;

/// The targets of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The replicas of jarvis.
    Replicas,
    /// The sims.
    Sims,
    /// The servers of Redis.
    Redis,
}

/// A fault in the middle of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamFault {
    /// The connection breaks.
    Cut,
    /// The stream ends with the error line of a dead runner.
    Error,
    /// The stream ends without a last line.
    End,
    /// The stream stops and stays open.
    Stall,
    /// The request gets no answer at all.
    Hang,
}

impl StreamFault {
    /// Returns the name by which ollama-sim knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Error => "error",
            Self::End => "end",
            Self::Stall => "stall",
            Self::Hang => "hang",
        }
    }
}

/// A fault and its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants say what happens, their fields to whom and how long")]
pub enum Fault {
    KillReplica { replica: usize, down: Duration },
    PauseReplica { replica: usize, time: Duration },
    DrainReplica { replica: usize },
    KillSim { sim: usize, down: Duration },
    PauseSim { sim: usize, time: Duration },
    RestartSim { sim: usize },
    BreakStreams { sim: usize, fault: StreamFault, after: u64, times: u64 },
    KillRedis { primary: usize, down: Duration },
    PauseRedis { primary: usize, time: Duration },
    CutRedis { primary: usize },
    HandOverRedis { primary: usize },
    MoveSlot { primary: usize, bucket: u16 },
}

impl Fault {
    /// Returns the kind, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::KillReplica { .. } => "replica killed",
            Self::PauseReplica { .. } => "replica paused",
            Self::DrainReplica { .. } => "replica drained",
            Self::KillSim { .. } => "sim killed",
            Self::PauseSim { .. } => "sim paused",
            Self::RestartSim { .. } => "sim restarted",
            Self::BreakStreams { .. } => "streams broken",
            Self::KillRedis { .. } => "Redis primary killed",
            Self::PauseRedis { .. } => "Redis primary paused",
            Self::CutRedis { .. } => "connections to Redis cut",
            Self::HandOverRedis { .. } => "Redis failover in order",
            Self::MoveSlot { .. } => "slot moved",
        }
    }

    /// Returns whether it is a fault of Redis.
    pub fn is_of_redis(&self) -> bool {
        matches!(
            self,
            Self::KillRedis { .. }
                | Self::PauseRedis { .. }
                | Self::CutRedis { .. }
                | Self::HandOverRedis { .. }
                | Self::MoveSlot { .. }
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Self::KillReplica { replica: number, down: time }
            | Self::PauseReplica { replica: number, time }
            | Self::KillSim { sim: number, down: time }
            | Self::PauseSim { sim: number, time }
            | Self::KillRedis { primary: number, down: time }
            | Self::PauseRedis { primary: number, time } => {
                write!(f, "{kind}: {number}, for {:.1} s", time.as_secs_f64())
            }
            Self::DrainReplica { replica: number }
            | Self::RestartSim { sim: number }
            | Self::CutRedis { primary: number }
            | Self::HandOverRedis { primary: number } => write!(f, "{kind}: {number}"),
            Self::BreakStreams { sim, fault, after, times } => {
                write!(f, "{kind}: {sim}, {} after {after} pieces, {times} times", fault.name())
            }
            Self::MoveSlot { primary, bucket } => write!(f, "{kind}: {primary}, near b{bucket}"),
        }
    }
}

/// A fault and its time since the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The time.
    pub at: Duration,
    /// The fault.
    pub fault: Fault,
}

/// The input of a plan.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The seed, which decides everything.
    pub seed: u64,
    /// The length of the run.
    pub length: Duration,
    /// The kind of Redis.
    pub redis: RedisKind,
    /// The number of replicas.
    pub replicas: usize,
    /// The number of sims.
    pub sims: usize,
    /// The targets that get no faults.
    pub spared: Vec<Part>,
}

/// Returns the faults of a run, in the order of their times.
pub fn plan(setting: &Setting) -> Vec<Planned> {
    let mut planner = Planner {
        random: StdRng::seed_from_u64(setting.seed),
        replicas: vec![0.0; setting.replicas],
        sims: vec![0.0; setting.sims],
        next_redis: FIRST_REDIS,
    };
    let mut faults = Vec::new();
    let end = setting.length.saturating_sub(LAST).as_secs_f64();
    let mut now = FIRST.as_secs_f64();
    while now < end {
        if let Some(fault) = planner.fault(setting, now) {
            faults.push(Planned { at: Duration::from_secs_f64(now), fault });
        }
        now += planner.random.random_range(BETWEEN.0..BETWEEN.1);
    }
    faults
}

struct Planner {
    random: StdRng,
    /// The time until which each process is out, in seconds.
    replicas: Vec<f64>,
    sims: Vec<f64>,
    next_redis: f64,
}

impl Planner {
    fn fault(&mut self, setting: &Setting, now: f64) -> Option<Fault> {
        let spared = |part| setting.spared.contains(&part);
        if setting.redis != RedisKind::Single && !spared(Part::Redis) && now >= self.next_redis {
            self.next_redis = now + self.random.random_range(BETWEEN_REDIS.0..BETWEEN_REDIS.1);
            return Some(self.redis_fault(setting.redis));
        }
        let of_replicas = self.random.random_range(0..100) < 55;
        match (spared(Part::Replicas), spared(Part::Sims)) {
            (true, true) => None,
            (true, false) => self.sim_fault(now),
            (false, true) => self.replica_fault(now),
            (false, false) if of_replicas => {
                self.replica_fault(now).or_else(|| self.sim_fault(now))
            }
            (false, false) => self.sim_fault(now).or_else(|| self.replica_fault(now)),
        }
    }

    fn time(&mut self, from: f64, to: f64) -> Duration {
        Duration::from_millis((self.random.random_range(from..to) * 1000.0) as u64)
    }

    fn replica_fault(&mut self, now: f64) -> Option<Fault> {
        let replica = free(&self.replicas, REPLICAS_OUT, now, &mut self.random)?;
        let (fault, out) = match self.random.random_range(0..10) {
            0..5 => {
                let down = self.time(0.2, 4.0);
                (Fault::KillReplica { replica, down }, down.as_secs_f64() + START)
            }
            5..8 => {
                let time = self.time(1.0, 10.0);
                (Fault::PauseReplica { replica, time }, time.as_secs_f64() + 1.0)
            }
            _ => (Fault::DrainReplica { replica }, DRAIN + START),
        };
        self.replicas[replica] = now + out;
        Some(fault)
    }

    fn sim_fault(&mut self, now: f64) -> Option<Fault> {
        let kind = self.random.random_range(0..10);
        if kind < 6 {
            // Only a process that runs can have a fault.
            let sim = free(&self.sims, self.sims.len(), now, &mut self.random)?;
            let faults = [
                StreamFault::Cut,
                StreamFault::Error,
                StreamFault::End,
                StreamFault::Stall,
                StreamFault::Hang,
            ];
            let fault = faults[self.random.random_range(0..faults.len())];
            let after = self.random.random_range(1..80);
            let times = self.random.random_range(1..6);
            return Some(Fault::BreakStreams { sim, fault, after, times });
        }
        let sim = free(&self.sims, SIMS_OUT, now, &mut self.random)?;
        let (fault, out) = match kind {
            6 | 7 => {
                let down = self.time(0.2, 4.0);
                (Fault::KillSim { sim, down }, down.as_secs_f64() + START)
            }
            8 => {
                let time = self.time(1.0, 6.0);
                (Fault::PauseSim { sim, time }, time.as_secs_f64() + 1.0)
            }
            _ => (Fault::RestartSim { sim }, START),
        };
        self.sims[sim] = now + out;
        Some(fault)
    }

    fn redis_fault(&mut self, kind: RedisKind) -> Fault {
        let primary = self.random.random_range(0..3);
        let of_cluster = kind == RedisKind::Cluster;
        match self.random.random_range(0..if of_cluster { 5 } else { 3 }) {
            0 => Fault::KillRedis { primary, down: self.time(3.0, 6.0) },
            1 => Fault::PauseRedis { primary, time: self.time(1.0, 8.0) },
            2 => Fault::CutRedis { primary },
            3 => Fault::HandOverRedis { primary },
            _ => Fault::MoveSlot { primary, bucket: self.random.random_range(0..256) },
        }
    }
}

/// Chooses a process that runs, where another may be out.
fn free(out_until: &[f64], most: usize, now: f64, random: &mut StdRng) -> Option<usize> {
    let free: Vec<usize> = out_until
        .iter()
        .enumerate()
        .filter(|(_, until)| **until <= now)
        .map(|(at, _)| at)
        .collect();
    let out = out_until.len() - free.len();
    let choice = random.random_range(0..out_until.len());
    (out < most && !free.is_empty()).then(|| free[choice % free.len()])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn setting(seed: u64, redis: RedisKind) -> Setting {
        let length = Duration::from_mins(10);
        Setting { seed, length, redis, replicas: 3, sims: 2, spared: Vec::new() }
    }

    #[test]
    fn the_seed_repeats_the_plan_and_another_gives_another() {
        let plan_of = |seed| plan(&setting(seed, RedisKind::Sentinel));
        assert_eq!(plan_of(7), plan_of(7));
        assert_ne!(plan_of(7), plan_of(8));
    }

    #[test]
    fn ten_minutes_hold_a_hundred_faults_of_nearly_all_kinds_and_redis_has_its_pauses() {
        let mut all = BTreeSet::new();
        for seed in 0..20 {
            let faults = plan(&setting(seed, RedisKind::Cluster));
            assert!(faults.len() >= 100, "{} with seed {seed}", faults.len());
            let kinds: BTreeSet<_> = faults.iter().map(|planned| planned.fault.kind()).collect();
            assert!(kinds.len() >= 10, "{kinds:?} with seed {seed}");
            all.extend(kinds);
            let of_redis: Vec<f64> = faults
                .iter()
                .filter(|planned| planned.fault.is_of_redis())
                .map(|planned| planned.at.as_secs_f64())
                .collect();
            assert!(of_redis.windows(2).all(|pair| pair[1] - pair[0] >= 15.0));
        }
        assert_eq!(all.len(), 12, "{all:?}");
    }

    #[test]
    fn a_replica_and_a_host_are_always_left_to_serve() {
        for seed in 0..50 {
            let mut out = [0.0_f64; 3];
            for Planned { at, fault } in plan(&setting(seed, RedisKind::Sentinel)) {
                let now = at.as_secs_f64();
                let (replica, time) = match fault {
                    Fault::KillReplica { replica, down } => (replica, down.as_secs_f64() + START),
                    Fault::PauseReplica { replica, time } => (replica, time.as_secs_f64()),
                    Fault::DrainReplica { replica } => (replica, DRAIN + START),
                    _ => continue,
                };
                assert!(out[replica] <= now, "seed {seed} at {now}");
                out[replica] = now + time;
                assert!(out.iter().filter(|until| **until > now).count() <= REPLICAS_OUT);
            }
        }
    }
}
