//! A private fleet: replicas, Redis and ollama-sims, all on ports of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use testkit::folder::Folder;
use testkit::redis::{Connection, Redis, RedisKind};
use testkit::server::{self, Server};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

/// The time that a server may take to be ready on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);
/// The time that a replica which is ready may take to have a heartbeat.
const NAME_LIMIT: Duration = Duration::from_secs(3);
/// Time between two looks for a heartbeat.
const LOOK: Duration = Duration::from_millis(20);
/// Hashes that the open turns are spread over.
const BUCKETS: u16 = 256;

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the `jarvis` and `ollama-sim` binaries are.
    pub binaries: PathBuf,
    /// Where logs and data go.
    pub dir: PathBuf,
    /// Which Redis.
    pub redis: RedisKind,
    /// Replicas of jarvis.
    pub replicas: usize,
    /// Scripted Ollamas.
    pub sims: usize,
    /// Settings of the replicas beside those that say where everything is.
    pub settings: Vec<(String, String)>,
}

/// All that runs.
pub struct Fleet {
    // Replicas end first: what they lose before would fill their logs.
    /// The replicas.
    pub replicas: Vec<Arc<Server>>,
    /// The scripted Ollamas.
    pub sims: Vec<Arc<Server>>,
    /// Redis.
    pub redis: Arc<Redis>,
    /// For what is asked over HTTP.
    pub http: reqwest::Client,
    /// What each replica calls itself, where that is known. Held while one starts, as what is new
    /// among the heartbeats is its.
    names: Mutex<Vec<Option<String>>>,
}

impl Fleet {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// Where a program is missing or does not get ready in time.
    pub async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let (kind, dir) = (plan.redis, plan.dir.clone());
        let redis = Arc::new(unblock(move || Redis::start(kind, &dir)).await?);
        let mut sims = Vec::new();
        for number in 0..plan.sims {
            let binary = plan.binaries.join("ollama-sim");
            let folder = Folder::at(&plan.dir)?;
            let sim = server::Plan::host(binary, &["--slots", "1024"], folder);
            let sim = sim.named(format!("sim-{number}"));
            sims.push(Arc::new(unblock(move || Server::start(sim)).await?));
        }
        let hosts: Vec<&str> = sims.iter().map(|sim| sim.url.as_str()).collect();
        let hosts = hosts.join(",");
        let names = Mutex::default();
        let mut fleet = Self { replicas: Vec::new(), sims, redis, http: client()?, names };
        for number in 0..plan.replicas {
            let before = fleet.beating().await;
            let binary = plan.binaries.join("jarvis");
            let folder = Folder::at(&plan.dir)?;
            let mut replica = server::Plan::replica(binary, &fleet.redis.url(), &hosts, folder);
            replica.name = format!("replica-{number}");
            replica.environment.clone_from(&plan.settings);
            let replica = Arc::new(unblock(move || Server::start(replica)).await?);
            fleet.until_ready(&replica).await?;
            fleet.replicas.push(replica);
            let name = fleet.new_name(before).await;
            fleet.names.lock().await.push(name);
        }
        Ok(fleet)
    }

    /// Starts a replica again, and waits until it is ready.
    ///
    /// # Errors
    /// Where it cannot be started or does not get ready in time.
    pub async fn start_replica(&self, number: usize) -> anyhow::Result<()> {
        let mut names = self.names.lock().await;
        let before = self.beating().await;
        with(&self.replicas[number], Server::restart).await?;
        self.until_ready(&self.replicas[number]).await?;
        names[number] = self.new_name(before).await;
        Ok(())
    }

    /// What a replica calls itself.
    pub async fn name_of(&self, number: usize) -> Option<String> {
        self.names.lock().await[number].clone()
    }

    /// The replicas' base addresses.
    pub fn urls(&self) -> Vec<String> {
        self.replicas.iter().map(|replica| replica.url.clone()).collect()
    }

    /// Every open turn: `<session> <generation>`, and the replica that holds it.
    ///
    /// # Errors
    /// Where a primary does not answer.
    pub async fn open_turns(&self) -> anyhow::Result<Vec<(String, String)>> {
        with(&self.redis, open_turns).await
    }

    /// Moves the slot of one of the open turns' buckets from this primary to another.
    ///
    /// # Errors
    /// Where a server refuses.
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

    async fn until_ready(&self, replica: &Server) -> anyhow::Result<()> {
        let url = format!("{}/health/ready", replica.url);
        let ready = async || {
            let answer = self.http.get(&url).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        };
        let in_time = testkit::eventually(START_LIMIT, ready).await;
        ensure!(in_time, "{} is not ready after {} s", replica.name(), START_LIMIT.as_secs());
        Ok(())
    }

    /// The names of the replicas that have a heartbeat.
    async fn beating(&self) -> anyhow::Result<Vec<String>> {
        with(&self.redis, |redis| {
            let mut names = Vec::new();
            for port in redis.primaries()? {
                // The others refuse, as the key is not theirs.
                let question = [["HKEYS", "jarvis:{queue}:heartbeats"]];
                for reply in Connection::open(port)?.ask(&question)? {
                    names.extend(reply.texts());
                }
            }
            Ok(names)
        })
        .await
    }

    async fn new_name(&self, before: anyhow::Result<Vec<String>>) -> Option<String> {
        let before = before.ok()?;
        let deadline = Instant::now() + NAME_LIMIT;
        while Instant::now() < deadline {
            let beating = self.beating().await.unwrap_or_default();
            if let Some(name) = beating.into_iter().find(|name| !before.contains(name)) {
                return Some(name);
            }
            sleep(LOOK).await;
        }
        None
    }
}

fn open_turns(redis: &Redis) -> anyhow::Result<Vec<(String, String)>> {
    let commands: Vec<[String; 2]> = (0..BUCKETS)
        .map(|bucket| ["HGETALL".to_owned(), format!("jarvis:{{b{bucket}}}:open")])
        .collect();
    let mut open = Vec::new();
    for port in redis.primaries()? {
        // Buckets of the others are refused, and come from them.
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

/// Does something that blocks with a part of the fleet.
///
/// # Errors
/// Where it fails.
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

/// Asks a server to end, and waits; kills it where that takes longer than `limit`. Gives whether it
/// ended by itself.
pub async fn end(server: &Server, limit: Duration) -> bool {
    server.terminate();
    let ended = testkit::eventually(limit, async || server.has_ended()).await;
    server.kill();
    ended
}

/// A client for the fleet's own questions.
fn client() -> anyhow::Result<reqwest::Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?)
}
