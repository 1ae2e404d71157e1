//! A short chaos: what `make chaos` does for minutes, so that a break is noticed by every `make test`.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

/// Runs `loadgen` with a seed from the clock, which the output of the test names.
fn loadgen(arguments: &[&str]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    let seed = (now.as_millis() % 1_000_000).to_string();
    println!("seed {seed}: loadgen {} --seed {seed}", arguments.join(" "));
    let own = ["--seed", &seed, "--sessions", "30", "--turn-limit", "60", "--max-tokens", "120"];
    support::run(&[arguments, &own].concat());
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
