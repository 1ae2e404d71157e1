//! The hosts that gauges name. A host whose address has changed is gone, and its gauges would show
//! its last state forever.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The hosts that gauges were set for last.
#[derive(Debug, Default)]
pub struct GaugedHosts(Mutex<BTreeSet<String>>);

impl GaugedHosts {
    /// Creates the set of no host.
    pub const fn none() -> Self {
        Self(Mutex::new(BTreeSet::new()))
    }

    /// Replaces the hosts by those that there are now, and returns those that are gone.
    pub fn replace<'a>(&self, present: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let present: BTreeSet<String> = present.into_iter().map(str::to_owned).collect();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = known.difference(&present).cloned().collect();
        *known = present;
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_gone_once() {
        let hosts = GaugedHosts::none();
        assert!(hosts.replace(["a", "b"]).is_empty());
        assert_eq!(hosts.replace(["b", "c"]), ["a"]);
        assert!(hosts.replace(["b", "c"]).is_empty());
    }
}
