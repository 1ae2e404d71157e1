//! A failover of Redis in the middle of an answer costs its clients nothing.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::io::{Read as _, Write as _};

use serde_json::{Value, json};
use support::client::{
    Socket, chat, get, history, history_until, http, joined, post, send, until_ok,
};
use support::eventually;
use support::fleet::ready_replicas;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::{RedisCluster, RedisSentinels, RedisServer, Users};
use uuid::Uuid;

const MODEL: &str = "tinyllama:latest";

struct Fleet {
    ollama: Process,
    replicas: Vec<Process>,
    session: String,
}

impl Fleet {
    async fn on(redis_url: &str, rate: &str) -> Self {
        let ollama = ollama_sim(&["--rate", rate]);
        let replicas = ready_replicas(2, redis_url, &ollama.url, &[]).await;
        Self { ollama, replicas, session: Uuid::new_v4().to_string() }
    }

    async fn socket(&self, replica: usize) -> Socket {
        let path = format!("/ws?session_id={}", self.session);
        Socket::open(&self.replicas[replica], &path).await.0
    }

    async fn history(&self) -> Vec<Value> {
        history(&self.replicas[1], &self.session).await
    }

    async fn history_until(&self, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        history_until(&self.replicas[1], &self.session, wanted).await
    }
}

fn expected(message: &str) -> String {
    ollama_sim::script_answer(MODEL, message, None, 64)
}

/// Returns the text as a client has it: restarts take text back.
fn seen(events: &[Value]) -> String {
    let mut text = String::new();
    for event in events {
        match event["type"].as_str() {
            Some("stream_restart") => {
                text.truncate(event["from"].as_u64().expect("a length") as usize);
            }
            Some("stream_chunk") if event["done"] == false => {
                assert_eq!(event["offset"], text.len(), "a hole or a double: {event}");
                text.push_str(event["content"].as_str().expect("content"));
            }
            _ => {}
        }
    }
    text
}

/// Runs a turn through a fault in its middle, watched from another replica.
async fn a_turn_through(fleet: &Fleet, fault: impl AsyncFnOnce()) {
    let message = "[[tokens=240]] hold on";
    let (mut asking, mut watching) = (fleet.socket(0).await, fleet.socket(1).await);
    asking.say(&json!({"type": "chat", "message": message})).await;
    let mut events = watching.until("stream_chunk").await;
    for _ in 0..20 {
        events.push(watching.event().await);
    }
    fault().await;
    events.extend(watching.until("stream_end").await);
    assert_eq!(joined(&events), expected(message));
    assert_eq!(events.last().expect("an end")["full_response"], expected(message).as_str());
    let asked = asking.until("stream_end").await;
    assert_eq!(seen(&asked), expected(message));
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(history[1]["content"], expected(message).as_str());
    assert_eq!(history[1]["writers"], 1);
    // The session takes the next turn.
    let reply = chat(&fleet.replicas[1], &fleet.session, "and on").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

#[tokio::test]
async fn a_failover_that_lost_the_last_pieces_costs_no_character() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), "60").await;
    let message = "[[tokens=200]] pieces";
    let mut watching = fleet.socket(1).await;
    let mut asking = fleet.socket(0).await;
    asking.say(&json!({"type": "chat", "message": message})).await;
    let mut events = watching.until("stream_chunk").await;
    redis.remember();
    for _ in 0..30 {
        events.push(watching.event().await);
    }
    redis.lose_what_came_since();
    events.extend(watching.until("stream_end").await);
    assert_eq!(joined(&events), expected(message));
    let history = fleet.history().await;
    assert_eq!(history[1]["content"], expected(message).as_str());
}

#[tokio::test]
async fn a_failover_that_lost_a_whole_turn_brings_it_back() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), "60").await;
    chat(&fleet.replicas[0], &fleet.session, "before").await;
    let (mut asking, mut watching) = (fleet.socket(0).await, fleet.socket(1).await);
    redis.remember();
    let message = "[[tokens=200]] a turn";
    asking.say(&json!({"type": "chat", "message": message, "message_id": "m"})).await;
    let mut events = watching.until("stream_chunk").await;
    for _ in 0..30 {
        events.push(watching.event().await);
    }
    // Another turn waits behind it.
    asking.say(&json!({"type": "chat", "message": "and another"})).await;
    events.extend(watching.until("message_received").await);
    redis.lose_what_came_since();
    events.extend(watching.until("stream_end").await);
    assert_eq!(seen(&events), expected(message));
    watching.until("stream_end").await;
    let history = fleet.history_until(|messages| messages.len() == 6).await;
    let contents: Vec<_> = history.iter().map(|message| &message["content"]).collect();
    assert_eq!(contents[2], message);
    assert_eq!(contents[3], expected(message).as_str());
    assert_eq!(contents[4], "and another");
    // The turn is found by its key, too.
    asking.say(&json!({"type": "chat", "message": message, "message_id": "m"})).await;
    let again = asking.until("stream_end").await;
    assert_eq!(again.last().expect("an end")["full_response"], expected(message).as_str());
    assert_eq!(fleet.history().await.len(), 6);
}

