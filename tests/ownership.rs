//! Who owns a session: a claim makes an anonymous one a user's, whatever fails meanwhile.
#![allow(missing_docs, reason = "tests")]

mod support;

use jarvis::session::store::channel;
use reqwest::Method;
use serde_json::{Value, json};
use support::client::{http, joined, send, until_ok};
use support::eventually;
use support::metrics::{metrics, settled_copies, until_metric_line};
use support::owned::{
    CHAT, Fleet, MODEL, SESSIONS, ask, chat, claim, expected, id, listed, messages_until, open,
    read,
};
use support::process::{LIMIT, jarvis, ollama_sim};
use support::redis::{RedisCluster, RedisServer};
use support::redis_time::begin_timing;
use support::tokens::{SECRET, token};
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
        assert_eq!(events, Vec::<Value>::new(), "no event reports the claim");
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
            settled_copies(&fleet.replicas[2]).await > 0
        });
        assert!(copies.await);
        let before = settled_copies(&fleet.replicas[2]).await;
        asking.say(&json!({"message": message, "temperature": 0})).await;
        asking.until("stream_chunk").await;
        redis.remember();
        assert_eq!(claim(&fleet.replicas[2], &session, "alice").await.status, 200);
        assert_eq!(asking.end().await.1.map(|(code, _)| code), Some(1008));
        let is_copied =
            eventually(LIMIT, async || settled_copies(&fleet.replicas[2]).await > before);
        assert!(is_copied.await, "{}", metrics(&fleet.replicas[2]).await);
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

/// Returns the functions that Redis ran about a session since its log was emptied, in their order.
fn calls_about(redis: &RedisServer, session: &str) -> Vec<String> {
    let log = redis.cli(&["SLOWLOG", "GET", "-1"]);
    let (mut calls, mut function) = (Vec::new(), None);
    for line in log.lines() {
        if line.starts_with("jarvis_") {
            function = Some(line.to_owned());
        } else if line.contains(session) {
            calls.extend(function.take());
        }
    }
    calls.reverse();
    calls
}

/// Makes the same requests about another's session and about one that never was, and asserts that both
/// cost the same; returns what was seen of the other's. A replica writes what it has done once more a
/// second after its connection to Redis was disturbed, also after its start, which may fall between
/// these calls: what differs by such a call alone is asked again.
async fn costs_the_same<Seen: PartialEq + std::fmt::Debug>(
    what: &str,
    [theirs, nobodys]: [&str; 2],
    mut seen: impl AsyncFnMut(&str) -> Seen,
) -> Seen {
    let mut tries = Vec::new();
    for _ in 0..3 {
        let (of_theirs, of_nobodys) = (seen(theirs).await, seen(nobodys).await);
        if of_theirs == of_nobodys {
            return of_theirs;
        }
        tries.push((of_theirs, of_nobodys));
    }
    panic!("{what}: {tries:#?}");
}

/// Asserts that a user who asks about another's session gets 404, as for one that never was, at the same
/// cost.
async fn assert_not_found(
    fleet: &Fleet,
    redis: &RedisServer,
    request: (&Method, &str, &Value),
    sessions: [&str; 2],
    user: &str,
) {
    let what = format!("{} {} {user:?}", request.0, request.1);
    let seen = costs_the_same(&what, sessions, async |session| {
        seen_by(fleet, redis, request, session, user).await
    });
    let (status, _, _, calls) = seen.await;
    assert_eq!(status, 404, "{what}");
    assert!(!calls.is_empty(), "{what}");
}

