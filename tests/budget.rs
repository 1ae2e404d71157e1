//! The promises of the storage budgets.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures_util::StreamExt;
use futures_util::future::join_all;
use jarvis::budget::{Budget, ListOrder, OverBudget, StorageLimits};
use jarvis::session::model::{ContextReport, FinishReason, User, rfc3339};
use jarvis::session::store::{
    Acceptance, Cancellation, Clearing, Evicted, IdempotencyKey, NewTurn, Proposal, SessionLimits,
    Turn, Written, channel, message,
};
use jarvis::session::{Control, Message, Owner, Role, SessionId, Status, Store, Tag, Usage};
use jarvis::source::SourceKey;
use serde_json::json;
use support::client::{Socket, history, http, send, until_ok};
use support::eventually;
use support::metrics::metrics;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::redis_time::{begin_timing, longest, takes_moments, timed_calls};
use support::setup::{Setup, setup};
use support::store::{connect, new_turn};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const OWNER: Owner = Owner::Anonymous;
const KIB: u64 = 1024;
/// The revision of the writers.
const REVISION: Tag = Tag(7);

/// Limits that nothing in a test reaches, and no protection of young sessions.
fn wide() -> StorageLimits {
    StorageLimits { young: Duration::ZERO, ..StorageLimits::default() }
}

async fn store(server: &RedisServer) -> Store {
    Store::new(connect(&server.url()).await, "r".to_owned(), SessionLimits::default())
}

/// Stores an answer of so many bytes in a session, and leaves the turn open.
async fn open_turn(store: &Store, session: SessionId, bytes: u64) -> Arc<Turn> {
    let new = new_turn("m", "q");
    let accepted = store.accept(&Proposal::new(&OWNER, session, &new)).await.expect("Redis");
    let Acceptance::New { turn, .. } = accepted else { panic!("{accepted:?}") };
    let tag = REVISION;
    store.start(&turn, tag, None).await.expect("Redis");
    let text = "x".repeat(bytes as usize);
    store.append(&turn, tag, 0, true, &text).await.expect("Redis");
    turn
}

/// Stores a turn with an answer of so many bytes, which has ended, and records it.
async fn ended_turn(budget: &Budget, store: &Store, network: &str, bytes: u64) -> SessionId {
    let session = SessionId::random();
    let turn = open_turn(store, session, bytes).await;
    let header = Message {
        generation_id: Some(turn.generation),
        model: Some("m".to_owned()),
        status: Some(Status::Complete),
        finish_reason: Some(FinishReason::Stop),
        usage: Some(Usage::default()),
        context: Some(ContextReport::default()),
        ..message(Role::Assistant, Utc::now())
    };
    let ended = Control::Ended {
        timestamp: rfc3339(&header.timestamp),
        model: "m".to_owned(),
        finish_reason: FinishReason::Stop,
        usage: Usage::default(),
        context: ContextReport::default(),
        continued: Vec::new(),
        tool_calls: Vec::new(),
    };
    let events = [(Tag::random(), ended)];
    let written = store.finish(&turn, REVISION, bytes, &header, &events).await;
    assert_eq!(written.expect("Redis"), Written::Ok);
    budget.record(network, session).await;
    session
}

async fn exists(store: &Store, session: SessionId) -> bool {
    store.measure(session).await.expect("Redis").is_some()
}

#[tokio::test]
async fn where_anonymous_sessions_take_too_much_the_oldest_idle_one_of_the_largest_network_goes() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let budget = |total| {
        Budget::new(store.clone(), StorageLimits { anonymous_bytes: total * KIB, ..wide() })
    };
    let small = ended_turn(&budget(1000), &store, "small", 20 * KIB).await;
    let running = SessionId::random();
    open_turn(&store, running, 20 * KIB).await;
    budget(1000).record("large", running).await;
    let mut large = Vec::new();
    for _ in 0..4 {
        large.push(ended_turn(&budget(1000), &store, "large", 20 * KIB).await);
    }
    // The running one was used least recently.
    for (session, used) in [(running, "1"), (large[0], "2"), (large[1], "3")] {
        let sessions = "jarvis:{budget}:payer:a:large";
        server.cli(&["ZADD", sessions, used, &session.to_string()]);
    }
    let largest = server.cli(&["ZSCORE", "jarvis:{budget}:anonymous", "a:large"]);
    assert!(largest.trim().parse::<u64>().expect("bytes") > 5 * 20 * KIB, "{largest}");
    // The first record names the one in use, which then stands behind the others.
    for _ in 0..2 {
        budget(135).record("small", small).await;
    }
    assert!(!exists(&store, large[0]).await, "the oldest one of the largest network");
    assert!(exists(&store, large[3]).await, "no more than needed");
    assert!(exists(&store, running).await, "a turn of it runs");
    assert!(exists(&store, small).await, "its network takes less");
    let evicted = server.cli(&["HEXISTS", "jarvis:{budget}:sessions", &large[0].to_string()]);
    assert_eq!(evicted.trim(), "0");
}

#[tokio::test]
async fn a_refused_caller_and_callers_that_never_return_give_back_what_has_expired() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let limits = StorageLimits { caller_bytes: 20 * KIB, anonymous_bytes: 50 * KIB, ..wide() };
    let budget = Budget::new(store.clone(), limits);
    let mut sessions = Vec::new();
    for network in ["once", "twice", "thrice"] {
        // A turn runs in each of them, so that none is removed.
        let session = SessionId::random();
        open_turn(&store, session, 20 * KIB).await;
        budget.record(network, session).await;
        sessions.push(session);
    }
    let new = SessionId::random();
    assert_eq!(budget.room(&OWNER, "once", new).await.map(drop), Err(OverBudget::Bytes));
    assert_eq!(budget.room(&OWNER, "another", new).await.map(drop), Err(OverBudget::Total));
    // Nobody uses them any more, and they expire. A removal that is under way may record one again.
    let room = async || {
        for session in &sessions {
            server.cli(&["ZADD", "jarvis:{budget}:expiry", "XX", "1", &session.to_string()]);
        }
        let has_room = budget.room(&OWNER, "another", new).await.is_ok();
        has_room && server.cli(&["GET", "jarvis:{budget}:total"]).trim() == "0"
    };
    assert!(eventually(LIMIT, room).await, "what has expired is not given back");
    assert_eq!(budget.room(&OWNER, "once", new).await.map(drop), Ok(()));
}

