//! Sharded subscriptions that survive failovers and moved hash slots.
//!
//! fred loses them without an error on a failover and when a hash slot moves, so this module
//! keeps the set of wanted channels and subscribes to them again: after every reconnection, once a
//! second while a subscription is refused, and in a cluster also whenever a hash slot has moved,
//! and every half minute in any case.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fred::prelude::{
    Client, ClientLike, ClusterInterface, Error, ErrorKind, EventInterface, PubsubInterface, Server,
};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot};

use super::client::{connect, replace};
use super::connection::Redis;
use super::error::{RedisError, classify};
use super::watchdog::{self, Disturbances};
use crate::lifecycle::TaskEnd;

/// Receives the messages of subscribed channels, on a task that must not wait.
pub trait Listener: Send + Sync + 'static {
    /// Receives a message of a channel.
    fn message(&self, channel: &str, payload: &str);
    /// Learns that messages of any channel may have been lost, so that Redis must be read instead.
    fn gap(&self);
}

/// Clients that share the channels, because fred does not pipeline SSUBSCRIBE.
const CLIENTS: usize = 4;
/// Messages that may wait for the listener. fred reserves this room for every kind of event, 3.5 MiB
/// a client. Its default of 32 loses most of a burst.
pub const MESSAGES: usize = 2048;
/// Room for channels that is kept in any case.
const SMALLEST_TABLE: usize = 1024;
/// Changes that may wait for one client: more than a replica has sockets.
const CHANGES: usize = 32_768;
/// Time between two reads of the hash slots.
const READ_CLUSTER_EVERY: Duration = Duration::from_secs(1);
/// Reads of the hash slots after which all channels are subscribed again, even if none has
/// moved.
const READS_UNTIL_ALL_AGAIN: u32 = 30;
/// Passes over all channels after a hash slot has moved: during the move, a subscription may go
/// to the node that had it.
const PASSES_AFTER_A_MOVE: u32 = 3;

/// The channels that this replica is subscribed to. Cloning is cheap, and clones share everything.
#[derive(Clone)]
pub struct Subscriptions {
    shards: Arc<[Shard]>,
    hasher: RandomState,
}

struct Shard {
    wanted: Arc<Mutex<HashSet<String>>>,
    changes: mpsc::Sender<SubscriptionChange>,
    health: Arc<Health>,
}

/// A subscribed channel, as [`Subscriptions::subscribe`] returns it.
#[derive(Clone, Debug)]
pub struct Subscription(Arc<Health>);

impl Subscription {
    /// Returns whether messages of the channel are expected to arrive: no connection was lost since
    /// the subscriptions were confirmed. Cheap enough for every piece of text.
    pub fn is_confirmed(&self) -> bool {
        self.0.is_confirmed()
    }
}

/// Whether all subscriptions of one client are in force, as far as the client knows.
#[derive(Debug, Default)]
struct Health {
    /// Connections that were lost.
    losses: AtomicU64,
    /// The number of losses, plus one, that the last confirmation covers.
    confirmed: AtomicU64,
}

impl Health {
    fn note_loss(&self) {
        self.losses.fetch_add(1, Ordering::SeqCst);
    }

    fn losses(&self) -> u64 {
        self.losses.load(Ordering::SeqCst)
    }

    /// Notes that all channels were subscribed to after this many losses.
    fn confirm(&self, losses: u64) {
        self.confirmed.store(losses + 1, Ordering::SeqCst);
    }

    fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::SeqCst) == self.losses() + 1
    }
}

enum SubscriptionChange {
    Subscribe(String, oneshot::Sender<Result<(), RedisError>>),
    Unsubscribe(String),
}

