//! The limits of users, API keys and addresses.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use axum::http::response::Parts;
use futures_util::future::join_all;
use jarvis::config::LimitSettings;
use jarvis::limits::{LimitKind, RateLimits, RequestKind, Standing, Subject};
use jarvis::membership::MembershipStore;
use jarvis::session::Owner;
use jarvis::session::model::User;
use jarvis::sign_in::{ApiKeyStore, CreatedKey};
use jarvis::source::SourceKey;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use support::client::{Reply, Socket, get, http, send, until_ok};
use support::eventually;
use support::fleet::ready_replicas;
use support::metrics::until_metric_line;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::{RedisCluster, RedisServer};
use support::redis_time::{begin_timing, longest, takes_moments, timed_calls};
use support::setup::{Setup, setup};
use support::store::connect;
use support::tokens::{SECRET, token};
use uuid::Uuid;

const SIGN_IN: (&str, &str) = ("JARVIS_JWT_SECRET", SECRET);
const PROXY: (&str, &str) = ("JARVIS_TRUSTED_PROXIES", "127.0.0.1");

fn id() -> String {
    Uuid::new_v4().to_string()
}

/// Returns the request of a short turn.
fn turn(server: &Process) -> RequestBuilder {
    let body = json!({"message": "[[tokens=3]] hi"});
    http().post(format!("{}/api/v1/chat", server.url)).json(&body)
}

async fn turn_of(server: &Process, user: &str) -> Reply {
    send(turn(server).bearer_auth(token(user))).await
}

async fn turn_from(server: &Process, address: &str) -> Reply {
    send(turn(server).header("x-forwarded-for", address)).await
}

fn code(reply: &Reply) -> (u16, &str) {
    (reply.status, reply.body["code"].as_str().unwrap_or_default())
}

fn code_of(reply: &Reply) -> (u16, String) {
    (reply.status, reply.body["code"].as_str().unwrap_or_default().to_owned())
}

fn header<'a>(reply: &'a Reply, name: &str) -> &'a str {
    reply.headers.get(name).map_or("", |value| value.to_str().expect("a text"))
}

/// Returns what a caller has used of a limit, as the API reports it.
async fn usage(request: RequestBuilder, limit: &str) -> Value {
    let reply = send(request).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let limits = reply.body["limits"].as_array().expect("a list").clone();
    limits.into_iter().find(|it| it["limit"] == limit).unwrap_or_default()
}

fn usage_of(server: &Process, user: &str) -> RequestBuilder {
    http().get(format!("{}/api/v1/usage", server.url)).bearer_auth(token(user))
}

/// Sends forty turns of one user to each of three replicas at once, and returns how many were
/// admitted, once all of them came within a second.
async fn admitted_of_a_burst(redis: &str) -> usize {
    let ollama = ollama_sim(&["--rate", "10000"]);
    // All may run at once, and nothing but the limit of turns refuses one.
    let hosts = format!("{};slots=200", ollama.url);
    let replicas = ready_replicas(3, redis, &hosts, &[SIGN_IN]).await;
    let client = http();
    let warm = |replica: &Process| client.get(format!("{}/health/live", replica.url)).send();
    for attempt in 0..10 {
        // Each request has a connection of its own.
        join_all(replicas.iter().flat_map(|replica| (0..40).map(move |_| warm(replica)))).await;
        let bearer = token(&format!("user-{attempt}"));
        let ask = |replica: &Process| {
            let body = json!({"message": "[[tokens=1]] hi", "stream": true});
            let url = format!("{}/api/v1/chat", replica.url);
            client.post(url).bearer_auth(&bearer).json(&body).send()
        };
        let began = Instant::now();
        let requests = (0..40).flat_map(|_| replicas.iter().map(ask));
        let responses = join_all(requests).await;
        let took = began.elapsed();
        let mut admitted = 0;
        for response in responses {
            let response = response.expect("a response");
            match response.status().as_u16() {
                200 => admitted += 1,
                429 => {
                    assert_eq!(response.headers()["retry-after"], "1");
                    let left = response.headers()["ratelimit"].to_str().expect("a text");
                    assert!(left.starts_with("\"user-turns\";r=0;t=1, "), "{left}");
                }
                other => panic!("{other}: {:?}", response.text().await),
            }
        }
        // One turn comes back each second: on a busy machine a burst may take longer.
        if took < Duration::from_secs(1) {
            return admitted;
        }
        let most = 60 + usize::try_from(took.as_secs()).expect("a number");
        assert!((60..=most).contains(&admitted), "{admitted} in {took:?}");
    }
    panic!("no burst took less than a second");
}

#[tokio::test]
async fn sixty_turns_a_minute_hit_from_three_replicas_at_once_let_exactly_sixty_through() {
    let redis = RedisServer::start();
    assert_eq!(admitted_of_a_burst(&redis.url()).await, 60);
}

#[tokio::test]
async fn in_a_cluster_sixty_turns_a_minute_hit_from_three_replicas_let_exactly_sixty_through() {
    let redis = RedisCluster::start();
    assert_eq!(admitted_of_a_burst(&redis.url()).await, 60);
}

/// Returns the limits of one replica, without a server.
async fn limits(redis: &str, replica: &str, settings: &LimitSettings) -> RateLimits {
    let redis = connect(redis).await;
    let membership = MembershipStore::new(redis.clone(), replica.to_owned());
    RateLimits::start(&redis, membership, settings.clone())
}

fn caller(user: &str, key: Option<&str>, address: &str) -> Arc<Subject> {
    let source = SourceKey::new(b"a key").source(address.parse().expect("an address"));
    let owner = Owner::User(User::local(user).expect("a name"));
    Arc::new(Subject { owner, key: key.map(str::to_owned), source })
}

fn used(standings: &[Standing], kind: LimitKind) -> u64 {
    standings.iter().find(|it| it.kind == kind).expect("the limit").used
}

#[tokio::test]
async fn in_a_cluster_a_request_takes_from_all_limits_of_its_caller_or_from_none() {
    let redis = RedisCluster::start();
    let settings = LimitSettings {
        user_requests_per_minute: 1000,
        user_turns_per_minute: 100,
        key_turns_per_minute: 100,
        address_requests_per_minute: 1000,
        address_turns_per_minute: 40,
        ..LimitSettings::default()
    };
    let replicas = [
        limits(&redis.url(), "r1", &settings).await,
        limits(&redis.url(), "r2", &settings).await,
        limits(&redis.url(), "r3", &settings).await,
    ];
    // Several users share an address, whose limits lie on another node than theirs.
    let users: Vec<_> =
        (0..4).map(|number| caller(&format!("user-{number}"), Some("k"), "2001:db8::1")).collect();
    let admit = async |number: usize| {
        let admitted =
            replicas[number % 3].admit(&users[number % 4], RequestKind::Turn, None).await;
        match admitted {
            Ok(admission) => {
                admission.turn.expect("a turn").keep();
                true
            }
            Err(refusal) => {
                assert_eq!(refusal.kind(), LimitKind::AddressTurns);
                false
            }
        }
    };
    let admitted = join_all((0..120).map(admit)).await.into_iter().filter(|it| *it).count();
    // One turn comes back in 1.5 s.
    assert!((40..=42).contains(&admitted), "{admitted}");
    let mut of_users = 0;
    for user in &users {
        let standings = replicas[0].usage(user).await;
        let (turns, of_key) =
            (used(&standings, LimitKind::UserTurns), used(&standings, LimitKind::KeyTurns));
        assert_eq!(turns, of_key);
        of_users += turns;
    }
    // Refused turns took nothing; of a user's own limit one turn comes back in 0.6 s.
    assert!(of_users <= admitted as u64, "{of_users} of {admitted}");
    assert!(of_users + 20 >= admitted as u64, "{of_users} of {admitted}");
}

