//! The OpenAI front, byte by byte, on real replicas.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::client::{Reply, get, http, post, send, until_ok, with};
use support::ended_streams::revoked_and_drained;
use support::fronts::{
    Waiting, a_client_that_leaves_stops_its_model, ada_was_asked, asked_with_one_key,
    embeddings_take_a_slot_and_count,
};
use support::host::{requests, stat};
use support::process::{Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::setup::{Setup, setup};
use support::tokens::{SECRET, token};

const COMPLETIONS: &str = "/v1/chat/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const MODEL: &str = "tinyllama:latest";

fn asked(question: &str) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": question}]})
}

/// A streamed response: its data lines, and everything else that it has.
struct Streamed {
    status: u16,
    headers: reqwest::header::HeaderMap,
    raw: String,
    data: Vec<Value>,
    done: bool,
}

async fn streamed(replica: &Process, request: &Value) -> Streamed {
    let request = with(request.clone(), "stream", json!(true));
    let response = http().post(format!("{}{COMPLETIONS}", replica.url)).json(&request).send();
    let response = response.await.expect("a response");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let raw = response.text().await.expect("a body");
    let lines = raw.lines().filter_map(|line| line.strip_prefix("data: "));
    let done = raw.trim_end().ends_with("data: [DONE]");
    let data = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    Streamed { status, headers, raw, data, done }
}

fn joined(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|it| it["choices"][0]["delta"]["content"].as_str()).collect()
}

fn envelope(reply: &Reply) -> (u16, &str, Option<&str>, &str) {
    let error = &reply.body["error"];
    assert!(error["message"].is_string(), "{}", reply.body);
    assert_eq!(reply.body.as_object().map(serde_json::Map::len), Some(1), "{}", reply.body);
    let kind = error["type"].as_str().expect("a type");
    (reply.status, kind, error["param"].as_str(), error["code"].as_str().expect("a code"))
}

