//! The right to what a request begins: given back where it does not begin.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::charge::{SlotCharges, SlotOutcome};
use super::policy::{LimitKind, LimitRefusal, Standing, Subject};
use super::sockets::UserSocket;
use super::store::TakeOptions;
use super::{KNOWN_SESSIONS, RateLimits, lock};
use crate::lifecycle::spawn_on_drop;
use crate::session::SessionId;

/// A request that no limit refuses.
pub struct Admission {
    /// The state of each limit.
    pub standings: Vec<Standing>,
    /// The right to one turn, where the request begins one.
    pub turn: Option<TurnPermit>,
    /// The hold of the user's socket, where the request opens one and a user's sockets are limited.
    pub socket: Option<UserSocket>,
}

/// The right to submit one turn. The amount that it took from the limits of turns is given back when it
/// is dropped, unless the turn was accepted, or a host works for it.
pub struct TurnPermit {
    pub(super) limits: RateLimits,
    /// The caller.
    pub subject: Arc<Subject>,
    pub(super) taken: Vec<Taken>,
    /// The request itself, which only a repeat gets back.
    pub(super) requests: Vec<Taken>,
    /// The name under which its repeats are known, if it may have some.
    pub(super) known: Option<String>,
    pub(super) refusal: Option<LimitRefusal>,
    pub(super) given_back: Arc<GivenBack>,
    /// Whether a host works for the turn: then nothing is given back.
    pub(super) is_worked_on: AtomicBool,
}

/// The limits to which a request gave back what it had taken, for what its response shows.
#[derive(Debug, Default)]
pub struct GivenBack(Mutex<Vec<LimitKind>>);

impl GivenBack {
    fn note(&self, taken: &[Taken]) {
        let charges = taken.iter().flat_map(|taken| &taken.slot.charges);
        lock(&self.0).extend(charges.map(|charge| charge.kind));
    }

    /// Returns what is left of each limit after what was given back.
    pub fn apply(&self, standings: Vec<Standing>) -> Vec<Standing> {
        let kinds = lock(&self.0);
        let apply = |standing: Standing| {
            if kinds.contains(&standing.kind) { standing.given_back(1) } else { standing }
        };
        standings.into_iter().map(apply).collect()
    }
}

/// The session that a turn begins, as the limit of sessions of an address counts it. It is given
/// back when this is dropped, unless the session was new.
pub struct SessionPermit {
    pub(super) limits: RateLimits,
    pub(super) taken: Vec<Taken>,
    pub(super) session: SessionId,
    /// The charge where the session is new although this replica knows it: it was deleted since.
    pub(super) if_new: Option<SlotCharges>,
}

/// The charges that were taken from the limits in one hash slot.
pub(super) struct Taken {
    pub slot: SlotCharges,
    pub is_local: bool,
}

impl Taken {
    /// Returns what gives back everything that was taken.
    pub fn of(slot: &SlotCharges, outcome: &SlotOutcome) -> Self {
        Self { slot: slot.reversed(outcome, |_| true), is_local: outcome.is_local }
    }

    /// Returns what gives back the turns that were taken.
    pub fn turns(slot: &SlotCharges, outcome: &SlotOutcome) -> Option<Self> {
        Self::selected(slot, outcome, |kind| !kind.is_of_requests())
    }

    /// Returns what gives back the request itself.
    pub fn requests(slot: &SlotCharges, outcome: &SlotOutcome) -> Option<Self> {
        Self::selected(slot, outcome, LimitKind::is_of_requests)
    }

    fn selected(
        slot: &SlotCharges,
        outcome: &SlotOutcome,
        given: impl Fn(LimitKind) -> bool,
    ) -> Option<Self> {
        let slot = slot.reversed(outcome, given);
        (outcome.is_taken && !slot.is_empty()).then_some(Self { slot, is_local: outcome.is_local })
    }
}

impl TurnPermit {
    /// Returns why the turn must be refused, unless it was accepted before.
    pub fn refusal(&self) -> Option<&LimitRefusal> {
        self.refusal.as_ref()
    }

    /// Returns the limits to which something was given back, which grow until the permit is gone.
    pub fn given_back(&self) -> Arc<GivenBack> {
        Arc::clone(&self.given_back)
    }

    /// Keeps what was taken: the turn was accepted.
    pub fn keep(mut self) {
        self.taken.clear();
    }

    /// Notes whether a host works for a turn that is not accepted first. While one does, the turn is
    /// kept however its request ends: a caller that leaves has had the work.
    pub fn set_worked_on(&self, is_worked_on: bool) {
        self.is_worked_on.store(is_worked_on, Ordering::Relaxed);
    }

    /// Gives the turn back: it is refused.
    pub async fn give_back(mut self) {
        let taken = self.unused();
        self.give_back_all(taken).await;
    }

    /// Gives back the turn, and a few times the request, too: the turn was accepted before, and a balancer
    /// repeats a request that no replica answered.
    pub async fn give_back_repeat(mut self) {
        let taken = self.unused();
        self.give_back_all(taken).await;
        let known = self.known.take().unwrap_or_default();
        for taken in std::mem::take(&mut self.requests) {
            let options = TakeOptions { known: &known, ..TakeOptions::default() };
            if self.limits.give_back_with(&taken, options).await {
                self.given_back.note(std::slice::from_ref(&taken));
            }
        }
    }

    async fn give_back_all(&self, taken: Vec<Taken>) {
        self.given_back.note(&taken);
        for taken in &taken {
            self.limits.give_back(taken).await;
        }
    }

    /// Takes out what is to be given back.
    fn unused(&mut self) -> Vec<Taken> {
        let taken = std::mem::take(&mut self.taken);
        if *self.is_worked_on.get_mut() { Vec::new() } else { taken }
    }
}

impl Drop for TurnPermit {
    fn drop(&mut self) {
        let taken = self.unused();
        self.given_back.note(&taken);
        give_back_later(&self.limits, taken);
    }
}

impl SessionPermit {
    /// Notes that the session exists now, and keeps what was taken where it is new. One that this
    /// replica took for an existing one costs a session afterwards, and is then unknown: a caller who
    /// deletes a session and begins it again gets no more of them than others.
    pub fn accepted(mut self, is_new: bool) {
        if let Some(slot) = self.if_new.take() {
            if is_new {
                lock(&self.limits.inner.known_sessions).remove(&self.session);
                take_later(&self.limits, slot);
            }
            return;
        }
        if self.taken.is_empty() {
            return;
        }
        let mut known = lock(&self.limits.inner.known_sessions);
        if known.len() >= KNOWN_SESSIONS {
            known.clear();
        }
        known.insert(self.session);
        drop(known);
        if is_new {
            self.taken.clear();
        }
    }
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        give_back_later(&self.limits, std::mem::take(&mut self.taken));
    }
}

/// Takes from the limits in one hash slot, whatever is left.
fn take_later(limits: &RateLimits, slot: SlotCharges) {
    let limits = limits.clone();
    let options = TakeOptions { forced: true, ..TakeOptions::default() };
    spawn_on_drop("limits", async move { limits.take(&slot, options).await });
}

fn give_back_later(limits: &RateLimits, taken: Vec<Taken>) {
    if taken.is_empty() {
        return;
    }
    let limits = limits.clone();
    spawn_on_drop("limits", async move {
        for taken in &taken {
            limits.give_back(taken).await;
        }
    });
}
