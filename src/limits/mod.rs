//! Limits of what users, API keys and addresses may do, exact over all replicas.
//!
//! Redis keeps one number a limit and decides in one call, by GCRA on its own clock. The limits of a
//! user and of its API keys lie in one hash slot, those of an address in another. While Redis is
//! away, each replica limits alone. A request takes what it costs before its body is read, and gives
//! a turn back that was not accepted.

mod charge;
mod local;
mod permit;
mod policy;
mod sockets;
mod store;

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use self::charge::{Charge, SlotCharges, SlotOutcome, refusal, standings};
use self::local::LocalLimits;
use self::permit::Taken;
pub use self::permit::{Admission, GivenBack, SessionPermit, TurnPermit};
pub use self::policy::{LimitKind, LimitRefusal, RequestKind, Standing, Subject};
pub use self::sockets::UserSocket;
use self::sockets::{RENEW_EVERY, UserSockets};
use self::store::{LimitStore, TakeOptions};
use crate::config::LimitSettings;
use crate::digest::sha256_hex;
use crate::membership::MembershipStore;
use crate::redis::{Redis, keys};
use crate::retry::{Backoff, retry};
use crate::session::{GenerationId, Owner, SessionId};
use crate::source::{Source, wider_networks};

/// Time limit of a call, after which a replica decides alone.
const CALL_LIMIT: Duration = Duration::from_millis(500);
/// How long a replica limits alone after a call failed.
const ALONE: Duration = Duration::from_secs(1);
/// When sockets are held again after Redis was disturbed: it may not be back before.
const AFTER_DISTURBANCE: Duration = Duration::from_secs(1);
/// How long the tokens of a turn are offered to a Redis that does not reply.
const TOKENS_LIMIT: Duration = Duration::from_secs(20);
/// Hexadecimal characters of a user's digest.
const DIGEST_CHARACTERS: usize = 32;
/// Sessions that are known to exist, at most.
const KNOWN_SESSIONS: usize = 10_000;

/// The outcome of a request that a limit refuses.
struct Refused {
    refusal: LimitRefusal,
    /// Whether Redis holds the socket of the request, or may hold it later.
    may_hold_socket: bool,
}

/// One request of an address that was taken for what has no caller.
pub struct RequestTaken {
    taken: Vec<Taken>,
    /// The rest of the address's requests; empty where they are not limited.
    pub standings: Vec<Standing>,
}

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

