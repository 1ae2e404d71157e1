//! Every metric of the service: its name, its kind, its labels, its buckets and its description.
//! `docs/METRICS.md` lists them for operators.

use metrics::{Label as MetricLabel, describe_counter, describe_gauge, describe_histogram};

/// A metric.
#[derive(Debug)]
pub struct Metric {
    /// The name, as Prometheus knows it.
    pub name: &'static str,
    /// The kind.
    pub kind: MetricKind,
    /// The description, one sentence or more.
    pub help: &'static str,
    /// The labels.
    pub labels: &'static [Label],
}

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricKind {
    /// A sum that only grows while the process lives.
    Counter,
    /// A value that rises and falls.
    Gauge,
    /// A distribution in buckets with these upper bounds.
    Histogram(&'static [f64]),
}

/// A label of a metric.
#[derive(Debug)]
pub struct Label {
    /// The name.
    pub name: &'static str,
    /// All values, where the code knows them. Otherwise the values are bounded by what the operator
    /// sets up: routes, hosts, models.
    pub values: &'static [&'static str],
}

/// Buckets of the time that a request takes, in seconds.
const REQUEST: MetricKind = MetricKind::Histogram(&[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
]);
/// Buckets of the time that a user waits for the first token, in seconds: a queue takes minutes.
const FIRST_TOKEN: MetricKind = MetricKind::Histogram(&[
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0,
]);
/// Buckets of the time between two tokens, in seconds: 200 tokens a second, and hosts that stall.
const TOKEN: MetricKind = MetricKind::Histogram(&[
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
]);
/// Buckets of the time that an answer takes, in seconds.
const ANSWER: MetricKind = MetricKind::Histogram(&[
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
]);
/// Buckets of the time that a call of Redis takes, in seconds.
const CALL: MetricKind = MetricKind::Histogram(&[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
]);
/// Buckets of tokens, as the GenAI conventions have them, up to the largest context window.
const TOKENS: MetricKind = MetricKind::Histogram(&[
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0,
]);
/// Buckets of the bytes of one write, which has at most 64 KiB.
const BYTES: MetricKind =
    MetricKind::Histogram(&[4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0]);
/// The kind of a metric that only grows.
const COUNTER: MetricKind = MetricKind::Counter;
/// The kind of a metric that rises and falls.
const GAUGE: MetricKind = MetricKind::Gauge;

/// The codes of a model host's errors.
const HOST_ERRORS: &[&str] = &[
    "context_too_long",
    "format_unsupported",
    "invalid_setting",
    "model_not_found",
    "model_too_large",
    "model_unavailable",
    "model_unsupported",
    "no_model_host",
    "repetition",
    "upstream_busy",
    "upstream_error",
    "upstream_interrupted",
    "upstream_timeout",
];
/// The codes with which a turn fails.
pub const FAILURES: &[&str] = &[
    "abandoned",
    "context_too_long",
    "format_unsupported",
    "internal",
    "model_not_found",
    "model_too_large",
    "model_unavailable",
    "model_unsupported",
    "no_model_host",
    "queue_full",
    "queue_timeout",
    "repetition",
    "store_unavailable",
    "tool_call_invalid",
    "upstream_busy",
    "upstream_error",
    "upstream_interrupted",
    "upstream_timeout",
];
/// The codes with which a turn is refused before it is accepted.
pub const REFUSALS: &[&str] = &[
    "context_too_long",
    "draining",
    "idempotency_key_reused",
    "internal",
    "message_not_found",
    "model_not_found",
    "no_model_host",
    "queue_full",
    "quota_exceeded",
    "rate_limited",
    "session_busy",
    "session_exists",
    "session_full",
    "session_not_found",
    "store_full",
    "store_unavailable",
    "too_many_siblings",
    "turn_running",
    "upstream_error",
    "validation_failed",
];
/// The codes with which a WebSocket is closed: those of RFC 6455, 1005 for a close without a code,
/// 1006 for a lost connection, and `other` for those that clients choose.
pub const CLOSE_CODES: &[&str] = &[
    "1000", "1001", "1002", "1003", "1005", "1006", "1007", "1008", "1009", "1010", "1011", "1012",
    "1013", "1014", "other",
];