#[tokio::test]
async fn every_limited_response_shows_what_is_left_and_no_other_does() {
    const PAGE: &str = "https://app.example";
    let settings = [
        SIGN_IN,
        PROXY,
        ("JARVIS_USER_REQUESTS_PER_MINUTE", "100"),
        ("JARVIS_ALLOWED_ORIGINS", PAGE),
    ];
    let Setup { replica, redis, ollama: _ollama } = setup("1000", &settings).await;
    let bearer = || token("alice");
    let url = |path: &str| format!("{}{path}", replica.url);
    let replies = [
        (200, send(turn(&replica).bearer_auth(bearer())).await),
        (422, send(http().post(url("/api/v1/chat")).bearer_auth(bearer()).body("{")).await),
        (404, send(http().get(url("/api/v1/nothing")).bearer_auth(bearer())).await),
        (200, send(http().get(url("/api/v1/models")).bearer_auth(bearer())).await),
        (200, send(usage_of(&replica, "alice")).await),
        (200, send(http().get(url("/api/v1/models")).header("x-forwarded-for", "192.0.2.1")).await),
    ];
    for (number, (status, reply)) in replies.iter().enumerate() {
        assert_eq!(reply.status, *status, "{}", reply.body);
        let (left, policy) = (header(reply, "ratelimit"), header(reply, "ratelimit-policy"));
        let expected = match number {
            0 | 1 => {
                assert!(policy.contains("\"user-turns\";q=60;w=60;qu=\"turns\""), "{policy}");
                // A request that is no turn gives the turn back.
                assert!(left.contains("\"user-turns\";r=59;t=1"), "{number}: {left}");
                ("\"user-requests\";r=", "\"user-requests\";q=100;w=60")
            }
            5 => ("\"address-requests\";r=1199;t=1", "\"address-requests\";q=1200;w=60"),
            _ => ("\"user-requests\";r=", "\"user-requests\";q=100;w=60"),
        };
        assert!(left.starts_with(expected.0), "{number}: {left}");
        assert!(policy.starts_with(expected.1), "{number}: {policy}");
    }
    let of_page = http().get(url("/api/v1/models")).bearer_auth(bearer()).header("origin", PAGE);
    let readable = send(of_page).await;
    let readable = header(&readable, "access-control-expose-headers");
    assert!(readable.starts_with("ratelimit, ratelimit-policy, retry-after"), "{readable}");
    let bearer = format!("Bearer {}", bearer());
    let headers = [("authorization", &*bearer), ("x-forwarded-for", "192.0.2.7")];
    let (_socket, head) = open(&replica, &headers).await.expect("a handshake");
    for policy in ["user-requests", "user-sockets", "address-requests", "address-sockets"] {
        let left = head["ratelimit"].to_str().expect("a text");
        assert!(left.contains(&format!("\"{policy}\";r=")), "{left}");
    }
    for path in ["/health", "/metrics", "/openapi.json", "/api/v1/models", "/api/v1/usage"] {
        let reply = get(&replica, path).await;
        assert_eq!((reply.status, header(&reply, "ratelimit")), (200, ""), "{path}");
    }
    // The data of a caller goes by itself.
    let keys = redis.cli(&["KEYS", "jarvis:{limits:*"]);
    assert!(keys.lines().count() >= 4, "{keys}");
    for key in keys.lines() {
        let left: i64 = redis.cli(&["TTL", key]).trim().parse().expect("seconds");
        // It may have expired since.
        assert!((0..=86_400).contains(&left) || left == -2, "{key}: {left}");
    }
}

/// Opens a WebSocket, and returns it with the head of the response.
///
/// # Errors
/// The head and the body of a refusal.
async fn open(
    server: &Process,
    headers: &[(&'static str, &str)],
) -> Result<(impl Sized, HeaderMap), (Parts, Value)> {
    use tokio_tungstenite::tungstenite::Error;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    let mut request = server.websocket("/ws").into_client_request().expect("a request");
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().expect("a value"));
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, response)) => Ok((socket, response.into_parts().0.headers)),
        Err(Error::Http(response)) => {
            let (head, body) = response.into_parts();
            let body = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
            Err((head, body))
        }
        Err(error) => panic!("no handshake: {error}"),
    }
}

#[tokio::test]
async fn tokens_of_a_day_are_counted_exactly_and_refuse_turns_and_nothing_else_once_used() {
    let settings = [SIGN_IN, ("JARVIS_USER_TOKENS_PER_DAY", "40")];
    let Setup { replica, redis, ollama: _ollama } = setup("1000", &settings).await;
    let mut sum = 0;
    loop {
        let reply = turn_of(&replica, "alice").await;
        if reply.status != 200 {
            assert_eq!(code(&reply), (429, "quota_exceeded"), "{}", reply.body);
            let after: u64 = header(&reply, "retry-after").parse().expect("seconds");
            // One token comes back in 36 minutes, after those that were used beyond the last one.
            let missing = sum - 39;
            assert!((2159 * missing..=2160 * missing).contains(&after), "{after}: {missing}");
            let left = header(&reply, "ratelimit");
            assert!(left.starts_with(&format!("\"user-tokens\";r=0;t={after}, ")), "{left}");
            break;
        }
        let usage_of_turn = &reply.body["usage"];
        let tokens = |kind: &str| usage_of_turn[kind].as_u64().expect("a number");
        sum += tokens("prompt_tokens") + tokens("completion_tokens");
        let reported = usage(usage_of(&replica, "alice"), "user-tokens").await;
        assert_eq!(reported["used"], sum, "{reported}");
        assert_eq!(reported["remaining"], 40_u64.saturating_sub(sum));
        assert!(sum < 100, "no turn is refused");
    }
    assert!(sum >= 40);
    assert_eq!(turn_of(&replica, "bob").await.status, 200);
    let url = format!("{}/api/v1/models", replica.url);
    assert_eq!(send(http().get(url).bearer_auth(token("alice"))).await.status, 200);
    let once = redis.cli(&["KEYS", "jarvis:{limits:*}:once:*"]);
    let mark = once.lines().next().expect("a mark");
    assert!(redis.cli(&["TTL", mark]).trim().parse::<i64>().expect("seconds") > 0);
}

#[tokio::test]
async fn sockets_of_a_user_are_bounded_over_all_replicas_and_fall_with_a_killed_replica() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "1000"]);
    let settings = [SIGN_IN, ("JARVIS_USER_SOCKETS", "3")];
    let [first, second] = [0; 2].map(|_| jarvis(&redis.url(), &ollama.url, &settings));
    for replica in [&first, &second] {
        until_ok(replica, "/health/ready").await;
    }
    let bearer = |user: &str| format!("Bearer {}", token(user));
    let alice = bearer("alice");
    let alice = [("authorization", &*alice)];
    let lost = [open(&first, &alice).await.ok(), open(&first, &alice).await.ok()];
    let kept = open(&second, &alice).await.ok();
    assert!(lost.iter().chain([&kept]).all(Option::is_some));
    for replica in [&first, &second] {
        let Err((head, body)) = open(replica, &alice).await else { panic!("a fourth socket") };
        assert_eq!((head.status.as_u16(), &body["code"]), (429, &json!("rate_limited")));
        assert_eq!(head.headers["retry-after"], "5");
        let left = head.headers["ratelimit"].to_str().expect("a text");
        assert!(left.starts_with("\"user-sockets\";r=0;t=5, "), "{left}");
    }
    let reported = usage(usage_of(&second, "alice"), "user-sockets").await;
    assert_eq!((&reported["used"], &reported["quota"]), (&json!(3), &json!(3)));
    let bob = bearer("bob");
    assert!(open(&second, &[("authorization", &*bob)]).await.is_ok(), "another user has its own");
    // A refused handshake left nothing, and one that is closed is free again.
    drop(kept);
    let mut open_again = None;
    let opened = eventually(LIMIT, async || {
        open_again = open(&second, &alice).await.ok();
        open_again.is_some()
    });
    assert!(opened.await, "a closed socket stays held");
    first.kill();
    let used = async || usage(usage_of(&second, "alice"), "user-sockets").await["used"].clone();
    let fallen = eventually(Duration::from_secs(10), async || used().await == 1).await;
    assert!(fallen, "{} sockets are reported", used().await);
    let mut more = Vec::new();
    let fallen = eventually(Duration::from_secs(10), async || {
        more.extend(open(&second, &alice).await.ok());
        more.len() == 2
    });
    assert!(fallen.await, "{} sockets of the killed replica fell", more.len());
    assert!(open(&second, &alice).await.is_err());
}

