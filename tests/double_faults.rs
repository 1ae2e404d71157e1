//! A failover of Redis that loses something together with the replica that would restore it.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::client::{
    Socket, chat, get, history, history_until, http, post, send, until_ok, with,
};
use support::eventually;
use support::fleet::ready_replicas;
use support::host::stat;
use support::metrics::{metrics, settled_copies, until_metric, until_metric_line};
use support::process::{LIMIT, Process, ollama_sim};
use support::redis::{RedisSentinels, RedisServer};
use uuid::Uuid;

const MODEL: &str = "tinyllama:latest";

struct Fleet {
    redis: RedisServer,
    ollama: Process,
    replicas: Vec<Process>,
    session: String,
}

impl Fleet {
    /// Starts three replicas, each of which sends its copies to another one.
    async fn at_rate(rate: &str) -> Self {
        Self::with(&["--rate", rate], &[]).await
    }

    /// Does so with a context window for any conversation.
    async fn with_large_window() -> Self {
        let host = ["--rate", "20000", "--model-ctx", "200000"];
        Self::with(&host, &[("JARVIS_NUM_CTX", "200000")]).await
    }

    async fn with(host: &[&str], settings: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start();
        let ollama = ollama_sim(host);
        let replicas = ready_replicas(3, &redis.url(), &ollama.url, settings).await;
        for replica in &replicas {
            let sends = eventually(LIMIT, async || {
                let session = Uuid::new_v4().to_string();
                assert_eq!(chat(replica, &session, "[[tokens=1]] warm").await.status, 200);
                settled_copies(replica).await > 0
            });
            assert!(sends.await, "{}", metrics(replica).await);
        }
        Self { redis, ollama, replicas, session: Uuid::new_v4().to_string() }
    }

    async fn socket(&self, replica: usize) -> Socket {
        let path = format!("/ws?session_id={}", self.session);
        Socket::open(&self.replicas[replica], &path).await.0
    }

    /// Opens a socket once Redis is back: it is away for a moment, and so is the service.
    async fn socket_after_outage(&self, replica: usize) -> Socket {
        let (path, mut socket) = (format!("/ws?session_id={}", self.session), None);
        let is_open = eventually(LIMIT, async || {
            socket = Socket::open_with(&self.replicas[replica], &path, &[]).await.ok();
            socket.is_some()
        });
        assert!(is_open.await, "no handshake");
        socket.expect("a socket").0
    }

    /// Does what is to be lost, waits until a replica has `copies` of it, and then loses it together
    /// with the replica that did it.
    async fn lose<T>(&self, replica: usize, copies: u64, act: impl AsyncFnOnce() -> T) -> T {
        let before = settled_copies(&self.replicas[replica]).await;
        let act_and_send = async || {
            let done = act().await;
            let are_sent = eventually(LIMIT, async || {
                settled_copies(&self.replicas[replica]).await >= before + copies
            });
            assert!(are_sent.await, "{}", metrics(&self.replicas[replica]).await);
            done
        };
        self.lose_at_once(replica, act_and_send).await
    }

    /// Does what is to be lost, and then loses it together with the replica that did it.
    async fn lose_at_once<T>(&self, replica: usize, act: impl AsyncFnOnce() -> T) -> T {
        self.redis.remember();
        let done = act().await;
        self.replicas[replica].kill();
        self.redis.lose_what_came_since();
        done
    }

    /// Waits until the first replica has given up the copy of something because of its size.
    async fn until_too_large(&self) {
        let line = "jarvis_redo_copies_total{outcome=\"dropped\"} 1";
        until_metric_line(&self.replicas[0], line).await;
    }

