//! A short chaos: what `make chaos` does for minutes, so that a break is noticed by every `make test`.
#![allow(missing_docs, reason = "tests")]

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

const LOADGEN: &str = env!("CARGO_BIN_EXE_loadgen");

/// Runs `loadgen` with a seed from the clock, which the output of the test names.
fn loadgen(arguments: &[&str]) {
    let binaries = testkit::binaries::all().unwrap_or_else(|error| panic!("{error:#}"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    let seed = now.as_millis() % 1_000_000;
    println!("seed {seed}: loadgen {} --seed {seed}", arguments.join(" "));
    let output = Command::new(LOADGEN)
        .args(arguments)
        .args(["--seed", &seed.to_string(), "--binaries"])
        .arg(binaries)
        .args(["--sessions", "30", "--turn-limit", "60", "--max-tokens", "120"])
        .output()
        .expect("loadgen");
    let log = String::from_utf8_lossy(&output.stderr);
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "seed {seed}\n{log}\n{report}");
    println!("{report}");
}

#[test]
fn no_character_is_lost_or_doubled_while_replicas_hosts_and_sentinels_are_broken() {
    loadgen(&["chaos", "--seconds", "60", "--redis", "sentinel"]);
}

#[test]
fn no_character_is_lost_or_doubled_while_replicas_hosts_and_a_cluster_are_broken() {
    loadgen(&["chaos", "--seconds", "45", "--redis", "cluster"]);
}

#[test]
fn no_client_notices_that_every_replica_is_replaced() {
    loadgen(&["roll", "--rounds", "1", "--redis", "single"]);
}