#[tokio::test]
async fn sockets_of_a_user_that_redis_lost_are_held_again_and_a_refused_one_is_not() {
    let settings = [SIGN_IN, ("JARVIS_USER_SOCKETS", "2")];
    let Setup { replica, redis, ollama: _ollama } = setup("1000", &settings).await;
    let bearer = format!("Bearer {}", token("alice"));
    let alice = [("authorization", &*bearer)];
    let _open = [open(&replica, &alice).await.ok(), open(&replica, &alice).await.ok()];
    assert!(open(&replica, &alice).await.is_err());
    let key = redis.cli(&["KEYS", "jarvis:{limits:u:*}:sockets"]).trim().to_owned();
    let held = || redis.cli(&["ZCARD", &key]).trim().to_owned();
    assert_eq!(held(), "2");
    redis.cli(&["DEL", &key]);
    redis.restart();
    assert!(eventually(LIMIT, async || held() == "2").await, "{} are held", held());
    assert!(open(&replica, &alice).await.is_err());
    assert_eq!(held(), "2");
}

#[tokio::test]
async fn a_turn_that_came_back_by_itself_is_not_given_back_once_more() {
    let redis = RedisServer::start();
    let settings = LimitSettings { user_turns_per_minute: 60, ..LimitSettings::default() };
    let settings = LimitSettings { user_requests_per_minute: 0, ..settings };
    let limits = limits(&redis.url(), "r1", &settings).await;
    let user = caller("alice", None, "127.0.0.1");
    let admit = async || limits.admit(&user, RequestKind::Turn, None).await.ok();
    let late = admit().await.expect("a turn").turn.expect("a permit");
    // Its key expires when all of the limit is back.
    let keys = || redis.cli(&["KEYS", "jarvis:{limits:u:*}:turns"]).trim().to_owned();
    assert!(eventually(LIMIT, async || keys().is_empty()).await, "{}", keys());
    let mut kept = 0;
    while let Some(admission) = admit().await {
        admission.turn.expect("a permit").keep();
        kept += 1;
    }
    assert!((60..=61).contains(&kept), "{kept}");
    let until = redis.cli(&["GET", &keys()]);
    late.give_back().await;
    assert_eq!(redis.cli(&["GET", &keys()]), until, "nothing was left to give back");
    // One that has not come back is given back whole.
    redis.cli(&["DEL", &keys()]);
    let turns: Vec<_> = [admit().await, admit().await, admit().await].into();
    for admission in turns.into_iter().rev().flatten() {
        admission.turn.expect("a permit").give_back().await;
    }
    assert_eq!(used(&limits.usage(&user).await, LimitKind::UserTurns), 0);
}

/// Takes the hold of a socket.
async fn hold(limits: &RateLimits, user: &Arc<Subject>) -> Option<impl Sized + use<>> {
    limits.admit(user, RequestKind::Socket, None).await.ok()?.socket
}

#[tokio::test]
async fn a_socket_that_is_closed_while_redis_refuses_it_is_released_with_the_next_renewal() {
    let redis = RedisServer::start();
    let settings = LimitSettings { user_sockets: 2, ..LimitSettings::default() };
    let limits = limits(&redis.url(), "r1", &settings).await;
    let user = caller("alice", None, "127.0.0.1");
    let (first, _second) = (hold(&limits, &user).await, hold(&limits, &user).await);
    let key = redis.cli(&["KEYS", "jarvis:{limits:u:*}:sockets"]).trim().to_owned();
    let held = || redis.cli(&["ZCARD", &key]).trim().to_owned();
    assert_eq!(held(), "2");
    redis.cli(&["ACL", "SETUSER", "jarvis", "resetkeys"]);
    drop(first);
    let refused = async || redis.cli(&["INFO", "errorstats"]).contains("NOPERM");
    assert!(eventually(LIMIT, refused).await, "it is not released at once");
    redis.cli(&["ACL", "SETUSER", "jarvis", "~jarvis:*"]);
    assert_eq!(held(), "2", "Redis still holds the closed one");
    let released = async || {
        limits.renew_sockets().await;
        held() == "1"
    };
    assert!(eventually(LIMIT, released).await, "{} are held", held());
}

#[tokio::test]
async fn a_renewal_that_fails_for_one_user_is_made_for_the_others() {
    let redis = RedisServer::start();
    let settings = LimitSettings { user_sockets: 2, ..LimitSettings::default() };
    let limits = limits(&redis.url(), "r1", &settings).await;
    let mut sockets = Vec::new();
    for number in 0..20 {
        sockets.push(hold(&limits, &caller(&format!("user-{number}"), None, "127.0.0.1")).await);
    }
    let keys = redis.cli(&["KEYS", "jarvis:{limits:u:*}:sockets"]);
    let keys: Vec<&str> = keys.lines().collect();
    assert_eq!(keys.len(), 20);
    // Redis loses all holds, and cannot hold any of these users again.
    let (bad, good) = keys.split_at(10);
    for key in &keys {
        redis.cli(&["DEL", key]);
    }
    for key in bad {
        redis.cli(&["SET", key, "not a sorted set"]);
    }
    limits.renew_sockets().await;
    for key in good {
        assert_eq!(redis.cli(&["ZCARD", key]).trim(), "1");
    }
}

#[tokio::test]
async fn a_key_of_a_repeat_opens_no_socket_beyond_those_of_its_user() {
    let settings = [SIGN_IN, ("JARVIS_USER_SOCKETS", "1")];
    let Setup { replica, redis: _redis, ollama: _ollama } = setup("1000", &settings).await;
    let bearer = format!("Bearer {}", token("alice"));
    let key = id();
    let headers = [("authorization", &*bearer), ("idempotency-key", &*key)];
    let _open = open(&replica, &headers).await.expect("the first");
    let (head, _) = open(&replica, &headers).await.map(drop).expect_err("the second");
    assert_eq!(head.status, 429);
}

#[tokio::test]
async fn while_redis_is_away_each_replica_limits_alone() {
    let settings = [SIGN_IN, PROXY, ("JARVIS_USER_REQUESTS_PER_MINUTE", "6")];
    let Setup { replica, redis, ollama: _ollama } = setup("1000", &settings).await;
    let url = format!("{}/api/v1/models", replica.url);
    let ask = async || send(http().get(&url).bearer_auth(token("alice"))).await;
    assert_eq!(ask().await.status, 200);
    redis.kill();
    let began = Instant::now();
    let mut statuses = Vec::new();
    for _ in 0..8 {
        let reply = ask().await;
        assert!(header(&reply, "ratelimit").starts_with("\"user-requests\";r="), "{}", reply.body);
        statuses.push(reply.status);
    }
    // One comes back in 10 s.
    assert!(began.elapsed() < Duration::from_secs(10), "a replica waits for Redis again and again");
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 429, 429]);
    let other = send(http().get(&url).bearer_auth(token("bob"))).await;
    assert_eq!(other.status, 200);
    redis.restart();
    // Redis knows of one request only; alone, one comes back in 10 s.
    let exact = async || {
        let reply = ask().await;
        reply.status == 200 && !header(&reply, "ratelimit").starts_with("\"user-requests\";r=0")
    };
    assert!(eventually(Duration::from_secs(9), exact).await, "Redis does not decide again");
}

/// Sends the same requests for these callers, and returns which were refused, by which limit.
async fn refusals(limits: &RateLimits, callers: &[Arc<Subject>]) -> Vec<Option<LimitKind>> {
    let mut outcomes = Vec::new();
    for number in 0..80_usize {
        let kind = if number % 5 == 0 { RequestKind::Plain } else { RequestKind::Turn };
        // Each has a key of its own, so that none repeats another.
        let key = (number % 4 == 0).then(id);
        let caller = &callers[(number + number / 5) % 3];
        let outcome = match limits.admit(caller, kind, key.as_deref()).await {
            Ok(admission) => {
                let refusal = admission.turn.as_ref().and_then(|turn| turn.refusal().cloned());
                match admission.turn {
                    Some(turn) if number % 7 == 0 => turn.give_back().await,
                    Some(turn) => turn.keep(),
                    None => {}
                }
                refusal.map(|refusal| refusal.kind())
            }
            Err(refusal) => Some(refusal.kind()),
        };
        outcomes.push(outcome);
    }
    outcomes
}

