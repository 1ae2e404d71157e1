//! Permits of WebSockets and event streams: bounds in all and by address. A permit is taken before
//! the upgrade, so that no more are open than may be.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::source::Source;

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
    of_address: HashMap<Source, usize>,
}

/// Why there is no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPermit {
    /// The replica has its largest number.
    Full,
    /// The address has its largest number.
    AddressFull,
}

/// The right to one open WebSocket or event stream, until it is dropped.
pub struct SocketPermit {
    inner: Arc<PermitsInner>,
    source: Source,
}

impl SocketPermits {
    /// Creates permits for so many at a time, in all and of one address.
    pub fn new(limit: usize, limit_of_address: usize) -> Self {
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
        if source.is_limited() {
            let of_address = open.of_address.entry(source.clone()).or_default();
            if *of_address >= self.inner.limit_of_address {
                return Err(NoPermit::AddressFull);
            }
            *of_address += 1;
        }
        open.total += 1;
        drop(open);
        Ok(SocketPermit { inner: Arc::clone(&self.inner), source: source.clone() })
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
        if let Entry::Occupied(mut of_address) = open.of_address.entry(self.source.clone()) {
            *of_address.get_mut() -= 1;
            if *of_address.get() == 0 {
                of_address.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_bounded_in_all_and_by_address_and_come_back() {
        let permits = SocketPermits::new(5, 2);
        let source = |address: &str| Source::of(address.parse().expect("an address"));
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
        assert!(permits.inner.open().of_address.is_empty(), "an address is forgotten");
    }
}