    /// Has the first replica begin a turn with this question, loses both, and repeats the request at the
    /// second one, which `then` may start. The turn is gone, and its key starts a new one.
    async fn costs_the_turn(
        &self,
        question: &str,
        begun: impl AsyncFnOnce(),
        then: impl AsyncFnOnce(),
    ) {
        let key = Uuid::new_v4().to_string();
        let request = json!({"model": MODEL, "stream": true, "temperature": 0,
            "messages": [{"role": "user", "content": question}]});
        let ask = |replica: usize, request: Value| {
            let url = format!("{}/v1/chat/completions", self.replicas[replica].url);
            http().post(url).header("idempotency-key", &key).json(&request)
        };
        let lost = self.lose_at_once(0, async || {
            let mut response = ask(0, request.clone()).send().await.expect("a response");
            let mut text = String::new();
            while !text.contains("content\":\"") || !text.contains("\"id\"") {
                let chunk = response.chunk().await.expect("a chunk").expect("more");
                text.push_str(&String::from_utf8_lossy(&chunk));
            }
            begun().await;
            let chunk = text.lines().find_map(|line| line.strip_prefix("data: "));
            let chunk: Value = serde_json::from_str(chunk.expect("a chunk")).expect("JSON");
            chunk["id"].clone()
        });
        let lost = lost.await;
        assert!(lost.is_string(), "{lost}");
        then().await;
        // The host of the dead replica stops, and no other replica goes on with its turn.
        let stopped = eventually(LIMIT, async || stat(&self.ollama, "running").await == 0).await;
        assert!(stopped, "the lost turn runs");
        let started = stat(&self.ollama, "started").await;
        let mut repeated = None;
        let answered = eventually(LIMIT, async || {
            let reply = send(ask(1, with(request.clone(), "stream", json!(false)))).await;
            let is_whole = reply.status == 200;
            repeated = Some(reply.body);
            is_whole
        });
        assert!(answered.await, "{repeated:?}");
        let repeated = repeated.expect("a reply");
        assert_eq!(repeated["choices"][0]["message"]["content"], expected(question).as_str());
        assert_eq!(stat(&self.ollama, "started").await, started + 1, "it was answered once");
    }

    async fn history(&self) -> Vec<Value> {
        history(&self.replicas[1], &self.session).await
    }

    async fn history_until(&self, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        history_until(&self.replicas[1], &self.session, wanted).await
    }
}

/// Returns the key of a session.
fn key(session: &str) -> String {
    jarvis::session::store::channel(session.parse().expect("a session"))
}

fn expected(message: &str) -> String {
    ollama_sim::script_answer(MODEL, message, None, 64)
}

#[tokio::test]
async fn a_failover_that_lost_a_turn_together_with_its_replica_does_not_lose_turn_or_key() {
    let fleet = Fleet::at_rate("60").await;
    let (mut asking, mut watching) = (fleet.socket(0).await, fleet.socket(1).await);
    let message = "[[tokens=120]] whole";
    let request = json!({"type": "chat", "message": message, "message_id": "once"});
    let before = fleet
        .lose(0, 1, async || {
            asking.say(&request).await;
            watching.until("stream_chunk").await
        })
        .await;
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(history[0]["content"], message);
    assert_eq!(history[1]["content"], expected(message).as_str());
    assert_eq!(history[1]["status"], "complete");
    // It is the turn that was acknowledged, and not another one with the same question.
    let received = before.iter().find(|event| event["type"] == "message_received");
    let generation = &received.expect("an acknowledgement")["generation_id"];
    assert_eq!(&history[1]["generation_id"], generation);
    // A repeat finds it by its key.
    let mut again = fleet.socket(2).await;
    again.say(&request).await;
    let events = again.until("stream_end").await;
    assert_eq!(&events.last().expect("an end")["generation_id"], generation);
    assert_eq!(fleet.history().await.len(), 2);
}

#[tokio::test]
async fn a_failover_that_lost_the_end_of_a_turn_together_with_its_writer_keeps_that_end() {
    let fleet = Fleet::at_rate("100").await;
    let (mut asking, mut watching) = (fleet.socket(0).await, fleet.socket(1).await);
    let message = "[[tokens=60]] the end";
    asking.say(&json!({"type": "chat", "message": message})).await;
    watching.until("stream_chunk").await;
    let delivered = fleet.lose(0, 1, async || watching.until("stream_end").await).await;
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    let end = delivered.last().expect("an end");
    assert_eq!(history[1]["content"], expected(message).as_str());
    assert_eq!(history[1]["timestamp"], end["timestamp"], "the end that was delivered");
    assert_eq!(history[1]["writers"], 1, "no other replica ended the answer");
    // The session takes the next turn.
    assert_eq!(chat(&fleet.replicas[2], &fleet.session, "and on").await.status, 200);
}

