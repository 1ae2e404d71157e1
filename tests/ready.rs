//! Readiness: a replica is ready if a turn could be taken, and its health replies agree.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jarvis::lifecycle::{Lifecycle, Phase};
use jarvis::queue::{Queue, QueueLimits, QueueStore};
use jarvis::readiness::{NotReady, Readiness};
use jarvis::redis::{Conditions, Redis, RedisOptions};
use jarvis::tls::TlsOptions;
use serde_json::{Value, json};
use support::client::{Reply, Socket, get, history, http, joined, post, until_ok};
use support::eventually;
use support::metrics::until_metric_line;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::{Connection, RedisCluster, RedisSentinels, RedisServer, cli};
use uuid::Uuid;

/// A replica over a Redis that the test breaks.
struct Setup {
    replica: Process,
    redis: RedisServer,
    _ollama: Process,
}

/// The time that these replicas stay ready without Redis: long enough to be degraded on a busy
/// machine first.
const PATIENCE: Duration = Duration::from_secs(6);

impl Setup {
    async fn ready() -> Self {
        let redis = RedisServer::start();
        let setup = Self::over(redis, RedisServer::url);
        until_ok(&setup.replica, "/health/ready").await;
        setup
    }

    fn over(redis: RedisServer, url: impl FnOnce(&RedisServer) -> String) -> Self {
        let ollama = ollama_sim(&[]);
        let patience = PATIENCE.as_secs().to_string();
        let replica = jarvis(&url(&redis), &ollama.url, &[("JARVIS_REDIS_PATIENCE", &patience)]);
        Self { replica, redis, _ollama: ollama }
    }

    /// Creates a user of Redis with these rules in addition to all commands and keys, and a replica that
    /// uses it.
    fn as_user(rules: &[&str]) -> Self {
        let redis = RedisServer::start();
        let user = ["ACL", "SETUSER", "ann", "on", ">secret", "~*", "+@all"];
        assert_eq!(redis.cli(&[&user[..], rules].concat()).trim(), "OK");
        let url = |redis: &RedisServer| redis.url_as("ann:secret");
        Self::over(redis, url)
    }

    async fn turn(&self) -> Reply {
        post(&self.replica, "/api/v1/chat", &json!({"message": "[[tokens=3]] hi"})).await
    }

    /// Waits until the three health replies are as expected.
    async fn until_health(&self, ready: u16, detailed: &str, trouble: Option<&str>) {
        let wanted = json!({
            "ready": ready,
            "detailed": [if ready == 200 { 200 } else { 503 }, detailed],
            "trouble": trouble,
            "chat": if detailed == "healthy" { "healthy" } else { "unhealthy" },
        });
        let reported = eventually(LIMIT, async || self.health().await == wanted).await;
        assert!(reported, "wanted {wanted}, and it reports {}", self.health().await);
    }

    async fn health(&self) -> Value {
        let ready = get(&self.replica, "/health/ready").await;
        let detailed = get(&self.replica, "/health/detailed").await;
        let chat = get(&self.replica, "/api/v1/chat/health").await;
        json!({
            "ready": ready.status,
            "detailed": [detailed.status, detailed.body["status"]],
            "trouble": detailed.body["problems"]["redis"],
            "chat": chat.body["status"],
        })
    }
}

#[tokio::test]
async fn a_replica_over_a_read_only_redis_is_never_ready_and_reports_the_reason() {
    let primary = RedisServer::start();
    let port = primary.port().to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]);
    replica.wait_until_in_sync();
    let setup = Setup::over(replica, RedisServer::url);
    setup.until_health(503, "unhealthy", Some("read-only replica")).await;
    assert_eq!(setup.turn().await.status, 503);
    // The functions came with the data, too.
    let other = Setup::over(primary, RedisServer::url);
    other.until_health(200, "healthy", None).await;
    setup.until_health(503, "unhealthy", Some("read-only replica")).await;
    assert_eq!(setup.turn().await.status, 503);
    setup.redis.cli(&["REPLICAOF", "NO", "ONE"]);
    setup.until_health(200, "healthy", None).await;
    assert_eq!(setup.turn().await.status, 200);
}

