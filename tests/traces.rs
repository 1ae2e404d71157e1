//! Traces: what a collector gets of turns, over three replicas.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Value, json};
use support::client::{Socket, history_until, http, post, until_ok};
use support::collector::{CLIENT, Collector, INTERNAL, Received, SERVER, Spans};
use support::eventually;
use support::metrics::metrics;
use support::process::{LIMIT, Process, jarvis, logged, ollama_sim};
use support::redis::RedisServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// The span of a model run.
const RUN: &str = "chat tinyllama:latest";
const CLIENT_SPAN: &str = "00f067aa0ba902b7";
/// A word of the question that no span may have.
const WORD: &str = "plugh";

fn traceparent(is_sampled: bool) -> String {
    format!("00-{TRACE}-{CLIENT_SPAN}-{:02x}", u8::from(is_sampled))
}

/// Returns the settings of a replica whose spans go to this server over HTTP, soon.
fn to(url: &str) -> [(&str, &str); 2] {
    [("JARVIS_OTLP_URL", url), ("OTEL_BSP_SCHEDULE_DELAY", "20")]
}

async fn replica(redis: &RedisServer, ollama: &Process, settings: &[(&str, &str)]) -> Process {
    let replica = jarvis(&redis.url(), &ollama.url, settings);
    until_ok(&replica, "/health/ready").await;
    replica
}

fn one<'a>(spans: &'a [Received], name: &str) -> &'a Received {
    let found: Vec<_> = spans.iter().filter(|span| span.name() == name).collect();
    assert_eq!(found.len(), 1, "{name}: {found:#?}");
    found[0]
}

/// Returns all texts of a span.
fn texts(span: &Received) -> String {
    format!("{:?}", span.span)
}

/// Checks the spans of the two successors of a killed writer, in the trace of a request.
fn each_successor_continues_the_writer_before_it(
    all: &[Received],
    request: &Received,
    lost: &Received,
) {
    let takeovers = || all.iter().filter(|span| span.name() == "take over turn");
    let found = |outcome: &str| {
        let mut found = takeovers().filter(|span| span.text("jarvis.turn.outcome") == outcome);
        found.next().unwrap_or_else(|| panic!("no {outcome}: {all:#?}"))
    };
    let (second, third) = (found("replica_gone"), found("complete"));
    for takeover in [second, third] {
        assert_eq!((takeover.parent(), takeover.span.kind), (request.id(), INTERNAL));
    }
    // Each successor names the writer that it continues.
    let claims = || all.iter().filter(|span| span.name() == "claim turn");
    let claim_of =
        |writer: &Received| claims().find(|claim| claim.parent() == writer.id()).expect("a claim");
    assert_eq!(claims().count(), 2);
    assert_eq!(claim_of(second).links(), [(TRACE.to_owned(), lost.id())]);
    assert_eq!(claim_of(third).links(), [(TRACE.to_owned(), second.id())]);
    assert_eq!(third.links(), [(TRACE.to_owned(), second.id())]);
    let replicas: BTreeSet<_> =
        [lost, second, third].map(|writer| writer.text("jarvis.replica")).into();
    assert_eq!(replicas.len(), 3, "{replicas:?}");
    let runs = all.iter().filter(|span| span.name() == RUN && span.parent() == third.id());
    let runs: Vec<_> = runs.collect();
    assert_eq!((runs.len(), runs[0].span.kind), (1, CLIENT));
    assert_eq!(runs[0].text("jarvis.continuation"), "exact");
    assert_eq!(one(all, "write end").parent(), third.id());
}

