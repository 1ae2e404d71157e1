//! How long the calls of functions take Redis.

use std::collections::BTreeMap;

use super::redis::RedisServer;

/// The tries of a measurement, at most. Other work of the machine counts, too, and the median of them
/// is the cost of a call.
const TRIES: usize = 9;
/// The milliseconds that one call may take on a machine that counts in Lua as fast as [`COUNT_MS`] says.
const MOST: f64 = 5.0;
/// A count in Lua, by which the speed of the machine at the moment is known, and the milliseconds that it takes
/// on a machine for which the bound holds as it is.
const COUNT: &str = "local sum = 0 for i = 1, 1000000 do sum = sum + i end return 1";
const COUNT_MS: f64 = 10.0;
/// How many times slower a machine may be, at most, before a call counts as too long.
const SLOWEST: f64 = 2.0;

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
    timed(redis, 2, |line| line.starts_with("jarvis_"))
}

/// Returns those commands of the log of Redis, oldest first, with their milliseconds, that have such a line so
/// many lines behind the time. The fields of an entry: its number, when it was, microseconds, and the words of
/// the command.
fn timed(redis: &RedisServer, behind: usize, is_such: impl Fn(&str) -> bool) -> Vec<(String, f64)> {
    let log = redis.cli(&["SLOWLOG", "GET", "-1"]);
    let lines: Vec<&str> = log.lines().collect();
    let mut calls = Vec::new();
    for (at, word) in lines.iter().enumerate().filter(|(_, line)| is_such(line)) {
        let micros = at.checked_sub(behind).and_then(|at| lines[at].parse::<f64>().ok());
        calls.push(((*word).to_owned(), micros.expect("a time") / 1000.0));
    }
    calls.reverse();
    calls
}

/// Returns the longest call of each function.
pub fn longest(calls: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let mut longest: BTreeMap<String, f64> = BTreeMap::new();
    for (function, time) in calls {
        let known = longest.entry(function).or_default();
        *known = known.max(time);
    }
    longest.into_iter().collect()
}

/// The speed of the machine: the same call takes twice as long where others use the processor of the machine
/// below this one.
pub struct Machine(RedisServer);

impl Machine {
    /// Starts a Redis that counts, and nothing else.
    pub fn start() -> Self {
        Self(RedisServer::start())
    }

    /// Returns how many times slower than [`COUNT_MS`] says the machine is now, at least 1.
    pub fn slowness(&self) -> f64 {
        begin_timing(&self.0);
        for _ in 0..5 {
            self.0.cli(&["EVAL", COUNT, "0"]);
        }
        let counts = timed(&self.0, 1, |line| line == "EVAL");
        assert_eq!(counts.len(), 5, "{counts:?}");
        // The slower ones say what else the machine did, which would loosen the bound.
        let fastest = counts.iter().map(|(_, time)| *time).min_by(f64::total_cmp);
        (fastest.expect("five counts") / COUNT_MS).clamp(1.0, SLOWEST)
    }
}

/// Measures the same calls several times, until most tries say the same of each, and asserts that the
/// median of none is five milliseconds, at the speed that the machine has in each try. Returns the medians.
pub async fn takes_moments(
    what: &str,
    mut measure: impl AsyncFnMut() -> Vec<(String, f64)>,
) -> Vec<(String, f64)> {
    let mut tries: Vec<Vec<(String, f64)>> = Vec::new();
    let machine = Machine::start();
    let mut slowness = machine.slowness();
    loop {
        let mut calls = measure().await;
        let after = machine.slowness();
        for (_, time) in &mut calls {
            *time /= f64::midpoint(slowness, after);
        }
        slowness = after;
        tries.push(calls);
        let names = |calls: &[(String, f64)]| {
            calls.iter().map(|(function, _)| function.clone()).collect::<Vec<_>>()
        };
        let functions = names(&tries[0]);
        assert_eq!(names(tries.last().expect("a try")), functions, "{what}: the same calls");
        let fast = |at: usize| tries.iter().filter(|calls| calls[at].1 < MOST).count();
        let counts: Vec<usize> = (0..functions.len()).map(fast).collect();
        let is_fast = counts.iter().all(|fast| *fast > TRIES / 2);
        let is_slow = counts.iter().any(|fast| tries.len() - fast > TRIES / 2);
        if !is_fast && !is_slow && tries.len() < TRIES {
            continue;
        }
        let median = |at: usize| {
            let mut times: Vec<f64> = tries.iter().map(|calls| calls[at].1).collect();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let medians: Vec<_> =
            functions.into_iter().enumerate().map(|(at, name)| (name, median(at))).collect();
        println!("{what}: median milliseconds at most {:.2?}", longest(medians.clone()));
        assert!(
            is_fast,
            "{what}: {MOST} ms at most, but in {} tries {:.2?}",
            tries.len(),
            medians.iter().filter(|(_, time)| *time >= MOST).collect::<Vec<_>>()
        );
        return medians;
    }
}
