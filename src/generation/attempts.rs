//! How often a turn is attempted, and after which errors.

use std::time::Duration;

use tokio::time::Instant;

use super::Generations;
use super::capacity;
use super::failures::{failure, no_host};
use crate::ollama::{HostId, OllamaError};
use crate::session::model::Failure;
use crate::session::store::Turn;

/// Attempts in a row without any text, after which the turn fails.
const FRUITLESS_ATTEMPTS: usize = 3;
/// Bytes of text, about eight tokens, below which an attempt makes too little progress.
const LITTLE: usize = 32;
/// Attempts in a row that make too little progress, after which the turn fails.
const SLOW_ATTEMPTS: usize = 6;
/// Attempts in all, after which the turn fails.
const ATTEMPTS: usize = 12;
/// Replies in all that a host is full, after which the turn fails.
const BUSY_ATTEMPTS: usize = 60;
/// How long a turn with text waits for a model whose breakers are open.
const FAILING: Duration = Duration::from_secs(10);
/// How long a turn without text waits for a model whose breakers are open.
const FAILING_AT_FIRST: Duration = Duration::from_secs(3);

/// The attempts of one turn on this replica.
#[derive(Default)]
pub(super) struct Attempts {
    all: usize,
    /// Attempts in a row without any text.
    fruitless: usize,
    /// Attempts in a row with too little progress.
    slow: usize,
    /// Attempts that met a full host, or an open breaker of the model.
    busy: usize,
    /// Hosts that refused the model.
    refused_by: Vec<HostId>,
    failing_since: Option<Instant>,
    unreachable_since: Option<Instant>,
}

/// An attempt that failed.
pub(super) struct FailedAttempt<'a> {
    pub(super) error: &'a OllamaError,
    /// The host of the attempt, while its slot is held.
    pub(super) host: Option<HostId>,
    /// Whether the turn has any text by now.
    pub(super) has_text: bool,
    /// Bytes by which this attempt made the text longer.
    pub(super) grown: usize,
}

impl Attempts {
    /// Returns the number of attempts that count against a host.
    pub(super) fn counted(&self) -> usize {
        self.all
    }

    /// Returns the number of attempts in a row that count against a host and made too little
    /// progress.
    pub(super) fn slow(&self) -> usize {
        self.slow
    }

    /// Counts a failed attempt. Returns the failure that ends the turn, where another attempt is
    /// not worth it.
    pub(super) async fn after(
        &mut self,
        generations: &Generations,
        turn: &Turn,
        FailedAttempt { error, host, has_text, grown }: FailedAttempt<'_>,
    ) -> Option<Failure> {
        if capacity::is_unreachable(error) {
            // The attempt cost the host nothing: the turn waits until a host can be reached again.
            let since = *self.unreachable_since.get_or_insert_with(Instant::now);
            return (since.elapsed() >= generations.host_wait).then(no_host);
        }
        self.unreachable_since = None;
        let mut fails_too_long = false;
        match error {
            OllamaError::Busy { .. } => self.busy += 1,
            OllamaError::ModelFailing { retry_after, .. } => {
                self.busy += 1;
                let since = *self.failing_since.get_or_insert_with(Instant::now);
                let limit = if has_text { FAILING } else { FAILING_AT_FIRST };
                fails_too_long = since.elapsed() + *retry_after > limit
                    && !generations.fleet.has_other(&turn.spec.model, host.as_slice());
            }
            _ => {
                self.all += 1;
                self.fruitless += 1;
                self.slow += 1;
                if grown > 0 {
                    (self.fruitless, self.failing_since) = (0, None);
                }
                if grown >= LITTLE {
                    self.slow = 0;
                }
            }
        }
        if let OllamaError::ModelRefused { .. } = error {
            self.refused_by.extend(host);
        }
        let is_over = fails_too_long
            || self.fruitless >= FRUITLESS_ATTEMPTS
            || self.slow >= SLOW_ATTEMPTS
            || self.all >= ATTEMPTS
            || self.busy >= BUSY_ATTEMPTS
            || !is_worth_another(generations, turn, error, &self.refused_by).await
            || (self.fruitless > 0 && !has_text && !generations.retries.spend());
        is_over.then(|| failure(error))
    }
}

/// Returns whether the same request may succeed, on the same host or another.
async fn is_worth_another(
    generations: &Generations,
    turn: &Turn,
    error: &OllamaError,
    refused_by: &[HostId],
) -> bool {
    match error {
        // Another host may have more memory, or a newer release; each is tried once.
        error if error.may_differ_elsewhere() => {
            generations.fleet.has_other(&turn.spec.model, refused_by)
        }
        // One host has lost the model; others may have it.
        OllamaError::ModelNotFound { .. } => {
            generations.fleet.check(&turn.spec.model).await.is_ok()
        }
        error => error.is_retryable(),
    }
}
