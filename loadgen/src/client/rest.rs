//! A client that uses plain requests, which it repeats with their key.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::{Client, Outcome, Refusal, Watch};
use crate::checker::{Progress, Turn};
use crate::script::random_uuid;
use crate::tally::count;

/// The time limit of one attempt.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(40);
/// The number of equal refusals in a row that end the turn.
const REFUSALS: u32 = 6;

#[derive(Deserialize)]
struct Answer {
    response: String,
    finish_reason: Option<String>,
    generation_id: String,
}

/// Sends a turn, and waits for the whole answer.
pub async fn turn(client: &mut Client, turn: &mut Turn, watch: &mut Watch) -> Outcome {
    let key = random_uuid(&mut client.random).to_string();
    let mut refused = (String::new(), 0);
    client.attempts = 0;
    loop {
        let left = watch.limit.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Outcome::Unfinished;
        }
        let base = client.another_replica();
        if turn.sent() > 1 {
            count(&client.shared.tally.counters.resends);
        }
        let (url, body) = client.chat(&base, turn);
        let request = client
            .named(client.shared.http.post(url))
            .header("Idempotency-Key", &key)
            .timeout(left.min(ATTEMPT_LIMIT))
            .json(&body);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                client.error(if error.is_timeout() { "response_timeout" } else { "unreachable" });
                watch.lost(false);
                client.pause(None).await;
                continue;
            }
        };
        if response.status().is_success() {
            let Ok(answer) = response.json::<Answer>().await else {
                client.error("body_lost");
                watch.lost(false);
                client.pause(None).await;
                continue;
            };
            turn.is_generation(answer.generation_id);
            turn.take_whole(&answer.response, answer.finish_reason.as_deref());
            client.note(watch, turn, &Progress::Complete);
            return Outcome::Complete;
        }
        let refusal = Refusal::read(response).await;
        client.error(&refusal.code);
        refused = if refused.0 == refusal.code {
            (refused.0, refused.1 + 1)
        } else {
            (refusal.code.clone(), 1)
        };
        if !refusal.is_temporary() || (refusal.code != "timeout" && refused.1 >= REFUSALS) {
            return Outcome::Failed(refusal.code);
        }
        client.pause(refusal.retry_after).await;
    }
}