/// Listens to a session, as the feed of a replica does.
async fn listen(server: &RedisServer, session: SessionId) -> std::net::TcpStream {
    let mut client = std::net::TcpStream::connect(("127.0.0.1", server.port())).expect("Redis");
    write!(client, "SSUBSCRIBE {}\r\n", channel(session)).expect("sent");
    let is_heard =
        async || server.cli(&["PUBSUB", "SHARDNUMSUB", &channel(session)]).trim().ends_with('1');
    assert!(eventually(LIMIT, is_heard).await);
    client
}

#[tokio::test]
async fn a_request_beyond_the_budget_removes_what_a_client_hears_after_the_rest_of_its_network() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let budget = Budget::new(store.clone(), wide());
        sessions.push(ended_turn(&budget, &store, "n", 20 * KIB).await);
    }
    let running = SessionId::random();
    open_turn(&store, running, 20 * KIB).await;
    Budget::new(store.clone(), wide()).record("n", running).await;
    let heard = sessions[0];
    let _clients = (listen(&server, heard).await, listen(&server, running).await);
    for (used, session) in [("1", heard), ("2", running)] {
        server.cli(&["ZADD", "jarvis:{budget}:payer:a:n", used, &session.to_string()]);
    }
    let budget_of = |kib: u64| {
        Budget::new(store.clone(), StorageLimits { anonymous_bytes: kib * KIB, ..wide() })
    };
    // Room for the two that are in use, and for no other.
    let budget = budget_of(80);
    let others_go = eventually(LIMIT, async || {
        let _ = budget.room(&OWNER, "another", SessionId::random()).await;
        let mut kept = 0;
        for session in &sessions[1..] {
            kept += usize::from(exists(&store, *session).await);
        }
        kept == 0
    });
    assert!(others_go.await, "a refused request makes room for the next");
    assert!(exists(&store, heard).await, "a client listens, and others could go");
    // Room for one.
    let budget = budget_of(40);
    let heard_goes = eventually(LIMIT, async || {
        let _ = budget.room(&OWNER, "another", SessionId::random()).await;
        !exists(&store, heard).await
    });
    assert!(heard_goes.await, "nothing else of its network can go");
    assert!(exists(&store, running).await, "a turn of it runs");
}

#[tokio::test]
async fn a_client_whose_session_is_removed_gets_history_cleared_and_goes_on_in_a_new_one() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "10000"]);
    let settings = [("JARVIS_ANONYMOUS_MIB", "1"), ("JARVIS_TRUSTED_PROXIES", "127.0.0.1")];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    // It takes more than three quarters of the budget, and less than nine tenths.
    let store = store(&redis).await;
    let budget = Budget::new(store.clone(), wide());
    let session = ended_turn(&budget, &store, "n", 800 * KIB).await;
    let (mut socket, _) = Socket::open(&replica, &format!("/ws?session_id={session}")).await;
    // Requests of another address need the room.
    let url = format!("{}/api/v1/chat/", replica.url);
    let removed = eventually(LIMIT, async || {
        let request = http().post(&url).header("x-forwarded-for", "192.0.2.1");
        let reply = send(request.json(&json!({"message": "[[tokens=1]] hello"}))).await;
        assert_eq!(reply.status, 200, "{:?}", reply.body);
        !exists(&store, session).await
    });
    assert!(removed.await, "the session with a listener stays");
    socket.until("history_cleared").await;
    socket.say(&json!({"message": "[[tokens=1]] hello"})).await;
    socket.until("stream_end").await;
    assert_eq!(history(&replica, &session.to_string()).await.len(), 2);
}

/// Returns the bytes that Redis uses.
fn used_memory(redis: &RedisServer) -> u64 {
    let used = redis.cli(&["INFO", "memory"]);
    let used = used.lines().find_map(|line| line.strip_prefix("used_memory:"));
    used.and_then(|bytes| bytes.trim().parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_grows_by_less_than_the_budget_of_anonymous_sessions_however_many_are_stored() {
    const MIB: u64 = 1 << 20;
    const BUDGET_MIB: u64 = 8;
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "0"]);
    let settings = [
        ("JARVIS_ANONYMOUS_MIB", "8"),
        ("JARVIS_TRUSTED_PROXIES", "127.0.0.1"),
        ("JARVIS_OLLAMA_SLOTS", "64"),
    ];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let url = format!("{}/api/v1/chat/", replica.url);
    let client = http();
    // Each from an address of its own.
    let store = async |numbers: std::ops::Range<u32>, filler: usize| {
        let filler = &"x".repeat(filler);
        let (client, url) = (&client, &url);
        let asked = numbers.map(|number| async move {
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).to_string();
            let request = client.post(url).header("x-forwarded-for", address);
            let message = format!("[[tokens=3]] hello {filler}");
            send(request.json(&json!({"message": message}))).await.status
        });
        let asked = futures_util::stream::iter(asked).buffer_unordered(16);
        asked.collect::<Vec<_>>().await
    };
    let counted = || {
        let total = redis.cli(&["GET", "jarvis:{budget}:total"]);
        total.trim().parse::<u64>().unwrap_or(0)
    };
    // The first turn loads what is not of a session.
    assert_eq!(store(0..1, 1).await, [200]);
    let before = used_memory(&redis);
    for (sessions, filler) in [(1..301, 0), (301..601, 4_000), (601..1_201, 20_000)] {
        let statuses = store(sessions, filler).await;
        let refused = statuses.iter().filter(|status| **status != 200).count();
        let grown = used_memory(&redis).saturating_sub(before);
        let ratio = grown as f64 / counted() as f64;
        println!("{filler}: {grown} B of Redis, {} counted, {ratio:.2}, {refused}", counted());
        assert!(grown < BUDGET_MIB * MIB, "{grown} bytes of Redis, {} counted", counted());
        assert_eq!(refused, 0, "others are removed");
        assert!((0.5..1.3).contains(&ratio), "{grown} bytes of Redis, {} counted", counted());
    }
    assert!(counted() > BUDGET_MIB * MIB / 2, "{} counted: the budget was not filled", counted());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_fill_at_most_half_of_redis_whatever_their_budget_is_set_to() {
    const MIB: u64 = 1 << 20;
    let redis = RedisServer::start_with(&["--maxmemory", "24mb"]);
    let ollama = ollama_sim(&["--rate", "0"]);
    let settings = [("JARVIS_TRUSTED_PROXIES", "127.0.0.1"), ("JARVIS_OLLAMA_SLOTS", "64")];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let knows = async || {
        let metrics = metrics(&replica).await;
        let limit = metrics.lines().find_map(|l| l.strip_prefix("jarvis_redis_memory_max_bytes "));
        limit.and_then(|limit| limit.parse::<f64>().ok()).is_some_and(|limit| limit > 0.0)
    };
    assert!(eventually(LIMIT, knows).await, "the limit of Redis is not known");
    let (url, client) = (format!("{}/api/v1/chat/", replica.url), http());
    let message = format!("[[tokens=3]] hello {}", "x".repeat(30_000));
    let (client, url, message) = (&client, &url, &message);
    let asked = (0..900).map(|number: u32| async move {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).to_string();
        let request = client.post(url).header("x-forwarded-for", address);
        send(request.json(&json!({"message": message}))).await.status
    });
    let statuses: Vec<_> = futures_util::stream::iter(asked).buffer_unordered(8).collect().await;
    assert!(statuses.iter().all(|status| *status == 200), "others are removed: {statuses:?}");
    let total = redis.cli(&["GET", "jarvis:{budget}:total"]).trim().parse::<u64>().expect("bytes");
    let used = used_memory(&redis);
    println!("{total} bytes of strangers, {used} of Redis");
    assert!((6 * MIB..=12 * MIB).contains(&total), "{total} of strangers");
    assert!(used < 18 * MIB, "{used} of 24 MiB");
}