/// Sends a request, and returns status, headers and body as they came, and the calls of Redis about
/// the session. What is left of a limit differs between any two requests.
async fn seen_by(
    fleet: &Fleet,
    redis: &RedisServer,
    (method, path, body): (&Method, &str, &Value),
    session: &str,
    user: &str,
) -> (u16, Vec<(String, String)>, Vec<u8>, Vec<String>) {
    begin_timing(redis);
    // The identifier as OpenAI's API writes it, which has no hyphens.
    let digits = session.replace('-', "");
    let named = |text: &str| text.replace("DIGITS", &digits).replace("ID", session);
    let mut request =
        http().request(method.clone(), format!("{}{}", fleet.replicas[0].url, named(path)));
    if !body.is_null() {
        request =
            request.json(&serde_json::from_str::<Value>(&named(&body.to_string())).expect("JSON"));
    }
    let request = if user.is_empty() { request } else { request.bearer_auth(token(user)) };
    let reply = request.send().await.expect("a reply");
    let headers = reply
        .headers()
        .iter()
        .filter(|(name, _)| !["date", "ratelimit", "x-request-id"].contains(&name.as_str()))
        .filter(|(name, _)| !name.as_str().starts_with("x-ratelimit-"));
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().expect("a text").to_owned()));
    let (status, headers) = (reply.status().as_u16(), headers.collect());
    let body = reply.text().await.expect("a body").replace(&digits, "DIGITS");
    (status, headers, body.into_bytes(), calls_about(redis, session))
}

#[tokio::test]
async fn another_s_session_costs_the_same_calls_and_bytes_as_one_that_never_was() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    let (alices, never) = (id(), id());
    assert_eq!(chat(&fleet.replicas[0], &alices, "[[tokens=3]] hi", "alice").await.status, 200);
    // What the session holds is recorded after its answer.
    until_metric_line(&fleet.replicas[0], "jarvis_turns_open 0").await;
    let (none, empty) = (Value::Null, json!({}));
    let asked = json!({"message": "hi", "session_id": "ID"});
    let streamed = json!({"message": "hi", "session_id": "ID", "stream": true});
    let title = json!({"title": "mine now"});
    let message = id();
    let beside = json!({"message_id": message});
    let beside_streamed = json!({"message_id": message, "stream": true});
    let edited = json!({"message_id": message, "message": "hi"});
    let edited_streamed = json!({"message_id": message, "message": "hi", "stream": true});
    let of_session = |rest: &str| format!("{SESSIONS}/ID{rest}");
    let generation = format!("/events?generation_id={}", id());
    let image = format!("/images/{}", "0".repeat(64));
    for (method, path, body) in [
        (Method::GET, of_session(""), &none),
        (Method::GET, of_session("?skip=1&limit=0"), &none),
        (Method::PATCH, of_session(""), &title),
        (Method::DELETE, of_session(""), &none),
        (Method::GET, of_session("/events"), &none),
        (Method::GET, of_session(&generation), &none),
        (Method::GET, of_session(&image), &none),
        (Method::POST, of_session("/cancel"), &empty),
        (Method::POST, of_session("/claim"), &empty),
        (Method::POST, of_session("/regenerate"), &beside),
        (Method::POST, of_session("/regenerate"), &beside_streamed),
        (Method::POST, of_session("/edit"), &edited),
        (Method::POST, of_session("/edit"), &edited_streamed),
        (Method::POST, of_session("/branch"), &beside),
        (Method::POST, CHAT.to_owned(), &asked),
        (Method::POST, CHAT.to_owned(), &streamed),
    ] {
        for user in ["bob", ""] {
            // A turn in a session that never was creates one.
            if path == CHAT || (path.ends_with("/claim") && user.is_empty()) {
                continue;
            }
            let request = (&method, path.as_str(), body);
            assert_not_found(&fleet, &redis, request, [&alices, &never], user).await;
        }
    }
    for user in ["bob", ""] {
        for body in [&asked, &streamed] {
            let request = (&Method::POST, CHAT, body);
            let theirs = seen_by(&fleet, &redis, request, &alices, user).await;
            assert_eq!(theirs.0, 404);
            let text = String::from_utf8(theirs.2).expect("text");
            assert!(text.contains("session_not_found") && !text.contains(&alices), "{text}");
        }
        // A socket joins both, and finds nothing in either.
        costs_the_same(&format!("a socket of {user:?}"), [&alices, &never], async |session| {
            begin_timing(&redis);
            let mut socket = open(&fleet.replicas[0], session, user).await;
            let mut events = Vec::new();
            for message in [
                json!({"type": "get_history"}),
                json!({"type": "cancel"}),
                json!({"type": "clear_history"}),
            ] {
                socket.say(&message).await;
                let event = socket.event().await.to_string();
                events.push(event.replace(session, "ID"));
            }
            (events, calls_about(&redis, session))
        })
        .await;
    }
    // Nothing of it changed, and no list of another user has it.
    assert_eq!(read(&fleet.replicas[0], &alices, "alice").await.body["title"], "[[tokens=3]] hi");
    assert_eq!(listed(&fleet.replicas[0], "alice", 10).await, [alices]);
    assert_eq!(listed(&fleet.replicas[0], "bob", 10).await, Vec::<String>::new());
    let nil = Uuid::nil().to_string();
    for (method, path) in [
        (Method::GET, format!("{SESSIONS}/{nil}")),
        (Method::PATCH, format!("{SESSIONS}/{nil}")),
        (Method::DELETE, format!("{SESSIONS}/{nil}")),
        (Method::POST, format!("{SESSIONS}/{nil}/cancel")),
        (Method::POST, format!("{SESSIONS}/{nil}/claim")),
        (Method::GET, format!("{SESSIONS}/{nil}/events")),
        (Method::GET, format!("/ws?session_id={nil}")),
    ] {
        let reply = ask(&fleet.replicas[0], method.clone(), &path, &title, "bob").await;
        let status = if path.starts_with("/ws") { 426 } else { 422 };
        assert_eq!(reply.status, status, "{method} {path}");
    }
    assert_eq!(chat(&fleet.replicas[0], &nil, "hi", "bob").await.status, 422);
}

