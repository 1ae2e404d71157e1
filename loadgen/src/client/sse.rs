//! A client that uses server-sent events: a POST that streams, then GETs that resume.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;

use super::{Client, Outcome, REQUEST_LIMIT, Refusal, Watch, parse};
use crate::checker::{Progress, Turn};
use crate::event::Event;
use crate::event_stream::Lines;
use crate::script::random_uuid;
use crate::tally::count;

/// A limit longer than the time between two heartbeats of the service.
const SILENCE: Duration = Duration::from_secs(20);
/// The time that a response's head may take: the turn is stored before it comes.
pub(super) const HEAD_LIMIT: Duration = Duration::from_secs(8);

/// The ways in which a stream of events ends.
pub(super) enum Ended {
    Turn(Outcome),
    Lost,
}

/// Sends a turn, and reads the answer to its end.
pub async fn turn(client: &mut Client, turn: &mut Turn, watch: &mut Watch) -> Outcome {
    let key = random_uuid(&mut client.random).to_string();
    let mut last_id: Option<String> = None;
    client.attempts = 0;
    client.connected_before = false;
    loop {
        if watch.is_over() {
            return Outcome::Unfinished;
        }
        let request = request(client, turn, &key, last_id.as_deref());
        let limit = if last_id.is_some() { client.patience(HEAD_LIMIT) } else { HEAD_LIMIT };
        let sent = timeout(limit, request.send()).await;
        watch.attempted(matches!(&sent, Ok(Ok(response)) if response.status() == 200));
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => {
                client.error("unreachable");
                client.pause(None).await;
                continue;
            }
            Err(_) => {
                client.error("response_timeout");
                client.pause(None).await;
                continue;
            }
        };
        match response.status().as_u16() {
            200 => {}
            204 => {
                turn.forgotten("204 before its end was delivered");
                return Outcome::Failed("no_content".to_owned());
            }
            _ => {
                let refusal = Refusal::read(response).await;
                client.error(&refusal.code);
                if refusal.is_temporary() {
                    client.pause(refusal.retry_after).await;
                    continue;
                }
                if last_id.is_some() {
                    turn.forgotten(&refusal.code);
                }
                return Outcome::Failed(refusal.code);
            }
        }
        client.counted_connection();
        client.attempts = 0;
        let ended = read(watch, response, |watch, id, data| {
            if id.is_some() {
                last_id = id;
            }
            take(client, turn, watch, &parse(data)?).map(Ended::Turn)
        });
        match ended.await {
            Ended::Turn(outcome) => return outcome,
            Ended::Lost => {
                watch.lost(false);
                client.pause(None).await;
            }
        }
    }
}

fn request(
    client: &mut Client,
    turn: &mut Turn,
    key: &str,
    last_id: Option<&str>,
) -> reqwest::RequestBuilder {
    let base = client.another_replica();
    let session = &client.session;
    if let (Some(generation), Some(id)) = (turn.generation(), last_id) {
        let url =
            format!("{base}/api/v1/chat/sessions/{session}/events?generation_id={generation}");
        return client.named(client.shared.http.get(url)).header("Last-Event-ID", id);
    }
    if turn.sent() > 1 {
        count(&client.shared.tally.counters.resends);
    }
    let (url, mut body) = client.chat(&base, turn);
    body["stream"] = true.into();
    client.named(client.shared.http.post(url)).header("Idempotency-Key", key).json(&body)
}

/// Reads a stream of events, and hands the id and the data of each to `take`, until that returns an end.
pub(super) async fn read(
    watch: &mut Watch,
    response: reqwest::Response,
    mut take: impl FnMut(&mut Watch, Option<String>, &str) -> Option<Ended>,
) -> Ended {
    let mut stream = response.bytes_stream();
    let mut lines = Lines::default();
    while !watch.is_over() {
        let Ok(Some(Ok(bytes))) = timeout(SILENCE, stream.next()).await else {
            return Ended::Lost;
        };
        lines.push(&bytes);
        if lines.is_too_long() {
            return Ended::Turn(Outcome::Failed("line_too_long".to_owned()));
        }
        while let Some((id, data)) = lines.next_data() {
            if let Some(ended) = take(watch, id, &data) {
                if let Ended::Turn(_) = ended {
                    let _ = timeout(REQUEST_LIMIT, stream.next()).await;
                }
                return ended;
            }
        }
    }
    Ended::Lost
}

fn take(client: &Client, turn: &mut Turn, watch: &mut Watch, event: &Event) -> Option<Outcome> {
    if event.kind == "connection" && event.recovered == Some(false) {
        count(&client.shared.tally.counters.unrecovered);
        turn.start_over();
    }
    let progress = turn.take(event);
    client.note(watch, turn, &progress);
    match progress {
        Progress::Complete => Some(Outcome::Complete),
        Progress::Failed(code) => Some(Outcome::Failed(code)),
        _ => None,
    }
}