#[tokio::test]
async fn a_completion_is_the_models_answer_with_its_usage() {
    let Setup { replica, ollama, redis: _redis } = setup("2000", &[]).await;
    let request = json!({"model": "TinyLlama", "messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "my name is Ada"},
        {"role": "assistant", "content": "hello Ada", "refusal": null},
        {"role": "user", "content": [{"type": "text", "text": "[[tokens=20]] what is"},
            {"type": "text", "text": "my name?"}]},
    ], "temperature": 0, "top_p": 0.5, "presence_penalty": 0.25, "frequency_penalty": -0.5,
        "seed": 7, "max_completion_tokens": 1000});
    let reply = post(&replica, COMPLETIONS, &request).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.body["object"], "chat.completion");
    assert_eq!(reply.body["model"], "TinyLlama");
    assert!(reply.body["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
    assert!(reply.body["created"].as_i64() > Some(1_700_000_000));
    let choice = &reply.body["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("stop")));
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(choice["message"]["content"].as_str().is_some_and(|text| !text.is_empty()));
    assert!(reply.headers.contains_key("x-request-id"));
    let (usage, names) = (&reply.body["usage"], ["prompt_tokens", "completion_tokens"]);
    let sent = ada_was_asked(&ollama, "[[tokens=20]] what is\nmy name?", usage, names).await;
    let options = &sent["options"];
    for (name, value) in [("top_p", 0.5), ("presence_penalty", 0.25), ("frequency_penalty", -0.5)] {
        assert_eq!(options[name].as_f64(), Some(value), "{name}: {options}");
    }
    assert_eq!(options["seed"], 7);
}

#[tokio::test]
async fn a_streamed_completion_has_data_lines_only_and_ends_with_usage_and_done() {
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("100", &[]).await;
    let request = with(asked("[[tokens=50]] tell me"), "temperature", json!(0));
    let whole = post(&replica, COMPLETIONS, &request).await.body;
    let options = json!({"include_usage": true});
    let stream = streamed(&replica, &with(request, "stream_options", options)).await;
    assert_eq!(stream.status, 200);
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    assert!(stream.raw.lines().all(|line| line.is_empty() || line.starts_with("data: ")));
    assert!(stream.done, "{}", stream.raw);
    let first = &stream.data[0]["choices"][0]["delta"];
    assert_eq!((&first["role"], &first["content"]), (&json!("assistant"), &json!("")));
    assert!(stream.data.len() > 10, "piece by piece");
    assert_eq!(
        joined(&stream.data),
        whole["choices"][0]["message"]["content"].as_str().expect("text")
    );
    let [.., last, usage] = &*stream.data else { panic!("{}", stream.raw) };
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"], whole["usage"]);
    let id = &stream.data[0]["id"];
    assert!(stream.data.iter().all(|chunk| chunk["id"] == *id && chunk["model"] == MODEL));
    assert!(stream.data[..stream.data.len() - 1].iter().all(|chunk| chunk["usage"].is_null()));
}

#[tokio::test]
async fn a_stop_text_and_a_limit_of_tokens_end_a_completion() {
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("2000", &[]).await;
    let request = with(asked("[[tokens=50]] tell me"), "temperature", json!(0));
    let cut =
        post(&replica, COMPLETIONS, &with(request.clone(), "max_tokens", json!(5))).await.body;
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert_eq!(cut["usage"]["completion_tokens"], 5);
    let whole = post(&replica, COMPLETIONS, &request).await.body;
    let whole = whole["choices"][0]["message"]["content"].as_str().expect("text").to_owned();
    let word = whole.split_whitespace().nth(3).expect("a word");
    let stopped = post(&replica, COMPLETIONS, &with(request, "stop", json!(word))).await.body;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let text = stopped["choices"][0]["message"]["content"].as_str().expect("text");
    assert_eq!(Some(text), whole.find(word).map(|at| &whole[..at]));
}

#[tokio::test]
async fn embeddings_are_those_of_a_host_as_numbers_or_in_base64() {
    let Setup { replica, ollama, redis: _redis } = setup("2000", &[]).await;
    let embed = async |request: Value| post(&replica, EMBEDDINGS, &request).await;
    for input in [json!("one"), json!(["one", "two"])] {
        let request = json!({"model": MODEL, "input": input, "dimensions": 4});
        let wanted = post(&ollama, "/api/embed", &request).await.body;
        let vectors = wanted["embeddings"].as_array().expect("vectors");
        let reply = embed(with(request.clone(), "user", json!("me"))).await;
        assert_eq!((reply.status, &reply.body["object"]), (200, &json!("list")), "{}", reply.body);
        assert_eq!(reply.body["model"], MODEL);
        let tokens = &wanted["prompt_eval_count"];
        let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
        assert_eq!(reply.body["usage"], usage);
        let coded = embed(with(request, "encoding_format", json!("base64"))).await.body;
        for (at, vector) in vectors.iter().enumerate() {
            let item = json!({"object": "embedding", "index": at, "embedding": vector});
            assert_eq!(reply.body["data"][at], item);
            let bytes = coded["data"][at]["embedding"].as_str().expect("a text");
            let bytes = STANDARD.decode(bytes).expect("base64");
            let numbers =
                bytes.chunks_exact(4).map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]]));
            let wanted: Vec<f32> = serde_json::from_value(vector.clone()).expect("numbers");
            assert_eq!(numbers.collect::<Vec<_>>(), wanted);
        }
        assert_eq!(reply.body["data"].as_array().map(Vec::len), Some(vectors.len()));
    }
    let invalid = "invalid_request_error";
    for (changed, value, wanted) in [
        ("model", json!("nope"), (404, invalid, Some("model"), "model_not_found")),
        ("input", json!([]), (400, invalid, Some("input"), "invalid_value")),
        ("input", json!([[1, 2]]), (400, invalid, Some("input"), "unsupported_value")),
        ("input", json!(["a", 7]), (400, invalid, Some("input"), "unsupported_value")),
        ("encoding_format", json!("hex"), (400, invalid, Some("encoding_format"), "invalid_value")),
        ("dimensions", json!(9), (400, invalid, Some("dimensions"), "invalid_value")),
        ("truncate", json!(true), (400, invalid, Some("truncate"), "unknown_parameter")),
    ] {
        let reply = embed(with(json!({"model": MODEL, "input": "x"}), changed, value)).await;
        assert_eq!(envelope(&reply), wanted, "{changed}");
    }
    // The host alone can count these.
    let long = embed(json!({"model": MODEL, "input": ["x", "long ".repeat(50_000)]})).await;
    assert_eq!(envelope(&long), (400, invalid, Some("input"), "context_length_exceeded"));
}

#[tokio::test]
async fn embeddings_of_openais_api_take_a_slot_count_as_a_turn_and_end_with_their_client() {
    let refused = embeddings_take_a_slot_and_count(EMBEDDINGS, 3).await;
    assert_eq!(envelope(&refused), (429, "requests", None, "rate_limit_exceeded"));
}

