//! The promises about tools and formats of the native front.
#![allow(missing_docs, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::client::{Socket, get, history, http, kinds, post, send, server_sent, until_ok};
use support::process::{Process, jarvis, ollama_sim};
use support::redis::RedisServer;
use support::setup::{Setup, setup};
use uuid::Uuid;

const CHAT: &str = "/api/v1/chat";

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    json!([tool("weather"), tool("time")])
}

fn id() -> String {
    Uuid::new_v4().to_string()
}

fn asked(session: &str, message: &str) -> Value {
    json!({"message": message, "session_id": session, "tools": tools(), "temperature": 0})
}

fn result(session: &str, call: &Value, message: &str) -> Value {
    let mut body = asked(session, message);
    body["role"] = json!("tool");
    body["tool_call_id"] = call["id"].clone();
    body
}

/// Returns the requests for answers that the model host got.
async fn host_requests(host: &Process) -> Vec<Value> {
    let asked = get(host, "/sim/requests").await.body;
    asked["requests"].as_array().cloned().unwrap_or_default()
}

fn roles(request: &Value) -> Vec<&str> {
    let messages = request["messages"].as_array().expect("messages");
    messages.iter().filter_map(|message| message["role"].as_str()).collect()
}

#[tokio::test]
async fn a_tool_is_called_over_rest_and_its_result_is_answered_and_a_part_of_later_context() {
    let Setup { replica, ollama, redis: _redis } = setup("2000", &[]).await;
    let session = id();
    let reply = post(&replica, CHAT, &asked(&session, "[[call=weather]] how is it?")).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let calls = &reply.body["tool_calls"];
    assert_eq!((calls[0]["name"].as_str(), calls[1].as_object()), (Some("weather"), None));
    assert_eq!(calls[0]["arguments"], r#"{"city":"word"}"#);
    assert_eq!(host_requests(&ollama).await[0]["request"]["tools"], tools());
    let reply = post(&replica, CHAT, &result(&session, &calls[0], "[[tokens=5]] sunny")).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(reply.body.get("tool_calls").is_none());
    let sent = host_requests(&ollama).await[1].clone();
    assert_eq!(roles(&sent), ["user", "assistant", "tool"]);
    assert_eq!(sent["messages"][1]["tool_calls"][0]["function"]["name"], "weather");
    let answer = &sent["messages"][2];
    assert_eq!(
        (&answer["tool_name"], &answer["tool_call_id"]),
        (&json!("weather"), &calls[0]["id"])
    );
    let reply = post(&replica, CHAT, &asked(&session, "[[tokens=5]] and later?")).await;
    assert_eq!(reply.body["context"]["messages_sent"], 5, "{}", reply.body);
    let sent = host_requests(&ollama).await[2].clone();
    assert_eq!(roles(&sent), ["user", "assistant", "tool", "assistant", "user"]);
    let messages = history(&replica, &session).await;
    assert_eq!(
        (&messages[2]["role"], &messages[2]["tool_name"]),
        (&json!("tool"), &json!("weather"))
    );
    assert_eq!(messages[1]["tool_calls"], *calls);
}

#[tokio::test]
async fn a_call_comes_before_the_end_over_a_socket_and_a_stream_and_is_answered_there() {
    let Setup { replica, ollama: _ollama, redis: _redis } = setup("2000", &[]).await;
    let (mut socket, hello) = Socket::open(&replica, "/ws").await;
    let session = hello["session_id"].as_str().expect("a session").to_owned();
    socket.say(&asked(&session, "[[call=weather tokens=3]] how is it? [[call=weather]]")).await;
    let events = socket.until("stream_end").await;
    let expected = ["message_received", "stream_start", "stream_chunk", "tool_calls", "stream_end"];
    assert_eq!(kinds(&events), expected);
    let event = &events[events.len() - 2];
    let call = event["calls"][0].clone();
    assert_eq!(call["name"], "weather");
    assert!(event["cursor"].is_string() && event["generation_id"].is_string(), "{event}");
    // A reader that resumes before the calls gets them, too.
    let cursor = events[events.len() - 3]["cursor"].as_str().expect("a cursor");
    let path = format!("/ws?session_id={session}&cursor={cursor}");
    let (mut resumed, _) = Socket::open(&replica, &path).await;
    assert_eq!(resumed.event().await, *event);
    let mut answer = result(&session, &call, "[[tokens=5]] sunny");
    answer["type"] = json!("chat");
    socket.say(&answer).await;
    let events = socket.until("stream_end").await;
    assert_eq!(kinds(&events), ["message_received", "stream_start", "stream_chunk", "stream_end"]);
    let mut whole = asked(&session, "[[call=time]] when?");
    whole["stream"] = json!(false);
    socket.say(&whole).await;
    let events = socket.until("response").await;
    assert_eq!(kinds(&events), ["message_received", "tool_calls", "response"]);
    let mut streamed = asked(&session, "[[call=time]] and when?");
    streamed["stream"] = json!(true);
    let stream = http().post(format!("{}{CHAT}", replica.url)).json(&streamed).send().await;
    let text = stream.expect("a stream").text().await.expect("its end");
    let (events, _) = server_sent(&text);
    let names = kinds(&events);
    assert!(names.ends_with(&["stream_chunk", "tool_calls", "stream_end"]), "{names:?}");
}

#[tokio::test]
async fn the_model_answers_once_it_has_the_results_of_all_its_calls() {
    let Setup { replica, ollama, redis: _redis } = setup("2000", &[]).await;
    let session = id();
    let both = "[[call=weather]] and [[call=time]] there?";
    let reply = post(&replica, CHAT, &asked(&session, both)).await;
    let calls = reply.body["tool_calls"].as_array().expect("calls").clone();
    assert_eq!(calls.len(), 2);
    let first = post(&replica, CHAT, &result(&session, &calls[1], "noon")).await;
    assert_eq!((first.status, &first.body["response"]), (200, &json!("")), "{}", first.body);
    assert_eq!(host_requests(&ollama).await.len(), 1, "no host is asked");
    let second = post(&replica, CHAT, &result(&session, &calls[0], "[[tokens=5]] sunny")).await;
    assert_ne!(second.body["response"], "", "{}", second.body);
    let requests = host_requests(&ollama).await;
    assert_eq!(roles(&requests[1]), ["user", "assistant", "tool", "tool"]);
}

#[tokio::test]
async fn what_is_no_result_no_tool_and_no_format_is_refused_and_leaves_nothing() {
    let Setup { replica, ollama: _ollama, redis } = setup("2000", &[]).await;
    let session = id();
    let call = json!({"id": "call_of_nobody"});
    let with = |name: &str, value: Value| {
        let mut body = json!({"message": "hi", "session_id": session});
        body[name] = value;
        body
    };
    for (body, field) in [
        (result(&session, &call, "sunny"), "tool_call_id"),
        (with("role", json!("tool")), "tool_call_id"),
        (with("role", json!("assistant")), "role"),
        (with("tools", json!([{"type": "function"}])), "tools"),
        (with("format", json!("xml")), "format"),
    ] {
        let reply = post(&replica, CHAT, &body).await;
        let loc = &reply.body["errors"][0]["loc"][1];
        assert_eq!((reply.status, loc), (422, &json!(field)), "{}", reply.body);
    }
    assert_eq!(redis.cli(&["KEYS", "jarvis:*:s:*"]).trim(), "");
}

#[tokio::test]
async fn a_structured_answer_of_a_killed_replica_starts_again_and_is_whole() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "30"]);
    let replica = || jarvis(&redis.url(), &ollama.url, &[("JARVIS_LEASE_MS", "2000")]);
    let (one, two) = (replica(), replica());
    for replica in [&one, &two] {
        until_ok(replica, "/health/ready").await;
    }
    let names: Vec<_> = (0..30).map(|number| format!("field_{number}")).collect();
    let fields = names.iter().map(|name| (name.clone(), json!({"type": "string"})));
    let schema = json!({"type": "object",
        "properties": fields.collect::<serde_json::Map<_, _>>(), "required": names});
    let session = id();
    let body = json!({"message": "tell me", "session_id": session, "format": schema,
        "temperature": 0, "stream": true});
    let key = id();
    let request = |replica: &Process, body: &Value| {
        http().post(format!("{}{CHAT}", replica.url)).header("idempotency-key", &key).json(body)
    };
    let mut begun = request(&one, &body).send().await.expect("a stream");
    let mut seen = String::new();
    while seen.matches("stream_chunk").count() < 4 {
        let chunk = begun.chunk().await.expect("a chunk").expect("more");
        seen.push_str(&String::from_utf8_lossy(&chunk));
    }
    one.kill();
    let mut whole = body;
    whole["stream"] = json!(false);
    let reply = send(request(&two, &whole)).await;
    assert_eq!(reply.body["continued"][0]["how"], "restarted", "{}", reply.body);
    let answer = reply.body["response"].as_str().expect("an answer");
    let answer: Value = serde_json::from_str(answer).expect("whole JSON");
    assert_eq!(answer.as_object().map(serde_json::Map::len), Some(30), "{answer}");
}
