//! The Ollama front, byte by byte, on real replicas.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use support::client::{Reply, chat, get, http, post, send, until_ok, with};
use support::ended_streams::revoked_and_drained;
use support::fronts::{
    Waiting, a_client_that_leaves_stops_its_model, asked_with_one_key,
    embeddings_take_a_slot_and_count,
};
use support::host::{requests, stat};
use support::owned::used;
use support::process::{LIMIT, Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::setup::{Setup, setup};
use support::tokens::{SECRET, token};
use testkit::eventually;

const CHAT: &str = "/api/chat";
const GENERATE: &str = "/api/generate";
const MODEL: &str = "tinyllama:latest";

fn asked(question: &str) -> Value {
    json!({"model": MODEL, "stream": false, "messages": [{"role": "user", "content": question}]})
}

/// A streamed response: its lines.
struct Streamed {
    status: u16,
    headers: reqwest::header::HeaderMap,
    lines: Vec<Value>,
}

async fn streamed(replica: &Process, path: &str, request: &Value) -> Streamed {
    let request = with(request.clone(), "stream", Value::Null);
    let response = http().post(format!("{}{path}", replica.url)).json(&request).send();
    let response = response.await.expect("a response");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let raw = response.text().await.expect("a body");
    assert!(raw.ends_with('\n') || status != 200, "{raw}");
    let lines = raw.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    Streamed { status, headers, lines }
}

fn joined(lines: &[Value], part: &str) -> String {
    let texts = lines.iter().filter_map(|line| line.pointer(part).and_then(Value::as_str));
    texts.collect()
}

/// Returns the status and the text of an error, which has nothing else.
fn error(reply: &Reply) -> (u16, &str) {
    assert_eq!(reply.body.as_object().map(serde_json::Map::len), Some(1), "{}", reply.body);
    assert_eq!(reply.headers["content-type"], "application/json; charset=utf-8");
    (reply.status, reply.body["error"].as_str().expect("a text"))
}

#[tokio::test]
async fn a_chat_is_the_models_answer_with_its_figures() {
    let Setup { replica, ollama, redis: _redis } = setup("2000", &[]).await;
    let request = json!({"model": "TinyLlama", "stream": false, "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "my name is Ada"},
        {"role": "assistant", "content": "hello Ada"},
        {"role": "user", "content": "[[tokens=20]] what is my name?"},
    ], "keep_alive": "1h", "options": {
        "temperature": 0, "top_k": 30, "top_p": 0.5, "min_p": 0.25, "repeat_penalty": 1.5,
        "presence_penalty": 0.25, "frequency_penalty": -0.5, "seed": 7, "num_predict": 1000,
        "num_ctx": 512, "num_gpu": 0, "unheard_of": "x",
    }});
    let reply = post(&replica, CHAT, &request).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.headers["content-type"], "application/json; charset=utf-8");
    assert_eq!(reply.body["model"], "TinyLlama");
    assert_eq!(reply.body["message"]["role"], "assistant");
    assert!(reply.body["message"]["content"].as_str().is_some_and(|text| !text.is_empty()));
    assert_eq!((&reply.body["done"], &reply.body["done_reason"]), (&json!(true), &json!("stop")));
    assert_eq!(reply.body["eval_count"], 20);
    assert!(reply.body["total_duration"].as_u64() > Some(0));
    let sent = requests(&ollama, CHAT).await.pop().expect("a request");
    assert_eq!(reply.body["prompt_eval_count"], sent["prompt_tokens"]);
    assert_eq!(sent["messages"], request["messages"]);
    let options = sent["options"].as_object().expect("options");
    for (name, value) in request["options"].as_object().expect("options") {
        match name.as_str() {
            "num_ctx" => assert!(options[name].as_u64() > Some(512), "{name}"),
            "num_gpu" | "unheard_of" => assert!(!options.contains_key(name), "{name}"),
            _ => assert_eq!(options[name].as_f64(), value.as_f64(), "{name}"),
        }
    }
    assert_ne!(sent["request"]["keep_alive"], "1h");
}

