//! A connection for somebody who looks at a running service: it only reads, and loads, extends and repairs
//! nothing. [`Redis`](super::Redis) keeps the primary lease behind sentinels, which is a write; this
//! connection knows no primary lease, so that what it reads of a server that was just replaced may be out
//! of date.

use std::time::Duration;

use fred::prelude::{
    Client, ClientLike, ClusterInterface, Error, EventInterface, FromValue, Options, Server, Value,
};
use fred::types::{ClusterHash, CustomCommand};
use futures_util::future::join_all;
use tokio::sync::broadcast;

use super::client::{RedisOptions, connect};
use super::error::{RedisError, classify, is_unavailable};
use super::functions::Call;
use crate::lifecycle::spawn_caught;

/// Events that the client buffers of each kind.
const EVENTS: usize = 64;
/// Time limit of the reply of one primary about itself.
const LIMIT: Duration = Duration::from_secs(1);
/// The argument that stands for the key of the primary lease where there is none.
const WITHOUT_LEASE: &str = "-";

/// A connection that only reads. It connects by itself, again where it was lost.
pub struct Observer {
    options: RedisOptions,
    client: Client,
    errors: broadcast::Receiver<(Error, Option<Server>)>,
    /// The last error of the connection that every attempt repeats.
    refused: Option<Error>,
}

/// One primary, as it describes itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerReport {
    /// The address; `primary` where the client does not know it.
    pub address: String,
    /// The release of the server.
    pub version: String,
    /// Memory in use, in bytes.
    pub memory_used: u64,
    /// Memory that it may use, in bytes; 0 where it has no limit.
    pub memory_max: u64,
    /// Commands a second.
    pub commands: u64,
    /// Connected clients.
    pub clients: u64,
    /// Connected Redis replicas.
    pub replicas: u64,
}

impl ServerReport {
    /// Parses the reply to `INFO`.
    fn parse(address: String, info: &str) -> Option<Self> {
        let text = |name: &str| {
            let mut lines = info.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let number = |name: &str| text(name)?.parse().ok();
        Some(Self {
            address,
            version: text("valkey_version").or_else(|| text("redis_version"))?.to_owned(),
            memory_used: number("used_memory")?,
            memory_max: number("maxmemory")?,
            commands: number("instantaneous_ops_per_sec")?,
            clients: number("connected_clients")?,
            replicas: number("connected_slaves")?,
        })
    }
}

impl Observer {
    /// Starts to connect, without waiting for Redis. Must be called inside a Tokio runtime.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn connect(options: &RedisOptions) -> Result<Self, RedisError> {
        let client = connect(options, &[], EVENTS)?;
        let errors = client.error_rx();
        Ok(Self { options: options.clone(), client, errors, refused: None })
    }

    /// Ends the connection and begins another one, for a server that no longer replies.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn connect_again(&mut self) -> Result<(), RedisError> {
        let last = std::mem::replace(self, Self::connect(&self.options)?).client;
        spawn_caught("redis", async move {
            let _ = tokio::time::timeout(LIMIT, last.quit()).await;
        });
        Ok(())
    }

    /// Calls a function that only reads.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub async fn call<R: FromValue>(&mut self, call: Call) -> Result<R, RedisError> {
        let node = call.slot().map_or(ClusterHash::Random, ClusterHash::Custom);
        let command = CustomCommand::new_static("FCALL_RO", node, false);
        let mut arguments = call.into_arguments();
        if let Some(last) = arguments.last_mut() {
            *last = Value::from_static_str(WITHOUT_LEASE);
        }
        let reply = self.client.custom::<R, Value>(command, arguments).await;
        reply.map_err(|error| self.explain(error))
    }

    /// Has each primary describe itself. One that does not reply in time is left out.
    pub async fn servers(&self) -> Vec<ServerReport> {
        let of_cluster =
            self.client.cached_cluster_state().map(|state| state.unique_primary_nodes());
        let is_cluster = of_cluster.is_some();
        let mut nodes = of_cluster.unwrap_or_else(|| self.client.active_connections());
        nodes.sort();
        let mut nodes: Vec<Option<Server>> = nodes.into_iter().map(Some).collect();
        if nodes.is_empty() {
            // A user who may not run CLIENT ID has connections that are not listed.
            nodes.push(None);
        }
        let reports = nodes.into_iter().map(|node| async move {
            let address = node.as_ref().map_or_else(|| "primary".to_owned(), Server::to_string);
            let cluster_node = node.filter(|_| is_cluster);
            let options = Options {
                timeout: Some(LIMIT),
                max_attempts: Some(1),
                cluster_node,
                ..Options::default()
            };
            let info = self.client.with_options(&options).info::<String>(None).await.ok()?;
            ServerReport::parse(address, &info)
        });
        join_all(reports).await.into_iter().flatten().collect()
    }

    /// Classifies an error of a command. Without a connection, the error of the connection counts where
    /// every attempt repeats it.
    fn explain(&mut self, error: Error) -> RedisError {
        while let Ok((error, _)) = self.errors.try_recv() {
            self.refused = Some(error);
        }
        if self.client.is_connected() {
            self.refused = None;
        }
        let of_connection = self.refused.clone().filter(|_| is_unavailable(&error)).map(classify);
        of_connection.filter(RedisError::is_permanent).unwrap_or_else(|| classify(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_described_by_its_own_words_and_a_reply_without_them_by_none() {
        let info = "# Server\r\nredis_version:7.0.15\r\n# Clients\r\nconnected_clients:9\r\n\
                    # Memory\r\nused_memory:1000\r\nused_memory_human:1K\r\nmaxmemory:4000\r\n\
                    # Stats\r\ninstantaneous_ops_per_sec:42\r\n\
                    # Replication\r\nrole:master\r\nconnected_slaves:2\r\n";
        let report = ServerReport::parse("a:1".to_owned(), info).expect("a report");
        let expected = ServerReport {
            address: "a:1".to_owned(),
            version: "7.0.15".to_owned(),
            memory_used: 1000,
            memory_max: 4000,
            commands: 42,
            clients: 9,
            replicas: 2,
        };
        assert_eq!(report, expected);
        assert_eq!(ServerReport::parse(String::new(), "redis_version:7\r\n"), None);
    }
}