impl Subscriptions {
    /// Starts the subscribing clients.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn start(redis: &Redis, listener: &Arc<dyn Listener>) -> Result<Self, RedisError> {
        Self::start_with(redis, listener, CLIENTS, MESSAGES)
    }

    /// Starts a number of clients, of which one is enough for a few channels. For each client
    /// `messages` may wait for the listener.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn start_with(
        redis: &Redis,
        listener: &Arc<dyn Listener>,
        clients: usize,
        messages: usize,
    ) -> Result<Self, RedisError> {
        let mut shards = Vec::with_capacity(clients);
        for _ in 0..clients {
            let client = connect(&redis.options, &[], messages)?;
            shards.push(Shard::start(redis, client, listener, messages));
        }
        Ok(Self { shards: shards.into(), hasher: RandomState::new() })
    }

    /// Subscribes to a channel until [`Subscriptions::unsubscribe`], over reconnections, too.
    /// Returns when messages from now on will arrive.
    ///
    /// # Errors
    /// [`RedisError::Unavailable`]: the channel is then still wanted, and a [`Listener::gap`]
    /// follows when it is subscribed.
    pub async fn subscribe(&self, channel: &str) -> Result<Subscription, RedisError> {
        let shard = self.shard(channel);
        lock(&shard.wanted).insert(channel.to_owned());
        let (done, subscribed) = oneshot::channel();
        let change = SubscriptionChange::Subscribe(channel.to_owned(), done);
        if shard.changes.send(change).await.is_err() {
            return Err(closing());
        }
        subscribed.await.unwrap_or_else(|_| Err(closing()))?;
        Ok(Subscription(Arc::clone(&shard.health)))
    }

    /// Unsubscribes from a channel.
    pub fn unsubscribe(&self, channel: &str) {
        let shard = self.shard(channel);
        {
            let mut wanted = lock(&shard.wanted);
            wanted.remove(channel);
            // A burst of channels must not keep its room.
            if wanted.capacity() > SMALLEST_TABLE && wanted.len() < wanted.capacity() / 4 {
                let room = wanted.len() * 2;
                wanted.shrink_to(room);
            }
        }
        // Without room the channel stays subscribed, and the listener ignores its messages.
        let _ = shard.changes.try_send(SubscriptionChange::Unsubscribe(channel.to_owned()));
    }

    fn shard(&self, channel: &str) -> &Shard {
        &self.shards[self.hasher.hash_one(channel) as usize % self.shards.len()]
    }
}

impl Shard {
    fn start(
        redis: &Redis,
        mut client: Client,
        listener: &Arc<dyn Listener>,
        messages: usize,
    ) -> Self {
        let wanted = Arc::new(Mutex::new(HashSet::new()));
        let (changes, mut inbox) = mpsc::channel(CHANGES);
        let (options, mut primary) = (redis.options.clone(), redis.primary.clone());
        let (channels, listener) = (Arc::clone(&wanted), Arc::clone(listener));
        let health = Arc::<Health>::default();
        let shared = Arc::clone(&health);
        let lifecycle = redis.lifecycle().clone();
        redis.lifecycle().spawn("subscriptions", async move {
            let disturbances = Disturbances::new();
            loop {
                let listen = listen(client.clone(), Arc::clone(&listener), Arc::clone(&shared));
                let listening = lifecycle.spawn("messages of subscriptions", listen);
                let end = tokio::select! {
                    end = keep_subscribed(&client, &channels, &mut inbox, &*listener, &shared) => end,
                    () = watchdog::until_unresponsive(&client, &mut primary, &disturbances) => {
                        SubscribingEnd::ClientEnded
                    }
                };
                listening.abort();
                shared.note_loss();
                if let SubscribingEnd::Closed = end {
                    return TaskEnd::Done;
                }
                client = match replace(&options, client, messages) {
                    Ok(next) => next,
                    Err(error) => return TaskEnd::Failed(error.to_string()),
                };
            }
        });
        Self { wanted, changes, health }
    }
}

async fn listen(client: Client, listener: Arc<dyn Listener>, health: Arc<Health>) -> TaskEnd {
    let (mut messages, mut errors) = (client.message_rx(), client.error_rx());
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            lost = errors.recv() => match lost {
                Ok(_) | Err(RecvError::Lagged(_)) => {
                    health.note_loss();
                    continue;
                }
                Err(RecvError::Closed) => return TaskEnd::Done,
            },
        };
        match message {
            Ok(message) => {
                if let Some(payload) = message.value.as_bytes_str() {
                    listener.message(&message.channel, &payload);
                }
            }
            Err(RecvError::Lagged(lost)) => {
                tracing::warn!(lost, "messages of subscriptions lost; reading redis instead");
                listener.gap();
            }
            // The client has ended, and another replaces it.
            Err(RecvError::Closed) => return TaskEnd::Done,
        }
    }
}

