//! The cost of an idle socket.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use support::client::{Socket, until_ok};
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;

const WARM_UP: usize = 200;
const LARGEST_RUN: usize = 10_000;
const SMALLEST_RUN: usize = 500;
const HANDSHAKES_AT_ONCE: usize = 64;
/// The time in which sockets are opened, on a machine that is too busy for all of them.
const OPENING: Duration = Duration::from_secs(40);
const BUDGET_KIB: f64 = 5.0;
/// The share of the memory that closed sockets give back.
const GIVEN_BACK: f64 = 0.7;

/// As many sockets as the limit of descriptors lets this process open.
fn run_size() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let soft = line.split_whitespace().nth(3).and_then(|limit| limit.parse().ok());
    soft.unwrap_or(1024usize).saturating_sub(WARM_UP + 200).min(LARGEST_RUN)
}

async fn open(replica: &Process, count: usize) -> Vec<Socket> {
    futures_util::stream::iter(0..count)
        .map(|_| async { Socket::open(replica, "/ws").await.0 })
        .buffer_unordered(HANDSHAKES_AT_ONCE)
        .take_until(tokio::time::sleep(OPENING))
        .collect()
        .await
}

/// Returns the settings of the allocator in the image.
fn settings_of_the_image() -> Vec<(&'static str, &'static str)> {
    let settings: Vec<_> = include_str!("../Dockerfile")
        .lines()
        .map(|line| line.trim_start_matches("ENV ").trim().trim_end_matches(" \\"))
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.starts_with("MIMALLOC_"))
        .collect();
    assert!(!settings.is_empty(), "the image sets nothing");
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_socket_costs_at_most_5_kib_resident_and_gives_most_of_it_back() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&[]);
    // On a busy machine Redis replies late, which is not the subject of this test.
    // The log is that of the default, whose spans must cost an idle socket nothing.
    let mut settings =
        vec![("JARVIS_REDIS_TIMEOUT_MS", "10000"), ("JARVIS_LOG", "info,fred=error")];
    settings.extend(settings_of_the_image());
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let warm = open(&replica, WARM_UP).await;
    let before = replica.resident_kib().expect("a figure");
    let started = Instant::now();
    let sockets = open(&replica, run_size()).await;
    let count = sockets.len();
    assert!(count >= SMALLEST_RUN.min(run_size()), "only {count} sockets in {OPENING:?}");
    let handshakes = count as f64 / started.elapsed().as_secs_f64();
    let each = || (replica.resident_kib().expect("a figure") - before) / count as f64;
    // The memory of the last handshakes is freed a moment later.
    let fits = testkit::eventually(LIMIT, async || each() <= BUDGET_KIB).await;
    println!("{count} idle sockets: {:.2} KiB each, {handshakes:.0} handshakes/s", each());
    assert!(fits, "{:.2} KiB each", each());
    let full = replica.resident_kib().expect("a figure");
    drop(sockets);
    let given_back = || (full - replica.resident_kib().expect("a figure")) / (full - before);
    let enough = testkit::eventually(LIMIT, async || given_back() >= GIVEN_BACK).await;
    println!("given back: {:.0} %", given_back() * 100.0);
    assert!(enough, "only {:.0} % given back", given_back() * 100.0);
    drop(warm);
}
