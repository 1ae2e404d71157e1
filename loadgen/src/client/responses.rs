//! A client of OpenAI's responses: a POST in the background, then GETs that resume after the last
//! number, and at the end one that retrieves the response, and others that stream it again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::sse::{Ended, HEAD_LIMIT, read};
use super::{Client, Outcome, REQUEST_LIMIT, Refusal, Watch};
use crate::checker::{Flaw, Progress, Turn};
use crate::event::Event;
use crate::script::random_uuid;
use crate::tally::count;

/// The time that a response which has ended may take to be retrieved.
const RETRIEVE_LIMIT: Duration = Duration::from_mins(1);
/// One response in so many is streamed again after every one of its events, beginning with the first one.
const WHOLE_EVERY: u64 = 10;

/// An event of a response, as far as this client has to understand it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResponseEvent {
    #[serde(rename = "type")]
    kind: String,
    sequence_number: u64,
    delta: String,
    code: Option<String>,
    response: Option<Value>,
}

/// How far the client has read a response.
#[derive(Default)]
struct Reading {
    id: Option<String>,
    /// The number of the last event.
    last: Option<u64>,
    /// The bytes of text so far.
    bytes: usize,
    /// The events so far, where they are compared at the end.
    events: Vec<Value>,
}

/// Creates a response, reads its events to the end, and compares them with what is retrieved.
pub async fn turn(client: &mut Client, turn: &mut Turn, watch: &mut Watch) -> Outcome {
    let key = random_uuid(&mut client.random).to_string();
    let mut reading = Reading::default();
    client.attempts = 0;
    client.connected_before = false;
    loop {
        if watch.is_over() {
            return Outcome::Unfinished;
        }
        let request = request(client, turn, &key, &reading);
        let limit = if reading.id.is_some() { client.patience(HEAD_LIMIT) } else { HEAD_LIMIT };
        let sent = timeout(limit, request.send()).await;
        watch.attempted(matches!(&sent, Ok(Ok(response)) if response.status() == 200));
        let response = match sent {
            Ok(Ok(response)) => response,
            failed => {
                client.error(if failed.is_ok() { "unreachable" } else { "response_timeout" });
                client.pause(None).await;
                continue;
            }
        };
        if response.status() != 200 {
            let refusal = Refusal::read(response).await;
            client.error(&refusal.code);
            if refusal.code == "answer_restarted" {
                start_over(client, turn, &mut reading);
            } else if refusal.is_temporary() {
                client.pause(refusal.retry_after).await;
            } else {
                if reading.id.is_some() {
                    turn.forgotten(&refusal.code);
                }
                return Outcome::Failed(refusal.code);
            }
            continue;
        }
        client.counted_connection();
        client.attempts = 0;
        let ended = read(watch, response, |watch, _, data| {
            let event: ResponseEvent = serde_json::from_str(data).ok()?;
            if client.shared.options.resumes > 0 && event.kind != "error" {
                reading.events.push(serde_json::from_str(data).ok()?);
            }
            take(client, turn, watch, &mut reading, &event)
        });
        match ended.await {
            Ended::Turn(Outcome::Complete) => {
                let id = reading.id.clone().unwrap_or_default();
                let outcome = compare_retrieved(client, turn, &id).await;
                compare_resumed(client, turn, watch, &id, &reading.events).await;
                return outcome;
            }
            Ended::Turn(outcome) => return outcome,
            Ended::Lost => {
                watch.lost(false);
                client.pause(None).await;
            }
        }
    }
}

/// Expects all text again, because the answer has started again.
fn start_over(client: &Client, turn: &mut Turn, reading: &mut Reading) {
    count(&client.shared.tally.counters.restarts);
    turn.start_over();
    *reading = Reading { id: reading.id.take(), ..Reading::default() };
}

fn request(
    client: &mut Client,
    turn: &mut Turn,
    key: &str,
    reading: &Reading,
) -> reqwest::RequestBuilder {
    let base = client.another_replica();
    if let Some(id) = &reading.id {
        let after = reading.last.map(|last| format!("&starting_after={last}"));
        let after = after.unwrap_or_default();
        let url = format!("{base}/v1/responses/{id}?stream=true{after}");
        return client.named(client.shared.http.get(url));
    }
    if turn.sent() > 1 {
        count(&client.shared.tally.counters.resends);
    }
    let body = json!({"input": turn.prompt(), "model": client.shared.options.script.model,
        "background": true, "stream": true});
    client
        .named(client.shared.http.post(format!("{base}/v1/responses")))
        .header("Idempotency-Key", key)
        .json(&body)
}