#[tokio::test]
async fn a_failover_that_lost_a_turn_with_its_end_and_its_writer_keeps_both() {
    let fleet = Fleet::at_rate("200").await;
    let message = "[[tokens=30]] all of it";
    let started = async || stat(&fleet.ollama, "started").await;
    let reply = fleet.lose(0, 2, async || chat(&fleet.replicas[0], &fleet.session, message).await);
    let reply = reply.await;
    let before = started().await;
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(history[1]["content"], reply.body["response"]);
    assert_eq!(history[1]["generation_id"], reply.body["generation_id"]);
    assert_eq!(history[1]["timestamp"], reply.body["timestamp"]);
    assert_eq!(started().await, before, "it was not generated again");
}

#[tokio::test]
async fn an_end_that_is_too_large_for_a_copy_costs_its_text_but_the_answer_is_continued() {
    let fleet = Fleet::with_large_window().await;
    let (mut asking, mut watching) = (fleet.socket(0).await, fleet.socket(1).await);
    let message = "[[tokens=60000]] at length";
    asking.say(&json!({"type": "chat", "message": message, "max_tokens": 60000})).await;
    watching.until("stream_chunk").await;
    let delivered = fleet.lose_at_once(0, async || {
        let events = watching.until("stream_end").await;
        fleet.until_too_large().await;
        events
    });
    let delivered = delivered.await.pop().expect("an end");
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(delivered["full_response"], expected(message).as_str());
    assert_eq!(history[1]["content"], delivered["full_response"]);
    assert_eq!(history[1]["writers"], 2, "the text after the failover's was made again");
    assert_ne!(history[1]["timestamp"], delivered["timestamp"], "the end is another one");
}

#[tokio::test]
async fn a_turn_that_is_too_large_for_a_copy_is_lost_with_its_replica_and_starts_again_by_its_key()
{
    let fleet = Fleet::with_large_window().await;
    let question = format!("[[tokens=400 rate=20]] {}", "word ".repeat(60_000));
    fleet.costs_the_turn(&question, async || fleet.until_too_large().await, async || {}).await;
}

