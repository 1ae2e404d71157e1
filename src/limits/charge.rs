//! The charge of one request on the limits in one hash slot, and their state after it.

use std::time::Duration;

use super::policy::{LimitKind, LimitRefusal, Standing, interval_us};

/// The charge of a request on one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Charge {
    pub kind: LimitKind,
    /// The key of the limit, below the caller's name.
    pub key: String,
    /// More than the setting for a network around an address.
    pub quota: u64,
    /// 0 takes nothing, and needs one to be left; a negative cost gives back.
    pub cost: i64,
    /// For a charge that is given back: when all of the limit was to be back right after it was taken, in
    /// microseconds of the clock that decided. An amount that has come back by itself since is not given
    /// back.
    pub taken_until: u64,
}

impl Charge {
    /// Returns the microseconds in which one comes back.
    pub fn interval(&self) -> u64 {
        interval_us(self.kind, self.quota)
    }

    /// Returns the microseconds in which all of the limit comes back.
    pub fn window(&self) -> u64 {
        self.interval() * self.quota
    }

    /// Returns the microseconds that are missing until the cost is not refused.
    pub fn missing(&self, backlog: u64) -> u64 {
        if self.cost < 0 {
            return 0;
        }
        let needed = self.cost.unsigned_abs().max(1) * self.interval();
        (backlog + needed).saturating_sub(self.window())
    }

    /// Creates the charge of a cost.
    pub fn new(kind: LimitKind, key: String, quota: u64, cost: i64) -> Self {
        Self { kind, key, quota, cost, taken_until: 0 }
    }

    /// Returns the backlog after the cost was taken, or given back, at a time.
    pub fn taken(&self, backlog: u64, now: u64) -> u64 {
        let cost = self.cost.unsigned_abs() * self.interval();
        if self.cost < 0 {
            backlog.saturating_sub(cost.min(self.taken_until.saturating_sub(now)))
        } else {
            backlog + cost
        }
    }

    /// Returns what is left where all of the limit is back after so many microseconds.
    pub fn standing(&self, backlog: u64) -> Standing {
        Standing {
            kind: self.kind,
            quota: self.quota,
            used: backlog.div_ceil(self.interval()),
            reset: Duration::from_micros(backlog),
        }
    }
}

/// The limits of one caller in one hash slot, with what a request takes from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotCharges {
    /// The beginning of the keys: the caller's name.
    pub caller: String,
    pub charges: Vec<Charge>,
    /// The socket that the request opens, and how many sockets the caller may have open.
    pub socket: Option<(String, u64)>,
}

impl SlotCharges {
    /// Returns the charges that give back what this one took from limits that `given` selects.
    pub fn reversed(&self, outcome: &SlotOutcome, given: impl Fn(LimitKind) -> bool) -> Self {
        let charges = self.charges.iter().zip(&outcome.backlogs);
        let charges = charges.filter(|(charge, _)| charge.cost > 0 && given(charge.kind));
        let charges = charges.map(|(charge, backlog)| Charge {
            cost: -charge.cost,
            taken_until: outcome.at + backlog,
            ..charge.clone()
        });
        Self { caller: self.caller.clone(), charges: charges.collect(), socket: None }
    }

    pub fn is_empty(&self) -> bool {
        self.charges.is_empty() && self.socket.is_none()
    }
}

/// The outcome for the limits in one hash slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotOutcome {
    /// Whether the costs were taken.
    pub is_taken: bool,
    /// Whether too little is left, and the request may repeat one that was taken before.
    pub is_known: bool,
    /// The open sockets of the caller, where the request opens one.
    pub sockets: Option<u64>,
    /// For each charge, in their order, the microseconds until all of the limit is back.
    pub backlogs: Vec<u64>,
    /// When it was decided, in microseconds of the clock that decided: that of Redis, or this
    /// replica's.
    pub at: u64,
    /// Whether this replica limits alone, because Redis is away.
    pub is_local: bool,
}

/// Returns what is left of each limit in a slot: of an address's networks, of the one that has least.
pub(super) fn standings(slot: &SlotCharges, outcome: &SlotOutcome) -> Vec<Standing> {
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
pub(super) fn refusal(slot: &SlotCharges, outcome: &SlotOutcome) -> Option<LimitRefusal> {
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
