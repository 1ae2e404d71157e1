//! Who owns a session: a claim makes an anonymous one a user's, whatever fails meanwhile.
#![allow(missing_docs, reason = "tests")]

mod support;

use jarvis::session::store::channel;
use reqwest::Method;
use serde_json::{Value, json};
use support::client::{http, joined, send};
use support::eventually;
use support::metrics::metrics;
use support::owned::{
    CHAT, Fleet, SESSIONS, ask, chat, claim, expected, id, listed, messages_until, open, read,
};
use support::process::{LIMIT, Process};
use support::redis::{RedisCluster, RedisServer};
use support::tokens::token;
use uuid::Uuid;

#[tokio::test]
async fn a_claim_makes_an_anonymous_session_its_caller_s_and_nobody_else_s() {
    let redis = RedisServer::start();
    let fleet = &Fleet::on(&redis.url(), 1, "500").await;
    let replica = &fleet.replicas[0];
    let (session, bobs, never) = (id(), id(), id());
    let key = id();
    let keyed = async |user: &str| {
        let body = json!({"message": "[[tokens=3]] keyed", "session_id": session});
        let request = http().post(format!("{}{CHAT}", replica.url)).json(&body);
        let request = request.header("Idempotency-Key", &key);
        send(if user.is_empty() { request } else { request.bearer_auth(token(user)) }).await
    };
    let first = keyed("").await;
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(chat(replica, &bobs, "[[tokens=3]] hi", "bob").await.status, 200);

    let anonymous = claim(replica, &session, "").await;
    assert_eq!((anonymous.status, &anonymous.body["code"]), (401, &json!("sign_in_required")));
    for session in [&bobs, &never] {
        let refused = claim(replica, session, "alice").await;
        assert_eq!((refused.status, &refused.body["code"]), (404, &json!("session_not_found")));
    }
    let nil = claim(replica, &Uuid::nil().to_string(), "alice").await;
    assert_eq!(nil.status, 422);
    assert_eq!(listed(replica, "alice", 10).await, Vec::<String>::new());

    for _ in 0..2 {
        let claimed = claim(replica, &session, "alice").await;
        assert_eq!(claimed.status, 200, "{}", claimed.body);
        assert_eq!(claimed.body["session_id"], session);
        assert_eq!(claimed.body["message_count"], 2);
    }
    assert_eq!(read(replica, &session, "alice").await.body["total"], 2);
    assert_eq!(listed(replica, "alice", 10).await, [session.as_str()]);
    for user in ["", "bob"] {
        assert_eq!(read(replica, &session, user).await.status, 404, "{user}");
        assert_eq!(chat(replica, &session, "hi", user).await.status, 404, "{user}");
    }
    assert_eq!(claim(replica, &session, "bob").await.status, 404);
    assert_eq!(keyed("").await.status, 404);
    // The key finds the same generation, and the session takes the next turn.
    let again = keyed("alice").await;
    assert_eq!(again.status, 200, "{}", again.body);
    assert_eq!(again.body["generation_id"], first.body["generation_id"]);
    assert_eq!(chat(replica, &session, "[[tokens=3]] on", "alice").await.status, 200);
    assert_eq!(read(replica, &session, "alice").await.body["total"], 4);
    // It is kept for ever, and counts for the user's budget alone.
    let key = channel(session.parse().expect("a session"));
    for name in ["", ":messages", ":path", ":index", ":events"] {
        assert_eq!(redis.cli(&["TTL", &format!("{key}{name}")]).trim(), "-1", "{name}");
    }
    let users = redis.cli(&["ZSCORE", "jarvis:{budget}:users", "user:local:alice"]);
    assert!(users.trim().parse::<u64>().expect("bytes") > 4096, "{users}");
    let total = redis.cli(&["GET", "jarvis:{budget}:total"]);
    assert_eq!(total.trim(), "0", "bytes of anonymous sessions");
}

