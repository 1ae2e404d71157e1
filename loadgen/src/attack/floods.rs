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

const CHAT: &str = "/api/v1/chat/";
const MODEL: &str = "tinyllama:latest";
/// The requests of a flood that are under way at the same time, at most.
const AT_ONCE: usize = 64;
/// The time limit of one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// The time that a stream is read for.
const STREAM_LIMIT: Duration = Duration::from_millis(200);
/// The code of a stream's error where the queue has no room.
const REFUSED: &[u8] = b"\"queue_full\"";
/// The large bodies of a flood for each hundred of other requests.
const LARGE_OF_HUNDRED: u32 = 5;
/// The first bytes of an image in base64, and the zeros that follow: nearly as many as a request may
/// bring.
const GIF: &str = "R0lGODlh";
const IMAGE: usize = 4 * 1_398_000;
/// The bytes of a conversation, nearly as many as a request may bring.
const CONVERSATION: usize = 1_000_000;
/// The texts of one request for embeddings.
const TEXTS: usize = 256;
/// The values of a body that nobody reads, of 7 bytes each.
const VALUES: usize = 1_000_000;
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

/// The kind of requests that a flood sends.
#[derive(Clone, Copy, Debug)]
pub enum Flood {
    /// Bodies that are too large, questions that are too long, and turns beyond a share of the queue.
    /// With three replicas each of them goes to one, which bears all of it.
    Refused,
    /// Short turns, each in a new session.
    Sessions,
    /// Turns beyond a share of the queue.
    Queue,
    /// The largest bodies that each API takes: a conversation that is kept, images, texts to embed, and
    /// values that nobody reads.
    Large,
}

/// A flood.
#[derive(Clone, Copy, Debug)]
pub struct FloodPlan {
    /// The kind of requests.
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
    /// The paths and bodies of the largest requests.
    large: [(&'static str, Bytes); 4],
}

impl Bodies {
    fn new() -> Self {
        let image = GIF.to_owned() + &"A".repeat(IMAGE);
        let image = json!({"message": "see", "images": [image]});
        let kept = json!({"model": MODEL, "background": true, "input": [
            {"role": "user", "content": "x".repeat(CONVERSATION)},
            {"role": "user", "content": "[[tokens=1 rate=0]] hello"}]});
        let embed = json!({"model": MODEL, "input": vec!["x".repeat(2_000); TEXTS]});
        let values = vec![r#"{"":0}"#; VALUES].join(",");
        let values = format!(r#"{{"model":"{MODEL}","messages":[],"unknown":[{values}]}}"#);
        Self {
            too_large: Bytes::from(vec![b' '; TOO_LARGE]),
            too_long: body(&"字".repeat(TOO_LONG)),
            large: [
                (CHAT, Bytes::from(image.to_string())),
                ("/v1/responses", Bytes::from(kept.to_string())),
                ("/api/embed", Bytes::from(embed.to_string())),
                ("/v1/chat/completions", Bytes::from(values)),
            ],
        }
    }
}

/// Sends requests at the rate of the plan until the attack is over.
pub async fn run(target: &Target, plan: FloodPlan) {
    let bodies = Arc::new(Bodies::new());
    let per_minute = match plan.flood {
        Flood::Large => plan.per_minute * LARGE_OF_HUNDRED / 100,
        Flood::Refused | Flood::Sessions | Flood::Queue => plan.per_minute,
    };
    let began = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (target, bodies, next) = (target.clone(), Arc::clone(&bodies), Arc::clone(&next));
        workers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let seconds = number as f64 * 60.0 / f64::from(per_minute.max(1));
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
    let mut path = CHAT;
    let (address, body) = match plan.flood {
        Flood::Large => {
            let (of_body, body) = &bodies.large[number % bodies.large.len()];
            path = of_body;
            (plan.addresses.of(number / bodies.large.len()), body.clone())
        }
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
        .post(format!("http://{}{path}", target.replica(number)))
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
            let code = problem["code"].as_str().or(problem["error"]["code"].as_str());
            let code = code.unwrap_or("without a code");
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