#[tokio::test]
async fn a_replica_whose_redis_user_lacks_a_permission_is_never_ready_and_names_it() {
    for (rules, trouble, grant) in [
        (&["resetchannels"][..], "no permission for channels", &["&*"][..]),
        (&["&other:*"], "no permission for channels", &["&jarvis:*"]),
        (&["&*", "-fcall"], "no permission for FCALL", &["+fcall"]),
        (&["&*", "-fcall_ro"], "no permission for FCALL_RO", &["+fcall_ro"]),
        (&["&*", "-function"], "no permission for FUNCTION LOAD", &["+function"]),
        (&["&*", "-hset"], "no permission for HSET", &["+hset"]),
        (&["&*", "-client"], "no permission for CLIENT SETNAME", &["+client"]),
        (&["&*", "-time"], "no permission for TIME", &["+time"]),
        (&["&*", "resetkeys", "~other:*"], "no permission for keys", &["~jarvis:*"]),
    ] {
        let setup = Setup::as_user(rules);
        setup.until_health(503, "unhealthy", Some(trouble)).await;
        let refused = setup.turn().await;
        assert_eq!((refused.status, &refused.body["code"]), (503, &json!("store_unavailable")));
        let detail = refused.body["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(trouble), "{trouble}: {detail}");
        setup.redis.cli(&[&["ACL", "SETUSER", "ann"][..], grant].concat());
        setup.until_health(200, "healthy", None).await;
        assert_eq!(setup.turn().await.status, 200, "{trouble}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_reported_and_a_corrected_one_makes_the_replica_ready() {
    let redis = RedisServer::start();
    redis.cli(&["CONFIG", "SET", "requirepass", "right-one"]);
    let setup = Setup::over(redis, |redis| redis.url_as(":wrong-one"));
    setup.until_health(503, "unhealthy", Some("wrong user name or password")).await;
    let none = Setup::over(RedisServer::start(), |_| setup.redis.url_as(""));
    none.until_health(503, "unhealthy", Some("wrong user name or password")).await;
    let change = ["CONFIG", "SET", "requirepass", "wrong-one"];
    setup.redis.cli_with_password("right-one", &change);
    setup.until_health(200, "healthy", None).await;
}

#[tokio::test]
async fn a_wrong_password_of_the_sentinels_is_reported_and_a_corrected_one_makes_the_replica_ready()
{
    for given in ["", "&sentinelPassword=wrong-one"] {
        let redis = RedisSentinels::start();
        let url = redis.url();
        let ports = url.split([':', '?', '&']).filter_map(|part| part.parse::<u16>().ok());
        let set = |port: u16, password: &str| {
            let password = format!(">{password}");
            let words = ["ACL", "SETUSER", "default", "resetpass", &password];
            // A connection that was open before needs no password.
            assert_eq!(cli(port, &words).trim(), "OK");
        };
        let ports: Vec<u16> = ports.collect();
        assert_eq!(ports.len(), 3, "{url}");
        for port in &ports {
            set(*port, "right-one");
        }
        let setup = Setup::over(RedisServer::start(), |_| format!("{url}{given}"));
        let trouble = "wrong user name or password of the sentinels";
        setup.until_health(503, "unhealthy", Some(trouble)).await;
        assert_eq!(setup.turn().await.status, 503);
        let log = std::fs::read_to_string(setup.replica.log()).expect("a log");
        assert!(log.contains("sentinelPassword") && !log.contains("wrong-one"), "{log}");
        if !given.is_empty() {
            for port in ports {
                let words: [&[&str]; 2] =
                    [&["AUTH", "right-one"], &["ACL", "SETUSER", "default", ">wrong-one"]];
                let mut sentinel = Connection::open(port).expect("a connection");
                sentinel.ask(&words).expect("its replies");
            }
            setup.until_health(200, "healthy", None).await;
        }
    }
}

#[tokio::test]
async fn a_database_that_redis_does_not_have_is_reported() {
    let setup = Setup::over(RedisServer::start(), |redis| format!("{}/99", redis.url()));
    setup.until_health(503, "unhealthy", Some("no database of this number")).await;
    assert_eq!(setup.turn().await.status, 503);
    let log = std::fs::read_to_string(setup.replica.log()).expect("a log");
    assert!(log.contains("correct the number"), "{log}");
    // Another replica uses a database that Redis has.
    let other = Setup::over(RedisServer::start(), |redis| format!("{}/9", redis.url()));
    other.until_health(200, "healthy", None).await;
}

#[tokio::test]
async fn a_full_redis_is_degraded_never_unready_and_refuses_turns_as_full() {
    let setup = Setup::ready().await;
    setup.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    setup.until_health(200, "degraded", Some("memory full")).await;
    let full = Instant::now();
    while full.elapsed() < PATIENCE + Duration::from_secs(2) {
        let reply = setup.turn().await;
        assert_eq!((reply.status, reply.body["code"].as_str()), (503, Some("store_full")));
        assert!(reply.headers.contains_key("retry-after"));
        assert_eq!(get(&setup.replica, "/health/ready").await.status, 200);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // A replica that starts now finds its functions loaded.
    let late = Setup::over(RedisServer::start(), |_| setup.redis.url_as(""));
    late.until_health(200, "degraded", Some("memory full")).await;
    setup.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    setup.until_health(200, "healthy", None).await;
    late.until_health(200, "healthy", None).await;
    assert_eq!(setup.turn().await.status, 200);
}

#[tokio::test]
async fn an_answer_that_runs_while_redis_becomes_full_comes_to_its_end() {
    let setup = Setup::ready().await;
    let session = Uuid::new_v4().to_string();
    let (mut socket, _) = Socket::open(&setup.replica, &format!("/ws?session_id={session}")).await;
    socket.say(&json!({"type": "chat", "message": "[[tokens=60 rate=20]] on"})).await;
    let mut events = socket.until("stream_chunk").await;
    setup.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(setup.turn().await.body["code"], "store_full");
    events.extend(socket.until("stream_end").await);
    let answer = joined(&events);
    let end = events.last().expect("an end");
    assert_eq!(end["usage"]["completion_tokens"], 60, "{end}");
    let stored = history(&setup.replica, &session).await;
    assert_eq!((&stored[1]["status"], &stored[1]["content"]), (&json!("complete"), &json!(answer)));
}

#[tokio::test]
async fn a_redis_that_is_full_before_it_has_the_functions_is_reported_as_full_until_it_is_not() {
    let redis = RedisServer::start_with(&["--maxmemory", "1"]);
    let setup = Setup::over(redis, RedisServer::url);
    let trouble = "memory full, and the functions do not fit: raise its maxmemory or delete data";
    setup.until_health(503, "unhealthy", Some(trouble)).await;
    let replies = [get(&setup.replica, "/health/ready").await, setup.turn().await];
    for reply in replies {
        assert_eq!((reply.status, reply.body["code"].as_str()), (503, Some("store_full")));
        let detail = reply.body["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("raise its maxmemory"), "{detail}");
        assert!(reply.headers.contains_key("retry-after"));
    }
    setup.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    let freed = Instant::now();
    setup.until_health(200, "healthy", None).await;
    assert!(freed.elapsed() < Duration::from_secs(10), "{:?}", freed.elapsed());
    assert_eq!(setup.turn().await.status, 200);
}

/// Starts a replica whose Redis user has every permission, over one slot, with heartbeats a second apart.
async fn permitted() -> Setup {
    let redis = RedisServer::start();
    let user = ["ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all"];
    assert_eq!(redis.cli(&user).trim(), "OK");
    let ollama = ollama_sim(&["--rate", "20"]);
    let url = redis.url_as("ann:secret");
    let replica =
        jarvis(&url, &ollama.url, &[("JARVIS_OLLAMA_SLOTS", "1"), ("JARVIS_HEARTBEAT", "1")]);
    until_ok(&replica, "/health/ready").await;
    Setup { replica, redis, _ollama: ollama }
}

fn names_the_missing_command(refused: &Reply, command: &str) {
    assert_eq!((refused.status, &refused.body["code"]), (503, &json!("store_unavailable")));
    let detail = refused.body["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(&format!("no permission for {command}")), "{detail}");
}

#[tokio::test]
async fn a_turn_that_waits_while_redis_refuses_a_command_fails_and_names_the_command() {
    let setup = permitted().await;
    let long = json!({"message": "[[tokens=2000]] hi"});
    let running = post(&setup.replica, "/api/v1/chat", &long);
    let waiting = async {
        until_metric_line(&setup.replica, "jarvis_turns_open 1").await;
        let deny = async {
            until_metric_line(&setup.replica, "jarvis_turns_open 2").await;
            setup.redis.cli(&["ACL", "SETUSER", "ann", "-time"]);
        };
        let (refused, ()) = tokio::join!(setup.turn(), deny);
        names_the_missing_command(&refused, "TIME");
        // The turn has ended, and not only its client's request.
        until_metric_line(&setup.replica, "jarvis_turns_open 1").await;
        setup.redis.cli(&["ACL", "SETUSER", "ann", "+time"]);
        setup.until_health(200, "healthy", None).await;
    };
    tokio::select! {
        reply = running => panic!("the slot was free: {}", reply.status),
        () = waiting => {}
    }
}

#[tokio::test]
async fn a_client_whose_running_answer_redis_refuses_to_store_gets_the_missing_command_by_name() {
    let setup = permitted().await;
    let long = json!({"message": "[[tokens=2000]] hi"});
    let deny = async {
        until_metric_line(&setup.replica, "jarvis_turns_open 1").await;
        setup.redis.cli(&["ACL", "SETUSER", "ann", "-setrange"]);
    };
    let (refused, ()) = tokio::join!(post(&setup.replica, "/api/v1/chat", &long), deny);
    names_the_missing_command(&refused, "SETRANGE");
}

#[tokio::test]
async fn a_stream_of_each_front_names_it_too_however_often_it_has_heartbeats() {
    let setup = permitted().await;
    let question = "[[tokens=2000]] hi";
    let messages = json!([{"role": "user", "content": question}]);
    let chat = json!({"model": "tinyllama", "messages": messages, "stream": true});
    let own = json!({"message": question, "stream": true});
    let paths =
        [("/api/v1/chat", own), ("/v1/chat/completions", chat.clone()), ("/api/chat", chat)];
    let [own, openai, ollama] = paths.map(|(path, body)| {
        let request = http().post(format!("{}{path}", setup.replica.url)).json(&body);
        tokio::spawn(async move { request.send().await.expect("a stream").text().await })
    });
    until_metric_line(&setup.replica, "jarvis_turns_open 3").await;
    setup.redis.cli(&["ACL", "SETUSER", "ann", "-setrange"]);
    let ended = async {
        for stream in [own, openai, ollama] {
            let text = stream.await.expect("a task").expect("a text");
            let last = text.trim_end().lines().rfind(|line| line.contains('{')).unwrap_or_default();
            assert!(last.contains("no permission for SETRANGE"), "{last}");
        }
    };
    assert!(tokio::time::timeout(LIMIT, ended).await.is_ok(), "a stream goes on");
}

#[tokio::test]
async fn a_redis_url_of_another_kind_than_its_server_is_reported_with_what_to_do() {
    let (plain, cluster) = (RedisServer::start(), RedisCluster::start());
    let sentinels = RedisSentinels::start();
    let plain_at = format!("127.0.0.1:{}", plain.port());
    let host = |url: String| {
        url.split_once("//").and_then(|(_, rest)| rest.split('?').next()).map(str::to_owned)
    };
    let without_user = |host: &str| host.rsplit('@').next().map(str::to_owned).unwrap_or_default();
    let node = host(cluster.url()).expect("a node");
    let sentinel = host(sentinels.url()).expect("a sentinel");
    for (url, trouble, advice) in [
        (format!("redis-cluster://{plain_at}"), "no cluster", "redis://"),
        (format!("redis://{node}"), "a cluster", "redis-cluster://"),
        (
            format!("redis-sentinel://{plain_at}?sentinelServiceName=m"),
            "the server given as a sentinel is not a sentinel",
            "name the sentinels",
        ),
        (
            format!("redis-sentinel://{sentinel}?sentinelServiceName=nobody"),
            "the sentinels know no primary of this name",
            "sentinelServiceName",
        ),
        (format!("redis://{}", without_user(&sentinel)), "no command HGETALL", ""),
    ] {
        let setup = Setup::over(RedisServer::start(), |_| url.clone());
        let reported = async || {
            let detailed = get(&setup.replica, "/health/detailed").await;
            let redis = detailed.body["problems"]["redis"].as_str().unwrap_or_default().to_owned();
            (redis.contains(trouble) && redis.contains(advice)).then_some(()).ok_or(redis)
        };
        let is_reported = eventually(LIMIT, async || reported().await.is_ok()).await;
        assert!(is_reported, "{url}: {:?}", reported().await);
        let refused = setup.turn().await;
        assert_eq!(refused.status, 503, "{url}");
        let detail = refused.body["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(trouble), "{url}: {detail}");
        // It stays so while the replica tries again.
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            assert_eq!(reported().await, Ok(()), "{url}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let log = std::fs::read_to_string(setup.replica.log()).expect("a log");
        assert!(log.contains("Redis URL"), "{url}: {log}");
    }
}

#[tokio::test]
async fn a_replica_stays_ready_through_a_short_outage_and_not_through_a_long_one() {
    let setup = Setup::ready().await;
    setup.redis.kill();
    let gone = Instant::now();
    setup.until_health(200, "degraded", Some("not reachable")).await;
    assert_eq!(setup.turn().await.status, 503);
    setup.until_health(503, "unhealthy", Some("not reachable")).await;
    // Redis was usable for the last time at most a second and a probe before.
    assert!(gone.elapsed() + Duration::from_secs(2) >= PATIENCE, "{:?}", gone.elapsed());
    setup.redis.restart();
    setup.until_health(200, "healthy", None).await;
    assert_eq!(setup.turn().await.status, 200);
}

#[tokio::test]
async fn functions_that_were_flushed_are_loaded_again() {
    let setup = Setup::ready().await;
    setup.redis.cli(&["FUNCTION", "FLUSH"]);
    let loaded = async || setup.redis.cli(&["FUNCTION", "LIST"]).contains("jarvis_probe_1");
    assert!(eventually(LIMIT, loaded).await, "no replica loads the functions");
    setup.until_health(200, "healthy", None).await;
    assert_eq!(setup.turn().await.status, 200);
}

#[tokio::test]
async fn a_thousand_probes_from_outside_are_not_a_thousand_calls_of_redis() {
    let setup = Setup::ready().await;
    let calls = || {
        let stats = cli(setup.redis.port(), &["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_fcall:"));
        let calls = line.and_then(|line| line.split("calls=").nth(1)?.split(',').next());
        calls.and_then(|calls| calls.parse::<u64>().ok()).expect("calls of FCALL")
    };
    let (before, began) = (calls(), Instant::now());
    for _ in 0..100 {
        futures_util::future::join_all((0..10).map(|_| get(&setup.replica, "/health/ready"))).await;
    }
    // The heartbeats and the call of the queue count, too: about 12 a second together.
    let allowed = 100.0 + 20.0 * began.elapsed().as_secs_f64();
    let made = calls() - before;
    assert!((made as f64) < allowed, "{made} calls in {:?}", began.elapsed());
}

#[tokio::test]
async fn a_replica_whose_essential_task_died_is_not_ready() {
    let server = RedisServer::start();
    let (url, command_timeout) = (server.url(), Duration::from_millis(1500));
    let options =
        RedisOptions { url, command_timeout, acknowledgements: 0, tls: TlsOptions::default() };
    let lifecycle = Lifecycle::default();
    let redis = Redis::connect_in(&options, lifecycle.clone()).expect("a client");
    let conditions = Conditions::of(&redis);
    let readiness = Readiness {
        source_key: jarvis::source::SourceKey::default(),
        lifecycle: lifecycle.clone(),
        redis: conditions.subscribe(),
        patience: PATIENCE,
    };
    let ill = Arc::new(AtomicBool::new(false));
    let hosts = {
        let ill = Arc::clone(&ill);
        move || {
            assert!(!ill.load(Ordering::Relaxed), "on purpose");
            Vec::new()
        }
    };
    let limits = QueueLimits { waiting: 10, waiting_of_source: 10, running_of_address: 10 };
    let store = QueueStore::new(redis.clone(), "replica".to_owned(), limits);
    let _queue = Queue::start(&redis, store, hosts).expect("a queue");
    let _following = tokio::spawn(conditions.follow());
    let until = async |wanted: Option<NotReady>| {
        let reached = eventually(LIMIT, async || readiness.not_ready() == wanted).await;
        assert!(reached, "{wanted:?}, not {:?}", readiness.not_ready());
    };
    until(None).await;
    ill.store(true, Ordering::Relaxed);
    until(Some(NotReady::TaskDied("queue"))).await;
    // A lost task is also a reason to drain.
    lifecycle.advance(Phase::Draining);
    assert_eq!(readiness.not_ready(), Some(NotReady::TaskDied("queue")));
}
