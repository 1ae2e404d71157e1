//! Limits of what users, API keys and addresses may do, exact over all replicas.
//!
//! Redis keeps one number a limit and decides in one call, by GCRA on its own clock. The limits of a
//! user and of its API keys lie in one hash slot, those of an address in another. While Redis is
//! away, each replica limits alone. A request takes what it costs before its body is read, and gives
//! a turn back that was not accepted.

mod charge;
mod local;
mod policy;
mod sockets;
mod store;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use self::charge::{Charge, SlotCharges, SlotOutcome};
use self::local::LocalLimits;
pub use self::policy::{LimitKind, LimitRefusal, RequestKind, Standing, Subject};
pub use self::sockets::UserSocket;
use self::sockets::{RENEW_EVERY, UserSockets};
use self::store::{LimitStore, TakeOptions};
use crate::config::LimitSettings;
use crate::digest::sha256_hex;
use crate::membership::MembershipStore;
use crate::redis::Redis;
use crate::retry::{Backoff, retry};
use crate::session::{GenerationId, Owner, SessionId};
use crate::source::{Source, wider_networks};

/// Time limit of a call, after which a replica decides alone.
const CALL_LIMIT: Duration = Duration::from_millis(500);
/// How long a replica limits alone after a call failed.
const ALONE: Duration = Duration::from_secs(1);
/// How long the tokens of a turn are offered to a Redis that does not reply.
const TOKENS_LIMIT: Duration = Duration::from_secs(20);
/// Hexadecimal characters of a user's digest.
const DIGEST_CHARACTERS: usize = 32;
/// Sessions that are known to exist, at most.
const KNOWN_SESSIONS: usize = 10_000;

/// The limits of callers. Cloning is cheap, and clones share everything.
#[derive(Clone)]
pub struct RateLimits {
    inner: Arc<LimitsInner>,
}

struct LimitsInner {
    settings: LimitSettings,
    store: LimitStore,
    local: LocalLimits,
    sockets: UserSockets,
    /// Until when this replica limits alone.
    alone_until: Mutex<Option<Instant>>,
    /// Sessions that exist, so that their turns take no session.
    known_sessions: Mutex<HashSet<SessionId>>,
}

/// A request that no limit refuses.
pub struct Admission {
    /// What is left of each limit.
    pub standings: Vec<Standing>,
    /// The right to one turn, where the request begins one.
    pub turn: Option<TurnPermit>,
    /// The hold of the user's socket, where the request opens one and a user's sockets are limited.
    pub socket: Option<UserSocket>,
}

/// The right to submit one turn. What it took from the limits of turns is given back when it is
/// dropped, unless the turn was accepted.
pub struct TurnPermit {
    limits: RateLimits,
    /// The caller.
    pub subject: Arc<Subject>,
    taken: Vec<Taken>,
    refusal: Option<LimitRefusal>,
    given_back: Arc<AtomicBool>,
}

/// The session that a turn begins, as the limit of sessions of an address counts it. It is given
/// back when this is dropped, unless the session was new.
pub struct SessionPermit {
    limits: RateLimits,
    taken: Vec<Taken>,
    session: SessionId,
}

/// What was taken from the limits in one hash slot.
struct Taken {
    slot: SlotCharges,
    is_local: bool,
}