#[tokio::test]
async fn models_are_listed_and_found_however_they_are_spelled() {
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("2000", &[]).await;
    let list = get(&replica, "/v1/models").await;
    assert_eq!((list.status, &list.body["object"]), (200, &json!("list")));
    let data = list.body["data"].as_array().expect("models");
    let listed = data.iter().find(|model| model["id"] == MODEL).expect("the model");
    assert_eq!((&listed["object"], &listed["owned_by"]), (&json!("model"), &json!("library")));
    for spelling in [
        "tinyllama",
        "TinyLlama:latest",
        "library/tinyllama",
        "library%2Ftinyllama",
        "registry.ollama.ai/library/tinyllama:latest",
    ] {
        let found = get(&replica, &format!("/v1/models/{spelling}")).await;
        assert_eq!((found.status, &found.body), (200, listed), "{spelling}");
    }
    let missing = get(&replica, "/v1/models/nope").await;
    assert_eq!(
        envelope(&missing),
        (404, "invalid_request_error", Some("model"), "model_not_found")
    );
}

#[tokio::test]
async fn every_error_under_v1_wears_openais_envelope_and_no_other_does() {
    let settings = [("JARVIS_ALLOWED_HOSTS", "127.0.0.1")];
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("2000", &settings).await;
    let request = |path: &str| http().post(format!("{}{path}", replica.url));
    let invalid = "invalid_request_error";
    for (reply, wanted) in [
        (get(&replica, "/v1").await, (404, invalid, None, "not_found")),
        (post(&replica, "/v1/nothing", &json!({})).await, (404, invalid, None, "not_found")),
        (get(&replica, COMPLETIONS).await, (405, invalid, None, "method_not_allowed")),
        (send(request(COMPLETIONS).body("{")).await, (400, invalid, None, "json_invalid")),
        (send(request(COMPLETIONS).body("[]")).await, (400, invalid, None, "invalid_type")),
        (send(request(COMPLETIONS).body("")).await, (400, invalid, None, "json_invalid")),
        (
            send(request(COMPLETIONS).header("content-encoding", "gzip").body("x")).await,
            (415, invalid, None, "encoding_not_supported"),
        ),
        (
            send(request(COMPLETIONS).body(vec![b' '; (8 << 20) + 1])).await,
            (413, invalid, None, "body_too_large"),
        ),
        (
            send(request(COMPLETIONS).header("origin", "https://evil.example").body("{}")).await,
            (403, invalid, None, "origin_not_allowed"),
        ),
        (
            send(request(COMPLETIONS).header("host", "evil.example").body("{}")).await,
            (403, invalid, None, "host_not_allowed"),
        ),
        (
            post(&replica, COMPLETIONS, &json!({"model": MODEL})).await,
            (400, invalid, Some("messages"), "missing_required_parameter"),
        ),
        (
            post(&replica, COMPLETIONS, &with(asked("hi"), "n", json!(2))).await,
            (400, invalid, Some("n"), "unsupported_value"),
        ),
        (
            post(&replica, COMPLETIONS, &with(asked("hi"), "model", json!("nope"))).await,
            (404, invalid, Some("model"), "model_not_found"),
        ),
        (
            post(&replica, COMPLETIONS, &asked(&"long ".repeat(100_000))).await,
            (400, invalid, Some("messages"), "context_length_exceeded"),
        ),
        (
            send(request(COMPLETIONS).bearer_auth("a.b.c").json(&asked("hi"))).await,
            (401, invalid, None, "invalid_api_key"),
        ),
        (
            send(request(COMPLETIONS).bearer_auth("sk-jarvis-unknown").json(&asked("hi"))).await,
            (401, invalid, None, "invalid_api_key"),
        ),
    ] {
        assert_eq!(envelope(&reply), wanted);
        assert_eq!(reply.headers["content-type"], "application/json");
        assert!(reply.headers.contains_key("x-request-id"));
        assert_eq!(reply.headers["cache-control"], "no-store");
    }
    let native = get(&replica, "/api/v1/nothing").await;
    assert_eq!(native.headers["content-type"], "application/problem+json");
}

