//! Every metric of the service: its name, its kind, and its description.

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// Declares a constant for the name of each metric, and the function that describes them all, so
/// that no metric can be recorded by its constant without a description.
macro_rules! metrics {
    ($($(#[doc = $text:literal])+ $kind:ident $constant:ident = $name:literal;)*) => {
        $($(#[doc = $text])+ pub const $constant: &str = $name;)*

        /// Describes every metric to the recorder.
        pub(super) fn describe() {
            $(metrics!(@ $kind, $name, concat!($($text),+).trim());)*
        }

        /// The name of every metric.
        #[cfg(test)]
        const NAMES: &[&str] = &[$($name),*];
    };
    (@ counter, $name:literal, $text:expr) => { describe_counter!($name, $text) };
    (@ gauge, $name:literal, $text:expr) => { describe_gauge!($name, $text) };
    (@ histogram, $name:literal, $text:expr) => { describe_histogram!($name, $text) };
}

metrics! {
    /// Requests by method, route and status.
    counter HTTP_REQUESTS_TOTAL = "jarvis_http_requests_total";
    /// Time from a request to the head of its response.
    histogram HTTP_REQUEST_SECONDS = "jarvis_http_request_seconds";
    /// Open WebSockets.
    gauge WEBSOCKETS = "jarvis_websockets";
    /// Messages of WebSocket clients by type.
    counter WEBSOCKET_MESSAGES_TOTAL = "jarvis_websocket_messages_total";
    /// Connections closed because their clients did not read in time.
    counter SLOW_READERS_TOTAL = "jarvis_slow_readers_total";
    /// Ended turns by outcome.
    counter TURNS_TOTAL = "jarvis_turns_total";
    /// Turns of this replica that run or wait.
    gauge TURNS_OPEN = "jarvis_turns_open";
    /// Turns that wait for a slot, of all replicas.
    gauge QUEUE_DEPTH = "jarvis_queue_depth";
    /// Turns that run or wait, of all replicas, for each slot of all hosts.
    gauge TURNS_PER_SLOT = "jarvis_turns_per_slot";
    /// Caught panics, by the part of the service that they ended.
    counter PANICS_TOTAL = "jarvis_panics_total";
    /// How long turns waited for their slot.
    histogram QUEUE_WAIT_SECONDS = "jarvis_queue_wait_seconds";
    /// Generations on a host, of all replicas.
    gauge SLOTS_USED = "jarvis_slots_used";
    /// Generations that a host may have at a time.
    gauge SLOTS_TOTAL = "jarvis_slots_total";
    /// Generations on a host beyond its slots.
    gauge SLOTS_OVER = "jarvis_slots_over";
    /// Generations that continued after their replica was reported gone.
    counter STREAMS_BEYOND_LEASE_TOTAL = "jarvis_streams_beyond_lease_total";
    /// Time from acceptance to the end of a turn.
    histogram TURN_SECONDS = "jarvis_turn_seconds";
    /// Time from the start of a turn to its first token.
    histogram TIME_TO_FIRST_TOKEN_SECONDS = "jarvis_time_to_first_token_seconds";
    /// State of a host's breaker: 0 closed, 0.5 half open, 1 open.
    gauge BREAKER_OPEN = "jarvis_breaker_open";
    /// State of the breaker of a model that has failed on a host: 0 closed, 0.5 half open, 1 open.
    gauge MODEL_BREAKER_OPEN = "jarvis_model_breaker_open";
    /// Tokens by kind, as model hosts count them.
    counter TOKENS_TOTAL = "jarvis_tokens_total";
    /// Failed Redis commands by kind.
    counter REDIS_ERRORS_TOTAL = "jarvis_redis_errors_total";
    /// Continuations of answers after they broke off: how (exact, approximate, restarted), and why
    /// (the code of a model host's error, or replica_gone).
    counter CONTINUATIONS_TOTAL = "jarvis_continuations_total";
    /// Turns that this replica took over, by how it was noticed that their replica is gone.
    counter TAKEOVERS_TOTAL = "jarvis_takeovers_total";
    /// Replicas that were taken for gone and were alive.
    counter WRONG_SUSPICIONS_TOTAL = "jarvis_wrong_suspicions_total";
    /// Idle anonymous sessions that were removed, because all anonymous ones took too much.
    counter SESSIONS_EVICTED_TOTAL = "jarvis_sessions_evicted_total";
    /// Requests, messages and turns that were refused, by the limit that refused them.
    counter LIMIT_REFUSALS_TOTAL = "jarvis_limit_refusals_total";
    /// Writes that no Redis replica confirmed in time.
    counter REDIS_UNACKNOWLEDGED_TOTAL = "jarvis_redis_unacknowledged_total";
    /// Copies of turns and redo entries for another replica by outcome: sent, unheard (that replica
    /// was not subscribed), dropped (too large, or too many waited).
    counter REDO_COPIES_TOTAL = "jarvis_redo_copies_total";
    /// Copies for another replica that are not sent yet.
    gauge REDO_COPIES_WAITING = "jarvis_redo_copies_waiting";
    /// Redis clients that were replaced because they hung.
    counter REDIS_CLIENTS_REPLACED_TOTAL = "jarvis_redis_clients_replaced_total";
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn metrics_have_the_suffixes_that_prometheus_recommends_and_no_name_twice() {
        let mut names = NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMES.len());
        for name in NAMES {
            let stem = name.strip_prefix("jarvis_").expect("the prefix of the service");
            let is_word = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            assert!(stem.bytes().all(is_word), "{name}");
        }
    }

    #[test]
    fn no_metric_is_recorded_by_a_name_that_is_not_in_the_table() {
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        let mut recorded = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).expect("a source file");
                for kind in ["counter!(", "gauge!(", "histogram!("] {
                    for (at, _) in text.match_indices(&format!("metrics::{kind}")) {
                        let argument = text[at..].split_once('(').expect("an argument").1;
                        assert!(
                            argument.trim_start().starts_with("metric::"),
                            "{}",
                            path.display()
                        );
                        recorded += 1;
                    }
                }
            }
        }
        assert!(recorded >= NAMES.len(), "{recorded} places record {} metrics", NAMES.len());
    }
}
