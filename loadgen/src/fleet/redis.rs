//! Three servers with three sentinels, or a cluster of six.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::process::{Process, free_port};
use super::resp::{Connection, ask, text, texts};

const START_LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// What the sentinels call the service.
const SERVICE: &str = "jarvis";
/// How long a server may be silent before it counts as down, in milliseconds.
const SENTINEL_DOWN_MS: u32 = 1000;
const CLUSTER_DOWN_MS: u32 = 2000;
/// Open turns are indexed in so many hashes.
const BUCKETS: u16 = 256;
/// Slots of a cluster.
const SLOTS: u16 = 16_384;
/// Keys of a slot that move at once.
const MOVED_AT_ONCE: &str = "50";

/// Which Redis a fleet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RedisKind {
    /// One server.
    Single,
    /// A primary, two replicas of it and three sentinels.
    Sentinel,
    /// Three primaries, each with a replica.
    Cluster,
}

/// The servers.
pub struct Redis {
    /// Which.
    pub kind: RedisKind,
    /// Servers that hold data.
    pub nodes: Vec<Process>,
    sentinels: Vec<Process>,
}

impl Redis {
    /// Starts all servers and waits until they have found each other.
    ///
    /// # Errors
    /// Where a program is missing or they do not get ready in time.
    pub async fn start(kind: RedisKind, dir: &Path) -> anyhow::Result<Self> {
        let count = match kind {
            RedisKind::Single => 1,
            RedisKind::Sentinel => 3,
            RedisKind::Cluster => 6,
        };
        let mut nodes: Vec<Process> = Vec::new();
        for number in 0..count {
            let primary = nodes.first().map(|node| node.port);
            let node = node(kind, number, primary, dir)?;
            node.start()?;
            until(START_LIMIT, "redis-server does not answer", || answers(node.port)).await?;
            nodes.push(node);
        }
        let mut redis = Self { kind, nodes, sentinels: Vec::new() };
        match kind {
            RedisKind::Single => {}
            RedisKind::Sentinel => redis.start_sentinels(dir).await?,
            RedisKind::Cluster => redis.form_cluster().await?,
        }
        Ok(redis)
    }

    /// As jarvis is told.
    pub fn url(&self) -> String {
        let address = |process: &Process| format!("127.0.0.1:{}", process.port);
        match self.kind {
            RedisKind::Single => format!("redis://{}", address(&self.nodes[0])),
            RedisKind::Cluster => {
                let others: Vec<_> =
                    self.nodes[1..].iter().map(|node| format!("node={}", address(node))).collect();
                format!("redis-cluster://{}?{}", address(&self.nodes[0]), others.join("&"))
            }
            RedisKind::Sentinel => {
                let others: Vec<_> = self.sentinels[1..]
                    .iter()
                    .map(|sentinel| format!("&node={}", address(sentinel)))
                    .collect();
                format!(
                    "redis-sentinel://{}?sentinelServiceName={SERVICE}{}",
                    address(&self.sentinels[0]),
                    others.concat()
                )
            }
        }
    }