#[tokio::test]
async fn a_request_without_a_temperature_leaves_the_models_own() {
    let Setup { replica, ollama, redis: _redis } = setup("2000", &[]).await;
    let prompt = json!({"model": MODEL, "prompt": "[[tokens=2]] hi", "stream": false});
    let unset = with(asked("[[tokens=2]] hi"), "options", json!({"temperature": null, "seed": 1}));
    for (path, request) in [(CHAT, asked("[[tokens=2]] hi")), (CHAT, unset), (GENERATE, prompt)] {
        assert_eq!(post(&replica, path, &request).await.status, 200);
        let sent = requests(&ollama, CHAT).await.pop().expect("a request");
        assert_eq!(sent["request"]["options"].get("temperature"), None, "{sent}");
    }
    // The native front has a default of its own.
    assert_eq!(chat(&replica, "", "[[tokens=2]] hi").await.status, 200);
    let sent = requests(&ollama, CHAT).await.pop().expect("a request");
    assert_eq!(sent["options"]["temperature"].as_f64(), Some(0.7));
}

#[tokio::test]
async fn a_streamed_answer_is_lines_that_end_with_reason_and_figures() {
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("100", &[]).await;
    let options = json!({"temperature": 0});
    let chat = with(asked("[[tokens=50]] tell me"), "options", options.clone());
    let prompt = json!({"model": MODEL, "prompt": "[[tokens=50]] tell me", "stream": false,
        "options": options});
    for (path, request, part) in [(CHAT, chat, "/message/content"), (GENERATE, prompt, "/response")]
    {
        let whole = post(&replica, path, &request).await.body;
        let stream = streamed(&replica, path, &request).await;
        assert_eq!(stream.status, 200);
        assert_eq!(stream.headers["content-type"], "application/x-ndjson");
        assert_eq!(stream.headers["cache-control"], "no-cache, no-transform");
        assert!(stream.lines.len() > 10, "piece by piece");
        let text = joined(&stream.lines, part);
        assert!(!text.is_empty());
        assert_eq!(Some(text.as_str()), whole.pointer(part).and_then(Value::as_str), "{path}");
        let (last, before) = stream.lines.split_last().expect("lines");
        assert!(before.iter().all(|line| line["done"] == false && line["model"] == MODEL));
        assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
        for name in ["prompt_eval_count", "eval_count"] {
            assert_eq!(last[name], whole[name], "{name}");
        }
        let time = |name: &str| last[name].as_u64().expect("nanoseconds");
        assert!(time("eval_duration") > 300_000_000, "50 tokens at 100 a second: {last}");
        assert!(time("total_duration") >= time("eval_duration") + time("load_duration"));
    }
}

#[tokio::test]
async fn a_prompt_is_answered_after_its_system_text() {
    let Setup { replica, ollama, redis: _redis } = setup("2000", &[]).await;
    // The official packages send empty fields, too.
    let request = json!({"model": MODEL, "prompt": "[[tokens=5]] hi", "system": "be brief",
        "suffix": "", "template": "", "context": [], "raw": false, "images": [], "stream": false});
    let reply = post(&replica, GENERATE, &request).await;
    assert_eq!((reply.status, &reply.body["eval_count"]), (200, &json!(5)), "{}", reply.body);
    let sent = requests(&ollama, CHAT).await.pop().expect("a request");
    let messages = json!([{"role": "system", "content": "be brief"},
        {"role": "user", "content": "[[tokens=5]] hi"}]);
    assert_eq!(sent["messages"], messages);
}

#[tokio::test]
async fn a_stop_text_and_a_limit_of_tokens_end_an_answer() {
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("2000", &[]).await;
    let ask = async |options: Value| {
        let request = with(asked("[[tokens=50]] tell me"), "options", options);
        post(&replica, CHAT, &request).await.body
    };
    let cut = ask(json!({"temperature": 0, "num_predict": 5})).await;
    assert_eq!((&cut["done_reason"], &cut["eval_count"]), (&json!("length"), &json!(5)));
    let whole = ask(json!({"temperature": 0, "num_predict": -1})).await;
    let whole = whole["message"]["content"].as_str().expect("a text").to_owned();
    let word = whole.split_whitespace().nth(3).expect("a word");
    let stopped = ask(json!({"temperature": 0, "stop": [word]})).await;
    assert_eq!(stopped["done_reason"], "stop");
    let text = stopped["message"]["content"].as_str();
    assert_eq!(text, whole.find(word).map(|at| &whole[..at]));
}

