//! The promises of `jarvis top` to the operator who looks: over a real Redis and real replicas, in a real
//! terminal.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use jarvis::membership::{MembershipStore, ReplicaFigures};
use jarvis::queue::Overview;
use jarvis::redis::{Observer, RedisError};
use serde_json::json;
use support::client::Socket;
use support::eventually;
use support::fleet::Fleet;
use support::process::{LIMIT, Process};
use support::redis::{RedisCluster, RedisSentinels, RedisServer};
use support::store::{connect, options};
use support::terminal::Terminal;

const BINARY: &str = env!("CARGO_BIN_EXE_jarvis");
/// A turn that outlasts every test here.
const LONG: &str = "[[tokens=6000 rate=30]] at length";
/// The arguments of the host.
const HOST: &[&str] = &["--rate", "30", "--slots", "2"];
/// As many slots as the host has.
const SETTINGS: &[(&str, &str)] = &[("JARVIS_OLLAMA_SLOTS", "2")];

fn top_in(columns: usize, rows: usize, redis_url: &str, arguments: &str) -> Terminal {
    let line = format!("{BINARY} top {arguments}");
    Terminal::run(columns, rows, &line, &[("JARVIS_REDIS_URL", redis_url)])
}

async fn top_once(redis_url: &str, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(BINARY);
    command.arg("top").args(arguments).env("JARVIS_REDIS_URL", redis_url);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.expect("its end in time");
    output.expect("an output")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn address(replica: &Process) -> &str {
    replica.url.trim_start_matches("http://")
}

/// Returns the row below the head that begins with this word, of those that contain a text.
fn row<'a>(lines: &'a [String], head: &str, containing: &str) -> Option<&'a str> {
    let begin = lines.iter().position(|line| line.starts_with(head))?;
    let part = lines[begin + 1..].iter().take_while(|line| !line.is_empty());
    part.map(String::as_str).find(|line| line.contains(containing))
}

