//! Measures how long the turns of a killed replica wait for a claim.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::fleet::Fleet;

/// The time between two reads of the open turns, and so the error of the times.
const LOOK: Duration = Duration::from_millis(50);
/// The time after which a turn without a claim counts as abandoned.
const LIMIT: Duration = Duration::from_secs(30);

/// The fate of the turns that a replica held when it was killed.
#[derive(Debug, Default)]
pub struct Claims {
    /// The times from its death to the claims by others.
    pub claimed: Vec<Duration>,
    /// Turns that ended before they were seen under another replica.
    pub ended: usize,
    /// Turns without a claim within the limit.
    pub left: usize,
    /// The generations of all of them.
    pub generations: Vec<String>,
}

/// Watches the index of open turns until the dead replica holds none any more.
pub async fn watch(fleet: &Fleet, dead: &str, died: Instant) -> Claims {
    let mut claims = Claims::default();
    let mut waiting: Option<Vec<String>> = None;
    while died.elapsed() < LIMIT {
        let asked = Instant::now();
        if let Ok(open) = fleet.open_turns().await {
            let open: HashMap<String, String> = open.into_iter().collect();
            let held = waiting.get_or_insert_with(|| {
                let held = open.iter().filter(|(_, holder)| *holder == dead);
                let held: Vec<String> = held.map(|(turn, _)| turn.clone()).collect();
                let generations = held.iter().filter_map(|turn| turn.split_once(' '));
                claims.generations =
                    generations.map(|(_, generation)| generation.to_owned()).collect();
                held
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