/// Why a task no longer subscribes on its client.
enum SubscribingEnd {
    /// The [`Subscriptions`] are dropped.
    Closed,
    /// The client has ended, or no longer replies.
    ClientEnded,
}

/// Subscribes and unsubscribes on a client, one channel a call: with several calls at a time, fred
/// confuses their replies.
async fn keep_subscribed(
    client: &Client,
    wanted: &Mutex<HashSet<String>>,
    changes: &mut mpsc::Receiver<SubscriptionChange>,
    listener: &dyn Listener,
    health: &Health,
) -> SubscribingEnd {
    let mut reconnections = client.reconnect_rx();
    let mut tick = tokio::time::interval(READ_CLUSTER_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut cluster = Cluster::default();
    if client.is_connected() {
        // The client connected before this task observed its reconnections.
        subscribe_all(client, wanted, health).await;
        listener.gap();
    }
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Some(SubscriptionChange::Subscribe(channel, done)) => {
                    let _ = done.send(subscribe(client, &channel).await.map_err(classify));
                }
                Some(SubscriptionChange::Unsubscribe(channel)) => {
                    let wanted_again = lock(wanted).contains(&channel);
                    if !wanted_again {
                        let _ = client.sunsubscribe(channel).await;
                    }
                }
                None => return SubscribingEnd::Closed,
            },
            reconnected = reconnections.recv() => {
                if matches!(reconnected, Err(RecvError::Closed)) {
                    return SubscribingEnd::ClientEnded;
                }
                let complete = subscribe_all(client, wanted, health).await;
                cluster.subscribed(complete);
                listener.gap();
            }
            _ = tick.tick(), if client.is_connected() => {
                Redis::refresh_cluster(client).await;
                if cluster.is_pass_due(client) || !health.is_confirmed() {
                    let complete = subscribe_all(client, wanted, health).await;
                    cluster.subscribed(complete);
                    if cluster.passes > 0 {
                        // Until the last pass a subscription may be on the node that had the slot.
                        health.note_loss();
                    }
                    listener.gap();
                }
            }
        }
    }
}

/// The hash slots, as they were last read, and the passes that are due.
#[derive(Default)]
struct Cluster {
    slots: Vec<(u16, u16, Server)>,
    passes: u32,
    reads: u32,
}

impl Cluster {
    fn is_pass_due(&mut self, client: &Client) -> bool {
        let Some(state) = client.cached_cluster_state() else { return false };
        let slots: Vec<_> = state
            .slots()
            .iter()
            .map(|range| (range.start, range.end, range.primary.clone()))
            .collect();
        if slots != self.slots {
            self.passes = PASSES_AFTER_A_MOVE;
            self.slots = slots;
        }
        self.reads += 1;
        self.passes > 0 || self.reads >= READS_UNTIL_ALL_AGAIN
    }

    fn subscribed(&mut self, complete: bool) {
        self.reads = 0;
        self.passes = if complete { self.passes.saturating_sub(1) } else { PASSES_AFTER_A_MOVE };
    }
}

/// Subscribes to all channels, and confirms them. Returns whether every subscription succeeded.
async fn subscribe_all(client: &Client, wanted: &Mutex<HashSet<String>>, health: &Health) -> bool {
    let losses = health.losses();
    let channels: Vec<String> = lock(wanted).iter().cloned().collect();
    for channel in channels {
        if subscribe(client, &channel).await.is_err() {
            return false;
        }
    }
    health.confirm(losses);
    true
}

/// Subscribes to a channel, twice where the hash slot has moved: fred has read the hash slots
/// again by then.
async fn subscribe(client: &Client, channel: &str) -> Result<(), Error> {
    match client.ssubscribe(channel).await {
        Err(error) if *error.kind() == ErrorKind::Routing => client.ssubscribe(channel).await,
        subscribed => subscribed,
    }
}

fn lock(wanted: &Mutex<HashSet<String>>) -> std::sync::MutexGuard<'_, HashSet<String>> {
    wanted.lock().unwrap_or_else(PoisonError::into_inner)
}

fn closing() -> RedisError {
    RedisError::Unexpected("the subscriptions are closed".to_owned())
}