impl RateLimits {
    /// Creates the limits, and keeps the sockets of users held in the name of this replica.
    pub fn start(redis: &Redis, membership: MembershipStore, settings: LimitSettings) -> Self {
        let replica = membership.replica().to_owned();
        let store = LimitStore::new(redis.clone(), membership);
        let sockets = UserSockets::new(store.clone(), &replica);
        let renewed = sockets.clone();
        let mut disturbances = redis.disturbances();
        redis.lifecycle().spawn("sockets of users", async move {
            loop {
                tokio::select! {
                    () = sleep(RENEW_EVERY) => {}
                    // Redis may have lost the holds.
                    _ = disturbances.changed() => sleep(AFTER_DISTURBANCE).await,
                }
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

    /// Takes what a request costs from all limits of its caller, or nothing. With `repeats`, the key by
    /// which a client repeats it, a request that begins a turn is admitted also where no turn is left: it
    /// may repeat one that was accepted before, which [`TurnPermit::refusal`] then decides. Where no
    /// request is left either, it is admitted if one with this key was, a few times.
    ///
    /// # Errors
    /// [`LimitRefusal`], which is counted.
    pub async fn admit(
        &self,
        subject: &Arc<Subject>,
        kind: RequestKind,
        repeats: Option<&str>,
    ) -> Result<Admission, LimitRefusal> {
        let repeats = repeats.filter(|_| kind == RequestKind::Turn);
        let known = repeats.map(|key| {
            let mut digest = sha256_hex(key.as_bytes());
            digest.truncate(DIGEST_CHARACTERS);
            digest
        });
        let options =
            TakeOptions { known: known.as_deref().unwrap_or_default(), ..TakeOptions::default() };
        let slots = self.slots(subject, kind);
        let socket = slots.iter().find_map(|slot| {
            let (name, _) = slot.socket.as_ref()?;
            Some(self.inner.sockets.hold(slot.caller.clone(), name.clone()))
        });
        let (taken, refusal) = match self.take_all(slots, options).await {
            Ok(taken) => {
                let known = taken.iter().filter(|(_, outcome)| outcome.is_known);
                let refusals = known.filter_map(|(slot, outcome)| refusal(slot, outcome));
                let refusal = refusals.max_by_key(|refusal| refusal.retry_after);
                (taken, refusal)
            }
            Err(Refused { refusal, .. })
                if repeats.is_some() && !refusal.kind().is_of_requests() =>
            {
                let plain = self.slots(subject, RequestKind::Plain);
                match self.take_all(plain, TakeOptions::default()).await {
                    Ok(taken) => (taken, Some(refusal)),
                    Err(refused) => return Err(counted(refused.refusal)),
                }
            }
            Err(Refused { refusal, may_hold_socket }) => {
                if let Some(socket) = socket
                    && !may_hold_socket
                {
                    socket.refused();
                }
                return Err(counted(refusal));
            }
        };
        let mut standings: Vec<Standing> =
            taken.iter().flat_map(|(slot, outcome)| standings(slot, outcome)).collect();
        if let Some(refusal) = &refusal {
            let is_new = |it: &&Standing| {
                !it.kind.is_of_requests() && standings.iter().all(|other| other.kind != it.kind)
            };
            let others: Vec<Standing> = refusal.standings.iter().filter(is_new).cloned().collect();
            standings.extend(others);
        }
        if let Some(socket) = &socket {
            socket.admitted();
        }
        let turn = (kind == RequestKind::Turn).then(|| TurnPermit {
            limits: self.clone(),
            subject: Arc::clone(subject),
            taken: taken.iter().filter_map(|(slot, outcome)| Taken::turns(slot, outcome)).collect(),
            requests: taken
                .iter()
                .filter_map(|(slot, outcome)| Taken::requests(slot, outcome))
                .collect(),
            known,
            refusal,
            given_back: Arc::default(),
            is_worked_on: AtomicBool::new(false),
        });
        Ok(Admission { standings, turn, socket })
    }

    /// Holds one more stream of a user, for a request that was admitted before its body showed that its
    /// turn is streamed. Streams count as sockets. None where those of the caller are not limited.
    ///
    /// # Errors
    /// [`LimitRefusal`], which is counted.
    pub async fn open_stream(&self, subject: &Subject) -> Result<Option<UserSocket>, LimitRefusal> {
        let mut slot = self.user_slot(subject, &[]);
        slot.socket = self.next_socket(subject);
        let Some((name, _)) = &slot.socket else { return Ok(None) };
        let mut socket = self.inner.sockets.hold(slot.caller.clone(), name.clone());
        match self.take_all(vec![slot], TakeOptions::default()).await {
            Ok(taken) => {
                let mut left = taken.iter().flat_map(|(slot, outcome)| standings(slot, outcome));
                socket.standing = left.find(|standing| standing.kind == LimitKind::UserSockets);
                socket.admitted();
                Ok(Some(socket))
            }
            Err(Refused { refusal, may_hold_socket }) => {
                if !may_hold_socket {
                    socket.refused();
                }
                Err(counted(refusal))
            }
        }
    }

    /// Takes one request from the limit of an address, for what has no caller: a failed sign-in, or open
    /// metrics. A client on the same machine has no limit.
    ///
    /// # Errors
    /// [`LimitRefusal`], which is counted.
    pub async fn take_request(&self, source: &Source) -> Result<RequestTaken, LimitRefusal> {
        let slot = self.address_slot(&source.0, &[(LimitKind::AddressRequests, 1)]);
        if slot.is_empty() {
            return Ok(RequestTaken { taken: Vec::new(), standings: Vec::new() });
        }
        let taken = Box::pin(self.take_all(vec![slot], TakeOptions::default())).await;
        let taken = taken.map_err(|refused| counted(refused.refusal))?;
        let left = taken.iter().flat_map(|(slot, outcome)| standings(slot, outcome)).collect();
        let taken = taken.iter().map(|(slot, outcome)| Taken::of(slot, outcome)).collect();
        Ok(RequestTaken { taken, standings: left })
    }

    /// Gives back a request that was taken in advance.
    pub async fn give_back_request(&self, RequestTaken { taken, .. }: RequestTaken) {
        for taken in &taken {
            self.give_back(taken).await;
        }
    }

    /// Takes one session from the limit of sessions of an address, unless this replica knows that the
    /// session exists.
    ///
    /// # Errors
    /// [`LimitRefusal`]. The session may nevertheless exist.
    pub async fn take_session(
        &self,
        source: &str,
        session: SessionId,
    ) -> Result<SessionPermit, LimitRefusal> {
        let mut permit = self.existing_session(session);
        let is_known = || lock(&self.inner.known_sessions).contains(&session);
        let slot = self.address_slot(source, &[(LimitKind::AddressSessions, 1)]);
        if slot.is_empty() {
            return Ok(permit);
        }
        if is_known() {
            permit.if_new = Some(slot);
            return Ok(permit);
        }
        let taken = self.take_all(vec![slot], TakeOptions::default()).await;
        let taken = taken.map_err(|refused| refused.refusal)?;
        permit.taken = taken.iter().map(|(slot, outcome)| Taken::of(slot, outcome)).collect();
        Ok(permit)
    }

    /// Returns the permit of a session that exists, which took nothing.
    pub fn existing_session(&self, session: SessionId) -> SessionPermit {
        SessionPermit { limits: self.clone(), taken: Vec::new(), session, if_new: None }
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
        let options = TakeOptions { forced: true, once: &once, known: "" };
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
        let options = TakeOptions { forced: true, ..TakeOptions::default() };
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
        if kind == RequestKind::Socket {
            user.socket = self.next_socket(subject);
        }
        let slots = [user, self.address_slot(&subject.source.0, &address)];
        slots.into_iter().filter(|slot| !slot.is_empty()).collect()
    }

    /// Returns the name of one more socket of a caller, and how many it may have open; none where they are
    /// not limited.
    fn next_socket(&self, subject: &Subject) -> Option<(String, u64)> {
        let limit = self.quota(LimitKind::UserSockets);
        let is_limited = subject.owner != Owner::Anonymous && limit > 0;
        is_limited.then(|| (self.inner.sockets.next_name(), limit))
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
            (quota > 0).then_some(Charge::new(kind, key, quota, cost))
        });
        let mut digest = sha256_hex(subject.owner.key().as_bytes());
        digest.truncate(DIGEST_CHARACTERS);
        let caller = keys::limits_of_user(&digest);
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
                charges.push(Charge::new(kind, key, quota, cost));
                quota *= 2;
            }
        }
        SlotCharges { caller: keys::limits_of_network(widest), charges, socket: None }
    }

