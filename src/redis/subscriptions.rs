//! Sharded subscriptions that stay.
//!
//! fred loses them silently on a failover and when a slot moves, so the set of wanted channels is
//! kept here and subscribed again: after every reconnection, in a cluster whenever a slot has moved,
//! and there every half minute whatever is known.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fred::prelude::{
    Client, ClientLike, ClusterInterface, Error, ErrorKind, EventInterface, PubsubInterface, Server,
};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot};

use super::connection::{Redis, connect, successor};
use super::error::{RedisError, classify};
use super::watchdog::{self, Disturbances};
use crate::lifecycle::TaskEnd;

/// What is told to whoever subscribes. Called on a task that must not wait.
pub trait Listener: Send + Sync + 'static {
    /// A message on a channel.
    fn message(&self, channel: &str, payload: &str);
    /// Messages may have been lost: whatever is followed is to be read.
    fn gap(&self);
}

/// SSUBSCRIBE is not pipelined by fred: several clients share the channels.
const CLIENTS: usize = 4;
/// Messages that may wait for the listener; fred keeps this room for every kind of notice, 14 MiB a
/// client. Its default of 32 loses most of a burst.
const MESSAGES: usize = 8192;
/// Changes that may wait for one client: more than a replica has sockets.
const CHANGES: usize = 32_768;
/// How often a cluster is asked which node has which slot.
const LOOK_AT_CLUSTER: Duration = Duration::from_secs(1);
/// Looks after which everything is subscribed again, even if nothing seems to have moved.
const LOOKS_UNTIL_ALL_AGAIN: u32 = 30;
/// Passes after a move: while it takes place a subscription may go to the node that had the slot.
const PASSES_AFTER_A_MOVE: u32 = 3;

/// The channels that this replica follows.
#[derive(Clone)]
pub struct Subscriptions {
    shards: Arc<[Shard]>,
    hasher: RandomState,
}

struct Shard {
    wanted: Arc<Mutex<HashSet<String>>>,
    changes: mpsc::Sender<Change>,
}

enum Change {
    Subscribe(String, oneshot::Sender<Result<(), RedisError>>),
    Unsubscribe(String),
}

impl Subscriptions {
    /// Starts the subscribing clients.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn start(redis: &Redis, listener: &Arc<dyn Listener>) -> Result<Self, RedisError> {
        Self::start_with(redis, listener, CLIENTS)
    }

    /// As [`Subscriptions::start`], with so many clients: one is enough for a few channels.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn start_with(
        redis: &Redis,
        listener: &Arc<dyn Listener>,
        clients: usize,
    ) -> Result<Self, RedisError> {
        let mut shards = Vec::with_capacity(clients);
        for _ in 0..clients {
            let client = connect(&redis.options, &[], MESSAGES)?;
            shards.push(Shard::start(redis, client, listener));
        }
        Ok(Self { shards: shards.into(), hasher: RandomState::new() })
    }

    /// Follows a channel, until [`Subscriptions::unsubscribe`], through whatever happens to the
    /// connection. Returns when messages from now on will arrive.
    ///
    /// # Errors
    /// [`RedisError::Unavailable`]: the channel is then still wanted, and a [`Listener::gap`] will
    /// tell when it is followed.
    pub async fn subscribe(&self, channel: &str) -> Result<(), RedisError> {
        let shard = self.shard(channel);
        lock(&shard.wanted).insert(channel.to_owned());
        let (done, subscribed) = oneshot::channel();
        let change = Change::Subscribe(channel.to_owned(), done);
        if shard.changes.send(change).await.is_err() {
            return Err(closing());
        }
        subscribed.await.unwrap_or_else(|_| Err(closing()))
    }

    /// Follows a channel no longer.
    pub fn unsubscribe(&self, channel: &str) {
        let shard = self.shard(channel);
        lock(&shard.wanted).remove(channel);
        // Where there is no room it stays subscribed, and what it brings is ignored.
        let _ = shard.changes.try_send(Change::Unsubscribe(channel.to_owned()));
    }

    fn shard(&self, channel: &str) -> &Shard {
        &self.shards[self.hasher.hash_one(channel) as usize % self.shards.len()]
    }
}

