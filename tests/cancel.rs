//! A cancel stops a turn from any replica, wherever it runs, and whatever happened to its writer.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};
use support::client::{Socket, get, http, post, send};
use support::eventually;
use support::fleet::Fleet;
use support::host::stat;
use support::process::{LIMIT, Process};
use uuid::Uuid;

const PROMISED: Duration = Duration::from_millis(500);
/// The answer takes 200 s, so that it does not end by itself while the machine is busy.
const LONG: &str = "[[tokens=1000]] go on and on";

async fn fleet() -> Fleet {
    // On a busy machine Redis replies late, which is not the subject of these tests.
    let settings = [("JARVIS_OLLAMA_SLOTS", "256"), ("JARVIS_REDIS_TIMEOUT_MS", "10000")];
    Fleet::start(2, &["--rate", "5", "--slots", "256"], &settings).await
}

impl Fleet {
    async fn running(&self) -> u64 {
        stat(&self.ollama, "running").await
    }

    async fn until_running(&self, wanted: u64, limit: Duration) -> Duration {
        let began = Instant::now();
        let reached = eventually(limit, async || self.running().await == wanted).await;
        assert!(reached, "the model does not run {wanted} turns in time");
        began.elapsed()
    }

    /// Starts a long answer on the first replica, and watches it from the second.
    async fn answering(&self) -> (String, Socket) {
        self.answering_to(&http()).await
    }

    async fn answering_to(&self, client: &reqwest::Client) -> (String, Socket) {
        let session = Uuid::new_v4().to_string();
        let path = format!("/ws?session_id={session}");
        let (mut watching, _) = Socket::open(&self.replicas[1], &path).await;
        let turn = json!({"message": LONG, "session_id": session, "stream": true});
        let asked = client.post(format!("{}/api/v1/chat", self.replicas[0].url)).json(&turn);
        asked.send().await.expect("a stream");
        watching.until("stream_chunk").await;
        (session, watching)
    }

    async fn cancel(&self, replica: usize, session: &str) -> Value {
        self.cancel_by(&http(), replica, session).await
    }

    /// Cancels with an existing client: to create one takes longer than a cancel.
    async fn cancel_by(&self, client: &reqwest::Client, replica: usize, session: &str) -> Value {
        let path = format!("/api/v1/chat/sessions/{session}/cancel");
        let url = format!("{}{path}", self.replicas[replica].url);
        let reply = send(client.post(url).json(&json!({}))).await;
        assert_eq!((reply.status, &reply.body["status"]), (200, &json!("cancelled")));
        reply.body
    }

    async fn answer(&self, session: &str) -> Value {
        let path = format!("/api/v1/chat/sessions/{session}");
        let reply = get(&self.replicas[1], &path).await;
        let messages = reply.body["messages"].as_array().expect("messages");
        assert_eq!(messages.len(), 2, "{messages:?}");
        messages[1].clone()
    }
}

#[tokio::test]
async fn of_two_hundred_cancels_from_another_replica_the_model_stops_for_99_percent_in_time() {
    let fleet = fleet().await;
    let client = http();
    let begun: Vec<_> = (0..200).map(|_| fleet.answering_to(&client)).collect();
    let sessions: Vec<_> = futures_util::stream::iter(begun).buffer_unordered(20).collect().await;
    fleet.until_running(200, LIMIT).await;
    let pulse = Pulse::of(&fleet.replicas[1]);
    let cancels = sessions.iter().map(|(session, _)| async {
        let asked = Instant::now();
        let cancelled = fleet.cancel_by(&client, 1, session).await;
        let closed = cancelled["upstream_closed"] == true;
        (asked.elapsed(), closed)
    });
    let mut done: Vec<(Duration, bool)> =
        futures_util::stream::iter(cancels).buffer_unordered(10).collect().await;
    // On a machine that is busy with other work every step waits for the processor.
    let allowed = PROMISED.max(pulse.stop().await * CANCEL_IN_ROUND_TRIPS);
    let late = fleet.until_running(0, allowed).await;
    done.sort_unstable();
    let (median, p99) = (done[100].0, done[198].0);
    println!(
        "cancel to the word that the upstream is closed: p50 {median:?}, p99 {p99:?}; {late:?}"
    );
    let unclosed = done.iter().filter(|(_, closed)| !closed).count();
    if allowed == PROMISED {
        assert!(unclosed <= 2, "of 200 upstreams {unclosed} were not closed within 500 ms");
    }
    assert!(p99 <= allowed, "p99 {p99:?}, allowed {allowed:?}");
}

/// A cancel passes two replicas, Redis and the host, there and back: the limit in round trips to a
/// replica that calls no other server.
const CANCEL_IN_ROUND_TRIPS: u32 = 10;

/// Sends a replica cheap requests all the time, to measure how busy the machine is.
struct Pulse {
    stop: tokio_util::sync::CancellationToken,
    asking: tokio::task::JoinHandle<Vec<Duration>>,
}

impl Pulse {
    fn of(replica: &Process) -> Self {
        let (stop, url) = (tokio_util::sync::CancellationToken::new(), replica.url.clone());
        let stopped = stop.clone();
        let asking = tokio::spawn(async move {
            let (client, mut took) = (http(), Vec::new());
            while took.is_empty() || !stopped.is_cancelled() {
                let asked = Instant::now();
                let reply = client.get(format!("{url}/health/live")).send().await;
                assert!(reply.is_ok_and(|reply| reply.status() == 200));
                took.push(asked.elapsed());
                // So many as leave the machine to the cancels.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            took
        });
        Self { stop, asking }
    }

    /// Returns the 90th percentile of the round trips.
    async fn stop(self) -> Duration {
        self.stop.cancel();
        let mut took = self.asking.await.expect("round trips");
        took.sort_unstable();
        let p90 = took[(took.len() - 1) * 9 / 10];
        println!("{} round trips beside it: p90 {p90:?}", took.len());
        p90
    }
}

#[tokio::test]
async fn a_cancel_whose_hint_is_lost_stops_the_model_all_the_same() {
    let fleet = fleet().await;
    let (session, _watching) = fleet.answering().await;
    // No hint is delivered from now on.
    fleet.redis.cli(&["ACL", "SETUSER", "jarvis", "-ssubscribe"]);
    fleet.redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    fleet.cancel(1, &session).await;
    fleet.until_running(0, PROMISED).await;
    assert_eq!(fleet.answer(&session).await["status"], "cancelled");
}

#[tokio::test]
async fn a_turn_whose_writer_is_dead_is_cancelled_for_good() {
    let fleet = fleet().await;
    let (session, mut watching) = fleet.answering().await;
    fleet.replicas[0].kill();
    let killed = Instant::now();
    fleet.cancel(1, &session).await;
    assert!(killed.elapsed() < Duration::from_secs(2), "not only when the lease was over");
    let events = watching.until("cancelled").await;
    let text = events.last().expect("an end")["full_response"].clone();
    // A turn of another session shows that the dead replica's turns were looked through.
    let other = json!({"message": "hello", "session_id": Uuid::new_v4()});
    while killed.elapsed() < Duration::from_secs(5) {
        let reply = post(&fleet.replicas[1], "/api/v1/chat", &other).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let answer = fleet.answer(&session).await;
    assert_eq!((&answer["status"], &answer["content"]), (&json!("cancelled"), &text));
    assert_eq!(fleet.running().await, 0);
}
