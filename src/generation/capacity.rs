//! The reports of this replica to the queue: the model hosts, a turn's ticket, and a returned slot.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::prefixes::prefixes;
use crate::model_name;
use crate::ollama::{BreakerState, Fleet, HostState, OllamaError};
use crate::queue::{HostAccess, HostKey, HostReport, Returned, Ticket, TicketSource};
use crate::session::Owner;
use crate::session::store::Turn;
use crate::source::{SourceKey, wider_networks};
use crate::telemetry::{GaugedHosts, metric};

/// How long a host that replied that it is full gets no turn.
const FULL: Duration = Duration::from_secs(1);
/// How long a turn does not get a host where it failed. The time doubles with each attempt.
const EXCLUDED: Duration = Duration::from_millis(500);
/// The longest time for which a turn does not get a host.
const LONGEST_EXCLUDED: Duration = Duration::from_secs(30);
/// Retries that may be made at once from a full budget: as many as turns run on a host that dies.
const RETRIES: i64 = 100;
/// Turns that complete for one more retry.
const TURNS_A_RETRY: i64 = 10;

/// The hosts of the breakers' gauges.
static GAUGED: GaugedHosts = GaugedHosts::none();

/// Returns this replica's report of the hosts.
pub(super) fn reports(fleet: &Fleet) -> Vec<HostReport> {
    let hosts = fleet.hosts();
    for gone in GAUGED.replace(hosts.iter().map(|host| host.id.as_str())) {
        // It is neither closed nor open.
        metrics::gauge!(metric::BREAKER_OPEN, "host" => gone).set(f64::NAN);
    }
    let hosts = hosts.into_iter().map(|host| {
        set_gauges(&host);
        let (via, trials) = match host.breaker {
            BreakerState::Closed => (HostAccess::Open, 0),
            BreakerState::HalfOpen(trials) => (HostAccess::Trial, trials),
            BreakerState::Open => (HostAccess::Shut, 0),
        };
        let models = host.models.iter().map(|(model, loaded)| (model.to_string(), *loaded));
        HostReport {
            name: HostKey(host.id.as_str().to_owned()),
            slots: host.slots,
            via,
            trials,
            models: models.collect(),
        }
    });
    hosts.collect()
}

/// Sets the gauges of a host's breakers. Only models that the host has and that have failed there
/// are labels, whatever clients ask for.
fn set_gauges(host: &HostState) {
    let id = host.id.as_str().to_owned();
    metrics::gauge!(metric::BREAKER_OPEN, "host" => id.clone()).set(openness(host.breaker));
    for (model, breaker) in &host.failed {
        let labels = [("host", id.clone()), ("model", model.to_string())];
        metrics::gauge!(metric::MODEL_BREAKER_OPEN, &labels).set(openness(*breaker));
    }
}

fn openness(breaker: BreakerState) -> f64 {
    match breaker {
        BreakerState::Closed => 0.0,
        BreakerState::HalfOpen(_) => 0.5,
        BreakerState::Open => 1.0,
    }
}

/// Creates the ticket of a turn. Slots are shared fairly between sources: signed-in users and the
/// addresses of anonymous callers. A loopback address is no source: there, sessions share the slots.
/// `owner` is that of the session, and `key` that of digests of what it says.
pub(super) fn ticket(turn: &Turn, owner: &Owner, key: &SourceKey) -> Ticket {
    let session = turn.session.to_string();
    let source = ticket_source(owner, &turn.spec.source);
    Ticket {
        generation: turn.generation,
        user: if source.name.is_empty() { session.clone() } else { source.name.clone() },
        is_of_address: *owner == Owner::Anonymous && !source.name.is_empty(),
        source,
        model: model_name::canonical(&turn.spec.model),
        session,
        prefixes: prefixes(turn, owner, key),
        has_text: false,
    }
}

/// Returns the source of the tickets of an owner whose requests come from this address.
pub(super) fn ticket_source(owner: &Owner, address: &str) -> TicketSource {
    match owner {
        Owner::User(_) => TicketSource { name: owner.key(), networks: Vec::new() },
        Owner::Anonymous => {
            let networks = wider_networks(address).into_iter().rev().map(str::to_owned);
            TicketSource { name: address.to_owned(), networks: networks.collect() }
        }
    }
}

/// Returns why the slot is returned after an error. `attempts` is the number of attempts in a row
/// that made too little progress, this one included.
pub(super) fn returned(error: &OllamaError, attempts: usize, has_text: bool) -> Returned {
    match error {
        OllamaError::Busy { .. } => {
            return Returned { excluded: Duration::ZERO, full: FULL, has_text };
        }
        OllamaError::ModelFailing { retry_after, .. } => {
            return Returned { excluded: *retry_after, full: Duration::ZERO, has_text };
        }
        // The model is loaded by now, so that the host may be tried again at once.
        OllamaError::NotAnswered => {
            return Returned { excluded: Duration::ZERO, full: Duration::ZERO, has_text };
        }
        // A host that has no memory for the model now has none in a second, either.
        OllamaError::ModelRefused { .. } => {
            return Returned { excluded: LONGEST_EXCLUDED, full: Duration::ZERO, has_text };
        }
        _ => {}
    }
    let doubled = 1 << attempts.saturating_sub(1).min(10);
    let excluded = (EXCLUDED * doubled).min(LONGEST_EXCLUDED);
    Returned { excluded, full: Duration::ZERO, has_text }
}

/// Returns whether the error is that no connection to the host could be made.
pub(super) fn is_unreachable(error: &OllamaError) -> bool {
    matches!(error, OllamaError::Unreachable | OllamaError::ConnectTimeout)
}

/// Keeps retries from multiplying an overload: completed turns earn them.
#[derive(Debug)]
pub(super) struct RetryBudget {
    turns: AtomicI64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { turns: AtomicI64::new(RETRIES * TURNS_A_RETRY) }
    }
}

impl RetryBudget {
    /// Adds a completed turn.
    pub(super) fn earn(&self) {
        let full = RETRIES * TURNS_A_RETRY;
        let _ = self.turns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |turns| {
            (turns < full).then_some(turns + 1)
        });
    }

    /// Takes one retry from the budget. Returns `false` where there is none.
    pub(super) fn spend(&self) -> bool {
        self.turns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |turns| {
                (turns >= TURNS_A_RETRY).then_some(turns - TURNS_A_RETRY)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_end_when_no_turn_completes() {
        let budget = RetryBudget::default();
        assert_eq!((0..100).map(|_| i64::from(budget.spend())).sum::<i64>(), RETRIES);
        for _ in 0..TURNS_A_RETRY {
            assert!(!budget.spend());
            budget.earn();
        }
        assert!(budget.spend());
    }

    #[test]
    fn a_full_host_is_excluded_for_all_turns_and_a_failed_one_for_its_turn_only() {
        let busy = returned(&OllamaError::Busy { retry_after: FULL }, 1, false);
        assert_eq!((busy.excluded, busy.full), (Duration::ZERO, FULL));
        let first = returned(&OllamaError::Unreachable, 1, false);
        assert_eq!((first.excluded, first.full), (EXCLUDED, Duration::ZERO));
        let late = returned(&OllamaError::Unreachable, 60, true);
        assert_eq!((late.excluded, late.has_text), (LONGEST_EXCLUDED, true));
    }
}
