//! The bytes of messages that have not arrived whole or were not parsed, and of those that wait for others of
//! their socket, of all sockets of the process together and of those of one network.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::source::{ShareKey, Source};

/// Bytes of a budget, at most: of the unfinished, or of the waiting messages of all sockets.
const PROCESS_BYTES: usize = 8 << 20;
/// Bytes of those of one IPv4 address or IPv6 /48, at most, so that none keeps the others out.
const NETWORK_BYTES: usize = PROCESS_BYTES / 4;
/// Bytes of a share that are not counted, so that a socket which sends little is
/// never refused because of others.
const FREE_BYTES: usize = 4 << 10;

/// The budget of a process. Cloning is cheap, and clones share it.
#[derive(Clone, Default)]
pub struct MessageBudget(Arc<Mutex<Charged>>);

/// The bytes that are charged, and the time of the charge.
#[derive(Default)]
struct Charged {
    total: usize,
    /// By network, where it is not 0.
    of_network: HashMap<ShareKey, usize>,
}

impl MessageBudget {
    /// Begins the share of one socket.
    pub fn share(&self, source: &Source) -> BudgetShare {
        let network = source.widest_network();
        BudgetShare { charged: Arc::clone(&self.0), network, bytes: 0 }
    }
}

/// The share of one socket in the budget; dropping it gives the share back.
pub struct BudgetShare {
    charged: Arc<Mutex<Charged>>,
    /// The network whose bytes are bounded, too; none of a loopback address.
    network: Option<ShareKey>,
    bytes: usize,
}

impl BudgetShare {
    /// Returns a share with what this one took, which is empty then.
    #[must_use]
    pub fn take(&mut self) -> Self {
        let bytes = std::mem::take(&mut self.bytes);
        Self { charged: Arc::clone(&self.charged), network: self.network, bytes }
    }

    /// Sets the bytes of the socket's unfinished message. Returns `false` where the budget of the
    /// process or of the network is spent; the share stays as it was then.
    pub fn set(&mut self, bytes: usize) -> bool {
        let wanted = bytes.saturating_sub(FREE_BYTES);
        if wanted == self.bytes {
            return true;
        }
        let has_room = lock(&self.charged).replace(self.network, self.bytes, wanted);
        if has_room {
            self.bytes = wanted;
        }
        has_room
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        if self.bytes > 0 {
            lock(&self.charged).replace(self.network, self.bytes, 0);
        }
    }
}

impl Charged {
    /// Charges bytes of a network instead of others. Returns `false`, and changes nothing, where these
    /// are more and there is no room for them.
    fn replace(&mut self, network: Option<ShareKey>, before: usize, bytes: usize) -> bool {
        let total = self.total - before + bytes;
        let of_network = network.map_or(0, |network| {
            self.of_network.get(&network).copied().unwrap_or_default() - before + bytes
        });
        if bytes > before && (total > PROCESS_BYTES || of_network > NETWORK_BYTES) {
            return false;
        }
        self.total = total;
        match network {
            Some(network) if of_network == 0 => {
                self.of_network.remove(&network);
            }
            Some(network) => {
                self.of_network.insert(network, of_network);
            }
            None => {}
        }
        true
    }
}

fn lock(charged: &Mutex<Charged>) -> MutexGuard<'_, Charged> {
    charged.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceKey;

    #[test]
    fn the_shares_of_all_sockets_stay_within_the_budget_and_come_back() {
        let budget = MessageBudget::default();
        let (mut one, mut two) =
            (budget.share(&Source::default()), budget.share(&Source::default()));
        assert!(one.set(PROCESS_BYTES));
        assert!(one.set(PROCESS_BYTES + FREE_BYTES));
        assert!(!two.set(FREE_BYTES + 1));
        assert!(two.set(FREE_BYTES), "a small message is never refused");
        assert!(one.set(0));
        assert!(two.set(PROCESS_BYTES));
        let kept = two.take();
        drop((one, two));
        assert_ne!(lock(&budget.0).total, 0);
        drop(kept);
        assert_eq!(lock(&budget.0).total, 0);
    }

    #[test]
    fn the_sockets_of_one_network_have_a_share_of_the_budget_and_leave_the_rest_to_others() {
        let budget = MessageBudget::default();
        let key = SourceKey::default();
        let share = |address: &str| budget.share(&key.source(address.parse().expect("an address")));
        let (mut one, mut same) = (share("2001:db8:0:1::1"), share("2001:db8:0:ff00::1"));
        assert!(one.set(NETWORK_BYTES + FREE_BYTES));
        assert!(!same.set(FREE_BYTES + 1), "of one /48");
        assert!(same.set(FREE_BYTES), "a small message is never refused");
        let mut others: Vec<_> =
            ["192.0.2.1", "192.0.2.2", "2001:db8:1::1"].map(share).into_iter().collect();
        for other in &mut others {
            assert!(other.set(NETWORK_BYTES + FREE_BYTES));
        }
        assert!(!share("192.0.2.3").set(FREE_BYTES + 1), "all of it is used");
        assert!(one.set(FREE_BYTES));
        assert!(same.set(NETWORK_BYTES));
        drop((one, same, others));
        assert!(lock(&budget.0).of_network.is_empty(), "a network is forgotten");
    }
}