impl RateLimits {
    /// Creates the limits, and keeps the sockets of users held in the name of this replica.
    pub fn start(redis: &Redis, membership: MembershipStore, settings: LimitSettings) -> Self {
        let replica = membership.replica().to_owned();
        let store = LimitStore::new(redis.clone(), membership);
        let sockets = UserSockets::new(store.clone(), &replica);
        let renewed = sockets.clone();
        redis.lifecycle().spawn("sockets of users", async move {
            let mut rounds = interval(RENEW_EVERY);
            rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                rounds.tick().await;
                renewed.renew().await;
            }
        });
        Self {
            inner: Arc::new(LimitsInner {
                settings,
                store,
                local: LocalLimits::default(),
                sockets,
                alone_until: Mutex::default(),
                known_sessions: Mutex::default(),
            }),
        }
    }

    /// Takes what a request costs from all limits of its caller, or nothing. With `may_repeat` a
    /// request that begins a turn is admitted also where no turn is left: it may repeat one that was
    /// accepted before, which [`TurnPermit::refusal`] then decides.
    ///
    /// # Errors
    /// [`LimitRefusal`], which is counted.
    pub async fn admit(
        &self,
        subject: &Arc<Subject>,
        kind: RequestKind,
        may_repeat: bool,
    ) -> Result<Admission, LimitRefusal> {
        let slots = self.slots(subject, kind);
        let socket = slots.iter().find_map(|slot| {
            let (name, _) = slot.socket.as_ref()?;
            Some(self.inner.sockets.hold(slot.caller.clone(), name.clone()))
        });
        let (taken, refusal) = match self.take_all(slots, TakeOptions::default()).await {
            Ok(taken) => (taken, None),
            Err(refusal) if may_repeat && !refusal.kind().is_of_requests() => {
                let plain = self.slots(subject, RequestKind::Plain);
                match self.take_all(plain, TakeOptions::default()).await {
                    Ok(taken) => (taken, Some(refusal)),
                    Err(refusal) => return Err(counted(refusal)),
                }
            }
            Err(refusal) => {
                if let Some(socket) = socket {
                    socket.refused();
                }
                return Err(counted(refusal));
            }
        };
        let mut standings: Vec<Standing> =
            taken.iter().flat_map(|(slot, outcome)| standings(slot, outcome)).collect();
        if let Some(refusal) = &refusal {
            standings
                .extend(refusal.standings.iter().filter(|it| !it.kind.is_of_requests()).cloned());
        }
        let turn = (kind == RequestKind::Turn).then(|| TurnPermit {
            limits: self.clone(),
            subject: Arc::clone(subject),
            taken: taken
                .into_iter()
                .filter_map(|(slot, outcome)| Taken::turns(&slot, &outcome))
                .collect(),
            refusal,
            given_back: Arc::default(),
        });
        Ok(Admission { standings, turn, socket })
    }

    /// Takes one session from the limit of sessions of an address, unless this replica knows that the
    /// session exists.
    ///
    /// # Errors
    /// [`LimitRefusal`]. The session may exist all the same.
    pub async fn take_session(
        &self,
        source: &str,
        session: SessionId,
    ) -> Result<SessionPermit, LimitRefusal> {
        let mut permit = self.existing_session(session);
        let is_known = || lock(&self.inner.known_sessions).contains(&session);
        let slot = self.address_slot(source, &[(LimitKind::AddressSessions, 1)]);
        if slot.is_empty() || is_known() {
            return Ok(permit);
        }
        let taken = self.take_all(vec![slot], TakeOptions::default()).await?;
        permit.taken = taken.iter().map(|(slot, outcome)| Taken::of(slot, outcome)).collect();
        Ok(permit)
    }

    /// Returns the permit of a session that exists, which took nothing.
    pub fn existing_session(&self, session: SessionId) -> SessionPermit {
        SessionPermit { limits: self.clone(), taken: Vec::new(), session }
    }

    /// Counts the tokens of a turn that has ended, once however often it is called.
    pub async fn count_tokens(&self, owner: &Owner, generation: GenerationId, tokens: u64) {
        let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
        let subject = Subject { owner: owner.clone(), key: None, source: Source::default() };
        let slot = self.user_slot(&subject, &[(LimitKind::UserTokens, tokens)]);
        if slot.is_empty() || tokens == 0 {
            return;
        }
        let once = generation.to_string();
        let options = TakeOptions { forced: true, once: &once };
        let backoff = Backoff::redis().until(Instant::now() + TOKENS_LIMIT);
        let take = || self.inner.store.take(&slot, options);
        let counted = Box::pin(retry(backoff, take, |_| true)).await;
        if let Err(error) = counted {
            tracing::warn!(%error, "tokens of a turn not counted");
        }
    }

    /// Renews the holds of the open sockets of users, as happens by itself every few minutes.
    pub async fn renew_sockets(&self) {
        self.inner.sockets.renew().await;
    }

    /// Returns what is left of every limit of a caller.
    pub async fn usage(&self, subject: &Subject) -> Vec<Standing> {
        let user = [
            (LimitKind::UserRequests, 0),
            (LimitKind::UserTurns, 0),
            (LimitKind::UserTokens, 0),
            (LimitKind::KeyRequests, 0),
            (LimitKind::KeyTurns, 0),
        ];
        let address = [
            (LimitKind::AddressRequests, 0),
            (LimitKind::AddressTurns, 0),
            (LimitKind::AddressSessions, 0),
        ];
        let mut slots =
            [self.user_slot(subject, &user), self.address_slot(&subject.source.0, &address)];
        if let (Owner::User(_), limit @ 1..) = (&subject.owner, self.quota(LimitKind::UserSockets))
        {
            slots[0].socket = Some((String::new(), limit));
        }
        let slots = slots.into_iter().filter(|slot| !slot.is_empty());
        // With `forced` and costs of 0 it only reads, whatever is left.
        let options = TakeOptions { forced: true, once: "" };
        let read = slots.map(|slot| async move {
            let outcome = self.take(&slot, options).await;
            standings(&slot, &outcome)
        });
        join_all(read).await.concat()
    }

    fn quota(&self, kind: LimitKind) -> u64 {
        policy::quota(&self.inner.settings, kind)
    }

    /// Returns what a request takes, by hash slot; nothing where no limit applies.
    fn slots(&self, subject: &Subject, kind: RequestKind) -> Vec<SlotCharges> {
        let mut user = vec![(LimitKind::UserRequests, 1), (LimitKind::KeyRequests, 1)];
        let mut address = vec![(LimitKind::AddressRequests, 1)];
        if kind == RequestKind::Turn {
            user.extend([
                (LimitKind::UserTurns, 1),
                (LimitKind::KeyTurns, 1),
                (LimitKind::UserTokens, 0),
            ]);
            address.push((LimitKind::AddressTurns, 1));
        }
        let mut user = self.user_slot(subject, &user);
        let sockets = self.quota(LimitKind::UserSockets);
        if kind == RequestKind::Socket && subject.owner != Owner::Anonymous && sockets > 0 {
            user.socket = Some((self.inner.sockets.next_name(), sockets));
        }
        let slots = [user, self.address_slot(&subject.source.0, &address)];
        slots.into_iter().filter(|slot| !slot.is_empty()).collect()
    }

    /// Returns the charges of a user, and of the API key by which it signed in.
    fn user_slot(&self, subject: &Subject, costs: &[(LimitKind, i64)]) -> SlotCharges {
        let Owner::User(_) = &subject.owner else {
            return SlotCharges { caller: String::new(), charges: Vec::new(), socket: None };
        };
        let charges = costs.iter().filter_map(|&(kind, cost)| {
            let quota = self.quota(kind);
            let key = match kind {
                LimitKind::KeyRequests | LimitKind::KeyTurns => {
                    format!("key:{}:{}", subject.key.as_ref()?, kind.unit())
                }
                _ => kind.unit().to_owned(),
            };
            (quota > 0).then_some(Charge { kind, key, quota, cost })
        });
        let mut digest = sha256_hex(subject.owner.key().as_bytes());
        digest.truncate(DIGEST_CHARACTERS);
        let caller = format!("jarvis:{{limits:u:{digest}}}");
        SlotCharges { caller, charges: charges.collect(), socket: None }
    }

    /// Returns the charges of an address, and of the networks around it, which lie in one hash slot.
    fn address_slot(&self, source: &str, costs: &[(LimitKind, i64)]) -> SlotCharges {
        let wider = wider_networks(source);
        let widest = wider.first().copied().unwrap_or(source);
        let mut charges = Vec::new();
        for &(kind, cost) in costs.iter().filter(|(kind, _)| self.quota(*kind) > 0) {
            let mut quota = self.quota(kind);
            let own = Some(source).filter(|source| !source.is_empty());
            for network in own.into_iter().chain(wider.iter().rev().copied()) {
                let key = format!("{network}:{}", kind.unit());
                charges.push(Charge { kind, key, quota, cost });
                quota *= 2;
            }
        }
        SlotCharges { caller: format!("jarvis:{{limits:a:{widest}}}"), charges, socket: None }
    }

    /// Takes all costs in all slots, or nothing in any.
    async fn take_all(
        &self,
        slots: Vec<SlotCharges>,
        options: TakeOptions<'_>,
    ) -> Result<Vec<(SlotCharges, SlotOutcome)>, LimitRefusal> {
        // Sent together, so that they take one round trip.
        let outcomes = join_all(slots.iter().map(|slot| self.take(slot, options))).await;
        let taken: Vec<_> = slots.into_iter().zip(outcomes).collect();
        if taken.iter().all(|(_, outcome)| outcome.is_taken) {
            return Ok(taken);
        }
        let refused = taken.iter().filter(|(_, outcome)| !outcome.is_taken);
        let refusals = refused.filter_map(|(slot, outcome)| refusal(slot, outcome));
        let refusal = refusals.max_by_key(|refusal| refusal.retry_after);
        for (slot, outcome) in taken.iter().filter(|(_, outcome)| outcome.is_taken) {
            self.give_back(&Taken::of(slot, outcome)).await;
            if let Some((name, _)) = &slot.socket {
                let _ = self.inner.store.release(&slot.caller, std::slice::from_ref(name)).await;
            }
        }
        Err(refusal.unwrap_or(LimitRefusal { standings: Vec::new(), retry_after: ALONE }))
    }

    /// Takes the costs in one slot: in Redis, or here while Redis is away.
    async fn take(&self, slot: &SlotCharges, options: TakeOptions<'_>) -> SlotOutcome {
        if !self.is_alone() {
            // Boxed, because the future of every request and of every turn would hold it.
            let reply = timeout(CALL_LIMIT, Box::pin(self.inner.store.take(slot, options))).await;
            let error = match reply {
                Ok(Ok(outcome)) => return outcome,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no reply in time".to_owned(),
            };
            tracing::debug!(error, "limits of this replica alone");
            *lock(&self.inner.alone_until) = Some(Instant::now() + ALONE);
        }
        let opens = slot.socket.as_ref().is_some_and(|(name, _)| !name.is_empty());
        let open = self.inner.sockets.count(&slot.caller).saturating_sub(u64::from(opens));
        self.inner.local.take(slot, open, options.forced)
    }

    fn is_alone(&self) -> bool {
        lock(&self.inner.alone_until).is_some_and(|until| Instant::now() < until)
    }

    async fn give_back(&self, Taken { slot, is_local }: &Taken) {
        if *is_local {
            self.inner.local.take(slot, 0, true);
        } else if !slot.charges.is_empty()
            && let Err(error) = self.inner.store.take(slot, TakeOptions::default()).await
        {
            tracing::debug!(%error, "what a refused request took is not given back");
        }
    }
}

