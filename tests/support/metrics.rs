//! The metrics of a replica.

use super::client::get;
use super::eventually;
use super::process::{LIMIT, Process};

/// Returns the metrics of a replica in the text format of Prometheus.
pub async fn metrics(replica: &Process) -> String {
    let metrics = get(replica, "/metrics").await.body;
    metrics.as_str().expect("text").to_owned()
}

/// Waits until a line of the metrics passes the test; `what` describes the line.
pub async fn until_metric(replica: &Process, what: &str, test: impl Fn(&str) -> bool) {
    let found = eventually(LIMIT, async || metrics(replica).await.lines().any(&test)).await;
    assert!(found, "{what} is not in the metrics in time:\n{}", metrics(replica).await);
}

/// Waits for a whole line of the metrics.
pub async fn until_metric_line(replica: &Process, line: &str) {
    until_metric(replica, line, |found| found == line).await;
}
