//! Real Redis servers, each alone on a port of its own, gone with the test.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take to answer on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// One `redis-server` process, with an append-only file so that it may be stopped and started.
pub struct RedisServer {
    process: Child,
    dir: TempDir,
    port: u16,
    extra: Vec<String>,
}

impl RedisServer {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(extra: &[&str]) -> Self {
        let extra: Vec<String> = extra.iter().map(ToString::to_string).collect();
        for _ in 0..5 {
            let dir = TempDir::new().expect("a folder");
            let port = free_port();
            let process = spawn(port, dir.path().to_owned(), &extra);
            let mut server = Self { process, dir, port, extra: extra.clone() };
            if server.wait_until_it_answers() {
                return server;
            }
        }
        panic!("redis-server did not start");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends the server as a crash would.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts it again on its port and data.
    pub fn restart(&mut self) {
        self.kill();
        self.process = spawn(self.port, self.dir.path().to_owned(), &self.extra);
        assert!(self.wait_until_it_answers(), "redis-server did not come back");
    }

    pub fn cli(&self, args: &[&str]) -> String {
        cli(self.port, args)
    }

    /// A replica that never had its primary's data cannot take over.
    pub fn wait_until_in_sync(&self) {
        let deadline = Instant::now() + START_LIMIT;
        while !self.cli(&["INFO", "replication"]).contains("master_link_status:up") {
            assert!(Instant::now() < deadline, "a replica does not come into sync");
            std::thread::yield_now();
        }
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.process.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill {name}");
    }

    /// Remembers everything that is stored.
    pub fn remember(&self) {
        self.cli(&["-n", "1", "FLUSHDB"]);
        let copy = "for _, k in ipairs(redis.call('KEYS', '*')) do \
                    redis.call('COPY', k, k, 'DB', 1, 'REPLACE') end";
        self.cli(&["EVAL", copy, "0"]);
    }

    /// As a failover to a server that had only what was remembered: connections break, and what was
    /// written since is gone.
    pub fn lose_what_came_since(&self) {
        self.cli(&["SWAPDB", "0", "1"]);
        self.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        self.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    }

    fn wait_until_it_answers(&mut self) -> bool {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if cli(self.port, &["PING"]).trim() == "PONG" {
                return true;
            }
            if self.process.try_wait().is_ok_and(|status| status.is_some()) {
                return false;
            }
            std::thread::yield_now();
        }
        false
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What `redis-cli` prints.
pub fn cli(port: u16, args: &[&str]) -> String {
    let output = Command::new("redis-cli")
        .args(["-p", &port.to_string()])
        .args(args)
        .stderr(Stdio::null())
        .output()
        .expect("redis-cli");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn spawn(port: u16, dir: PathBuf, extra: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "yes", "--appendfsync", "no", "--repl-diskless-sync-delay", "0"])
        .arg("--dir")
        .arg(dir)
        .args(extra)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server")
}

/// Six nodes: three primaries, each with a replica.
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    pub fn start() -> Self {
        let nodes: Vec<RedisServer> = (0..6)
            .map(|_| {
                RedisServer::start_with(&[
                    "--cluster-enabled",
                    "yes",
                    "--cluster-node-timeout",
                    "2000",
                ])
            })
            .collect();
        let mut create = vec!["--cluster".to_owned(), "create".to_owned()];
        create.extend(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())));
        create.extend(["--cluster-replicas", "1", "--cluster-yes"].map(str::to_owned));
        let create: Vec<&str> = create.iter().map(String::as_str).collect();
        cli(nodes[0].port(), &create);
        let deadline = Instant::now() + START_LIMIT;
        while !nodes.iter().all(|node| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
        {
            assert!(Instant::now() < deadline, "the cluster did not form");
            std::thread::yield_now();
        }
        let replicas = nodes.iter().filter(|node| node.cli(&["ROLE"]).starts_with("slave"));
        replicas.for_each(RedisServer::wait_until_in_sync);
        Self { nodes }
    }

    pub fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.nodes[0].port())
    }

    /// The slot of a key.
    pub fn slot(&self, key: &str) -> String {
        self.nodes[0].cli(&["CLUSTER", "KEYSLOT", key]).trim().to_owned()
    }

    /// The primary that has a key, and its replica.
    pub fn holders(&mut self, key: &str) -> (&mut RedisServer, u16) {
        let slot: u32 = self.slot(key).parse().expect("a slot");
        let nodes = self.nodes[0].cli(&["CLUSTER", "NODES"]);
        let rows: Vec<Vec<&str>> = nodes.lines().map(|row| row.split(' ').collect()).collect();
        let port = |row: &[&str]| -> u16 {
            let address = row[1].split('@').next().expect("an address");
            address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
        };
        let has = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| text.parse::<u32>().unwrap_or(u32::MAX);
            number(first) <= slot && slot <= number(last)
        };
        let primary = rows
            .iter()
            .find(|row| row[2].contains("master") && row[8..].iter().any(|range| has(range)))
            .expect("a primary");
        let replica = rows.iter().find(|row| row[3] == primary[0]).expect("a replica");
        let (primary, replica) = (port(primary), port(replica));
        let primary = self.nodes.iter_mut().find(|node| node.port() == primary).expect("a node");
        (primary, replica)
    }

    /// Moves a slot from the primary that has it to another, keys and all.
    pub fn migrate(&mut self, key: &str) {
        let slot = self.slot(key);
        let (source, _) = self.holders(key);
        let source_port = source.port();
        let source_id = source.cli(&["CLUSTER", "MYID"]).trim().to_owned();
        let target = self
            .nodes
            .iter()
            .find(|node| node.port() != source_port && node.cli(&["ROLE"]).starts_with("master"))
            .expect("another primary");
        let target_id = target.cli(&["CLUSTER", "MYID"]).trim().to_owned();
        target.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source_id]);
        cli(source_port, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target_id]);
        loop {
            let keys = cli(source_port, &["CLUSTER", "GETKEYSINSLOT", &slot, "10"]);
            let keys: Vec<&str> = keys.split_whitespace().collect();
            if keys.is_empty() {
                break;
            }
            let port = target.port().to_string();
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            migrate.extend(keys);
            cli(source_port, &migrate);
        }
        for node in [target.port(), source_port] {
            cli(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &target_id]);
        }
    }
}