#[tokio::test]
async fn a_claim_closes_the_sockets_of_anonymous_callers_on_every_replica() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 2, "500").await;
    let session = id();
    assert_eq!(chat(&fleet.replicas[0], &session, "[[tokens=3]] hi", "").await.status, 200);
    let (mut here, mut there) = (
        open(&fleet.replicas[0], &session, "").await,
        open(&fleet.replicas[1], &session, "").await,
    );
    let mut alices = open(&fleet.replicas[1], &session, "alice").await;
    let stream = http().get(format!("{}{SESSIONS}/{session}/events", fleet.replicas[1].url));
    let stream = stream.send().await.expect("a stream");
    assert_eq!(stream.status(), 200);
    assert_eq!(claim(&fleet.replicas[0], &session, "alice").await.status, 200);
    for socket in [&mut here, &mut there] {
        let (events, close) = socket.end().await;
        assert_eq!(events, Vec::<Value>::new(), "no event tells of the claim");
        assert_eq!(close.map(|(code, _)| code), Some(1008));
    }
    let rest = tokio::time::timeout(LIMIT, stream.text()).await.expect("an end in time");
    assert!(!rest.expect("text").contains("claim"));
    // The user's own socket sees the session from its beginning, and what follows.
    assert_eq!(chat(&fleet.replicas[0], &session, "[[tokens=3]] on", "alice").await.status, 200);
    for message in ["[[tokens=3]] hi", "[[tokens=3]] on"] {
        assert_eq!(joined(&alices.until("stream_end").await), expected(message));
    }
    // A new socket of an anonymous caller looks like one of a session that is not there yet.
    let mut late = open(&fleet.replicas[0], &session, "").await;
    late.say(&json!({"type": "get_history"})).await;
    assert_eq!(late.event().await["count"], 0);
    late.say(&json!({"message": "hi", "message_id": "1"})).await;
    assert_eq!(late.event().await["code"], "session_not_found");
}

#[tokio::test]
async fn an_answer_that_runs_while_its_session_is_claimed_goes_on_and_is_its_user_s() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 2, "60").await;
    let session = id();
    let (running, waiting) = ("[[tokens=150]] the first", "[[tokens=20]] the second");
    let mut asking = open(&fleet.replicas[0], &session, "").await;
    asking.say(&json!({"message": running})).await;
    asking.until("stream_chunk").await;
    asking.say(&json!({"message": waiting})).await;
    asking.until("message_received").await;
    assert_eq!(claim(&fleet.replicas[1], &session, "alice").await.status, 200);
    assert_eq!(asking.end().await.1.map(|(code, _)| code), Some(1008));
    // The user follows from the beginning, on the replica that writes and on another one.
    let mut sockets = Vec::new();
    for replica in &fleet.replicas {
        sockets.push(open(replica, &session, "alice").await);
    }
    for socket in &mut sockets {
        for message in [running, waiting] {
            let events = socket.until("stream_end").await;
            assert!(events.iter().all(|event| event["type"] != "stream_restart"), "{events:?}");
            assert_eq!(joined(&events), expected(message));
            assert!(events.last().expect("an end").get("continued").is_none(), "{events:?}");
        }
    }
    let messages = messages_until(&fleet.replicas[1], &session, "alice", 4).await;
    assert_eq!((&messages[1]["writers"], &messages[3]["writers"]), (&json!(1), &json!(1)));
    assert_eq!(read(&fleet.replicas[0], &session, "").await.status, 404);
}

#[tokio::test]
async fn an_answer_whose_writer_is_killed_right_after_a_claim_is_completed_for_its_user() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 3, "60").await;
    // The writer is killed, and then the replica that claims.
    for (writer, claims) in [(0, 0), (1, 2)] {
        let session = id();
        let message = "[[tokens=150]] to the end";
        let mut asking = open(&fleet.replicas[writer], &session, "").await;
        asking.say(&json!({"message": message, "temperature": 0})).await;
        asking.until("stream_chunk").await;
        assert_eq!(claim(&fleet.replicas[claims], &session, "alice").await.status, 200);
        fleet.replicas[claims].kill();
        let survivor = &fleet.replicas[1];
        let messages = messages_until(survivor, &session, "alice", 2).await;
        assert_eq!(messages[1]["content"], expected(message).as_str());
        assert_eq!(messages[1]["status"], "complete");
        assert_eq!(messages[1]["writers"], if writer == claims { 2 } else { 1 });
        assert_eq!(read(survivor, &session, "").await.status, 404);
        assert!(listed(survivor, "alice", 10).await.contains(&session));
        let moved = eventually(LIMIT, async || {
            let total = redis.cli(&["GET", "jarvis:{budget}:total"]);
            matches!(total.trim(), "0" | "")
        });
        assert!(moved.await, "the bytes are the user's");
    }
}

