//! A turn that waits while nobody listens gives its position to others, where the queue is short of
//! positions: a client that left does not come back for the answer. One that comes back from time to time,
//! as that of a response in the background, is no listener, but its turn is not alone.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Generations;
use crate::session::event::Queued;
use crate::session::store::Turn;
use crate::session::{Feed, Owner};

/// The part of the limit after which it is checked again whether somebody listens.
const CHECKS: u32 = 10;
/// The longest time between two checks.
const LONGEST: Duration = Duration::from_secs(30);

/// Since when nobody has listened to a waiting turn, or asked how it stands.
pub(super) struct Abandonment {
    limit: Duration,
    alone_since: Instant,
    /// The time of the check; a turn that is never abandoned has none.
    next_check: Option<Instant>,
}

impl Abandonment {
    /// Begins to watch a turn. A user's turn, whose answer is for the user's other devices, too, and one
    /// whose answer has begun are never abandoned.
    pub(super) fn watch(generations: &Generations, owner: &Owner, has_text: bool) -> Self {
        let limit = generations.abandon_after;
        let now = Instant::now();
        let is_watched = *owner == Owner::Anonymous && !has_text;
        let next_check = is_watched.then(|| now + Self::interval(limit));
        Self { limit, alone_since: now, next_check }
    }

    fn interval(limit: Duration) -> Duration {
        (limit / CHECKS).min(LONGEST)
    }

    /// Resolves when the turn has been alone for too long, while more than half of the queue is in
    /// use. `queued` is the position that was published last. Cancel-safe.
    pub(super) async fn over(
        &mut self,
        generations: &Generations,
        turn: &Turn,
        feed: &Arc<Feed>,
        queued: Option<Queued>,
    ) {
        while let Some(next_check) = self.next_check {
            sleep_until(next_check).await;
            self.next_check = Some(Instant::now() + Self::interval(self.limit));
            if self.is_over(generations, turn, feed, queued).await {
                return;
            }
        }
        pending::<()>().await;
    }

    /// Checks whether somebody listens, and returns whether the turn has been alone for too long.
    async fn is_over(
        &mut self,
        generations: &Generations,
        turn: &Turn,
        feed: &Arc<Feed>,
        queued: Option<Queued>,
    ) -> bool {
        let now = Instant::now();
        if feed.has_readers() {
            self.alone_since = now;
            return false;
        }
        if let Some(polled) = feed.polled() {
            self.alone_since = self.alone_since.max(polled);
        }
        // Readers that have this event skip it. Its receivers are the replicas that are subscribed
        // to the session, this one among them unless its subscription may be lost.
        let Some(queued) = queued else { return false };
        let own = u64::from(feed.is_subscribed());
        match generations.store.publish_queued(turn.session, queued).await {
            Ok(receivers) if receivers <= own => {
                self.alone_since + self.limit <= now && generations.queue.is_over_half_full()
            }
            // Another replica has a reader, or nothing is known.
            Ok(_) | Err(_) => {
                self.alone_since = now;
                false
            }
        }
    }
}