/// Asks from one address in so many sessions, with so many turns in each of which the first one runs for
/// long, until a turn is refused because of what its caller stores. Returns the streams before it.
async fn until_quota_exceeded(
    replica: &Process,
    (sessions, turns): (u32, u32),
    text: &str,
    system: &str,
) -> Vec<reqwest::Response> {
    let (url, client) = (format!("{}/api/v1/chat/", replica.url), http());
    let mut streams = Vec::new();
    for _ in 0..sessions {
        let session = SessionId::random();
        for turn in 0..turns {
            let tokens = if turn == 0 { 2_000 } else { 1 };
            let body = json!({"message": format!("[[tokens={tokens}]] {text}"), "stream": true,
                "session_id": session, "system": system, "max_tokens": 3_000});
            let request = client.post(&url).header("x-forwarded-for", "192.0.2.1");
            let reply = request.json(&body).send().await.expect("a reply");
            if reply.status() == 200 {
                streams.push(reply);
                continue;
            }
            assert_eq!(reply.status(), 429);
            let problem: serde_json::Value = reply.json().await.expect("a problem");
            assert_eq!(problem["code"], "quota_exceeded", "{problem}");
            return streams;
        }
    }
    panic!("the turns that wait count for nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_turns_store_that_wait_counts_for_their_caller_before_they_run() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "20"]);
    let settings = [("JARVIS_CALLER_MIB", "1"), ("JARVIS_TRUSTED_PROXIES", "127.0.0.1")];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    // The streams are held open until the end.
    let streams = until_quota_exceeded(&replica, (6, 8), "hello", &"s".repeat(32_000)).await;
    let turns = streams.len();
    assert!((20..=40).contains(&turns), "{turns} turns of 32 kB in 1 MiB");
}

#[tokio::test]
async fn small_turns_that_wait_in_many_sessions_count_as_they_are_stored() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "20"]);
    let settings = [
        ("JARVIS_CALLER_MIB", "1"),
        ("JARVIS_TRUSTED_PROXIES", "127.0.0.1"),
        ("JARVIS_ADDRESS_TURNS_PER_MINUTE", "0"),
    ];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    // A control character takes six bytes of JSON.
    let streams = until_quota_exceeded(&replica, (40, 9), "x", &"\u{1}".repeat(1_000)).await;
    let turns = streams.len();
    assert!((90..=160).contains(&turns), "{turns} turns of 6 kB in 1 MiB");
    let counted =
        redis.cli(&["GET", "jarvis:{budget}:total"]).trim().parse::<u64>().expect("bytes");
    let keys = redis.cli(&["KEYS", "jarvis:{b*:s:*"]);
    let taken = keys.lines().map(|key| {
        let bytes = redis.cli(&["MEMORY", "USAGE", key, "SAMPLES", "0"]);
        bytes.trim().parse::<u64>().expect("bytes")
    });
    let taken: u64 = taken.sum();
    println!("{turns} turns: {counted} bytes counted, {taken} taken");
    assert!(taken < counted * 13 / 10, "{counted} bytes counted, {taken} taken");
}

#[tokio::test]
async fn a_request_that_is_too_large_as_it_is_stored_is_refused_and_leaves_nothing() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "0"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    let ask = async |quotes: usize| {
        // Each of them is within its bound. A quote takes two bytes of JSON, and four of JSON within JSON.
        let text = |length: usize| "\"".repeat(length.min(quotes));
        let function = json!({"name": "f", "description": text(64_000)});
        let body = json!({"message": "[[tokens=1]] x", "system": "\u{1}".repeat(32_768),
            "tools": [{"type": "function", "function": function}],
            "format": {"type": "object", "description": text(32_000)}});
        let request = http().post(format!("{}/api/v1/chat/", replica.url)).json(&body);
        send(request).await
    };
    let refused = ask(64_000).await;
    assert_eq!(refused.status, 422, "{}", refused.body);
    assert_eq!(refused.body["code"], "validation_failed", "{}", refused.body);
    assert!(refused.body["detail"].as_str().expect("a text").contains("524288 bytes"));
    assert_eq!(redis.cli(&["KEYS", "jarvis:{b*"]).trim(), "");
    // A part of it is not refused for its size, whatever else a model makes of it.
    let smaller = ask(10_000).await;
    assert!(!smaller.body.to_string().contains("524288 bytes"), "{}", smaller.body);
}

#[tokio::test]
async fn an_idempotency_key_counts_for_its_session_and_goes_with_it() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let session = SessionId::random();
    let accept = async |key: &str| {
        let key = IdempotencyKey { key: key.to_owned(), body: "b".to_owned() };
        let new = NewTurn { key: Some(key), ..new_turn("m", "q") };
        let accepted = store.accept(&Proposal::new(&OWNER, session, &new)).await.expect("Redis");
        assert!(matches!(accepted, Acceptance::New { .. }), "{accepted:?}");
        store.cancel(&Cancellation::new(&OWNER, session, None)).await.expect("cancelled");
    };
    let bytes = async || store.measure(session).await.expect("Redis").expect("there").bytes;
    let (hash, order) = ("idempotency", "key_order");
    let name = |suffix: &str| format!("{}:{suffix}", channel(session));
    accept("one with spaces").await;
    let one = bytes().await;
    accept("two").await;
    let two = bytes().await;
    assert!(two - one > 400, "{one}, {two}");
    // Their day is over.
    for (at, key) in ["one with spaces", "two"].iter().enumerate() {
        server.cli(&["HSET", &name(hash), key, "1 g b"]);
        server.cli(&["LSET", &name(order), &at.to_string(), &format!("1 {key}")]);
    }
    accept("three").await;
    assert_eq!(server.cli(&["HKEYS", &name(hash)]).trim(), "three");
    assert_eq!(server.cli(&["LLEN", &name(order)]).trim(), "1");
    let three = bytes().await;
    assert!(three + 2 * 400 <= two + (two - one), "two have gone: {one}, {two}, {three}");
    store.clear(&mut Clearing::new(&OWNER, session, false)).await.expect("cleared");
    assert!(bytes().await >= 400, "a clear leaves the keys");
    store.clear(&mut Clearing::new(&OWNER, session, true)).await.expect("deleted");
    for key in [hash, order] {
        let seconds: i64 = server.cli(&["TTL", &name(key)]).trim().parse().expect("seconds");
        assert!((1..=3600).contains(&seconds), "{key}: {seconds}");
    }
    accept("three again").await;
    assert_eq!(store.evict(&OWNER, session).await.expect("Redis"), Evicted::Removed);
    assert_eq!(server.cli(&["KEYS", &format!("{}*", channel(session))]).matches(":key").count(), 0);
    assert_eq!(server.cli(&["EXISTS", &name(hash), &name(order)]).trim(), "0");
}