impl Taken {
    /// Returns what gives back everything that was taken.
    fn of(slot: &SlotCharges, outcome: &SlotOutcome) -> Self {
        Self { slot: slot.reversed(|_| true), is_local: outcome.is_local }
    }

    /// Returns what gives back the turns that were taken.
    fn turns(slot: &SlotCharges, outcome: &SlotOutcome) -> Option<Self> {
        let slot = slot.reversed(|kind| !kind.is_of_requests());
        (!slot.is_empty()).then_some(Self { slot, is_local: outcome.is_local })
    }
}

impl TurnPermit {
    /// Returns why the turn must be refused, unless it was accepted before.
    pub fn refusal(&self) -> Option<&LimitRefusal> {
        self.refusal.as_ref()
    }

    /// Returns a flag that is set once the turn was given back.
    pub fn given_back(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.given_back)
    }

    /// Keeps what was taken: the turn was accepted.
    pub fn keep(mut self) {
        self.taken.clear();
    }

    /// Gives the turn back: it was accepted before, or is refused.
    pub async fn give_back(mut self) {
        self.given_back.store(true, Ordering::Relaxed);
        let taken = std::mem::take(&mut self.taken);
        for taken in &taken {
            self.limits.give_back(taken).await;
        }
    }
}

impl Drop for TurnPermit {
    fn drop(&mut self) {
        self.given_back.fetch_or(!self.taken.is_empty(), Ordering::Relaxed);
        give_back_later(&self.limits, std::mem::take(&mut self.taken));
    }
}