    /// The ports of the servers that take writes now, lowest node first.
    ///
    /// # Errors
    /// Where nobody tells.
    pub async fn primaries(&self) -> anyhow::Result<Vec<u16>> {
        match self.kind {
            RedisKind::Single => Ok(vec![self.nodes[0].port]),
            RedisKind::Sentinel => {
                let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE];
                for sentinel in &self.sentinels {
                    if let Ok(reply) = ask(sentinel.port, &question).await
                        && let Some(port) = texts(&reply).get(1)
                    {
                        return Ok(vec![port.parse()?]);
                    }
                }
                bail!("no sentinel tells who the primary is")
            }
            RedisKind::Cluster => {
                let known = self.known().await?;
                let ports: Vec<u16> = known
                    .iter()
                    .filter(|node| node.primary && node.slots > 0)
                    .map(|node| node.port)
                    .collect();
                let all = self.nodes.iter().map(|node| node.port);
                Ok(all.filter(|port| ports.contains(port)).collect())
            }
        }
    }

    /// Whether every primary has a replica that holds all that it held a moment ago.
    pub async fn is_in_sync(&self) -> bool {
        let Ok(primaries) = self.primaries().await else { return false };
        if self.kind == RedisKind::Cluster && primaries.len() != 3 {
            return false;
        }
        for primary in primaries {
            let Ok(info) = replication(primary).await else { return false };
            let Some(offset) = info.number("master_repl_offset") else { return false };
            if info.get("role") != Some("master") {
                return false;
            }
            let mut followed = false;
            for node in self.nodes.iter().filter(|node| node.port != primary) {
                let Ok(info) = replication(node.port).await else { continue };
                followed |= info.get("master_port") == Some(primary.to_string().as_str())
                    && info.get("master_link_status") == Some("up")
                    && info.get("master_sync_in_progress") == Some("0")
                    && info.number("slave_repl_offset").is_some_and(|has| has >= offset);
            }
            if !followed {
                return false;
            }
        }
        true
    }

    /// Breaks every connection that a client has to this server.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn cut(&self, port: u16) -> anyhow::Result<()> {
        let kinds =
            ["normal", "pubsub"].map(|kind| ["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
        Connection::open(port).await?.ask(&kinds).await.map(drop)
    }

    /// Has the replica of this primary take over in good order.
    ///
    /// # Errors
    /// Where it has none, or it refuses.
    pub async fn hand_over(&self, primary: u16) -> anyhow::Result<()> {
        let known = self.known().await?;
        let id = &known.iter().find(|node| node.port == primary).context("unknown primary")?.id;
        let replica = known
            .iter()
            .find(|node| node.of.as_ref() == Some(id))
            .context("it has no replica")?
            .port;
        ask(replica, &["CLUSTER", "FAILOVER"]).await?;
        until(Duration::from_secs(5), "the replica does not take over", || async {
            replication(replica).await.is_ok_and(|info| info.get("role") == Some("master"))
        })
        .await
    }

    /// Moves the slot of one of the open turns' buckets from this primary to another; gives which.
    ///
    /// # Errors
    /// Where a server refuses.
    pub async fn move_slot(&self, primary: u16, number: u16) -> anyhow::Result<u16> {
        let known = self.known().await?;
        let find = |port: u16| known.iter().find(|node| node.port == port).context("unknown node");
        let from = find(primary)?.clone();
        let others: Vec<&Known> =
            known.iter().filter(|node| node.primary && node.port != primary).collect();
        let to = *others.get(usize::from(number) % others.len().max(1)).context("no other")?;
        let slot = self.slot_of(&from, number).await?;
        let name = slot.to_string();
        ask(to.port, &["CLUSTER", "SETSLOT", &name, "IMPORTING", &from.id]).await?;
        ask(from.port, &["CLUSTER", "SETSLOT", &name, "MIGRATING", &to.id]).await?;
        let port = to.port.to_string();
        loop {
            let keys = ask(from.port, &["CLUSTER", "GETKEYSINSLOT", &name, MOVED_AT_ONCE]).await?;
            let keys = texts(&keys);
            if keys.is_empty() {
                break;
            }
            let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            command.extend(keys.iter().map(String::as_str));
            ask(from.port, &command).await?;
        }
        for node in [to.port, from.port] {
            ask(node, &["CLUSTER", "SETSLOT", &name, "NODE", &to.id]).await?;
        }
        for node in known.iter().filter(|node| node.primary) {
            let _ = ask(node.port, &["CLUSTER", "SETSLOT", &name, "NODE", &to.id]).await;
        }
        Ok(slot)
    }

    /// A slot of this node that a bucket falls in.
    async fn slot_of(&self, node: &Known, number: u16) -> anyhow::Result<u16> {
        for step in 0..BUCKETS {
            let bucket = (number + step) % BUCKETS;
            let key = format!("{{b{bucket}}}");
            let slot = text(&ask(node.port, &["CLUSTER", "KEYSLOT", &key]).await?).parse()?;
            if node.owns(slot) {
                return Ok(slot);
            }
        }
        bail!("no bucket is at port {}", node.port)
    }

    /// A number of the plan as one of this kind's primaries.
    ///
    /// # Errors
    /// Where nobody tells who they are.
    pub async fn primary(&self, number: usize) -> anyhow::Result<u16> {
        let primaries = self.primaries().await?;
        primaries.get(number % primaries.len().max(1)).copied().context("no primary")
    }

    /// The server at this port.
    ///
    /// # Errors
    /// Where there is none.
    pub fn node(&self, port: u16) -> anyhow::Result<&Process> {
        self.nodes.iter().find(|node| node.port == port).context("no such server")
    }

    /// Starts a server that was killed again. It takes itself for what it was.
    ///
    /// # Errors
    /// Where it does not start.
    pub async fn restart(&self, port: u16) -> anyhow::Result<()> {
        self.node(port)?.start()?;
        until(START_LIMIT, "redis-server does not come back", || answers(port)).await
    }

    /// Every hash of open turns: `<session> <generation>` to `<replica> <fence>`.
    ///
    /// # Errors
    /// Where a primary does not answer.
    pub async fn open_turns(&self) -> anyhow::Result<Vec<(String, String)>> {
        let commands: Vec<[String; 2]> = (0..BUCKETS)
            .map(|bucket| ["HGETALL".to_owned(), format!("jarvis:{{b{bucket}}}:open")])
            .collect();
        let mut open = Vec::new();
        for port in self.primaries().await? {
            // Buckets of the others are refused, and come from them.
            for reply in Connection::open(port).await?.ask(&commands).await? {
                let mut parts = texts(&reply).into_iter();
                while let (Some(turn), Some(holder)) = (parts.next(), parts.next()) {
                    let holder = holder.split(' ').next().unwrap_or_default();
                    open.push((turn, holder.to_owned()));
                }
            }
        }
        Ok(open)
    }

    /// The names of the replicas that have a heartbeat.
    ///
    /// # Errors
    /// Where a primary does not answer.
    pub async fn beating(&self) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        for port in self.primaries().await? {
            let question = [["HGETALL", "jarvis:{queue}:heartbeats"]];
            for reply in Connection::open(port).await?.ask(&question).await? {
                let parts = texts(&reply);
                names.extend(parts.chunks(2).map(|pair| pair[0].clone()));
            }
        }
        Ok(names)
    }

    async fn start_sentinels(&mut self, dir: &Path) -> anyhow::Result<()> {
        let primary = self.nodes[0].port;
        for number in 0..3 {
            let port = free_port()?;
            let file = dir.join(format!("sentinel-{number}.conf"));
            let config = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\n\
                 sentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n\
                 sentinel down-after-milliseconds {SERVICE} {SENTINEL_DOWN_MS}\n\
                 sentinel failover-timeout {SERVICE} 5000\n",
                dir.display()
            );
            std::fs::write(&file, config)?;
            let arguments = vec![file.display().to_string()];
            let name = format!("sentinel-{number}");
            let sentinel = Process::new(&name, "redis-sentinel".into(), arguments, port, dir);
            sentinel.start()?;
            self.sentinels.push(sentinel);
        }
        let ports: Vec<u16> = self.sentinels.iter().map(|sentinel| sentinel.port).collect();
        until(START_LIMIT, "the sentinels do not find each other", || {
            let ports = ports.clone();
            async move {
                for port in ports {
                    let question = ["SENTINEL", "MASTER", SERVICE];
                    let Ok(reply) = ask(port, &question).await else { return false };
                    let told = texts(&reply);
                    let has = |name: &str, value: &str| {
                        told.chunks(2).any(|pair| pair == [name.to_owned(), value.to_owned()])
                    };
                    if !has("num-other-sentinels", "2") || !has("num-slaves", "2") {
                        return false;
                    }
                }
                true
            }
        })
        .await
    }

    async fn form_cluster(&self) -> anyhow::Result<()> {
        let mut command = Command::new("redis-cli");
        command.args(["--cluster", "create"]);
        command.args(self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
        command.args(["--cluster-replicas", "1", "--cluster-yes"]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(START_LIMIT, command.output()).await??;
        if !output.status.success() {
            bail!("redis-cli --cluster create: {}", String::from_utf8_lossy(&output.stdout));
        }
        until(START_LIMIT, "the cluster does not form", || async {
            for node in &self.nodes {
                let info = ask(node.port, &["CLUSTER", "INFO"]).await;
                if !info.is_ok_and(|info| text(&info).contains("cluster_state:ok")) {
                    return false;
                }
            }
            self.is_in_sync().await
        })
        .await
    }

    async fn known(&self) -> anyhow::Result<Vec<Known>> {
        let mut best: Option<Vec<Known>> = None;
        for node in &self.nodes {
            let Ok(reply) = ask(node.port, &["CLUSTER", "NODES"]).await else { continue };
            let known: Vec<Known> = text(&reply).lines().filter_map(Known::parse).collect();
            // One that was away may not know yet who is what.
            let newest = known.iter().map(|node| node.epoch).max();
            if newest > best.as_ref().and_then(|best| best.iter().map(|node| node.epoch).max()) {
                best = Some(known);
            }
        }
        best.context("no node of the cluster answers")
    }
}

/// A node as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    id: String,
    port: u16,
    primary: bool,
    of: Option<String>,
    epoch: u64,
    slots: usize,
    ranges: Vec<(u16, u16)>,
}

