//! How long the calls of functions take Redis.

use super::redis::RedisServer;

/// Begins to time every call.
pub fn begin_timing(redis: &RedisServer) {
    begin_timing_from(redis, 0);
}

/// Begins to time every call that takes so many microseconds. The commands that a function calls are
/// logged, too, and would displace other calls where a test makes hundreds of thousands of them: nearly
/// all are faster than any function.
pub fn begin_timing_from(redis: &RedisServer, micros: u32) {
    redis.cli(&["CONFIG", "SET", "slowlog-max-len", "100000"]);
    redis.cli(&["CONFIG", "SET", "slowlog-log-slower-than", &micros.to_string()]);
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