async fn begin(replica: &Process) -> Socket {
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    socket.say(&json!({"message": LONG, "max_tokens": 6_000})).await;
    socket.until("message_received").await;
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_is_shown_live_and_a_killed_replica_as_gone_with_its_turns_taken_over() {
    let fleet = Fleet::start(3, HOST, SETTINGS).await;
    let mut top = top_in(110, 30, &fleet.redis.url(), "");
    let is_serving = |lines: &[String], replica: &Process| {
        row(lines, "REPLICA", address(replica)).is_some_and(|row| row.ends_with("serving"))
    };
    top.until("three replicas", |lines| {
        fleet.replicas.iter().all(|replica| is_serving(lines, replica))
            && lines[0].contains("3 replicas, 0 of 2 slots, 0 waiting turns, 0 sockets")
    })
    .await;
    let mut sockets = vec![begin(&fleet.replicas[0]).await, begin(&fleet.replicas[0]).await];
    for socket in &mut sockets {
        socket.until("stream_chunk").await;
    }
    let mut waiting = begin(&fleet.replicas[1]).await;
    waiting.until("queued").await;
    let host = fleet.ollama.url.trim_start_matches("http://");
    let lines = top.until("the host's slots, the queue and the sockets", |lines| {
        let slots = row(lines, "HOST", host).is_some_and(|row| row.contains("2 of 2"));
        let queue = row(lines, "QUEUE", "tinyllama:latest");
        let queue = queue.is_some_and(|row| row.contains("       1  ") && row.ends_with(" s"));
        let turns = row(lines, "REPLICA", address(&fleet.replicas[0]));
        let turns: Vec<_> = turns.into_iter().flat_map(str::split_whitespace).collect();
        let has_two = turns.get(2..).is_some_and(|cells| cells.contains(&"2"));
        slots && queue && has_two && lines[0].contains("2 of 2 slots, 1 waiting turn, 3 sockets")
    });
    let lines = lines.await;
    let closed = row(&lines, "HOST", host).expect("a host");
    assert!(closed.contains("closed") && closed.contains("tinyllama"), "{closed}");
    let redis = row(&lines, "REDIS", &fleet.redis.port().to_string()).expect("a primary");
    assert!(redis.contains("MiB"), "{redis}");
    top.until("tokens a second", |lines| {
        let rate = lines[1].split_whitespace().next().and_then(|rate| rate.parse::<f64>().ok());
        rate.is_some_and(|rate| (30.0..90.0).contains(&rate))
    })
    .await;

    fleet.replicas[0].kill();
    top.until("the killed replica among those that are gone", |lines| {
        let gone = row(lines, "GONE", address(&fleet.replicas[0])).unwrap_or_default();
        let cells: Vec<_> = gone.split_whitespace().collect();
        let because = gone.ends_with("were lost") || gone.ends_with("stopped");
        because
            && cells.contains(&"2")
            && row(lines, "REPLICA", address(&fleet.replicas[0])).is_none()
            && lines[0].contains("2 replicas")
            && lines[1].contains("2 turns taken over")
    })
    .await;
    top.type_text("q");
    assert_eq!(top.ended().await, ("0".to_owned(), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_replica_is_shown_as_signed_off_and_a_host_that_is_gone_as_open() {
    let fleet = Fleet::start(2, HOST, SETTINGS).await;
    let top = top_in(110, 30, &fleet.redis.url(), "");
    let port = fleet.ollama.url.trim_start_matches("http://").to_owned();
    let host = |lines: &[String]| row(lines, "HOST", &port).unwrap_or_default().to_owned();
    top.until("a closed breaker", |lines| host(lines).contains("closed")).await;
    fleet.ollama.kill();
    top.until("an open breaker", |lines| host(lines).contains(" open ")).await;
    let replica = &fleet.replicas[0];
    replica.terminate();
    top.until("a replica that signed off", |lines| {
        row(lines, "GONE", address(replica)).is_some_and(|row| row.ends_with("it signed off"))
    })
    .await;
    // No replica is left to remove the last one.
    let last = &fleet.replicas[1];
    last.kill();
    top.until("a replica that is silent", |lines| {
        row(lines, "REPLICA", address(last)).is_some_and(|row| row.ends_with("silent"))
    })
    .await;
}

/// Returns the calls of each command since the statistics were reset.
fn commands(redis: &RedisServer) -> BTreeMap<String, u64> {
    let stats = redis.cli(&["INFO", "commandstats"]);
    let lines = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_"));
    lines
        .filter_map(|line| {
            let (name, rest) = line.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        })
        .collect()
}

/// Returns the command of the page for operators that makes the user who only looks.
fn user_who_looks(password: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATIONS.md");
    let page = std::fs::read_to_string(path).expect("a page");
    let command = page.lines().find(|line| line.starts_with("ACL SETUSER top ")).expect("a user");
    command.split(' ').map(|word| word.replace("CHANGE-THIS-PASSWORD", password)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_is_two_commands_of_a_user_who_may_not_write() {
    let fleet = Fleet::start(2, HOST, SETTINGS).await;
    let redis = &fleet.redis;
    let _turns = (begin(&fleet.replicas[0]).await, begin(&fleet.replicas[0]).await);
    let mut waiting = begin(&fleet.replicas[0]).await;
    waiting.until("queued").await;
    // Nobody else sends commands once all replicas are gone.
    for replica in &fleet.replicas {
        replica.kill();
    }
    let user = user_who_looks("secret");
    let user: Vec<_> = user.iter().map(String::as_str).collect();
    assert_eq!(redis.cli(&user).trim(), "OK");
    let top = top_in(100, 30, &redis.url_as("top:secret"), "--interval 1");
    let port = redis.port().to_string();
    top.until("the host's slots and the primary", |lines| {
        row(lines, "HOST", "2 of 2").is_some() && row(lines, "REDIS", &port).is_some()
    })
    .await;
    let changes = || {
        let info = redis.cli(&["INFO", "persistence"]);
        info.lines().find(|line| line.starts_with("rdb_changes_since")).map(str::to_owned)
    };
    let before = changes();
    redis.cli(&["CONFIG", "RESETSTAT"]);
    let (mut asked, mut seen) = (0, BTreeMap::new());
    let enough = eventually(LIMIT, async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        seen = commands(redis);
        asked += 1;
        seen.get("fcall_ro") >= Some(&4)
    });
    assert!(enough.await, "{seen:?}");
    let count = seen["fcall_ro"];
    seen.remove("config|resetstat");
    let infos = seen.remove("info").expect("calls of INFO");
    // This test asked by INFO itself; of the first and the last look one command may be missing.
    let of_looks = infos - (asked - 1);
    assert!(of_looks.abs_diff(count) <= 1, "{infos} for {count} looks, {asked} by this test");
    let expected: BTreeMap<String, u64> = [
        ("fcall_ro", 1),
        // Heartbeats, figures, gone replicas and one host.
        ("hgetall", 4),
        ("hlen", 1),
        // The names of the hosts, and those of the models.
        ("smembers", 2),
        ("zcard", 1),
        ("zrange", 1),
        ("time", 1),
    ]
    .map(|(name, calls)| (name.to_owned(), calls * count))
    .into();
    assert_eq!(seen, expected, "the commands of {count} looks, those within the function included");
    assert_eq!(changes(), before, "nothing was written");
    drop(top);
    let refused = redis.cli(&["ACL", "DRYRUN", "top", "SET", "jarvis:{queue}:x", "1"]);
    assert!(refused.contains("no permissions"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn once_prints_plain_text_and_so_does_an_output_that_is_no_terminal() {
    let fleet = Fleet::start(2, HOST, SETTINGS).await;
    let are_serving = async || {
        let output = top_once(&fleet.redis.url(), &[]).await;
        text(&output.stdout).matches("serving").count() == 2
    };
    // A replica publishes its phase once a second.
    assert!(eventually(LIMIT, are_serving).await);
    for arguments in [&["--once"][..], &[]] {
        let output = top_once(&fleet.redis.url(), arguments).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let printed = text(&output.stdout);
        assert!(!printed.contains('\x1b'), "{printed:?}");
        let lines: Vec<_> = printed.lines().map(str::to_owned).collect();
        for replica in &fleet.replicas {
            let row = row(&lines, "REPLICA", address(replica)).expect("a replica");
            assert!(row.contains(env!("CARGO_PKG_VERSION")) && row.ends_with("serving"), "{row}");
        }
        assert!(row(&lines, "HOST", "0 of 2").is_some(), "{printed}");
        assert!(row(&lines, "QUEUE", "no turn waits").is_some(), "{printed}");
    }
    // In a terminal, too, it prints and ends.
    let top = top_in(100, 30, &fleet.redis.url(), "--once");
    assert_eq!(top.ended().await, ("0".to_owned(), true));
    assert!(!top.screen().is_alternate());
}

#[tokio::test(flavor = "multi_thread")]
async fn once_says_what_is_wrong_and_what_to_do() {
    let redis = RedisServer::start();
    let wrong = |output: &Output| {
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(text(&output.stdout), "");
        text(&output.stderr)
    };
    let output = top_once(&redis.url(), &["--once"]).await;
    assert!(wrong(&output).contains("run jarvis migrate"), "{output:?}");
    let output = top_once(&redis.url_as("jarvis:no"), &["--once"]).await;
    assert!(wrong(&output).contains("correct them in the Redis URL"), "{output:?}");
    redis.kill();
    let output = top_once(&redis.url(), &["--once"]).await;
    let wrong = wrong(&output);
    assert!(wrong.contains("--redis-url") && !wrong.contains("Pa55"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_it_says_so_and_goes_on_once_redis_is_back() {
    let fleet = Fleet::start(1, HOST, SETTINGS).await;
    let top = top_in(80, 24, &fleet.redis.url(), "");
    let serves = |lines: &[String]| row(lines, "REPLICA", "serving").is_some();
    top.until("a replica", serves).await;
    fleet.redis.kill();
    let lines = top.until("the trouble", |lines| lines.join(" ").contains("No news for")).await;
    assert!(lines.join(" ").contains("--redis-url"), "{lines:?}");
    assert!(serves(&lines), "the last picture stays");
    fleet.redis.restart();
    top.until("a replica and no trouble", |lines| {
        serves(lines) && !lines.join(" ").contains("No news for")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resized_terminal_is_drawn_again() {
    let fleet = Fleet::start(1, HOST, SETTINGS).await;
    let top = top_in(80, 24, &fleet.redis.url(), "");
    let ends_at = |lines: &[String], row: usize| {
        lines.get(row).is_some_and(|line| line.starts_with("q ends")) && lines.len() == row + 1
    };
    let lines = top.until("24 lines", |lines| ends_at(lines, 23)).await;
    assert!(!lines.join(" ").contains(" VERSION  STATE"), "80 columns have no room for it");
    top.resize(140, 40);
    top.until("40 lines", |lines| {
        ends_at(lines, 39) && lines.join(" ").contains(" VERSION  STATE")
    })
    .await;
    top.resize(40, 12);
    top.until("12 lines", |lines| ends_at(lines, 11)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn q_ctrl_c_and_signals_end_it_and_restore_the_terminal() {
    let redis = RedisServer::start();
    connect(&redis.url()).await;
    for end in ["q", "\u{3}", "TERM", "HUP", "INT"] {
        let mut top = top_in(80, 24, &redis.url(), "");
        top.until("no replica", |lines| lines.join(" ").contains("no replica has a heartbeat"))
            .await;
        let screen = top.screen();
        assert!(screen.is_alternate() && screen.hides_cursor);
        if end.len() == 1 {
            top.type_text(end);
        } else {
            top.signal(end);
        }
        assert_eq!(top.ended().await, ("0".to_owned(), true), "{end:?}");
        let shows_all = async || {
            let screen = top.screen();
            !screen.is_alternate() && !screen.hides_cursor
        };
        assert!(eventually(LIMIT, shows_all).await, "{end:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_sentinels_and_in_a_cluster_it_looks_without_a_primary_lease() {
    let sentinels = RedisSentinels::start();
    let url = sentinels.url();
    connect(&url).await;
    let output = top_once(&url, &[]).await;
    let printed = text(&output.stdout);
    assert!(printed.contains("no replica has a heartbeat"), "{output:?}");
    let cluster = RedisCluster::start();
    connect(&cluster.url()).await;
    let output = top_once(&cluster.url(), &[]).await;
    let printed = text(&output.stdout);
    let (_, primaries) = printed.split_once("\nREDIS").expect("the servers");
    assert_eq!(primaries.matches("127.0.0.1:").count(), 3, "one row for each primary: {printed}");
}

#[tokio::test]
async fn figures_go_with_their_replica_and_a_few_gone_ones_are_noted_with_all_their_turns() {
    let redis = RedisServer::start();
    let client = connect(&redis.url()).await;
    let member = |name: &str| MembershipStore::new(client.clone(), name.to_owned());
    let figures = ReplicaFigures { turns: 3, ..ReplicaFigures::default() };
    member("r1").heartbeat(false, Vec::new(), Some(&figures)).await.expect("Redis");
    member("r2").heartbeat(false, Vec::new(), None).await.expect("Redis");
    let mut observer = Observer::connect(&options(&redis.url())).expect("a client");
    let overview = Overview::read(&mut observer).await.expect("Redis");
    let replicas = &overview.replicas.first;
    assert_eq!((replicas[0].name.as_str(), replicas[0].counter), ("r1", Some(1)));
    assert_eq!(replicas[0].figures.as_ref(), Some(&figures));
    assert_eq!((&replicas[1].figures, overview.gone.len()), (&None, 0));

    // Two replicas took turns of r1, and a third one came too late for any.
    for (by, turns) in [("r2", 2), ("r3", 1), ("r4", 0)] {
        let removed = member(by).remove_replica("r1", 1, "connection_lost", turns).await;
        removed.expect("Redis");
    }
    let overview = Overview::read(&mut observer).await.expect("Redis");
    assert_eq!(overview.replicas.total, 1);
    let gone = &overview.gone[0];
    assert_eq!((gone.name.as_str(), gone.turns), ("r1", 3));
    assert_eq!(gone.figures.as_ref(), Some(&figures));
    assert_eq!(redis.cli(&["HLEN", "jarvis:{queue}:figures"]).trim(), "0");

    for number in 0..40 {
        let name = format!("other-{number}");
        member(&name).heartbeat(false, Vec::new(), None).await.expect("Redis");
        member("r2").remove_replica(&name, 1, "lease_over", 0).await.expect("Redis");
    }
    let overview = Overview::read(&mut observer).await.expect("Redis");
    assert_eq!(overview.gone.len(), 16);
    let ttl: i64 = redis.cli(&["TTL", "jarvis:{queue}:gone"]).trim().parse().expect("a time");
    assert!((1..=600).contains(&ttl), "{ttl}");
    // One whose heartbeat moves stays.
    member("r2").remove_replica("r2", 0, "lease_over", 1).await.expect("Redis");
    let overview = Overview::read(&mut observer).await.expect("Redis");
    assert_eq!((overview.replicas.total, overview.gone.len()), (1, 16));
}

#[tokio::test]
async fn an_observer_is_told_what_it_lacks_and_never_loads_it() {
    let redis = RedisServer::start();
    let mut observer = Observer::connect(&options(&redis.url())).expect("a client");
    let absent = Overview::read(&mut observer).await.expect_err("no functions");
    assert!(matches!(absent, RedisError::Unexpected(_)), "{absent}");
    assert_eq!(redis.cli(&["FUNCTION", "LIST"]).trim(), "");
}
