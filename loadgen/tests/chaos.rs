//! A short chaos: what `make chaos` does for minutes, so that a break is noticed by every `make test`.
#![allow(missing_docs, reason = "tests")]

use std::process::Command;

const LOADGEN: &str = env!("CARGO_BIN_EXE_loadgen");

/// Runs `loadgen`; what it says names the seed and the folder of the logs.
fn loadgen(arguments: &[&str]) {
    let binaries = testkit::binaries::all().unwrap_or_else(|error| panic!("{error:#}"));
    let output = Command::new(LOADGEN)
        .args(arguments)
        .arg("--binaries")
        .arg(binaries)
        .args(["--sessions", "30", "--turn-limit", "60", "--max-tokens", "120"])
        .output()
        .expect("loadgen");
    let said = String::from_utf8_lossy(&output.stderr);
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{report}");
    println!("{report}");
}

#[test]
fn nothing_is_lost_or_doubled_while_replicas_hosts_and_redis_are_broken() {
    loadgen(&["chaos", "--seconds", "60", "--seed", "4", "--redis", "sentinel"]);
}

#[test]
fn nobody_notices_that_every_replica_is_replaced() {
    loadgen(&["roll", "--rounds", "1", "--redis", "single"]);
}
