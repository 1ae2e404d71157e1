//! How long the calls of functions take Redis.

use super::redis::RedisServer;

/// Begins to time every call.
pub fn begin_timing(redis: &RedisServer) {
    redis.cli(&["CONFIG", "SET", "slowlog-max-len", "100000"]);
    redis.cli(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    redis.cli(&["SLOWLOG", "RESET"]);
}

/// Returns every call of a function since the log of Redis was emptied, oldest first, with its
/// milliseconds.
pub fn timed_calls(redis: &RedisServer) -> Vec<(String, f64)> {
    let log = redis.cli(&["SLOWLOG", "GET", "-1"]);
    let lines: Vec<&str> = log.lines().collect();
    let mut calls = Vec::new();
    // The fields of an entry: its number, the time, microseconds, FCALL, the function.
    for (at, function) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("jarvis_")) {
        let micros = at.checked_sub(2).and_then(|at| lines[at].parse::<f64>().ok());
        calls.push(((*function).to_owned(), micros.expect("a time") / 1000.0));
    }
    calls.reverse();
    calls
}
