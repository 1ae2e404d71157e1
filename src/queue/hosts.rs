//! The model hosts, as replicas report them to the queue.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::digest::sha256_hex;

/// The stable name of a model host, which is the same on all replicas.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct HostKey(pub String);

/// Whether a replica may use a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostAccess {
    /// Connections to the host work.
    Open,
    /// The host's breaker admits one trial.
    Trial,
    /// The host's breaker is open.
    Shut,
}

/// The report of a replica about a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostReport {
    /// The host.
    pub name: HostKey,
    /// Concurrent generations, at least 1.
    pub slots: usize,
    /// Whether this replica may use it.
    pub via: HostAccess,
    /// The number of trials so far, so that each trial is a report of its own.
    pub trials: u64,
    /// The models of the host, with their model tags, and whether each is loaded.
    pub models: BTreeMap<String, bool>,
}

/// A report, as Redis gets it.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub digest: String,
    pub(super) json: String,
}

impl Report {
    pub(super) fn of(hosts: &[HostReport]) -> Self {
        let json = serde_json::to_string(hosts).unwrap_or_else(|_| "[]".to_owned());
        let mut digest = sha256_hex(json.as_bytes());
        digest.truncate(16);
        Self { digest, json }
    }
}

/// How much of a host is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostUse {
    /// The host.
    pub name: HostKey,
    /// Concurrent generations that the host may have.
    pub slots: u64,
    /// Concurrent generations that the host has: more than its slots where a replica that was
    /// declared gone still runs.
    pub used: u64,
}