#[tokio::test]
async fn two_killed_writers_their_successor_and_the_socket_are_one_trace_at_a_real_collector() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "30"]));
    let collector = Collector::start().await;
    let grpc = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.grpc.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ];
    let over_http = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.http.as_str()),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ];
    let first = replica(&redis, &ollama, &grpc).await;
    let others =
        [replica(&redis, &ollama, &grpc).await, replica(&redis, &ollama, &over_http).await];
    let session = Uuid::new_v4().to_string();
    let header = traceparent(true);
    let path = format!("/ws?session_id={session}");
    let opened = Socket::open_with(&first, &path, &[("traceparent", &header)]).await;
    let (mut socket, ..) = opened.expect("a socket");
    let message = format!("[[tokens=200]] {WORD}");
    socket.say(&json!({"message": message, "temperature": 0})).await;
    for _ in 0..5 {
        socket.until("stream_chunk").await;
    }
    let before = collector.spans.until("the wait", |all| {
        ["WS chat", "accept turn", "wait in queue"]
            .iter()
            .all(|name| all.iter().any(|span| span.name() == *name))
    });
    let before = before.await;
    first.kill();
    let mut successor = 0;
    let is_taken_over = eventually(LIMIT, async || {
        for (number, other) in others.iter().enumerate() {
            if metrics(other).await.contains("\njarvis_turns_open 1\n") {
                successor = number;
                return true;
            }
        }
        false
    });
    assert!(is_taken_over.await, "no replica takes the turn over");
    // The second writer has begun, and what it has said of that is at the collector.
    let waits = |all: &[Received]| {
        let claims = all.iter().filter(|span| span.name() == "claim turn").count();
        let waits = all.iter().filter(|span| span.name() == "wait in queue").count();
        let lost = all.iter().any(|span| span.name() == "answer turn");
        claims == 1 && waits == 2 && lost
    };
    collector.spans.until("the first successor", waits).await;
    others[successor].kill();
    let third = &others[1 - successor];
    let messages = history_until(third, &session, |messages| {
        messages.last().is_some_and(|last| last["status"] == "complete")
    });
    let answer = messages.await.last().expect("an answer")["content"].clone();
    let expected = ollama_sim::script_answer("tinyllama:latest", &message, None, 64);
    assert_eq!(answer, expected.as_str(), "nothing is lost by two deaths");
    collector.spans.named("write end").await;
    let all = collector.spans.until("the last successor", |all| {
        all.iter().filter(|span| span.name() == "take over turn").count() == 2
    });
    let all: Vec<_> = all.await.into_iter().filter(|span| span.trace() == TRACE).collect();

    let request = one(&all, "WS chat");
    assert_eq!((request.parent(), request.span.kind), (CLIENT_SPAN.to_owned(), SERVER));
    let accept = one(&all, "accept turn");
    assert_eq!(accept.parent(), request.id());
    // Nobody but the successor can end the span of a killed writer.
    let lost = one(&all, "answer turn");
    assert_eq!((lost.parent(), lost.text("error.type")), (request.id(), "replica_gone".to_owned()));
    let wait_of_lost = one(&before, "wait in queue");
    assert_eq!(wait_of_lost.parent(), lost.id());
    each_successor_continues_the_writer_before_it(&all, request, lost);

    // Each span has its parent in the trace, or the client's.
    let ids: BTreeSet<_> = all.iter().map(Received::id).collect();
    for span in &all {
        let parent = span.parent();
        assert!(ids.contains(&parent) || parent == CLIENT_SPAN, "{span:#?}");
    }
    let processes: BTreeSet<_> =
        all.iter().map(|span| span.resource["service.instance.id"].clone()).collect();
    assert_eq!(processes.len(), 3, "{processes:?}");
    let answer = answer.as_str().expect("a text");
    let beginning: String = answer.chars().take(12).collect();
    for span in &all {
        let texts = texts(span);
        assert!(!texts.contains(WORD) && !texts.contains(&beginning), "{texts}");
        assert!(!texts.contains(&session), "{texts}");
    }
}

