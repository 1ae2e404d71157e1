//! The life of a process: its phases, and how it ends when a task that it needs dies.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::ffi::OsString;
use std::time::{Duration, Instant};

use jarvis::Server;
use jarvis::config::{Cli, Command};
use jarvis::lifecycle::{Lifecycle, Phase};
use jarvis::telemetry::LogFilter;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use support::client::{http, server_sent};
use support::process::{LIMIT, Process, ollama_sim};
use support::redis::RedisServer;
use testkit::eventually;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The seconds that running turns have once the process drains.
const DRAIN: &str = "10";
const QUESTION: &str = "[[tokens=60]] what now?";

/// A server in this process, whose lifecycle the test can reach.
struct Life {
    url: String,
    lifecycle: Lifecycle,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Life {
    fn start(redis_url_file: &str, ollama: &Process) -> Self {
        let (listen, ollama) = (["--listen", "127.0.0.1:0"], ["--ollama-urls", &ollama.url]);
        let (redis, drain) = (["--redis-url-file", redis_url_file], ["--drain-timeout", DRAIN]);
        let arguments = [["jarvis", "serve"], listen, redis, ollama, drain];
        let arguments: Vec<_> = arguments.as_flattened().iter().map(OsString::from).collect();
        let cli = Cli::from_arguments(&arguments).expect("arguments");
        let Command::Serve(settings) = cli.command else { panic!("another command") };
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let server = Server::bind(&settings, metrics, LogFilter::of_silence()).expect("a server");
        let url = format!("http://{}", server.address());
        let lifecycle = server.lifecycle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(server.serve(async { drop(stopped.await) }));
        Self { url, lifecycle, stop: Some(stop), served: running }
    }

    async fn ready(&self) -> (u16, Value) {
        let reply = http().get(format!("{}/health/ready", self.url)).send().await.expect("a reply");
        (reply.status().as_u16(), reply.json().await.expect("JSON"))
    }

    async fn until_ready(&self) {
        assert!(eventually(LIMIT, async || self.ready().await.0 == 200).await, "never ready");
    }
}

#[tokio::test]
async fn an_essential_task_that_panics_makes_the_process_unready_drain_and_end_with_its_name() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "40"]));
    let life = Life::start(&redis.url_file(), &ollama);
    life.until_ready().await;
    let chat = json!({"message": QUESTION, "stream": true});
    let mut turn =
        http().post(format!("{}/api/v1/chat", life.url)).json(&chat).send().await.expect("a turn");
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("stream_chunk") {
        text.extend(turn.chunk().await.expect("a piece").expect("no end yet"));
    }
    let died = Instant::now();
    let task = life.lifecycle.spawn("poisoned", async { panic!("on purpose") });
    task.await.expect("the panic is caught");
    let (status, problem) = life.ready().await;
    assert_eq!((status, &problem["code"]), (503, &json!("task_died")));
    assert!(problem["detail"].as_str().expect("a text").contains("\"poisoned\""), "{problem}");
    let draining = life.lifecycle.reached(Phase::Draining);
    tokio::time::timeout(LIMIT, draining).await.expect("it drains");
    // Running turns may end.
    while let Some(bytes) = turn.chunk().await.expect("a clean end") {
        text.extend(bytes);
    }
    let (events, _) = server_sent(&String::from_utf8_lossy(&text));
    let end = events.last().expect("an end");
    let expected = ollama_sim::script_answer("tinyllama:latest", QUESTION, None, 1000);
    assert_eq!((&end["type"], &end["full_response"]), (&json!("stream_end"), &json!(expected)));
    let served = life.served.await.expect("no panic");
    let error = served.expect_err("a failure").to_string();
    assert!(error.contains("\"poisoned\"") && error.contains("on purpose"), "{error}");
    assert_eq!(life.lifecycle.phase(), Phase::Stopped);
    assert!(died.elapsed() < Duration::from_secs(10 + 5), "{:?}", died.elapsed());
}

#[tokio::test]
async fn a_process_starts_serves_drains_and_stops_in_this_order() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&[]));
    redis.kill();
    let mut life = Life::start(&redis.url_file(), &ollama);
    let stop = life.stop.take().expect("not stopped yet");
    let mut observed = life.lifecycle.subscribe();
    let mut phases = vec![*observed.borrow_and_update()];
    assert_eq!(life.ready().await.0, 503);
    assert_eq!(life.lifecycle.phase(), Phase::Starting, "there is no Redis yet");
    redis.restart();
    let observing = async {
        while *phases.last().expect("one") != Phase::Stopped {
            observed.changed().await.expect("the life goes on");
            phases.push(*observed.borrow_and_update());
        }
    };
    let ending = async {
        let (life, stop) = (&life, stop);
        life.lifecycle.reached(Phase::Serving).await;
        life.until_ready().await;
        stop.send(()).expect("it serves");
    };
    let both = async { tokio::join!(observing, ending) };
    tokio::time::timeout(LIMIT, both).await.expect("the phases in time");
    life.served.await.expect("no panic").expect("a clean end");
    assert_eq!(phases[0], Phase::Starting);
    assert!(phases.is_sorted() && phases.contains(&Phase::Serving), "{phases:?}");
}
