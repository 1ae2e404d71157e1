//! A private fleet: replicas, Redis and ollama-sims, all on ports of their own.

pub mod process;
pub mod redis;
pub mod resp;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use process::{Process, free_port};
use redis::{Redis, RedisKind};

/// How long a server may take to answer after its start, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a replica that is ready may take to have a heartbeat.
const NAME_LIMIT: Duration = Duration::from_secs(3);
/// Between two looks at whether it does.
const LOOK: Duration = Duration::from_millis(20);

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
    /// The replicas.
    pub replicas: Vec<Process>,
    /// The scripted Ollamas.
    pub sims: Vec<Process>,
    /// Redis.
    pub redis: Redis,
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
        let http = client()?;
        let redis = Redis::start(plan.redis, &plan.dir).await?;
        let mut sims = Vec::new();
        for number in 0..plan.sims {
            let sim = sim(plan, number)?;
            sim.start()?;
            wait_until_ok(&http, &format!("{}/api/version", sim.url), START_LIMIT).await?;
            sims.push(sim);
        }
        let hosts: Vec<&str> = sims.iter().map(|sim| sim.url.as_str()).collect();
        let mut replicas = Vec::new();
        for number in 0..plan.replicas {
            replicas.push(replica(plan, number, &redis.url(), &hosts.join(","))?);
        }
        let names = Mutex::new(vec![None; replicas.len()]);
        let fleet = Self { replicas, sims, redis, http, names };
        for number in 0..plan.replicas {
            fleet.start_replica(number).await?;
        }
        Ok(fleet)
    }

    /// Starts a replica, for the first time or again, and waits until it is ready.
    ///
    /// # Errors
    /// Where it cannot be started or does not get ready in time.
    pub async fn start_replica(&self, number: usize) -> anyhow::Result<()> {
        let mut names = self.names.lock().await;
        let before = self.redis.beating().await;
        let replica = &self.replicas[number];
        replica.start()?;
        wait_until_ok(&self.http, &format!("{}/health/ready", replica.url), START_LIMIT).await?;
        names[number] = match before {
            Ok(before) => self.new_name(&before).await,
            Err(_) => None,
        };
        Ok(())
    }

    /// What a replica calls itself.
    pub async fn name_of(&self, number: usize) -> Option<String> {
        self.names.lock().await[number].clone()
    }

    async fn new_name(&self, before: &[String]) -> Option<String> {
        let deadline = Instant::now() + NAME_LIMIT;
        while Instant::now() < deadline {
            let beating = self.redis.beating().await.unwrap_or_default();
            if let Some(name) = beating.into_iter().find(|name| !before.contains(name)) {
                return Some(name);
            }
            sleep(LOOK).await;
        }
        None
    }

    /// The replicas' base addresses.
    pub fn urls(&self) -> Vec<String> {
        self.replicas.iter().map(|replica| replica.url.clone()).collect()
    }
}

/// A client for the fleet's own questions.
///
/// # Errors
/// Where none can be made.
pub fn client() -> anyhow::Result<reqwest::Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?)
}

/// Waits until this address answers with success.
///
/// # Errors
/// Where it does not in time.
pub async fn wait_until_ok(
    http: &reqwest::Client,
    url: &str,
    limit: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let answer = http.get(url).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("{url} is not ready after {} s", limit.as_secs());
        }
        sleep(LOOK).await;
    }
}

fn sim(plan: &Plan, number: usize) -> anyhow::Result<Process> {
    let port = free_port()?;
    let mut arguments = vec!["--listen".to_owned(), format!("127.0.0.1:{port}")];
    arguments.extend(["--engine", "scripted", "--slots", "1024"].map(str::to_owned));
    let program = binary(&plan.binaries, "ollama-sim")?;
    Ok(Process::new(&format!("sim-{number}"), program, arguments, port, &plan.dir))
}

fn replica(plan: &Plan, number: usize, redis: &str, hosts: &str) -> anyhow::Result<Process> {
    let port = free_port()?;
    let arguments = ["serve", "--listen", &format!("127.0.0.1:{port}"), "--redis-url", redis]
        .into_iter()
        .chain(["--ollama-urls", hosts])
        .map(str::to_owned)
        .collect();
    let program = binary(&plan.binaries, "jarvis")?;
    let mut process =
        Process::new(&format!("replica-{number}"), program, arguments, port, &plan.dir);
    process.settings.clone_from(&plan.settings);
    Ok(process)
}

fn binary(dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(name);
    path.exists()
        .then_some(path.clone())
        .with_context(|| format!("{} is not there: cargo build --workspace", path.display()))
}