impl Known {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let id = words.next()?.to_owned();
        let address = words.next()?;
        let port = address.split('@').next()?.rsplit(':').next()?.parse().ok()?;
        let flags = words.next()?;
        let of = words.next().filter(|id| *id != "-").map(str::to_owned);
        let epoch = words.nth(2)?.parse().ok()?;
        let ranges: Vec<(u16, u16)> = words
            .skip(1)
            .filter(|word| !word.starts_with('['))
            .filter_map(|word| {
                let (first, last) = word.split_once('-').unwrap_or((word, word));
                Some((first.parse().ok()?, last.parse().ok()?))
            })
            .collect();
        let slots = ranges.iter().map(|(first, last)| usize::from(last - first) + 1).sum();
        let alive = !flags.split(',').any(|flag| matches!(flag, "fail" | "noaddr" | "handshake"));
        let primary = alive && flags.split(',').any(|flag| flag == "master");
        Some(Self { id, port, primary, of, epoch, slots, ranges })
    }

    fn owns(&self, slot: u16) -> bool {
        slot < SLOTS && self.ranges.iter().any(|(first, last)| (first..=last).contains(&&slot))
    }
}

struct Info(String);

impl Info {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }
}

async fn replication(port: u16) -> anyhow::Result<Info> {
    Ok(Info(text(&ask(port, &["INFO", "replication"]).await?)))
}

