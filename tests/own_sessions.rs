//! A user's sessions: their list, their deletion, their export and import.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::Duration;

use chrono::Utc;
use jarvis::budget::{Budget, ListOrder, StorageLimits};
use jarvis::session::model::User;
use jarvis::session::store::{
    Acceptance, Begin, Clearing, ImportStep, ImportedSession, Proposal, Restored, SessionLimits,
    Transfer, channel, message,
};
use jarvis::session::{Message, Owner, Role, SessionId, Status, Store, StoreError, Tag};
use reqwest::Method;
use serde_json::{Value, json};
use support::client::{Reply, http, send};
use support::eventually;
use support::owned::{Fleet, SESSIONS, ask, chat, id, listed, open, read};
use support::process::{LIMIT, jarvis};
use support::redis::RedisServer;
use support::redis_time::{begin_timing, longest, takes_moments, timed_calls};
use support::store::{connect, new_turn};
use support::tokens::{SECRET, token};

const EXPORT: &str = "/api/v1/chat/export";
const IMPORT: &str = "/api/v1/chat/import";

async fn delete_all(fleet: &Fleet, replica: usize, user: &str) -> Reply {
    ask(&fleet.replicas[replica], Method::DELETE, SESSIONS, &Value::Null, user).await
}

/// Stores sessions of a user without a replica, each with one ended turn, and lists them.
async fn stored_sessions(store: &Store, user: &str, count: usize) -> Vec<SessionId> {
    let owner = Owner::User(User::local(user).expect("a user"));
    let budget = Budget::new(store.clone(), StorageLimits::default());
    let mut sessions = Vec::new();
    for _ in 0..count {
        let session = SessionId::random();
        stored_turn(store, &owner, session, "a question", "an answer").await;
        budget.record("", session).await;
        sessions.push(session);
    }
    sessions
}

async fn stored_turn(store: &Store, owner: &Owner, session: SessionId, question: &str, text: &str) {
    let new = new_turn("m", question);
    let accepted = store.accept(&Proposal::new(owner, session, &new)).await.expect("Redis");
    let Acceptance::New { turn, .. } = accepted else { panic!("{accepted:?}") };
    let tag = Tag::random();
    store.start(&turn, tag, None).await.expect("Redis");
    store.append(&turn, tag, 0, true, text).await.expect("Redis");
    let header = Message {
        generation_id: Some(turn.generation),
        status: Some(Status::Complete),
        ..message(Role::Assistant, "2026-01-01T00:00:00Z".parse().expect("a time"))
    };
    let length = text.len() as u64;
    store.finish(&turn, tag, length, &header, &[]).await.expect("Redis");
}

async fn store_of(redis: &RedisServer) -> Store {
    Store::new(connect(&redis.url()).await, "r".to_owned(), SessionLimits::default())
}

/// Returns the number of sessions in Redis that are not deleted.
fn sessions_in(redis: &RedisServer) -> usize {
    let script = "local n = 0 for _, key in ipairs(redis.call('KEYS', 'jarvis:*:s:*')) do \
        if string.match(key, ':s:[%x-]+$') and redis.call('HEXISTS', key, 'deleted') == 0 then \
        n = n + 1 end end return n";
    redis.cli(&["EVAL", script, "0"]).trim().parse().expect("a number")
}

#[tokio::test]
async fn the_list_is_newest_first_paged_and_put_right_where_it_differs_from_the_sessions() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    let replica = &fleet.replicas[0];
    let mut sessions = Vec::new();
    for number in 0..5 {
        let session = id();
        let message = format!("[[tokens=2]] question {number}");
        assert_eq!(chat(replica, &session, &message, "alice").await.status, 200);
        sessions.insert(0, session);
    }
    assert_eq!(chat(replica, &id(), "[[tokens=2]] bob's", "bob").await.status, 200);
    for limit in [1, 2, 5, 500] {
        assert_eq!(listed(replica, "alice", limit).await, sessions, "{limit}");
    }
    let page = ask(replica, Method::GET, SESSIONS, &Value::Null, "alice").await.body;
    let newest = &page["sessions"][0];
    assert_eq!(newest["title"], "[[tokens=2]] question 4");
    assert_eq!(newest["message_count"], 2);
    assert_eq!(newest["model"], "tinyllama:latest");
    assert!(newest["created_at"].is_string() && newest["updated_at"].is_string(), "{newest}");
    for (path, status) in [
        (SESSIONS.to_owned(), 401),
        (format!("{SESSIONS}?limit=0"), 422),
        (format!("{SESSIONS}?limit=501"), 422),
        (format!("{SESSIONS}?cursor=rubbish"), 422),
    ] {
        let user = if status == 401 { "" } else { "alice" };
        assert_eq!(ask(replica, Method::GET, &path, &Value::Null, user).await.status, status);
    }
    // A turn moves its session to the front, as does one that has only begun.
    assert_eq!(chat(replica, &sessions[3], "[[tokens=2]] again", "alice").await.status, 200);
    let used = sessions.remove(3);
    sessions.insert(0, used);
    assert_eq!(listed(replica, "alice", 2).await, sessions);
    // A session that is gone vanishes at once.
    let path = format!("{SESSIONS}/{}", sessions[1]);
    assert_eq!(ask(replica, Method::DELETE, &path, &Value::Null, "alice").await.status, 200);
    let gone = sessions.remove(1);
    assert_eq!(listed(replica, "alice", 2).await, sessions);
    let list = "jarvis:{budget}:payer:user:local:alice";
    // An entry without a session is left out, and removed once it is a minute old.
    redis.cli(&["ZADD", list, "1", &gone, &(redis_seconds(&redis) + 1).to_string(), &id()]);
    assert_eq!(listed(replica, "alice", 2).await, sessions);
    let entries = redis.cli(&["ZRANGE", list, "0", "-1"]);
    assert!(!entries.contains(&gone), "{entries}");
    // A session that is missing comes back with its next turn.
    redis.cli(&["ZREM", list, &sessions[2]]);
    redis.cli(&["HDEL", "jarvis:{budget}:sessions", &sessions[2]]);
    let missing = sessions.remove(2);
    assert_eq!(listed(replica, "alice", 2).await, sessions);
    assert_eq!(chat(replica, &missing, "[[tokens=2]] again", "alice").await.status, 200);
    sessions.insert(0, missing);
    assert_eq!(listed(replica, "alice", 2).await, sessions);
}