/// A primary, a replica of it, and three sentinels that watch them.
pub struct RedisSentinels {
    pub primary: RedisServer,
    pub replica: RedisServer,
    sentinels: Vec<(Child, u16, TempDir)>,
}

impl RedisSentinels {
    pub fn start() -> Self {
        let primary = RedisServer::start();
        let port = primary.port().to_string();
        let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]);
        let sentinels: Vec<_> = (0..3).map(|_| sentinel(primary.port())).collect();
        let deadline = Instant::now() + START_LIMIT;
        let settled = |port: u16| {
            let told = cli(port, &["SENTINEL", "MASTER", "jarvis"]);
            let told: Vec<&str> = told.lines().collect();
            let value = |name: &str| {
                told.iter().position(|line| *line == name).and_then(|at| told.get(at + 1).copied())
            };
            value("num-other-sentinels") == Some("2") && value("num-slaves") == Some("1")
        };
        while !sentinels.iter().all(|(_, port, _)| settled(*port)) {
            assert!(Instant::now() < deadline, "the sentinels did not find each other");
            std::thread::yield_now();
        }
        replica.wait_until_in_sync();
        Self { primary, replica, sentinels }
    }

    pub fn url(&self) -> String {
        let nodes: Vec<_> =
            self.sentinels.iter().map(|(_, port, _)| format!("127.0.0.1:{port}")).collect();
        format!(
            "redis-sentinel://{}?sentinelServiceName=jarvis&node={}&node={}",
            nodes[0], nodes[1], nodes[2]
        )
    }
}

impl Drop for RedisSentinels {
    fn drop(&mut self) {
        for (process, ..) in &mut self.sentinels {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn sentinel(primary: u16) -> (Child, u16, TempDir) {
    let dir = TempDir::new().expect("a folder");
    let port = free_port();
    let file = dir.path().join("sentinel.conf");
    let config = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor jarvis 127.0.0.1 {primary} 2\n\
         sentinel down-after-milliseconds jarvis 1000\nsentinel failover-timeout jarvis 5000\n",
        dir.path().display()
    );
    std::fs::write(&file, config).expect("sentinel.conf");
    let process = Command::new("redis-sentinel")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-sentinel");
    (process, port, dir)
}