#[tokio::test]
async fn of_sessions_in_use_the_network_that_takes_most_is_refused_before_others_are() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let limits = StorageLimits { anonymous_bytes: 100 * KIB, ..wide() };
    let budget = Budget::new(store.clone(), limits);
    let running = SessionId::random();
    open_turn(&store, running, 80 * KIB).await;
    budget.record("large", running).await;
    let large = budget.room(&OWNER, "large", SessionId::random()).await;
    assert_eq!(large.map(drop), Err(OverBudget::Total));
    let small = budget.room(&OWNER, "small", SessionId::random()).await;
    assert_eq!(small.map(drop), Ok(()));
    assert!(exists(&store, running).await, "a turn of it runs");
}

/// Returns the source of the 64 with this number in a 48, as replicas name it.
fn source_in_48(number: u64) -> String {
    let address = format!("2001:db8:0:{number:x}::1").parse().expect("an address");
    SourceKey::new(b"a key").source(address).0
}

#[tokio::test]
async fn networks_of_one_48_give_together_before_a_smaller_one_and_the_largest_56_of_them_first() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let limits = StorageLimits { anonymous_bytes: 800 * KIB, ..StorageLimits::default() };
    let budget = Budget::new(store.clone(), limits);
    // Each takes more than any other /64, and is the oldest.
    let mut honest = Vec::new();
    for _ in 0..3 {
        honest.push(ended_turn(&budget, &store, "honest", 20 * KIB).await);
    }
    let neighbour = ended_turn(&budget, &store, &source_in_48(0xff00), 30 * KIB).await;
    let mut of_56 = Vec::new();
    for number in 0..60 {
        of_56.push(ended_turn(&budget, &store, &source_in_48(number), 10 * KIB).await);
        let room = budget.room(&OWNER, "another", SessionId::random()).await;
        assert_eq!(room.map(drop), Ok(()), "another network is locked out");
    }
    for session in &honest {
        assert!(exists(&store, *session).await, "a network that takes less gives nothing");
    }
    assert!(exists(&store, neighbour).await, "a /56 that takes less gives nothing");
    let total = server.cli(&["GET", "jarvis:{budget}:total"]);
    let total = total.trim().parse::<u64>().expect("bytes");
    assert!((500 * KIB..=615 * KIB).contains(&total), "{total}");
    let mut kept = 0;
    for session in &of_56 {
        kept += usize::from(exists(&store, *session).await);
    }
    assert!((20..60).contains(&kept), "{kept} of the network that takes most");
    // A deleted session leaves no count of a network.
    for session in of_56.into_iter().chain(honest).chain([neighbour]) {
        let _ = store.clear(&mut Clearing::new(&OWNER, session, true)).await;
        budget.record_again(session).await;
    }
    let left = server.cli(&["KEYS", "jarvis:{budget}:*"]);
    assert_eq!(left.lines().count(), 2, "{left}");
    for sum in ["total", "leaving_bytes"] {
        assert_eq!(server.cli(&["GET", &format!("jarvis:{{budget}}:{sum}")]).trim(), "0", "{sum}");
    }
}

#[tokio::test]
async fn no_call_of_the_budget_takes_redis_longer_than_five_milliseconds_with_20_000_networks() {
    const FILL: &str = "
        local base = 'jarvis:{budget}'
        for i = 1, 20000 do
          local session = string.format('00000000-0000-4000-8000-%012d', i)
          local widest = 'a:' .. i % 200
          local wider = widest .. '.' .. i % 2000
          local payer = wider .. '.' .. i
          redis.call('HSET', base .. ':sessions', session, '5000 ' .. payer)
          redis.call('ZADD', base .. ':payer:' .. payer, i, session)
          redis.call('ZADD', base .. ':expiry', 9999999999, session)
          redis.call('ZINCRBY', base .. ':anonymous', 5000, widest)
          redis.call('ZINCRBY', base .. ':within:' .. widest, 5000, wider)
          redis.call('ZINCRBY', base .. ':within:' .. wider, 5000, payer)
        end
        redis.call('SET', base .. ':total', 20000 * 5000)";
    let server = RedisServer::start();
    let store = store(&server).await;
    server.cli(&["EVAL", FILL, "0"]);
    let limits = StorageLimits { anonymous_bytes: 50_000_000, ..wide() };
    let budget = Budget::new(store.clone(), limits);
    let recorded = || {
        let recorded = server.cli(&["HLEN", "jarvis:{budget}:sessions"]);
        recorded.trim().parse::<u64>().expect("a number")
    };
    takes_moments("20,000 networks", async || {
        let before = recorded();
        begin_timing(&server);
        for _ in 0..10 {
            let room = budget.room(&OWNER, &source_in_48(1), SessionId::random()).await;
            assert_eq!(room.map(drop), Err(OverBudget::Total));
        }
        let are_gone = eventually(LIMIT, async || recorded() == before - 200).await;
        assert!(are_gone, "{} of {before}: each call names 20 of its own", recorded());
        longest(timed_calls(&server))
    })
    .await;
}

