//! The ways to wait: for a condition, with a limit.

use std::time::{Duration, Instant};

/// The time between two checks of a condition.
const CHECK: Duration = Duration::from_millis(5);

/// Waits until the condition holds and returns true, or returns false once `limit` is over. A check
/// that does not return in time counts as one that failed.
#[cfg(feature = "harness")]
#[must_use = "the condition may not hold"]
pub async fn eventually(limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let checks = async {
        while !condition().await {
            tokio::time::sleep(CHECK).await;
        }
    };
    tokio::time::timeout(limit, checks).await.is_ok()
}

/// Does the same as `eventually` and blocks the thread. The condition is checked at least once.
#[must_use = "the condition may not hold"]
pub fn eventually_blocking(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        pause(CHECK);
    }
}

/// Blocks the thread for this time.
#[expect(clippy::disallowed_methods, reason = "the callers of this crate's blocking part block")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
