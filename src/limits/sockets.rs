//! The open sockets of users at this replica, which Redis counts in the replica's name.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use super::store::{HOLD, LimitStore};

/// How often the holds of open sockets are renewed, so that two renewals may fail.
pub(super) const RENEW_EVERY: Duration = HOLD.checked_div(3).expect("a divisor");

/// The open sockets of users at this replica. Cloning is cheap.
#[derive(Clone)]
pub(super) struct UserSockets {
    store: LimitStore,
    replica: Arc<str>,
    next: Arc<AtomicU64>,
    /// By the caller's name in Redis.
    open: Arc<Mutex<HashMap<String, Vec<String>>>>,
}

/// The hold of one open socket of a user, until it is dropped.
pub struct UserSocket {
    sockets: UserSockets,
    caller: String,
    name: String,
    /// Whether Redis may hold it.
    is_held: bool,
}

impl UserSockets {
    pub fn new(store: LimitStore, replica: &str) -> Self {
        Self { store, replica: replica.into(), next: Arc::default(), open: Arc::default() }
    }

    /// Returns the name of one more socket.
    pub fn next_name(&self) -> String {
        format!("{} {}", self.replica, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns how many sockets a caller has open here.
    pub fn count(&self, caller: &str) -> u64 {
        self.open().get(caller).map_or(0, |sockets| sockets.len() as u64)
    }

    /// Notes a socket as open. The hold in Redis is taken by the caller of this function, before or
    /// after it.
    pub fn hold(&self, caller: String, name: String) -> UserSocket {
        self.open().entry(caller.clone()).or_default().push(name.clone());
        UserSocket { sockets: self.clone(), caller, name, is_held: true }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Vec<String>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the holds of all open sockets, until Redis does not reply.
    pub async fn renew(&self) {
        let callers: Vec<String> = self.open().keys().cloned().collect();
        for caller in callers {
            let Some(sockets) = self.open().get(&caller).cloned() else { continue };
            if let Err(error) = self.store.renew(&caller, &sockets).await {
                tracing::debug!(%error, "sockets of users not renewed");
                return;
            }
        }
    }
}

impl UserSocket {
    /// Forgets a socket that was refused, and which Redis does not hold.
    pub(super) fn refused(mut self) {
        self.is_held = false;
    }

    fn forget(&self) {
        let mut open = self.sockets.open();
        if let Some(sockets) = open.get_mut(&self.caller) {
            sockets.retain(|name| *name != self.name);
            if sockets.is_empty() {
                open.remove(&self.caller);
            }
        }
    }
}

impl Drop for UserSocket {
    fn drop(&mut self) {
        self.forget();
        if !self.is_held {
            return;
        }
        // Without a runtime the process is ending, and its holds fall with it.
        let Ok(runtime) = Handle::try_current() else { return };
        let (store, caller, name) =
            (self.sockets.store.clone(), self.caller.clone(), self.name.clone());
        runtime.spawn(async move {
            if let Err(error) = store.release(&caller, &[name]).await {
                tracing::debug!(%error, "socket of a user not released; its hold ends by itself");
            }
        });
    }
}
