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
    inner: Arc<SocketsInner>,
}

struct SocketsInner {
    store: LimitStore,
    replica: String,
    next: AtomicU64,
    /// By the caller's name in Redis, and by their own; false where Redis may refuse them yet.
    open: Mutex<HashMap<String, HashMap<String, bool>>>,
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
        let (replica, next, open) = (replica.to_owned(), AtomicU64::default(), Mutex::default());
        Self { inner: Arc::new(SocketsInner { store, replica, next, open }) }
    }

    /// Returns the name of one more socket.
    pub fn next_name(&self) -> String {
        format!("{} {}", self.inner.replica, self.inner.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns how many sockets a caller has open here.
    pub fn count(&self, caller: &str) -> u64 {
        self.open().get(caller).map_or(0, |sockets| sockets.len() as u64)
    }

    /// Notes a socket that Redis is about to hold, so that its hold is released also where its request
    /// ends meanwhile.
    pub fn hold(&self, caller: String, name: String) -> UserSocket {
        self.open().entry(caller.clone()).or_default().insert(name.clone(), false);
        UserSocket { sockets: self.clone(), caller, name, is_held: true }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, HashMap<String, bool>>> {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the holds of all open sockets, until Redis does not reply.
    pub async fn renew(&self) {
        let callers: Vec<String> = self.open().keys().cloned().collect();
        for caller in callers {
            let sockets: Vec<String> = match self.open().get(&caller) {
                Some(sockets) => {
                    let admitted = sockets.iter().filter(|(_, is_admitted)| **is_admitted);
                    admitted.map(|(name, _)| name.clone()).collect()
                }
                None => continue,
            };
            if let Err(error) = self.inner.store.renew(&caller, &sockets).await {
                tracing::debug!(%error, "sockets of users not renewed");
                return;
            }
        }
    }
}

impl UserSocket {
    /// Notes that Redis holds the socket.
    pub(super) fn admitted(&self) {
        if let Some(sockets) = self.sockets.open().get_mut(&self.caller) {
            sockets.insert(self.name.clone(), true);
        }
    }

    /// Forgets a socket that was refused, and which Redis does not hold.
    pub(super) fn refused(mut self) {
        self.is_held = false;
    }

    fn forget(&self) {
        let mut open = self.sockets.open();
        if let Some(sockets) = open.get_mut(&self.caller) {
            sockets.remove(&self.name);
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
            (self.sockets.inner.store.clone(), self.caller.clone(), self.name.clone());
        runtime.spawn(async move {
            if let Err(error) = store.release(&caller, &[name]).await {
                tracing::debug!(%error, "socket of a user not released; its hold ends by itself");
            }
        });
    }
}
