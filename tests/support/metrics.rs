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

/// Waits until a replica has taken over so many turns. How it noticed the other's death does not
/// matter: a loaded machine may see the end of a short lease first.
pub async fn until_takeovers(replica: &Process, turns: u64) {
    let taken_over = eventually(LIMIT, async || {
        let text = metrics(replica).await;
        let of_reasons = text.lines().filter(|line| line.starts_with("jarvis_takeovers_total{"));
        of_reasons.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
            == turns
    });
    assert!(taken_over.await, "not {turns} takeovers:\n{}", metrics(replica).await);
}

/// Waits until a replica has no copy for another replica left to send, and returns how many it has
/// sent since its start.
pub async fn settled_copies(replica: &Process) -> u64 {
    const WAITING: &str = "jarvis_redo_copies_waiting ";
    const SENT: &str = "jarvis_redo_copies_total{outcome=\"sent\"} ";
    let mut sent = 0;
    let are_settled = eventually(LIMIT, async || {
        let text = metrics(replica).await;
        let number = |name| text.lines().find_map(|line| line.strip_prefix(name)?.parse().ok());
        sent = number(SENT).unwrap_or(0);
        number(WAITING).unwrap_or(0) == 0
    });
    assert!(are_settled.await, "{}", metrics(replica).await);
    sent
}
