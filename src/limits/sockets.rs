//! The open sockets of users at this replica, which Redis counts in the replica's name.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;

use super::policy::Standing;
use super::store::{HOLD, LimitStore};
use crate::lifecycle::spawn_on_drop;

/// How often the holds of open sockets are renewed, so that two renewals may fail.
pub(super) const RENEW_EVERY: Duration = HOLD.checked_div(3).expect("a divisor");

/// Callers whose sockets are renewed at the same time.
const AT_ONCE: usize = 16;
/// Closed sockets that are released later, at most.
const UNRELEASED: usize = 10_000;

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
    /// Sockets that are closed and that Redis may still hold, each with its caller.
    unreleased: Mutex<HashSet<(String, String)>>,
}

/// The hold of one open socket of a user, until it is dropped.
pub struct UserSocket {
    sockets: UserSockets,
    caller: String,
    name: String,
    /// Whether Redis may hold it.
    is_held: bool,
    /// The rest of the user's limit of sockets when it was opened, where its response reports it.
    pub(super) standing: Option<Standing>,
}

impl UserSockets {
    pub fn new(store: LimitStore, replica: &str) -> Self {
        let (replica, next) = (replica.to_owned(), AtomicU64::default());
        let (open, unreleased) = (Mutex::default(), Mutex::default());
        Self { inner: Arc::new(SocketsInner { store, replica, next, open, unreleased }) }
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
        UserSocket { sockets: self.clone(), caller, name, is_held: true, standing: None }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, HashMap<String, bool>>> {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreleased(&self) -> MutexGuard<'_, HashSet<(String, String)>> {
        self.inner.unreleased.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the holds of all open sockets, and releases those of closed ones that Redis may still
    /// hold.
    pub async fn renew(&self) {
        let callers: Vec<String> = self.open().keys().cloned().collect();
        let callers = futures_util::stream::iter(callers);
        callers.for_each_concurrent(AT_ONCE, |caller| self.renew_caller(caller)).await;
        let mut closed: HashMap<String, Vec<String>> = HashMap::new();
        for (caller, name) in self.unreleased().iter() {
            closed.entry(caller.clone()).or_default().push(name.clone());
        }
        let closed = futures_util::stream::iter(closed);
        closed
            .for_each_concurrent(AT_ONCE, |(caller, names)| async move {
                self.release(&caller, names).await;
            })
            .await;
    }

    async fn renew_caller(&self, caller: String) {
        let sockets: Vec<String> = match self.open().get(&caller) {
            Some(sockets) => {
                let admitted = sockets.iter().filter(|(_, is_admitted)| **is_admitted);
                admitted.map(|(name, _)| name.clone()).collect()
            }
            None => return,
        };
        if sockets.is_empty() {
            return;
        }
        if let Err(error) = self.inner.store.renew(&caller, &sockets).await {
            tracing::debug!(%error, "sockets of a user not renewed");
        }
        // One that was closed meanwhile may have been released before the renewal.
        let is_open = |name: &String| {
            self.open().get(&caller).is_some_and(|sockets| sockets.contains_key(name))
        };
        let closed = sockets.into_iter().filter(|name| !is_open(name));
        let closed: Vec<_> = closed.map(|name| (caller.clone(), name)).collect();
        self.unreleased().extend(closed);
    }

    /// Releases the holds of closed sockets, now or with a later renewal.
    async fn release(&self, caller: &str, names: Vec<String>) {
        match self.inner.store.release(caller, &names).await {
            Ok(()) => {
                let mut unreleased = self.unreleased();
                for name in names {
                    unreleased.remove(&(caller.to_owned(), name));
                }
            }
            Err(error) => {
                tracing::debug!(%error, "sockets of a user not released");
                let mut unreleased = self.unreleased();
                // The holds of those beyond the bound end by themselves.
                let room = UNRELEASED.saturating_sub(unreleased.len());
                let names = names.into_iter().take(room);
                unreleased.extend(names.map(|name| (caller.to_owned(), name)));
            }
        }
    }
}

impl UserSocket {
    /// Returns what was left of the user's sockets when it was opened, where its response reports it.
    pub fn standing(&self) -> Option<&Standing> {
        self.standing.as_ref()
    }

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
        let (sockets, caller, name) =
            (self.sockets.clone(), self.caller.clone(), self.name.clone());
        // The holds of a process that ends fall with it.
        spawn_on_drop("limits", async move { sockets.release(&caller, vec![name]).await });
    }
}
