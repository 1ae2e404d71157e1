//! One ticket of this replica, from joining the queue to releasing the slot.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::ticket::{Grant, Returned, Ticket, TicketReply, TicketStatus};
use super::{LocalTicket, QueueInner};
use crate::lifecycle::spawn_on_drop;
use crate::redis::RedisError;
use crate::session::GenerationId;

/// The handle of a ticket of this replica: a position in the queue, and then a slot. Dropping the
/// handle releases the ticket.
pub struct Lease {
    inner: Arc<QueueInner>,
    generation: GenerationId,
    status: watch::Receiver<TicketStatus>,
    joined: bool,
}

impl Lease {
    pub(super) fn new(inner: Arc<QueueInner>, ticket: Ticket) -> Self {
        let generation = ticket.generation;
        let (sender, status) = watch::channel(TicketStatus::Gone);
        let local = LocalTicket {
            ticket,
            start: None,
            grants: 0,
            calls: 0,
            under_way: false,
            status: sender,
        };
        // Registered before the call, so that this replica knows every ticket that Redis knows.
        inner.tickets().insert(generation, local);
        Self { inner, generation, status, joined: false }
    }

    /// Returns the status of the ticket, as far as this replica knows it.
    pub fn status(&mut self) -> TicketStatus {
        self.status.borrow_and_update().clone()
    }

    /// Returns the grant, while the ticket holds a slot.
    pub fn grant(&self) -> Option<Grant> {
        match &*self.status.borrow() {
            TicketStatus::Granted(grant) => Some(grant.clone()),
            _ => None,
        }
    }

    /// Waits until the status changes, and returns it. Cancel-safe.
    pub async fn changed(&mut self) -> TicketStatus {
        if self.status.changed().await.is_err() {
            // The sender lives as long as this handle.
            std::future::pending::<()>().await;
        }
        self.status()
    }

    /// Joins the queue, or joins it again at its old position after Redis forgot it.
    ///
    /// # Errors
    /// [`RedisError`]; the ticket may have joined then, and a repeat is harmless.
    pub async fn join(&mut self, has_text: bool) -> Result<TicketStatus, RedisError> {
        let Some((ticket, start, grants)) = self.begin_call(has_text) else {
            return Ok(TicketStatus::Gone);
        };
        let call = PendingCall { lease: self, grants };
        call.lease.joined = true;
        call.lease.inner.report_for(&ticket.model).await?;
        let reply = call.lease.inner.store.join(&ticket, start.as_deref()).await?;
        Ok(call.complete(reply))
    }

    /// Notes the user whose ticket it is from now on. The next join passes it on, unless the ticket
    /// holds a slot by then.
    pub fn set_user(&self, ticket: Ticket) {
        if let Some(local) = self.inner.tickets().get_mut(&self.generation) {
            local.ticket = ticket;
        }
    }

    /// Returns a granted slot and keeps the position.
    ///
    /// # Errors
    /// [`RedisError`]; the slot may have been returned then; joining returns the status.
    pub async fn give_back(&mut self, why: Returned) -> Result<TicketStatus, RedisError> {
        let Some(grant) = self.grant() else { return Ok(self.status()) };
        let Some((.., grants)) = self.begin_call(why.has_text) else {
            return Ok(TicketStatus::Gone);
        };
        let call = PendingCall { lease: self, grants };
        let inner = &call.lease.inner;
        let reply = inner.store.give_back(call.lease.generation, &grant, why).await?;
        if reply.status == TicketStatus::Gone {
            drop(call);
            return self.join(why.has_text).await;
        }
        Ok(call.complete(reply))
    }

    fn begin_call(&mut self, has_text: bool) -> Option<(Ticket, Option<String>, u64)> {
        let mut tickets = self.inner.tickets();
        let local = tickets.get_mut(&self.generation)?;
        local.ticket.has_text = has_text;
        local.calls += 1;
        local.under_way = true;
        Some((local.ticket.clone(), local.start.clone(), local.grants))
    }
}

/// A call that is under way, until its reply or its drop.
struct PendingCall<'a> {
    lease: &'a mut Lease,
    grants: u64,
}

impl PendingCall<'_> {
    fn complete(self, reply: TicketReply) -> TicketStatus {
        if let Some(local) = self.lease.inner.tickets().get_mut(&self.lease.generation) {
            local.learn(reply, self.grants);
        }
        self.lease.status()
    }
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        if let Some(local) = self.lease.inner.tickets().get_mut(&self.lease.generation) {
            local.under_way = false;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.inner.tickets().remove(&self.generation);
        if !self.joined || self.inner.leaving.load(Ordering::Relaxed) {
            return;
        }
        let (inner, generation) = (Arc::clone(&self.inner), self.generation);
        // The slots of a process that ends are freed when its heartbeat stops.
        spawn_on_drop("queue", async move {
            if let Err(error) = inner.store.release(generation).await {
                // The reconciler finds the ticket in this replica's name, and releases it.
                tracing::debug!(%error, %generation, "ticket not released; the reconciler retries");
            }
        });
    }
}
