//! The metrics that a replica exports.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};
use support::client::{Socket, http, kinds, post, send, until_ok};
use support::eventually;
use support::metrics::{metrics, until_metric_line};
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::prometheus::checked_metrics;
use support::redis::RedisServer;
use support::setup::{Setup, setup};
use uuid::Uuid;

/// A family of metrics: its help text, its type, and the labels of its samples.
#[derive(Debug, Default)]
struct Family {
    help: String,
    kind: String,
    labels: BTreeSet<String>,
    samples: usize,
}

/// Parses the text format of Prometheus: every family that has a line.
fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            help.clone_into(&mut families.entry(name.to_owned()).or_default().help);
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '))
        {
            kind.clone_into(&mut families.entry(name.to_owned()).or_default().kind);
        } else if !line.is_empty() {
            assert!(!line.starts_with('#'), "an unknown comment: {line}");
            let sample = line.split(['{', ' ']).next().unwrap_or_default();
            // A histogram's samples have a suffix behind the name of its family.
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| sample.strip_suffix(suffix))
                .find(|family| families.contains_key(*family))
                .unwrap_or(sample);
            let family = families.entry(family.to_owned()).or_default();
            family.samples += 1;
            let labels = line.split_once('{').map_or("", |(_, labels)| labels);
            let names = labels.split("=\"").filter_map(|part| part.rsplit(['"', ',']).next());
            let is_name = |name: &&str| {
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            };
            family.labels.extend(names.filter(is_name).map(str::to_owned));
            family.labels.remove("le");
        }
    }
    families
}

/// Returns the rows of the table of docs/METRICS.md: the kind and the labels of each metric.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md");
    let page = std::fs::read_to_string(page).expect("a page");
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells[0].trim_matches('`').to_owned();
        let labels = cells[2].split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(!cells[3].is_empty(), "{name} has no meaning");
        assert!(rows.insert(name.clone(), (cells[1].to_owned(), labels)).is_none(), "{name} twice");
    }
    rows
}

/// Causes every event that has a metric and needs no outage of minutes.
async fn traffic(Setup { replica, ollama, redis }: &Setup) {
    let session = Uuid::new_v4();
    let path = format!("/ws?session_id={session}");
    let (mut socket, _) = Socket::open(replica, &path).await;
    socket.say(&json!({"message": "[[tokens=40]] over a socket"})).await;
    let events = socket.until("stream_end").await;
    assert!(kinds(&events).contains(&"stream_chunk"));
    let cursor = events[2]["cursor"].as_str().expect("a cursor");
    Socket::open(replica, &format!("{path}&cursor={cursor}")).await;
    let body = json!({"message": "[[tokens=20]] as a stream", "stream": true});
    let streamed = http().post(format!("{}/api/v1/chat", replica.url)).json(&body);
    streamed.send().await.expect("a stream").text().await.expect("its end");
    let broken = json!({"message": "[[tokens=20 fault=cut@5]] over REST"});
    assert_eq!(post(replica, "/api/v1/chat", &broken).await.status, 200);
    assert_eq!(post(replica, "/api/v1/chat", &json!({})).await.status, 422);
    // A model that fails again and again gets a breaker of its own.
    let armed = json!({"fault": "status@500", "model": "broken:latest", "times": 1_000_000});
    let armed = send(http().post(format!("{}/sim/faults", ollama.url)).json(&armed)).await;
    assert_eq!(armed.status, 204, "{}", armed.body);
    let fails = json!({"message": "[[tokens=20]] hi", "model": "broken"});
    let failed = post(replica, "/api/v1/chat", &fails).await;
    assert!(matches!(failed.status, 502 | 503), "{}", failed.body);
    assert!(redis.cli(&["INFO", "memory"]).contains("used_memory"));
    let used = async || metrics(replica).await.contains("\njarvis_redis_memory_used_bytes ");
    assert!(eventually(LIMIT, used).await, "no memory of Redis");
    let busy = async || metrics(replica).await.contains("\njarvis_runtime_busy_ratio ");
    assert!(eventually(LIMIT, busy).await, "no share of busy time");
}

#[tokio::test]
async fn every_metric_that_a_replica_exports_is_in_the_table_and_the_other_way_round() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--models", "tinyllama,broken"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    let setup = Setup { replica, ollama, redis };
    traffic(&setup).await;
    let text = metrics(&setup.replica).await;
    let (exported, documented) = (families(&text), documented());
    for (name, Family { help, kind, labels, samples }) in &exported {
        let Some((documented_kind, documented_labels)) = documented.get(name) else {
            panic!("{name} is exported and not in docs/METRICS.md");
        };
        assert_eq!(kind, documented_kind, "{name}");
        assert!(labels.is_subset(documented_labels), "{name} has the labels {labels:?}");
        assert!(!help.trim().is_empty() && *samples > 0, "{name}: {help:?}, {samples} samples");
    }
    let missing: Vec<_> = documented.keys().filter(|name| !exported.contains_key(*name)).collect();
    assert!(missing.is_empty(), "in docs/METRICS.md and not exported: {missing:?}\n{text}");
    // Labels that never come are no labels. Only the error of a failed turn is one of few.
    for (name, (_, labels)) in &documented {
        assert_eq!(&exported[name].labels, labels, "{name}");
    }
}

