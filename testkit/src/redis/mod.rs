//! Real Redis servers: one, some behind sentinels, or a cluster.

mod node;
mod nodes_line;
mod resp;
mod shapes;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::folder::Folder;
use crate::wait::eventually_blocking;
use node::START_LIMIT;
use nodes_line::Known;

pub use node::{RedisServer, Users, cli};
pub use resp::{Connection, Reply, ask};
pub use shapes::{RedisCluster, RedisSentinels};

/// The name that the sentinels know the service by.
const SERVICE: &str = "jarvis";
/// The time after which a node of a cluster counts as down, in milliseconds.
const CLUSTER_DOWN_MS: &str = "2000";
/// The time limit of a graceful failover.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(5);
/// The keys of a hash slot that move together.
const MOVED_AT_ONCE: &str = "50";
/// Primaries of a cluster; each has one Redis replica.
const PRIMARIES: usize = 3;
/// The hash slots.
const SLOTS: usize = 16_384;

/// The kind of a Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisKind {
    /// One server.
    Single,
    /// A primary, its Redis replicas and three sentinels.
    Sentinel,
    /// Three primaries, each with a Redis replica.
    Cluster,
}

impl fmt::Display for RedisKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "single",
            Self::Sentinel => "sentinel",
            Self::Cluster => "cluster",
        })
    }
}

impl FromStr for RedisKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Single, Self::Sentinel, Self::Cluster];
        let found = all.into_iter().find(|kind| kind.to_string() == text);
        found.ok_or_else(|| "expected single, sentinel or cluster".to_owned())
    }
}

/// The servers of one Redis.
#[derive(Debug)]
pub struct Redis {
    kind: RedisKind,
    nodes: Vec<Arc<RedisServer>>,
    sentinels: Vec<RedisServer>,
}

impl Redis {
    /// Starts all servers and waits until they have found each other. Behind sentinels the primary
    /// has two Redis replicas. Data and logs go to `folder`.
    ///
    /// # Errors
    /// Fails where a program is missing or the servers do not get ready in time.
    pub fn start(kind: RedisKind, folder: &Path) -> anyhow::Result<Self> {
        match kind {
            RedisKind::Single => Self::start_nodes(kind, 1, Some(folder), Users::default()),
            RedisKind::Sentinel => Self::start_sentinels(2, Some(folder), Users::default()),
            RedisKind::Cluster => Self::start_cluster(Some(folder), Users::default()),
        }
    }

    fn start_sentinels(
        replicas: usize,
        folder: Option<&Path>,
        users: Users,
    ) -> anyhow::Result<Self> {
        let mut redis = Self::start_nodes(RedisKind::Sentinel, 1 + replicas, folder, users)?;
        let primary = redis.nodes[0].port();
        for number in 0..3 {
            let (folder, name) = (folder_or_temporary(folder)?, format!("sentinel-{number}"));
            let sentinel = RedisServer::start_sentinel(folder, &name, SERVICE, primary)?;
            redis.sentinels.push(sentinel);
        }
        let replicas = replicas.to_string();
        let settled = |sentinel: &RedisServer| {
            let reply = ask(sentinel.port(), &["SENTINEL", "MASTER", SERVICE]);
            let fields = reply.map(|reply| reply.texts()).unwrap_or_default();
            let has = |name: &str, value: &str| fields.chunks(2).any(|pair| pair == [name, value]);
            has("num-other-sentinels", "2") && has("num-slaves", &replicas)
        };
        let all = || redis.sentinels.iter().all(settled) && redis.is_in_sync();
        ensure!(eventually_blocking(START_LIMIT, all), "the sentinels do not find each other");
        Ok(redis)
    }

    fn start_cluster(folder: Option<&Path>, users: Users) -> anyhow::Result<Self> {
        let redis = Self::start_nodes(RedisKind::Cluster, 2 * PRIMARIES, folder, users)?;
        redis.form_cluster()?;
        Ok(redis)
    }

