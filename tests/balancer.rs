//! Turns behind nginx with the rules that are deployed, while replicas stop and die.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::client::{Reply, Socket, chat, get, history, http, send, until_ok};
use support::eventually;
use support::fleet::ready_replicas;
use support::nginx::Nginx;
use support::process::{LIMIT, Process, ollama_sim};
use support::redis::RedisServer;
use uuid::Uuid;

const TURNS: usize = 100;
const AT_ONCE: usize = 10;
/// Long enough that a replica which is stopped has turns in the middle: half a second.
const MESSAGE: &str = "[[tokens=20]] go on";

async fn fleet(count: usize, settings: &[(&str, &str)]) -> (RedisServer, Process, Vec<Process>) {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "40", "--slots", "64"]);
    // nginx is no trusted proxy here, so that its clients, which are all on this machine, have no limits.
    let log = [("JARVIS_LOG", "debug,fred=off")];
    let settings = [&log[..], settings].concat();
    let replicas = ready_replicas(count, &redis.url(), &ollama.url, &settings).await;
    (redis, ollama, replicas)
}

async fn turn(nginx: &Nginx) -> Reply {
    let url = format!("http://{}/api/v1/chat/", nginx.ours);
    send(http().post(url).json(&json!({"message": MESSAGE}))).await
}

/// Sends turns without a key in five rounds. In each of them one replica breaks while turns run, a
/// kill and a stop in turn, and is back before the next round: no turn meets two faults.
async fn turns_without_a_key(nginx: &Nginx, replicas: &[Process]) -> Vec<Reply> {
    const ROUNDS: usize = 5;
    let mut replies = Vec::new();
    for round in 0..ROUNDS {
        let over = AtomicUsize::new(0);
        let worker = async || {
            let mut replies = Vec::new();
            for _ in 0..TURNS / AT_ONCE / ROUNDS {
                replies.push(turn(nginx).await);
                over.fetch_add(1, Ordering::Relaxed);
            }
            replies
        };
        let replica = &replicas[round % replicas.len()];
        let breaker = async {
            assert!(eventually(LIMIT, async || over.load(Ordering::Relaxed) > 0).await);
            if round % 2 == 0 {
                replica.kill();
            } else {
                replica.terminate();
            }
        };
        let workers = join_all((0..AT_ONCE).map(|_| worker()));
        replies.extend(tokio::join!(workers, breaker).0.into_iter().flatten());
        assert!(eventually(LIMIT, async || replica.has_ended()).await, "it does not end");
        replica.restart().unwrap_or_else(|error| panic!("{error:#}"));
        until_ok(replica, "/health/ready").await;
    }
    replies
}