#[tokio::test]
async fn in_a_cluster_a_claim_and_its_running_answer_are_the_user_s() {
    let cluster = RedisCluster::start();
    let fleet = Fleet::on(&cluster.url(), 2, "60").await;
    for _ in 0..3 {
        let session = id();
        let message = "[[tokens=60]] across slots";
        let mut asking = open(&fleet.replicas[0], &session, "").await;
        asking.say(&json!({"message": message})).await;
        asking.until("stream_chunk").await;
        assert_eq!(claim(&fleet.replicas[1], &session, "alice").await.status, 200);
        assert_eq!(asking.end().await.1.map(|(code, _)| code), Some(1008));
        let mut socket = open(&fleet.replicas[0], &session, "alice").await;
        assert_eq!(joined(&socket.until("stream_end").await), expected(message));
        assert_eq!(listed(&fleet.replicas[1], "alice", 10).await[0], session);
    }
    let all = ask(&fleet.replicas[1], Method::DELETE, SESSIONS, &Value::Null, "alice").await;
    assert_eq!((all.status, &all.body["sessions_deleted"]), (200, &json!(3)));
    assert_eq!(listed(&fleet.replicas[0], "alice", 10).await, Vec::<String>::new());
}

/// Waits until the replica has sent a copy of what it wrote to another replica.
async fn until_copies(replica: &Process, more_than: u64) -> u64 {
    let mut sent = 0;
    let line = "jarvis_redo_copies_total{outcome=\"sent\"} ";
    let are_sent = eventually(LIMIT, async || {
        let text = metrics(replica).await;
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        sent = found.and_then(|number| number.parse().ok()).unwrap_or(0);
        sent > more_than
    });
    assert!(are_sent.await, "{sent}");
    sent
}

#[tokio::test]
async fn a_failover_that_lost_a_claim_gives_the_session_and_its_running_answer_back_to_the_user() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 3, "60").await;
    // Once with the replica that claimed alive, and once with it killed.
    for dies in [false, true] {
        let session = id();
        let message = "[[tokens=240]] held";
        let mut asking = open(&fleet.replicas[0], &session, "").await;
        let copies = eventually(LIMIT, async || {
            assert_eq!(chat(&fleet.replicas[2], &id(), "[[tokens=1]] warm", "").await.status, 200);
            metrics(&fleet.replicas[2]).await.contains("outcome=\"sent\"")
        });
        assert!(copies.await);
        let before = until_copies(&fleet.replicas[2], 0).await;
        asking.say(&json!({"message": message, "temperature": 0})).await;
        asking.until("stream_chunk").await;
        redis.remember();
        assert_eq!(claim(&fleet.replicas[2], &session, "alice").await.status, 200);
        assert_eq!(asking.end().await.1.map(|(code, _)| code), Some(1008));
        until_copies(&fleet.replicas[2], before).await;
        if dies {
            fleet.replicas[2].kill();
        }
        redis.lose_what_came_since();
        let messages = messages_until(&fleet.replicas[1], &session, "alice", 2).await;
        assert_eq!(messages[1]["content"], expected(message).as_str());
        assert_eq!(messages[1]["status"], "complete");
        assert_eq!(read(&fleet.replicas[1], &session, "").await.status, 404);
        assert_eq!(claim(&fleet.replicas[1], &session, "bob").await.status, 404);
    }
}
