//! The engine with real weights, against a stand-in that behaves like llama.cpp's server.

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use ollama_sim::{Config, EngineKind};
use serde_json::{Value, json};

use crate::support::{World, ask, with, world};

type Requests = Arc<Mutex<Vec<Value>>>;

async fn tokenize(Json(body): Json<Value>) -> Json<Value> {
    let words = body["content"].as_str().unwrap_or_default();
    let tokens: Vec<usize> = words.split_whitespace().map(str::len).collect();
    Json(json!({"tokens": tokens}))
}

async fn complete(State(requests): State<Requests>, Json(body): Json<Value>) -> Response {
    let prompt = body["prompt"].as_str().unwrap_or_default().to_owned();
    requests.lock().expect("no panic").push(body);
    if prompt.contains("explode") {
        return (StatusCode::INTERNAL_SERVER_ERROR, "boom").into_response();
    }
    let mut events = vec![
        json!({"content": "Hel", "tokens": [1], "stop": false}),
        json!({"content": "", "tokens": [2], "stop": false}),
        json!({"content": "lo 世", "tokens": [3], "stop": false}),
    ];
    if !prompt.contains("die") {
        events.push(json!({"content": "!", "tokens": [4], "stop": true, "stop_type": "eos",
            "tokens_predicted": 5, "tokens_evaluated": 9}));
    }
    let mut text = String::new();
    for event in events {
        text += "data: ";
        text += &event.to_string();
        text += "\n\n";
    }
    ([("content-type", "text/event-stream")], text).into_response()
}

async fn with_llama() -> (World, Requests) {
    let requests = Requests::default();
    let router = Router::new()
        .route("/tokenize", post(tokenize))
        .route("/completion", post(complete))
        .with_state(Arc::clone(&requests));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    let config = Config {
        engine: EngineKind::Llama,
        llama_url: format!("http://{address}/"),
        ..Config::default()
    };
    (world(config).await, requests)
}

#[tokio::test]
async fn a_chat_is_a_raw_completion_with_every_option() {
    let (world, requests) = with_llama().await;
    let options =
        json!({"options": {"num_predict": 20, "temperature": 0, "seed": 5, "stop": ["x"]}});
    let streamed = world.chat(&with(ask("hi"), &options)).await;
    assert_eq!(streamed.pieces, ["Hel", "lo 世", "!"]);
    assert_eq!(streamed.last["done_reason"], "stop");
    assert_eq!(streamed.figure("eval_count"), 5);
    assert_eq!(streamed.figure("prompt_eval_count"), 9);
    let request = requests.lock().expect("no panic")[0].clone();
    assert_eq!(request["prompt"], "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(request["n_predict"], 20);
    assert_eq!(request["temperature"], 0);
    assert_eq!(request["seed"], 5);
    assert!(request["stop"].as_array().is_some_and(|stop| stop.contains(&json!("x"))));
}

#[tokio::test]
async fn a_raw_prompt_reaches_the_weights_as_it_is() {
    let (world, requests) = with_llama().await;
    let prompt = world.rendered(&ask("hi")).await + "Hel";
    let request = json!({"model": "tinyllama", "raw": true, "prompt": prompt, "shift": false,
        "options": {"num_ctx": 100}});
    world.generate(&request).await;
    let request = requests.lock().expect("no panic")[0].clone();
    assert_eq!(request["prompt"], prompt);
    let room = 100 - prompt.split_whitespace().count();
    assert_eq!(request["n_predict"], room);
}

#[tokio::test]
async fn a_server_that_dies_is_a_runner_that_dies() {
    let (world, _) = with_llama().await;
    let lines = world.lines("/api/chat", &ask("die")).await;
    let error = "an error was encountered while running the model: unexpected EOF";
    assert_eq!(lines.last(), Some(&json!({"error": error})));
    assert_eq!(world.refused("/api/chat", &ask("explode")).await.0, 500);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error() {
    let config = Config {
        engine: EngineKind::Llama,
        llama_url: "http://127.0.0.1:1".into(),
        ..Config::default()
    };
    let world = world(config).await;
    assert_eq!(world.refused("/api/chat", &ask("hi")).await.0, 500);
}
