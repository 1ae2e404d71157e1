//! Sharded subscriptions that stay.
//!
//! fred loses them silently on a failover and when a slot moves, so the set of wanted channels is
//! kept here and subscribed again: after every reconnection, and in a cluster every two seconds.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fred::prelude::{Client, ClientLike, EventInterface, PubsubInterface};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot};

use super::connection::{Redis, RedisError, RedisOptions, builder, classify};

/// What is told to whoever subscribes. Called on a task that must not wait.
pub trait Listener: Send + Sync + 'static {
    /// A message on a channel.
    fn message(&self, channel: &str, payload: &str);
    /// Messages may have been lost: whatever is followed is to be read.
    fn gap(&self);
}

/// SSUBSCRIBE is not pipelined by fred: several clients share the channels.
const CLIENTS: usize = 4;
/// Changes that may wait for one client: more than a replica has sockets.
const CHANGES: usize = 32_768;
const RECONCILE_CLUSTER: Duration = Duration::from_secs(2);

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
    pub fn start(options: &RedisOptions, listener: &Arc<dyn Listener>) -> Result<Self, RedisError> {
        let mut shards = Vec::with_capacity(CLIENTS);
        for _ in 0..CLIENTS {
            let client = builder(options)?
                .build()
                .map_err(|error| RedisError::Url(error.details().to_owned()))?;
            shards.push(Shard::start(&client, listener));
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
    fn start(client: &Client, listener: &Arc<dyn Listener>) -> Self {
        let wanted = Arc::new(Mutex::new(HashSet::new()));
        let (changes, inbox) = mpsc::channel(CHANGES);
        tokio::spawn(listen(client.clone(), Arc::clone(listener)));
        let listener = Arc::clone(listener);
        tokio::spawn(keep_subscribed(client.clone(), Arc::clone(&wanted), inbox, listener));
        client.connect();
        Self { wanted, changes }
    }
}

async fn listen(client: Client, listener: Arc<dyn Listener>) {
    let mut messages = client.message_rx();
    loop {
        match messages.recv().await {
            Ok(message) => {
                if let Some(payload) = message.value.as_bytes_str() {
                    listener.message(&message.channel, &payload);
                }
            }
            Err(RecvError::Lagged(lost)) => {
                tracing::warn!(lost, "fell behind on hints; reading from Redis instead");
                listener.gap();
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// The only task that subscribes on its client, one channel a call: with more the replies get out
/// of step.
async fn keep_subscribed(
    client: Client,
    wanted: Arc<Mutex<HashSet<String>>>,
    mut changes: mpsc::Receiver<Change>,
    listener: Arc<dyn Listener>,
) {
    let mut reconnections = client.reconnect_rx();
    let mut reconcile = tokio::time::interval(RECONCILE_CLUSTER);
    let mut connected_before = false;
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Some(Change::Subscribe(channel, done)) => {
                    let subscribed = client.ssubscribe(channel).await.map_err(classify);
                    let _ = done.send(subscribed);
                }
                Some(Change::Unsubscribe(channel)) => {
                    let wanted_again = lock(&wanted).contains(&channel);
                    if !wanted_again {
                        let _ = client.sunsubscribe(channel).await;
                    }
                }
                None => return,
            },
            reconnected = reconnections.recv() => {
                if matches!(reconnected, Err(RecvError::Closed)) {
                    return;
                }
                subscribe_all(&client, &wanted).await;
                if std::mem::replace(&mut connected_before, true) {
                    listener.gap();
                }
            }
            _ = reconcile.tick(), if client.is_clustered() => {
                Redis::refresh_cluster(&client).await;
                subscribe_all(&client, &wanted).await;
            }
        }
    }
}

async fn subscribe_all(client: &Client, wanted: &Mutex<HashSet<String>>) {
    let channels: Vec<String> = lock(wanted).iter().cloned().collect();
    for channel in channels {
        if client.ssubscribe(channel).await.is_err() {
            // The next reconnection begins again.
            return;
        }
    }
}

fn lock(wanted: &Mutex<HashSet<String>>) -> std::sync::MutexGuard<'_, HashSet<String>> {
    wanted.lock().unwrap_or_else(PoisonError::into_inner)
}

fn closing() -> RedisError {
    RedisError::Unexpected("the subscriptions are closed".to_owned())
}
