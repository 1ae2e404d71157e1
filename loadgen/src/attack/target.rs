//! The state that all attacks share: the replicas, the time, the addresses that the attackers claim, and what
//! they saw.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// The replicas under attack, and what the attackers saw. Cloning is cheap.
#[derive(Clone)]
pub struct Target {
    /// The addresses of the replicas, each as `127.0.0.1:10200`.
    pub replicas: Arc<[String]>,
    /// The end of the attack.
    pub until: Instant,
    /// The client of the attackers that send whole requests.
    pub http: reqwest::Client,
    seen: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Target {
    /// Creates a target from the base addresses of the replicas.
    pub fn new(urls: &[String], until: Instant, http: reqwest::Client) -> Self {
        let replicas = urls.iter().map(|url| url.trim_start_matches("http://").to_owned());
        Self { replicas: replicas.collect(), until, http, seen: Arc::default() }
    }

    /// Returns the replica that an attacker of this number attacks.
    pub fn replica(&self, number: usize) -> &str {
        &self.replicas[number % self.replicas.len()]
    }

    /// Returns whether the attack is over.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Counts something that an attacker saw.
    pub fn saw(&self, what: &str) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = seen.get_mut(what) {
            *count += 1;
        } else {
            seen.insert(what.to_owned(), 1);
        }
    }

    /// Returns all that the attackers saw, by its name.
    pub fn seen(&self) -> BTreeMap<String, u64> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The addresses that the attackers of one attack claim. No two attacks share one, and none is that
/// of an honest session.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The second byte of the addresses.
    pub attack: u8,
    /// How many there are.
    pub count: usize,
}

impl Addresses {
    /// Returns the address of an attacker of this number.
    pub fn of(self, number: usize) -> String {
        let number = number % self.count.max(1);
        format!("10.{}.{}.{}", self.attack, number / 250 % 256, number % 250 + 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn attackers_claim_as_many_addresses_as_they_should() {
        for count in [1, 84, 500] {
            let addresses = Addresses { attack: 65, count };
            let all: BTreeSet<Ipv4Addr> = (0..10_000)
                .map(|number| addresses.of(number).parse().expect("an address"))
                .collect();
            assert_eq!(all.len(), count);
        }
    }
}