#[tokio::test]
async fn alone_a_replica_decides_about_the_same_requests_as_redis_does() {
    let redis = RedisServer::start();
    // The first of them comes back after 5 s.
    let settings = LimitSettings {
        user_requests_per_minute: 12,
        user_turns_per_minute: 9,
        key_turns_per_minute: 5,
        address_requests_per_minute: 11,
        address_turns_per_minute: 7,
        ..LimitSettings::default()
    };
    let limits = limits(&redis.url(), "r1", &settings).await;
    let callers = |name: &str, network: &str| {
        [("a", None, "::1"), ("a", Some("k"), "::1"), ("b", None, "")].map(
            |(user, key, address)| {
                let address = if address.is_empty() { network } else { address };
                caller(&format!("{name}-{user}"), key, address)
            },
        )
    };
    let began = Instant::now();
    let by_redis = refusals(&limits, &callers("one", "2001:db8::1")).await;
    assert!(redis.cli(&["KEYS", "jarvis:{limits:*"]).lines().count() >= 5);
    assert!(began.elapsed() < Duration::from_secs(5), "nothing comes back meanwhile");
    redis.kill();
    // The first call notices that Redis is away.
    limits.usage(&caller("nobody", None, "::1")).await;
    let began = Instant::now();
    let alone = refusals(&limits, &callers("two", "2001:db8:1::1")).await;
    assert!(began.elapsed() < Duration::from_secs(5), "nothing comes back meanwhile");
    assert_eq!(alone, by_redis);
    for kind in [LimitKind::UserRequests, LimitKind::KeyTurns, LimitKind::AddressTurns] {
        assert!(alone.contains(&Some(kind)), "{kind:?} refuses nothing: {alone:?}");
    }
}

#[tokio::test]
async fn loopback_is_never_limited_by_address_and_an_address_behind_a_trusted_proxy_is() {
    let settings = [
        PROXY,
        ("JARVIS_ADDRESS_TURNS_PER_MINUTE", "2"),
        ("JARVIS_ADDRESS_REQUESTS_PER_MINUTE", "100"),
    ];
    let Setup { replica, redis, ollama: _ollama } = setup("1000", &settings).await;
    for _ in 0..5 {
        let reply = send(turn(&replica)).await;
        assert_eq!((reply.status, header(&reply, "ratelimit")), (200, ""), "{}", reply.body);
    }
    assert_eq!(redis.cli(&["KEYS", "jarvis:{limits:*"]).trim(), "", "loopback costs nothing");
    let spoofed = "198.51.100.1, 192.0.2.1";
    for address in ["192.0.2.1", spoofed] {
        assert_eq!(turn_from(&replica, address).await.status, 200, "{address}");
    }
    let refused = turn_from(&replica, "192.0.2.1").await;
    assert_eq!(code(&refused), (429, "rate_limited"));
    let left = header(&refused, "ratelimit");
    assert!(left.starts_with("\"address-turns\";r=0;t="), "{left}");
    assert_eq!(turn_from(&replica, "192.0.2.2").await.status, 200, "another address");
    // One /64 is one address, and the networks of one /56 have twice as much together.
    let statuses = async |addresses: &[&str]| {
        let mut statuses = Vec::new();
        for address in addresses {
            statuses.push(turn_from(&replica, address).await.status);
        }
        statuses
    };
    let one = ["2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:1:ffff::3"];
    assert_eq!(statuses(&one).await, [200, 200, 429]);
    let beside = ["2001:db8:0:2::1", "2001:db8:0:3::1", "2001:db8:0:4::1", "2001:db8:1:4::1"];
    assert_eq!(statuses(&beside).await, [200, 200, 429, 200]);
}

