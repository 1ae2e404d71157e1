//! The bytes of messages that have not arrived whole, of all sockets of the process together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of the unfinished messages of all sockets, at most.
const PROCESS_BYTES: usize = 12 << 20;
/// Bytes of an unfinished message that are not counted, so that a socket which sends little is
/// never refused because of others.
const FREE_BYTES: usize = 4 << 10;

/// The budget of a process. Cloning is cheap, and clones share it.
#[derive(Clone)]
pub struct MessageBudget(Arc<AtomicUsize>);

impl Default for MessageBudget {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(PROCESS_BYTES)))
    }
}

impl MessageBudget {
    /// Begins the share of one socket.
    pub fn share(&self) -> BudgetShare {
        BudgetShare { left: Arc::clone(&self.0), charged: 0 }
    }
}

/// What one socket takes of the budget, until it is dropped.
pub struct BudgetShare {
    left: Arc<AtomicUsize>,
    charged: usize,
}

impl BudgetShare {
    /// Returns a share with what this one took, which is empty then.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self { left: Arc::clone(&self.left), charged: std::mem::take(&mut self.charged) }
    }

    /// Sets the bytes of the socket's unfinished message. Returns `false` where the budget is spent;
    /// the share stays as it was then.
    pub fn set(&mut self, bytes: usize) -> bool {
        let wanted = bytes.saturating_sub(FREE_BYTES);
        if wanted <= self.charged {
            self.left.fetch_add(self.charged - wanted, Ordering::Relaxed);
        } else {
            let more = wanted - self.charged;
            let take = |left: usize| left.checked_sub(more);
            if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
                return false;
            }
        }
        self.charged = wanted;
        true
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.left.fetch_add(self.charged, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_sockets_stay_within_the_budget_and_come_back() {
        let budget = MessageBudget::default();
        let (mut one, mut two) = (budget.share(), budget.share());
        assert!(one.set(PROCESS_BYTES));
        assert!(one.set(PROCESS_BYTES + FREE_BYTES));
        assert!(!two.set(FREE_BYTES + 1));
        assert!(two.set(FREE_BYTES), "a small message is never refused");
        assert!(one.set(0));
        assert!(two.set(PROCESS_BYTES));
        drop((one, two));
        assert_eq!(budget.0.load(Ordering::Relaxed), PROCESS_BYTES);
    }
}