fn headers(reply: &Reply) -> String {
    format!("{:?}", reply.headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_turns_without_a_key_are_answered_once_each_while_replicas_are_killed_and_stopped()
 {
    let (redis, _ollama, replicas) = fleet(2, &[("JARVIS_OLLAMA_SLOTS", "64")]).await;
    let nginx = Nginx::deployed(&replicas).await;
    let replies = turns_without_a_key(&nginx, &replicas).await;
    let expected = ollama_sim::script_answer("tinyllama:latest", MESSAGE, None, 64);
    let mut sessions = HashSet::new();
    for reply in &replies {
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert_eq!(reply.body["response"], json!(expected));
        let session = reply.body["session_id"].as_str().expect("a session").to_owned();
        let messages = history(&replicas[0], &session).await;
        let roles: Vec<&Value> = messages.iter().map(|message| &message["role"]).collect();
        assert_eq!(roles, ["user", "assistant"], "{messages:?}");
        assert!(sessions.insert(session), "two clients got one session");
    }
    assert_eq!(sessions.len(), TURNS);
    // A second try joined the turn of the first one: it began no session of its own.
    let stored = redis.cli(&["KEYS", "jarvis:{b*}:s:????????-????-????-????-????????????"]);
    assert_eq!(stored.matches(":s:").count(), TURNS);
    // Some were tried twice: else nothing was shown.
    assert!(nginx.log().lines().any(|line| line.contains(", 200")), "{}", nginx.log());

    // The key of a turn is the only key to its session: it appears nowhere.
    let keys = nginx.keys();
    assert!(keys.len() >= TURNS);
    let mut texts = vec![nginx.log(), nginx.errors()];
    for replica in &replicas {
        texts.push(std::fs::read_to_string(replica.log()).expect("a log"));
    }
    texts.extend(replies.iter().map(|reply| format!("{} {}", headers(reply), reply.body)));
    for key in keys {
        let uuid = Uuid::try_parse(&key).expect("32 hexadecimal digits").to_string();
        assert!(!texts.iter().any(|text| text.contains(&key) || text.contains(&uuid)));
    }
}

#[tokio::test]
async fn a_full_queue_is_not_asked_twice() {
    let settings = [("JARVIS_OLLAMA_SLOTS", "1"), ("JARVIS_QUEUE_LIMIT", "1")];
    let (redis, _ollama, replicas) = fleet(2, &settings).await;
    let nginx = Nginx::deployed(&replicas).await;
    let warm = chat(&replicas[0], &Uuid::new_v4().to_string(), "[[tokens=1]] warm").await;
    assert_eq!(warm.status, 200, "{}", warm.body);
    let mut sockets = Vec::new();
    for _ in 0..2 {
        let (mut socket, _) = Socket::open(&replicas[0], "/ws").await;
        socket.say(&json!({"message": "[[tokens=4000]] long"})).await;
        socket.until("message_received").await;
        sockets.push(socket);
    }
    let waits =
        async || redis.cli(&["ZCARD", "jarvis:{queue}:model:tinyllama:latest"]).trim() == "1";
    assert!(eventually(LIMIT, waits).await, "no turn waits");
    let refused = turn(&nginx).await;
    assert_eq!((refused.status, &refused.body["code"]), (503, &json!("queue_full")));
    assert!(refused.headers.contains_key("retry-after"));
    let logged = async || nginx.log().lines().any(|line| line == "503 503");
    assert!(eventually(LIMIT, logged).await, "{}", nginx.log());
}

#[tokio::test]
async fn where_every_replica_drains_the_client_learns_so_and_when_to_retry() {
    let (_redis, _ollama, replicas) = fleet(2, &[("JARVIS_DRAIN_TIMEOUT", "20")]).await;
    let nginx = Nginx::deployed(&replicas).await;
    // A turn that runs keeps each replica in its drain.
    let mut sockets = Vec::new();
    for replica in &replicas {
        let (mut socket, _) = Socket::open(replica, "/ws").await;
        socket.say(&json!({"message": "[[tokens=4000]] long"})).await;
        socket.until("stream_chunk").await;
        sockets.push(socket);
        replica.terminate();
        let drains = async || get(replica, "/health/ready").await.status == 503;
        assert!(eventually(LIMIT, drains).await, "no drain");
    }
    let reply = turn(&nginx).await;
    assert_eq!((reply.status, &reply.body["code"]), (502, &json!("draining")));
    assert!(reply.headers.contains_key("retry-after"));
    let logged = async || nginx.log().lines().any(|line| line == "502 502, 502");
    assert!(eventually(LIMIT, logged).await, "{}", nginx.log());
    // Without nginx it is a 503.
    let direct = send(http().post(format!("{}/api/v1/chat/", replicas[0].url)).json(&json!({
        "message": MESSAGE
    })));
    let direct = direct.await;
    assert_eq!((direct.status, &direct.body["code"]), (503, &json!("draining")));
}

#[tokio::test]
async fn errors_of_nginx_itself_are_problem_documents_and_operators_paths_are_not_published() {
    let (_redis, _ollama, replicas) = fleet(1, &[]).await;
    let nginx = Nginx::deployed(&replicas).await;
    let url = |path: &str| format!("http://{}{path}", nginx.ours);
    let of_replica = get(&replicas[0], "/api/v1/models").await.headers;
    let problem = |reply: &Reply, status: u16, code: &str| {
        assert_eq!(reply.headers["content-type"], "application/problem+json");
        for name in ["content-security-policy", "x-content-type-options", "cache-control"] {
            assert_eq!(reply.headers[name], of_replica[name], "{status} {name}");
        }
        assert_eq!((reply.status, &reply.body["code"]), (status, &json!(code)));
        assert_eq!(reply.body["status"], json!(status));
        assert!(reply.body["detail"].is_string());
    };
    for path in ["/metrics", "/metrics/", "//metrics", "/%6detrics", "/health/detailed"] {
        problem(&send(http().get(url(path))).await, 404, "not_found");
    }
    // The replica has them.
    assert_eq!(get(&replicas[0], "/metrics").await.status, 200);
    assert_eq!(send(http().get(url("/health/ready"))).await.status, 200);
    let long = json!({"message": "x".repeat(8 << 20)});
    problem(&send(http().post(url("/api/v1/chat/")).json(&long)).await, 413, "body_too_large");
    replicas[0].kill();
    let limit = tokio::time::timeout(Duration::from_secs(10), turn(&nginx));
    let unreachable = limit.await.expect("an error within seconds");
    problem(&unreachable, 502, "no_replica");
    assert_eq!(unreachable.headers["retry-after"], "1");
}