#[tokio::test]
async fn a_model_that_can_reason_does_so_unless_the_request_turns_it_off() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "2000", "--models", "tinyllama,qwen-think"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    let request = with(asked("[[tokens=10 think=8]] hi"), "model", json!("qwen-think"));
    let request = with(request, "options", json!({"temperature": 0}));
    let whole = post(&replica, CHAT, &request).await.body;
    let thinking = whole["message"]["thinking"].as_str().expect("reasoning");
    let stream = streamed(&replica, CHAT, &request).await;
    assert_eq!(joined(&stream.lines, "/message/thinking"), thinking);
    assert_eq!(joined(&stream.lines, "/message/content"), whole["message"]["content"]);
    let prompt = json!({"model": "qwen-think", "prompt": "[[tokens=10 think=8]] hi",
        "think": "low", "stream": false});
    assert!(post(&replica, GENERATE, &prompt).await.body["thinking"].is_string());
    let silent = post(&replica, CHAT, &with(request, "think", json!(false))).await.body;
    assert!(silent["message"].get("thinking").is_none(), "{silent}");
}

#[tokio::test]
async fn the_models_of_all_hosts_are_listed_once_and_described_without_their_hosts() {
    let redis = RedisServer::start();
    let hosts = [
        ollama_sim(&["--models", "tinyllama,alpha"]),
        ollama_sim(&["--models", "tinyllama,beta", "--model-ctx", "2048"]),
    ];
    let urls = hosts.iter().map(|host| host.url.as_str()).collect::<Vec<_>>().join(",");
    let replica = jarvis(&redis.url(), &urls, &[]);
    until_ok(&replica, "/health/ready").await;
    let version = get(&replica, "/api/version").await;
    assert_eq!((version.status, &version.body), (200, &json!({"version": "0.33.0"})));
    let tags = get(&replica, "/api/tags").await;
    let models = tags.body["models"].as_array().expect("models");
    let names: Vec<_> = models.iter().filter_map(|model| model["name"].as_str()).collect();
    assert_eq!(names, ["alpha:latest", "beta:latest", "tinyllama:latest"]);
    let of_host = get(&hosts[0], "/api/tags").await.body["models"][0].clone();
    assert_eq!(models[0], of_host, "the shape of the real one");
    assert_eq!(get(&replica, "/api/ps").await.body, json!({"models": []}));
    let asked = with(asked("[[tokens=3]] hi"), "model", json!("beta"));
    assert_eq!(post(&replica, CHAT, &asked).await.status, 200);
    let loaded = async || {
        let loaded = get(&replica, "/api/ps").await.body;
        loaded["models"].as_array().is_some_and(|models| !models.is_empty())
    };
    assert!(eventually(LIMIT, loaded).await, "the listing is at most 5 s old");
    let ps = get(&replica, "/api/ps").await.body;
    assert_eq!(
        (&ps["models"][0]["name"], &ps["models"][0]["context_length"]),
        (&json!("beta:latest"), &json!(2048))
    );
    assert!(ps["models"][0]["expires_at"].is_string());
    let show = post(&replica, "/api/show", &json!({"model": "Beta"})).await;
    assert_eq!(
        (show.status, &show.body["model_info"]["llama.context_length"]),
        (200, &json!(2048))
    );
    assert_eq!(show.body["capabilities"], json!(["completion"]));
    assert!(show.body["modelfile"].as_str().is_some_and(|file| file.contains("\nFROM Beta\n")));
    assert!(!show.body.to_string().contains("/root"), "{}", show.body);
    let nope = post(&replica, "/api/show", &json!({"model": "nope"})).await;
    assert_eq!(error(&nope), (404, "model 'nope' not found"));
}