#[tokio::test]
async fn another_s_response_costs_the_same_calls_and_bytes_as_one_that_never_was() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    let input = json!({"model": MODEL, "input": "[[tokens=3]] hi"});
    let created = ask(&fleet.replicas[0], Method::POST, "/v1/responses", &input, "alice").await;
    assert_eq!(created.status, 200, "{}", created.body);
    let response = created.body["id"].as_str().expect("an id").to_owned();
    let alices: Uuid = response.trim_start_matches("resp_").parse().expect("a UUID");
    let (alices, never) = (alices.to_string(), id());
    until_metric_line(&fleet.replicas[0], "jarvis_turns_open 0").await;
    let none = Value::Null;
    let next = json!({"model": MODEL, "input": "hi", "previous_response_id": "resp_DIGITS"});
    let mut next_streamed = next.clone();
    next_streamed["stream"] = json!(true);
    let of_response = |rest: &str| format!("/v1/responses/resp_DIGITS{rest}");
    for (method, path, body, status) in [
        (Method::GET, of_response(""), &none, 404),
        (Method::GET, of_response("?stream=true"), &none, 404),
        (Method::GET, of_response("?stream=true&starting_after=1"), &none, 404),
        (Method::GET, of_response("/input_items"), &none, 404),
        (Method::POST, of_response("/cancel"), &none, 404),
        (Method::DELETE, of_response(""), &none, 404),
        (Method::POST, "/v1/responses".to_owned(), &next, 400),
        (Method::POST, "/v1/responses".to_owned(), &next_streamed, 400),
    ] {
        for user in ["bob", ""] {
            let request = (&method, path.as_str(), body);
            let what = format!("{method} {path} {user:?}");
            let seen = costs_the_same(&what, [&alices, &never], async |session| {
                seen_by(&fleet, &redis, request, session, user).await
            });
            let (seen, _, _, calls) = seen.await;
            assert_eq!(seen, status, "{what}");
            assert!(!calls.is_empty(), "{what}");
        }
    }
    let path = format!("/v1/responses/{response}");
    let mine = ask(&fleet.replicas[0], Method::GET, &path, &none, "alice").await;
    assert_eq!((mine.status, &mine.body["status"]), (200, &json!("completed")));
}

