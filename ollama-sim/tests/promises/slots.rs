//! Requests that run, wait and leave.

use ollama_sim::Config;
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use crate::support::{ask, plain, with, world};

fn narrow(slots: usize, queue: usize) -> Config {
    Config { slots, queue, ..Config::default() }
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot() {
    let world = world(narrow(1, 1)).await;
    let mut socket = world.socket("/api/chat", &ask("[[tokens=100000 rate=50]]")).await;
    let mut some = [0; 64];
    socket.read_exact(&mut some).await.expect("has begun");
    assert_eq!(world.sim.stats().running, 1);
    drop(socket);
    let stats = world.stats_when("free", |s| s.running == 0).await;
    assert_eq!(stats.client_gone, 1);
    assert!(stats.tokens < 1_000);
    world.chat(&ask("next")).await;
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_never_runs() {
    let world = world(narrow(1, 5)).await;
    let running = world.socket("/api/chat", &ask("[[fault=hang]]")).await;
    world.stats_when("running", |s| s.running == 1).await;
    let waiting = world.socket("/api/chat", &ask("waits")).await;
    world.stats_when("queued", |s| s.queued == 1).await;
    drop(waiting);
    world.stats_when("left", |s| s.queued == 0).await;
    drop(running);
    let stats = world.stats_when("free", |s| s.running == 0).await;
    assert_eq!((stats.started, stats.client_gone), (1, 2));
}

#[tokio::test]
async fn beyond_the_queue_the_server_is_busy() {
    let world = world(narrow(1, 1)).await;
    let _running = world.socket("/api/chat", &ask("[[fault=hang]]")).await;
    world.stats_when("running", |s| s.running == 1).await;
    let _waiting = world.socket("/api/chat", &ask("waits")).await;
    world.stats_when("queued", |s| s.queued == 1).await;
    let (status, error) = world.refused("/api/chat", &ask("too many")).await;
    assert_eq!(status, 503);
    let wanted = "server busy, please try again.  maximum pending requests exceeded";
    assert_eq!(error, wanted);
    assert_eq!(world.sim.stats().refused, 1);
}

#[tokio::test]
async fn never_more_run_than_there_are_slots() {
    let world = world(narrow(3, 100)).await;
    let requests = (0..30).map(|n| {
        let request = ask(&format!("{n} [[tokens=20 rate=2000]]"));
        let world = &world;
        async move { world.chat(&request).await }
    });
    futures_util::future::join_all(requests).await;
    let stats = world.sim.stats();
    assert_eq!(stats.peak_running, 3);
    assert_eq!((stats.started, stats.completed), (30, 30));
    assert_eq!((stats.running, stats.queued), (0, 0));
    assert_eq!(stats.tokens, 600);
}

#[tokio::test]
async fn a_client_that_pauses_does_not_stop_the_generation() {
    let world = plain().await;
    // The answer is larger than the sockets' buffers: a server that waited for the reader would not
    // end.
    let mut socket = world.socket("/api/chat", &ask("[[tokens=200000]]")).await;
    let stats = world.stats_when("completed", |s| s.completed == 1).await;
    assert_eq!(stats.tokens, 200_000);
    assert_eq!(stats.running, 0);
    let mut tail = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while !tail.ends_with(b"0\r\n\r\n") {
        let read = socket.read(&mut buffer).await.expect("open");
        assert!(read > 0, "whole");
        tail.extend_from_slice(&buffer[..read]);
        let keep = tail.len().saturating_sub(2_000);
        tail.drain(..keep);
    }
    assert!(String::from_utf8_lossy(&tail).contains("\"done_reason\":\"stop\""));
}

#[tokio::test]
async fn a_client_that_has_read_the_last_line_finds_the_slot_free() {
    let world = world(narrow(1, 0)).await;
    for n in 0..50 {
        world.chat(&ask(&format!("{n}"))).await;
    }
    assert_eq!(world.sim.stats().refused, 0);
}

#[tokio::test]
async fn another_context_is_a_reload() {
    let world = plain().await;
    for num_ctx in [4096, 4096, 2048, 2048, 4096] {
        let options = json!({"options": {"num_ctx": num_ctx}});
        world.chat(&with(ask("ctx"), &options)).await;
    }
    assert_eq!(world.sim.stats().reloads, 2);
}

#[tokio::test]
async fn the_journal_keeps_requests_as_they_came() {
    let world = plain().await;
    let request = with(ask("keep me"), &json!({"options": {"seed": 3}, "unknown": [1]}));
    world.chat(&request).await;
    let journal = world.get("/sim/requests").await;
    let kept = &journal["requests"][0];
    assert_eq!(kept["request"], request);
    assert_eq!(kept["path"], "/api/chat");
    assert_eq!(kept["messages"], request["messages"]);
    assert_eq!(kept["outcome"], "completed: stop");
    assert_eq!(kept["tokens"], 64);
    let url = format!("{}/sim/requests", world.sim.url());
    world.client.delete(url).send().await.expect("deleted");
    assert_eq!(world.get("/sim/requests").await, json!({"requests": []}));
}

#[tokio::test]
async fn a_stopped_server_drops_its_streams_and_frees_its_port() {
    let world = plain().await;
    let address = world.sim.address();
    let mut socket = world.socket("/api/chat", &ask("[[tokens=100000 rate=50]]")).await;
    let mut some = [0; 64];
    socket.read_exact(&mut some).await.expect("has begun");
    world.sim.stop().await;
    let mut rest = Vec::new();
    // A close and a reset are both an end.
    let _ = socket.read_to_end(&mut rest).await;
    assert!(!rest.ends_with(b"0\r\n\r\n"));
    let again = Config { listen: address, ..Config::default() };
    world_again(again).await;
}

async fn world_again(config: Config) {
    world(config).await.chat(&ask("back")).await;
}