#[tokio::test]
async fn networks_of_one_56_and_of_one_48_store_twice_and_four_times_as_much_as_one() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let limits = StorageLimits { caller_bytes: 60 * KIB, ..wide() };
    let budget = Budget::new(store.clone(), limits);
    let stored = async |networks: &[u64]| {
        let mut stored = 0;
        for number in networks {
            let source = source_in_48(*number);
            if budget.room(&OWNER, &source, SessionId::random()).await.is_ok() {
                ended_turn(&budget, &store, &source, 20 * KIB).await;
                stored += 1;
            }
        }
        stored
    };
    // A session takes 24 KiB and a little, and the last one may take more than there is.
    assert_eq!(stored(&[1, 1, 1, 1]).await, 3, "one /64");
    assert_eq!(stored(&[2, 3, 4, 5]).await, 2, "a /56 with five sessions");
    assert_eq!(stored(&[0x102, 0x103, 0x204, 0x205, 0x306, 0x307]).await, 5, "a /48 with ten");
    assert_eq!(budget.room(&OWNER, "another", SessionId::random()).await.map(drop), Ok(()));
}

#[tokio::test]
async fn networks_of_one_56_and_of_one_48_have_twice_and_four_times_as_many_sessions_as_one() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let budget = Budget::new(store.clone(), StorageLimits { caller_sessions: 3, ..wide() });
    let room = async |number: u64| {
        budget.room(&OWNER, &source_in_48(number), SessionId::random()).await.map(drop)
    };
    let mut sessions = Vec::new();
    let mut stored = async |networks: &[u64]| {
        let before = sessions.len();
        for number in networks {
            if room(*number).await.is_ok() {
                sessions.push(ended_turn(&budget, &store, &source_in_48(*number), KIB).await);
            }
        }
        sessions.len() - before
    };
    assert_eq!(stored(&[1, 1, 1, 1]).await, 3, "one /64");
    assert_eq!(stored(&[2, 3, 4, 5]).await, 3, "a /56 with six sessions");
    let others = [0x102, 0x103, 0x204, 0x205, 0x306, 0x307, 0x408];
    assert_eq!(stored(&others).await, 6, "a /48 with twelve");
    assert_eq!(room(0x509).await, Err(OverBudget::Sessions));
    assert_eq!(budget.room(&OWNER, "another", SessionId::random()).await.map(drop), Ok(()));
    // A session that exists may go on, and one that is deleted is given back, once.
    let existing = budget.room(&OWNER, &source_in_48(2), sessions[3]).await;
    assert_eq!(existing.map(drop), Ok(()));
    budget.record(&source_in_48(1), sessions[0]).await;
    store.clear(&mut Clearing::new(&OWNER, sessions[0], true)).await.expect("deleted");
    for _ in 0..2 {
        budget.record(&source_in_48(1), sessions[0]).await;
    }
    assert_eq!(room(0x509).await, Ok(()));
    ended_turn(&budget, &store, &source_in_48(0x509), KIB).await;
    assert_eq!(room(0x60a).await, Err(OverBudget::Sessions));
    for session in &sessions[1..] {
        store.clear(&mut Clearing::new(&OWNER, *session, true)).await.expect("deleted");
        budget.record_again(*session).await;
    }
    let counts = server.cli(&["HVALS", "jarvis:{budget}:session_counts"]);
    assert_eq!(counts.split_whitespace().collect::<Vec<_>>(), ["1", "1"], "one is left");
}

#[tokio::test]
async fn a_session_of_a_user_never_counts_as_anonymous_however_it_began() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let budget = Budget::new(store.clone(), wide());
    let session = ended_turn(&budget, &store, "n", KIB).await;
    // The anonymous session expires, and a user begins another one under the same id.
    for key in server.cli(&["KEYS", &format!("{}*", channel(session))]).lines() {
        server.cli(&["DEL", key]);
    }
    let user = Owner::User(User::local("alice").expect("a name"));
    let new = new_turn("m", "q");
    store.accept(&Proposal::new(&user, session, &new)).await.expect("Redis");
    budget.record("n", session).await;
    assert_eq!(server.cli(&["GET", "jarvis:{budget}:total"]).trim(), "0");
    let users = server.cli(&["ZRANGE", "jarvis:{budget}:users", "0", "-1"]);
    assert_eq!(users.trim(), user.key());
}

#[tokio::test]
async fn a_network_that_takes_most_gives_its_young_sessions_and_never_one_of_another_or_in_use() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let limits = StorageLimits { anonymous_bytes: 400 * KIB, ..StorageLimits::default() };
    let budget = Budget::new(store.clone(), limits);
    // The honest session is the oldest of all, and every session has an answer of just now.
    let honest = ended_turn(&budget, &store, "honest", 20 * KIB).await;
    let running = SessionId::random();
    open_turn(&store, running, 20 * KIB).await;
    budget.record("greedy", running).await;
    let mut greedy = Vec::new();
    for _ in 0..40 {
        greedy.push(ended_turn(&budget, &store, "greedy", 20 * KIB).await);
        let refused = budget.room(&OWNER, "another", SessionId::random()).await.map(drop);
        assert_eq!(refused, Ok(()), "another network is locked out");
    }
    assert!(exists(&store, honest).await, "a network that takes less gives nothing");
    assert!(exists(&store, running).await, "its turn runs");
    let oldest_go = eventually(LIMIT, async || {
        !exists(&store, greedy[0]).await && !exists(&store, greedy[20]).await
    });
    assert!(oldest_go.await);
    assert!(exists(&store, greedy[39]).await, "no more than needed");
    let total = server.cli(&["GET", "jarvis:{budget}:total"]);
    assert!(total.trim().parse::<u64>().expect("bytes") <= 300 * KIB + 24 * KIB, "{total}");
}

#[tokio::test]
async fn the_session_that_a_turn_is_about_to_use_does_not_go_to_make_room() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let budget = Budget::new(store.clone(), wide());
    let mut sessions = Vec::new();
    for _ in 0..5 {
        sessions.push(ended_turn(&budget, &store, "n", 20 * KIB).await);
    }
    let total = server.cli(&["GET", "jarvis:{budget}:total"]);
    let total = total.trim().parse::<u64>().expect("bytes");
    // Four fifths of it are taken: more than sessions are removed for, and less than is refused.
    let limits = StorageLimits { anonymous_bytes: total * 5 / 4, ..StorageLimits::default() };
    let budget = Budget::new(store.clone(), limits);
    assert_eq!(budget.room(&OWNER, "n", sessions[0]).await.map(drop), Ok(()));
    let next_goes = eventually(LIMIT, async || !exists(&store, sessions[1]).await);
    assert!(next_goes.await, "nothing goes");
    assert!(exists(&store, sessions[0]).await, "its turn is about to be accepted");
}

