//! A private fleet: replicas, Redis and ollama-sims, all on ports of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use testkit::folder::Folder;
use testkit::redis::{Connection, Redis, RedisKind};
use testkit::server::{self, Server};

/// The time that a server may take to be ready on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);
/// The models of the sims: the one that everybody uses, and one that takes images.
const MODELS: &str = "tinyllama:latest,vision:latest";
/// The time limit of a request to a server of the fleet.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// The buckets that the open turns are spread over.
const BUCKETS: u16 = 256;

/// The shape of a fleet.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The folder of the `jarvis` and `ollama-sim` binaries.
    pub binaries: PathBuf,
    /// The folder of logs and data.
    pub dir: PathBuf,
    /// The kind of Redis.
    pub redis: RedisKind,
    /// The number of replicas.
    pub replicas: usize,
    /// The number of sims.
    pub sims: usize,
    /// The settings of the replicas beside those of their addresses.
    pub settings: Vec<(String, String)>,
}

/// The running fleet.
pub struct Fleet {
    // Replicas end first: servers that end before them would fill their logs with errors.
    /// The replicas.
    pub replicas: Vec<Arc<Server>>,
    /// The sims.
    pub sims: Vec<Arc<Server>>,
    /// Redis.
    pub redis: Arc<Redis>,
    /// The client of the fleet's own requests.
    pub http: reqwest::Client,
}

impl Fleet {
    /// Starts all servers and waits until they are ready.
    ///
    /// # Errors
    /// Fails where a program is missing or does not get ready in time.
    pub async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let (kind, dir) = (plan.redis, plan.dir.clone());
        let redis = Arc::new(unblock(move || Redis::start(kind, &dir)).await?);
        let mut sims = Vec::new();
        for number in 0..plan.sims {
            let binary = plan.binaries.join("ollama-sim");
            let folder = Folder::at(&plan.dir)?;
            let sim = server::Plan::host(binary, &["--slots", "1024", "--models", MODELS], folder);
            let sim = sim.named(format!("sim-{number}"));
            sims.push(Arc::new(unblock(move || Server::start(sim)).await?));
        }
        let hosts: Vec<&str> = sims.iter().map(|sim| sim.url.as_str()).collect();
        let hosts = hosts.join(",");
        let mut fleet = Self { replicas: Vec::new(), sims, redis, http: client()? };
        for number in 0..plan.replicas {
            let binary = plan.binaries.join("jarvis");
            let folder = Folder::at(&plan.dir)?;
            let mut replica = server::Plan::replica(binary, &fleet.redis.url(), &hosts, folder);
            replica.name = format!("replica-{number}");
            replica.environment.extend(plan.settings.iter().cloned());
            let replica = Arc::new(unblock(move || Server::start(replica)).await?);
            with(&replica, until_ready).await?;
            fleet.replicas.push(replica);
        }
        Ok(fleet)
    }

    /// Starts a replica again, and waits until it is ready.
    ///
    /// # Errors
    /// Fails where it cannot be started or does not get ready in time.
    pub async fn start_replica(&self, number: usize) -> anyhow::Result<()> {
        with(&self.replicas[number], |replica| {
            replica.restart()?;
            until_ready(replica)
        })
        .await
    }

    /// Returns the name of a replica, which its log begins with. It is another one after each start.
    pub async fn name_of(&self, number: usize) -> Option<String> {
        let name = with(&self.replicas[number], |replica| {
            Ok(replica.printed().lines().find_map(|line| {
                let line: Started = serde_json::from_str(line).ok()?;
                (line.message == "replica started").then_some(line.replica)
            }))
        });
        name.await.ok().flatten()
    }

    /// Returns the replicas' base addresses.
    pub fn urls(&self) -> Vec<String> {
        self.replicas.iter().map(|replica| replica.url.clone()).collect()
    }

    /// Returns every open turn: `<session> <generation>`, and the replica that holds it.
    ///
    /// # Errors
    /// Fails where a primary does not answer.
    pub async fn open_turns(&self) -> anyhow::Result<Vec<(String, String)>> {
        with(&self.redis, open_turns).await
    }

    /// Moves the hash slot of one of the open turns' buckets from this primary to another.
    ///
    /// # Errors
    /// Fails where a server refuses.
    pub async fn move_bucket(&self, primary: u16, number: u16) -> anyhow::Result<()> {
        with(&self.redis, move |redis| {
            for step in 0..BUCKETS {
                let slot = redis.slot(&format!("{{b{}}}", (number + step) % BUCKETS))?;
                if redis.owner(slot)? == primary {
                    return redis.move_slot(slot, usize::from(number));
                }
            }
            anyhow::bail!("no bucket is at port {primary}")
        })
        .await
    }
}

/// The line of a log with the name of the replica.
#[derive(Deserialize)]
struct Started {
    message: String,
    replica: String,
}

fn open_turns(redis: &Redis) -> anyhow::Result<Vec<(String, String)>> {
    let commands: Vec<[String; 2]> = (0..BUCKETS)
        .map(|bucket| ["HGETALL".to_owned(), format!("jarvis:{{b{bucket}}}:open")])
        .collect();
    let mut open = Vec::new();
    for port in redis.primaries()? {
        // A primary refuses the buckets of the others, which reply for them.
        for reply in Connection::open(port)?.ask(&commands)? {
            let mut parts = reply.texts().into_iter();
            while let (Some(turn), Some(holder)) = (parts.next(), parts.next()) {
                let holder = holder.split(' ').next().unwrap_or_default();
                open.push((turn, holder.to_owned()));
            }
        }
    }
    Ok(open)
}

/// Runs a blocking function with a part of the fleet.
///
/// # Errors
/// Fails where the function fails.
pub async fn with<P: Send + Sync + 'static, T: Send + 'static>(
    part: &Arc<P>,
    task: impl FnOnce(&P) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let part = Arc::clone(part);
    unblock(move || task(&part)).await
}

async fn unblock<T: Send + 'static>(
    task: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(task).await?
}

/// Sends SIGTERM to a server and waits; kills it after `limit`. Returns whether it ended by itself.
///
/// # Errors
/// Fails where the waiting thread panics.
pub async fn end(server: &Arc<Server>, limit: Duration) -> anyhow::Result<bool> {
    with(server, move |server| Ok(server.end(limit))).await
}

fn until_ready(replica: &Server) -> anyhow::Result<()> {
    let url = format!("{}/health/ready", replica.url);
    replica.wait_until(START_LIMIT, "is not ready", || testkit::http::is_ok(&url, REQUEST_LIMIT))
}

/// Creates the client of the fleet's own requests.
fn client() -> anyhow::Result<reqwest::Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().no_proxy().timeout(REQUEST_LIMIT).build()?)
}