async fn answers(port: u16) -> bool {
    ask(port, &["PING"]).await.is_ok_and(|reply| text(&reply) == "PONG")
}

async fn until<F: Future<Output = bool>>(
    limit: Duration,
    otherwise: &'static str,
    mut holds: impl FnMut() -> F,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !holds().await {
        if Instant::now() >= deadline {
            bail!("{otherwise} within {} s", limit.as_secs());
        }
        sleep(LOOK).await;
    }
    Ok(())
}

fn node(
    kind: RedisKind,
    number: usize,
    primary: Option<u16>,
    dir: &Path,
) -> anyhow::Result<Process> {
    let port = free_port()?;
    let data = dir.join(format!("redis-{number}"));
    std::fs::create_dir_all(&data)?;
    let mut arguments: Vec<String> = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
        .into_iter()
        .chain(["--repl-diskless-sync-delay", "0", "--appendfsync", "no", "--port"])
        .map(str::to_owned)
        .collect();
    arguments.push(port.to_string());
    arguments.extend(["--dir".to_owned(), data.display().to_string()]);
    match (kind, primary) {
        (RedisKind::Cluster, _) => {
            arguments.extend(["--cluster-enabled", "yes"].map(str::to_owned));
            arguments.push("--cluster-node-timeout".to_owned());
            arguments.push(CLUSTER_DOWN_MS.to_string());
        }
        (RedisKind::Sentinel, Some(primary)) => {
            arguments.extend(["--replicaof".to_owned(), "127.0.0.1".to_owned()]);
            arguments.push(primary.to_string());
        }
        (RedisKind::Sentinel, None) | (RedisKind::Single, _) => {}
    }
    Ok(Process::new(&format!("redis-{number}"), "redis-server".into(), arguments, port, dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_cluster_nodes_is_read() {
        let line =
            "07c3 127.0.0.1:7001@17001,host master - 0 1426238317239 4 connected 0-9 11 [12->-07]";
        let node = Known::parse(line).expect("a node");
        assert_eq!((node.port, node.primary, node.slots, node.epoch), (7001, true, 11, 4));
        assert!(node.owns(9) && node.owns(11) && !node.owns(10) && !node.owns(12));
        let replica = "1d2e 127.0.0.1:7002@17002 slave,fail 07c3 0 1426238317239 4 connected";
        let node = Known::parse(replica).expect("a node");
        assert_eq!((node.primary, node.of.as_deref(), node.slots), (false, Some("07c3"), 0));
    }
}