    /// Takes all costs in all slots, or nothing in any but for those of known repeats, which take nothing
    /// where too little is left.
    async fn take_all(
        &self,
        slots: Vec<SlotCharges>,
        options: TakeOptions<'_>,
    ) -> Result<Vec<(SlotCharges, SlotOutcome)>, Refused> {
        // Sent together, so that they take one round trip.
        let outcomes = join_all(slots.iter().map(|slot| self.take(slot, options))).await;
        let taken: Vec<_> = slots.into_iter().zip(outcomes).collect();
        if taken.iter().all(|(_, outcome)| outcome.is_taken || outcome.is_known) {
            return Ok(taken);
        }
        let refused = taken.iter().filter(|(_, outcome)| !outcome.is_taken && !outcome.is_known);
        let refusals = refused.filter_map(|(slot, outcome)| refusal(slot, outcome));
        let refusal = refusals.max_by_key(|refusal| refusal.retry_after);
        for (slot, outcome) in taken.iter().filter(|(_, outcome)| outcome.is_taken) {
            self.give_back(&Taken::of(slot, outcome)).await;
        }
        // A call that got no reply in time may be carried out later.
        let may_hold = |(slot, outcome): &(SlotCharges, SlotOutcome)| {
            slot.socket.is_some() && (outcome.is_taken || outcome.is_local)
        };
        let may_hold_socket = taken.iter().any(may_hold);
        let refusal = refusal.unwrap_or(LimitRefusal { standings: Vec::new(), retry_after: ALONE });
        Err(Refused { refusal, may_hold_socket })
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

    async fn give_back(&self, taken: &Taken) {
        self.give_back_with(taken, TakeOptions::default()).await;
    }

    /// Gives back what was taken, and returns whether it was.
    async fn give_back_with(
        &self,
        Taken { slot, is_local }: &Taken,
        options: TakeOptions<'_>,
    ) -> bool {
        if *is_local {
            self.inner.local.take(slot, 0, true);
            return true;
        }
        if slot.charges.is_empty() {
            return false;
        }
        match self.inner.store.take(slot, options).await {
            Ok(outcome) => outcome.is_taken,
            Err(error) => {
                tracing::debug!(%error, "what a refused request took is not given back");
                false
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn counted(refusal: LimitRefusal) -> LimitRefusal {
    refusal.count();
    refusal
}
