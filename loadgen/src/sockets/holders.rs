//! The processes that hold sockets: one process may open too few of them.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::hold::HoldStatus;

/// The time that a process may take to end.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The running processes.
pub struct Holders {
    children: Vec<(Child, Option<ChildStdin>)>,
    statuses: watch::Receiver<Vec<HoldStatus>>,
}

impl Holders {
    /// Starts `count` processes that hold `sockets` in all.
    ///
    /// # Errors
    /// Fails where a process does not start.
    pub fn start(replicas: &[String], sockets: usize, count: usize) -> anyhow::Result<Self> {
        let (send, statuses) = watch::channel(vec![HoldStatus::default(); count]);
        let mut children = Vec::with_capacity(count);
        for number in 0..count {
            let share = sockets / count + usize::from(number < sockets % count);
            let mut child = Command::new(std::env::current_exe()?)
                .args(["hold", "--sockets", &share.to_string()])
                .args(["--replicas", &replicas.join(",")])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let input = child.stdin.take();
            let output = child.stdout.take().context("no output")?;
            let send = send.clone();
            tokio::spawn(async move {
                let mut lines = BufReader::new(output).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if let Ok(status) = serde_json::from_str(&line) {
                        send.send_modify(|statuses| statuses[number] = status);
                    }
                }
            });
            children.push((child, input));
        }
        Ok(Self { children, statuses })
    }

    /// Returns the counts of all processes together.
    pub fn status(&self) -> HoldStatus {
        total(&self.statuses.borrow())
    }

    /// Waits until the counts fulfil a condition. Returns whether they did within `limit`.
    pub async fn wait(&mut self, limit: Duration, met: impl Fn(&HoldStatus) -> bool) -> bool {
        let met = self.statuses.wait_for(|statuses| met(&total(statuses)));
        matches!(timeout(limit, met).await, Ok(Ok(_)))
    }

    /// Ends all processes, which closes their sockets.
    pub async fn stop(self) {
        for (mut child, input) in self.children {
            drop(input);
            let _ = timeout(END_LIMIT, child.wait()).await;
        }
    }
}

fn total(statuses: &[HoldStatus]) -> HoldStatus {
    let mut total = HoldStatus::default();
    for status in statuses {
        total.open += status.open;
        total.lost += status.lost;
        total.back += status.back;
        for (reason, count) in &status.errors {
            *total.errors.entry(reason.clone()).or_default() += count;
        }
    }
    total
}
