//! The primary that the sentinels name, and its *primary lease*: until when the server is certain
//! to be the primary.
//!
//! A primary that was stopped wakes up as a primary. For about eight seconds, until the sentinels
//! make it a Redis replica, it takes writes that are lost then, and its replies are out of date. So
//! the functions refuse every call on a server whose primary lease is over. The primary lease is a
//! time on the server's own clock, kept in a key. It is extended as long as the server replies and
//! the sentinels, polled after that, see nothing wrong with it: they replace such a server no
//! sooner than after `down-after-milliseconds` without a reply.

mod server;
mod view;

use std::time::Duration;

use fred::prelude::{Config, Error, ErrorKind, Server, ServerConfig};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::error::RedisError;
use super::keys::PRIMARY_LEASE;
use crate::lifecycle::{Lifecycle, TaskEnd, spawn_caught};
use server::{PolledServer, SentinelFault};
use view::{LONGEST_LEASE, SentinelView, is_replaced, named, primary_lease};

/// Time between two polls.
const INTERVAL: Duration = Duration::from_millis(250);
/// How long no majority of the sentinels is reached before the primary lease is extended without
/// them. Without a majority the sentinels cannot replace the primary.
const WITHOUT_MAJORITY: Duration = Duration::from_secs(5);

/// Extends a primary lease. A replica that was late must not shorten it. A primary lease that ends
/// more than ten seconds later was copied from another server, whose clock is wrong.
const EXTEND: &str = "#!lua flags=allow-oom
    local lease, longer = tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(ARGV[1])
    if lease < longer or lease > longer + 10000000 then
      redis.call('SET', KEYS[1], ARGV[1])
    end
    return 'ok'";

/// The primary that the sentinels name. Without sentinels the primary is unknown, and its lease has
/// no end.
#[derive(Clone)]
pub(super) struct Primary {
    server: watch::Receiver<Option<Server>>,
    /// When the primary lease ends, on this replica's clock; none without sentinels.
    lease_end: Option<watch::Receiver<Instant>>,
    /// Why so many sentinels are of no use that the others are no majority.
    fault: watch::Receiver<Option<SentinelFault>>,
}

impl Primary {
    /// Resolves when another server is the primary; an error where there are no sentinels.
    pub(super) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.server.changed().await
    }

    /// Returns the primary that most sentinels name; none before the first poll, and without
    /// sentinels.
    pub(super) fn server(&mut self) -> watch::Ref<'_, Option<Server>> {
        self.server.borrow_and_update()
    }

    /// Returns why so many sentinels are of no use that the others are no majority, as the error of
    /// a call.
    pub(super) fn fault(&self) -> Option<RedisError> {
        self.fault.borrow().map(SentinelFault::error)
    }

    /// Returns the key of the primary lease, which is the last argument of every function; `-`
    /// without sentinels. Waits until the primary is certain.
    ///
    /// # Errors
    /// [`RedisError::Unavailable`] or the fault of the sentinels, if the primary is uncertain for
    /// longer than `limit`.
    pub(super) async fn lease_key(&self, limit: Duration) -> Result<&'static str, RedisError> {
        let Some(lease_end) = &self.lease_end else { return Ok("-") };
        let is_certain = |end: &Instant| Instant::now() < *end;
        let now = *lease_end.borrow();
        if is_certain(&now)
            || matches!(timeout(limit, lease_end.clone().wait_for(is_certain)).await, Ok(Ok(_)))
        {
            return Ok(PRIMARY_LEASE);
        }
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        let details = "the sentinels name no certain primary";
        Err(RedisError::Unavailable(Error::new(ErrorKind::Sentinel, details)))
    }
}

/// Starts a task that polls the sentinels of a configuration, as long as the result is in use.
pub(super) fn follow(config: &Config, lifecycle: &Lifecycle) -> Primary {
    let (server_sender, server) = watch::channel(None);
    let ServerConfig::Sentinel { hosts, service_name, username, password } = &config.server else {
        return Primary { server, lease_end: None, fault: watch::channel(None).1 };
    };
    let sentinels = hosts
        .iter()
        .filter_map(|host| {
            let credentials = (username.clone(), password.clone());
            PolledServer::new(config, host.clone(), credentials)
        })
        .collect();
    let (fault_sender, fault) = watch::channel(None);
    let (lease_end_sender, lease_end) = watch::channel(Instant::now());
    let watcher = SentinelWatcher {
        config: config.clone(),
        sentinels,
        name: service_name.clone(),
        primary: None,
        majority_at: Instant::now(),
        server: server_sender,
        lease_end: lease_end_sender,
        fault: fault_sender,
    };
    lifecycle.spawn("sentinels", watcher.run());
    Primary { server, lease_end: Some(lease_end), fault }
}