fn redis_seconds(redis: &RedisServer) -> u64 {
    redis.cli(&["TIME"]).lines().next().expect("seconds").trim().parse().expect("a number")
}

#[tokio::test]
async fn a_deletion_of_all_leaves_nothing_behind_and_spares_what_is_created_later() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 2, "60").await;
    let store = store_of(&redis).await;
    stored_sessions(&store, "alice", 200).await;
    stored_sessions(&store, "bob", 2).await;
    // One with a running turn, and a socket.
    let busy = id();
    let mut socket = open(&fleet.replicas[1], &busy, "alice").await;
    socket.say(&json!({"message": "[[tokens=2000]] for long"})).await;
    socket.until("stream_chunk").await;
    let anonymous = ask(&fleet.replicas[0], Method::DELETE, SESSIONS, &Value::Null, "").await;
    assert_eq!(anonymous.status, 401);
    let deleted = delete_all(&fleet, 0, "alice").await;
    assert_eq!((deleted.status, &deleted.body["status"]), (200, &json!("success")));
    assert_eq!(deleted.body["sessions_deleted"], 201);
    assert_eq!(listed(&fleet.replicas[1], "alice", 50).await, Vec::<String>::new());
    assert_eq!(sessions_in(&redis), 2, "those of the other user");
    socket.until("cancelled").await;
    let is_forgotten = eventually(LIMIT, async || {
        redis.cli(&["ZSCORE", "jarvis:{budget}:users", "user:local:alice"]).trim().is_empty()
    });
    assert!(
        is_forgotten.await,
        "{}",
        redis.cli(&["ZRANGE", "jarvis:{budget}:users", "0", "-1", "WITHSCORES"])
    );
    assert_eq!(redis.cli(&["KEYS", "jarvis:{budget}:delet*"]).trim(), "");
    // The user goes on, also with a session of the same identifier.
    assert_eq!(chat(&fleet.replicas[0], &busy, "[[tokens=2]] anew", "alice").await.status, 200);
    assert_eq!(listed(&fleet.replicas[1], "alice", 50).await, [busy]);
    assert_eq!(delete_all(&fleet, 1, "carol").await.body["sessions_deleted"], 0);
}

#[tokio::test]
async fn a_deletion_whose_replica_is_killed_in_the_middle_is_resumed_and_spares_what_came_later() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 2, "500").await;
    let store = store_of(&redis).await;
    let sessions = stored_sessions(&store, "alice", 3000).await;
    let url = format!("{}{SESSIONS}", fleet.replicas[0].url);
    let request = http().delete(url).bearer_auth(token("alice"));
    let asking = tokio::spawn(async move { request.send().await.map(|reply| reply.status()) });
    let left = || {
        let script = "local keys = redis.call('KEYS', 'jarvis:{budget}:deleting:*') \
            return #keys == 0 and -1 or redis.call('ZCARD', keys[1])";
        redis.cli(&["EVAL", script, "0"]).trim().parse::<i64>().expect("a number")
    };
    let is_in_the_middle = eventually(LIMIT, async || (1..2900).contains(&left()));
    assert!(is_in_the_middle.await);
    fleet.replicas[0].kill();
    assert!(left() > 0, "the deletion was over before the replica was killed");
    assert!(asking.await.expect("a task").is_err(), "a reply of a killed replica");
    // Created after the call; one of them where the deletion has been already.
    let deleted = async |session: &&SessionId| {
        read(&fleet.replicas[1], &session.to_string(), "alice").await.status == 404
    };
    let mut again = None;
    for session in &sessions {
        if deleted(&session).await {
            again = Some(session.to_string());
            break;
        }
    }
    let again = again.expect("a session that is deleted");
    let later = id();
    for session in [&later, &again] {
        assert_eq!(chat(&fleet.replicas[1], session, "[[tokens=2]] hi", "alice").await.status, 200);
    }
    let is_done = eventually(Duration::from_mins(1), async || left() == -1);
    assert!(is_done.await, "{} are left", left());
    let mut kept = listed(&fleet.replicas[1], "alice", 50).await;
    kept.sort();
    let mut expected = [later, again];
    expected.sort();
    assert_eq!(kept, expected);
    assert_eq!(sessions_in(&redis), 2);
    for session in &expected {
        assert_eq!(read(&fleet.replicas[1], session, "alice").await.body["total"], 2);
    }
}