/// Passes connections on to a server, and keeps what clients send.
async fn relay(to: &Process) -> (String, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (sent, kept) = (Arc::<Mutex<String>>::default(), to.url.replacen("http://", "", 1));
    let all = Arc::clone(&sent);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (all, server) = (Arc::clone(&all), TcpStream::connect(&kept).await);
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.expect("a server").into_split();
                tokio::spawn(
                    async move { tokio::io::copy(&mut from_server, &mut to_client).await },
                );
                let mut bytes = vec![0; 64 << 10];
                while let Ok(read @ 1..) = from_client.read(&mut bytes).await {
                    *all.lock().expect("no panic") += &String::from_utf8_lossy(&bytes[..read]);
                    if to_server.write_all(&bytes[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, sent)
}

#[tokio::test]
async fn a_turn_over_rest_has_six_spans_with_the_conventions_names_and_a_log_that_names_the_trace()
{
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let (host, sent) = relay(&ollama).await;
    let spans = Spans::serve().await;
    let settings = [
        ("JARVIS_LOG", "info,fred=off"),
        ("JARVIS_LOG_FORMAT", "json"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret-header"),
        ("OTEL_SERVICE_NAME", "chat"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team=a%20b"),
    ];
    let (replica, log) = logged(&redis.url(), &host, &[&settings[..], &to(&spans.url)].concat());
    until_ok(&replica, "/health/ready").await;
    let body = json!({"message": format!("[[tokens=300]] {WORD}"), "temperature": 0.5, "seed": 7});
    let chat = http().post(format!("{}/api/v1/chat", replica.url)).json(&body);
    let reply = chat.header("traceparent", traceparent(true)).send().await.expect("a reply");
    assert_eq!(reply.status(), 200);
    let reply: Value = reply.json().await.expect("JSON");
    spans.named("POST /api/v1/chat").await;
    let all = spans.until("all", |all| all.len() >= 6).await;
    let names: BTreeSet<_> = all.iter().map(|span| (span.name(), span.parent())).collect();
    let [request, turn] = ["POST /api/v1/chat", "answer turn"].map(|name| one(&all, name));
    let expected = [
        ("POST /api/v1/chat", CLIENT_SPAN.to_owned()),
        ("accept turn", request.id()),
        ("answer turn", request.id()),
        ("wait in queue", turn.id()),
        (RUN, turn.id()),
        ("write end", turn.id()),
    ];
    assert_eq!((all.len(), names), (6, expected.into_iter().collect()), "one span per step");
    for span in &all {
        assert_eq!(span.trace(), TRACE);
        assert_eq!((&*span.resource["service.name"], &*span.resource["team"]), ("chat", "a b"));
        assert!(!texts(span).contains(WORD), "{span:#?}");
    }
    let run = one(&all, RUN);
    let address = host.replacen("http://", "", 1);
    let (address, port) = address.split_once(':').expect("a port");
    let usage = &reply["usage"];
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "ollama"),
        ("gen_ai.request.model", "tinyllama:latest"),
        ("gen_ai.request.temperature", "0.5"),
        ("gen_ai.request.seed", "7"),
        ("gen_ai.response.finish_reasons", "stop"),
        ("gen_ai.usage.input_tokens", &usage["prompt_tokens"].to_string()),
        ("gen_ai.usage.output_tokens", &usage["completion_tokens"].to_string()),
        ("server.address", address),
        ("server.port", port),
        ("gen_ai.input.messages", ""),
        ("gen_ai.output.messages", ""),
    ] {
        assert_eq!(run.text(key), value, "{key}");
    }
    assert_eq!(run.events(), ["first token"]);
    assert_eq!(request.text("http.response.status_code"), "200");
    assert_eq!(request.text("http.route"), "/api/v1/chat");
    assert_eq!(turn.text("jarvis.turn.outcome"), "complete");
    let at_host = format!("traceparent: 00-{TRACE}-{}-01", run.id());
    assert!(sent.lock().expect("no panic").contains(&at_host), "{at_host}");
    assert!(spans.headers.lock().expect("no panic").contains("Bearer s3cret-header"));

    let log = std::fs::read_to_string(log).expect("a log");
    assert!(!log.contains("s3cret-header"), "{log}");
    let ended = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ended: Vec<_> = ended
        .filter(|line| matches!(line["message"].as_str(), Some("turn ended" | "request handled")))
        .map(|line| line["spans"][0]["trace"].clone())
        .collect();
    assert_eq!(ended, [TRACE, TRACE], "{log}");
}

#[tokio::test]
async fn each_turn_of_a_socket_is_a_trace_of_its_own_unless_the_handshake_named_one() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let spans = Spans::serve().await;
    let replica = replica(&redis, &ollama, &to(&spans.url)).await;
    let (mut socket, _) = Socket::open(&replica, "/ws").await;
    for _ in 0..2 {
        socket.say(&json!({"message": "[[tokens=3]] hello"})).await;
        socket.until("stream_end").await;
    }
    let of = |all: &[Received], name: &str| -> Vec<String> {
        all.iter().filter(|span| span.name() == name).map(Received::trace).collect()
    };
    let all = spans.until("two ends", |all| of(all, "write end").len() == 2).await;
    let traces: BTreeSet<_> = of(&all, "WS chat").into_iter().collect();
    assert_eq!(traces.len(), 2);
    assert_eq!(of(&all, "write end").into_iter().collect::<BTreeSet<_>>(), traces);
    assert!(!traces.contains(&of(&all, "GET /ws")[0]), "the handshake is no parent");

    let header = traceparent(true);
    let opened = Socket::open_with(&replica, "/ws", &[("traceparent", &header)]).await;
    let (mut socket, ..) = opened.expect("a socket");
    for _ in 0..2 {
        socket.say(&json!({"message": "[[tokens=3]] hello"})).await;
        socket.until("stream_end").await;
    }
    let all = spans.until("four ends", |all| of(all, "write end").len() == 4).await;
    let named = all.iter().filter(|span| span.trace() == TRACE && span.name() == "WS chat");
    assert!(named.clone().all(|span| span.parent() == CLIENT_SPAN));
    assert_eq!(named.count(), 2);
}

#[tokio::test]
async fn a_clients_flag_forces_a_few_traces_a_second_and_its_trace_is_logged_in_any_case() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let spans = Spans::serve().await;
    let settings = [
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
        ("JARVIS_CLIENT_TRACES", "2"),
        ("JARVIS_LOG", "info,fred=off"),
        ("JARVIS_LOG_FORMAT", "json"),
    ];
    let (replica, log) =
        logged(&redis.url(), &ollama.url, &[&settings[..], &to(&spans.url)].concat());
    until_ok(&replica, "/health/ready").await;
    let url = format!("{}/api/v1/models", replica.url);
    let began = Instant::now();
    for number in 0..40_u128 {
        let flag = number % 2;
        let header = format!("00-{:032x}-{CLIENT_SPAN}-{flag:02x}", 2 * number + flag + 2);
        let request = http().get(&url).header("traceparent", header);
        assert_eq!(request.send().await.expect("a reply").status(), 200);
    }
    // No client's flag, so this one is never sampled.
    assert_eq!(
        post(&replica, "/api/v1/chat", &json!({"message": "[[tokens=1]]"})).await.status,
        200
    );
    let windows = began.elapsed().as_secs() + 2;
    assert!(replica.end(LIMIT), "the end flushes what is left");
    let all = spans.all();
    let forced = all.len() as u64;
    assert!((1..=2 * windows).contains(&forced) && forced < 20, "{forced} in {windows} windows");
    for span in &all {
        assert_eq!(span.name(), "GET /api/v1/models");
        assert!(
            span.trace().ends_with(['1', '3', '5', '7', '9', 'b', 'd', 'f']),
            "{}",
            span.trace()
        );
    }
    let log = std::fs::read_to_string(log).expect("a log");
    for number in 0..40_u128 {
        let trace = format!("\"trace\":\"{:032x}\"", 2 * number + number % 2 + 2);
        assert!(log.contains(&trace), "{trace}");
    }
    let of_turn = log.lines().find(|line| line.contains("turn ended")).expect("a turn");
    assert!(!of_turn.contains("\"trace\""), "{of_turn}");
}

