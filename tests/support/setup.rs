//! A replica with all that it needs.

use super::client::until_ok;
use super::process::{Process, jarvis, ollama_sim};
use super::redis::RedisServer;

/// A replica that is ready, over a Redis and a scripted Ollama of its own.
pub struct Setup {
    pub replica: Process,
    pub ollama: Process,
    pub redis: RedisServer,
}

/// Starts a replica with these settings, whose host generates at `rate` tokens a second.
pub async fn setup(rate: &str, extra: &[(&str, &str)]) -> Setup {
    setup_on(&["--rate", rate], extra).await
}

/// Starts a replica with these settings, whose host has a context window for a question of any characters.
pub async fn setup_with_large_window(extra: &[(&str, &str)]) -> Setup {
    let extra = [extra, &[("JARVIS_NUM_CTX", "131072")]].concat();
    setup_on(&["--rate", "0", "--model-ctx", "131072"], &extra).await
}

async fn setup_on(host: &[&str], extra: &[(&str, &str)]) -> Setup {
    let redis = RedisServer::start();
    let ollama = ollama_sim(host);
    let replica = jarvis(&redis.url(), &ollama.url, extra);
    until_ok(&replica, "/health/ready").await;
    Setup { replica, ollama, redis }
}

/// Two replicas that are ready, over a Redis and a scripted Ollama of their own.
pub struct Pair {
    pub replicas: [Process; 2],
    pub ollama: Process,
    pub redis: RedisServer,
}

/// Starts two replicas with these settings, whose host has these arguments.
pub async fn pair(host: &[&str], settings: &[(&str, &str)]) -> Pair {
    let redis = RedisServer::start();
    let ollama = ollama_sim(host);
    let replicas = [0, 1].map(|_| jarvis(&redis.url(), &ollama.url, settings));
    for replica in &replicas {
        until_ok(replica, "/health/ready").await;
    }
    Pair { replicas, ollama, redis }
}