/// Declares a constant for the name of each metric, and the table of all.
macro_rules! metrics {
    ($(
        $(#[doc = $text:literal])+
        $kind:ident $constant:ident = $name:literal
        $([$($label:ident $(: $values:expr)?),+])?;
    )*) => {
        $($(#[doc = $text])+ pub const $constant: &str = $name;)*

        /// Every metric.
        pub const ALL: &[Metric] = &[$(Metric {
            name: $name,
            kind: $kind,
            help: concat!($($text),+).trim_ascii(),
            labels: &[$($(Label {
                name: stringify!($label),
                values: metrics!(@ $($values)?),
            }),+)?],
        }),*];
    };
    (@) => { &[] };
    (@ $values:expr) => { $values };
}

metrics! {
    /// Handled requests; `route` is the template of the path, or none.
    COUNTER HTTP_REQUESTS_TOTAL = "jarvis_http_requests_total" [method, route, status];
    /// Time from a request to the head of its response.
    REQUEST HTTP_REQUEST_SECONDS = "jarvis_http_request_seconds" [method, route];
    /// Open WebSockets.
    GAUGE WEBSOCKETS = "jarvis_websockets";
    /// Opened WebSockets.
    COUNTER WEBSOCKETS_OPENED_TOTAL = "jarvis_websockets_opened_total";
    /// Closed WebSockets, by close code: 1005 is a close without a code, 1006 a lost connection.
    COUNTER WEBSOCKETS_CLOSED_TOTAL = "jarvis_websockets_closed_total" [code: CLOSE_CODES];
    /// Messages of WebSocket clients, by type.
    COUNTER WEBSOCKET_MESSAGES_TOTAL = "jarvis_websocket_messages_total"
        [type: &["auth", "bad", "branch", "cancel", "chat", "clear_history", "edit", "get_history", "ping", "regenerate"]];
    /// Open event streams (server-sent events).
    GAUGE EVENT_STREAMS = "jarvis_event_streams";
    /// Bytes of memory that the texts of turns and of requests for embeddings take, of those beyond 64 KiB.
    GAUGE HELD_TEXT_BYTES = "jarvis_held_text_bytes";
    /// Clients that came back with a cursor, by what they got: every event since (recovered), a
    /// snapshot instead of events that are no longer kept (snapshot), or nothing, as they had all of
    /// the generation (complete).
    COUNTER RESUMES_TOTAL = "jarvis_resumes_total"
        [protocol: &["sse", "websocket"], result: &["recovered", "snapshot", "complete"]];
    /// Connections closed because their clients did not read in time.
    COUNTER SLOW_READERS_TOTAL = "jarvis_slow_readers_total" [protocol: &["http", "websocket"]];
    /// Ended turns, by outcome.
    COUNTER TURNS_TOTAL = "jarvis_turns_total" [outcome: &["cancelled", "complete", "failed"]];
    /// Failed turns, by the code that their clients got.
    COUNTER TURN_FAILURES_TOTAL = "jarvis_turn_failures_total" [code: FAILURES];
    /// Turns that were refused before they were accepted, by the code that their clients got.
    COUNTER TURNS_REFUSED_TOTAL = "jarvis_turns_refused_total" [code: REFUSALS];
    /// Turns of this replica that run or wait.
    GAUGE TURNS_OPEN = "jarvis_turns_open";
    /// Turns that wait for a slot, of all replicas.
    GAUGE QUEUE_DEPTH = "jarvis_queue_depth";
    /// Time that turns waited for their slot.
    FIRST_TOKEN QUEUE_WAIT_SECONDS = "jarvis_queue_wait_seconds";
    /// Turns that run or wait, of all replicas, for each slot of all hosts.
    GAUGE TURNS_PER_SLOT = "jarvis_turns_per_slot";
    /// Generations on a host, of all replicas.
    GAUGE SLOTS_USED = "jarvis_slots_used" [host];
    /// Generations that a host may have at a time.
    GAUGE SLOTS = "jarvis_slots" [host];
    /// Generations on a host beyond its slots.
    GAUGE SLOTS_OVER = "jarvis_slots_over" [host];
    /// Slots that a host seems not to use: it runs fewer requests at a time than it has slots.
    GAUGE HOST_SLOTS_UNUSED = "jarvis_host_slots_unused" [host];
    /// State of a host's breaker: 0 closed, 0.5 half open, 1 open.
    GAUGE BREAKER_OPEN = "jarvis_breaker_open" [host];
    /// State of the breaker of a model that has failed on a host: 0 closed, 0.5 half open, 1 open.
    GAUGE MODEL_BREAKER_OPEN = "jarvis_model_breaker_open" [host, model];
    /// Time from the acceptance of a turn on this replica to its first token, the queue included.
    FIRST_TOKEN GEN_AI_SERVER_TIME_TO_FIRST_TOKEN_SECONDS =
        "gen_ai_server_time_to_first_token_seconds"
        [gen_ai_operation_name, gen_ai_provider_name, gen_ai_request_model];
    /// Mean time of each further token of an answer.
    TOKEN GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN_SECONDS =
        "gen_ai_server_time_per_output_token_seconds"
        [gen_ai_operation_name, gen_ai_provider_name, gen_ai_request_model];
    /// Time from the acceptance of a turn on this replica to its end, the queue included; error_type
    /// is the code of a failure. Cancelled turns are left out.
    ANSWER GEN_AI_SERVER_REQUEST_DURATION_SECONDS = "gen_ai_server_request_duration_seconds"
        [gen_ai_operation_name, gen_ai_provider_name, gen_ai_request_model, error_type];
    /// Tokens of one complete answer, as its host counts them: of the prompt (input), and of the
    /// answer (output).
    TOKENS GEN_AI_CLIENT_TOKEN_USAGE = "gen_ai_client_token_usage"
        [gen_ai_operation_name, gen_ai_provider_name, gen_ai_request_model, gen_ai_token_type];
    /// Time from a request to a host to its first token.
    FIRST_TOKEN HOST_FIRST_TOKEN_SECONDS = "jarvis_host_first_token_seconds" [host];
    /// The longest time between two tokens of a run on a host.
    TOKEN LONGEST_TOKEN_GAP_SECONDS = "jarvis_longest_token_gap_seconds" [host];
    /// Tokens, as model hosts count them.
    COUNTER TOKENS_TOTAL = "jarvis_tokens_total" [kind: &["completion", "prompt"]];
    /// Attempts on a host that failed and after which the turn went on, by the code of the error.
    COUNTER RETRIES_TOTAL = "jarvis_retries_total" [code: HOST_ERRORS];
    /// Continuations of answers after they broke off: how, and why (the code of a host's error, or
    /// replica_gone).
    COUNTER CONTINUATIONS_TOTAL = "jarvis_continuations_total"
        [how: &["approximate", "exact", "restarted"], why];
    /// Turns that this replica took over, by how it was noticed that their replica is gone.
    COUNTER TAKEOVERS_TOTAL = "jarvis_takeovers_total"
        [reason: &["connection_lost", "lease_over", "reply_lost", "signed_off"]];
    /// Replicas that were taken for gone and were alive.
    COUNTER WRONG_SUSPICIONS_TOTAL = "jarvis_wrong_suspicions_total"
        [reason: &["connection_lost", "lease_over", "signed_off"]];
    /// Generations that continued after their replica was reported gone.
    COUNTER STREAMS_BEYOND_LEASE_TOTAL = "jarvis_streams_beyond_lease_total";
    /// Time of one append of text to an answer, which also publishes it.
    CALL APPEND_SECONDS = "jarvis_append_seconds";
    /// Bytes of text of one append: all that came while the one before it was under way.
    BYTES APPEND_BYTES = "jarvis_append_bytes";
    /// Time from an append to its delivery to the readers of the session on the writer's own replica,
    /// where one clock measures both.
    CALL HINT_LAG_SECONDS = "jarvis_hint_lag_seconds";
    /// Hints that did not follow on what their feed had, so that it read Redis.
    COUNTER FEED_HOLES_TOTAL = "jarvis_feed_holes_total";
    /// Feeds with a hole that have read what was missing.
    COUNTER FEED_HOLES_FILLED_TOTAL = "jarvis_feed_holes_filled_total";
    /// Titles that the model was to write, by outcome: written, busy (others needed the slot), failed (the
    /// host wrote none).
    COUNTER TITLES_TOTAL = "jarvis_titles_total" [outcome: &["busy", "failed", "given", "written"]];
    /// Requests, messages and turns that were refused, by the limit that refused them.
    COUNTER LIMIT_REFUSALS_TOTAL = "jarvis_limit_refusals_total" [limit: &[
        "address-connections", "address-requests", "address-sessions", "address-sockets", "address-turns", "key-requests",
        "key-turns", "user-requests", "user-sockets", "user-tokens", "user-turns"
    ]];
    /// Requests whose X-Forwarded-For was not believed, because no trusted proxy sent it.
    COUNTER UNTRUSTED_FORWARDS_TOTAL = "jarvis_untrusted_forwards_total";
    /// Idle anonymous sessions that were removed, because all anonymous ones took too much.
    COUNTER SESSIONS_EVICTED_TOTAL = "jarvis_sessions_evicted_total";
    /// Commands and calls of functions that Redis was sent, repeats included.
    COUNTER REDIS_COMMANDS_TOTAL = "jarvis_redis_commands_total" [command];
    /// Time of one command or call of a function.
    CALL REDIS_COMMAND_SECONDS = "jarvis_redis_command_seconds";
    /// Failed Redis commands, by kind.
    COUNTER REDIS_ERRORS_TOTAL = "jarvis_redis_errors_total"
        [kind: &["refused", "silent", "stale", "timeout", "unavailable"]];
    /// Connections to Redis that were made again after an error.
    COUNTER REDIS_RECONNECTS_TOTAL = "jarvis_redis_reconnects_total";
    /// Redis clients that were replaced because they hung.
    COUNTER REDIS_CLIENTS_REPLACED_TOTAL = "jarvis_redis_clients_replaced_total";
    /// Writes that no Redis replica confirmed in time.
    COUNTER REDIS_UNACKNOWLEDGED_TOTAL = "jarvis_redis_unacknowledged_total";
    /// Copies of turns and redo entries for another replica by outcome: sent, unheard (that replica
    /// was not subscribed), dropped (too large, or too many waited).
    COUNTER REDO_COPIES_TOTAL = "jarvis_redo_copies_total" [outcome: &["dropped", "sent", "unheard"]];
    /// Copies for another replica that are not sent yet.
    GAUGE REDO_COPIES_WAITING = "jarvis_redo_copies_waiting";
    /// Whether a turn could be accepted with Redis at the last probe: 1, or 0 where it is away,
    /// refuses what turns need, or is full.
    GAUGE REDIS_USABLE = "jarvis_redis_usable";
    /// Memory that Redis uses, of the primary that is fullest.
    GAUGE REDIS_MEMORY_USED_BYTES = "jarvis_redis_memory_used_bytes";
    /// Memory that the same primary may use; 0 where it has no limit.
    GAUGE REDIS_MEMORY_MAX_BYTES = "jarvis_redis_memory_max_bytes";
    /// Whether this replica is ready: 1, or 0 as /health/ready says why.
    GAUGE READY = "jarvis_ready";
    /// Caught panics, by the part of the service that they ended.
    COUNTER PANICS_TOTAL = "jarvis_panics_total"
        [part: &["catalogue", "connection", "feed", "request", "turn", "websocket"]];
    /// Always 1, with the release.
    GAUGE BUILD_INFO = "jarvis_build_info" [version, revision];
    /// Threads of the runtime.
    GAUGE RUNTIME_WORKERS = "jarvis_runtime_workers";
    /// Share of the last seconds in which the threads of the runtime were busy, of all together.
    GAUGE RUNTIME_BUSY_RATIO = "jarvis_runtime_busy_ratio";
    /// Tasks that live.
    GAUGE RUNTIME_TASKS = "jarvis_runtime_tasks";
    /// Tasks that wait for a thread in the shared queue of the runtime.
    GAUGE RUNTIME_QUEUE_DEPTH = "jarvis_runtime_queue_depth";
}

/// Describes every metric to the recorder, and creates each counter whose labels are known, so that
/// its rate is right from its first event on.
pub(super) fn describe() {
    for metric in ALL {
        match metric.kind {
            MetricKind::Counter => describe_counter!(metric.name, metric.help),
            MetricKind::Gauge => describe_gauge!(metric.name, metric.help),
            MetricKind::Histogram(_) => describe_histogram!(metric.name, metric.help),
        }
        if metric.kind == MetricKind::Counter {
            for labels in known(metric.labels) {
                metrics::counter!(metric.name, labels).increment(0);
            }
        }
    }
}

/// Returns every combination of the values of labels; none where a label's values are not known.
fn known(labels: &[Label]) -> Vec<Vec<MetricLabel>> {
    labels.iter().fold(vec![Vec::new()], |begun, label| {
        let of_label = |labels: &Vec<MetricLabel>| {
            let extended = |value: &&'static str| {
                let next = MetricLabel::from_static_parts(label.name, value);
                labels.iter().cloned().chain([next]).collect()
            };
            label.values.iter().map(extended).collect::<Vec<_>>()
        };
        begun.iter().flat_map(of_label).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn metrics_have_the_suffixes_that_prometheus_recommends_and_no_name_twice() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for Metric { name, kind, help, .. } in ALL {
            let is_word = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            assert!(name.bytes().all(is_word), "{name}");
            assert!(name.starts_with("jarvis_") || name.starts_with("gen_ai_"), "{name}");
            assert!(help.ends_with('.') && !help.contains("  "), "{name}: {help:?}");
            let is_total = name.ends_with("_total");
            assert_eq!(*kind == MetricKind::Counter, is_total, "{name}");
        }
    }

    #[test]
    fn a_counter_is_created_for_every_combination_of_its_known_labels_and_for_no_guess() {
        let of = |name: &str| {
            let metric = ALL.iter().find(|metric| metric.name == name).expect(name);
            known(metric.labels).len()
        };
        assert_eq!(of(SESSIONS_EVICTED_TOTAL), 1);
        assert_eq!(of(TURNS_TOTAL), 3);
        assert_eq!(of(RESUMES_TOTAL), 6);
        assert_eq!(of(HTTP_REQUESTS_TOTAL), 0);
        assert_eq!(of(CONTINUATIONS_TOTAL), 0);
    }

    #[test]
    fn no_metric_is_recorded_by_a_name_that_is_not_in_the_table() {
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        let mut recorded = BTreeSet::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                if path.ends_with("telemetry/metric.rs") {
                    continue;
                }
                let text = std::fs::read_to_string(&path).expect("a source file");
                for kind in ["counter!(", "gauge!(", "histogram!("] {
                    for (at, _) in text.match_indices(&format!("metrics::{kind}")) {
                        let argument = text[at..].split_once('(').expect("an argument").1;
                        let argument = argument.trim_start();
                        let constant = argument.strip_prefix("metric::");
                        let constant = constant.unwrap_or_else(|| panic!("{}", path.display()));
                        let end = constant.find([',', ')']).expect("the end of an argument");
                        recorded.insert(constant[..end].to_owned());
                    }
                }
            }
        }
        assert_eq!(
            recorded.len(),
            ALL.len(),
            "metrics of the table are not recorded: {recorded:?}"
        );
    }
}