#[tokio::test]
async fn a_warning_of_a_turn_names_the_trace_whatever_the_level_of_the_log() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let settings = [("JARVIS_LOG", "warn,fred=off"), ("JARVIS_LOG_FORMAT", "json")];
    let (replica, log) = logged(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let body = json!({"message": "[[tokens=20 fault=cut@5]] hello"});
    let chat = http().post(format!("{}/api/v1/chat", replica.url)).json(&body);
    let reply = chat.header("traceparent", traceparent(true)).send().await.expect("a reply");
    assert_eq!(reply.status(), 200);
    let log = std::fs::read_to_string(log).expect("a log");
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let retry =
        lines.into_iter().find(|line| line["message"] == "model host failed; turn continues");
    assert_eq!(retry.expect("a warning")["spans"][0]["trace"], TRACE, "{log}");
}

#[tokio::test]
async fn the_last_spans_are_sent_when_the_process_ends() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let collector = Collector::start().await;
    for (url, protocol) in [(&collector.grpc, "grpc"), (&collector.http, "http/protobuf")] {
        let settings = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_BSP_SCHEDULE_DELAY", "60000"),
            ("OTEL_SERVICE_NAME", protocol),
        ];
        let replica = replica(&redis, &ollama, &settings).await;
        let body = json!({"message": "[[tokens=1]]"});
        assert_eq!(post(&replica, "/api/v1/chat", &body).await.status, 200);
        assert!(replica.end(LIMIT), "{protocol}");
        let arrived = collector.spans.until(protocol, |all| {
            all.iter().filter(|span| span.resource["service.name"] == protocol).count() >= 6
        });
        arrived.await;
    }
}

