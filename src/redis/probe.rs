//! Watches whether a turn could be taken with Redis as it is.
//!
//! One task asks once a second, and everybody who wants to know reads its last result: probes from
//! outside cost Redis nothing, and they all get the same answer. What is asked is a call of a function
//! that Redis refuses wherever it would refuse a new turn.

use std::borrow::Cow;
use std::time::Duration;

use fred::prelude::ClusterInterface;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::connection::Redis;
use super::error::RedisError;
use super::functions::Call;
use super::migrations;
use crate::retry::Backoff;

/// Between two probes, and while something is wrong.
const INTERVAL: Duration = Duration::from_secs(1);
const INTERVAL_IN_TROUBLE: Duration = Duration::from_millis(250);
/// How long a probe may take.
const LIMIT: Duration = Duration::from_secs(1);
/// Of the sessions' keys, each bucket's lie in one slot.
const BUCKETS: u16 = 256;
/// The queue's keys lie in one slot, too.
const QUEUE: &str = "jarvis:{queue}:probe";
/// The commands that need a permission for channels.
const CHANNELS: [&str; 2] = ["SPUBLISH", "SSUBSCRIBE"];

/// What the last probe found.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// Why no turn can be taken now, in a few words; none where one can. Empty before the first probe.
    trouble: Option<Cow<'static, str>>,
    /// Whether that is for lack of memory alone.
    full: bool,
    /// When a turn could be taken last, were it not for memory.
    usable_at: Option<Instant>,
}

impl Condition {
    /// Why no turn can be taken now, in a few words; none where one can.
    pub fn trouble(&self) -> Option<&str> {
        match (&self.trouble, self.usable_at) {
            (None, None) => Some("not reached yet"),
            (trouble, _) => trouble.as_deref(),
        }
    }

    /// Whether no turn can be taken for lack of memory alone.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Whether Redis was ever usable, and not for longer than `patience` ago.
    pub fn is_usable_within(&self, patience: Duration) -> bool {
        self.usable_at.is_some_and(|at| at.elapsed() <= patience)
    }

    /// What follows from one probe.
    fn after(&self, probed: &Probed) -> Self {
        let now = Instant::now();
        match probed {
            Probed::Usable => Self { trouble: None, full: false, usable_at: Some(now) },
            Probed::Full => Self::full(Some(now)),
            // The functions are gone and do not fit. That, too, ends no replica that was ready.
            Probed::Refused(RedisError::OutOfMemory) => Self::full(self.usable_at.map(|_| now)),
            Probed::Refused(error) => {
                let trouble = Some(error.summary());
                Self { trouble, full: false, usable_at: self.usable_at }
            }
        }
    }

    fn full(usable_at: Option<Instant>) -> Self {
        Self { trouble: Some(RedisError::OutOfMemory.summary()), full: true, usable_at }
    }
}

/// What one probe found.
enum Probed {
    /// A turn could be taken.
    Usable,
    /// A turn could be taken, were there memory for it.
    Full,
    /// No turn could be taken.
    Refused(RedisError),
}

/// Gives the condition of Redis, and keeps it up to date.
pub struct Conditions {
    redis: Redis,
    told: watch::Sender<Condition>,
}

impl Conditions {
    /// Nothing is known before [`Conditions::follow`] runs.
    pub fn of(redis: &Redis) -> Self {
        Self { redis: redis.clone(), told: watch::Sender::default() }
    }

    /// The condition as it changes.
    pub fn subscribe(&self) -> watch::Receiver<Condition> {
        self.told.subscribe()
    }

    /// Applies the migrations as soon as Redis can take them, and probes it, for ever.
    ///
    /// # Errors
    /// [`RedisError::Migration`]: this release must not run on what Redis holds.
    pub async fn follow(self) -> Result<(), RedisError> {
        tokio::select! {
            refused = self.migrate() => refused,
            () = self.probe() => Ok(()),
        }
    }