#[tokio::test]
async fn each_failed_sign_in_costs_its_address_a_request_and_the_last_one_is_429() {
    let settings = [
        SIGN_IN,
        PROXY,
        ("JARVIS_ADDRESS_REQUESTS_PER_MINUTE", "4"),
        ("JARVIS_METRICS_TOKEN", "metrics-0123456789"),
    ];
    let Setup { replica, redis, ollama: _ollama } = setup("1000", &settings).await;
    let guess = format!("sk-jarvis-{}", "0".repeat(48));
    redis.cli(&["CONFIG", "SET", "slowlog-max-len", "100000"]);
    redis.cli(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    let url = |path: &str| format!("{}{path}", replica.url);
    for (address, path, bearer) in [
        ("192.0.2.1", "/api/v1/models", "wrong"),
        ("192.0.2.2", "/api/v1/models", &*guess),
        ("192.0.2.3", "/metrics", "wrong"),
        ("192.0.2.4", "/api/v1/nothing", "wrong"),
    ] {
        let ask = async || {
            let request = http().get(url(path)).bearer_auth(bearer);
            code_of(&send(request.header("x-forwarded-for", address)).await)
        };
        for left in (0..4).rev() {
            let request = http().get(url(path)).bearer_auth(bearer);
            let refused = send(request.header("x-forwarded-for", address)).await;
            assert_eq!(code(&refused), (401, "token_invalid"), "{path}");
            // It shows what it cost: one of four, of which one comes back in 15 s.
            let standing = format!("\"address-requests\";r={left};t=");
            let shown = header(&refused, "ratelimit");
            assert!(shown.starts_with(&standing), "{path} {left}: {shown}");
            let policy = header(&refused, "ratelimit-policy");
            assert_eq!(policy, "\"address-requests\";q=4;w=60", "{path}");
        }
        for _ in 0..20 {
            assert_eq!(ask().await, (429, "rate_limited".to_owned()), "{path}");
        }
    }
    // The guesses that were refused with 429 asked Redis for no key.
    let log = redis.cli(&["SLOWLOG", "GET", "-1"]);
    let checks = log.lines().filter(|line| line.starts_with("jarvis_check_api_keys_")).count();
    assert_eq!(checks, 4);
    for number in 0..5 {
        let headers = [("authorization", "Bearer wrong"), ("x-forwarded-for", "192.0.2.5")];
        let Err((head, _)) = open(&replica, &headers).await else { panic!("a socket") };
        assert_eq!(head.status.as_u16(), if number < 4 { 401 } else { 429 });
        let left = head.headers["ratelimit"].to_str().expect("a text");
        assert!(left.starts_with("\"address-requests\";r="), "{left}");
    }
    // The right token of the metrics costs nothing, and loopback is free.
    for _ in 0..20 {
        let metrics = http().get(url("/metrics")).bearer_auth("metrics-0123456789");
        let metrics = metrics.header("x-forwarded-for", "192.0.2.3").send().await;
        assert_eq!(metrics.expect("a response").status(), 200);
        let local = send(http().get(url("/api/v1/models")).bearer_auth("wrong")).await;
        assert_eq!((code(&local), header(&local, "ratelimit")), ((401, "token_invalid"), ""));
    }
}

#[tokio::test]
async fn a_socket_that_guesses_tokens_costs_its_address_a_request_each_and_then_gets_429() {
    let settings = [SIGN_IN, PROXY, ("JARVIS_ADDRESS_REQUESTS_PER_MINUTE", "4")];
    let Setup { replica, redis: _redis, ollama: _ollama } = setup("1000", &settings).await;
    let bearer = format!("Bearer {}", token("alice"));
    let headers = [("authorization", &*bearer), ("x-forwarded-for", "192.0.2.1")];
    let (mut socket, ..) = Socket::open_with(&replica, "/ws", &headers).await.expect("a socket");
    let mut codes = Vec::new();
    // The handshake was one request; of two kinds of failure each costs one.
    for token in ["wrong", &*token("bob"), "wrong", "wrong"] {
        socket.say(&json!({"type": "auth", "token": token})).await;
        codes.push(socket.event().await["code"].as_str().expect("a code").to_owned());
    }
    assert_eq!(codes, ["token_invalid", "token_of_another", "token_invalid", "rate_limited"]);
    // A right token costs nothing, and a socket has four checked a second.
    let began = Instant::now();
    for _ in 0..5 {
        socket.say(&json!({"type": "auth", "token": token("alice")})).await;
    }
    for _ in 0..5 {
        assert_eq!(socket.event().await["type"], "authenticated");
    }
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_api_key_that_is_valid_costs_one_request_of_its_address_however_it_is_checked() {
    let settings = [PROXY, ("JARVIS_ADDRESS_REQUESTS_PER_MINUTE", "1000")];
    let Setup { replica, redis, ollama: _ollama } = setup("1000", &settings).await;
    let store = ApiKeyStore::new(connect(&redis.url()).await);
    let CreatedKey::Key(key, _) = store.create("alice").await.expect("Redis") else { panic!() };
    let url = format!("{}/api/v1/models", replica.url);
    for left in [999, 998] {
        let request = http().get(&url).bearer_auth(key.expose());
        let reply = send(request.header("x-forwarded-for", "192.0.2.1")).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let standing = header(&reply, "ratelimit");
        // One request comes back each 60 ms.
        let least = format!("\"address-requests\";r={left};");
        let more = "\"address-requests\";r=999;";
        assert!(standing.contains(&least) || standing.contains(more), "{standing}");
    }
}

#[tokio::test]
async fn no_address_is_counted_and_no_replica_is_ready_before_the_key_of_addresses_is_agreed_on() {
    const KEY: &str = "jarvis:{source}:key";
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    // Bytes that are no text cannot be read as the key.
    redis.cli(&["HSET", KEY, "a", "b"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[PROXY]);
    let waits = async || {
        let reply = get(&replica, "/health/ready").await;
        reply.status == 503 && reply.body["detail"].to_string().contains("key of addresses")
    };
    assert!(eventually(LIMIT, waits).await, "it is not reported");
    let refused = turn_from(&replica, "192.0.2.1").await;
    assert_eq!(code(&refused), (503, "store_unavailable"));
    assert_eq!(redis.cli(&["KEYS", "jarvis:{limits:a:*"]).trim(), "", "an address was counted");
    // A key that is set has not to be agreed on.
    let key = ("JARVIS_SOURCE_KEY", "0123456789abcdef");
    let other = jarvis(&redis.url(), &ollama.url, &[PROXY, key]);
    until_ok(&other, "/health/ready").await;
    assert_eq!(turn_from(&other, "192.0.2.1").await.status, 200);
    redis.cli(&["DEL", KEY]);
    until_ok(&replica, "/health/ready").await;
    assert_eq!(turn_from(&replica, "192.0.2.1").await.status, 200);
}

#[tokio::test]
async fn a_repeat_and_a_refused_request_cost_no_turn_and_a_repeat_is_answered_without_one() {
    let settings = [SIGN_IN, ("JARVIS_USER_TURNS_PER_MINUTE", "1")];
    let Setup { replica, redis: _redis, ollama: _ollama } = setup("1000", &settings).await;
    let turns = async || usage(usage_of(&replica, "alice"), "user-turns").await["used"].clone();
    let post = async |body: Value, key: Option<&str>| {
        let request = http().post(format!("{}/api/v1/chat", replica.url));
        let request = request.bearer_auth(token("alice")).json(&body);
        send(match key {
            Some(key) => request.header("idempotency-key", key),
            None => request,
        })
        .await
    };
    let refused = [
        (json!({"message": ""}), 422),
        (json!({"message": "hi", "session_id": "no"}), 422),
        (json!({"message": "hi", "model": "nope"}), 404),
    ];
    for (body, status) in refused {
        assert_eq!(post(body.clone(), None).await.status, status, "{body}");
        assert_eq!(turns().await, 0, "{body}");
    }
    let (key, other) = (id(), id());
    let hello = || json!({"message": "[[tokens=3]] hello"});
    let first = post(hello(), Some(&key)).await;
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(turns().await, 1);
    for _ in 0..3 {
        let repeat = post(hello(), Some(&key)).await;
        assert_eq!(repeat.status, 200, "{}", repeat.body);
        assert_eq!(repeat.body["generation_id"], first.body["generation_id"]);
    }
    assert_eq!(code(&post(hello(), Some(&other)).await), (429, "rate_limited"));
    assert_eq!(code(&post(hello(), None).await), (429, "rate_limited"));
    assert_eq!(turns().await, 1);
    // Where none is left, none is given back.
    let repeat = post(hello(), Some(&key)).await;
    assert!(header(&repeat, "ratelimit").contains("\"user-turns\";r=0;t="), "{:?}", repeat.headers);
}

#[tokio::test]
async fn a_repeat_of_a_known_key_is_answered_where_no_request_is_left() {
    let settings = [SIGN_IN, ("JARVIS_USER_REQUESTS_PER_MINUTE", "1")];
    let Setup { replica, redis, ollama } = setup("20", &settings).await;
    // A balancer asks another replica again.
    let other = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&other, "/health/ready").await;
    let post = async |replica: &Process, key: Option<&str>| {
        let body = json!({"message": "[[tokens=20]] hello"});
        let request = http().post(format!("{}/api/v1/chat", replica.url));
        let request = request.bearer_auth(token("alice")).json(&body);
        send(match key {
            Some(key) => request.header("idempotency-key", key),
            None => request,
        })
        .await
    };
    let key = id();
    let (first, second) = tokio::join!(post(&replica, Some(&key)), async {
        let runs = async || get(&ollama, "/sim/stats").await.body["running"] == 1;
        assert!(eventually(LIMIT, runs).await, "the turn does not run");
        post(&other, Some(&key)).await
    });
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(second.status, 200, "while the turn runs: {}", second.body);
    assert_eq!(second.body["generation_id"], first.body["generation_id"]);
    for replica in [&replica, &other] {
        let repeat = post(replica, Some(&key)).await;
        assert_eq!(repeat.body["generation_id"], first.body["generation_id"], "{}", repeat.body);
        let left = header(&repeat, "ratelimit");
        assert!(left.contains("\"user-requests\";r=0;t="), "{left}");
    }
    for unknown in [None, Some(&*id())] {
        assert_eq!(code(&post(&other, unknown).await), (429, "rate_limited"), "{unknown:?}");
    }
    // The repeats of one key that cost nothing are bounded.
    let mut refused = 0;
    for _ in 0..20 {
        refused += u32::from(post(&replica, Some(&key)).await.status == 429);
    }
    assert!((5..20).contains(&refused), "{refused}");
}

/// Expects that of two units of a limit one is left, however often one turn is repeated.
async fn repeats_give_back(setting: &str, limit: &str) -> Setup {
    let setup = setup("1000", &[SIGN_IN, (setting, "2")]).await;
    let key = id();
    for _ in 0..4 {
        let request = turn(&setup.replica).bearer_auth(token("alice"));
        let reply = send(request.header("idempotency-key", &key)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let left = header(&reply, "ratelimit");
        assert!(left.contains(&format!("\"{limit}\";r=1;t=")), "{left}");
    }
    setup
}

#[tokio::test]
async fn a_repeat_while_a_request_is_left_gives_it_back() {
    repeats_give_back("JARVIS_USER_REQUESTS_PER_MINUTE", "user-requests").await;
}

#[tokio::test]
async fn repeats_of_one_key_and_of_one_caller_cost_nothing_a_few_times_only() {
    let setup = setup("1000", &[SIGN_IN, ("JARVIS_USER_REQUESTS_PER_MINUTE", "240")]).await;
    let began = Instant::now();
    let repeat = async |key: &str, times: usize| {
        for _ in 0..times {
            let request = turn(&setup.replica).bearer_auth(token("alice"));
            let reply = send(request.header("idempotency-key", key)).await;
            assert_eq!(reply.status, 200, "{}", reply.body);
        }
    };
    // Four of the limit come back in each second.
    let expect_used = async |cost: u64| {
        let usage = usage(usage_of(&setup.replica, "alice"), "user-requests").await;
        let (used, back) = (usage["used"].as_u64().expect("a number"), began.elapsed().as_secs());
        assert!((cost - 4 * (back + 1)..=cost + 2).contains(&used), "{used} of {cost}, {back} s");
    };
    // Sixteen of the repeats of a key cost nothing.
    repeat("one", 1 + 40).await;
    expect_used(1 + 40 - 16).await;
    // Of the repeats of a caller, 120 in a minute cost nothing.
    for key in 0..9 {
        repeat(&format!("key {key}"), 1 + 16).await;
    }
    expect_used(1 + 40 + 9 * (1 + 16) - 120).await;
}

#[tokio::test]
async fn a_repeat_while_a_turn_is_left_gives_it_back() {
    let setup = repeats_give_back("JARVIS_USER_TURNS_PER_MINUTE", "user-turns").await;
    let used = usage(usage_of(&setup.replica, "alice"), "user-turns").await;
    assert_eq!(used["used"], 1, "{used}");
}

#[tokio::test]
async fn a_message_over_the_limit_gets_an_error_and_the_socket_stays_usable() {
    let settings = [SIGN_IN, ("JARVIS_USER_TURNS_PER_MINUTE", "1")];
    let Setup { replica, redis: _redis, ollama: _ollama } = setup("1000", &settings).await;
    let bearer = format!("Bearer {}", token("alice"));
    let headers = [("authorization", &*bearer)];
    let (mut socket, ..) = Socket::open_with(&replica, "/ws", &headers).await.expect("a socket");
    let chat = |id: &str| json!({"message": "[[tokens=3]] hi", "message_id": id});
    socket.say(&chat("one")).await;
    let first = socket.until("stream_end").await;
    socket.say(&chat("two")).await;
    let error = socket.event().await;
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("rate_limited")));
    assert_eq!((&error["retryable"], &error["message_id"]), (&json!(true), &json!("two")));
    let after = error["retry_after"].as_u64().expect("seconds");
    assert!((50..=60).contains(&after), "{error}");
    socket.say(&json!({"type": "ping"})).await;
    assert_eq!(socket.event().await["type"], "pong");
    socket.say(&json!({"type": "get_history"})).await;
    assert_eq!(socket.event().await["count"], 2);
    // A repeat is answered without a turn.
    socket.say(&chat("one")).await;
    let again = socket.until("stream_end").await;
    assert_eq!(again[0]["generation_id"], first[0]["generation_id"]);
}

#[tokio::test]
async fn an_address_begins_exactly_so_many_sessions_a_day_and_the_others_go_on() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "1000"]);
    let settings = [PROXY, ("JARVIS_ADDRESS_SESSIONS_PER_DAY", "3")];
    let replicas = [0; 2].map(|_| jarvis(&redis.url(), &ollama.url, &settings));
    for replica in &replicas {
        until_ok(replica, "/health/ready").await;
    }
    let in_session = async |replica: &Process, session: &str| {
        let body = json!({"message": "[[tokens=3]] hi", "session_id": session});
        let request = http().post(format!("{}/api/v1/chat", replica.url)).json(&body);
        send(request.header("x-forwarded-for", "192.0.2.1")).await
    };
    let sessions: Vec<String> = (0..10).map(|_| id()).collect();
    let burst = sessions.iter().enumerate();
    let burst = burst.map(|(number, session)| in_session(&replicas[number % 2], session));
    let replies = join_all(burst).await;
    let (begun, refused): (Vec<_>, Vec<_>) =
        sessions.iter().zip(&replies).partition(|(_, reply)| reply.status == 200);
    assert_eq!(begun.len(), 3);
    for (session, reply) in &refused {
        assert_eq!(code(reply), (429, "quota_exceeded"));
        assert!(header(reply, "retry-after").parse::<u64>().expect("seconds") > 28_000);
        let left = header(reply, "ratelimit");
        assert!(left.contains("\"address-sessions\";r=0;t=28"), "{left}");
        assert_eq!(redis.cli(&["KEYS", &format!("*{session}*")]).trim(), "");
    }
    // Through the replica that knows the session, and through the other one.
    for replica in &replicas {
        let reply = in_session(replica, begun[0].0).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let request = http().get(format!("{}/api/v1/usage", replicas[0].url));
    let reported = usage(request.header("x-forwarded-for", "192.0.2.1"), "address-sessions").await;
    assert_eq!((&reported["used"], &reported["remaining"]), (&json!(3), &json!(0)), "{reported}");
    // A conversation that a client creates is a session, too.
    let post = async |replica: &Process, address: &str, path: &str| {
        let body = json!({"items": [{"role": "user", "content": "hi"}]});
        let request = http().post(format!("{}{path}", replica.url)).json(&body);
        send(request.header("x-forwarded-for", address)).await
    };
    let path = "/v1/conversations";
    let none = post(&replicas[0], "192.0.2.1", path).await;
    assert_eq!((none.status, &none.body["error"]["code"]), (429, &json!("insufficient_quota")));
    assert!(header(&none, "retry-after").parse::<u64>().expect("seconds") > 28_000);
    let stored = || redis.cli(&["KEYS", "jarvis:{b*}:s:*:messages"]).lines().count();
    let before = stored();
    let burst = (0..10).map(|number| post(&replicas[number % 2], "192.0.2.3", path));
    let replies = join_all(burst).await;
    let begun: Vec<_> = replies.iter().filter(|reply| reply.status == 200).collect();
    assert_eq!((begun.len(), stored() - before), (3, 3), "as many are stored");
    let items = format!("{path}/{}/items", begun[0].body["id"].as_str().expect("an id"));
    for replica in &replicas {
        let reply = post(replica, "192.0.2.3", &items).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    assert_eq!(turn_from(&replicas[0], "192.0.2.2").await.status, 200);
}

#[tokio::test]
async fn a_turn_in_a_session_that_exists_takes_no_session() {
    let settings = [
        PROXY,
        ("JARVIS_ADDRESS_SESSIONS_PER_DAY", "5"),
        ("JARVIS_ADDRESS_REQUESTS_PER_MINUTE", "0"),
    ];
    let Setup { replica, redis, ollama } = setup("1000", &settings).await;
    let other = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&other, "/health/ready").await;
    let session = id();
    for replica in [&replica, &replica, &other, &other] {
        let body = json!({"message": "[[tokens=3]] hi", "session_id": session});
        let request = http().post(format!("{}/api/v1/chat", replica.url)).json(&body);
        assert_eq!(send(request.header("x-forwarded-for", "192.0.2.1")).await.status, 200);
    }
    let reported = async || {
        let request = http().get(format!("{}/api/v1/usage", replica.url));
        usage(request.header("x-forwarded-for", "192.0.2.1"), "address-sessions").await
    };
    // The session that the other replica took, because it did not know of it, is given back.
    assert!(
        eventually(LIMIT, async || reported().await["used"] == 1).await,
        "{}",
        reported().await
    );
}