fn take(
    client: &mut Client,
    turn: &mut Turn,
    watch: &mut Watch,
    reading: &mut Reading,
    event: &ResponseEvent,
) -> Option<Ended> {
    if event.kind == "error" {
        // The response goes on: what ends with an error is this stream of its events.
        let code = event.code.clone().unwrap_or_default();
        client.error(&code);
        if matches!(&*code, "upstream_interrupted" | "answer_restarted") {
            start_over(client, turn, reading);
        }
        return Some(Ended::Lost);
    }
    number(client, turn, reading, event.sequence_number);
    let progress = match event.kind.as_str() {
        "response.created" => {
            let id = event.response.as_ref().and_then(|response| response["id"].as_str());
            if let Some(id) = id {
                id.clone_into(&mut client.session);
                reading.id = Some(id.to_owned());
            }
            turn.take(&of_kind("message_received"))
        }
        "response.in_progress" => turn.take(&of_kind("stream_start")),
        "response.output_text.delta" => {
            let offset = reading.bytes;
            reading.bytes += event.delta.len();
            let content = Some(event.delta.clone());
            turn.take(&Event { content, offset: Some(offset), ..of_kind("stream_chunk") })
        }
        "response.output_text.done" => {
            turn.take(&Event { done: Some(true), ..of_kind("stream_chunk") })
        }
        "response.completed" => {
            let response = event.response.as_ref();
            let full_response = response.and_then(text_of).map(str::to_owned);
            let finish_reason = Some("stop".to_owned());
            turn.take(&Event { full_response, finish_reason, ..of_kind("stream_end") })
        }
        "response.failed" | "response.incomplete" => {
            let response = event.response.as_ref();
            let code = response.and_then(|response| response["error"]["type"].as_str());
            let code = Some(code.unwrap_or(&event.kind).to_owned());
            turn.take(&Event { code, ..of_kind("error") })
        }
        _ => Progress::None,
    };
    client.note(watch, turn, &progress);
    match progress {
        Progress::Complete => Some(Ended::Turn(Outcome::Complete)),
        Progress::Failed(code) => Some(Ended::Turn(Outcome::Failed(code))),
        _ => None,
    }
}

fn of_kind(kind: &str) -> Event {
    Event { kind: kind.to_owned(), ..Event::default() }
}

/// Checks that an event has the number after the last one. The numbers from 2 on leap by a million
/// each time that an answer starts again.
fn number(client: &Client, turn: &Turn, reading: &mut Reading, number: u64) {
    const LEAP: u64 = 1_000_000;
    let last = reading.last.replace(number);
    let wanted = last.map_or(0, |last| last + 1);
    let is_leap = wanted == 2 && number > LEAP && number % LEAP == 2;
    if number != wanted && !is_leap {
        let flaw = Flaw::Reordered(format!("event {number} after {last:?}"));
        let tally = &client.shared.tally;
        tally.flaw(client.name, &client.session, turn.generation(), &flaw);
    }
}

fn text_of(response: &Value) -> Option<&str> {
    response["output"][0]["content"][0]["text"].as_str()
}

