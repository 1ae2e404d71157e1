//! How a running turn learns that it must stop without writing its end.

use std::sync::Arc;

use crate::session::Feed;
use crate::session::store::Turn;

/// The turn stops without writing its end: it was cancelled, or is another replica's.
pub(super) struct Stopped;

/// Resolves when the session's feed has the end of the turn. Cancel-safe.
pub(super) async fn cancelled(feed: &Arc<Feed>, turn: &Turn) {
    loop {
        let changed = feed.events_changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if feed.has_ended(turn.generation) {
            return;
        }
        changed.await;
    }
}
