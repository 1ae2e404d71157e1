//! A turn whose client could not come back for the answer ends when the client is gone.
//!
//! The replica that has the client cancels the turn at once where it sees the client leave. It does
//! not see that where a proxy may be sending the request to another replica, and it cannot where it
//! has died.

use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::redis_call::call_redis;
use super::{CancelOutcome, Generations};
use crate::session::Feed;
use crate::session::store::Turn;

/// How long such a turn goes on without a listener: a proxy needs a few seconds to send a request to
/// another replica.
const LIMIT: Duration = Duration::from_secs(5);
/// The time between two checks.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Cancels a turn that needs a listener, once it has had none for five seconds. Never resolves: the
/// turn ends as every cancelled turn does. A failover may lose the cancellation, so a turn that goes on
/// is cancelled again.
pub(super) async fn cancel(generations: &Generations, turn: &Turn) {
    if !turn.spec.needs_listener {
        pending::<()>().await;
    }
    let feed = call_redis(|| generations.feeds.join_of_turn(turn)).await;
    let generation = turn.generation;
    loop {
        unheard(generations, turn, &feed).await;
        match generations.cancel(&feed.owner(), turn.session, Some(generation)).await {
            Ok(CancelOutcome::Cancelled { .. }) => {
                tracing::info!(%generation, "turn without a listener is cancelled");
            }
            Ok(CancelOutcome::AlreadyEnded) => {}
            Err(error) => tracing::debug!(%error, "turn not cancelled; retrying"),
        }
    }
}

/// Resolves when nobody has listened to a turn for five seconds.
async fn unheard(generations: &Generations, turn: &Turn, feed: &Feed) {
    let mut heard = Instant::now();
    while heard.elapsed() < LIMIT {
        sleep(CHECK_EVERY).await;
        if feed.has_readers() || !is_alone(generations, turn, feed).await {
            heard = Instant::now();
        }
    }
}

/// Returns whether this replica is known to be the only one that is subscribed to the session. While
/// its own subscription is lost, as after a failover, those of others may be lost as well.
async fn is_alone(generations: &Generations, turn: &Turn, feed: &Feed) -> bool {
    if !feed.is_subscribed() {
        return false;
    }
    match generations.store.listeners(turn.session).await {
        Ok(Some(listeners)) => listeners == 1,
        Ok(None) | Err(_) => false,
    }
}