#[tokio::test]
async fn a_failover_that_lost_a_turn_that_waits_for_a_slot_brings_it_back() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "20"]);
    let one_slot = [("JARVIS_OLLAMA_SLOTS", "1")];
    let replica = jarvis(&redis.url(), &ollama.url, &one_slot);
    until_ok(&replica, "/health/ready").await;
    let (mut first, _) = Socket::open(&replica, "/ws").await;
    first.say(&json!({"type": "chat", "message": "[[tokens=200]] busy"})).await;
    first.until("stream_chunk").await;
    redis.remember();
    let (mut second, _) = Socket::open(&replica, "/ws").await;
    let message = "[[tokens=20]] queued";
    second.say(&json!({"type": "chat", "message": message})).await;
    second.until("queued").await;
    redis.lose_what_came_since();
    let events = second.until("stream_end").await;
    assert_eq!(seen(&events), expected(message));
}

#[tokio::test]
async fn a_question_that_a_failover_took_is_not_answered_with_the_one_before_it() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "20"]);
    let one_slot = [("JARVIS_OLLAMA_SLOTS", "1")];
    let replica = jarvis(&redis.url(), &ollama.url, &one_slot);
    until_ok(&replica, "/health/ready").await;
    let session = Uuid::new_v4().to_string();
    chat(&replica, &session, "[[tokens=5]] before").await;
    let (mut busy, _) = Socket::open(&replica, "/ws").await;
    busy.say(&json!({"type": "chat", "message": "[[tokens=60]] busy"})).await;
    busy.until("stream_chunk").await;
    redis.remember();
    let (mut socket, _) = Socket::open(&replica, &format!("/ws?session_id={session}")).await;
    let message = "[[tokens=20]] after";
    socket.say(&json!({"type": "chat", "message": message})).await;
    socket.until("queued").await;
    // The slot comes free before a replica has looked whether the ticket is still there.
    redis.lose_what_came_since();
    let events = socket.until("stream_end").await;
    assert_eq!(events.last().expect("an end")["full_response"], expected(message).as_str());
}

#[tokio::test]
async fn a_failover_that_lost_the_end_of_a_turn_ends_it_again() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), "200").await;
    let message = "[[tokens=60]] the end";
    let mut watching = fleet.socket(1).await;
    let mut asking = fleet.socket(0).await;
    asking.say(&json!({"type": "chat", "message": message})).await;
    let mut events = watching.until("stream_chunk").await;
    redis.remember();
    events.extend(watching.until("stream_end").await);
    redis.lose_what_came_since();
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(history[1]["content"], expected(message).as_str());
    assert_eq!(history[1]["status"], "complete");
    let stats = get(&fleet.ollama, "/sim/stats").await.body;
    assert_eq!(stats["started"], 1, "it was not generated again");
    // The socket has got the end already, and gets it once.
    asking.say(&json!({"type": "chat", "message": "on"})).await;
    let next = watching.event().await;
    assert_eq!(next["type"], "message_received", "{next}");
}

#[tokio::test]
async fn a_failover_that_lost_a_cancel_does_not_bring_the_answer_back() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), "60").await;
    let mut asking = fleet.socket(0).await;
    asking.say(&json!({"type": "chat", "message": "[[tokens=2000]] stop"})).await;
    asking.until("stream_chunk").await;
    redis.remember();
    let path = format!("/api/v1/chat/sessions/{}/cancel", fleet.session);
    assert_eq!(post(&fleet.replicas[1], &path, &json!({})).await.status, 200);
    asking.until("cancelled").await;
    redis.lose_what_came_since();
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(history[1]["status"], "cancelled");
    let stats = get(&fleet.ollama, "/sim/stats").await.body;
    assert_eq!((&stats["started"], &stats["running"]), (&json!(1), &json!(0)));
}

