//! Notices a server that is stopped and not gone: its connections stay open, and only a probe with
//! a time limit finds out.
//!
//! fred's own check starts again at every write, so that it never ends under light traffic. After a
//! hash slot has moved, a client of fred was seen that replied to no command any more: such a
//! client is replaced.

use std::time::Duration;

use fred::prelude::{Client, ClientLike, ClusterInterface, Error, EventInterface, Options, Server};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::error::is_unavailable;
use super::sentinel::Primary;
use crate::telemetry::metric;

/// Time between two probes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time limit of a probe.
const LIMIT: Duration = Duration::from_secs(1);
/// Probes in a row without a reply, after which the client reconnects.
const RECONNECT_AFTER: u32 = 2;
/// Probes in a row without a reply, after which the client is replaced.
const REPLACE_AFTER: u32 = 5;

/// Counts the events that may have lost an acknowledged write: lost connections, servers that do
/// not reply, changes of a cluster.
#[derive(Clone, Debug)]
pub(super) struct Disturbances(watch::Sender<u64>);

impl Disturbances {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    pub(super) fn note(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// Probes the servers of a client, and resolves when the client must be replaced.
pub(super) async fn until_unresponsive(
    client: &Client,
    primary: &mut Primary,
    disturbances: &Disturbances,
) {
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = 0;
    let changes = changes(client, disturbances);
    tokio::pin!(changes);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Ok(()) = primary.changed() => {}
            () = &mut changes => return,
        }
        if is_stale(client, primary) {
            disturbances.note();
            tracing::warn!("redis has another primary; reconnecting");
            metrics::counter!(metric::REDIS_ERRORS_TOTAL, "kind" => "stale").increment(1);
            let _ = tokio::time::timeout(LIMIT, client.force_reconnection()).await;
            continue;
        }
        if client.is_connected() && replies(client).await {
            failures = 0;
            continue;
        }
        disturbances.note();
        failures += 1;
        if failures == RECONNECT_AFTER && client.is_connected() {
            tracing::warn!("redis does not reply; reconnecting");
            metrics::counter!(metric::REDIS_ERRORS_TOTAL, "kind" => "silent").increment(1);
            let _ = tokio::time::timeout(LIMIT, client.force_reconnection()).await;
        }
        if failures >= REPLACE_AFTER {
            return;
        }
    }
}

/// Returns whether the client is connected, and not to the primary that the sentinels name.
fn is_stale(client: &Client, primary: &mut Primary) -> bool {
    let connected = client.active_connections();
    let primary = primary.server();
    let Some(primary) = primary.as_ref() else { return false };
    let same = |server: &Server| server.host == primary.host && server.port == primary.port;
    !connected.is_empty() && !connected.iter().any(same)
}

/// Returns whether every server of the client replies in time.
async fn replies(client: &Client) -> bool {
    let options = Options { timeout: Some(LIMIT), max_attempts: Some(1), ..Options::default() };
    let nodes = client.cached_cluster_state().map(|state| state.unique_primary_nodes());
    match nodes {
        Some(nodes) => {
            let probes = nodes.into_iter().map(|node: Server| {
                let client = client.clone();
                let options = Options { cluster_node: Some(node), ..options.clone() };
                async move { client.with_options(&options).ping::<()>(None).await }
            });
            futures_util::future::join_all(probes).await.iter().all(is_reply)
        }
        None => is_reply(&client.with_options(&options).ping::<()>(None).await),
    }
}

/// Returns whether the result is a reply. A refusal is one, too, because a user may lack PING.
fn is_reply(pong: &Result<(), Error>) -> bool {
    pong.as_ref().err().is_none_or(|error| !is_unavailable(error))
}

/// Counts the events of the client's connections. Resolves when the client has ended.
async fn changes(client: &Client, disturbances: &Disturbances) {
    let (mut errors, mut reconnections) = (client.error_rx(), client.reconnect_rx());
    let mut changes = client.cluster_change_rx();
    loop {
        use tokio::sync::broadcast::error::RecvError::Closed;
        tokio::select! {
            error = errors.recv() => if matches!(error, Err(Closed)) { return },
            server = reconnections.recv() => if matches!(server, Err(Closed)) { return },
            change = changes.recv() => if matches!(change, Err(Closed)) { return },
        }
        disturbances.note();
    }
}
