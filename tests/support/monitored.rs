//! Replicas with a port for operators each, and a Prometheus that scrapes them.

use std::time::Duration;

use serde_json::json;
use testkit::Port;
use tokio::task::JoinHandle;

use super::client::{Socket, http, until_ok};
use super::process::{Process, jarvis, ollama_sim};
use super::prometheus::Prometheus;
use super::redis::RedisServer;

/// Replicas over one Redis and their hosts, scraped by a Prometheus.
pub struct Monitored {
    pub prometheus: Prometheus,
    pub replicas: Vec<Process>,
    pub hosts: Vec<Process>,
    pub redis: RedisServer,
    /// The addresses of the replicas for operators.
    pub targets: Vec<String>,
    _ports: Vec<Port>,
}

impl Monitored {
    /// Starts three replicas over hosts with these arguments, and a Prometheus with these rules.
    pub async fn start(hosts: &[&[&str]], settings: &[(&str, &str)], rules: &str) -> Self {
        let redis = RedisServer::start();
        let hosts: Vec<_> = hosts.iter().map(|arguments| ollama_sim(arguments)).collect();
        let urls: Vec<_> = hosts.iter().map(|host| host.url.clone()).collect();
        let (mut ports, mut replicas, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            let port = Port::reserve().expect("a port");
            let admin = format!("127.0.0.1:{}", port.number());
            let settings = [settings, &[("JARVIS_ADMIN_LISTEN", &*admin)]].concat();
            replicas.push(jarvis(&redis.url(), &urls.join(","), &settings));
            targets.push(admin);
            ports.push(port);
        }
        for replica in &replicas {
            until_ok(replica, "/health/ready").await;
        }
        let prometheus = Prometheus::start(&targets, rules).await;
        Self { prometheus, replicas, hosts, redis, targets, _ports: ports }
    }
}

/// Keeps a replica busy until it is dropped: turns over sockets, REST and event streams, one that
/// breaks off, and a client that comes back.
pub struct Load(JoinHandle<()>);

impl Load {
    /// Begins to monitor a replica.
    pub fn begin(replica: &Process) -> Self {
        let (url, socket) = (replica.url.clone(), replica.websocket("/ws"));
        Self(tokio::spawn(async move {
            for round in 0_u64.. {
                // A replica that is killed meanwhile answers nothing.
                let _ = turns(&url, &socket, round).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn turns(url: &str, socket: &str, round: u64) -> reqwest::Result<()> {
    let fault = if round % 10 == 3 { " fault=cut@5" } else { "" };
    let body = json!({"message": format!("[[tokens=20{fault}]] over REST, {round}")});
    let chat = format!("{url}/api/v1/chat");
    http().post(&chat).json(&body).send().await?.text().await?;
    let body = json!({"message": "[[tokens=30]] as a stream", "stream": true});
    http().post(&chat).json(&body).send().await?.text().await?;
    http().get(format!("{url}/api/v1/models")).send().await?.text().await?;
    let path = socket.to_owned();
    // In a task of its own: a socket whose replica dies panics.
    let _ = tokio::spawn(async move {
        let (mut client, hello) = Socket::open_at(&path).await;
        client.say(&json!({"message": "[[tokens=40]] over a socket"})).await;
        let events = client.until("stream_end").await;
        let session = hello["session_id"].as_str().unwrap_or_default();
        let cursor = events[events.len() / 2]["cursor"].as_str().unwrap_or_default();
        let path = format!("{path}?session_id={session}&cursor={cursor}");
        let (mut client, _) = Socket::open_at(&path).await;
        client.until("stream_end").await;
    })
    .await;
    Ok(())
}
