//! A replica with all that it needs.

use super::fleet::Fleet;
use super::process::Process;
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

/// Starts a replica with these settings, whose host has these arguments.
pub async fn setup_on(host: &[&str], settings: &[(&str, &str)]) -> Setup {
    let Fleet { mut replicas, ollama, redis } = Fleet::start(1, host, settings).await;
    Setup { replica: replicas.remove(0), ollama, redis }
}

/// Two replicas that are ready, over a Redis and a scripted Ollama of their own.
pub struct Pair {
    pub replicas: [Process; 2],
    pub ollama: Process,
    pub redis: RedisServer,
}

/// Starts two replicas with these settings, whose host has these arguments.
pub async fn pair(host: &[&str], settings: &[(&str, &str)]) -> Pair {
    let Fleet { replicas, ollama, redis } = Fleet::start(2, host, settings).await;
    let Ok(replicas) = replicas.try_into() else { panic!("two replicas") };
    Pair { replicas, ollama, redis }
}