#[tokio::test]
async fn a_placeholder_key_is_no_key_where_sign_in_is_optional_and_refused_where_it_is_required() {
    let Setup { replica, ollama, redis } = setup("2000", &[("JARVIS_JWT_SECRET", SECRET)]).await;
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_AUTH", "required")];
    let required = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&required, "/health/ready").await;
    let ask = async |replica: &Process, key: &str| {
        let request = http().post(format!("{}{COMPLETIONS}", replica.url)).bearer_auth(key);
        send(request.json(&asked("hi"))).await.status
    };
    for placeholder in ["not-needed", "sk-proj-0123", "x", "a.b"] {
        assert_eq!(ask(&replica, placeholder).await, 200, "{placeholder}");
        assert_eq!(ask(&required, placeholder).await, 401, "{placeholder}");
    }
    for replica in [&replica, &required] {
        assert_eq!(ask(replica, &token("alice")).await, 200);
        assert_eq!(ask(replica, "a.b.c").await, 401);
        assert_eq!(ask(replica, "sk-jarvis-nothing").await, 401);
    }
    // Another front takes no placeholder.
    let native = http().get(format!("{}/api/v1/models", replica.url)).bearer_auth("not-needed");
    assert_eq!(send(native).await.status, 401);
}

#[tokio::test]
async fn limits_are_reported_in_openais_headers_and_refuse_with_its_error() {
    let settings = [
        ("JARVIS_JWT_SECRET", SECRET),
        ("JARVIS_USER_TURNS_PER_MINUTE", "2"),
        // One comes back in 10 s.
        ("JARVIS_USER_TOKENS_PER_DAY", "8640"),
    ];
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("2000", &settings).await;
    let ask = async || {
        let request =
            http().post(format!("{}{COMPLETIONS}", replica.url)).bearer_auth(token("alice"));
        send(request.json(&asked("hi"))).await
    };
    let first = ask().await;
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(first.headers["x-ratelimit-limit-requests"], "2");
    assert_eq!(first.headers["x-ratelimit-remaining-requests"], "1");
    assert_eq!(first.headers["x-ratelimit-reset-requests"], "30s");
    assert_eq!(first.headers["x-ratelimit-limit-tokens"], "8640");
    let second = ask().await;
    let of_tokens = |name: &str| {
        let value = second.headers[format!("x-ratelimit-{name}-tokens")].to_str();
        value.expect("a text").to_owned()
    };
    // What the first answer took is missing, and takes minutes to come back.
    let left: u64 = of_tokens("remaining").parse().expect("a number");
    assert!((8_000..8_640).contains(&left), "{left}");
    let reset = of_tokens("reset");
    assert!(reset.contains('m') && reset.ends_with('s'), "{reset}");
    let refused = ask().await;
    assert_eq!(envelope(&refused), (429, "requests", None, "rate_limit_exceeded"));
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(refused.headers["x-ratelimit-remaining-requests"], "0");
}

#[tokio::test]
async fn a_request_that_goes_away_stops_its_model_streamed_or_not() {
    a_client_that_leaves_stops_its_model(COMPLETIONS, &asked("[[tokens=1000]] go on")).await;
}

