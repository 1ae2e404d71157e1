//! The slots for generations, and the queue before them: first come, first served.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;
use crate::stats::{Counters, count};

/// The slots of one server.
pub struct Slots {
    free: Arc<Semaphore>,
    queue: u64,
    counters: Arc<Counters>,
}

/// The right to run; dropping it gives the slot back.
pub struct Slot {
    counters: Arc<Counters>,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    /// Creates `slots` slots (at least one) and room for `queue` waiting requests.
    pub fn new(slots: usize, queue: usize, counters: Arc<Counters>) -> Self {
        Self {
            free: Arc::new(Semaphore::new(slots.clamp(1, Semaphore::MAX_PERMITS))),
            queue: queue as u64,
            counters,
        }
    }

    /// Waits for a slot; a request that is dropped meanwhile leaves the queue.
    pub async fn take(&self) -> Result<Slot, ApiError> {
        let permit = if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            permit
        } else {
            let waiter = Waiter::take(&self.counters, self.queue)?;
            let permit = Arc::clone(&self.free).acquire_owned().await;
            waiter.leave();
            permit.map_err(|_| ApiError::Busy)?
        };
        self.counters.start();
        Ok(Slot { counters: Arc::clone(&self.counters), _permit: permit })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.counters.end();
    }
}

/// A request that waits in the queue.
struct Waiter<'a> {
    counters: &'a Counters,
    served: bool,
}

impl<'a> Waiter<'a> {
    fn take(counters: &'a Counters, most: u64) -> Result<Self, ApiError> {
        let waiting = counters.queued.fetch_add(1, Ordering::Relaxed);
        if waiting >= most {
            counters.queued.fetch_sub(1, Ordering::Relaxed);
            count(&counters.refused);
            return Err(ApiError::Busy);
        }
        Ok(Self { counters, served: false })
    }

    fn leave(mut self) {
        self.served = true;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.counters.queued.fetch_sub(1, Ordering::Relaxed);
        if !self.served {
            count(&self.counters.client_gone);
        }
    }
}
