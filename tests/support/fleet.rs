//! Replicas that are ready, over one Redis.

use super::client::until_ok;
use super::process::{Process, jarvis, ollama_sim};
use super::redis::RedisServer;

/// Starts so many replicas with these settings over a Redis and these hosts, and waits until each is
/// ready.
pub async fn ready_replicas(
    count: usize,
    redis_url: &str,
    host_urls: &str,
    settings: &[(&str, &str)],
) -> Vec<Process> {
    let replicas: Vec<_> = (0..count).map(|_| jarvis(redis_url, host_urls, settings)).collect();
    for replica in &replicas {
        until_ok(replica, "/health/ready").await;
    }
    replicas
}

/// Replicas that are ready, over a Redis and a scripted Ollama of their own.
pub struct Fleet {
    pub replicas: Vec<Process>,
    pub ollama: Process,
    pub redis: RedisServer,
}

impl Fleet {
    /// Starts so many replicas with these settings, whose host has these arguments.
    pub async fn start(count: usize, host: &[&str], settings: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start();
        let ollama = ollama_sim(host);
        let replicas = ready_replicas(count, &redis.url(), &ollama.url, settings).await;
        Self { replicas, ollama, redis }
    }
}
