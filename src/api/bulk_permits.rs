//! Bounds of exports and imports: how many run at a time.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::problem::Problem;

/// Exports at a time. Each holds a page of messages, of about a megabyte.
const EXPORTS: usize = 8;
/// Imports at a time. Each holds the messages of one session, of up to 64 MiB.
const IMPORTS: usize = 2;

/// The permits of this replica's exports and imports. Cloning is cheap.
#[derive(Clone)]
pub struct BulkPermits {
    exports: Arc<Semaphore>,
    imports: Arc<Semaphore>,
}

impl Default for BulkPermits {
    fn default() -> Self {
        let permits = |count| Arc::new(Semaphore::new(count));
        Self { exports: permits(EXPORTS), imports: permits(IMPORTS) }
    }
}

impl BulkPermits {
    /// Takes the permit of an export.
    ///
    /// # Errors
    /// A 503 where as many run as may.
    pub fn export(&self) -> Result<OwnedSemaphorePermit, Problem> {
        take(&self.exports)
    }

    /// Takes the permit of an import.
    ///
    /// # Errors
    /// As [`BulkPermits::export`].
    pub fn import(&self) -> Result<OwnedSemaphorePermit, Problem> {
        take(&self.imports)
    }
}

fn take(permits: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(permits).try_acquire_owned().map_err(|_| {
        let detail = "This replica runs as many exports and imports as it may; retry after 10 s.";
        Problem::unavailable("too_many_connections", detail, 10)
    })
}