#[tokio::test]
async fn a_session_that_is_deleted_and_begun_again_takes_a_session_each_time() {
    let settings = [
        PROXY,
        ("JARVIS_ADDRESS_SESSIONS_PER_DAY", "3"),
        ("JARVIS_ADDRESS_REQUESTS_PER_MINUTE", "0"),
    ];
    let Setup { replica, redis: _redis, ollama: _ollama } = setup("1000", &settings).await;
    let session = id();
    let from_address = async |request: reqwest::RequestBuilder| {
        send(request.header("x-forwarded-for", "192.0.2.1")).await.status
    };
    let ask = async || {
        let body = json!({"message": "[[tokens=3]] hi", "session_id": session});
        from_address(http().post(format!("{}/api/v1/chat", replica.url)).json(&body)).await
    };
    let delete = async || {
        let url = format!("{}/api/v1/chat/sessions/{session}", replica.url);
        assert_eq!(from_address(http().delete(url)).await, 200);
    };
    let used = async || {
        let request = http().get(format!("{}/api/v1/usage", replica.url));
        let request = request.header("x-forwarded-for", "192.0.2.1");
        usage(request, "address-sessions").await["used"].as_u64()
    };
    for number in 1..=3 {
        // The second turn is in a session that exists.
        assert_eq!((ask().await, ask().await), (200, 200));
        let is_used = eventually(LIMIT, async || used().await == Some(number)).await;
        assert!(is_used, "{:?} of {number}", used().await);
        delete().await;
    }
    // The replica may take it for one that exists once more, and not again.
    if ask().await == 200 {
        delete().await;
    }
    assert_eq!(ask().await, 429);
}