#[tokio::test]
async fn a_counter_whose_labels_are_known_is_exported_before_its_first_event() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    for line in [
        "jarvis_turns_total{outcome=\"failed\"} 0",
        "jarvis_turn_failures_total{code=\"upstream_timeout\"} 0",
        "jarvis_turns_refused_total{code=\"queue_full\"} 0",
        "jarvis_takeovers_total{reason=\"connection_lost\"} 0",
        "jarvis_websockets_closed_total{code=\"1006\"} 0",
        "jarvis_redis_reconnects_total 0",
        "jarvis_panics_total{part=\"turn\"} 0",
    ] {
        until_metric_line(replica, line).await;
    }
}

#[tokio::test]
async fn promtool_finds_nothing_to_say_about_the_metrics_of_a_replica() {
    let setup = setup("0", &[]).await;
    let (mut socket, _) = Socket::open(&setup.replica, "/ws").await;
    socket.say(&json!({"message": "[[tokens=20]] over a socket"})).await;
    socket.until("stream_end").await;
    let text = metrics(&setup.replica).await;
    assert_eq!(checked_metrics(&text), "", "promtool has something to say");
}

/// Returns the series that a replica exports, without those of commands of Redis: there are as many as the
/// code has calls, and some are made by the minute only.
async fn series(replica: &Process) -> BTreeSet<String> {
    let text = metrics(replica).await;
    let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let series = samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()));
    series.filter(|series| !series.starts_with("jarvis_redis_commands_total{")).collect()
}

/// Begins so many sessions after the first hundred, and compares the series before and after.
async fn sessions_add_no_series(sessions: usize) {
    const FIRST: usize = 100;
    const AT_ONCE: usize = 32;
    let Setup { replica, .. } = &setup("0", &[("JARVIS_OLLAMA_SLOTS", "64")]).await;
    let client = http();
    let ask = async |number: usize| {
        let session = Uuid::new_v4().to_string();
        let body = json!({"message": format!("[[tokens=1]] {number}"), "session_id": session});
        let reply = client.post(format!("{}/api/v1/chat", replica.url)).json(&body).send().await;
        let reply: Value = reply.expect("a reply").json().await.expect("JSON");
        assert_eq!(reply["status"], "success", "{reply}");
        // A path that no route has, with the session in it.
        let path = format!("{}/nothing/{session}", replica.url);
        client.get(path).send().await.expect("a reply");
    };
    stream::iter(0..FIRST).for_each_concurrent(AT_ONCE, &ask).await;
    // The first round of the gauges that come once a second, or less often.
    let complete = async || {
        let text = metrics(replica).await;
        ["redis_memory_used_bytes", "turns_per_slot"]
            .iter()
            .all(|name| text.contains(&format!("\njarvis_{name} ")))
    };
    assert!(eventually(LIMIT, complete).await);
    let before = series(replica).await;
    stream::iter(0..sessions).for_each_concurrent(AT_ONCE, &ask).await;
    let after = series(replica).await;
    let added: Vec<_> = after.difference(&before).collect();
    assert!(added.is_empty(), "{} series, and then also {added:?}", before.len());
}

#[tokio::test]
async fn paths_and_methods_that_clients_choose_add_no_series() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    let client = http();
    let ask = async |number: usize| {
        let chosen = Method::from_bytes(format!("M{number}").as_bytes()).expect("a method");
        let path = format!("/x{number}");
        for (method, path) in
            [(&Method::GET, &*path), (&chosen, &*path), (&chosen, "/api/v1/models")]
        {
            let request = client.request(method.clone(), format!("{}{path}", replica.url));
            let status = send(request).await.status;
            assert!(matches!(status, 404 | 405), "{method} {path}: {status}");
        }
    };
    let of_requests = async || {
        let series = series(replica).await.into_iter();
        series.filter(|series| series.starts_with("jarvis_http_")).collect::<BTreeSet<_>>()
    };
    ask(0).await;
    // A request for metrics is counted, too.
    of_requests().await;
    let before = of_requests().await;
    for part in [r#"method="OTHER""#, r#"route="none""#] {
        assert!(before.iter().any(|series| series.contains(part)), "no {part} in {before:?}");
    }
    for number in 1..=200 {
        ask(number).await;
    }
    assert_eq!(of_requests().await, before);
    let text = metrics(replica).await;
    assert!(!text.contains("M200") && !text.contains("x200"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_sessions_add_no_series() {
    sessions_add_no_series(500).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute or more: `make verify` runs it"]
async fn ten_thousand_sessions_add_no_series() {
    sessions_add_no_series(10_000).await;
}
