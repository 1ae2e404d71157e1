//! How a running turn learns that it is over without an end of its own.

use std::sync::Arc;

use crate::session::Feed;
use crate::session::store::Turn;

/// Why a turn stops without an end of its own: it was cancelled, or is another replica's.
pub(super) struct Stopped;

/// Resolves when the session's feed says that the turn has ended. Cancel-safe.
pub(super) async fn cancelled(feed: &Arc<Feed>, turn: &Turn) {
    loop {
        let changed = feed.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if feed.has_ended(turn.generation) {
            return;
        }
        changed.await;
    }
}
