//! A turn waits for its slot, and its session is told where it stands.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::Generations;
use super::turn::{Stopped, cancelled, failure};
use crate::ollama::OllamaError;
use crate::queue::{Lease, Place, Waiting};
use crate::session::Feed;
use crate::session::model::Failure;
use crate::session::store::Turn;

/// A turn whose model no host can serve is given up after so long.
const HOPELESS: Duration = Duration::from_secs(10);
/// Before a turn is given up the queue is asked again, and once more after this: a replica that was
/// stopped, or that had no Redis, has not seen what happened meanwhile.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// A session is told at most this often where its turn stands: each time that the queue has looked,
/// which is once a second. It is told again what it was told before, as that may be lost.
const TOLD_AFTER: Duration = Duration::from_millis(950);
/// How long a turn waits, at most.
const LONGEST: Duration = Duration::from_hours(1);
/// Pause before Redis is asked again after it failed.
const RETRY: Duration = Duration::from_millis(500);
/// When to come back, where nothing was measured yet.
const COME_BACK: Duration = Duration::from_secs(5);

/// What was measured may be wrong by so much.
const MARGIN: f64 = 1.3;

/// How a turn waits.
#[derive(Clone, Copy)]
pub(super) struct Wait {
    /// Whether there is text, so that the turn goes first.
    pub has_text: bool,
    /// Whether the session is told: only before its answer has begun.
    pub is_told: bool,
    /// When a host that did not suit may be asked for again.
    pub again_at: Option<Instant>,
}

/// Waits until the lease holds a slot. `Err`: the turn ends with this.
pub(super) async fn wait_for_slot(
    generations: &Generations,
    turn: &Turn,
    feed: &Arc<Feed>,
    lease: &mut Lease,
    wait: Wait,
) -> Result<Result<(), Failure>, Stopped> {
    let began = Instant::now();
    let mut joins = true;
    let mut again_at = wait.again_at;
    let mut hopeless_since = None;
    let mut last_look = None;
    let mut told: Option<Instant> = None;
    loop {
        let joined = std::mem::replace(&mut joins, false);
        let place = if joined {
            match lease.join(wait.has_text).await {
                Ok(place) => place,
                Err(error) => {
                    tracing::warn!(%error, "joining the queue waits for redis");
                    joins = true;
                    tokio::select! {
                        () = sleep(RETRY) => continue,
                        () = cancelled(feed, turn) => return Err(Stopped),
                    }
                }
            }
        } else {
            lease.place()
        };
        match place {
            Place::Granted(_) => {
                let waited = began.elapsed().as_secs_f64();
                metrics::histogram!("jarvis_queue_wait_seconds").record(waited);
                return Ok(Ok(()));
            }
            Place::Waiting(waiting) => {
                if wait.is_told && told.is_none_or(|at| at.elapsed() >= TOLD_AFTER) {
                    told = Some(Instant::now());
                    tell(generations, turn, waiting).await;
                }
                let since = (waiting.hosts == 0).then_some(Instant::now());
                hopeless_since = since.map(|now| hopeless_since.unwrap_or(now));
            }
            Place::Full(after) | Place::Crowded(after) => {
                return Ok(Err(queue_full(after)));
            }
            // It was taken over.
            Place::Gone if joined => return Err(Stopped),
            Place::Gone => joins = true,
        }
        let end = hopeless_since.map_or(began + LONGEST, |since| since + HOPELESS);
        let now = Instant::now();
        if now < end {
            last_look = None;
        } else if joined && now >= *last_look.get_or_insert(now + LAST_LOOK) {
            let hopeless = hopeless_since.is_some();
            let failure = if hopeless { no_host(generations, turn).await } else { too_long() };
            return Ok(Err(failure));
        }
        let again = again_at.unwrap_or(end);
        tokio::select! {
            _ = lease.changed() => {}
            () = std::future::ready(()), if joins => {}
            () = sleep_until(again), if again_at.is_some() => {
                again_at = None;
                joins = true;
            }
            () = sleep_until(last_look.unwrap_or(end)) => joins = true,
            () = cancelled(feed, turn) => return Err(Stopped),
        }
    }
}

async fn tell(generations: &Generations, turn: &Turn, Waiting { position, eta, .. }: Waiting) {
    let eta_seconds = eta.map(|eta| (eta.as_secs_f64() * 10.0).round() / 10.0);
    if let Err(error) = generations.store.tell_queued(turn, position, eta_seconds).await {
        tracing::debug!(%error, "could not tell a place in the queue");
    }
}

/// The queue has no room.
pub(super) fn queue_full(after: Option<Duration>) -> Failure {
    let after = after.map_or(COME_BACK, |after| after.mul_f64(MARGIN));
    later("queue_full", "The queue is full", after)
}

/// Why no host within reach has the model.
async fn no_host(generations: &Generations, turn: &Turn) -> Failure {
    match generations.fleet.check(&turn.spec.model).await {
        Err(error @ OllamaError::ModelNotFound { .. }) => failure(&error),
        _ => later("no_model_host", "No model host can be reached", COME_BACK),
    }
}

fn too_long() -> Failure {
    later("queue_timeout", "The turn waited for as long as a turn may and got no slot", COME_BACK)
}

/// A failure that passes: what is wrong, and then when to try again.
fn later(code: &str, what: &str, after: Duration) -> Failure {
    let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
    Failure {
        code: code.to_owned(),
        message: format!("{what}; retry after {seconds} s."),
        retryable: true,
        retry_after: Some(seconds),
    }
}
