//! The list of a user's sessions: those with a flag, and those that hold some words.
#![allow(missing_docs, reason = "tests")]

mod support;

use reqwest::Method;
use serde_json::{Value, json};
use support::client::{Reply, http, send};
use support::eventually;
use support::owned::{Fleet, SESSIONS, ask, chat, id};
use support::process::LIMIT;
use support::redis::RedisServer;
use support::tokens::token;

async fn patch(fleet: &Fleet, session: &str, body: &Value, user: &str) -> Reply {
    ask(&fleet.replicas[0], Method::PATCH, &format!("{SESSIONS}/{session}"), body, user).await
}

/// Returns the replies of all pages of this query.
async fn pages(fleet: &Fleet, query: &str, user: &str) -> Vec<Value> {
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("{SESSIONS}?{query}&cursor={cursor}");
        let reply = ask(&fleet.replicas[1], Method::GET, &path, &Value::Null, user).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        let next = reply.body["next_cursor"].as_str().map(str::to_owned);
        pages.push(reply.body);
        match next {
            Some(next) => cursor = next,
            None => return pages,
        }
    }
}

async fn listed(fleet: &Fleet, query: &str, user: &str) -> Vec<Value> {
    let pages = pages(fleet, query, user).await;
    let sessions = pages.iter().flat_map(|page| page["sessions"].as_array().expect("a list"));
    sessions.map(|session| session["session_id"].clone()).collect()
}

async fn sessions(fleet: &Fleet, count: usize, user: &str) -> Vec<String> {
    let mut sessions = Vec::new();
    for number in 0..count {
        let session = id();
        let message = format!("[[tokens=2]] Question {number}");
        assert_eq!(chat(&fleet.replicas[0], &session, &message, user).await.status, 200);
        sessions.push(session);
    }
    sessions
}