#[tokio::test]
async fn a_stream_that_waits_for_its_turn_has_its_first_byte_within_a_second_and_then_heartbeats() {
    let mut both = Waiting::begin(COMPLETIONS, asked).await;
    let chunk = both.stream.chunk().await.expect("a chunk").expect("bytes");
    assert!(both.asked_at.elapsed() < Duration::from_secs(1), "{:?}", both.asked_at.elapsed());
    assert!(String::from_utf8_lossy(&chunk).contains(r#""role":"assistant""#));
    let chunk = both.stream.chunk().await.expect("a chunk").expect("bytes");
    assert!(String::from_utf8_lossy(&chunk).contains(r#""delta":{}"#), "{chunk:?}");
    drop(both.running);
    let rest = both.stream.text().await.expect("the rest");
    assert!(rest.contains("[DONE]"), "{rest}");
}

#[tokio::test]
async fn a_stream_that_its_replica_or_its_revoked_key_ends_has_an_error_and_no_done() {
    let Setup { replica, ollama: _ollama, redis } = setup("20", &[]).await;
    let request = with(asked("[[tokens=1000]] go on"), "stream", json!(true));
    let ended = revoked_and_drained(&replica, &redis, COMPLETIONS, &request).await;
    let last = ended.map(|text| {
        let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).next_back();
        let last: Value = serde_json::from_str(data.expect("a line")).expect("JSON");
        let error = &last["error"];
        assert!(error["message"].is_string() && error["param"].is_null(), "{last}");
        ["type", "code"].map(|name| error[name].as_str().expect("a text").to_owned())
    });
    assert_eq!(last, [["invalid_request_error", "invalid_api_key"], ["server_error", "draining"]]);
}

#[tokio::test]
async fn an_idempotency_key_gives_the_same_completion_from_every_replica() {
    let [first, second, reused] = asked_with_one_key(COMPLETIONS, asked).await;
    for name in ["id", "choices", "usage"] {
        assert_eq!(first.body[name], second.body[name], "{name}");
    }
    assert_eq!(envelope(&reused).3, "idempotency_key_reused");
}

#[tokio::test]
async fn what_a_clients_key_names_is_kept_for_the_day_that_the_key_counts() {
    let Setup { replica, ollama: _ollama, redis } = setup("2000", &[]).await;
    let key = uuid::Uuid::new_v4().to_string();
    let request = http().post(format!("{}{COMPLETIONS}", replica.url));
    let reply = send(request.header("idempotency-key", &key).json(&asked("one"))).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let sessions = redis.cli(&["KEYS", "jarvis:{b*}:s:????????-????-????-????-????????????"]);
    let session = sessions.trim();
    assert_eq!(session.lines().count(), 1, "{sessions}");
    for key in [session.to_owned(), format!("{session}:path"), format!("{session}:messages")] {
        let seconds: i64 = redis.cli(&["TTL", &key]).trim().parse().expect("seconds");
        assert!(seconds > 86_000, "{key} {seconds}");
    }
}

#[tokio::test]
async fn a_schema_that_no_host_can_follow_is_refused_and_costs_others_nothing() {
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("2000", &[]).await;
    let schema = json!({"name": "x", "schema": {"type": "nonsense"}});
    let format = json!({"type": "json_schema", "json_schema": schema});
    let request = with(asked("one"), "response_format", format);
    for _ in 0..5 {
        let refused = post(&replica, COMPLETIONS, &request).await;
        let expected = (400, "invalid_request_error", Some("response_format"), "invalid_value");
        assert_eq!(envelope(&refused), expected, "{}", refused.body);
    }
    let honest = post(&replica, COMPLETIONS, &asked("two")).await;
    assert_eq!(honest.status, 200, "{}", honest.body);
}

#[tokio::test]
async fn the_name_of_a_call_is_bounded_and_counts_for_each_result_that_repeats_it() {
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("2000", &[]).await;
    let request = |id: &str, name: &str, results: usize| {
        let call = json!({"id": id, "type": "function",
            "function": {"name": name, "arguments": "{}"}});
        let result = json!({"role": "tool", "tool_call_id": id, "content": ""});
        let mut messages = vec![json!({"role": "assistant", "tool_calls": [call]})];
        messages.extend(vec![result; results]);
        json!({"model": MODEL, "messages": messages})
    };
    let long = "a".repeat(100_000);
    let refused = post(&replica, COMPLETIONS, &request("c", &long, 998)).await;
    let param = "messages[0].tool_calls[0].function.name";
    assert_eq!(envelope(&refused), (400, "invalid_request_error", Some(param), "invalid_value"));
    let refused = post(&replica, COMPLETIONS, &request(&long, "f", 1)).await;
    let param = "messages[0].tool_calls[0].id";
    assert_eq!(envelope(&refused), (400, "invalid_request_error", Some(param), "invalid_value"));
}

const SCHEMA: &str = r#"{"type": "object", "properties": {
    "name": {"type": "string"},
    "rows": {"type": "array", "minItems": 6, "items": {"type": "object", "properties": {
        "kind": {"enum": ["one", "two"]}, "count": {"type": "integer", "minimum": 3}}}}}}"#;

fn structured(question: &str) -> Value {
    let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
    let named = json!({"name": "rows", "strict": true, "schema": schema});
    with(asked(question), "response_format", json!({"type": "json_schema", "json_schema": named}))
}

fn obeys_the_schema(text: &str) {
    let rows = vec![json!({"kind": "one", "count": 3}); 6];
    let answer: Value = serde_json::from_str(text).expect(text);
    assert_eq!(answer, json!({"name": "word", "rows": rows}), "{text}");
}

fn content(reply: &Value) -> &str {
    reply["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{reply}"))
}