impl Shard {
    fn start(redis: &Redis, mut client: Client, listener: &Arc<dyn Listener>) -> Self {
        let wanted = Arc::new(Mutex::new(HashSet::new()));
        let (changes, mut inbox) = mpsc::channel(CHANGES);
        let (options, mut primary) = (redis.options.clone(), redis.primary.clone());
        let (followed, listener) = (Arc::clone(&wanted), Arc::clone(listener));
        let lifecycle = redis.lifecycle().clone();
        redis.lifecycle().spawn("subscriptions", async move {
            let disturbances = Disturbances::new();
            loop {
                let messages = listen(client.clone(), Arc::clone(&listener));
                let listening = lifecycle.spawn("messages of subscriptions", messages);
                let over = tokio::select! {
                    over = keep_subscribed(&client, &followed, &mut inbox, &*listener) => over,
                    () = watchdog::until_given_up(&client, &mut primary, &disturbances) => false,
                };
                listening.abort();
                if over {
                    return TaskEnd::Done;
                }
                client = match successor(&options, client, MESSAGES) {
                    Ok(next) => next,
                    Err(error) => return TaskEnd::CannotGoOn(error.to_string()),
                };
            }
        });
        Self { wanted, changes }
    }
}

async fn listen(client: Client, listener: Arc<dyn Listener>) -> TaskEnd {
    let mut messages = client.message_rx();
    loop {
        match messages.recv().await {
            Ok(message) => {
                if let Some(payload) = message.value.as_bytes_str() {
                    listener.message(&message.channel, &payload);
                }
            }
            Err(RecvError::Lagged(lost)) => {
                tracing::warn!(
                    lost,
                    "messages of subscriptions were lost; reading from redis instead"
                );
                listener.gap();
            }
            // The client has ended, and another takes its place.
            Err(RecvError::Closed) => return TaskEnd::Done,
        }
    }
}

/// The only task that subscribes on its client, one channel a call: with more the replies get out
/// of step. `true`: nobody can subscribe any more; `false`: the client has ended.
async fn keep_subscribed(
    client: &Client,
    wanted: &Mutex<HashSet<String>>,
    changes: &mut mpsc::Receiver<Change>,
    listener: &dyn Listener,
) -> bool {
    let mut reconnections = client.reconnect_rx();
    let mut look = tokio::time::interval(LOOK_AT_CLUSTER);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut cluster = Cluster::default();
    if client.is_connected() {
        // Before anybody listened for it.
        subscribe_all(client, wanted).await;
        listener.gap();
    }
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Some(Change::Subscribe(channel, done)) => {
                    let _ = done.send(subscribe(client, &channel).await.map_err(classify));
                }
                Some(Change::Unsubscribe(channel)) => {
                    let wanted_again = lock(wanted).contains(&channel);
                    if !wanted_again {
                        let _ = client.sunsubscribe(channel).await;
                    }
                }
                None => return true,
            },
            reconnected = reconnections.recv() => {
                if matches!(reconnected, Err(RecvError::Closed)) {
                    return false;
                }
                let complete = subscribe_all(client, wanted).await;
                cluster.subscribed(complete);
                listener.gap();
            }
            _ = look.tick(), if client.is_clustered() => {
                Redis::refresh_cluster(client).await;
                if cluster.wants_a_pass(client) {
                    let complete = subscribe_all(client, wanted).await;
                    cluster.subscribed(complete);
                    listener.gap();
                }
            }
        }
    }
}

/// What is known of a cluster, and whether its channels are to be subscribed again.
#[derive(Default)]
struct Cluster {
    slots: Vec<(u16, u16, Server)>,
    passes: u32,
    looks: u32,
}

impl Cluster {
    fn wants_a_pass(&mut self, client: &Client) -> bool {
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
        self.looks += 1;
        self.passes > 0 || self.looks >= LOOKS_UNTIL_ALL_AGAIN
    }

    fn subscribed(&mut self, complete: bool) {
        self.looks = 0;
        self.passes = if complete { self.passes.saturating_sub(1) } else { PASSES_AFTER_A_MOVE };
    }
}

/// Whether every channel could be subscribed.
async fn subscribe_all(client: &Client, wanted: &Mutex<HashSet<String>>) -> bool {
    let channels: Vec<String> = lock(wanted).iter().cloned().collect();
    for channel in channels {
        if subscribe(client, &channel).await.is_err() {
            return false;
        }
    }
    true
}

/// Once more where the slot has moved: the client has learned that by then.
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