#[tokio::test]
async fn sessions_are_pinned_and_archived_and_listed_by_their_marks() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 2, "5000").await;
    let all = sessions(&fleet, 5, "alice").await;
    for (session, body) in [
        (&all[1], json!({"pinned": true})),
        (&all[3], json!({"archived": "true"})),
        (&all[4], json!({"pinned": 1, "archived": true, "title": "Both"})),
    ] {
        let reply = patch(&fleet, session, &body, "alice").await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let newest_first =
        |wanted: &[usize]| -> Vec<Value> { wanted.iter().map(|at| json!(all[*at])).collect() };
    let cases: [(&str, &[usize]); 7] = [
        ("", &[4, 3, 2, 1, 0]),
        ("pinned=true", &[4, 1]),
        ("pinned=false", &[3, 2, 0]),
        ("archived=true", &[4, 3]),
        ("archived=false", &[2, 1, 0]),
        ("archived=false&pinned=true", &[1]),
        ("archived=false&limit=1", &[2, 1, 0]),
    ];
    for (query, wanted) in cases {
        assert_eq!(listed(&fleet, query, "alice").await, newest_first(wanted), "{query}");
    }
    let both = patch(&fleet, &all[4], &json!({"pinned": false}), "alice").await.body;
    let flags = (&both["pinned"], &both["archived"], &both["title"]);
    assert_eq!(flags, (&json!(false), &json!(true), &json!("Both")), "the others stay");
    for (session, body, status) in [
        (&all[0], json!({}), 200),
        (&all[0], json!({"pinned": "maybe"}), 422),
        (&all[0], json!({"pinned": true, "title": " "}), 422),
        (&id(), json!({"pinned": true}), 404),
    ] {
        assert_eq!(patch(&fleet, session, &body, "alice").await.status, status, "{body}");
    }
    assert_eq!(patch(&fleet, &all[0], &json!({"pinned": true}), "bob").await.status, 404);
    // A session that is deleted and created again has no flag.
    let path = format!("{SESSIONS}/{}", all[1]);
    ask(&fleet.replicas[0], Method::DELETE, &path, &Value::Null, "alice").await;
    chat(&fleet.replicas[0], &all[1], "[[tokens=2]] again", "alice").await;
    assert_eq!(listed(&fleet, "pinned=true", "alice").await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_search_finds_titles_and_messages_and_says_where_it_was_cut() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 2, "5000").await;
    let all = sessions(&fleet, 4, "alice").await;
    let message = "[[tokens=2]] Der FLUSS fließt unter der Brücke hindurch";
    assert_eq!(chat(&fleet.replicas[0], &all[0], message, "alice").await.status, 200);
    patch(&fleet, &all[2], &json!({"title": "Brücken am Fluss"}), "alice").await;
    assert_eq!(chat(&fleet.replicas[0], &id(), message, "bob").await.status, 200);
    let found = pages(&fleet, "q=fluss%20BR%C3%9CCKE", "alice").await;
    assert_eq!(found.len(), 1);
    let ids: Vec<&Value> = found[0]["sessions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|session| &session["session_id"])
        .collect();
    assert_eq!(ids, [&json!(all[0]), &json!(all[2])], "the one that was used last comes first");
    assert_eq!(found[0]["incomplete"], false);
    let matches = found[0]["matches"].as_array().expect("matches");
    assert_eq!(matches.len(), 1, "the title needs none: {matches:?}");
    assert_eq!((&matches[0]["session_id"], &matches[0]["role"]), (&json!(all[0]), &json!("user")));
    assert!(matches[0]["excerpt"].as_str().expect("a text").contains("FLUSS"));
    assert_eq!(listed(&fleet, "q=question&limit=1", "alice").await.len(), 4, "page by page");
    assert_eq!(listed(&fleet, "q=nowhere", "alice").await, Vec::<Value>::new());
    assert_eq!(listed(&fleet, "q=%20", "alice").await.len(), 4, "without a word, all");
    let plain = pages(&fleet, "limit=50", "alice").await;
    assert!(plain[0].get("matches").is_none() && plain[0].get("incomplete").is_none());
    let path = format!("{SESSIONS}?q=x");
    let anonymous = ask(&fleet.replicas[0], Method::GET, &path, &Value::Null, "").await;
    assert_eq!(anonymous.status, 401);
    // The cursor holds how many messages earlier pages have looked at; there are no more than 10,000.
    let path = format!("{SESSIONS}?q=fluss&cursor=9999999999_{}~10000", id());
    let cut = ask(&fleet.replicas[0], Method::GET, &path, &Value::Null, "alice").await.body;
    assert_eq!(
        (&cut["incomplete"], &cut["count"]),
        (&json!(true), &json!(1)),
        "titles only: {cut}"
    );
}

/// Returns how many functions Redis has called.
fn function_calls(redis: &RedisServer) -> u64 {
    let stats = redis.cli(&["INFO", "commandstats"]);
    let of = |name: &str| {
        let line = stats.lines().find_map(|line| line.strip_prefix(name)?.split(',').next());
        line.map_or(0, |calls| calls.trim_start_matches("calls=").parse().expect("a number"))
    };
    of("cmdstat_fcall:") + of("cmdstat_fcall_ro:")
}

#[tokio::test]
async fn a_search_without_a_match_looks_at_a_bounded_number_of_sessions_a_request() {
    const SESSIONS_STORED: usize = 450;
    /// Sessions that one request looks at, at most.
    const LOOKED_AT: u64 = 400;
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 2, "5000").await;
    let session = |number: usize| {
        format!(
            "{{\"type\":\"session\",\"title\":\"{number}\"}}\n\
             {{\"type\":\"message\",\"role\":\"user\",\"content\":\"question {number}\"}}\n\
             {{\"type\":\"session_end\",\"messages\":1}}\n"
        )
    };
    let sessions: String = (0..SESSIONS_STORED).map(session).collect();
    let body = format!("{{\"type\":\"export\",\"version\":1}}\n{sessions}{{\"type\":\"end\"}}\n");
    let url = format!("{}/api/v1/chat/import", fleet.replicas[0].url);
    let reply = send(http().post(url).bearer_auth(token("alice")).body(body)).await;
    assert_eq!((reply.status, &reply.body["sessions_imported"]), (200, &json!(SESSIONS_STORED)));
    // A describe each, and a read each where words are searched; beside it runs what always runs.
    for (query, calls_each) in [("pinned=true", 1), ("archived=true", 1), ("q=nowhere", 2)] {
        let before = function_calls(&redis);
        let path = format!("{SESSIONS}?{query}&limit=500");
        let first = ask(&fleet.replicas[0], Method::GET, &path, &Value::Null, "alice").await.body;
        let calls = function_calls(&redis) - before;
        println!("{query}: {calls} calls of functions");
        assert!(first["next_cursor"].is_string() && first["count"] == 0, "{query}: {first}");
        assert!(calls <= calls_each * LOOKED_AT + 150, "{query}: {calls}");
        assert_eq!(pages(&fleet, &format!("{query}&limit=500"), "alice").await.len(), 2);
    }
    assert_eq!(listed(&fleet, "limit=500", "alice").await.len(), SESSIONS_STORED);
    // Searches at the same time run one after another.
    let path = format!("{SESSIONS}?q=nowhere&limit=500");
    let searches =
        (0..4).map(|_| ask(&fleet.replicas[0], Method::GET, &path, &Value::Null, "alice"));
    for reply in futures_util::future::join_all(searches).await {
        assert!([200, 429].contains(&reply.status), "{}", reply.body);
    }
}

#[tokio::test]
async fn a_session_is_listed_as_running_while_an_answer_is_written() {
    let redis = RedisServer::start();
    let fleet = Fleet::on(&redis.url(), 2, "5000").await;
    let [idle] = &sessions(&fleet, 1, "alice").await[..] else { panic!("one session") };
    let running = id();
    let long =
        json!({"session_id": running, "message": "[[tokens=2000 rate=20]] Long", "stream": true});
    let url = format!("{}/api/v1/chat", fleet.replicas[0].url);
    let asked = http().post(url).bearer_auth(token("alice")).json(&long);
    let mut answer = asked.send().await.expect("a response");
    assert!(answer.chunk().await.expect("a chunk").is_some());
    let running_flags = async || -> Vec<(Value, Value)> {
        let pages = pages(&fleet, "", "alice").await;
        let sessions = pages.iter().flat_map(|page| page["sessions"].as_array().expect("a list"));
        sessions.map(|it| (it["session_id"].clone(), it["running"].clone())).collect()
    };
    let shown =
        |is_running: bool| vec![(json!(running), json!(is_running)), (json!(idle), json!(false))];
    assert!(
        eventually(LIMIT, async || running_flags().await == shown(true)).await,
        "{:?}",
        running_flags().await
    );
    let path = format!("{SESSIONS}/{running}/cancel");
    let cancelled = ask(&fleet.replicas[1], Method::POST, &path, &json!({}), "alice").await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.body);
    assert!(
        eventually(LIMIT, async || running_flags().await == shown(false)).await,
        "{:?}",
        running_flags().await
    );
}