#[tokio::test]
async fn usage_reports_the_exact_numbers_of_each_limit_of_the_caller() {
    // One comes back in more than half a day, so that nothing does while the test runs.
    let settings = [SIGN_IN, PROXY];
    let Setup { replica, redis: _redis, ollama: _ollama } = setup("1000", &settings).await;
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(turn_of(&replica, "alice").await.status, 200);
    }
    let reported = usage(usage_of(&replica, "alice"), "user-turns").await;
    let used = reported["used"].as_u64().expect("a number");
    // One turn comes back each second.
    assert!(used <= 3 && used + began.elapsed().as_secs() + 1 >= 3, "{reported}");
    assert_eq!((&reported["quota"], &reported["window_seconds"]), (&json!(60), &json!(60)));
    assert_eq!(reported["remaining"], 60 - used);
    assert_eq!(reported["reset_seconds"], used, "each takes a second");
    let reply = send(usage_of(&replica, "alice").header("x-forwarded-for", "192.0.2.1")).await;
    assert_eq!(reply.body["user_id"], "alice");
    let limits = reply.body["limits"].as_array().expect("a list");
    let names: Vec<&str> = limits.iter().filter_map(|limit| limit["limit"].as_str()).collect();
    let all = [
        "user-requests",
        "user-turns",
        "user-tokens",
        "user-sockets",
        "address-requests",
        "address-turns",
        "address-sessions",
        "address-sockets",
    ];
    assert_eq!(names, all);
    let openapi = get(&replica, "/openapi.json").await.body;
    let report = &openapi["paths"]["/api/v1/usage"]["get"]["responses"];
    assert!(report["200"]["content"]["application/json"]["schema"].is_object(), "{report}");
    assert!(report["429"]["headers"]["RateLimit"]["schema"].is_object(), "{report}");
    let anonymous = get(&replica, "/api/v1/usage").await;
    assert_eq!(anonymous.body, json!({"user_id": "anonymous", "limits": []}));
}

#[tokio::test]
async fn each_api_key_has_limits_of_its_own_within_those_of_its_user() {
    let settings =
        [SIGN_IN, ("JARVIS_KEY_TURNS_PER_MINUTE", "1"), ("JARVIS_USER_TURNS_PER_MINUTE", "2")];
    let Setup { replica, redis, ollama: _ollama } = setup("1000", &settings).await;
    let store = ApiKeyStore::new(connect(&redis.url()).await);
    let mut keys = Vec::new();
    for _ in 0..3 {
        let CreatedKey::Key(key, _) = store.create("alice").await.expect("Redis") else { panic!() };
        keys.push(key);
    }
    let ask = async |number: usize| {
        let reply = send(turn(&replica).bearer_auth(keys[number].expose())).await;
        let left = header(&reply, "ratelimit").split(';').next().unwrap_or_default().to_owned();
        (reply.status, left)
    };
    let first = "\"user-requests\"".to_owned();
    assert_eq!(ask(0).await, (200, first.clone()));
    assert_eq!(ask(0).await, (429, "\"key-turns\"".to_owned()));
    assert_eq!(ask(1).await, (200, first));
    assert_eq!(ask(2).await, (429, "\"user-turns\"".to_owned()));
}

#[tokio::test]
async fn a_request_over_the_limit_is_refused_before_its_body_is_read_and_counted_by_limit() {
    let settings = [SIGN_IN, PROXY, ("JARVIS_USER_REQUESTS_PER_MINUTE", "1")];
    let Setup { replica, redis: _redis, ollama: _ollama } = setup("1000", &settings).await;
    let url = format!("{}/api/v1/models", replica.url);
    assert_eq!(send(http().get(url).bearer_auth(token("alice"))).await.status, 200);
    let address = replica.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
    let bearer = token("alice");
    write!(
        stream,
        "POST /api/v1/chat HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {bearer}\r\n\
         Content-Length: 100000\r\n\r\n"
    )
    .expect("sent");
    let mut head = [0; 12];
    // The body never comes, and would be waited for for 30 s.
    stream.read_exact(&mut head).expect("a response");
    assert_eq!(&head, b"HTTP/1.1 429");
    let bearer = format!("Bearer {bearer}");
    let Err((head, _)) = open(&replica, &[("authorization", &*bearer)]).await else {
        panic!("a socket")
    };
    assert_eq!(head.status.as_u16(), 429, "before the upgrade");
    let line = "jarvis_limit_refusals_total{limit=\"user-requests\"} 2";
    until_metric_line(&replica, line).await;
}

/// Returns how often each function of the limits was called since the log was emptied.
fn calls(redis: &RedisServer) -> usize {
    let log = redis.cli(&["SLOWLOG", "GET", "-1"]);
    log.lines().filter(|line| line.starts_with("jarvis_limit_")).count()
}