#[tokio::test]
async fn another_s_conversation_costs_the_same_calls_and_bytes_as_one_that_never_was() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    let empty = json!({});
    let created = ask(&fleet.replicas[0], Method::POST, "/v1/conversations", &empty, "alice").await;
    assert_eq!(created.status, 200, "{}", created.body);
    let conversation = created.body["id"].as_str().expect("an id").to_owned();
    let input = json!({"model": MODEL, "input": "[[tokens=3]] hi", "conversation": conversation});
    let response = ask(&fleet.replicas[0], Method::POST, "/v1/responses", &input, "alice").await;
    assert_eq!(response.status, 200, "{}", response.body);
    let response = response.body["id"].as_str().expect("an id").to_owned();
    let alices: Uuid = conversation.trim_start_matches("conv_").parse().expect("a UUID");
    let (alices, never) = (alices.to_string(), id());
    let turn = response[response.len() - 32..].to_owned();
    until_metric_line(&fleet.replicas[0], "jarvis_turns_open 0").await;
    let none = Value::Null;
    let metadata = json!({"metadata": {"a": "b"}});
    let items = json!({"items": [{"role": "user", "content": "hi"}]});
    let next = json!({"model": MODEL, "input": "hi", "conversation": "conv_DIGITS"});
    let mut streamed = next.clone();
    streamed["stream"] = json!(true);
    let of_conversation = |rest: &str| format!("/v1/conversations/conv_DIGITS{rest}");
    let of_response = |rest: &str| format!("/v1/responses/resp_DIGITS{turn}{rest}");
    for (method, path, body) in [
        (Method::GET, of_conversation(""), &none),
        (Method::POST, of_conversation(""), &metadata),
        (Method::DELETE, of_conversation(""), &none),
        (Method::GET, of_conversation("/items"), &none),
        (Method::GET, of_conversation("/items?order=asc&limit=1"), &none),
        (Method::POST, of_conversation("/items"), &items),
        (Method::GET, of_conversation("/items/msg_DIGITS"), &none),
        (Method::POST, "/v1/responses".to_owned(), &next),
        (Method::POST, "/v1/responses".to_owned(), &streamed),
        (Method::GET, of_response(""), &none),
        (Method::GET, of_response("?stream=true&starting_after=1"), &none),
        (Method::GET, of_response("/input_items"), &none),
        (Method::POST, of_response("/cancel"), &none),
        (Method::DELETE, of_response(""), &none),
    ] {
        for user in ["bob", ""] {
            let request = (&method, path.as_str(), body);
            assert_not_found(&fleet, &redis, request, [&alices, &never], user).await;
        }
    }
    let path = format!("/v1/responses/{response}");
    let mine = ask(&fleet.replicas[0], Method::GET, &path, &none, "alice").await;
    assert_eq!((mine.status, &mine.body["status"]), (200, &json!("completed")));
}

#[tokio::test]
async fn a_turn_that_waits_while_its_session_is_claimed_waits_as_its_user_s() {
    let redis = RedisServer::start();
    let mut fleet = Fleet::on(&redis.url(), 0, "30").await;
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_OLLAMA_SLOTS", "1")];
    fleet.replicas.push(jarvis(&redis.url(), &fleet.ollama.url, &settings));
    until_ok(&fleet.replicas[0], "/health/ready").await;
    let (running, waiting) = (id(), id());
    let mut first = open(&fleet.replicas[0], &running, "").await;
    first.say(&json!({"message": "[[tokens=120]] long"})).await;
    first.until("stream_chunk").await;
    let mut second = open(&fleet.replicas[0], &waiting, "").await;
    second.say(&json!({"message": "[[tokens=5]] waits"})).await;
    let queued = second.until("queued").await;
    let generation =
        queued.last().expect("an event")["generation_id"].as_str().expect("an id").to_owned();
    let ticket = format!("jarvis:{{queue}}:ticket:{generation}");
    let user = || redis.cli(&["HMGET", &ticket, "user", "source"]);
    assert!(user().contains(&waiting), "{}", user());
    assert_eq!(claim(&fleet.replicas[0], &waiting, "alice").await.status, 200);
    let moved = eventually(LIMIT, async || user().trim() == "user:local:alice\nuser:local:alice");
    assert!(moved.await, "{}", user());
    let counted = redis.cli(&["ZRANGE", "jarvis:{queue}:source:user:local:alice", "0", "-1"]);
    assert_eq!(counted.trim(), generation, "the user's share of the queue");
    let messages = messages_until(&fleet.replicas[0], &waiting, "alice", 2).await;
    assert_eq!(messages[1]["content"], expected("[[tokens=5]] waits"));
}

