//! The connections of each address at this replica, within a bound.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::http::extract::caller::TrustedProxies;

/// The prefix lengths of the IPv6 networks whose connections are bounded, the smallest network first.
/// Each wider one may have twice as many.
const IPV6_PREFIXES: [u32; 3] = [64, 56, 48];

/// A network: its first address, and the length of its prefix.
type Network = (IpAddr, u32);

/// Counts the open connections of each address. Cloning is cheap, and clones share the counts.
#[derive(Clone, Default)]
pub struct AddressConnections {
    /// Connections of one address; 0 for any number.
    limit: usize,
    /// The proxies in front, whose connections are those of all clients.
    proxies: TrustedProxies,
    open: Arc<Mutex<HashMap<Network, usize>>>,
}

/// One counted connection, until it is dropped.
pub struct CountedConnection {
    open: Arc<Mutex<HashMap<Network, usize>>>,
    networks: Vec<Network>,
}

impl AddressConnections {
    /// Creates the bound of connections of one address, 0 for any number. Those of trusted proxies and
    /// of loopback addresses are not bounded.
    pub fn new(limit: usize, proxies: TrustedProxies) -> Self {
        Self { limit, proxies, open: Arc::default() }
    }

    /// Counts a connection. Returns none where its address, or a network around it, has as many as it
    /// may have.
    pub fn admit(&self, address: IpAddr) -> Option<CountedConnection> {
        let address = address.to_canonical();
        let is_bounded = self.limit > 0 && !address.is_loopback() && !self.proxies.has(address);
        let networks = if is_bounded { networks(address) } else { Vec::new() };
        let mut open = lock(&self.open);
        let mut limit = self.limit;
        for network in &networks {
            if open.get(network).is_some_and(|count| *count >= limit) {
                return None;
            }
            limit = limit.saturating_mul(2);
        }
        for network in &networks {
            *open.entry(*network).or_default() += 1;
        }
        drop(open);
        Some(CountedConnection { open: Arc::clone(&self.open), networks })
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        if self.networks.is_empty() {
            return;
        }
        let mut open = lock(&self.open);
        for network in &self.networks {
            if let Some(count) = open.get_mut(network) {
                *count -= 1;
                if *count == 0 {
                    open.remove(network);
                }
            }
        }
    }
}

fn lock(open: &Mutex<HashMap<Network, usize>>) -> MutexGuard<'_, HashMap<Network, usize>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

fn networks(address: IpAddr) -> Vec<Network> {
    match address {
        IpAddr::V4(_) => vec![(address, 32)],
        IpAddr::V6(address) => {
            let network = |bits: u32| {
                let kept = u128::MAX << (u128::BITS - bits);
                (Ipv6Addr::from_bits(address.to_bits() & kept).into(), bits)
            };
            IPV6_PREFIXES.map(network).to_vec()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(connections: &AddressConnections, address: &str, count: usize) -> Vec<CountedConnection> {
        let address = address.parse().expect("an address");
        (0..count).filter_map(|_| connections.admit(address)).collect()
    }

    #[test]
    fn an_address_has_a_bounded_number_of_connections_and_gets_them_back() {
        let proxies = TrustedProxies([("10.0.0.0/8").parse().expect("a network")].into());
        let connections = AddressConnections::new(3, proxies);
        let held = of(&connections, "192.0.2.1", 9);
        assert_eq!(held.len(), 3);
        assert_eq!(of(&connections, "::ffff:192.0.2.1", 9).len(), 0, "the same address");
        assert_eq!(of(&connections, "192.0.2.2", 9).len(), 3, "another address has its own");
        assert_eq!(of(&connections, "127.0.0.1", 9).len(), 9, "loopback has no bound");
        assert_eq!(of(&connections, "10.1.2.3", 9).len(), 9, "a proxy has no bound");
        drop(held);
        assert_eq!(of(&connections, "192.0.2.1", 9).len(), 3);
        assert!(lock(&connections.open).is_empty(), "an address is forgotten");
        let unlimited = AddressConnections::new(0, TrustedProxies::default());
        assert_eq!(of(&unlimited, "192.0.2.1", 9).len(), 9);
    }

    #[test]
    fn networks_of_one_56_and_of_one_48_have_bounds_together() {
        let connections = AddressConnections::new(2, TrustedProxies::default());
        let mut held = Vec::new();
        for number in 0..16 {
            let network = ((number / 4) << 8) | (number % 4);
            held.extend(of(&connections, &format!("2001:db8:0:{network:x}::1"), 3));
            match number {
                0 => assert_eq!(held.len(), 2, "one /64"),
                3 => assert_eq!(held.len(), 4, "one /56"),
                _ => {}
            }
        }
        assert_eq!(held.len(), 8, "one /48");
        assert_eq!(of(&connections, "2001:db8:1::1", 3).len(), 2);
    }
}
