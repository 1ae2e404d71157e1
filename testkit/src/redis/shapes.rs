//! The cluster and the sentinels of a test: in temporary folders, and a failure is a panic.

use std::sync::Arc;

use super::node::credentials;
use super::{Redis, RedisServer, Users};

/// Three primaries, each with a Redis replica.
#[derive(Debug)]
pub struct RedisCluster {
    redis: Redis,
}

impl RedisCluster {
    /// Starts six nodes and waits until they form a cluster.
    ///
    /// # Panics
    /// Panics where they do not.
    pub fn start() -> Self {
        Self::start_as(Users::default())
    }

    /// Starts six nodes with these users.
    ///
    /// # Panics
    /// Panics where they form no cluster.
    pub fn start_as(users: Users) -> Self {
        let redis = Redis::start_cluster(None, users);
        Self { redis: redis.unwrap_or_else(|error| panic!("{error:#}")) }
    }

    /// Returns the address for jarvis: that of one node.
    pub fn url(&self) -> String {
        let (user, port) = (credentials(), self.redis.nodes()[0].port());
        format!("redis-cluster://{user}@127.0.0.1:{port}")
    }

    /// Returns the primary that has a key, and the port of its Redis replica.
    ///
    /// # Panics
    /// Panics where the cluster does not answer.
    pub fn holders(&self, key: &str) -> (&RedisServer, u16) {
        let find = || {
            let primary = self.redis.owner(self.redis.slot(key)?)?;
            Ok::<_, anyhow::Error>((self.redis.node(primary)?, self.redis.replica_of(primary)?))
        };
        find().unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Moves the hash slot of a key from the primary that has it to another one, keys and all.
    ///
    /// # Panics
    /// Panics where a server refuses.
    pub fn migrate(&self, key: &str) {
        let moved = self.redis.slot(key).and_then(|slot| self.redis.move_slot(slot, 0));
        moved.unwrap_or_else(|error| panic!("{error:#}"));
    }
}

/// A primary, a Redis replica of it, and three sentinels that watch them.
#[derive(Debug)]
pub struct RedisSentinels {
    /// The first primary.
    pub primary: Arc<RedisServer>,
    /// Its Redis replica.
    pub replica: Arc<RedisServer>,
    redis: Redis,
}

impl RedisSentinels {
    /// Starts the servers and waits until the sentinels know each other and the Redis replica.
    ///
    /// # Panics
    /// Panics where they do not.
    pub fn start() -> Self {
        Self::start_as(Users::default())
    }

    /// Starts the servers with these users.
    ///
    /// # Panics
    /// Panics where the sentinels do not find each other and the Redis replica.
    pub fn start_as(users: Users) -> Self {
        let redis = Redis::start_sentinels(1, None, users);
        let redis = redis.unwrap_or_else(|error| panic!("{error:#}"));
        let [primary, replica] = [0, 1].map(|number| Arc::clone(&redis.nodes()[number]));
        Self { primary, replica, redis }
    }

    /// Returns the address for jarvis.
    pub fn url(&self) -> String {
        self.redis.url()
    }
}