#[tokio::test]
async fn a_session_without_an_answer_goes_at_once_and_before_those_with_one() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let limits = StorageLimits { anonymous_bytes: 100 * KIB, ..StorageLimits::default() };
    let budget = Budget::new(store.clone(), limits);
    let content = "q".repeat(30 << 10);
    let refused = async || {
        let session = SessionId::random();
        let new = new_turn("m", &content);
        store.accept(&Proposal::new(&OWNER, session, &new)).await.expect("Redis");
        store.cancel(&Cancellation::new(&OWNER, session, None)).await.expect("cancelled");
        budget.record("n", session).await;
        session
    };
    // The network has a session with an answer, which is older than those that are refused.
    let answered = ended_turn(&budget, &store, "n", KIB).await;
    let mut sessions = Vec::new();
    for _ in 0..10 {
        sessions.push(refused().await);
        assert_eq!(budget.room(&OWNER, "another", SessionId::random()).await.map(drop), Ok(()));
    }
    assert!(exists(&store, answered).await);
    assert!(!exists(&store, sessions[0]).await && !exists(&store, sessions[4]).await);
    let total = server.cli(&["GET", "jarvis:{budget}:total"]);
    assert!(total.trim().parse::<u64>().expect("bytes") <= 110 * KIB, "{total}");
}

#[tokio::test]
async fn a_caller_has_its_sessions_and_bytes_and_gets_them_back_as_sessions_go() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let limits = StorageLimits { caller_sessions: 2, caller_bytes: 60 * KIB, ..wide() };
    let budget = Budget::new(store.clone(), limits);
    let first = ended_turn(&budget, &store, "n", KIB).await;
    assert_eq!(budget.room(&OWNER, "n", SessionId::random()).await.map(drop), Ok(()));
    let second = ended_turn(&budget, &store, "n", KIB).await;
    let new = SessionId::random();
    assert_eq!(budget.room(&OWNER, "n", new).await.map(drop), Err(OverBudget::Sessions));
    assert_eq!(budget.room(&OWNER, "n", second).await.map(drop), Ok(()), "a session that exists");
    assert_eq!(budget.room(&OWNER, "another", new).await.map(drop), Ok(()));
    let user = Owner::User(User::local("n").expect("a name"));
    let listing = budget.room(&user, "n", new).await.expect("a user has a budget of its own");
    // Such a session is listed before it is created; this one is not.
    budget.withdraw(&user, new, listing).await;
    // A deleted session is given back, and counts once however often it was recorded.
    budget.record("n", first).await;
    store.clear(&mut Clearing::new(&OWNER, first, true)).await.expect("deleted");
    budget.record("n", first).await;
    assert_eq!(budget.room(&OWNER, "n", new).await.map(drop), Ok(()));
    // Bytes of a session that grows.
    open_turn(&store, second, 70 * KIB).await;
    store.cancel(&Cancellation::new(&OWNER, second, None)).await.expect("cancelled");
    budget.record("elsewhere", second).await;
    assert_eq!(budget.room(&OWNER, "n", second).await.map(drop), Err(OverBudget::Bytes));
    assert_eq!(
        budget.room(&OWNER, "elsewhere", new).await.map(drop),
        Ok(()),
        "its first caller pays"
    );
    store.clear(&mut Clearing::new(&OWNER, second, true)).await.expect("deleted");
    budget.record_again(second).await;
    assert_eq!(budget.room(&OWNER, "n", second).await.map(drop), Ok(()));
    let left = server.cli(&["KEYS", "jarvis:{budget}:*"]);
    assert_eq!(left.trim(), "jarvis:{budget}:total", "nothing is left of forgotten sessions");
    assert_eq!(server.cli(&["GET", "jarvis:{budget}:total"]).trim(), "0");
}

#[tokio::test]
async fn a_caller_over_its_budget_gets_429_leaves_nothing_and_may_go_on_after_a_delete() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "1000"]);
    let settings = [("JARVIS_CALLER_SESSIONS", "2"), ("JARVIS_TRUSTED_PROXIES", "127.0.0.1")];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let [first, second, third] = [0; 3].map(|_| SessionId::random().to_string());
    let url = format!("{}/api/v1/chat/", replica.url);
    let ask_from = async |address: &str, session: &str| {
        let body = json!({"message": "[[tokens=3]] hello", "session_id": session});
        send(http().post(&url).header("x-forwarded-for", address).json(&body)).await
    };
    let ask = async |session: &str| ask_from("192.0.2.1", session).await;
    assert_eq!(ask(&first).await.status, 200);
    assert_eq!(ask(&second).await.status, 200);
    // The end of a turn is recorded just after its answer.
    let recorded = || redis.cli(&["HLEN", "jarvis:{budget}:sessions"]).trim() == "2";
    assert!(eventually(LIMIT, async || recorded()).await);
    let refused = ask(&third).await;
    assert_eq!((refused.status, &refused.body["code"]), (429, &json!("quota_exceeded")));
    assert_eq!(refused.headers["retry-after"], "60");
    let keys = redis.cli(&["KEYS", &format!("*{third}*")]);
    assert_eq!(keys.trim(), "", "a refused request leaves nothing");
    let other = SessionId::random().to_string();
    assert_eq!(ask_from("192.0.2.2", &other).await.status, 200, "another address has its own");
    assert_eq!(ask(&first).await.status, 200, "a session that exists goes on");
    let url = format!("{}/api/v1/chat/sessions/{first}", replica.url);
    assert!(send(http().delete(url)).await.status < 300);
    assert_eq!(ask(&third).await.status, 200);
}

/// Sends a request, and resets its connection after so long.
async fn reset_after(replica: &Process, request: &str, delay: Duration) {
    let address = replica.url.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(request.as_bytes()).await.expect("sent");
    tokio::time::sleep(delay).await;
    stream.set_zero_linger().expect("a socket");
}

#[tokio::test]
async fn what_a_conversation_stores_is_recorded_also_where_its_client_goes_away_meanwhile() {
    const CONVERSATIONS: u32 = 150;
    let settings = [("JARVIS_TRUSTED_PROXIES", "127.0.0.1")];
    let Setup { replica, redis, ollama: _ollama } = setup("1000", &settings).await;
    let text = "x".repeat(20_000);
    let item = json!({"type": "message", "role": "user", "content": text});
    let body = json!({"items": [item]}).to_string();
    let request = format!(
        "POST /v1/conversations HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.1\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    for number in 0..CONVERSATIONS {
        reset_after(&replica, &request, Duration::from_micros(100) * (number % 100)).await;
    }
    let stored = || {
        let keys = redis.cli(&["KEYS", "jarvis:*:messages"]);
        keys.lines().filter(|key| !key.is_empty()).count()
    };
    let recorded = || redis.cli(&["HLEN", "jarvis:{budget}:sessions"]).trim().parse::<usize>();
    let is_recorded = async || recorded() == Ok(stored());
    assert!(eventually(LIMIT, is_recorded).await, "{:?} of {}", recorded(), stored());
    assert!(stored() > 0, "none was stored");
}