#[tokio::test]
async fn a_turn_costs_one_call_for_its_user_one_beside_it_for_its_address_and_none_a_token() {
    let settings = [SIGN_IN, PROXY];
    let Setup { replica, redis, ollama: _ollama } = setup("1000", &settings).await;
    redis.cli(&["CONFIG", "SET", "slowlog-max-len", "100000"]);
    redis.cli(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    let cost = async |tokens: usize, user: Option<&str>, address: Option<&str>, session: &str| {
        redis.cli(&["SLOWLOG", "RESET"]);
        let body = json!({"message": format!("[[tokens={tokens}]] hi"), "session_id": session});
        let mut request = http().post(format!("{}/api/v1/chat", replica.url)).json(&body);
        if let Some(user) = user {
            request = request.bearer_auth(token(user));
        }
        if let Some(address) = address {
            request = request.header("x-forwarded-for", address);
        }
        assert_eq!(send(request).await.status, 200);
        calls(&redis)
    };
    for tokens in [3, 300] {
        assert_eq!(cost(tokens, None, None, &id()).await, 0, "anonymous, on loopback");
        // Its turn at the beginning, and its tokens at the end.
        assert_eq!(cost(tokens, Some("alice"), None, &id()).await, 2, "a user, on loopback");
        let session = id();
        // Its turn, and its session together with the check of the storage budget.
        assert_eq!(cost(tokens, None, Some("192.0.2.1"), &session).await, 2, "an address");
        assert_eq!(cost(tokens, None, Some("192.0.2.1"), &session).await, 1, "again");
        let session = id();
        assert_eq!(cost(tokens, Some("alice"), Some("192.0.2.1"), &session).await, 4, "both");
        assert_eq!(cost(tokens, Some("alice"), Some("192.0.2.1"), &session).await, 3, "again");
    }
}

#[tokio::test]
async fn no_call_of_the_limits_takes_redis_longer_than_five_milliseconds_with_1_000_sockets() {
    // As many as the setting allows.
    const SOCKETS: u32 = 1000;
    let server = RedisServer::start_with(&["--appendonly", "no"]);
    let redis = connect(&server.url()).await;
    let membership = MembershipStore::new(redis.clone(), "r1".to_owned());
    let settings = LimitSettings {
        user_sockets: SOCKETS,
        user_requests_per_minute: 1_000_000,
        ..LimitSettings::default()
    };
    let limits = RateLimits::start(&redis, membership, settings);
    let mut numbers = 0..;
    let medians = takes_moments("1,000 sockets of a user", async || {
        let subject = caller(&format!("user-{}", numbers.next().expect("a number")), None, "::1");
        begin_timing(&server);
        let mut open = Vec::new();
        for _ in 0..SOCKETS {
            let admitted = limits.admit(&subject, RequestKind::Socket, None).await;
            open.extend(admitted.map_err(|refusal| refusal.to_string()).expect("admitted").socket);
        }
        assert_eq!(open.len(), SOCKETS as usize);
        // One more has Redis list those that it holds. It is admitted: without heartbeats this replica is
        // gone, and its sockets fall with it.
        let _ = limits.admit(&subject, RequestKind::Socket, None).await;
        limits.usage(&subject).await;
        limits.renew_sockets().await;
        drop(open);
        let held = || server.cli(&["KEYS", "jarvis:{limits:*:sockets"]);
        let none = eventually(LIMIT, async || held().trim().is_empty()).await;
        assert!(none, "{}", held());
        longest(timed_calls(&server))
    });
    let medians = medians.await;
    for function in ["take", "renew", "release"] {
        let function = format!("jarvis_limit_{function}_1");
        assert!(medians.iter().any(|(called, _)| *called == function), "{function}: {medians:?}");
    }
}

#[tokio::test]
async fn open_metrics_cost_an_address_a_request_and_loopback_none() {
    let settings = [PROXY, ("JARVIS_ADDRESS_REQUESTS_PER_MINUTE", "3")];
    let Setup { replica, redis: _redis, ollama: _ollama } = setup("1000", &settings).await;
    let ask = async |address: &str| {
        let request = http().get(format!("{}/metrics", replica.url));
        send(request.header("x-forwarded-for", address)).await
    };
    for left in (0..3).rev() {
        let reply = ask("192.0.2.1").await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let shown = header(&reply, "ratelimit");
        assert!(shown.starts_with(&format!("\"address-requests\";r={left};t=")), "{shown}");
    }
    let refused = ask("192.0.2.1").await;
    assert_eq!(code(&refused), (429, "rate_limited"));
    assert!(header(&refused, "retry-after").parse::<u32>().is_ok_and(|seconds| seconds <= 20));
    assert_eq!(ask("192.0.2.2").await.status, 200, "another address");
    for _ in 0..20 {
        let reply = get(&replica, "/metrics").await;
        assert_eq!((reply.status, header(&reply, "ratelimit")), (200, ""));
        assert_eq!(get(&replica, "/health/ready").await.status, 200);
    }
}

/// Returns a request that streams a turn: the method, the path and the body, and where the code of a refusal
/// is.
fn streams() -> [(&'static str, Value, &'static str, &'static str); 5] {
    const LONG: &str = "[[tokens=2000]] go on";
    let messages = json!([{"role": "user", "content": LONG}]);
    let of_model = |name: &str, value: Value, stream: bool| {
        let mut body = json!({"model": "tinyllama", name: value});
        if stream {
            body["stream"] = json!(true);
        }
        body
    };
    let openais = ("/error/code", "rate_limit_exceeded");
    let ollamas = ("/error", "This user may have 1 sockets at a time; retry after 5 s.");
    [
        ("/api/v1/chat", json!({"message": LONG, "stream": true}), "/code", "rate_limited"),
        (
            "/v1/chat/completions",
            of_model("messages", messages.clone(), true),
            openais.0,
            openais.1,
        ),
        ("/v1/responses", of_model("input", json!(LONG), true), openais.0, openais.1),
        ("/api/chat", of_model("messages", messages, false), ollamas.0, ollamas.1),
        ("/api/generate", of_model("prompt", json!(LONG), false), ollamas.0, ollamas.1),
    ]
}

#[tokio::test]
async fn a_streamed_turn_counts_as_a_socket_of_its_user_over_each_front() {
    let settings = [
        SIGN_IN,
        ("JARVIS_USER_SOCKETS", "1"),
        // One comes back in ten seconds.
        ("JARVIS_USER_TURNS_PER_MINUTE", "6"),
        ("JARVIS_OLLAMA_SLOTS", "64"),
    ];
    let Setup { replica, redis: _redis, ollama: _ollama } = setup("20", &settings).await;
    let of = |request: RequestBuilder, user: &str| request.bearer_auth(token(user));
    let url = |path: &str| format!("{}{path}", replica.url);
    let held = async |user: &str| {
        usage(usage_of(&replica, user), "user-sockets").await["used"].as_u64().expect("a number")
    };
    for (path, body, at, refusal) in streams() {
        let user = path;
        let ask = || of(http().post(url(path)).json(&body), user);
        let open = ask().send().await.expect("a response");
        assert_eq!(open.status(), 200, "{path}");
        let left = open.headers()["ratelimit"].to_str().expect("a text").to_owned();
        assert!(left.contains("\"user-sockets\";r=0;t=0"), "{path}: {left}");
        assert_eq!(held(user).await, 1, "{path}");
        let refused = send(ask()).await;
        assert_eq!(refused.status, 429, "{path}: {}", refused.body);
        assert_eq!(refused.body.pointer(at), Some(&json!(refusal)), "{path}");
        assert_eq!(header(&refused, "retry-after"), "5", "{path}");
        // Its turn was given back, and sockets and streams are counted together.
        let turns = usage(usage_of(&replica, user), "user-turns").await["used"].clone();
        assert_eq!(turns, 1, "{path}");
        let bearer = format!("Bearer {}", token(user));
        let authorization = [("authorization", &*bearer)];
        let socket = self::open(&replica, &authorization).await;
        assert!(socket.is_err_and(|(head, _)| head.status.as_u16() == 429), "{path}");
        // Another user has its own, and a turn that is not streamed takes none.
        assert_eq!(held("bob").await, 0);
        let mut whole = body.clone();
        whole["stream"] = json!(false);
        let short = whole.to_string().replace("2000", "1");
        let whole = http().post(url(path)).body(short).header("content-type", "application/json");
        assert_eq!(send(of(whole, user)).await.status, 200, "{path}");
        drop(open);
        assert!(eventually(LIMIT, async || held(user).await == 0).await, "{path} stays held");
    }
    // A response that is streamed again counts as well.
    let body = json!({"model": "tinyllama", "input": "[[tokens=2000]] go on", "background": true});
    let created = send(of(http().post(url("/v1/responses")).json(&body), "carol")).await;
    let id = created.body["id"].as_str().expect("an id");
    let again = || of(http().get(url(&format!("/v1/responses/{id}?stream=true"))), "carol");
    let open = again().send().await.expect("a response");
    assert_eq!((open.status().as_u16(), held("carol").await), (200, 1));
    let refused = send(again()).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(refused.body["error"]["code"], "rate_limit_exceeded");
    drop(open);
    assert!(eventually(LIMIT, async || held("carol").await == 0).await, "it stays held");
}

#[tokio::test]
async fn a_socket_that_renews_its_sign_in_by_an_api_key_has_the_limits_of_that_key() {
    let settings = [SIGN_IN, ("JARVIS_KEY_TURNS_PER_MINUTE", "1")];
    let Setup { replica, redis, ollama: _ollama } = setup("1000", &settings).await;
    let store = ApiKeyStore::new(connect(&redis.url()).await);
    let CreatedKey::Key(key, _) = store.create("alice").await.expect("Redis") else { panic!() };
    let bearer = format!("Bearer {}", token("alice"));
    let headers = [("authorization", &*bearer)];
    let (mut socket, ..) = Socket::open_with(&replica, "/ws", &headers).await.expect("a socket");
    let mut say = async |message: Value, until: &str| {
        socket.say(&message).await;
        socket.until(until).await.pop().expect("an event")
    };
    let turn = json!({"message": "[[tokens=1]] hi"});
    for _ in 0..3 {
        say(turn.clone(), "stream_end").await;
    }
    say(json!({"type": "auth", "token": key.expose()}), "authenticated").await;
    say(turn.clone(), "stream_end").await;
    let refused = say(turn.clone(), "error").await;
    assert_eq!(refused["code"], "rate_limited");
    assert!(refused["message"].as_str().expect("a text").contains("API key"), "{refused}");
    // With a token there is no key any more.
    say(json!({"type": "auth", "token": token("alice")}), "authenticated").await;
    say(turn, "stream_end").await;
}