#[tokio::test]
async fn every_error_below_api_has_ollamas_form_and_the_native_front_keeps_its_own() {
    let settings = [("JARVIS_ALLOWED_HOSTS", "127.0.0.1")];
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--models", "tinyllama,my-embed", "--too-large", "tinyllama:70b"]);
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let request = |path: &str| http().post(format!("{}{path}", replica.url));
    for (reply, wanted) in [
        (get(&replica, "/api").await, (404, "404 page not found")),
        (post(&replica, "/api/nothing", &json!({})).await, (404, "404 page not found")),
        (get(&replica, CHAT).await, (405, "405 method not allowed")),
        (send(request(CHAT).body("")).await, (400, "missing request body")),
        (send(request(CHAT).body("{")).await, (400, "not valid JSON, at line 1 column 1")),
        (send(request(CHAT).body("[]")).await, (400, "the body must be a JSON object")),
        (
            send(request(GENERATE).header("content-encoding", "gzip").body("x")).await,
            (415, "The body is compressed; send JSON in UTF-8"),
        ),
        (
            send(request(CHAT).body(vec![b' '; (8 << 20) + 1])).await,
            (413, "The body is larger than 8388608 bytes"),
        ),
        (send(request(CHAT).header("origin", "https://evil.example").body("{}")).await, (403, "")),
        (send(request(CHAT).header("host", "evil.example").body("{}")).await, (403, "")),
        (post(&replica, CHAT, &json!({"messages": []})).await, (400, "model is required")),
        (
            post(&replica, CHAT, &with(asked("hi"), "model", json!("Nope:1"))).await,
            (404, "model 'Nope:1' not found"),
        ),
        (
            post(&replica, GENERATE, &json!({"model": "nope", "prompt": "hi"})).await,
            (404, "model 'nope' not found"),
        ),
        (
            post(&replica, CHAT, &json!({"model": "nope", "messages": []})).await,
            (404, "model 'nope' not found"),
        ),
        (
            post(&replica, CHAT, &with(asked("hi"), "options", json!({"top_k": "x"}))).await,
            (400, "options.top_k: must be a 64-bit whole number"),
        ),
        (
            post(&replica, CHAT, &with(asked("hi"), "model", json!("my-embed"))).await,
            (400, "\"my-embed:latest\" does not support chat"),
        ),
        (
            post(&replica, CHAT, &asked(&"long ".repeat(100_000))).await,
            (400, "the conversation is too long for the model"),
        ),
        (send(request(CHAT).bearer_auth("a.b.c").json(&asked("hi"))).await, (401, "")),
    ] {
        let (status, text) = error(&reply);
        assert_eq!((status, text.starts_with(wanted.1)), (wanted.0, true), "{text}");
        assert!(reply.headers.contains_key("x-request-id"));
    }
    for path in ["/api/v1/nothing", "/api/v1"] {
        let native = get(&replica, path).await;
        assert_eq!(native.headers["content-type"], "application/problem+json", "{path}");
    }
}