#[tokio::test]
async fn a_deletion_of_all_spares_a_session_that_was_created_since_it_began() {
    let redis = RedisServer::start();
    let store = store_of(&redis).await;
    let budget = Budget::new(store.clone(), StorageLimits::default());
    let alice = Owner::User(User::local("alice").expect("a user"));
    let [old, again] = stored_sessions(&store, "alice", 2).await.try_into().expect("two");
    let new = SessionId::random();
    budget.room(&alice, "", new).await.expect("room");
    let (count, deletion) = budget.delete_all(&alice, "name").await.expect("a deletion");
    assert_eq!(count, 3);
    // Before its turn comes, the user deletes one and creates it again, and creates the other.
    store.clear(&mut Clearing::new(&alice, again, true)).await.expect("deleted");
    for session in [again, new] {
        stored_turn(&store, &alice, session, "created since", "an answer").await;
    }
    let delete = async |session| {
        let began = Some(deletion.began);
        let mut clearing = Clearing::of_deletion(&alice, session, "name", began, "");
        store.clear(&mut clearing).await.map(|_| clearing.done().to_owned())
    };
    let done = delete(old).await.expect("deleted");
    assert!(!done.is_empty());
    assert_eq!(delete(old).await.expect("a repeat after a lost reply"), done);
    for session in [again, new] {
        assert!(matches!(delete(session).await, Err(StoreError::Absent)));
        assert!(store.measure(session).await.expect("Redis").is_some(), "it is there");
    }
}

#[tokio::test]
async fn a_clear_or_delete_that_is_applied_again_spares_a_session_that_was_begun_since() {
    let redis = RedisServer::start();
    let store = store_of(&redis).await;
    let alice = Owner::User(User::local("alice").expect("a user"));
    for (before, after) in
        [(&Owner::Anonymous, &Owner::Anonymous), (&Owner::Anonymous, &alice), (&alice, &alice)]
    {
        for delete in [false, true] {
            let session = SessionId::random();
            stored_turn(&store, before, session, "before", "an answer").await;
            let mut clearing = Clearing::new(before, session, delete);
            assert_eq!(store.clear(&mut clearing).await.expect("cleared"), 2);
            // The session expires, or goes to make room.
            let keys = redis.cli(&["KEYS", &format!("{}*", channel(session))]);
            redis.cli(&[&["DEL"], &*keys.lines().collect::<Vec<_>>()].concat());
            stored_turn(&store, after, session, "since", "an answer").await;
            let again = store.clear(&mut clearing).await;
            assert!(matches!(again, Err(StoreError::Absent)), "{before:?} {after:?} {delete}");
            let messages = redis.cli(&["HLEN", &format!("{}:index", channel(session))]);
            assert_eq!(messages.trim(), "2", "{before:?} {after:?} {delete}");
        }
    }
}

#[tokio::test]
async fn a_deletion_of_all_spares_no_session_whose_node_has_a_clock_ahead() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    let replica = &fleet.replicas[0];
    let sessions = stored_sessions(&store_of(&redis).await, "alice", 2).await;
    let hour_later = (Utc::now().timestamp_micros() + 3_600_000_000).to_string();
    for session in &sessions {
        redis.cli(&["HSET", &channel(*session), "began", &hour_later]);
    }
    assert_eq!(delete_all(&fleet, 0, "alice").await.body["sessions_deleted"], 2);
    for session in &sessions {
        assert_eq!(read(replica, &session.to_string(), "alice").await.status, 404);
    }
}

#[tokio::test]
async fn a_deletion_of_all_that_is_applied_again_spares_what_was_created_since() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    let replica = &fleet.replicas[0];
    let store = store_of(&redis).await;
    let sessions = stored_sessions(&store, "alice", 3).await;
    // One is listed, and not there yet.
    let budget = Budget::new(store.clone(), StorageLimits::default());
    let alice = Owner::User(User::local("alice").expect("a user"));
    let absent = SessionId::random();
    budget.room(&alice, "", absent).await.expect("room");
    assert_eq!(delete_all(&fleet, 0, "alice").await.body["sessions_deleted"], 3);
    let kept = [absent, sessions[0]].map(|session| session.to_string());
    for session in &kept {
        assert_eq!(chat(replica, session, "[[tokens=2]] anew", "alice").await.status, 200);
    }
    // The user clears one: it has an epoch that the deletion does not know.
    store.clear(&mut Clearing::new(&alice, sessions[0], false)).await.expect("cleared");
    assert_eq!(chat(replica, &kept[1], "[[tokens=2]] again", "alice").await.status, 200);
    begin_timing(&redis);
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    let clears = || {
        let calls = timed_calls(&redis).into_iter();
        calls.filter(|(function, _)| function == "jarvis_clear_1").count()
    };
    assert!(eventually(LIMIT, async || clears() >= 3).await, "{} are applied again", clears());
    for session in &kept {
        assert_eq!(read(replica, session, "alice").await.body["total"], 2, "{session}");
    }
}

