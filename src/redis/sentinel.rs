//! Which server the sentinels say is the primary.
//!
//! A primary that was stopped wakes up as one: for the eight seconds or so until the sentinels make
//! it a replica, it takes writes that are lost then. fred asks the sentinels only when it connects.

use std::collections::HashMap;
use std::time::Duration;

use fred::prelude::{Builder, Client, ClientLike, Config, Options, ReconnectPolicy, Server};
use fred::prelude::{PerformanceConfig, ServerConfig};
use fred::types::{ClusterHash, CustomCommand};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

const INTERVAL: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_millis(500);

/// What most of the sentinels say; none before they were asked, and where there are none.
pub(super) type Primary = watch::Receiver<Option<Server>>;

/// Asks the sentinels of a configuration as long as anybody wants to know.
pub(super) fn follow(config: &Config) -> Primary {
    let (primary, receiver) = watch::channel(None);
    if let ServerConfig::Sentinel { hosts, service_name, username, password } = &config.server {
        let sentinels: Vec<Client> = hosts
            .iter()
            .filter_map(|host| {
                let config = Config {
                    server: ServerConfig::Centralized { server: host.clone() },
                    username: username.clone(),
                    password: password.clone(),
                    tls: config.tls.clone(),
                    ..Config::default()
                };
                sentinel(config)
            })
            .collect();
        tokio::spawn(ask(sentinels, service_name.clone(), primary));
    }
    receiver
}

fn sentinel(config: Config) -> Option<Client> {
    let client = Builder::from_config(config)
        .with_connection_config(|connection| {
            connection.connection_timeout = LIMIT;
            connection.internal_command_timeout = LIMIT;
        })
        .with_performance_config(|performance: &mut PerformanceConfig| {
            performance.default_command_timeout = LIMIT;
        })
        .set_policy(ReconnectPolicy::new_constant(0, 1000))
        .build()
        .ok()?;
    client.connect();
    Some(client)
}

async fn ask(sentinels: Vec<Client>, name: String, primary: watch::Sender<Option<Server>>) {
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !primary.is_closed() {
        tick.tick().await;
        let asked = sentinels.iter().map(|sentinel| address(sentinel, &name));
        let mut votes: HashMap<Server, usize> = HashMap::new();
        for server in futures_util::future::join_all(asked).await.into_iter().flatten() {
            *votes.entry(server).or_default() += 1;
        }
        let most = votes.into_iter().max_by_key(|(_, votes)| *votes);
        let Some((server, _)) = most.filter(|(_, votes)| *votes * 2 > sentinels.len()) else {
            continue;
        };
        primary.send_if_modified(|known| {
            let news = known.as_ref() != Some(&server);
            *known = Some(server);
            news
        });
    }
    for sentinel in sentinels {
        let _ = tokio::time::timeout(LIMIT, sentinel.quit()).await;
    }
}

async fn address(sentinel: &Client, name: &str) -> Option<Server> {
    if !sentinel.is_connected() {
        return None;
    }
    let command = CustomCommand::new_static("SENTINEL", ClusterHash::Random, false);
    let once = Options { max_attempts: Some(1), ..Options::default() };
    let words = vec!["get-master-addr-by-name", name];
    let told: Vec<String> = sentinel.with_options(&once).custom(command, words).await.ok()?;
    let [host, port] = told.as_slice() else { return None };
    Some(Server::new(host, port.parse().ok()?))
}
