//! The queue: which generation runs next, and on which model host.
//!
//! The right to run is a ticket that holds a slot, in the name of a replica, and is freed with it.
//! Slots go to tickets in fair order: one user's fifty turns delay another's first by no more than
//! one turn, and those of all networks of one site by a few. Every step is one function in Redis; what is
//! published on a channel is a hint.

mod hosts;
mod lease;
mod overview;
mod reconciler;
mod store;
mod ticket;

pub use hosts::{HostAccess, HostKey, HostReport, HostUse};
pub use lease::Lease;
pub use overview::{Capped, GoneOverview, HostOverview, ModelOverview, Overview, ReplicaOverview};
pub use store::{Freed, QueueStore, Tick};
pub use ticket::{
    Grant, QueueLimits, Returned, Room, Ticket, TicketReply, TicketSource, TicketStatus, Waiting,
};

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, watch};

use crate::lifecycle::spawn_caught;
use crate::redis::{Listener, MESSAGES, Redis, RedisError, Subscriptions, keys};
use crate::session::GenerationId;

/// The queue, as one replica takes part in it. Cloning is cheap, and clones share everything.
#[derive(Clone)]
pub struct Queue {
    inner: Arc<QueueInner>,
}

struct QueueInner {
    store: QueueStore,
    hosts: Box<dyn Fn() -> Vec<HostReport> + Send + Sync>,
    /// The hosts as this replica reported them last.
    reported: Mutex<Vec<HostReport>>,
    tickets: Mutex<HashMap<GenerationId, LocalTicket>>,
    /// Waiting tickets of all replicas, as of the last round of reconciliation.
    waiting: AtomicUsize,
    reconcile_now: Notify,
    /// Whether a dropped [`Lease`] keeps its ticket, for the replica that takes the turn over.
    leaving: AtomicBool,
    subscriptions: OnceLock<Subscriptions>,
}

/// A ticket of this replica, as far as the replica knows it.
struct LocalTicket {
    ticket: Ticket,
    start: Option<String>,
    /// The greatest number of a grant that this replica knows.
    grants: u64,
    /// Calls that were begun: while one is under way, only its reply changes the status.
    calls: u64,
    under_way: bool,
    status: watch::Sender<TicketStatus>,
}

impl Queue {
    /// Starts to take part in the queue. `hosts` returns this replica's report of the model hosts;
    /// it is called often, and must not wait.
    ///
    /// # Errors
    /// [`RedisError::Url`].
    pub fn start(
        redis: &Redis,
        store: QueueStore,
        hosts: impl Fn() -> Vec<HostReport> + Send + Sync + 'static,
    ) -> Result<Self, RedisError> {
        let channel = keys::grants(store.replica());
        let inner = Arc::new(QueueInner {
            store,
            hosts: Box::new(hosts),
            reported: Mutex::default(),
            tickets: Mutex::default(),
            waiting: AtomicUsize::new(0),
            reconcile_now: Notify::new(),
            leaving: AtomicBool::new(false),
            subscriptions: OnceLock::new(),
        });
        let listener: Arc<dyn Listener> = Arc::clone(&inner) as _;
        let subscriptions = Subscriptions::start_with(redis, &listener, 1, MESSAGES)?;
        let _ = inner.subscriptions.set(subscriptions.clone());
        spawn_caught("queue", async move {
            // A subscription that fails is tried again, and reconciliation notices grants
            // meanwhile.
            let _ = subscriptions.subscribe(&channel).await;
        });
        redis.lifecycle().spawn("queue", reconciler::run(Arc::clone(&inner)));
        Ok(Self { inner })
    }

    /// Creates the handle of a ticket, which has yet to join; dropping the handle releases the
    /// ticket.
    pub fn lease(&self, ticket: Ticket) -> Lease {
        Lease::new(Arc::clone(&self.inner), ticket)
    }