#[tokio::test]
async fn a_collector_that_is_away_costs_one_warning_a_minute_and_no_turn() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    for (url, protocol) in [
        ("http://127.0.0.1:1", "grpc"),
        ("https://127.0.0.1:1", "grpc"),
        ("http://127.0.0.1:1", "http/protobuf"),
    ] {
        let settings = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "50"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
        ];
        let (replica, log) = logged(&redis.url(), &ollama.url, &[&settings[..], &to(url)].concat());
        until_ok(&replica, "/health/ready").await;
        let warnings = || {
            let log = std::fs::read_to_string(&log).expect("a log");
            log.lines().filter(|line| line.contains("spans not exported")).count()
        };
        let turn = async || {
            let body = json!({"message": "[[tokens=1]]"});
            assert_eq!(post(&replica, "/api/v1/chat", &body).await.status, 200);
        };
        let warned = eventually(LIMIT, async || {
            turn().await;
            warnings() > 0
        });
        assert!(warned.await, "{protocol}");
        // Many more batches fail meanwhile.
        for _ in 0..20 {
            turn().await;
        }
        assert_eq!(warnings(), 1, "{protocol}");
    }
}

#[tokio::test]
async fn spans_have_the_beginning_of_question_and_answer_only_where_that_is_switched_on() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let spans = Spans::serve().await;
    let settings = [&[("JARVIS_TRACE_CONTENT", "true")][..], &to(&spans.url)].concat();
    let replica = replica(&redis, &ollama, &settings).await;
    let message = format!("[[tokens=3]] {WORD} {}", "word ".repeat(3000));
    let reply = post(&replica, "/api/v1/chat", &json!({"message": message})).await;
    let answer = reply.body["response"].as_str().expect("an answer").to_owned();
    let run = spans.named(RUN).await;
    let [input, output] =
        ["gen_ai.input.messages", "gen_ai.output.messages"].map(|key| run.text(key));
    assert!(input.contains(WORD) && (4000..4400).contains(&input.len()), "{}", input.len());
    let output: Value = serde_json::from_str(&output).expect("JSON");
    assert_eq!(output[0]["parts"][0]["content"], answer);
}

#[tokio::test]
async fn headers_from_a_file_reach_the_collector_over_http_and_no_log_line() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "0"]));
    let spans = Spans::serve().await;
    let folder = testkit::folder::Folder::temporary().expect("a folder");
    let file = folder.path().join("headers");
    std::fs::write(&file, "authorization=Bearer%20s3cret-100%2525\n").expect("a file");
    let file = file.to_str().expect("a path");
    let settings = [("JARVIS_LOG", "trace"), ("OTEL_EXPORTER_OTLP_HEADERS_FILE", file)];
    let (replica, log) =
        logged(&redis.url(), &ollama.url, &[&settings[..], &to(&spans.url)].concat());
    until_ok(&replica, "/health/ready").await;
    let reply = post(&replica, "/api/v1/chat", &json!({"message": "[[tokens=3]] hi"})).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    spans.named("POST /api/v1/chat").await;
    let headers = spans.headers.lock().expect("no panic").clone();
    assert!(headers.contains("Bearer s3cret-100%25"), "{headers}");
    let log = std::fs::read_to_string(log).expect("a log");
    assert!(!log.contains("s3cret-100"), "a log line has the header");
}

#[test]
fn a_wrong_standard_variable_ends_the_start_with_its_name_and_status_64() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://ann:s3cret@host"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "s3cret"),
        ("OTEL_EXPORTER_OTLP_HEADERS_FILE", "/nothing"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_jarvis"))
            .arg("serve")
            .env(name, value)
            .output()
            .expect("jarvis");
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{name}: {printed}");
        assert!(printed.contains(name) && !printed.contains("s3cret"), "{printed}");
    }
}