/// Returns the lines of an export.
async fn export(fleet: &Fleet, user: &str) -> Vec<Value> {
    let reply = ask(&fleet.replicas[0], Method::GET, EXPORT, &Value::Null, user).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.headers["content-type"], "application/x-ndjson");
    let text = reply.body.as_str().expect("lines").to_owned();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn as_text(lines: &[Value]) -> String {
    lines.iter().flat_map(|line| [line.to_string(), "\n".to_owned()]).collect()
}

async fn import(fleet: &Fleet, replica: usize, user: &str, body: String) -> Reply {
    let request = http().post(format!("{}{IMPORT}", fleet.replicas[replica].url)).body(body);
    send(if user.is_empty() { request } else { request.bearer_auth(token(user)) }).await
}

fn counts(reply: &Reply) -> (u64, u64, u64) {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let count = |name: &str| reply.body[name].as_u64().expect("a number");
    (count("sessions_imported"), count("sessions_skipped"), count("messages_imported"))
}

#[tokio::test]
async fn an_imported_session_is_followed_and_cancelled_before_its_first_turn() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    let replica = &fleet.replicas[0];
    assert_eq!(chat(replica, &id(), "[[tokens=3]] hi", "alice").await.status, 200);
    let lines: Vec<String> = export(&fleet, "alice").await.iter().map(Value::to_string).collect();
    assert_eq!(counts(&import(&fleet, 0, "bob", lines.join("\n")).await).0, 1);
    let list = send(http().get(format!("{}{SESSIONS}", replica.url)).bearer_auth(token("bob")));
    let session =
        list.await.body["sessions"][0]["session_id"].as_str().expect("a session").to_owned();
    let events = format!("{}{SESSIONS}/{session}/events", replica.url);
    let followed = http().get(events).bearer_auth(token("bob")).send().await.expect("a reply");
    assert_eq!(followed.status(), 200);
    let cancel = format!("{}{SESSIONS}/{session}/cancel", replica.url);
    assert_eq!(send(http().post(cancel).bearer_auth(token("bob"))).await.status, 409);
}

#[tokio::test]
async fn a_turn_whose_imported_session_a_failover_lost_waits_until_it_is_imported_again() {
    let redis = RedisServer::start();
    let store = store_of(&redis).await;
    let owner = Owner::User(User::local("alice").expect("a user"));
    let at = "2026-01-01T00:00:00Z".parse().expect("a time");
    let entry = |content: &str| {
        let message = Message { content: content.to_owned(), ..message(Role::User, at) };
        ImportedSession::entry(&message).expect("an entry")
    };
    let imported = ImportedSession {
        session: SessionId::random(),
        title: "t".to_owned(),
        model: "m".to_owned(),
        created_at: at,
        pinned: false,
        archived: false,
        entries: vec![entry("first"), entry("second")],
    };
    let stage = async || {
        for from in [None, Some(0)] {
            store.import_messages(&owner, &imported, from).await.expect("a batch");
        }
    };
    let commit = async || {
        let committed = store.import_commit(&owner, &imported).await.expect("a session");
        assert_eq!(committed, ImportStep::Exists);
    };
    let accept = async |content: &str| {
        let new = new_turn("m", content);
        let proposal = Proposal::new(&owner, imported.session, &new);
        let accepted = store.accept(&proposal).await.expect("accepted");
        let Acceptance::New { turn, .. } = accepted else { panic!("{accepted:?}") };
        turn
    };
    stage().await;
    commit().await;
    let turn = accept("question").await;
    let lost = redis.cli(&["KEYS", "jarvis:{b*"]);
    let lost: Vec<&str> = lost.lines().collect();
    redis.cli(&[&["DEL"], &lost[..]].concat());
    stage().await;
    for _ in 0..2 {
        assert_eq!(store.restore(&turn).await.expect("Redis"), Restored::Waiting);
        let listed = redis.cli(&["EXISTS", &format!("{}:waiting", channel(imported.session))]);
        assert_eq!(listed.trim(), "0", "the turn is in a session that is not there yet");
    }
    commit().await;
    assert_eq!(store.restore(&turn).await.expect("Redis"), Restored::Waiting);
    assert_eq!(store.begin(&turn).await.expect("Redis"), Begin::Began);
    accept("another question").await;
    let page = store.page(&owner, imported.session, 0, 50).await.expect("a page");
    let contents: Vec<_> = page.messages.iter().map(|message| &*message.content).collect();
    assert_eq!(contents, ["first", "second", "question"]);
}

