//! The dashboard and the alerts, with a real Prometheus that scrapes real replicas.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use support::client::{Socket, http, send, until_ok};
use support::eventually;
use support::monitored::{Load, Monitored};
use support::picture::{Fault, draw};
use support::process::LIMIT;
use support::prometheus::{checked_metrics, panels};
use testkit::programs::find;

/// How long an alert may take to fire or to resolve: the longest fault takes half a minute.
const ALERT_LIMIT: Duration = Duration::from_secs(90);
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rules() -> String {
    read("deploy/prometheus/rules.yml")
}

/// Returns the names of all alerts.
fn alerts() -> BTreeSet<String> {
    let rules = rules();
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(str::to_owned).collect()
}

#[test]
fn the_prometheus_rule_holds_the_groups_that_compose_uses() {
    let (rules, manifest) = (rules(), read("k8s/components/prometheus-operator/rules.yaml"));
    let groups = &rules[rules.find("groups:\n").expect("groups")..];
    let spec = manifest.split_once("\nspec:\n").expect("a spec").1;
    let spec: Vec<_> = spec.lines().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect();
    assert_eq!(spec.join("\n"), groups.trim_end());
}

#[test]
fn every_alert_has_an_entry_in_the_runbook_and_a_test_in_which_it_fires() {
    let (runbook, tests) = (read("docs/OPERATIONS.md"), read("deploy/prometheus/rules_test.yml"));
    let alerts = alerts();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in &alerts {
        let entry = runbook.split_once(&format!("\n### {alert}\n")).map(|(_, rest)| rest);
        let entry = entry.unwrap_or_else(|| panic!("{alert} has no entry"));
        let entry = entry.split("\n#").next().unwrap_or_default();
        for part in ["Users see", "Look at", "Do"] {
            assert!(entry.contains(&format!("**{part}")), "the entry of {alert} lacks {part}");
        }
        let link = format!("docs/OPERATIONS.md#{}", alert.to_lowercase());
        assert!(rules().contains(&link), "{alert} does not name its entry");
        let fires = format!("alertname: {alert}\n");
        assert!(tests.contains(&fires), "no test in which {alert} fires");
    }
}

#[test]
fn promtool_finds_nothing_to_say_about_the_rules_and_every_alert_fires_and_resolves() {
    let promtool = find("promtool").expect("promtool: `make test` unpacks Debian's");
    for arguments in [
        &["check", "rules", "rules.yml"][..],
        &["check", "config", "prometheus.yml"],
        &["test", "rules", "rules_test.yml"],
    ] {
        let mut command = Command::new(&promtool);
        command.args(arguments).current_dir(Path::new(ROOT).join("deploy/prometheus"));
        let output = command.output().expect("promtool");
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed);
        assert!(output.status.success() && !printed.contains("FAILED"), "{arguments:?}\n{printed}");
    }
}