    /// Returns only where this release must not run.
    async fn migrate(&self) -> Result<(), RedisError> {
        let (mut last, mut backoff) = (Cow::Borrowed(""), Backoff::redis());
        loop {
            match migrations::apply(&self.redis).await {
                Ok(()) => break,
                Err(error @ RedisError::Migration(_)) => return Err(error),
                Err(error) => {
                    if !self.redis.is_checked() {
                        self.learn(&Probed::Refused(error));
                    } else if error.summary() != last {
                        last = error.summary();
                        tracing::warn!(%error, "loading the functions into redis failed; trying again");
                    }
                    let _ = backoff.pause().await;
                }
            }
        }
        std::future::pending().await
    }

    async fn probe(&self) {
        loop {
            if self.redis.is_checked() {
                let probed = timeout(LIMIT, probe(&self.redis)).await;
                self.learn(&probed.unwrap_or_else(|_| Probed::Refused(self.redis.timed_out())));
            }
            let well = self.told.borrow().trouble().is_none();
            sleep(if well { INTERVAL } else { INTERVAL_IN_TROUBLE }).await;
        }
    }

    fn learn(&self, probed: &Probed) {
        let next = self.told.borrow().after(probed);
        let known = self.told.send_replace(next.clone());
        match (known.trouble(), next.trouble(), probed) {
            (Some(_), None, _) => tracing::info!("redis is ready"),
            (before, after, Probed::Refused(error)) if before != after => {
                tracing::error!(%error, "redis takes no turns");
            }
            (before, after, Probed::Full) if before != after => {
                tracing::error!(error = %RedisError::OutOfMemory, "redis is full");
            }
            _ => {}
        }
    }
}

/// Asks every primary at once; the worst reply counts.
async fn probe(redis: &Redis) -> Probed {
    let keys = keys(redis);
    let mut worst = Probed::Usable;
    for probed in join_all(keys.iter().map(|key| probe_one(redis, key))).await {
        match (&worst, &probed) {
            (_, Probed::Usable) | (Probed::Full, Probed::Full) | (Probed::Refused(_), _) => {}
            _ => worst = probed,
        }
    }
    worst
}

async fn probe_one(redis: &Redis, key: &str) -> Probed {
    let denied: Result<Vec<String>, _> =
        redis.call(Call::new("jarvis_probe_1").key("any", key.to_owned())).await;
    match denied {
        Ok(denied) if denied.is_empty() => Probed::Usable,
        Ok(denied) => {
            let missing = if denied.iter().all(|command| CHANNELS.contains(&command.as_str())) {
                "channels".to_owned()
            } else {
                denied.join(", ")
            };
            let details = format!("{} on {key}", denied.join(", "));
            Probed::Refused(RedisError::Permission { missing, details })
        }
        // Either it is too full to run the function, or too full to load it. A function that only
        // reads tells which.
        Err(RedisError::OutOfMemory) => {
            let open = Call::new("jarvis_open_turns_1").key("open", key.to_owned());
            match redis.call_readonly::<Vec<String>>(open).await {
                Ok(_) => Probed::Full,
                Err(error) => Probed::Refused(error),
            }
        }
        Err(error) => Probed::Refused(error),
    }
}

/// A key on each primary, and the queue's.
fn keys(redis: &Redis) -> Vec<String> {
    let mut keys = vec![QUEUE.to_owned()];
    let bucket = |bucket: u16| format!("jarvis:{{b{bucket}}}:probe");
    let Some(cluster) = redis.client().cached_cluster_state() else {
        keys.push(bucket(0));
        return keys;
    };
    let mut seen = Vec::new();
    for key in (0..BUCKETS).map(bucket) {
        let node = cluster.get_server(fred::util::redis_keyslot(key.as_bytes()));
        if let Some(node) = node.filter(|node| !seen.contains(node)) {
            seen.push(node);
            keys.push(key);
        }
    }
    keys
}