impl SessionPermit {
    /// Notes that the session exists now, and keeps what was taken where it is new.
    pub fn accepted(mut self, is_new: bool) {
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

fn give_back_later(limits: &RateLimits, taken: Vec<Taken>) {
    if taken.is_empty() {
        return;
    }
    // Without a runtime the process is ending.
    let Ok(runtime) = Handle::try_current() else { return };
    let limits = limits.clone();
    runtime.spawn(async move {
        for taken in &taken {
            limits.give_back(taken).await;
        }
    });
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn counted(refusal: LimitRefusal) -> LimitRefusal {
    refusal.count();
    refusal
}

/// Returns what is left of each limit in a slot: of an address's networks, of the one that has least.
fn standings(slot: &SlotCharges, outcome: &SlotOutcome) -> Vec<Standing> {
    let mut standings: Vec<Standing> = Vec::new();
    for (charge, backlog) in slot.charges.iter().zip(&outcome.backlogs) {
        let standing = charge.standing(*backlog);
        match standings.iter_mut().find(|known| known.kind == charge.kind) {
            Some(known) if standing.remaining() < known.remaining() => *known = standing,
            Some(_) => {}
            None => standings.push(standing),
        }
    }
    standings.extend(sockets_standing(slot, outcome));
    standings
}

fn sockets_standing(slot: &SlotCharges, outcome: &SlotOutcome) -> Option<Standing> {
    let ((_, quota), used) = (slot.socket.as_ref()?, outcome.sockets?);
    Some(Standing { kind: LimitKind::UserSockets, quota: *quota, used, reset: Duration::ZERO })
}

/// Returns the refusal of a slot: by the limit that takes longest to have enough.
fn refusal(slot: &SlotCharges, outcome: &SlotOutcome) -> Option<LimitRefusal> {
    /// When a caller may try again that has as many sockets as it may.
    const SOCKETS_AFTER: Duration = Duration::from_secs(5);
    let waits = slot.charges.iter().zip(&outcome.backlogs).map(|(charge, backlog)| {
        (Duration::from_micros(charge.missing(*backlog)), charge.standing(*backlog))
    });
    let longest = waits.filter(|(wait, _)| !wait.is_zero()).max_by_key(|(wait, _)| *wait);
    let (retry_after, first) = match longest {
        Some((wait, standing)) => (wait, Standing { reset: wait, ..standing }),
        None => {
            (SOCKETS_AFTER, Standing { reset: SOCKETS_AFTER, ..sockets_standing(slot, outcome)? })
        }
    };
    let others = standings(slot, outcome).into_iter().filter(|other| other.kind != first.kind);
    let standings = std::iter::once(first.clone()).chain(others).collect();
    Some(LimitRefusal { standings, retry_after })
}

impl Admission {
    /// Returns what is left of each limit after the turn was given back.
    pub fn after_giving_back(standings: Vec<Standing>) -> Vec<Standing> {
        let give_back = |standing: Standing| match standing.kind.unit() {
            "turns" => standing.given_back(1),
            _ => standing,
        };
        standings.into_iter().map(give_back).collect()
    }
}
