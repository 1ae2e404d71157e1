//! Permits of WebSockets, event streams and streamed turns: bounds in all, by address and by user. A permit
//! is taken before the upgrade, so that no more are open than may be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::limits::{LimitKind, Standing, UserSocket};
use crate::source::{Source, wider_networks};

/// The number of sockets of one address where they are not limited.
const UNLIMITED: usize = usize::MAX;

/// The permits of one replica. Cloning is cheap, and clones share everything.
#[derive(Clone)]
pub struct SocketPermits {
    inner: Arc<PermitsInner>,
}

struct PermitsInner {
    limit: usize,
    limit_of_address: usize,
    open: Mutex<OpenSockets>,
}

#[derive(Default)]
struct OpenSockets {
    total: usize,
    /// By the digest of an address, or of a network around it.
    of_network: HashMap<String, usize>,
}

/// Why there is no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPermit {
    /// The replica has its largest number.
    Full,
    /// The address, or a network around it, has its largest number.
    AddressFull,
}

/// The right to one open WebSocket or event stream, until it is dropped.
pub struct SocketPermit {
    inner: Arc<PermitsInner>,
    source: Source,
    /// The hold of the user's socket over all replicas.
    user: Option<Box<UserSocket>>,
}

impl SocketPermits {
    /// Creates permits for so many at a time, in all and of one address, 0 for any number. An IPv6 /56 may
    /// have twice as many as an address, and a /48 four times.
    pub fn new(limit: usize, limit_of_address: usize) -> Self {
        let limit_of_address = if limit_of_address == 0 { UNLIMITED } else { limit_of_address };
        Self { inner: Arc::new(PermitsInner { limit, limit_of_address, open: Mutex::default() }) }
    }

    /// Takes a permit.
    ///
    /// # Errors
    /// Any [`NoPermit`].
    pub fn take(&self, source: &Source) -> Result<SocketPermit, NoPermit> {
        let mut open = self.inner.open();
        if open.total >= self.inner.limit {
            return Err(NoPermit::Full);
        }
        let mut limit = self.inner.limit_of_address;
        for network in networks(source) {
            if open.of_network.get(network).is_some_and(|count| *count >= limit) {
                return Err(NoPermit::AddressFull);
            }
            limit = limit.saturating_mul(2);
        }
        for network in networks(source) {
            *open.of_network.entry(network.to_owned()).or_default() += 1;
        }
        open.total += 1;
        drop(open);
        Ok(SocketPermit { inner: Arc::clone(&self.inner), source: source.clone(), user: None })
    }

    /// Returns what is left of the sockets of an address; none on loopback.
    pub fn standing(&self, source: &Source) -> Option<Standing> {
        let open = self.inner.open();
        let mut quota = self.inner.limit_of_address;
        let mut least: Option<(usize, usize)> = None;
        for network in networks(source) {
            let used = open.of_network.get(network).copied().unwrap_or_default();
            if least.is_none_or(|(quota_of, used_of)| {
                quota.saturating_sub(used) < quota_of.saturating_sub(used_of)
            }) {
                least = Some((quota, used));
            }
            quota = quota.saturating_mul(2);
        }
        let kind = LimitKind::AddressSockets;
        least.filter(|_| self.inner.limit_of_address < UNLIMITED).map(|(quota, used)| Standing {
            kind,
            quota: quota as u64,
            used: used as u64,
            reset: Duration::ZERO,
        })
    }
}

impl SocketPermit {
    /// Returns the client's source.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Holds the user's socket as long as this permit.
    #[must_use]
    pub fn with(self, user: Option<UserSocket>) -> Self {
        // The permit itself cannot be taken apart, because dropping it returns it.
        let mut permit = self;
        // Boxed, because few sockets have one, and an idle one keeps the room.
        permit.user = user.map(Box::new);
        permit
    }

    /// Returns what is left of the sockets of the permit's address, and of those of its user where its
    /// request was admitted without them.
    pub fn standings(&self) -> Vec<Standing> {
        let of_user = self.user.as_ref().and_then(|user| user.standing().cloned());
        let of_address = SocketPermits { inner: Arc::clone(&self.inner) }.standing(&self.source);
        of_user.into_iter().chain(of_address).collect()
    }
}

impl PermitsInner {
    fn open(&self) -> MutexGuard<'_, OpenSockets> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SocketPermit {
    fn drop(&mut self) {
        let mut open = self.inner.open();
        open.total -= 1;
        for network in networks(&self.source) {
            if let Some(count) = open.of_network.get_mut(network) {
                *count -= 1;
                if *count == 0 {
                    open.of_network.remove(network);
                }
            }
        }
    }
}

/// Returns the networks in which a client counts, the smallest first; none on loopback.
fn networks(source: &Source) -> impl Iterator<Item = &str> {
    let own = source.is_limited().then_some(source.0.as_str());
    own.into_iter().chain(wider_networks(&source.0).into_iter().rev())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceKey;

    #[test]
    fn permits_are_bounded_in_all_and_by_address_and_come_back() {
        let permits = SocketPermits::new(5, 2);
        let key = SourceKey::default();
        let source = |address: &str| key.source(address.parse().expect("an address"));
        let take = |address: &str| permits.take(&source(address));
        let mut held = vec![take("192.0.2.1").ok(), take("192.0.2.1").ok()];
        assert_eq!(take("192.0.2.1").err(), Some(NoPermit::AddressFull));
        // A loopback address has no bound of its own.
        held.extend((0..3).map(|_| take("127.0.0.1").ok()));
        assert!(held.iter().all(Option::is_some));
        assert_eq!(take("192.0.2.2").err(), Some(NoPermit::Full));
        held.remove(0);
        held.push(take("192.0.2.1").ok());
        assert_eq!(take("192.0.2.1").err(), Some(NoPermit::Full));
        assert!(held.iter().all(Option::is_some));
        drop(held);
        assert!(permits.inner.open().of_network.is_empty(), "an address is forgotten");
    }

    #[test]
    fn the_networks_of_one_56_and_of_one_48_have_bounds_together() {
        let (permits, key) = (SocketPermits::new(1000, 2), SourceKey::default());
        let mut held = Vec::new();
        // Four networks /64 in each of four networks /56 of one /48.
        for number in 0..16 {
            let network = ((number / 4) << 8) | (number % 4);
            let address = format!("2001:db8:0:{network:x}::1").parse().expect("an address");
            held.extend((0..3).filter_map(|_| permits.take(&key.source(address)).ok()));
            match number {
                0 => assert_eq!(held.len(), 2, "one /64"),
                3 => assert_eq!(held.len(), 4, "one /56"),
                _ => {}
            }
        }
        assert_eq!(held.len(), 8, "one /48");
        let other = key.source("2001:db8:1::1".parse().expect("an address"));
        assert!(permits.take(&other).is_ok());
        drop(held);
        assert!(permits.inner.open().of_network.is_empty(), "a network is forgotten");
    }
}