#[tokio::test]
async fn a_failover_that_lost_a_title_and_a_pin_brings_both_back() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), "200").await;
    chat(&fleet.replicas[0], &fleet.session, "hello").await;
    let path = format!("/api/v1/chat/sessions/{}", fleet.session);
    let change = json!({"title": "Mine", "pinned": true});
    redis.remember();
    let url = format!("{}{path}", fleet.replicas[0].url);
    assert_eq!(send(http().patch(url).json(&change)).await.status, 200);
    redis.lose_what_came_since();
    let is_back = async || {
        let info = get(&fleet.replicas[1], &path).await.body;
        info["title"] == "Mine" && info["pinned"] == true
    };
    assert!(!is_back().await, "the failover lost the change");
    assert!(eventually(LIMIT, is_back).await, "the change is lost");
}

#[tokio::test]
async fn a_failover_that_lost_a_clear_or_a_delete_does_not_bring_the_history_back() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), "200").await;
    chat(&fleet.replicas[0], &fleet.session, "secret").await;
    let mut socket = fleet.socket(0).await;
    redis.remember();
    socket.say(&json!({"type": "clear_history"})).await;
    socket.until("history_cleared").await;
    redis.lose_what_came_since();
    until_ok(&fleet.replicas[0], "/health/ready").await;
    fleet.history_until(<[Value]>::is_empty).await;
    // Later turns stay.
    let reply = chat(&fleet.replicas[1], &fleet.session, "after").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    redis.remember();
    redis.lose_what_came_since();
    until_ok(&fleet.replicas[1], "/health/ready").await;
    fleet.history_until(|messages| messages.len() == 2).await;
    // A deleted session is none any more, and a failover does not bring it back.
    let path = format!("/api/v1/chat/sessions/{}", fleet.session);
    let key = bucket_key(&fleet.session);
    let is_deleted = || redis.cli(&["HEXISTS", &key, "deleted"]).trim() == "1";
    redis.remember();
    let deleted = send(http().delete(format!("{}{path}", fleet.replicas[0].url))).await;
    assert_eq!(deleted.status, 200, "{}", deleted.body);
    assert!(is_deleted());
    redis.lose_what_came_since();
    assert!(!is_deleted(), "the failover lost the delete");
    assert!(eventually(LIMIT, async || is_deleted()).await, "the session is back");
    until_ok(&fleet.replicas[1], "/health/ready").await;
    assert_eq!(get(&fleet.replicas[1], &path).await.status, 404);
    let events = redis.cli(&["LRANGE", &format!("{key}:events"), "0", "-1"]);
    assert!(events.contains("cleared") && !events.contains("after"), "{events}");
    // A new turn begins a new session, without its former history.
    let reply = chat(&fleet.replicas[1], &fleet.session, "anew").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(history[0]["content"], "anew");
}

#[tokio::test]
async fn a_failover_that_lost_a_claim_leaves_the_turn_with_its_new_writer() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), "40").await;
    let message = "[[tokens=300]] claimed";
    let (mut asking, mut watching) = (fleet.socket(0).await, fleet.socket(1).await);
    asking.say(&json!({"type": "chat", "message": message})).await;
    let mut events = watching.until("stream_chunk").await;
    fleet.replicas[0].kill();
    redis.remember();
    let holder = || redis.cli(&["HMGET", &bucket_key(&fleet.session), "replica", "writers"]);
    let is_claimed = eventually(LIMIT, async || holder().trim().ends_with('2')).await;
    assert!(is_claimed, "another writer continues the turn: {}", holder());
    for _ in 0..20 {
        events.push(watching.event().await);
    }
    redis.lose_what_came_since();
    let undone = holder();
    assert!(undone.trim().ends_with('1'), "the failover lost the claim: {undone}");
    events.extend(watching.until("stream_end").await);
    assert_eq!(seen(&events), expected(message));
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(history[1]["content"], expected(message).as_str());
    assert_eq!(history[1]["writers"], 2, "the one that was killed, and its successor");
}

#[tokio::test]
async fn a_turn_whose_acceptance_got_no_reply_is_answered_although_a_failover_lost_it() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), "200").await;
    let (mut asking, mut watching) = (fleet.socket(0).await, fleet.socket(1).await);
    redis.remember();
    redis.pause();
    let message = "is anybody there?";
    asking.say(&json!({"type": "chat", "message": message, "message_id": "once"})).await;
    let refused = asking.until("error").await;
    assert_eq!(refused.last().expect("an error")["code"], "store_unavailable");
    // The turn is nevertheless accepted, and the event is published.
    redis.resume();
    watching.until("message_received").await;
    redis.lose_what_came_since();
    let events = watching.until("stream_end").await;
    assert_eq!(events.last().expect("an end")["full_response"], expected(message).as_str());
    let history = fleet.history_until(|messages| messages.len() == 2).await;
    assert_eq!(history[1]["content"], expected(message).as_str());
}

