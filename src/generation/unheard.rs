//! A turn whose client could not come back for the answer ends when the client is gone.
//!
//! The replica that has the client cancels the turn at once where it sees the client leave. It does
//! not see that where a proxy may be sending the request to another replica, and it cannot where it
//! has died.

use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Generations;
use super::redis_call::call_redis;
use crate::session::Feed;
use crate::session::store::Turn;

/// How long such a turn goes on without a listener: a proxy needs a few seconds to send a request to
/// another replica.
const LIMIT: Duration = Duration::from_secs(5);
/// The time between two checks.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Cancels a turn that needs a listener, once it has had none for five seconds. Never resolves: the
/// turn ends as every cancelled turn does.
pub(super) async fn cancel(generations: &Generations, turn: &Turn) {
    if turn.spec.needs_listener {
        let feed = call_redis(|| generations.feeds.join_of_turn(turn)).await;
        loop {
            unheard(generations, turn, &feed).await;
            let generation = turn.generation;
            tracing::info!(%generation, "turn without a listener is cancelled");
            let cancelled = generations.cancel(&feed.owner(), turn.session, Some(generation)).await;
            match cancelled {
                Ok(_) => break,
                Err(error) => tracing::debug!(%error, "turn not cancelled; retrying"),
            }
        }
    }
    pending::<()>().await;
}

/// Resolves when nobody has listened to a turn for five seconds.
async fn unheard(generations: &Generations, turn: &Turn, feed: &Feed) {
    let mut heard = Instant::now();
    while heard.elapsed() < LIMIT {
        sleep(CHECK_EVERY).await;
        if feed.has_readers() {
            heard = Instant::now();
            continue;
        }
        let own = u64::from(feed.is_subscribed());
        match generations.store.listeners(turn.session).await {
            Ok(Some(listeners)) if listeners <= own => {}
            // Another replica has a listener, or nothing is known.
            Ok(_) | Err(_) => heard = Instant::now(),
        }
    }
}