/// Polls the sentinels and the primary, and extends the primary lease.
struct SentinelWatcher {
    config: Config,
    sentinels: Vec<PolledServer>,
    /// The name by which the sentinels know the primary.
    name: String,
    primary: Option<PolledServer>,
    /// When a majority of the sentinels last replied.
    majority_at: Instant,
    server: watch::Sender<Option<Server>>,
    lease_end: watch::Sender<Instant>,
    fault: watch::Sender<Option<SentinelFault>>,
}

impl SentinelWatcher {
    async fn run(mut self) -> TaskEnd {
        let mut tick = interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.server.is_closed() {
            tick.tick().await;
            if self.poll().await {
                tick.reset_immediately();
            }
        }
        for server in self.sentinels.into_iter().chain(self.primary) {
            server.quit().await;
        }
        TaskEnd::Done
    }

    /// Polls once. Returns whether another primary is named, so that the next poll is due at once.
    async fn poll(&mut self) -> bool {
        let polled_at = Instant::now();
        let time = match &mut self.primary {
            Some(primary) => primary.time().await,
            None => None,
        };
        let views = self.sentinels.iter_mut().map(|sentinel| sentinel.view(&self.name));
        let views: Vec<SentinelView> =
            futures_util::future::join_all(views).await.into_iter().flatten().collect();
        self.note_fault();
        let primary = self.primary.as_ref().map(PolledServer::server);
        let (named, lease) = if views.len() * 2 > self.sentinels.len() {
            self.majority_at = Instant::now();
            let lease = primary.and_then(|server| primary_lease(&views, server));
            (named(&views, self.sentinels.len()), lease)
        } else if self.majority_at.elapsed() > WITHOUT_MAJORITY {
            (None, Some(LONGEST_LEASE))
        } else {
            (None, None)
        };
        if let (Some(time), Some(lease)) = (time, lease) {
            self.extend_lease(polled_at, time, lease).await;
        } else if primary.is_some_and(|server| is_replaced(&views, server)) {
            self.end_lease().await;
        }
        let Some(server) = named else { return false };
        let has_moved = primary != Some(&server);
        if has_moved {
            let credentials = (self.config.username.clone(), self.config.password.clone());
            let next = PolledServer::new(&self.config, server.clone(), credentials);
            if let Some(last) = std::mem::replace(&mut self.primary, next) {
                spawn_caught("redis", last.quit());
            }
        }
        self.server.send_if_modified(|known| {
            let is_new = known.as_ref() != Some(&server);
            *known = Some(server);
            is_new
        });
        has_moved && self.primary.is_some()
    }

    fn note_fault(&self) {
        let faults = || self.sentinels.iter().filter_map(PolledServer::fault);
        let next = faults().next().filter(|_| faults().count() * 2 >= self.sentinels.len().max(1));
        if self.fault.send_replace(next) != next
            && let Some(fault) = next
        {
            let error = fault.error();
            tracing::error!(%error, "sentinels of no use; trying again");
        }
    }

    /// Extends the primary lease of a server that replied at `time` on its clock, in microseconds,
    /// to a poll at `polled_at` on this replica's clock.
    async fn extend_lease(&self, polled_at: Instant, time: i64, lease: Duration) {
        let Some(primary) = &self.primary else { return };
        let end = time + i64::try_from(lease.as_micros()).unwrap_or(i64::MAX);
        let reply =
            primary.command("EVAL", vec![EXTEND, "1", PRIMARY_LEASE, &end.to_string()]).await;
        if reply.is_some() {
            self.lease_end.send_replace(polled_at + lease);
        }
    }

    /// Ends the primary lease of a server that is being replaced although it replies.
    async fn end_lease(&self) {
        self.lease_end.send_replace(Instant::now());
        if let Some(primary) = &self.primary {
            primary.command("SET", vec![PRIMARY_LEASE, "0"]).await;
        }
    }
}