    /// Returns whether there is room for a ticket of this model and this source. Joining checks
    /// again, so that Redis is called only where there may be none: where the queue was full a moment
    /// ago, or the source is bounded and any ticket waited a moment ago, or waits at this replica.
    pub async fn room(&self, model: &str, source: &TicketSource) -> Room {
        let limits = self.inner.store.limits();
        let waiting = self.inner.waiting.load(Ordering::Relaxed).max(self.inner.local_waiting());
        let may_be_crowded = waiting > 0 && !source.name.is_empty();
        if waiting < limits.waiting && !may_be_crowded {
            return Room::Some;
        }
        self.inner.store.room(model, source).await.unwrap_or(Room::Some)
    }

    /// Returns whether any ticket waits: at any replica, as of the last round of reconciliation, or at this
    /// one.
    pub fn has_waiting(&self) -> bool {
        self.inner.waiting.load(Ordering::Relaxed).max(self.inner.local_waiting()) > 0
    }

    /// Returns whether more than half of the queue is in use, as of the last round of
    /// reconciliation.
    pub fn is_over_half_full(&self) -> bool {
        2 * self.inner.waiting.load(Ordering::Relaxed) > self.inner.store.limits().waiting
    }

    /// Keeps the ticket of each [`Lease`] that is dropped from now on: other replicas take these
    /// over, at their positions.
    pub fn leave_to_others(&self) {
        self.inner.leaving.store(true, Ordering::Relaxed);
    }

    /// Frees every slot and ticket in this replica's name. The tickets' positions are kept.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn sign_off(&self) -> Result<(), RedisError> {
        self.inner.store.sign_off().await
    }

    /// Frees every slot and ticket in the name of a replica that is gone.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn free(&self, replica: &str, counter: Option<i64>) -> Result<Freed, RedisError> {
        self.inner.store.free(replica, counter).await
    }
}

impl QueueInner {
    fn tickets(&self) -> MutexGuard<'_, HashMap<GenerationId, LocalTicket>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many tickets of this replica wait.
    fn local_waiting(&self) -> usize {
        let tickets = self.tickets();
        let waits =
            |local: &&LocalTicket| matches!(*local.status.borrow(), TicketStatus::Waiting(_));
        tickets.values().filter(waits).count()
    }

    fn reported(&self) -> MutexGuard<'_, Vec<HostReport>> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports the hosts, unless the last report has a usable host with this model.
    async fn report_for(&self, model: &str) -> Result<(), RedisError> {
        let known = self
            .reported()
            .iter()
            .any(|host| host.via != HostAccess::Shut && host.models.contains_key(model));
        if known {
            return Ok(());
        }
        let hosts = (self.hosts)();
        if hosts == *self.reported() {
            return Ok(());
        }
        self.store.report(&hosts).await?;
        *self.reported() = hosts;
        Ok(())
    }
}

impl LocalTicket {
    /// Applies a reply, unless this replica has learned of a later grant meanwhile.
    fn learn(&mut self, reply: TicketReply, grants_before: u64) {
        if reply.start.is_some() {
            self.start = reply.start;
        }
        match reply.status {
            TicketStatus::Granted(grant) if grant.number >= self.grants => {
                self.grants = grant.number;
                self.set(TicketStatus::Granted(grant));
            }
            TicketStatus::Granted(_) => {}
            _ if self.grants > grants_before => {}
            status => self.set(status),
        }
    }

    fn set(&self, status: TicketStatus) {
        self.status.send_if_modified(|known| {
            let changed = *known != status;
            *known = status;
            changed
        });
    }
}

impl Listener for QueueInner {
    fn message(&self, _channel: &str, payload: &str) {
        let Some((generation, grant)) = ticket::parse_grant(payload) else { return };
        if let Some(local) = self.tickets().get_mut(&generation)
            && grant.number > local.grants
        {
            local.grants = grant.number;
            local.set(TicketStatus::Granted(grant));
        }
    }

    fn gap(&self) {
        self.reconcile_now.notify_one();
    }
}