#[tokio::test]
async fn a_claim_of_a_session_that_is_the_caller_s_already_reads_it_once() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    let session = id();
    assert_eq!(chat(&fleet.replicas[0], &session, "[[tokens=3]] hi", "").await.status, 200);
    assert_eq!(claim(&fleet.replicas[0], &session, "alice").await.status, 200);
    let path = format!("{SESSIONS}/ID/claim");
    let request = (&Method::POST, path.as_str(), &json!({}));
    let again = seen_by(&fleet, &redis, request, &session, "alice").await;
    // The end of the turn may be recorded meanwhile.
    let reads = again.3.iter().filter(|function| *function == "jarvis_describe_1").count();
    assert_eq!((again.0, reads), (200, 1), "{:?}", again.3);
    assert!(!again.3.iter().any(|function| function == "jarvis_transfer_1"), "{:?}", again.3);
}

#[tokio::test]
async fn how_long_a_session_is_kept_is_a_setting_that_its_next_turn_applies() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&[]);
    let of = |session_ttl| {
        let settings = [
            ("JARVIS_JWT_SECRET", SECRET),
            ("JARVIS_ANONYMOUS_TTL", "3d"),
            ("JARVIS_SESSION_TTL", session_ttl),
        ];
        jarvis(&redis.url(), &ollama.url, &settings)
    };
    let (some, none) = (of("200d"), of(""));
    for replica in [&some, &none] {
        until_ok(replica, "/health/ready").await;
    }
    let (alices, anonymous) = (id(), id());
    let days = |session: &str| {
        let key = channel(session.parse().expect("a session"));
        let left = ["", ":messages", ":path", ":index", ":events"]
            .map(|name| redis.cli(&["TTL", &format!("{key}{name}")]).trim().to_owned());
        assert!(left.iter().all(|seconds| seconds.len() == left[0].len()), "{left:?}");
        (left[0].parse::<i64>().expect("seconds") + 86_399) / 86_400
    };
    assert_eq!(chat(&some, &anonymous, "[[tokens=3]] hi", "").await.status, 200);
    assert_eq!(days(&anonymous), 3);
    // What a clear removes comes back with an expiry.
    let mut socket = open(&some, &anonymous, "").await;
    socket.say(&json!({"type": "clear_history"})).await;
    socket.until("history_cleared").await;
    assert_eq!(chat(&some, &anonymous, "[[tokens=3]] hi", "").await.status, 200);
    assert_eq!(days(&anonymous), 3);
    for (replica, kept) in [(&none, 0), (&some, 200), (&none, 0)] {
        assert_eq!(chat(replica, &alices, "[[tokens=3]] hi", "alice").await.status, 200);
        assert_eq!(days(&alices), kept);
    }
    // An anonymous session that becomes a user's is kept as such, too.
    assert_eq!(claim(&some, &anonymous, "alice").await.status, 200);
    assert_eq!(chat(&some, &anonymous, "[[tokens=3]] hi", "alice").await.status, 200);
    assert_eq!(days(&anonymous), 200);
}

#[tokio::test]
async fn a_socket_that_stays_open_over_the_end_of_its_session_gets_the_turns_that_follow() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&[]);
    let replica = &jarvis(&redis.url(), &ollama.url, &[("JARVIS_ANONYMOUS_TTL", "8s")]);
    until_ok(replica, "/health/ready").await;
    let session = id();
    let mut socket = open(replica, &session, "").await;
    for turn in 0..3 {
        socket.say(&json!({"message": format!("[[tokens=3]] {turn}")})).await;
        socket.until("stream_end").await;
    }
    let key = channel(session.parse().expect("a session"));
    let is_gone = async || redis.cli(&["EXISTS", &key]).trim() == "0";
    assert!(eventually(LIMIT, is_gone).await, "it expires");
    socket.say(&json!({"message": "[[tokens=3]] after"})).await;
    // The events of the session begin anew, so that the socket's cursor names none of them.
    let events = socket.until("history").await;
    let history = events.last().expect("a history").to_string();
    assert!(!history.contains("[[tokens=3]] 2"), "{history}");
    socket.say(&json!({"message": "[[tokens=3]] next"})).await;
    socket.until("stream_end").await;
    let stored = read(replica, &session, "").await.body;
    assert_eq!(stored["total"], 4, "{stored}");
}