    fn start_nodes(
        kind: RedisKind,
        count: usize,
        folder: Option<&Path>,
        users: Users,
    ) -> anyhow::Result<Self> {
        let mut nodes: Vec<Arc<RedisServer>> = Vec::new();
        for number in 0..count {
            let primary = nodes.first().map(|node| node.port().to_string());
            let arguments = match (kind, &primary) {
                (RedisKind::Cluster, _) => {
                    vec!["--cluster-enabled", "yes", "--cluster-node-timeout", CLUSTER_DOWN_MS]
                }
                (RedisKind::Sentinel, Some(primary)) => vec!["--replicaof", "127.0.0.1", primary],
                (RedisKind::Sentinel, None) | (RedisKind::Single, _) => Vec::new(),
            };
            let (folder, name) = (folder_or_temporary(folder)?, format!("redis-{number}"));
            nodes.push(Arc::new(RedisServer::start_in_as(folder, &name, &arguments, users)?));
        }
        Ok(Self { kind, nodes, sentinels: Vec::new() })
    }

    /// Returns the kind.
    pub fn kind(&self) -> RedisKind {
        self.kind
    }

    /// Returns the servers that hold data.
    pub fn nodes(&self) -> &[Arc<RedisServer>] {
        &self.nodes
    }

    /// Returns the address for jarvis.
    pub fn url(&self) -> String {
        let nodes = |servers: &[&RedisServer]| {
            let address = |server: &&RedisServer| format!("127.0.0.1:{}", server.port());
            let others: Vec<String> =
                servers[1..].iter().map(|server| format!("node={}", address(server))).collect();
            (address(&servers[0]), others.join("&"))
        };
        match self.kind {
            RedisKind::Single => self.nodes[0].url(),
            RedisKind::Cluster => {
                let (first, others) =
                    nodes(&self.nodes.iter().map(Arc::as_ref).collect::<Vec<_>>());
                format!("redis-cluster://{}@{first}?{others}", node::credentials())
            }
            RedisKind::Sentinel => {
                let (first, others) = nodes(&self.sentinels.iter().collect::<Vec<_>>());
                let user = node::credentials();
                format!("redis-sentinel://{user}@{first}?sentinelServiceName={SERVICE}&{others}")
            }
        }
    }

    /// Returns the server at this port.
    ///
    /// # Errors
    /// Fails where there is none.
    pub fn node(&self, port: u16) -> anyhow::Result<&RedisServer> {
        let node = self.nodes.iter().find(|node| node.port() == port);
        node.map(Arc::as_ref).with_context(|| format!("no server has port {port}"))
    }

