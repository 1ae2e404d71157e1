//! Short attacks beside honest sessions: what `make attack` does for minutes.
#![allow(missing_docs, reason = "tests")]

mod support;

/// Runs these attacks for two seconds each.
fn attack(attacks: &str) {
    const LIMITS: &str = "--seconds 2 --pause 1 --per-minute 3000 --connections 150 --sessions 20 \
        --seed 1 --think 0.5 --min-tokens 20 --max-tokens 40";
    let limits = LIMITS.split_whitespace();
    support::run(&["attack", "--attacks", attacks].into_iter().chain(limits).collect::<Vec<_>>());
}

#[test]
fn honest_sessions_notice_no_flood_of_refused_requests_of_new_sessions_and_of_waiting_turns() {
    attack("refused,sessions,queue");
}

#[test]
fn honest_sessions_notice_no_slow_connections_over_http_1_and_http_2() {
    attack("slow-http1,slow-http2");
}

#[test]
fn honest_sessions_notice_no_garbage_and_no_address_that_opens_sockets_in_a_loop() {
    attack("garbage,garbage-sockets,sockets");
}

#[test]
fn honest_sessions_notice_no_floods_at_once_and_no_connections_and_queue_at_once() {
    attack("floods");
    attack("everything");
}