/// Retrieves a response that has ended, from another replica.
async fn compare_retrieved(client: &mut Client, turn: &mut Turn, id: &str) -> Outcome {
    let retrieved = timeout(RETRIEVE_LIMIT, async {
        loop {
            let url = format!("{}/v1/responses/{id}", client.another_replica());
            let request = client.named(client.shared.http.get(url)).timeout(REQUEST_LIMIT);
            let mut asked = None;
            match request.send().await {
                Ok(response) if response.status().is_success() => {
                    let read = response.json::<Value>().await;
                    // A failover may have lost the end, which its writer then writes again.
                    let is_open =
                        |it: &Value| it["status"] == "queued" || it["status"] == "in_progress";
                    if let Some(response) = read.ok().filter(|it| !is_open(it)) {
                        return Ok(response);
                    }
                }
                Ok(response) => {
                    let refusal = Refusal::read(response).await;
                    client.error(&format!("retrieve:{}", refusal.code));
                    if !refusal.is_temporary() {
                        return Err(refusal.code);
                    }
                    asked = refusal.retry_after;
                }
                Err(_) => client.error("retrieve:unreachable"),
            }
            client.pause(asked).await;
        }
    });
    match retrieved.await {
        Ok(Ok(response)) => {
            let finish_reason = (response["status"] == "completed").then_some("stop");
            turn.take_whole(text_of(&response).unwrap_or_default(), finish_reason);
            count(&client.shared.tally.counters.histories);
        }
        Ok(Err(code)) => turn.forgotten(&format!("the response: {code}")),
        Err(_) => turn.forgotten("the response could not be retrieved"),
    }
    client.flaws(turn);
    Outcome::Complete
}

/// Streams a response that has ended again, after some of its events or after every one, each time from
/// another replica, and compares what follows with what came before.
async fn compare_resumed(
    client: &mut Client,
    turn: &Turn,
    watch: &mut Watch,
    id: &str,
    events: &[Value],
) {
    let some = client.shared.options.resumes;
    // Nothing comes after the last event.
    let last = events.len().saturating_sub(1);
    if some == 0 || last == 0 {
        return;
    }
    let tally = Arc::clone(&client.shared.tally);
    let number = tally.counters.replayed_responses.fetch_add(1, Ordering::Relaxed);
    let is_whole = number.is_multiple_of(WHOLE_EVERY);
    let places: Vec<usize> = if is_whole {
        (0..last).collect()
    } else {
        (0..some).map(|_| client.random.random_range(0..last)).collect()
    };
    for at in places {
        client.attempts = 0;
        let after = &events[at]["sequence_number"];
        let resumed = timeout(RETRIEVE_LIMIT, resumed(client, watch, id, after)).await;
        let wanted = &events[at + 1..];
        let difference = match resumed {
            // The time of the turn is over.
            Ok(None) => return,
            Ok(Some(again)) => {
                count(&tally.counters.replays);
                if again == wanted {
                    continue;
                }
                let place =
                    again.iter().zip(wanted).take_while(|(one, other)| one == other).count();
                format!(
                    "event {place} of {} after number {after} was {:?}, and is {:?} of {} now",
                    wanted.len(),
                    wanted.get(place),
                    again.get(place),
                    again.len()
                )
            }
            Err(_) => format!("it could not be streamed again after number {after}"),
        };
        tally.flaw(client.name, &client.session, turn.generation(), &Flaw::Wrong(difference));
    }
    if is_whole {
        count(&tally.counters.whole_replays);
    }
}

/// Returns the events of a response that has ended after one of its numbers, however often that has to be
/// asked for; none where the time of the turn is over.
async fn resumed(
    client: &mut Client,
    watch: &mut Watch,
    id: &str,
    after: &Value,
) -> Option<Vec<Value>> {
    loop {
        if watch.is_over() {
            return None;
        }
        let base = client.another_replica();
        let url = format!("{base}/v1/responses/{id}?stream=true&starting_after={after}");
        let sent = client.named(client.shared.http.get(url)).send();
        match timeout(client.patience(HEAD_LIMIT), sent).await {
            Ok(Ok(response)) if response.status().is_success() => {
                let mut events: Vec<Value> = Vec::new();
                let mut is_whole = true;
                let ended = read(watch, response, |_, _, data| {
                    let event: Value = serde_json::from_str(data).ok()?;
                    is_whole &= event["type"] != "error";
                    events.push(event);
                    None
                });
                // The last event of a response has the response.
                ended.await;
                let last = events.last().map(|event| event["response"]["status"].clone());
                let is_at_end = last.is_some_and(|status| status == "completed");
                if is_whole && is_at_end {
                    return Some(events);
                }
                client.error("resume:broken");
            }
            Ok(Ok(response)) => {
                client.error(&format!("resume:{}", Refusal::read(response).await.code));
            }
            _ => client.error("resume:unreachable"),
        }
        client.pause(None).await;
    }
}