#[tokio::test]
async fn an_export_is_imported_under_new_ids_with_the_same_content_and_only_once() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    let replica = &fleet.replicas[0];
    let alice = Owner::User(User::local("alice").expect("a user"));
    let store = store_of(&redis).await;
    let (plain, reasoned) = (id(), SessionId::random());
    for message in ["[[tokens=5]] héllo \"wörld\" \u{1f30d}\nsecond line", "[[tokens=5]] and on"]
    {
        assert_eq!(chat(replica, &plain, message, "alice").await.status, 200);
    }
    stored_turn(&store, &alice, reasoned, "\u{2}odd", "\u{2}I think\u{3}so").await;
    Budget::new(store.clone(), StorageLimits::default()).record("", reasoned).await;
    let lines = export(&fleet, "alice").await;
    let kinds: Vec<_> = lines.iter().map(|line| line["type"].as_str().expect("a type")).collect();
    let of = |count| [["session"].as_slice(), &vec!["message"; count], &["session_end"]].concat();
    assert_eq!(kinds, [&["export"][..], &of(4), &of(2), &["end"]].concat());
    assert_eq!(lines.last(), Some(&json!({"type": "end", "sessions": 2, "messages": 6})));
    assert_eq!((&lines[1]["session_id"], &lines[1]["message_count"]), (&json!(plain), &json!(4)));

    assert_eq!(import(&fleet, 0, "", as_text(&lines)).await.status, 401);
    assert_eq!(counts(&import(&fleet, 0, "bob", as_text(&lines)).await), (2, 0, 6));
    assert_eq!(counts(&import(&fleet, 0, "bob", as_text(&lines)).await), (0, 2, 0));
    let copies = export(&fleet, "bob").await;
    assert_eq!(counts(&import(&fleet, 0, "bob", as_text(&copies)).await), (0, 2, 0), "its own");
    assert_eq!(copies.len(), lines.len());
    let same = [
        "type",
        "role",
        "content",
        "thinking",
        "timestamp",
        "model",
        "status",
        "title",
        "finish_reason",
        "usage",
        "created_at",
        "message_count",
        "messages",
        "pinned",
        "archived",
        "tool_calls",
        "tool_call_id",
        "tool_name",
    ];
    for (line, copy) in lines.iter().zip(&copies).skip(1) {
        for field in same {
            assert_eq!(line[field], copy[field], "{field}: {line} {copy}");
        }
        for field in ["id", "session_id", "generation_id"] {
            assert!(line[field].is_null() || line[field] != copy[field], "{field}: {line} {copy}");
        }
        if copy["role"] == "user" {
            assert_eq!(copy["user_id"], "bob");
        }
    }
    assert_eq!(copies[2]["content"], lines[2]["content"]);
    assert_eq!(copies[9]["thinking"], "I think");
    // The copy is a session like another one: it goes on, and is imported again once it is deleted.
    let copy = copies[1]["session_id"].as_str().expect("an id");
    assert_eq!(chat(replica, copy, "[[tokens=2]] on", "bob").await.status, 200);
    assert_eq!(read(replica, copy, "bob").await.body["total"], 6);
    assert_eq!(read(replica, copy, "alice").await.status, 404);
    assert_eq!(counts(&import(&fleet, 0, "bob", as_text(&lines)).await), (0, 2, 0));
    assert_eq!(delete_all(&fleet, 0, "bob").await.body["sessions_deleted"], 2);
    assert_eq!(counts(&import(&fleet, 0, "bob", as_text(&lines)).await), (2, 0, 6));
    assert_eq!(read(replica, copy, "bob").await.body["total"], 4);
    assert_eq!(listed(replica, "alice", 10).await.len(), 2, "the first ones are untouched");
}

#[tokio::test]
async fn an_import_brings_pins_and_calls_of_tools_with_their_results() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    let call = json!({"id": "call_1", "name": "weather", "arguments": "{\"city\":\"Ulm\"}"});
    let lines = [
        json!({"type": "export", "version": 1}),
        json!({"type": "session", "title": "Weather", "pinned": true, "archived": true}),
        json!({"type": "message", "role": "user", "content": "rain?"}),
        json!({"type": "message", "role": "assistant", "content": "", "tool_calls": [call]}),
        json!({"type": "message", "role": "tool", "content": "no", "tool_call_id": "call_1",
            "tool_name": "weather"}),
        json!({"type": "message", "role": "assistant", "content": "It does not rain."}),
        json!({"type": "session_end", "messages": 4}),
        json!({"type": "end"}),
    ];
    assert_eq!(counts(&import(&fleet, 0, "alice", as_text(&lines)).await), (1, 0, 4));
    let exported = export(&fleet, "alice").await;
    for (line, of) in lines.iter().zip(&exported).take(6) {
        for (field, value) in line.as_object().expect("an object") {
            assert_eq!(&of[field], value, "{field}: {of}");
        }
    }
}