#[tokio::test]
async fn a_structured_answer_obeys_its_schema_streamed_or_not() {
    let Setup { replica, ollama, redis: _redis } = setup("500", &[]).await;
    let whole = post(&replica, COMPLETIONS, &structured("rows, please")).await.body;
    obeys_the_schema(content(&whole));
    let stream = streamed(&replica, &structured("rows, please")).await;
    obeys_the_schema(&joined(&stream.data));
    assert!(stream.done && stream.data.len() > 5, "{}", stream.raw);
    for sent in requests(&ollama, "/api/chat").await {
        let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
        assert_eq!(sent["request"]["format"], schema);
    }
    let json = with(asked("json"), "response_format", json!({"type": "json_object"}));
    let json = post(&replica, COMPLETIONS, &json).await.body;
    let answer: Value = serde_json::from_str(content(&json)).expect("JSON");
    assert!(answer.is_object());
}

#[tokio::test]
async fn a_structured_answer_that_breaks_off_starts_again_and_is_never_spliced() {
    let Setup { replica, ollama, redis: _redis } = setup("500", &[]).await;
    for stream in [false, true] {
        let request = structured(&format!("[[fault=cut@7]] rows {stream}"));
        if stream {
            let stream = streamed(&replica, &request).await;
            obeys_the_schema(&joined(&stream.data));
            assert!(stream.done, "{}", stream.raw);
        } else {
            let whole = post(&replica, COMPLETIONS, &request).await.body;
            obeys_the_schema(content(&whole));
            assert!(whole["usage"]["completion_tokens"].as_u64() > Some(7));
        }
    }
    // Text behind a break would be generated without the grammar.
    assert_eq!(requests(&ollama, "/api/generate").await, Vec::<Value>::new());
    let chats = requests(&ollama, "/api/chat").await;
    assert_eq!(chats.iter().filter(|chat| chat["request"]["format"].is_object()).count(), 4);
}

