//! How long the turns of a killed replica are nobody's.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::fleet::Fleet;

/// Between two looks at the open turns: how exact the times are.
const LOOK: Duration = Duration::from_millis(50);
/// A turn that nobody has claimed by then counts as left.
const LIMIT: Duration = Duration::from_secs(30);

/// What became of the turns that a replica held when it was killed.
#[derive(Debug, Default)]
pub struct Claims {
    /// Times from its death to the claims by others.
    pub claimed: Vec<Duration>,
    /// Turns that ended without being seen in another's name.
    pub ended: usize,
    /// Turns that nobody claimed within the limit.
    pub left: usize,
}

/// Watches the index of open turns until none is in the name of the dead any more.
pub async fn watch(fleet: &Fleet, dead: &str, died: Instant) -> Claims {
    let mut claims = Claims::default();
    let mut waiting: Option<Vec<String>> = None;
    while died.elapsed() < LIMIT {
        let asked = Instant::now();
        if let Ok(open) = fleet.open_turns().await {
            let open: HashMap<String, String> = open.into_iter().collect();
            let held = waiting.get_or_insert_with(|| {
                open.iter()
                    .filter(|(_, holder)| *holder == dead)
                    .map(|(turn, _)| turn.clone())
                    .collect()
            });
            held.retain(|turn| match open.get(turn) {
                Some(holder) if holder == dead => true,
                Some(_) => {
                    claims.claimed.push(asked - died);
                    false
                }
                None => {
                    claims.ended += 1;
                    false
                }
            });
            if held.is_empty() {
                return claims;
            }
        }
        sleep(LOOK).await;
    }
    claims.left = waiting.map_or(0, |held| held.len());
    claims
}