#[tokio::test]
async fn nothing_that_changes_the_models_of_a_host_is_served() {
    let Setup { replica, ollama, redis: _redis } = setup("2000", &[]).await;
    let body = json!({"model": MODEL, "name": MODEL, "source": MODEL, "destination": "x"});
    for (method, path) in [
        (Method::POST, "/api/pull"),
        (Method::POST, "/api/push"),
        (Method::POST, "/api/create"),
        (Method::POST, "/api/copy"),
        (Method::DELETE, "/api/delete"),
        (Method::POST, "/api/blobs/sha256:0"),
    ] {
        let request = http().request(method, format!("{}{path}", replica.url));
        let reply = send(request.json(&body)).await;
        let (status, text) = error(&reply);
        assert!(status == 403 && text.contains("ask its operator"), "{path}: {status} {text}");
    }
    let blob = http().head(format!("{}/api/blobs/sha256:0", replica.url)).send().await;
    assert_eq!(blob.expect("a response").status(), 403);
    let tags = get(&ollama, "/api/tags").await.body;
    assert_eq!(tags["models"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn one_callers_keep_alive_num_ctx_or_empty_request_loads_and_unloads_nothing() {
    let Setup { replica, ollama, redis: _redis } = setup("2000", &[]).await;
    let question = asked("[[tokens=3]] hi");
    assert_eq!(post(&replica, CHAT, &question).await.status, 200);
    assert_eq!((stat(&ollama, "loads").await, stat(&ollama, "reloads").await), (1, 0));
    let requests = get(&ollama, "/sim/requests").await.body["requests"].as_array().map(Vec::len);
    for (path, request, reason) in [
        (CHAT, json!({"model": MODEL, "messages": [], "keep_alive": 0}), "unload"),
        (CHAT, json!({"model": MODEL, "messages": [], "options": {"num_ctx": 1}}), "load"),
        (CHAT, json!({"model": MODEL}), "load"),
        (GENERATE, json!({"model": MODEL, "keep_alive": "0s"}), "unload"),
        (GENERATE, json!({"model": MODEL, "prompt": ""}), "load"),
    ] {
        let reply = post(&replica, path, &request).await;
        assert_eq!((reply.status, &reply.body["done_reason"]), (200, &json!(reason)));
        assert_eq!(reply.body["done"], true);
        let text = if path == CHAT { "/message/content" } else { "/response" };
        assert_eq!(reply.body.pointer(text), Some(&json!("")));
    }
    let now = get(&ollama, "/sim/requests").await.body["requests"].as_array().map(Vec::len);
    assert_eq!(now, requests, "no host was asked");
    for (name, value) in
        [("keep_alive", json!(0)), ("options", json!({"num_ctx": 512, "num_batch": 1}))]
    {
        let reply = post(&replica, CHAT, &with(question.clone(), name, value)).await;
        assert_eq!(reply.status, 200, "{name}");
    }
    let embed = json!({"model": MODEL, "input": "hi", "keep_alive": 0, "options": {"num_ctx": 9}});
    assert_eq!(post(&replica, "/api/embed", &embed).await.status, 200);
    assert_eq!(post(&replica, CHAT, &question).await.status, 200);
    for (name, wanted) in [("loads", 1), ("reloads", 0), ("unloads", 0)] {
        assert_eq!(stat(&ollama, name).await, wanted, "{name}");
    }
}

#[tokio::test]
async fn embeddings_are_those_of_a_host() {
    let Setup { replica, ollama, redis: _redis } = setup("2000", &[]).await;
    for input in [json!("one"), json!(["one", "two"])] {
        let request = json!({"model": MODEL, "input": input, "dimensions": 4});
        let (reply, wanted) =
            (post(&replica, "/api/embed", &request).await, post(&ollama, "/api/embed", &request));
        let wanted = wanted.await.body;
        assert_eq!((reply.status, &reply.body["embeddings"]), (200, &wanted["embeddings"]));
        assert_eq!(reply.body["prompt_eval_count"], wanted["prompt_eval_count"]);
        assert_eq!(reply.body["model"], MODEL);
        assert!(reply.body["total_duration"].as_u64() > Some(0));
    }
    let request = json!({"model": MODEL, "prompt": "one"});
    let old = post(&replica, "/api/embeddings", &request).await;
    let wanted = post(&ollama, "/api/embeddings", &request).await;
    assert_eq!((old.status, &old.body), (200, &wanted.body));
    let empty = post(&replica, "/api/embed", &json!({"model": MODEL, "input": []})).await;
    assert_eq!((empty.status, &empty.body["embeddings"]), (200, &json!([])));
    let long = json!({"model": MODEL, "input": "long ".repeat(50_000), "truncate": false});
    for (request, status, text) in [
        (json!({"model": "nope", "input": "x"}), 404, "model 'nope' not found"),
        (json!({"model": MODEL, "input": 7}), 400, "invalid input type"),
        (json!({"model": MODEL, "input": [7]}), 400, "invalid input type"),
        (json!({"model": MODEL, "input": vec!["x"; 2049]}), 400, "input: must have at most 2048"),
        (long, 400, "the conversation is too long"),
    ] {
        let reply = post(&replica, "/api/embed", &request).await;
        let (got, words) = error(&reply);
        assert_eq!((got, words.starts_with(text)), (status, true), "{words}");
    }
}

#[tokio::test]
async fn embeddings_wait_for_a_slot_count_as_turns_and_end_with_their_client() {
    assert_eq!(error(&embeddings_take_a_slot_and_count("/api/embed", 4).await).0, 429);
}

#[tokio::test]
async fn a_client_that_leaves_pays_for_embeddings_once_a_host_works_for_it() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--first-token-ms", "20000", "--slots", "8"]);
    let settings = [
        ("JARVIS_OLLAMA_SLOTS", "1"),
        ("JARVIS_JWT_SECRET", SECRET),
        // The used amount comes back so slowly that it can be read.
        ("JARVIS_USER_TURNS_PER_MINUTE", "1"),
        ("JARVIS_USER_TOKENS_PER_DAY", "8640"),
    ];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let request = json!({"model": MODEL, "input": ["a long text ".repeat(100), "x".repeat(800)]});
    let url = format!("{}/api/embed", replica.url);
    let embed =
        |user| tokio::spawn(http().post(&url).bearer_auth(token(user)).json(&request).send());
    let working = embed("alice");
    assert!(eventually(LIMIT, async || stat(&ollama, "running").await == 1).await);
    let waiting = embed("bob");
    assert!(
        eventually(LIMIT, async || used(&replica, "bob").await == (1, 0)).await,
        "it does not wait"
    );
    waiting.abort();
    assert!(
        eventually(LIMIT, async || used(&replica, "bob").await == (0, 0)).await,
        "it pays for nothing"
    );
    working.abort();
    // A token for every four bytes of both texts.
    let paid = async || matches!(used(&replica, "alice").await, (1, 490..=500));
    assert!(
        eventually(LIMIT, paid).await,
        "it pays too little: {:?}",
        used(&replica, "alice").await
    );
    assert_eq!(stat(&ollama, "completed").await, 0);
}

#[tokio::test]
async fn a_request_that_goes_away_stops_its_model_streamed_or_not() {
    a_client_that_leaves_stops_its_model(CHAT, &asked("[[tokens=1000]] go on")).await;
}

#[tokio::test]
async fn a_stream_that_waits_for_its_turn_has_its_first_byte_within_a_second_and_then_heartbeats() {
    let mut both = Waiting::begin(CHAT, asked).await;
    // A heartbeat comes each second.
    for seconds in [1, 3] {
        let chunk = both.stream.chunk().await.expect("a chunk").expect("bytes");
        let waited = both.asked_at.elapsed();
        assert!(waited < Duration::from_secs(seconds), "{waited:?}");
        let line: Value = serde_json::from_slice(&chunk).expect("one line");
        assert_eq!(line["message"], json!({"role": "assistant", "content": ""}));
        assert_eq!(line["done"], false);
    }
    drop(both.running);
    let rest = both.stream.text().await.expect("the rest");
    let last: Value = serde_json::from_str(rest.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["done"], true);
    assert!(last["load_duration"].as_u64() > Some(500_000_000), "the wait counts: {last}");
}

#[tokio::test]
async fn the_first_line_of_a_waiting_stream_comes_within_a_second() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--first-token-ms", "3000"]);
    let replica = jarvis(&redis.url(), &ollama.url, &[]);
    until_ok(&replica, "/health/ready").await;
    let request = json!({"model": MODEL, "prompt": "[[tokens=3]] hi"});
    let asked_at = std::time::Instant::now();
    let response = http().post(format!("{}{GENERATE}", replica.url)).json(&request).send();
    let chunk = response.await.expect("a response").chunk().await.expect("a chunk");
    assert!(asked_at.elapsed() < Duration::from_secs(1), "{:?}", asked_at.elapsed());
    let line: Value = serde_json::from_slice(&chunk.expect("bytes")).expect("one line");
    assert_eq!((&line["response"], &line["done"]), (&json!(""), &json!(false)));
}

#[tokio::test]
async fn an_answer_that_breaks_off_for_good_ends_with_a_line_that_has_the_error() {
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("100", &[]).await;
    // The host breaks off before each first piece, after the stream's first line.
    let request = asked("[[tokens=50 first_ms=700 fault=error@0!]] go");
    let stream = streamed(&replica, CHAT, &request).await;
    assert_eq!(stream.status, 200);
    let last = stream.lines.last().and_then(Value::as_object).expect("a line");
    assert_eq!(last.keys().collect::<Vec<_>>(), ["error"], "{last:?}");
    assert!(stream.lines.iter().all(|line| line.get("done") != Some(&json!(true))));
}

#[tokio::test]
async fn an_answer_that_starts_again_with_another_text_fails_only_where_text_was_sent() {
    const QUESTION: &str = "[[tokens=60]] go on";
    let models = ["tinyllama", "llama3"];
    for stream in [true, false] {
        let redis = RedisServer::start();
        // Two hosts have different models of one name, and with tools no answer is continued.
        let hosts = [
            ollama_sim(&["--rate", "20", "--models", models[0]]),
            ollama_sim(&["--rate", "20", "--models", models[1], "--alias", "tinyllama=llama3"]),
        ];
        let urls = format!("{},{}", hosts[0].url, hosts[1].url);
        let replica = jarvis(&redis.url(), &urls, &[]);
        until_ok(&replica, "/health/ready").await;
        let tools = json!([{"type": "function", "function": {"name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]);
        let request = with(with(asked(QUESTION), "tools", tools), "stream", json!(stream));
        let asking = send_text(http().post(format!("{}{CHAT}", replica.url)).json(&request));
        let asking = tokio::spawn(asking);
        let mut first = None;
        let begun = eventually(LIMIT, async || {
            for (at, host) in hosts.iter().enumerate() {
                if stat(host, "tokens").await > 5 {
                    first = Some(at);
                }
            }
            first.is_some()
        });
        assert!(begun.await, "it does not begin");
        let first = first.expect("a host");
        hosts[first].kill();
        let (status, text) = asking.await.expect("a reply");
        let last = text.lines().last().expect("a line");
        let last: Value = serde_json::from_str(last).expect("JSON");
        assert_eq!(status, 200, "{text}");
        if stream {
            assert!(last["error"].is_string(), "{text}");
        } else {
            let answer = ollama_sim::script_answer(models[1 - first], QUESTION, None, 64);
            assert_eq!(last["message"]["content"], json!(answer), "{text}");
            assert_eq!(last["done"], true);
        }
    }
}

#[tokio::test]
async fn a_whole_answer_with_a_format_that_breaks_off_starts_again() {
    let Setup { replica, ollama, redis: _redis } = setup("500", &[]).await;
    let schema = json!({"type": "object", "properties": {"rows": {"type": "array", "minItems": 6,
        "items": {"type": "integer", "minimum": 3}}}});
    for stream in [false, true] {
        let question = format!("[[fault=cut@7]] rows {stream}");
        let request = with(asked(&question), "format", schema.clone());
        let text = if stream {
            joined(&streamed(&replica, CHAT, &request).await.lines, "/message/content")
        } else {
            let reply = post(&replica, CHAT, &request).await;
            assert_eq!(reply.status, 200, "{}", reply.body);
            reply.body["message"]["content"].as_str().expect("a text").to_owned()
        };
        let answer: Value = serde_json::from_str(&text).expect(&text);
        assert_eq!(answer, json!({"rows": vec![3; 6]}));
    }
    assert_eq!(stat(&ollama, "faulted").await, 2);
}

#[tokio::test]
async fn an_answer_with_a_call_that_breaks_off_starts_again_and_has_its_call_once() {
    let Setup { replica, ollama, redis: _redis } = setup("500", &[]).await;
    let tools = json!([{"type": "function", "function": {"name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]);
    for stream in [false, true] {
        let question = format!("[[tokens=40 fault=cut@7]] [[call=weather]] how is it {stream}");
        let request = with(asked(&question), "tools", tools.clone());
        let lines = if stream {
            streamed(&replica, CHAT, &request).await.lines
        } else {
            vec![post(&replica, CHAT, &request).await.body]
        };
        let last = lines.last().expect("a line");
        assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")), "{last}");
        let answer = ollama_sim::script_answer(MODEL, &question, None, 64);
        assert_eq!(joined(&lines, "/message/content"), answer);
        let calls = lines.iter().filter_map(|line| line["message"]["tool_calls"].as_array());
        let calls: Vec<_> = calls.flatten().collect();
        assert_eq!(calls.len(), 1, "stream: {stream}, {calls:?}");
        assert_eq!(calls[0]["function"]["arguments"], json!({"city": "word"}));
    }
    assert_eq!(stat(&ollama, "faulted").await, 2);
}

/// Sends a request, and returns the status and the body.
async fn send_text(request: reqwest::RequestBuilder) -> (u16, String) {
    let response = request.send().await.expect("a response");
    (response.status().as_u16(), response.text().await.expect("a body"))
}

#[tokio::test]
async fn a_stream_that_its_replica_or_its_revoked_key_ends_has_an_error_as_last_line() {
    let Setup { replica, ollama: _ollama, redis } = setup("20", &[]).await;
    let request = with(asked("[[tokens=1000]] go on"), "stream", json!(true));
    let ended = revoked_and_drained(&replica, &redis, CHAT, &request).await;
    let [revoked, drained] = ended.map(|text| {
        let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        assert_eq!(last.as_object().map(serde_json::Map::len), Some(1), "{last}");
        last["error"].as_str().expect("a text").to_owned()
    });
    assert!(revoked.contains("has been revoked"), "{revoked}");
    assert!(drained.starts_with("This replica is being replaced"), "{drained}");
}

#[tokio::test]
async fn an_idempotency_key_gives_the_same_answer_from_every_replica() {
    let [first, second, reused] = asked_with_one_key(CHAT, asked).await;
    for name in ["message", "eval_count", "prompt_eval_count", "done_reason"] {
        assert_eq!(first.body[name], second.body[name], "{name}");
    }
    assert_eq!(error(&reused).0, 400);
}

#[tokio::test]
async fn a_placeholder_key_is_no_key_where_sign_in_is_optional_and_refused_where_it_is_required() {
    let Setup { replica, ollama, redis } = setup("2000", &[("JARVIS_JWT_SECRET", SECRET)]).await;
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_AUTH", "required")];
    let required = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&required, "/health/ready").await;
    let ask = async |replica: &Process, key: &str| {
        let request = http().post(format!("{}{CHAT}", replica.url)).bearer_auth(key);
        send(request.json(&asked("hi"))).await.status
    };
    for placeholder in ["ollama", "not-needed", "a.b"] {
        assert_eq!(ask(&replica, placeholder).await, 200, "{placeholder}");
        assert_eq!(ask(&required, placeholder).await, 401, "{placeholder}");
    }
    for replica in [&replica, &required] {
        assert_eq!(ask(replica, &token("alice")).await, 200);
        assert_eq!(ask(replica, "a.b.c").await, 401);
    }
    assert_eq!(get(&required, "/api/tags").await.status, 401);
    // The command line asks this first, without a key.
    let head = http().head(&required.url).send().await.expect("a response");
    assert_eq!(head.status(), 200);
}

#[tokio::test]
async fn a_limit_refuses_in_ollamas_form_with_the_time_to_retry() {
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_USER_TURNS_PER_MINUTE", "2")];
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("2000", &settings).await;
    let ask = async |body: &Value| {
        let request = http().post(format!("{}{CHAT}", replica.url)).bearer_auth(token("alice"));
        send(request.json(body)).await
    };
    // To load a model takes no turn.
    assert_eq!(ask(&json!({"model": MODEL})).await.status, 200);
    for _ in 0..2 {
        assert_eq!(ask(&asked("hi")).await.status, 200);
    }
    let refused = ask(&asked("hi")).await;
    assert_eq!(error(&refused).0, 429);
    assert!(refused.headers.contains_key("retry-after"));
    assert!(refused.headers.contains_key("ratelimit"));
}

#[tokio::test]
async fn an_answer_obeys_a_format_whose_schema_reaches_the_host_as_it_is() {
    let Setup { replica, ollama, redis: _redis } = setup("2000", &[]).await;
    let schema = r#"{"type":"object","properties":{"z":{"type":"string"},"age":{"type":"integer","minimum":3}}}"#;
    for (path, field) in
        [(CHAT, r#""messages":[{"role":"user","content":"hi"}]"#), (GENERATE, r#""prompt":"hi""#)]
    {
        let body = format!(r#"{{"model":"{MODEL}","stream":false,{field},"format":{schema}}}"#);
        let reply = send(http().post(format!("{}{path}", replica.url)).body(body)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let part = if path == CHAT { "/message/content" } else { "/response" };
        let text = reply.body.pointer(part).and_then(Value::as_str).expect("a text");
        let answer: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(answer, json!({"z": "word", "age": 3}));
        let sent = requests(&ollama, CHAT).await.pop().expect("a request");
        assert_eq!(sent["request"]["format"], serde_json::from_str::<Value>(schema).expect("JSON"));
    }
    let json = post(&replica, CHAT, &with(asked("hi"), "format", json!("json"))).await.body;
    let text = json["message"]["content"].as_str().expect("a text");
    assert!(serde_json::from_str::<Value>(text).expect("JSON").is_object());
}

#[tokio::test]
async fn a_call_of_a_tool_and_its_result_make_a_round_trip() {
    let Setup { replica, ollama, redis: _redis } = setup("2000", &[]).await;
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let tools = json!([{"type": "function",
        "function": {"name": "weather", "description": "d", "parameters": parameters}}]);
    let request = with(asked("[[call=weather]] how is it?"), "tools", tools.clone());
    let whole = post(&replica, CHAT, &request).await.body;
    let call = &whole["message"]["tool_calls"][0]["function"];
    assert_eq!((&call["name"], &call["arguments"]), (&json!("weather"), &json!({"city": "word"})));
    assert_eq!((&whole["message"]["content"], &whole["done_reason"]), (&json!(""), &json!("stop")));
    let stream = streamed(&replica, CHAT, &request).await;
    let calling = |line: &&Value| line["message"]["tool_calls"].is_array();
    let lines: Vec<_> = stream.lines.iter().filter(calling).collect();
    assert_eq!(lines.len(), 1, "whole, in one line");
    let streamed_call = &lines[0]["message"]["tool_calls"][0]["function"];
    assert_eq!(streamed_call, call);
    assert_eq!(stream.lines.last().expect("a line")["done"], true);
    // As the packages send it back: without the identifier of the call.
    let next = json!({"model": MODEL, "stream": false, "tools": tools, "messages": [
        {"role": "user", "content": "how is it?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function":
            {"name": "weather", "arguments": {"city": "word"}}}]},
        {"role": "tool", "tool_name": "weather", "content": "[[tokens=5]] rain"},
    ]});
    let reply = post(&replica, CHAT, &next).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(reply.body["message"]["content"].as_str().is_some_and(|text| !text.is_empty()));
    let sent = requests(&ollama, CHAT).await.pop().expect("a request");
    let messages = sent["request"]["messages"].as_array().expect("messages");
    assert_eq!(messages[1]["tool_calls"][0]["function"]["arguments"], json!({"city": "word"}));
    assert_eq!(
        (&messages[2]["role"], &messages[2]["tool_name"]),
        (&json!("tool"), &json!("weather"))
    );
    assert_eq!(sent["request"]["tools"], tools);
}