#[tokio::test]
async fn a_bad_line_and_a_cut_are_named_and_leave_nothing_of_their_session() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    let store = store_of(&redis).await;
    stored_sessions(&store, "alice", 3).await;
    let lines = export(&fleet, "alice").await;
    assert_eq!(lines.len(), 1 + 3 * 4 + 1);
    // Lines are counted from 1. The third session has the lines 10 to 13.
    let with = |number: usize, line: Value| {
        let mut lines = lines.clone();
        lines[number - 1] = line;
        as_text(&lines)
    };
    let message = |role: &str| json!({"type": "message", "role": role, "content": "x"});
    let whole = as_text(&lines);
    let cut = |at: usize| whole.split_inclusive('\n').take(at).collect::<String>();
    let cases = [
        (with(11, message("system")), 11, json!("role"), 2),
        (with(11, json!({"type": "message", "role": "user"})), 11, json!("content"), 2),
        (with(13, json!({"type": "session_end", "messages": 3})), 13, json!("messages"), 2),
        (with(5, json!({"type": "end"})), 5, json!("type"), 0),
        (with(1, json!({"type": "export", "version": 9})), 1, json!("version"), 0),
        (with(1, message("user")), 1, json!("type"), 0),
        (cut(11) + "{\"type\"\n", 12, Value::Null, 2),
        (cut(13), 14, Value::Null, 3),
        (cut(12), 13, Value::Null, 2),
        (whole[..whole.len() - 30].to_owned(), 14, Value::Null, 3),
        (String::new(), 1, Value::Null, 0),
    ];
    for (number, (body, line, field, imported)) in cases.into_iter().enumerate() {
        let user = format!("user{number}");
        let refused = import(&fleet, 0, &user, body).await;
        assert_eq!((refused.status, &refused.body["code"]), (422, &json!("import_invalid")));
        let loc = &refused.body["errors"][0]["loc"];
        assert_eq!((&loc[1], &loc[2]), (&json!(line.to_string()), &field), "{}", refused.body);
        let detail = refused.body["detail"].as_str().expect("a text");
        assert!(detail.starts_with(&format!("Line {line}: ")), "{detail}");
        assert!(detail.contains(&format!("The {imported} sessions before it")), "{detail}");
        let there = listed(&fleet.replicas[0], &user, 10).await;
        assert_eq!(there.len(), imported, "{user}");
        for session in there {
            assert_eq!(read(&fleet.replicas[0], &session, &user).await.body["total"], 2);
        }
    }
    // The whole file puts each of them right.
    assert_eq!(counts(&import(&fleet, 0, "user0", whole.clone()).await), (1, 2, 2));
    let large = vec![b'\n'; (64 << 20) + 1];
    let refused = import(&fleet, 0, "user0", String::from_utf8(large).expect("text")).await;
    assert_eq!((refused.status, &refused.body["code"]), (413, &json!("body_too_large")));
    let request = http().post(format!("{}{IMPORT}", fleet.replicas[0].url));
    let request = request.bearer_auth(token("alice")).header("content-encoding", "gzip");
    assert_eq!(send(request.body(whole)).await.status, 415);
}

/// Returns an import of one session with messages of a quarter of a mebibyte each.
fn large_import(mebibytes: usize) -> String {
    let mut lines = vec![json!({"type": "export", "version": 1}), json!({"type": "session"})];
    let count = mebibytes * 4;
    for number in 0..count {
        let role = if number % 2 == 0 { "user" } else { "assistant" };
        let content = format!("{number} {}", "x".repeat((256 << 10) - 200));
        let timestamp = "2026-01-01T00:00:00Z";
        lines.push(
            json!({"type": "message", "role": role, "content": content, "timestamp": timestamp}),
        );
    }
    lines.push(json!({"type": "session_end", "messages": count}));
    lines.push(json!({"type": "end"}));
    as_text(&lines)
}

#[tokio::test]
async fn an_import_whose_replica_is_killed_leaves_no_half_session_and_is_completed_by_a_repeat() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 2, "500").await;
    let body = large_import(40);
    let request = http().post(format!("{}{IMPORT}", fleet.replicas[0].url)).body(body.clone());
    let request = request.bearer_auth(token("alice"));
    let asking = tokio::spawn(async move { request.send().await.map(|reply| reply.status()) });
    let staged = || {
        let script = "local n = 0 for _, key in ipairs(redis.call('KEYS', 'jarvis:*:path')) do \
            n = n + redis.call('STRLEN', key) / 8 end return n";
        redis.cli(&["EVAL", script, "0"]).trim().parse::<usize>().expect("a number")
    };
    assert!(eventually(LIMIT, async || staged() > 0).await);
    fleet.replicas[0].kill();
    assert!(asking.await.expect("a task").is_err(), "a reply of a killed replica");
    let before = staged();
    assert!(before > 0 && before < 160, "killed too early or too late: {before}");
    assert_eq!(listed(&fleet.replicas[1], "alice", 10).await, Vec::<String>::new());
    assert_eq!(sessions_in(&redis), 0);
    let expiry =
        "local keys = redis.call('KEYS', 'jarvis:*:path') return redis.call('TTL', keys[1])";
    let seconds: i64 = redis.cli(&["EVAL", expiry, "0"]).trim().parse().expect("seconds");
    assert!((1..=600).contains(&seconds), "{seconds}");
    // The session that is kept for the repeat counts, until the session takes its place.
    let counted = || {
        let bytes = redis.cli(&["ZSCORE", "jarvis:{budget}:users", "user:local:alice"]);
        bytes.trim().parse::<u64>().unwrap_or(0) >> 20
    };
    assert!((39..41).contains(&counted()), "{} MiB", counted());
    assert_eq!(counts(&import(&fleet, 1, "alice", body).await), (1, 0, 160));
    assert!((39..41).contains(&counted()), "{} MiB", counted());
    assert_eq!(redis.cli(&["KEYS", "jarvis:{budget}:reserv*"]).trim(), "");
    let there = listed(&fleet.replicas[1], "alice", 10).await;
    assert_eq!(there.len(), 1);
    let messages = messages_until_total(&fleet, &there[0], 160).await;
    assert_eq!(messages["messages"][0]["content"].as_str().map(|text| &text[..2]), Some("0 "));
}

