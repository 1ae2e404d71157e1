//! Every stable error code that a client may receive. `docs/PROTOCOL.md` lists the same.

/// One stable error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode {
    /// The code, in `snake_case`.
    pub name: &'static str,
    /// The HTTP status over REST; 0 where the code reaches only sockets and event streams.
    pub status: u16,
    /// The meaning, for `docs/PROTOCOL.md`.
    pub meaning: &'static str,
}

const fn code(name: &'static str, status: u16, meaning: &'static str) -> ErrorCode {
    ErrorCode { name, status, meaning }
}

/// All codes, in the order of their names.
pub const CODES: &[ErrorCode] = &[
    code(
        "abandoned",
        503,
        "the turn waited while nobody listened, and the queue was over half full",
    ),
    code("already_ended", 409, "the generation has ended, so there is nothing to cancel"),
    code(
        "answer_restarted",
        409,
        "the answer started again behind the event that the client has: stream it from its beginning",
    ),
    code("binary_message", 0, "a binary frame: send text"),
    code(
        "body_timeout",
        408,
        "the body did not arrive within 30 s, or that of an import at less than 16 KiB a second",
    ),
    code(
        "body_too_large",
        413,
        "the body is larger than 512 KiB, than 2 MiB for a request of OpenAI's or Ollama's API (of either, 6 MiB more where a turn may bring images), or than 64 MiB for an import",
    ),
    code("body_unreadable", 400, "the body broke off"),
    code("context_too_long", 413, "the question does not fit the model's context window"),
    code(
        "conversation_not_found",
        404,
        "the caller has no such conversation, or it is no longer kept",
    ),
    code("draining", 503, "this replica is being replaced: send the request again"),
    code("encoding_not_supported", 415, "the body is compressed: send it as it is"),
    code("format_unsupported", 422, "the model hosts cannot follow the JSON schema: send another"),
    code(
        "generation_not_found",
        404,
        "the session has no such generation, or its answer is no longer kept",
    ),
    code(
        "handshake_key_invalid",
        400,
        "the Sec-WebSocket-Key of a handshake is not 16 bytes in base64",
    ),
    code("handshake_with_body", 400, "a WebSocket handshake has no body: send none"),
    code("host_not_allowed", 403, "the Host header is not in the list of allowed hosts"),
    code("idempotency_key_reused", 422, "the key was used for another request"),
    code("image_lost", 502, "an image of the message is no longer stored: send the message again"),
    code("image_not_found", 404, "the session has no such image"),
    code("import_invalid", 422, "a line of the import is not valid; `errors` names it"),
    code("internal", 500, "a fault of the service"),
    code("issuer_unavailable", 503, "the keys of the token's issuer cannot be read"),
    code("json_invalid", 422, "the body is not JSON; the text names the position"),
    code("message_not_found", 404, "the session has no such message"),
    code("method_not_allowed", 405, "the path does not have this method"),
    code("model_not_found", 404, "no model host has the model; the text lists the models"),
    code("model_too_large", 422, "the model does not fit in the host's memory: choose another"),
    code("model_unavailable", 503, "the model fails again and again on its hosts"),
    code("model_unsupported", 422, "the model does not support the request: choose another"),
    code("models_read_only", 403, "the path would change the models of the hosts for everybody"),
    code("no_model_host", 503, "no model host can be reached"),
    code("not_an_object", 0, "the message is not a JSON object"),
    code("not_found", 404, "there is nothing at this path"),
    code("origin_not_allowed", 403, "the page's origin is not in the list of allowed origins"),
    code(
        "queue_full",
        503,
        "the queue has its largest number of waiting turns, or their texts take as much memory as they may ([HARDENING.md](HARDENING.md#memory-of-what-waits))",
    ),
    code("queue_timeout", 503, "the turn waited in the queue for the longest time allowed"),
    code(
        "quota_exceeded",
        429,
        "the caller has used its tokens or sessions of a day: retry later; or as much is stored for it as there may be: delete sessions",
    ),
    code("rate_limited", 429, "the caller or its address has used its limit: retry later"),
    code("repetition", 502, "the model only repeated itself"),
    code(
        "reply_too_large",
        413,
        "the vectors of the texts would be more than a reply may have: send fewer texts",
    ),
    code("response_not_found", 404, "the caller has no such response, or it is no longer kept"),
    code("session_busy", 409, "8 turns wait in this session"),
    code("session_exists", 409, "a turn that brings its own conversation needs a new session"),
    code(
        "session_full",
        409,
        "the session holds its largest number of bytes, messages or branches: clear it, or begin another",
    ),
    code("session_not_found", 404, "the caller has no such session"),
    code("sign_in_required", 401, "the service requires a token, and the request has none"),
    code("store_full", 503, "Redis has no memory left"),
    code("store_unavailable", 503, "Redis does not answer, or takes no writes"),
    code("task_died", 503, "an essential task of this replica ended"),
    code("timeout", 504, "the answer took too long for this request; it stays in the session"),
    code("token_ambiguous", 401, "the request has more than one token"),
    code("token_expired", 401, "the token has expired: sign in again"),
    code("token_invalid", 401, "the token is not valid, or has been revoked"),
    code("token_of_another", 0, "the token is of another user than the socket"),
    code(
        "too_many_connections",
        503,
        "the replica has its largest number of open sockets and streams, or holds as many bytes of unfinished requests and unread replies as it may",
    ),
    code(
        "too_many_requests",
        0,
        "16 requests, or 1 MiB of them, wait on this socket, or too many bytes of requests on all sockets, or on those of this address",
    ),
    code(
        "too_many_siblings",
        409,
        "the message has 50 alternatives, which is the most: continue with one of them",
    ),
    code(
        "too_many_values",
        422,
        "the fields of the request that are read hold more than 131,072 values, of which an object counts as eight, or the request has more than 1,024 fields: send fewer",
    ),
    code(
        "tool_call_invalid",
        502,
        "the model called a tool that is `strict` with arguments that do not obey its schema",
    ),
    code(
        "turn_running",
        409,
        "a turn of the session runs or waits, or the answer is still being written: wait for its end",
    ),
    code("unknown_type", 0, "there is no such `type` of message"),
    code("upstream_busy", 503, "the model host reports that it is full"),
    code("upstream_error", 502, "the model host replied with something unexpected"),
    code("upstream_interrupted", 502, "the answer broke off and could not be continued"),
    code("upstream_timeout", 504, "the model host took too long"),
    code("validation_failed", 422, "a field is invalid; `errors` names it"),
    code("websocket_expected", 426, "the path speaks WebSocket"),
];

/// Returns whether a code is listed. Clients would not know any other.
pub fn is_listed(name: &str) -> bool {
    CODES.iter().any(|code| code.name == name)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::telemetry::metric::{FAILURES, REFUSALS};

    #[test]
    fn every_code_that_is_a_label_of_a_metric_is_one_that_clients_may_get() {
        for code in FAILURES.iter().chain(REFUSALS) {
            assert!(is_listed(code), "{code}");
        }
    }

    #[test]
    fn the_codes_of_the_protocol_page_are_those_of_the_code() {
        let page = include_str!("../../docs/PROTOCOL.md");
        let mut table = String::from("| Code | Status | Meaning |\n| --- | --- | --- |\n");
        for ErrorCode { name, status, meaning } in CODES {
            let status = if *status == 0 { "–".to_owned() } else { status.to_string() };
            writeln!(table, "| `{name}` | {status} | {meaning} |").expect("a text");
        }
        assert!(page.contains(&table), "docs/PROTOCOL.md is to hold this table:\n{table}");
        assert!(CODES.is_sorted_by_key(|code| code.name));
    }
}