/// Waits until a query gives a number.
async fn gives_data(fleet: &Monitored, query: &str) -> bool {
    let has_number = async || {
        let samples = fleet.prometheus.query(query).await;
        samples.iter().any(|(_, value)| !value.is_nan())
    };
    eventually(LIMIT, has_number).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_every_panel_gives_data_of_three_replicas_under_load() {
    let hosts: [&[&str]; 2] = [&["--rate", "400"], &["--rate", "400"]];
    let fleet = Monitored::start(&hosts, &[], &rules()).await;
    let _load: Vec<_> = fleet.replicas.iter().map(Load::begin).collect();
    assert!(gives_data(&fleet, "count(up == 1) == 3").await, "not every replica is scraped");
    let (mut queries, mut empty) = (0, Vec::new());
    for panel in panels("5s") {
        assert_eq!(panel.kind == "row", panel.queries.is_empty(), "{panel:?}");
        for (_, query) in &panel.queries {
            queries += 1;
            if !gives_data(&fleet, query).await {
                empty.push(format!("{}: {query}", panel.title));
            }
        }
    }
    assert!(queries > 50, "only {queries} queries");
    assert!(empty.is_empty(), "no data:\n{}", empty.join("\n"));
    for target in &fleet.targets {
        let reply = http().get(format!("http://{target}/metrics")).send().await.expect("metrics");
        let text = reply.text().await.expect("a text");
        assert!(text.contains("gen_ai_server_time_to_first_token_seconds_bucket"), "no turn yet");
        assert_eq!(checked_metrics(&text), "", "promtool has something to say");
    }
    // Each replica is a line of its own where a panel is by replica.
    let replicas = fleet.prometheus.query("sum by (instance) (jarvis_turns_open)").await;
    assert_eq!(replicas.len(), 3, "{replicas:?}");
}

/// Returns the rules with windows and pauses of seconds, so that a test need not wait for minutes.
fn hurried() -> String {
    let windows =
        [("5m", "6s"), ("30m", "8s"), ("1h", "8s"), ("6h", "8s"), ("10m", "10s"), ("15m", "30s")];
    let mut rules = rules();
    for (window, seconds) in windows {
        rules = rules.replace(&format!("[{window}]"), &format!("[{seconds}]"));
    }
    for pause in ["30s", "1m", "2m", "5m", "10m"] {
        rules = rules.replace(&format!("for: {pause}\n"), "for: 1s\n");
    }
    rules
}

async fn until_firing(fleet: &Monitored, alert: &str) {
    let fires = async || fleet.prometheus.firing().await.contains(alert);
    assert!(eventually(ALERT_LIMIT, fires).await, "{alert} does not fire");
    println!("{alert} fires");
}

async fn until_resolved(fleet: &Monitored, alert: &str) {
    let is_over = async || !fleet.prometheus.firing().await.contains(alert);
    assert!(eventually(ALERT_LIMIT, is_over).await, "{alert} does not resolve");
    println!("{alert} is resolved");
}

/// Everything but `JarvisPanics`, for which there is no real fault: a panic would be a fault of the
/// code, and no release has a way to ask for one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: `make verify` runs it"]
async fn each_alert_but_that_of_panics_fires_at_a_real_fault_and_resolves_after_it() {
    let settings = [
        ("JARVIS_OLLAMA_SLOTS", "2"),
        ("JARVIS_HOST_WAIT_TIMEOUT", "3"),
        ("JARVIS_READ_TIMEOUT", "2"),
    ];
    let fleet =
        Monitored::start(&[&["--rate", "400", "--slots", "2"]], &settings, &hurried()).await;
    let (first, second) = (&fleet.replicas[0], &fleet.replicas[1]);
    let load = Load::begin(first);
    assert!(gives_data(&fleet, "sum(rate(jarvis_turns_total[6s])) > 0").await);
    assert!(gives_data(&fleet, "max(jarvis_redis_memory_used_bytes) > 0").await);
    let quiet = async || fleet.prometheus.firing().await.is_empty();
    assert!(eventually(LIMIT, quiet).await, "{:?}", fleet.prometheus.firing().await);
    drop(load);

    // Three turns for each slot, of 22 s each: those that wait begin later than 20 s.
    let mut sessions = Vec::new();
    for _ in 0..6 {
        let session = uuid::Uuid::new_v4().to_string();
        let body = json!({"message": "[[tokens=110 rate=5]] slowly", "session_id": session, "stream": true});
        let request = http().post(format!("{}/api/v1/chat", first.url)).json(&body);
        sessions.push((session, tokio::spawn(request.send())));
    }
    for alert in ["JarvisTurnsWait", "JarvisQueueWaitLong", "JarvisFirstTokenSlow"] {
        until_firing(&fleet, alert).await;
    }
    for (session, request) in sessions {
        send(http().delete(format!("{}/api/v1/chat/sessions/{session}", first.url))).await;
        request.abort();
    }
    for alert in ["JarvisTurnsWait", "JarvisQueueWaitLong", "JarvisFirstTokenSlow"] {
        until_resolved(&fleet, alert).await;
    }

    // The only host dies, and users go on asking.
    let load: Vec<_> = fleet.replicas.iter().map(Load::begin).collect();
    fleet.hosts[0].kill();
    let of_host = ["JarvisNoSlots", "JarvisHostDown"];
    let of_users = ["JarvisErrorBudgetBurnsFast", "JarvisErrorBudgetBurns"];
    for alert in of_host.iter().chain(&of_users) {
        until_firing(&fleet, alert).await;
    }
    fleet.hosts[0].restart().expect("a host");
    for alert in of_host.iter().chain(&of_users) {
        until_resolved(&fleet, alert).await;
    }
    drop(load);

    fleet.redis.kill();
    until_firing(&fleet, "JarvisRedisLost").await;
    fleet.redis.restart();
    until_resolved(&fleet, "JarvisRedisLost").await;

    let used = fleet.prometheus.query("max(jarvis_redis_memory_used_bytes)").await[0].1;
    fleet.redis.cli(&["CONFIG", "SET", "maxmemory", &format!("{:.0}", used * 1.1)]);
    until_firing(&fleet, "JarvisRedisFull").await;
    fleet.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    until_resolved(&fleet, "JarvisRedisFull").await;

    // A replica dies in the middle of an answer, and then again and again.
    until_ok(second, "/health/ready").await;
    let (mut socket, _) = Socket::open(second, "/ws").await;
    socket.say(&json!({"message": "[[tokens=400 rate=10]] on another replica"})).await;
    socket.until("stream_chunk").await;
    second.kill();
    until_firing(&fleet, "JarvisTakeovers").await;
    for _ in 0..2 {
        second.restart().expect("a replica");
        until_ok(second, "/health/ready").await;
        let scraped = r#"count(up{job="jarvis"} == 1) == 3"#;
        assert!(gives_data(&fleet, scraped).await);
        second.kill();
    }
    second.restart().expect("a replica");
    until_firing(&fleet, "JarvisReplicaFlaps").await;
    until_resolved(&fleet, "JarvisTakeovers").await;
    until_resolved(&fleet, "JarvisReplicaFlaps").await;

    // A dozen clients ask for more than their kernels hold, and read nothing.
    let mut silent = Vec::new();
    for _ in 0..12 {
        let (mut socket, _) = Socket::open_narrow(first, "/ws").await;
        socket
            .say(&json!({"message": "[[tokens=60000 rate=50000]] at length", "max_tokens": 60_000}))
            .await;
        silent.push(socket);
    }
    until_firing(&fleet, "JarvisSlowReaders").await;
    drop(silent);
    until_resolved(&fleet, "JarvisSlowReaders").await;

    for replica in &fleet.replicas {
        replica.kill();
    }
    until_firing(&fleet, "JarvisNoReplica").await;
    for replica in &fleet.replicas {
        replica.restart().expect("a replica");
    }
    until_resolved(&fleet, "JarvisNoReplica").await;
}

/// Draws `docs/dashboard.svg` from a minute and a half with a host that dies, a replica that is
/// killed, and a Redis that is away for seconds.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "draws a picture for the documents"]
async fn the_dashboard_is_drawn_from_the_data_of_a_real_run() {
    let hosts: [&[&str]; 2] =
        [&["--rate", "60", "--slots", "4"], &["--rate", "60", "--slots", "4"]];
    let fleet = Monitored::start(&hosts, &[], &rules()).await;
    let load: Vec<_> = fleet.replicas.iter().map(Load::begin).collect();
    let pause = async |seconds| tokio::time::sleep(Duration::from_secs(seconds)).await;
    pause(25).await;
    let mut faults = Vec::new();
    let mut breaks = async |name, seconds, end: &dyn Fn()| {
        let begin = Instant::now();
        pause(seconds).await;
        end();
        faults.push(Fault { name, time: begin..Instant::now() });
    };
    fleet.hosts[0].kill();
    breaks("a host is away", 12, &|| fleet.hosts[0].restart().expect("a host")).await;
    pause(15).await;
    fleet.replicas[2].kill();
    breaks("a replica is gone", 8, &|| fleet.replicas[2].restart().expect("a replica")).await;
    pause(12).await;
    fleet.redis.kill();
    breaks("Redis is away", 4, &|| fleet.redis.restart()).await;
    pause(14).await;
    drop(load);
    let picture = draw(&fleet.prometheus, Duration::from_secs(90), &faults).await;
    assert!(picture.matches("<polyline").count() > 50, "few lines");
    std::fs::write(Path::new(ROOT).join("docs/dashboard.svg"), picture).expect("a file");
}