#[tokio::test]
async fn conversations_and_their_items_are_refused_beyond_the_budget_of_their_caller() {
    const HALF: usize = 400_000;
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "1000"]);
    let settings = [
        ("JARVIS_CALLER_SESSIONS", "2"),
        ("JARVIS_CALLER_MIB", "1"),
        ("JARVIS_TRUSTED_PROXIES", "127.0.0.1"),
    ];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let from = |request: reqwest::RequestBuilder, address: &str| {
        send(request.header("x-forwarded-for", address))
    };
    let post = async |address: &str, path: &str, bytes: usize| {
        let items = json!({"items": [{"role": "user", "content": "x".repeat(bytes)}]});
        from(http().post(format!("{}{path}", replica.url)).json(&items), address).await
    };
    let (address, path) = ("192.0.2.1", "/v1/conversations");
    let mut conversations = Vec::new();
    for _ in 0..2 {
        let created = post(address, path, 10).await;
        assert_eq!(created.status, 200, "{}", created.body);
        conversations.push(created.body["id"].as_str().expect("an id").to_owned());
    }
    let is_refused = |reply: &support::client::Reply| {
        let code = &reply.body["error"]["code"];
        assert_eq!((reply.status, code), (429, &json!("insufficient_quota")), "{}", reply.body);
        assert_eq!(reply.headers["retry-after"], "60");
    };
    let keys = || redis.cli(&["KEYS", "jarvis:{b*}:s:*"]).lines().count();
    let before = keys();
    is_refused(&post(address, path, 10).await);
    assert_eq!(keys(), before, "a refused request leaves nothing");
    let items = format!("{path}/{}/items", conversations[0]);
    assert_eq!(post(address, &items, HALF).await.status, 200, "a conversation that exists goes on");
    assert_eq!(post(address, &items, HALF).await.status, 200);
    is_refused(&post(address, &items, HALF).await);
    let listed = from(http().get(format!("{}{items}", replica.url)), address).await;
    assert_eq!(listed.body["data"].as_array().map(Vec::len), Some(3), "a page of all");
    // More than one request may add is refused whoever has room; another address has its own.
    let other = post("192.0.2.2", path, 10).await;
    assert_eq!(other.status, 200, "{}", other.body);
    let items_of_other = format!("{path}/{}/items", other.body["id"].as_str().expect("an id"));
    let too_large = post("192.0.2.2", &items_of_other, 600_000).await;
    assert_eq!(too_large.body["error"]["param"], "items", "{}", too_large.body);
    let whole = post("192.0.2.2", &items_of_other, 3 << 20).await;
    assert_eq!(whole.status, 413, "{}", whole.body);
    let url = format!("{}{path}/{}", replica.url, conversations[0]);
    assert_eq!(from(http().delete(url), address).await.status, 200);
    let has_room = async || post(address, path, HALF).await.status == 200;
    assert!(eventually(LIMIT, has_room).await, "a deleted conversation counts");
}

#[tokio::test]
async fn the_budget_of_a_user_does_not_show_that_another_s_session_exists() {
    let redis = RedisServer::start();
    let store = store(&redis).await;
    let user = |name| Owner::User(User::local(name).expect("a name"));
    let limits = StorageLimits { caller_sessions: 1, ..wide() };
    let budget = Budget::new(store.clone(), limits);
    let (alice, bob) = (SessionId::random(), SessionId::random());
    for (owner, session) in [(user("alice"), alice), (user("bob"), bob)] {
        assert_eq!(budget.room(&owner, "", session).await.map(drop), Ok(()));
        let new = new_turn("m", "q");
        store.accept(&Proposal::new(&owner, session, &new)).await.expect("Redis");
        budget.record("", session).await;
    }
    // Bob may begin no further session; his answer for Alice's is the same as for one that never was.
    let never = budget.room(&user("bob"), "", SessionId::random()).await.map(drop);
    assert_eq!(never, Err(OverBudget::Sessions));
    assert_eq!(budget.room(&user("bob"), "", alice).await.map(drop), never);
}

fn alice() -> Owner {
    Owner::User(User::local("alice").expect("a name"))
}

/// Returns the bytes that count for Alice.
fn bytes_of_alice(server: &RedisServer) -> u64 {
    let bytes = server.cli(&["ZSCORE", "jarvis:{budget}:users", "user:local:alice"]);
    bytes.trim().parse().unwrap_or(0)
}

/// Stores the first turn of a user's session, as a replica does that then dies.
async fn unrecorded_turn(store: &Store, owner: &Owner, session: SessionId) {
    let new = new_turn("m", "q");
    store.accept(&Proposal::new(owner, session, &new)).await.expect("Redis");
}

#[tokio::test]
async fn imports_and_claims_at_the_same_time_share_the_budget_of_their_user() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let limits = StorageLimits { caller_bytes: 100 * KIB, ..wide() };
    let budget = Budget::new(store.clone(), limits);
    let (import, mut claimed) = (SessionId::random(), Vec::new());
    for _ in 0..4 {
        claimed.push(ended_turn(&budget, &store, "n", 20 * KIB).await);
    }
    let imports = (0..8).map(|_| SessionId::random()).collect::<Vec<_>>();
    let owner = alice();
    let imports = imports.iter().map(|session| budget.reserve_import(&owner, *session, 20 * KIB));
    let claims = claimed.iter().map(|session| budget.reserve_claim(&owner, *session));
    let (imports, claims) = tokio::join!(join_all(imports), join_all(claims));
    let admitted = imports.iter().chain(&claims).filter(|room| room.is_ok()).count();
    assert!((3..=4).contains(&admitted), "{admitted} of at most 25 KiB each");
    let reserved = bytes_of_alice(&server);
    assert!((72 * KIB..100 * KIB).contains(&reserved), "{reserved}");
    assert_eq!(budget.room(&alice(), "", import).await.map(drop), Ok(()), "100 KiB are not used");
    let refused = budget.reserve_import(&alice(), import, 40 * KIB).await;
    assert_eq!(refused.map(drop), Err(OverBudget::Bytes));
    // A reservation that never ends gives its room back by itself.
    for field in server.cli(&["ZRANGE", "jarvis:{budget}:reservations", "0", "-1"]).lines() {
        server.cli(&["ZADD", "jarvis:{budget}:reservations", "1", field]);
    }
    let room = budget.reserve_import(&alice(), import, 40 * KIB).await;
    assert_eq!(room.map(drop), Ok(()));
    assert_eq!(bytes_of_alice(&server), 44 * KIB);
    // A repeat takes the place of the first.
    let room = budget.reserve_import(&alice(), import, 60 * KIB).await;
    assert_eq!(room.map(drop), Ok(()));
    assert_eq!(bytes_of_alice(&server), 64 * KIB);
    // A record takes the place of the reservation.
    unrecorded_turn(&store, &alice(), import).await;
    budget.record("", import).await;
    let recorded = server.cli(&["HGET", "jarvis:{budget}:sessions", &import.to_string()]);
    let recorded = recorded.split(' ').next().expect("bytes").parse::<u64>().expect("a number");
    assert_eq!(bytes_of_alice(&server), recorded);
    assert_eq!(server.cli(&["KEYS", "jarvis:{budget}:reserv*"]).trim(), "");
}