async fn messages_until_total(fleet: &Fleet, session: &str, total: u64) -> Value {
    let page = read(&fleet.replicas[1], session, "alice").await.body;
    assert_eq!(page["total"], total, "{}", page["total"]);
    page
}

#[tokio::test]
async fn an_import_beyond_the_budget_of_its_user_is_refused_and_stores_nothing() {
    let redis = RedisServer::start();
    let mut fleet = Fleet::on(&redis.url(), 0, "500").await;
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_CALLER_MIB", "2")];
    fleet.replicas.push(jarvis(&redis.url(), &fleet.ollama.url, &settings));
    support::client::until_ok(&fleet.replicas[0], "/health/ready").await;
    assert_eq!(counts(&import(&fleet, 0, "alice", large_import(1)).await), (1, 0, 4));
    let refused = import(&fleet, 0, "alice", large_import(2)).await;
    assert_eq!((refused.status, &refused.body["code"]), (429, &json!("quota_exceeded")));
    assert!(
        refused.body["detail"].as_str().expect("a text").contains("line 11"),
        "{}",
        refused.body
    );
    assert_eq!(listed(&fleet.replicas[0], "alice", 10).await.len(), 1);
    assert_eq!(sessions_in(&redis), 1);
    // Bytes that the user gives back may be used again.
    assert_eq!(delete_all(&fleet, 0, "alice").await.body["sessions_deleted"], 1);
    assert_eq!(counts(&import(&fleet, 0, "alice", large_import(1)).await), (1, 0, 4));
}

#[tokio::test]
async fn an_import_of_a_session_that_is_larger_than_a_session_may_be_is_refused() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    // As stored, each message has a header: fewer bytes than an import may have are more than a
    // session may.
    let message = json!({"type": "message", "role": "user", "content": "x".repeat(620)});
    let line = format!("{message}\n");
    let mut body = as_text(&[json!({"type": "export", "version": 1}), json!({"type": "session"})]);
    body.push_str(&line.repeat(99_000));
    body.push_str(&as_text(&[json!({"type": "session_end", "messages": 99_000})]));
    body.push_str(&as_text(&[json!({"type": "end"})]));
    assert!(body.len() < 64 << 20, "{}", body.len());
    let refused = import(&fleet, 0, "alice", body).await;
    assert_eq!((refused.status, &refused.body["code"]), (422, &json!("import_invalid")));
    let detail = refused.body["detail"].as_str().expect("a text");
    assert!(detail.contains("at most 67108864 bytes"), "{detail}");
    assert_eq!(redis.cli(&["KEYS", "jarvis:*:s:*"]).trim(), "", "nothing is stored");
}