#[tokio::test]
async fn a_tool_is_called_and_its_result_is_answered_streamed_or_not() {
    let Setup { replica, ollama, redis: _redis } = setup("500", &[]).await;
    let tools = json!([{"type": "function", "function": {
        "name": "weather", "description": "The weather of a city.", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]);
    let request = with(asked("[[call=weather]] how is it?"), "tools", tools.clone());
    let reply = post(&replica, COMPLETIONS, &request).await.body;
    let choice = &reply["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null)
    );
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("weather")));
    assert_eq!(call["function"]["arguments"], r#"{"city":"word"}"#);
    let stream = streamed(&replica, &request).await;
    let chunk =
        stream.data.iter().find(|chunk| chunk["choices"][0]["delta"]["tool_calls"].is_array());
    let streamed_call = &chunk.expect("a call")["choices"][0]["delta"]["tool_calls"][0];
    assert_eq!(
        (&streamed_call["index"], &streamed_call["function"]),
        (&json!(0), &call["function"])
    );
    let last = stream.data.last().expect("an end");
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");

    let mut answered = request.clone();
    let messages = answered["messages"].as_array_mut().expect("messages");
    messages.push(choice["message"].clone());
    messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "sunny"}));
    let reply = post(&replica, COMPLETIONS, &answered).await.body;
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert!(!content(&reply).is_empty());
    let sent = requests(&ollama, "/api/chat").await.pop().expect("a request");
    assert_eq!(sent["request"]["tools"], tools);
    let sent = sent["messages"].as_array().expect("messages");
    assert_eq!(sent[1]["tool_calls"][0]["function"]["arguments"], json!({"city": "word"}));
    assert_eq!(
        sent[2],
        json!({"role": "tool", "content": "sunny", "tool_name": "weather",
        "tool_call_id": call["id"]})
    );

    let none = with(request, "tool_choice", json!("none"));
    let reply = post(&replica, COMPLETIONS, &none).await.body;
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn an_answer_with_a_call_that_breaks_off_starts_again_and_has_its_call_once() {
    let Setup { replica, ollama, redis: _redis } = setup("500", &[]).await;
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters":
        {"type": "object", "properties": {"city": {"type": "string"}}}}}]);
    for stream in [false, true] {
        let question = format!("[[tokens=40 fault=cut@7]] [[call=weather]] how is it {stream}");
        let request = with(with(asked(&question), "tools", tools.clone()), "temperature", json!(0));
        let (text, calls) = if stream {
            let stream = streamed(&replica, &request).await;
            assert!(stream.done, "{}", stream.raw);
            let of_chunk = |chunk: &Value| chunk["choices"][0]["delta"]["tool_calls"].clone();
            let calls = stream.data.iter().map(of_chunk).filter(Value::is_array);
            let calls: Vec<_> = calls.filter_map(|calls| calls.as_array().cloned()).collect();
            (joined(&stream.data), calls.concat())
        } else {
            let whole = post(&replica, COMPLETIONS, &request).await.body;
            assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls", "{whole}");
            let calls = whole["choices"][0]["message"]["tool_calls"].as_array().cloned();
            (content(&whole).to_owned(), calls.expect("calls"))
        };
        assert_eq!(text, ollama_sim::script_answer(MODEL, &question, None, 64), "{stream}");
        assert_eq!(calls.len(), 1, "{stream}: {calls:?}");
        assert_eq!(calls[0]["function"]["arguments"], r#"{"city":"word"}"#);
    }
    assert_eq!(stat(&ollama, "faulted").await, 2);
    // Nothing was continued behind a break.
    assert_eq!(requests(&ollama, "/api/generate").await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_call_of_a_strict_tool_obeys_its_schema_or_the_completion_fails() {
    let Setup { replica, ollama, redis: _redis } = setup("500", &[]).await;
    let tools = json!([{"type": "function", "function": {
        "name": "weather", "strict": true, "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
            "additionalProperties": false}}}]);
    let ask = |question: &str| with(asked(question), "tools", tools.clone());
    let reply = post(&replica, COMPLETIONS, &ask("[[call=weather]] how is it?")).await.body;
    let call = &reply["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(call["arguments"], r#"{"city":"word"}"#, "{reply}");
    // The text before the calls is there; the calls are not.
    let wrong = ask("[[tokens=5]] [[call=weather wrong]] how is it?");
    let reply = post(&replica, COMPLETIONS, &wrong).await;
    assert_eq!(envelope(&reply), (502, "server_error", None, "tool_call_invalid"));
    assert_eq!(reply.headers["x-should-retry"], "false");
    let stream = streamed(&replica, &wrong).await;
    let last = stream.data.last().expect("an error");
    assert_eq!((&last["error"]["code"], stream.done), (&json!("tool_call_invalid"), false));
    assert!(!stream.raw.contains("tool_calls"), "{}", stream.raw);
    // The model's mistake is not its host's: nothing was asked again.
    let chats = requests(&ollama, "/api/chat").await;
    assert_eq!(chats.len(), 3, "{chats:?}");
    let mut lenient = wrong;
    lenient["tools"][0]["function"]["strict"] = json!(false);
    let reply = post(&replica, COMPLETIONS, &lenient).await.body;
    assert_eq!(reply["choices"][0]["finish_reason"], "tool_calls", "{reply}");
}

#[tokio::test]
async fn an_answer_without_parallel_calls_has_its_first_one() {
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("500", &[]).await;
    let tools = ["one", "two"].map(|name| json!({"type": "function", "function": {"name": name}}));
    let request = with(asked("[[call=one]] and [[call=two]]"), "tools", json!(tools));
    for (parallel, wanted) in [(true, &["one", "two"][..]), (false, &["one"])] {
        let request = with(request.clone(), "parallel_tool_calls", json!(parallel));
        let reply = post(&replica, COMPLETIONS, &request).await.body;
        let calls = reply["choices"][0]["message"]["tool_calls"].as_array().expect("calls");
        let names: Vec<_> = calls.iter().map(|call| &call["function"]["name"]).collect();
        assert_eq!(names, wanted, "{reply}");
        let stream = streamed(&replica, &request).await;
        let chunks = stream.data.iter().map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"]);
        let calls: Vec<_> = chunks.filter_map(Value::as_array).flatten().collect();
        assert_eq!(calls.len(), wanted.len(), "{}", stream.raw);
    }
}

#[tokio::test]
async fn completions_are_no_sessions_of_their_caller() {
    let settings = [
        ("JARVIS_TRUSTED_PROXIES", "127.0.0.1/32"),
        ("JARVIS_ADDRESS_SESSIONS_PER_DAY", "1"),
        ("JARVIS_JWT_SECRET", SECRET),
    ];
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("2000", &settings).await;
    let ask = || http().post(format!("{}{COMPLETIONS}", replica.url)).json(&asked("hi"));
    for _ in 0..3 {
        let reply = send(ask().header("x-forwarded-for", "203.0.113.9")).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let reply = send(ask().bearer_auth(token("alice"))).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let sessions = http().get(format!("{}/api/v1/chat/sessions", replica.url));
    let sessions = send(sessions.bearer_auth(token("alice"))).await;
    assert_eq!(
        (sessions.status, &sessions.body["sessions"]),
        (200, &json!([])),
        "{}",
        sessions.body
    );
}

#[tokio::test]
async fn a_page_of_a_listed_origin_may_send_what_openais_package_sends() {
    let settings = [("JARVIS_ALLOWED_ORIGINS", "https://app.example")];
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("2000", &settings).await;
    let preflight = async |path: &str, origin: &str| {
        let url = format!("{}{path}", replica.url);
        let request = http().request(reqwest::Method::OPTIONS, url).header("origin", origin);
        let reply = send(request.header("access-control-request-method", "POST")).await;
        let allowed = reply.headers.get_all("access-control-allow-headers").iter();
        allowed
            .map(|value| value.to_str().expect("a text").to_owned())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let allowed = preflight(COMPLETIONS, "https://app.example").await;
    for name in ["authorization", "content-type", "x-stainless-lang", "x-stainless-retry-count"] {
        assert!(allowed.split(", ").any(|allowed| allowed == name), "{name}: {allowed}");
    }
    assert_eq!(preflight(COMPLETIONS, "https://evil.example").await, "");
    assert!(!preflight("/api/v1/chat", "https://app.example").await.contains("stainless"));
}

#[tokio::test]
async fn a_model_that_reasons_shows_its_answer_alone_and_counts_all_its_tokens() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "2000", "--models", "thinker"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    let request = with(asked("[[tokens=10 think=30]] why?"), "model", json!("thinker"));
    let plain = post(&replica, COMPLETIONS, &request).await.body;
    let request = with(request, "reasoning_effort", json!("high"));
    let reasoned = post(&replica, COMPLETIONS, &request).await.body;
    assert_eq!(reasoned["choices"], plain["choices"]);
    let tokens = |reply: &Value| reply["usage"]["completion_tokens"].as_u64().expect("a number");
    assert!(tokens(&reasoned) >= tokens(&plain) + 30, "{reasoned}");
    let stream = streamed(&replica, &request).await;
    assert_eq!(joined(&stream.data), content(&plain));
    let sent = requests(&ollama, "/api/chat").await.pop().expect("a request");
    assert_eq!(sent["request"]["think"], "high");
}

#[tokio::test]
async fn a_body_is_bounded_and_one_of_unknown_length_to_the_usual_size() {
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("2000", &[]).await;
    let filler = "x".repeat(900_000);
    // Most of it is in a message that the model never gets: the window is too small.
    let body = with(asked(&filler), "n", json!(2)).to_string();
    let url = format!("{}{COMPLETIONS}", replica.url);
    let declared = send(http().post(&url).body(body.clone())).await;
    assert_eq!(envelope(&declared), (400, "invalid_request_error", Some("n"), "unsupported_value"));
    let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>(body)]);
    let chunked = send(http().post(&url).body(reqwest::Body::wrap_stream(chunks))).await;
    assert_eq!(envelope(&chunked).3, "body_too_large");
}

#[tokio::test]
async fn a_killed_writer_costs_a_reader_of_a_structured_answer_no_character() {
    let settings = [("JARVIS_LEASE_MS", "2000")];
    let Setup { replica: writing, ollama, redis } = setup("20", &settings).await;
    let reading = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&reading, "/health/ready").await;
    let key = uuid::Uuid::new_v4().to_string();
    let request = with(structured("rows, please"), "stream", json!(true));
    let ask = async |replica: &Process| {
        let ask = http().post(format!("{}{COMPLETIONS}", replica.url)).json(&request);
        ask.header("idempotency-key", &key).send().await.expect("a response")
    };
    let mut begun = ask(&writing).await;
    begun.chunk().await.expect("a chunk");
    let mut read = ask(&reading).await;
    let mut raw = String::new();
    while raw.matches(r#""content":"#).count() < 5 {
        raw += &String::from_utf8_lossy(&read.chunk().await.expect("a chunk").expect("bytes"));
    }
    writing.kill();
    raw += &read.text().await.expect("the rest");
    let chunks = raw.lines().filter_map(|line| line.strip_prefix("data: "));
    let chunks: Vec<Value> = chunks.filter_map(|chunk| serde_json::from_str(chunk).ok()).collect();
    obeys_the_schema(&joined(&chunks));
    assert!(raw.trim_end().ends_with("[DONE]"), "{raw}");
    let chats = requests(&ollama, "/api/chat").await;
    assert!(chats.iter().filter(|chat| chat["request"]["format"].is_object()).count() >= 2);
    assert_eq!(requests(&ollama, "/api/generate").await, Vec::<Value>::new());
}