#[tokio::test]
async fn behind_sentinels_a_killed_primary_costs_no_character() {
    let redis = RedisSentinels::start();
    let fleet = Fleet::on(&redis.url(), "40").await;
    a_turn_through(&fleet, async || redis.primary.kill()).await;
}

#[tokio::test]
async fn behind_sentinels_a_primary_that_pauses_and_wakes_costs_no_character() {
    let redis = RedisSentinels::start();
    let fleet = Fleet::on(&redis.url(), "30").await;
    let answer = format!("{}:answer", bucket_key(&fleet.session));
    let length = |server: &RedisServer| server.cli(&["STRLEN", &answer]);
    a_turn_through(&fleet, async || {
        redis.primary.pause();
        let mut stopped_at = length(&redis.replica);
        let promoted = eventually(LIMIT, async || {
            let now = length(&redis.replica);
            let promoted = redis.replica.cli(&["ROLE"]).starts_with("master");
            if !promoted {
                stopped_at = now;
            }
            promoted
        });
        assert!(promoted.await, "no failover");
        redis.primary.resume();
        // After some seconds the sentinels make it a replica: its writes until then are lost.
        let clients = || redis.primary.cli(&["CLIENT", "LIST", "TYPE", "normal"]);
        let left = eventually(std::time::Duration::from_secs(4), async || {
            let written = length(&redis.primary);
            let demoted = !redis.primary.cli(&["ROLE"]).starts_with("master");
            assert!(demoted || written == stopped_at, "it took writes that were sent before");
            demoted || !clients().lines().any(|client| client.contains("name=fred"))
        });
        assert!(left.await, "a replica stays with the old primary: {}", clients());
        let refused = redis.primary.cli(&["INFO", "errorstats"]);
        assert!(refused.contains("errorstat_DOUBTFUL"), "{refused}");
    })
    .await;
}

#[tokio::test]
async fn in_a_cluster_a_killed_primary_costs_no_character() {
    let redis = RedisCluster::start();
    let fleet = Fleet::on(&redis.url(), "30").await;
    let key = bucket_key(&fleet.session);
    a_turn_through(&fleet, async || redis.holders(&key).0.kill()).await;
}

#[tokio::test]
async fn in_a_cluster_a_graceful_failover_and_a_migrated_slot_cost_no_character() {
    let redis = RedisCluster::start();
    let fleet = Fleet::on(&redis.url(), "40").await;
    let key = bucket_key(&fleet.session);
    a_turn_through(&fleet, async || {
        let (_, replica) = redis.holders(&key);
        support::redis::cli(replica, &["CLUSTER", "FAILOVER"]);
    })
    .await;
    let fleet = Fleet { session: Uuid::new_v4().to_string(), ..fleet };
    let key = bucket_key(&fleet.session);
    a_turn_through(&fleet, async || redis.migrate(&key)).await;
}

#[tokio::test]
async fn with_the_users_that_operators_install_sentinels_and_a_cluster_fail_over() {
    let redis = RedisSentinels::start_as(Users::Installed);
    // The default user is off, and the failover is of the sentinels' own user.
    let mut anonymous =
        std::net::TcpStream::connect(("127.0.0.1", redis.primary.port())).expect("a connection");
    anonymous.write_all(b"ROLE\r\n").expect("sent");
    let mut reply = [0; 7];
    anonymous.read_exact(&mut reply).expect("a reply");
    assert_eq!(&reply, b"-NOAUTH");
    let fleet = Fleet::on(&redis.url(), "40").await;
    a_turn_through(&fleet, async || redis.primary.kill()).await;
    drop(fleet);
    let redis = RedisCluster::start_as(Users::Installed);
    let fleet = Fleet::on(&redis.url(), "30").await;
    let key = bucket_key(&fleet.session);
    a_turn_through(&fleet, async || redis.holders(&key).0.kill()).await;
}

/// Returns a key in the hash slot of a session.
fn bucket_key(session: &str) -> String {
    let id = Uuid::parse_str(session).expect("a session");
    let bucket = id.as_bytes().iter().fold(0, |sum, byte| sum ^ byte);
    format!("jarvis:{{b{bucket}}}:s:{session}")
}