    /// Returns the ports of the servers that take writes now, in the order of the nodes.
    ///
    /// # Errors
    /// Fails where no server answers.
    pub fn primaries(&self) -> anyhow::Result<Vec<u16>> {
        match self.kind {
            RedisKind::Single => Ok(vec![self.nodes[0].port()]),
            RedisKind::Sentinel => {
                let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE];
                let replies =
                    self.sentinels.iter().filter_map(|one| ask(one.port(), &question).ok());
                let mut ports = replies.filter_map(|reply| reply.texts().get(1)?.parse().ok());
                Ok(vec![ports.next().context("no sentinel knows the primary")?])
            }
            RedisKind::Cluster => {
                let known = self.known()?;
                let takes_writes =
                    |port: &u16| known.iter().any(|node| node.port == *port && node.takes_writes());
                Ok(self.nodes.iter().map(|node| node.port()).filter(takes_writes).collect())
            }
        }
    }

    /// Returns the port of a primary, chosen by any number.
    ///
    /// # Errors
    /// Fails where no server answers.
    pub fn primary(&self, number: usize) -> anyhow::Result<u16> {
        let primaries = self.primaries()?;
        primaries.get(number % primaries.len().max(1)).copied().context("there is no primary")
    }

    /// Returns the memory that the data of all primaries takes, in bytes.
    ///
    /// # Errors
    /// Fails where a primary does not answer.
    pub fn used_memory(&self) -> anyhow::Result<u64> {
        let mut used = 0;
        for port in self.primaries()? {
            let info = ask(port, &["INFO", "memory"])?.text();
            let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
            used += line.context("Redis reports no memory")?.trim().parse::<u64>()?;
        }
        Ok(used)
    }

    /// Returns whether every primary has a Redis replica that holds all that the primary held a
    /// moment ago.
    pub fn is_in_sync(&self) -> bool {
        let Ok(primaries) = self.primaries() else { return false };
        if self.kind == RedisKind::Cluster && primaries.len() != PRIMARIES {
            return false;
        }
        primaries.into_iter().all(|primary| self.has_replica_in_sync(primary))
    }

    fn has_replica_in_sync(&self, primary: u16) -> bool {
        let Ok(info) = Info::of(primary) else { return false };
        let Some(offset) = info.number("master_repl_offset") else { return false };
        let follows = |port: u16| {
            let Ok(info) = Info::of(port) else { return false };
            info.get("master_port") == Some(&primary.to_string())
                && info.get("master_link_status") == Some("up")
                && info.get("master_sync_in_progress") == Some("0")
                && info.number("slave_repl_offset").is_some_and(|has| has >= offset)
        };
        info.get("role") == Some("master")
            && self
                .nodes
                .iter()
                .map(|node| node.port())
                .any(|port| port != primary && follows(port))
    }

    /// Breaks every connection that a client has to this server.
    ///
    /// # Errors
    /// Fails where the server does not answer.
    pub fn cut(&self, port: u16) -> anyhow::Result<()> {
        let kinds =
            ["normal", "pubsub"].map(|kind| ["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
        Connection::open(port)?.ask(&kinds).map(drop)
    }

    /// Makes the Redis replica of this primary take over in good order.
    ///
    /// # Errors
    /// Fails where the primary has no Redis replica, and where that does not take over in time.
    pub fn hand_over(&self, primary: u16) -> anyhow::Result<()> {
        let replica = self.replica_of(primary)?;
        ask(replica, &["CLUSTER", "FAILOVER"])?;
        let took_over = || Info::of(replica).is_ok_and(|info| info.get("role") == Some("master"));
        ensure!(
            eventually_blocking(HAND_OVER_LIMIT, took_over),
            "the replica does not take over within {} s",
            HAND_OVER_LIMIT.as_secs()
        );
        Ok(())
    }

    /// Returns the port of a Redis replica of this primary.
    ///
    /// # Errors
    /// Fails where it has none.
    pub fn replica_of(&self, primary: u16) -> anyhow::Result<u16> {
        let known = self.known()?;
        let id = &known.iter().find(|node| node.port == primary).context("unknown primary")?.id;
        let replica = known.iter().find(|node| node.replica_of.as_ref() == Some(id));
        Ok(replica.context("the primary has no replica")?.port)
    }

    /// Returns the hash slot of a key.
    ///
    /// # Errors
    /// Fails where no server answers.
    pub fn slot(&self, key: &str) -> anyhow::Result<u16> {
        let mut replies =
            self.nodes.iter().map(|node| ask(node.port(), &["CLUSTER", "KEYSLOT", key]));
        let slot = replies.find_map(Result::ok).context("no node of the cluster answers")?;
        Ok(slot.text().parse()?)
    }

    /// Returns the port of the primary that has a hash slot.
    ///
    /// # Errors
    /// Fails where no primary has it, and where no server answers.
    pub fn owner(&self, slot: u16) -> anyhow::Result<u16> {
        let owner = self.known()?.into_iter().find(|node| node.primary && node.owns(slot));
        Ok(owner.with_context(|| format!("no primary has slot {slot}"))?.port)
    }

    /// Moves a hash slot, keys and all, from its primary to another one, which `number` chooses.
    ///
    /// # Errors
    /// Fails where a server refuses.
    pub fn move_slot(&self, slot: u16, number: usize) -> anyhow::Result<()> {
        let known = self.known()?;
        let owns = |node: &&Known| node.primary && node.owns(slot);
        let from = known.iter().find(owns).context("no primary has the slot")?;
        let others: Vec<&Known> =
            known.iter().filter(|node| node.takes_writes() && node.port != from.port).collect();
        let to = *others.get(number % others.len().max(1)).context("there is no other primary")?;
        let name = slot.to_string();
        ask(to.port, &["CLUSTER", "SETSLOT", &name, "IMPORTING", &from.id])?;
        ask(from.port, &["CLUSTER", "SETSLOT", &name, "MIGRATING", &to.id])?;
        let port = to.port.to_string();
        loop {
            let keys = ask(from.port, &["CLUSTER", "GETKEYSINSLOT", &name, MOVED_AT_ONCE])?.texts();
            if keys.is_empty() {
                break;
            }
            let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            command.extend(keys.iter().map(String::as_str));
            ask(from.port, &command)?;
        }
        for node in [to.port, from.port] {
            ask(node, &["CLUSTER", "SETSLOT", &name, "NODE", &to.id])?;
        }
        for node in known.iter().filter(|node| node.primary) {
            // The others also learn it from each other.
            let _ = ask(node.port, &["CLUSTER", "SETSLOT", &name, "NODE", &to.id]);
        }
        Ok(())
    }

    /// Gives each primary its hash slots, introduces the nodes to each other, and gives each
    /// primary its Redis replica.
    fn form_cluster(&self) -> anyhow::Result<()> {
        let ports: Vec<u16> = self.nodes.iter().map(|node| node.port()).collect();
        let first = ports[0].to_string();
        let mut ids = Vec::new();
        for (number, port) in ports.iter().enumerate() {
            ask(*port, &["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()])?;
            ids.push(ask(*port, &["CLUSTER", "MYID"])?.text());
            if number < PRIMARIES {
                let bound = |number: usize| number * SLOTS / PRIMARIES;
                let (start, end) = (bound(number).to_string(), (bound(number + 1) - 1).to_string());
                ask(*port, &["CLUSTER", "ADDSLOTSRANGE", &start, &end])?;
            }
            if number > 0 {
                ask(*port, &["CLUSTER", "MEET", "127.0.0.1", &first])?;
            }
        }
        let met = |port: &u16| {
            let nodes = ask(*port, &["CLUSTER", "NODES"]).map(|reply| reply.text());
            nodes.is_ok_and(|nodes| ids.iter().all(|id| nodes.contains(id.as_str())))
        };
        let all_met = || ports.iter().all(met);
        ensure!(eventually_blocking(START_LIMIT, all_met), "the nodes do not meet");
        for (replica, primary) in ports[PRIMARIES..].iter().zip(&ids) {
            ask(*replica, &["CLUSTER", "REPLICATE", primary])?;
        }
        let knows = |port: &u16| {
            let info = ask(*port, &["CLUSTER", "INFO"]).map(|reply| reply.text());
            let nodes = ask(*port, &["CLUSTER", "NODES"]).map(|reply| reply.text());
            info.is_ok_and(|info| info.contains("cluster_state:ok"))
                && nodes.is_ok_and(|nodes| nodes.matches("slave").count() == PRIMARIES)
        };
        let formed = || ports.iter().all(knows) && self.is_in_sync();
        ensure!(eventually_blocking(START_LIMIT, formed), "the cluster does not form");
        Ok(())
    }

    /// Returns the nodes as the node with the highest epoch knows them.
    fn known(&self) -> anyhow::Result<Vec<Known>> {
        let mut best: Option<Vec<Known>> = None;
        for node in &self.nodes {
            let Ok(reply) = ask(node.port(), &["CLUSTER", "NODES"]) else { continue };
            let known: Vec<Known> = reply.text().lines().filter_map(Known::parse).collect();
            let newest = |known: &[Known]| known.iter().map(|node| node.epoch).max();
            if newest(&known) > best.as_deref().and_then(newest) {
                best = Some(known);
            }
        }
        let Some(best) = best else { bail!("no node of the cluster answers") };
        Ok(best)
    }
}

fn folder_or_temporary(folder: Option<&Path>) -> anyhow::Result<Folder> {
    folder.map_or_else(Folder::temporary, Folder::at)
}

/// The reply of `INFO replication`.
struct Info(String);

impl Info {
    fn of(port: u16) -> anyhow::Result<Self> {
        Ok(Self(ask(port, &["INFO", "replication"])?.text()))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }
}