#[tokio::test]
async fn a_claim_reserves_what_the_session_takes_and_gives_it_back_where_it_is_refused() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let limits = StorageLimits { caller_bytes: 30 * KIB, ..wide() };
    let budget = Budget::new(store.clone(), limits);
    let large = ended_turn(&budget, &store, "n", 40 * KIB).await;
    let small = ended_turn(&budget, &store, "n", 10 * KIB).await;
    let refused = budget.reserve_claim(&alice(), large).await;
    assert_eq!(refused.map(drop), Err(OverBudget::Bytes));
    let listing = budget.reserve_claim(&alice(), small).await.expect("room");
    assert!(bytes_of_alice(&server) > 14 * KIB);
    budget.withdraw(&alice(), small, listing).await;
    assert_eq!(bytes_of_alice(&server), 0);
    let left = server.cli(&["KEYS", "jarvis:{budget}:*alice*"]);
    assert_eq!(left.trim(), "", "no list");
    assert_eq!(server.cli(&["KEYS", "jarvis:{budget}:reserv*"]).trim(), "");
    let total = server.cli(&["GET", "jarvis:{budget}:total"]);
    assert!(total.trim().parse::<u64>().expect("bytes") > 58 * KIB, "it stays recorded: {total}");
}

#[tokio::test]
async fn what_is_withdrawn_gives_back_the_room_of_its_own_call_and_no_other() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let budget = Budget::new(store.clone(), wide());
    let session = SessionId::random();
    budget.reserve_import(&alice(), session, 20 * KIB).await.expect("room");
    let of_import = bytes_of_alice(&server);
    assert_eq!(of_import, 24 * KIB);
    // A turn and a claim of the same identifier find no session of this user while the import runs.
    let turn = budget.room(&alice(), "", session).await.expect("room");
    let claim = budget.reserve_claim(&alice(), session).await.expect("room");
    for grant in [turn, claim] {
        budget.withdraw(&alice(), session, grant).await;
        assert_eq!(bytes_of_alice(&server), of_import, "the import goes on");
    }
    // Of two claims at the same time, the first one that is refused leaves the other's room.
    let anonymous = ended_turn(&budget, &store, "n", 20 * KIB).await;
    let first = budget.reserve_claim(&alice(), anonymous).await.expect("room");
    let second = budget.reserve_claim(&alice(), anonymous).await.expect("room");
    let of_both = bytes_of_alice(&server);
    assert!(of_both > of_import + 20 * KIB, "{of_both}");
    budget.withdraw(&alice(), anonymous, first).await;
    assert_eq!(bytes_of_alice(&server), of_both, "the second claim is under way");
    budget.withdraw(&alice(), anonymous, second).await;
    assert_eq!(bytes_of_alice(&server), of_import);
}

#[tokio::test]
async fn a_session_that_was_never_recorded_stays_listed_and_is_recorded_when_it_is_looked_for() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let budget = Budget::new(store.clone(), wide());
    let (session, never) = (SessionId::random(), SessionId::random());
    for listed in [session, never] {
        budget.room(&alice(), "", listed).await.expect("room");
    }
    unrecorded_turn(&store, &alice(), session).await;
    let page = budget.list(&alice(), ListOrder::Newest, None, 10).await.expect("a page").entries;
    assert!(page.iter().all(|entry| !entry.is_recorded), "{page:?}");
    // A day later, a call of anybody's looks for both.
    for listed in [session, never] {
        server.cli(&["ZADD", "jarvis:{budget}:expiry", "1", &listed.to_string()]);
    }
    budget.room(&OWNER, "n", SessionId::random()).await.expect("room");
    let of = |session: SessionId| {
        server.cli(&["HGET", "jarvis:{budget}:sessions", &session.to_string()]).trim().to_owned()
    };
    let looked_for =
        eventually(LIMIT, async || of(never).is_empty() && !of(session).starts_with('0'));
    assert!(looked_for.await, "{} {}", of(session), of(never));
    assert!(bytes_of_alice(&server) > 4 * KIB);
    let page = budget.list(&alice(), ListOrder::Newest, None, 10).await.expect("a page").entries;
    let [entry] = &page[..] else { panic!("{page:?}") };
    assert_eq!((entry.position.session, entry.is_recorded), (session, true));
}

#[tokio::test]
async fn a_refused_request_never_takes_a_session_off_the_list_that_another_one_is_creating() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let budget = Budget::new(store.clone(), wide());
    let session = SessionId::random();
    let is_listed = async || {
        let page = budget.list(&alice(), ListOrder::Newest, None, 1).await.expect("a page");
        !page.entries.is_empty()
    };
    let first = budget.room(&alice(), "", session).await.expect("room");
    let second = budget.room(&alice(), "", session).await.expect("room");
    budget.withdraw(&alice(), session, first).await;
    assert!(is_listed().await, "it was listed again since");
    budget.withdraw(&alice(), session, second).await;
    assert!(is_listed().await, "it was listed before");
    let other = SessionId::random();
    let only = budget.room(&alice(), "", other).await.expect("room");
    budget.withdraw(&alice(), other, only).await;
    let page = budget.list(&alice(), ListOrder::Newest, None, 10).await.expect("a page").entries;
    assert_eq!(page.len(), 1, "{page:?}");
}

#[tokio::test]
async fn a_large_session_that_expires_is_freed_in_the_background() {
    let server = RedisServer::start();
    let fill = "for i = 1, 10000 do redis.call('HSET', KEYS[1], i, string.rep('x', 100)) end";
    server.cli(&["EVAL", fill, "1", "jarvis:{0}:s:x:messages"]);
    server.cli(&["PEXPIRE", "jarvis:{0}:s:x:messages", "1"]);
    let freed = || server.cli(&["INFO", "memory"]);
    let in_background = eventually(LIMIT, async || freed().contains("lazyfreed_objects:1"));
    assert!(in_background.await, "{}", freed());
}
