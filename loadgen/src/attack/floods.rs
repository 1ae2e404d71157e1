//! Floods of whole requests at a rate: requests that are refused, new anonymous sessions, and turns
//! that fill the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::target::{Addresses, Target};

/// The requests of a flood that are under way at the same time, at most.
const AT_ONCE: usize = 64;
/// The time limit of one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// The time that a stream is read for.
const STREAM_LIMIT: Duration = Duration::from_millis(200);
/// The code of a stream's error where the queue has no room.
const REFUSED: &[u8] = b"\"queue_full\"";
/// A body beyond the bound of 512 KiB.
const TOO_LARGE: usize = 600 << 10;
/// The characters of a message within the bound of characters that fits in no context.
const TOO_LONG: usize = 32_000;
/// The running turns that an address may have in the fleet under attack.
pub const ADDRESS_TURNS: usize = 8;
/// The waiting turns that an address may have there.
pub const QUEUE_SHARE: usize = 20;
/// The addresses that fill their shares of the queue, each with 503 for what is beyond.
pub const QUEUE_ADDRESSES: usize = 12;

/// What a flood sends.
#[derive(Clone, Copy, Debug)]
pub enum Flood {
    /// Bodies that are too large, questions that are too long, and turns beyond a share of the queue.
    /// With three replicas each of them goes to one, which bears all of it.
    Refused,
    /// Short turns, each in a new session.
    Sessions,
    /// Turns beyond a share of the queue.
    Queue,
}

/// A flood.
#[derive(Clone, Copy, Debug)]
pub struct FloodPlan {
    /// What is sent.
    pub flood: Flood,
    /// The requests a minute.
    pub per_minute: u32,
    /// The addresses of the attackers.
    pub addresses: Addresses,
}

/// The bodies of the requests, made once.
struct Bodies {
    too_large: Bytes,
    too_long: Bytes,
}

/// Sends requests at the rate of the plan until the attack is over.
pub async fn run(target: &Target, plan: FloodPlan) {
    let bodies = Arc::new(Bodies {
        too_large: Bytes::from(vec![b' '; TOO_LARGE]),
        too_long: body(&"字".repeat(TOO_LONG)),
    });
    let began = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (target, bodies, next) = (target.clone(), Arc::clone(&bodies), Arc::clone(&next));
        workers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let seconds = number as f64 * 60.0 / f64::from(plan.per_minute.max(1));
                let at = began + Duration::from_secs_f64(seconds);
                if at >= target.until {
                    return;
                }
                sleep_until(at).await;
                send(&target, plan, &bodies, number).await;
            }
        });
    }
    while workers.join_next().await.is_some() {}
}

async fn send(target: &Target, plan: FloodPlan, bodies: &Bodies, number: usize) {
    let (address, body) = match plan.flood {
        Flood::Sessions => (plan.addresses.of(number), body("[[tokens=1 rate=0]] hello")),
        Flood::Refused if number.is_multiple_of(3) => {
            (plan.addresses.of(number / 3), bodies.too_large.clone())
        }
        Flood::Refused if number % 3 == 1 => {
            (plan.addresses.of(number / 3), bodies.too_long.clone())
        }
        Flood::Refused => {
            let count = plan.addresses.count.min(QUEUE_ADDRESSES);
            turn(target, Addresses { count, ..plan.addresses }, number / 3)
        }
        Flood::Queue => turn(target, plan.addresses, number),
    };
    let limit = (Instant::now() + REQUEST_LIMIT).min(target.until + REQUEST_LIMIT);
    let request = target
        .http
        .post(format!("http://{}/api/v1/chat/", target.replica(number)))
        .header("x-forwarded-for", address)
        .header("content-type", "application/json")
        .body(body)
        .send();
    match timeout_at(limit, request).await {
        Ok(Ok(response)) => {
            let status = response.status();
            if status.is_success() {
                target.saw(accepted(response).await);
                return;
            }
            let problem = timeout_at(limit, response.json::<Value>()).await;
            let problem = problem.ok().and_then(Result::ok).unwrap_or_default();
            let code = problem["code"].as_str().unwrap_or("without a code");
            target.saw(&format!("{} {code}", status.as_u16()));
        }
        Ok(Err(_)) => target.saw("connection lost"),
        Err(_) => target.saw("no response in time"),
    }
}

/// Returns how a response of status 200 goes on. A stream is dropped soon, and its turn goes on
/// without it.
async fn accepted(mut response: reqwest::Response) -> &'static str {
    let refused = async {
        let mut received = Vec::new();
        while let Ok(Some(bytes)) = response.chunk().await {
            received.extend_from_slice(&bytes);
            if received.windows(REFUSED.len()).any(|part| part == REFUSED) {
                return true;
            }
        }
        false
    };
    match timeout(STREAM_LIMIT, refused).await {
        Ok(true) => "200, then queue_full",
        _ => "200",
    }
}

/// Returns the address and body of a turn that nobody follows. The first turns of an address run
/// until the attack is over; the others wait behind them and then end at once, so that nothing is
/// left of an attack when the next one begins.
fn turn(target: &Target, addresses: Addresses, number: usize) -> (String, Bytes) {
    let left = target.until.saturating_duration_since(Instant::now()).as_secs() + 1;
    let is_long = number / addresses.count < ADDRESS_TURNS;
    let (tokens, rate) = if is_long { (left, 1) } else { (1, 0) };
    let message = format!("[[tokens={tokens} rate={rate}]] hello");
    let body = json!({"message": message, "stream": true}).to_string();
    (addresses.of(number), Bytes::from(body))
}

fn body(message: &str) -> Bytes {
    Bytes::from(json!({"message": message}).to_string())
}