#[tokio::test]
async fn an_export_of_large_sessions_takes_little_memory() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 2, "500").await;
    assert_eq!(counts(&import(&fleet, 1, "alice", large_import(48)).await), (1, 0, 192));
    let before = fleet.replicas[0].resident_kib().expect("memory");
    let request = http().get(format!("{}{EXPORT}", fleet.replicas[0].url));
    let mut reply = request.bearer_auth(token("alice")).send().await.expect("a reply");
    let (mut bytes, mut most, mut tail) = (0, before, Vec::new());
    while let Some(chunk) = reply.chunk().await.expect("a chunk") {
        bytes += chunk.len();
        most = most.max(fleet.replicas[0].resident_kib().expect("memory"));
        tail = chunk[chunk.len().saturating_sub(100)..].to_vec();
    }
    assert!(bytes > 47 << 20, "{bytes}");
    let tail = String::from_utf8_lossy(&tail).into_owned();
    assert!(tail.trim_end().ends_with(r#"{"type":"end","sessions":1,"messages":192}"#), "{tail}");
    let grown = (most - before) / 1024.0;
    println!("{bytes} bytes, {grown:.1} MiB more memory");
    assert!(grown < 20.0, "{grown:.1} MiB");
}

#[tokio::test]
async fn a_user_has_one_export_at_a_time_and_one_that_nobody_reads_ends() {
    let redis = RedisServer::start();
    let mut fleet = Fleet::on(&redis.url(), 0, "500").await;
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_READ_TIMEOUT", "4")];
    fleet.replicas.push(jarvis(&redis.url(), &fleet.ollama.url, &settings));
    support::client::until_ok(&fleet.replicas[0], "/health/ready").await;
    assert_eq!(counts(&import(&fleet, 0, "alice", large_import(32)).await), (1, 0, 128));
    let ask_for = |user: &str| {
        http().get(format!("{}{EXPORT}", fleet.replicas[0].url)).bearer_auth(token(user))
    };
    // More than the buffers of both ends hold.
    let unread = ask_for("alice").send().await.expect("a reply");
    assert_eq!(unread.status(), 200);
    let refused = ask_for("alice").send().await.expect("a reply");
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (429, &"10".parse().expect("a value"))
    );
    let body: Value = refused.json().await.expect("JSON");
    assert_eq!(body["code"], "rate_limited");
    let other = send(ask_for("bob")).await;
    assert_eq!(other.status, 200, "another user has its own");
    let again = eventually(LIMIT, async || {
        let reply = ask_for("alice").send().await.expect("a reply");
        reply.status() == 200
    });
    assert!(again.await, "the one that nobody reads goes on");
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_takes_redis_longer_than_five_milliseconds_for_a_user_with_10_000_sessions() {
    let redis = RedisServer::start_with(&["--appendonly", "no"]);
    let store = store_of(&redis).await;
    let budget = Budget::new(store.clone(), StorageLimits::default());
    let measure = async |number: usize| {
        let user = format!("user{number}");
        let owner = Owner::User(User::local(&user).expect("a user"));
        let sessions = stored_sessions(&store, &user, 130).await;
        // The rest is listed only.
        for part in 0..10 {
            let fill = format!(
                "for i = 1, 986 do local id = string.format('%08x-0000-4000-8000-%012x', i, {part}) \
                redis.call('ZADD', KEYS[1], {part} * 1000 + i, id) \
                redis.call('HSET', 'jarvis:{{budget}}:sessions', id, '4096 user:local:{user}') end"
            );
            let list = format!("jarvis:{{budget}}:payer:user:local:{user}");
            redis.cli(&["EVAL", &fill, "1", &list]);
        }
        let anonymous = SessionId::random();
        stored_turn(&store, &Owner::Anonymous, anonymous, "q", &"a".repeat(400 << 10)).await;
        begin_timing(&redis);
        let mut after = None;
        for order in [ListOrder::Newest, ListOrder::Oldest] {
            for _ in 0..2 {
                let page = budget.list(&owner, order, after.as_ref(), 500).await.expect("a page");
                assert_eq!((page.entries.len(), page.is_last), (200, false));
                after = page.entries.last().map(|entry| entry.position.clone());
            }
            after = None;
        }
        let listing = budget.reserve_claim(&owner, anonymous).await.expect("room");
        budget.withdraw(&owner, SessionId::random(), listing).await;
        store.transfer(&mut Transfer::new(&owner, anonymous)).await.expect("transferred");
        budget.record("", anonymous).await;
        budget.unlist_gone(&owner, &sessions[..100]).await.expect("unlisted");
        let imported = ImportedSession {
            session: SessionId::random(),
            title: "t".to_owned(),
            model: "m".to_owned(),
            created_at: "2026-01-01T00:00:00Z".parse().expect("a time"),
            pinned: false,
            archived: false,
            entries: (0..200)
                .map(|_| {
                    let header =
                        message(Role::User, "2026-01-01T00:00:00Z".parse().expect("a time"));
                    let message = Message { content: "x".repeat(2500), ..header };
                    ImportedSession::entry(&message).expect("an entry")
                })
                .collect(),
        };
        for from in [None, Some(0), Some(50), Some(100), Some(150)] {
            store.import_messages(&owner, &imported, from).await.expect("a batch");
        }
        let committed = store.import_commit(&owner, &imported).await.expect("a session");
        assert_eq!(committed, ImportStep::Exists);
        let (count, deletion) = budget.delete_all(&owner, &user).await.expect("a deletion");
        assert!(count >= 9_890, "{count}");
        let next = budget.delete_next(&user, &[], 64).await.expect("sessions");
        for session in &sessions[100..130] {
            let began = Some(deletion.began);
            let mut clearing = Clearing::of_deletion(&owner, *session, &user, began, "");
            store.clear(&mut clearing).await.expect("deleted");
        }
        let next: Vec<_> = next.iter().map(|due| due.session).collect();
        budget.delete_next(&user, &next, 64).await.expect("sessions");
        budget.abandoned_deletions().await.expect("deletions");
        timed_calls(&redis)
    };
    let mut numbers = 0..;
    let medians = takes_moments("a user with 10,000 sessions", async || {
        longest(measure(numbers.next().expect("a number")).await)
    });
    let medians = medians.await;
    assert!(medians.len() >= 11, "{medians:?}");
}

#[tokio::test]
async fn a_claim_whose_replica_dies_before_its_second_step_is_listed_and_its_bytes_move_by_that() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 1, "500").await;
    let (store, session) = (store_of(&redis).await, SessionId::random());
    let budget = Budget::new(store.clone(), StorageLimits::default());
    let alice = Owner::User(User::local("alice").expect("a user"));
    stored_turn(&store, &Owner::Anonymous, session, "q", "an answer").await;
    budget.record("network", session).await;
    let total = || redis.cli(&["GET", "jarvis:{budget}:total"]);
    assert!(total().trim().parse::<u64>().expect("bytes") > 4096, "{}", total());
    // The steps of a claim, but for the last one.
    budget.reserve_claim(&alice, session).await.expect("room");
    store.transfer(&mut Transfer::new(&alice, session)).await.expect("transferred");
    assert_eq!(listed(&fleet.replicas[0], "alice", 10).await, [session.to_string()]);
    assert_eq!(total().trim(), "0");
    let users = redis.cli(&["ZSCORE", "jarvis:{budget}:users", "user:local:alice"]);
    assert!(users.trim().parse::<u64>().expect("bytes") > 4096, "{users}");
    // Without the first of them, a claim that was never made leaves an entry that is not shown.
    let never = SessionId::random();
    budget.room(&alice, "", never).await.expect("room");
    assert_eq!(listed(&fleet.replicas[0], "alice", 10).await, [session.to_string()]);
}