#[tokio::test]
async fn a_turn_of_the_only_replica_is_lost_with_it_and_starts_again_by_its_key() {
    let fleet = Fleet::with_large_window().await;
    for replica in &fleet.replicas[1..] {
        replica.kill();
    }
    // Nobody is left to take a copy, and then no more are sent.
    let copies = async || {
        let text = metrics(&fleet.replicas[0]).await;
        let lines = text.lines().filter(|line| line.starts_with("jarvis_redo_copies_total"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let is_alone = eventually(LIMIT, async || {
        settled_copies(&fleet.replicas[0]).await;
        let before = copies().await;
        let session = Uuid::new_v4().to_string();
        let reply = chat(&fleet.replicas[0], &session, "[[tokens=1]] warm").await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        copies().await == before
    });
    assert!(is_alone.await, "{}", copies().await);
    let back = async || {
        fleet.replicas[1].restart().expect("a replica");
        until_ok(&fleet.replicas[1], "/health/ready").await;
    };
    fleet.costs_the_turn("[[tokens=400 rate=20]] alone", async || {}, back).await;
}

#[tokio::test]
async fn a_failover_that_lost_a_cancel_together_with_its_replica_does_not_bring_the_answer_back() {
    let fleet = Fleet::at_rate("60").await;
    let mut asking = fleet.socket(1).await;
    asking.say(&json!({"type": "chat", "message": "[[tokens=2000]] stop"})).await;
    asking.until("stream_chunk").await;
    let path = format!("/api/v1/chat/sessions/{}/cancel", fleet.session);
    fleet
        .lose(0, 1, async || {
            assert_eq!(post(&fleet.replicas[0], &path, &json!({})).await.status, 200);
            asking.until("cancelled").await;
        })
        .await;
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(history[1]["status"], "cancelled");
    assert_eq!(stat(&fleet.ollama, "running").await, 0);
}

#[tokio::test]
async fn a_failover_that_lost_a_delete_together_with_its_replica_does_not_bring_the_session_back() {
    let fleet = Fleet::at_rate("200").await;
    assert_eq!(chat(&fleet.replicas[1], &fleet.session, "[[tokens=3]] secret").await.status, 200);
    let path = format!("/api/v1/chat/sessions/{}", fleet.session);
    fleet
        .lose(0, 1, async || {
            let deleted = send(http().delete(format!("{}{path}", fleet.replicas[0].url))).await;
            assert_eq!(deleted.status, 200, "{}", deleted.body);
        })
        .await;
    let is_gone = eventually(LIMIT, async || get(&fleet.replicas[1], &path).await.status == 404);
    assert!(is_gone.await, "the session is back");
    // Nothing that is applied later brings it back either.
    let reply = chat(&fleet.replicas[2], &fleet.session, "[[tokens=3]] anew").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(history[0]["content"], "[[tokens=3]] anew");
}

// The cost that two faults at once still have, and no more.

#[tokio::test]
async fn a_failover_that_lost_a_cancel_and_the_last_pieces_before_it_keeps_the_shorter_text() {
    let fleet = Fleet::at_rate("60").await;
    let (mut asking, mut watching) = (fleet.socket(0).await, fleet.socket(1).await);
    asking.say(&json!({"type": "chat", "message": "[[tokens=2000]] stop"})).await;
    watching.until("stream_chunk").await;
    fleet.redis.remember();
    for _ in 0..30 {
        watching.event().await;
    }
    let path = format!("/api/v1/chat/sessions/{}/cancel", fleet.session);
    assert_eq!(post(&fleet.replicas[1], &path, &json!({})).await.status, 200);
    asking.until("cancelled").await;
    let delivered = fleet.history().await[1]["content"].clone();
    fleet.redis.lose_what_came_since();
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(history[1]["status"], "cancelled");
    let (delivered, kept) = (delivered.as_str().unwrap(), history[1]["content"].as_str().unwrap());
    assert!(delivered.starts_with(kept) && kept.len() < delivered.len(), "{kept:?} {delivered:?}");
}

#[tokio::test]
async fn a_failover_that_lost_a_whole_turn_and_its_cancel_leaves_nothing_of_it() {
    let fleet = Fleet::at_rate("60").await;
    assert_eq!(chat(&fleet.replicas[1], &fleet.session, "[[tokens=3]] before").await.status, 200);
    let mut asking = fleet.socket(0).await;
    fleet.redis.remember();
    asking.say(&json!({"type": "chat", "message": "[[tokens=2000]] stop"})).await;
    let events = asking.until("stream_chunk").await;
    let generation = events.last().expect("a piece")["generation_id"].clone();
    let path = format!("/api/v1/chat/sessions/{}/cancel", fleet.session);
    assert_eq!(post(&fleet.replicas[1], &path, &json!({})).await.status, 200);
    asking.until("cancelled").await;
    fleet.redis.lose_what_came_since();
    // The cancel is applied again: it keeps the turn from coming back.
    let ended = format!("{}:ended:{}", key(&fleet.session), generation.as_str().expect("an id"));
    let is_ended = eventually(LIMIT, async || fleet.redis.cli(&["GET", &ended]).trim() == "cancel");
    assert!(is_ended.await, "{generation} has not ended");
    let reply = chat(&fleet.replicas[2], &fleet.session, "[[tokens=3]] after").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let history = fleet.history_until(|messages| messages.len() == 4).await;
    assert_eq!(history[2]["content"], "[[tokens=3]] after");
    let running = async || stat(&fleet.ollama, "running").await == 0;
    assert!(eventually(LIMIT, running).await, "the answer is still generated");
}

#[tokio::test]
async fn a_repeat_that_comes_before_its_lost_turn_is_restored_is_answered_again_once() {
    let fleet = Fleet::at_rate("60").await;
    let (mut asking, mut watching) = (fleet.socket(0).await, fleet.socket(1).await);
    let message = "[[tokens=60]] again";
    let request = json!({"type": "chat", "message": message, "message_id": "once"});
    let started = async || stat(&fleet.ollama, "started").await;
    let before = started().await;
    fleet.redis.remember();
    asking.say(&request).await;
    let events = watching.until("stream_chunk").await;
    let generation = events.last().expect("a piece")["generation_id"].clone();
    fleet.replicas[0].pause();
    fleet.redis.lose_what_came_since();
    let mut repeating = fleet.socket_after_outage(2).await;
    repeating.say(&request).await;
    let events = repeating.until("stream_end").await;
    assert_eq!(events.last().expect("an end")["generation_id"], generation, "the same turn");
    fleet.replicas[0].resume();
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(history[1]["content"], expected(message).as_str());
    assert_eq!(started().await, before + 2, "the model answered twice");
    // The first writer comes back, and leaves it at that.
    until_ok(&fleet.replicas[0], "/health/ready").await;
    assert_eq!(chat(&fleet.replicas[0], &fleet.session, "and on").await.status, 200);
    let history = fleet.history_until(|messages| messages.len() == 4).await;
    assert_eq!(history[1]["generation_id"], generation);
}

#[tokio::test]
async fn a_turn_that_is_accepted_before_a_lost_clear_is_applied_again_is_cancelled_by_it() {
    let fleet = Fleet::at_rate("60").await;
    assert_eq!(chat(&fleet.replicas[1], &fleet.session, "[[tokens=3]] before").await.status, 200);
    let mut clearing = fleet.socket(0).await;
    fleet.redis.remember();
    clearing.say(&json!({"type": "clear_history"})).await;
    clearing.until("history_cleared").await;
    // The replica that would clear again is late.
    fleet.replicas[0].pause();
    fleet.redis.lose_what_came_since();
    let mut asking = fleet.socket_after_outage(1).await;
    asking.say(&json!({"type": "chat", "message": "[[tokens=2000]] early"})).await;
    asking.until("stream_chunk").await;
    fleet.replicas[0].resume();
    asking.until("cancelled").await;
    fleet.history_until(<[Value]>::is_empty).await;
    // Later turns stay.
    let reply = chat(&fleet.replicas[2], &fleet.session, "[[tokens=3]] late").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    fleet.history_until(|messages| messages.len() == 2).await;
}

#[tokio::test]
async fn an_outage_of_the_redis_replicas_does_not_delay_turns_and_has_copies_sent() {
    const TURNS: usize = 40;
    let redis = RedisSentinels::start();
    let ollama = ollama_sim(&["--rate", "1000"]);
    let slots = [("JARVIS_OLLAMA_SLOTS", "64")];
    let replicas = ready_replicas(2, &redis.url(), &ollama.url, &slots).await;
    let turns = async || {
        let started = Instant::now();
        let all = (0..TURNS).map(async |_| {
            let session = Uuid::new_v4().to_string();
            chat(&replicas[0], &session, "[[tokens=1]] at once").await.status
        });
        let all = futures_util::future::join_all(all).await;
        assert!(all.iter().all(|status| *status == 200), "{all:?}");
        started.elapsed()
    };
    turns().await;
    assert_eq!(settled_copies(&replicas[0]).await, 0, "the Redis replica is the second copy");
    redis.replica.kill();
    let took = turns().await;
    // A WAIT for each call, one after another, would take eight seconds.
    assert!(took < Duration::from_secs(3), "{took:?}");
    let is_sent = |line: &str| {
        let sent = line.strip_prefix("jarvis_redo_copies_total{outcome=\"sent\"} ");
        sent.and_then(|number| number.parse::<usize>().ok()).is_some_and(|number| number > TURNS)
    };
    until_metric(&replicas[0], "a copy of each turn", is_sent).await;
}
