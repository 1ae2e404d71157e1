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
        .args(["--appendonly", "yes", "--appendfsync", "no"])
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
        Self { nodes }
    }

    pub fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.nodes[0].port())
    }
}

/// A primary, a replica of it, and three sentinels that watch them.
pub struct RedisSentinels {
    _primary: RedisServer,
    _replica: RedisServer,
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
        Self { _primary: primary, _replica: replica, sentinels }
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
